"""Verification packs in insightface's layout, from any list of pairs.

The law: what `sources.pairs_bin` reads back is the same pairs in the same folds, and
no fold of theirs shares a person with another that ours does not.

    found = pairs_sampled.pairs(folder.Source("faces"), count=6000, folds=10)
    write(found, "faces.bin")            # pairs_bin(path='faces.bin', folds=10)
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable

import numpy as np
from PIL import Image

from jaxface import atomic, types
from jaxface.data import decode


def write(
    pairs: types.Pairs,
    path: str | os.PathLike[str],
    *,
    progress: Callable[[int], object] = lambda pairs: None,
) -> tuple[int, int]:
    """Write a pack: a pickle of (list of 2N encoded images, list of N bools).

    Protocol 2, as insightface's own packs, which its readers open by
    `pickle.load(file, encoding="bytes")`. Pixels are RGB once decoded: arrays and BGR
    images become PNG, other images are kept byte for byte.

    Args:
        pairs: whose folds follow each other in the sizes that readers assume.
        path: the file; it is replaced in one move.
        progress: called with how many more pairs are written.

    Returns:
        (height, width) of all images.

    Raises:
        ValueError: folds of other sizes or order, images of unlike sizes, or an image
            that cannot be read.
    """
    N, K = len(pairs), int(pairs.fold.max()) + 1
    sizes = [N // K + (k < N % K) for k in range(K)]  # scikit-learn's KFold
    if not np.array_equal(pairs.fold, np.repeat(np.arange(K), sizes)):
        raise ValueError(
            f"{N} pairs in {K} folds of {np.bincount(pairs.fold).tolist()}: readers of"
            f" a pack take {sizes}, one after another; make count a multiple of"
            f" {2 * K}"
        )
    shape: tuple[int, int] | None = None
    with atomic.file(path) as part, part.open("wb") as file:
        file.write(b"\x80\x02](")  # PROTO 2, EMPTY_LIST, MARK
        for left, right in zip(pairs.left, pairs.right, strict=True):
            for i in (int(left), int(right)):
                image, found = _encoded(pairs.images, i)
                if shape not in (None, found):
                    raise ValueError(
                        f"{pairs.images.name(i)} is {found[0]} x {found[1]}, others"
                        f" are {shape}: a pack has one size; prepare the source"
                        " with --align first"
                    )
                shape = found
                file.write(b"T" + struct.pack("<i", len(image)) + image)
            progress(1)
        flags = b"".join(b"\x88" if s else b"\x89" for s in pairs.same)
        file.write(b"e](" + flags + b"e\x86.")  # APPENDS, ..., TUPLE2, STOP
    assert shape
    return shape


def _encoded(source: types.Source, i: int) -> tuple[bytes, tuple[int, int]]:
    """Return an image's bytes and its (height, width)."""
    record, _ = source.read(i)
    try:
        pixels = decode.pixels(record)
    except decode.UnreadableError as error:
        raise ValueError(f"{source.name(i)} cannot be decoded: {error}") from None
    if source.color == "bgr":
        pixels = pixels[..., ::-1]
    if isinstance(record, np.ndarray) or source.color == "bgr":
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
        record = buffer.getvalue()
    return record, (pixels.shape[0], pixels.shape[1])
