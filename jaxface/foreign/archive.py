"""Zip archives that hold weights, opened with care.

One law: what is taken out is no larger than the file. PyTorch and Keras store weights
uncompressed, so compressed or overlapping ones are a bomb or another kind of file.

    with opened("model.pth") as archive:
        pickled = member(archive, "archive/data.pkl")
"""

from __future__ import annotations

import contextlib
import os
import struct
import zipfile
from collections.abc import Iterator

# What the zipfile module raises on archives that somebody damaged, ValueError apart.
_DAMAGE = (
    zipfile.BadZipFile,
    NotImplementedError,  # a version or method that Python has not
    RuntimeError,  # encrypted
    OverflowError,
    EOFError,
    OSError,
    struct.error,
)


@contextlib.contextmanager
def opened(path: str) -> Iterator[zipfile.ZipFile]:
    """Open an archive of stored members.

    Args:
        path: the file, which exists.

    Yields:
        The archive; take its members with `member`.

    Raises:
        ValueError: if it is damaged, or larger than its file.
    """
    with open(path, "rb") as file:
        with _explained():
            archive = zipfile.ZipFile(file)
        size = os.fstat(file.fileno()).st_size
        total = sum(i.file_size for i in archive.infolist() if _stored(i))
        if total > size:
            raise ValueError(f"its members declare {total} bytes, the file has {size}")
        yield archive


def member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return a member's bytes, checked against its CRC-32.

    Raises:
        ValueError: if there is no such member, or it is compressed or damaged.
    """
    if name not in archive.NameToInfo:
        raise ValueError(f"member {name!r} is missing from the archive")
    if not _stored(archive.NameToInfo[name]):
        raise ValueError(
            f"member {name!r} is compressed or encrypted; PyTorch and Keras store"
            " weights as they are: unpack the archive and zip it with -0"
        )
    with _explained():
        return archive.read(name)


def _stored(info: zipfile.ZipInfo) -> bool:
    return info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turn what zipfile raises on a damaged archive into a ValueError."""
    try:
        yield
    except _DAMAGE as error:
        raise ValueError(f"the zip archive is damaged or cut short: {error}") from None
