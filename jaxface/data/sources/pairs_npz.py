"""Verification packs as `.npz`: pixels of both sides, and which pairs are genuine.

The law: nothing is unpickled, and an array's header is held against the bytes of its
member before memory is taken.

    found = pairs("agedb_30.npz", folds=10)
    found.images.read(found.left[0])     # (uint8 [H, W, 3], label)
"""

from __future__ import annotations

import lzma
import math
import os
import struct
import tokenize
import zipfile
import zlib
from typing import IO

import numpy as np

from jaxface import types
from jaxface.data.sources import pairs_bin

_RATIO = 32  # pictures do not shrink further, and a bomb swells a thousandfold
_SMALL = 1 << 24

# What zipfile, its codecs and the parser of NumPy's header raise on a damaged file.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    tokenize.TokenError,
    SyntaxError,
    TypeError,
    EOFError,
    OSError,
    OverflowError,
    RuntimeError,  # a password, a method not implemented, nesting too deep
)


def pairs(
    path: str | os.PathLike[str],
    *,
    images: str = "images",
    same: str = "issame",
    folds: int = 10,
    names: str | os.PathLike[str] | None = None,
    color: str = "rgb",
) -> types.Pairs:
    """Open a pack.

    Args:
        path: the `.npz` file.
        images: its array uint8 [2N, H, W, 3], [2N, 3, H, W] or [N, 2, H, W, 3]; both
            sides of a pair stand one after the other.
        same: its array [N] of bool or 0 and 1.
        folds: number of contiguous folds, of the sizes of scikit-learn's KFold.
        names: LFW's `pairs.txt` in this order; see `pairs_bin.pairs`.
        color: channel order of the pixels.

    Returns:
        The pairs; each distinct image is listed once.

    Raises:
        ValueError: on anything that is not such a pack, with file and array.
    """
    try:
        with zipfile.ZipFile(path) as pack:
            pixels, flags = _array(pack, images), _array(pack, same)
    except FileNotFoundError:
        raise
    except _DAMAGE as error:
        raise ValueError(f"{path} is no whole .npz file: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    shape = pixels.shape
    if pixels.ndim == 5 and shape[1] == 2:
        pixels = pixels.reshape(-1, *shape[2:])
    if pixels.ndim == 4 and pixels.shape[1] == 3 and pixels.shape[3] != 3:
        pixels = pixels.transpose(0, 2, 3, 1)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
        raise ValueError(
            f"{path}: {images!r} is {pixels.dtype} {list(shape)}; wanted uint8"
            " [2N, H, W, 3], [2N, 3, H, W] or [N, 2, H, W, 3]"
        )
    if (
        flags.ndim != 1
        or flags.dtype.kind not in "biu"
        or not np.isin(flags, (0, 1)).all()
    ):
        raise ValueError(
            f"{path}: {same!r} is {flags.dtype} {list(flags.shape)}; wanted [N] of True"
            " and False"
        )
    if not pixels.size or len(pixels) != 2 * len(flags):
        raise ValueError(
            f"{path}: {len(pixels)} images for {len(flags)} pairs; wanted two each"
        )
    whole = [np.ascontiguousarray(image) for image in pixels]
    return pairs_bin.packed(
        whole, flags.astype(bool), path=path, folds=folds, names=names, color=color
    )


def _array(pack: zipfile.ZipFile, name: str) -> np.ndarray:
    """Return an array of a pack."""
    members = {info.filename.removesuffix(".npy"): info for info in pack.infolist()}
    if name not in members:
        raise ValueError(f"no array {name!r}; it has {', '.join(sorted(members)[:20])}")
    info = members[name]
    if info.file_size > max(_RATIO * info.compress_size, _SMALL):
        raise ValueError(
            f"{name!r} at byte {info.header_offset} swells from {info.compress_size} to"
            f" {info.file_size} bytes; wanted at most {_RATIO} times"
        )
    with pack.open(info) as member:
        try:
            shape, fortran, dtype = _header(member)
        except ValueError as error:
            place = f"{name!r} at byte {info.header_offset}"
            raise ValueError(f"{place}: {error}") from None
        left = info.file_size - member.tell()
        if dtype.hasobject:
            raise ValueError(f"{name!r} holds Python objects, which are not unpickled")
        if any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != left:
            raise ValueError(
                f"{name!r} says {dtype} {list(shape)}, and {left} bytes follow"
            )
        raw = member.read()
    if len(raw) != left:
        raise ValueError(f"{name!r} ends after {len(raw)} of {left} bytes")
    return np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C")


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read (shape, whether columns lie together, dtype) from where an array begins."""
    version = np.lib.format.read_magic(member)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"format {version}; wanted 1.0 or 2.0")
    read = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
    return read(member)
