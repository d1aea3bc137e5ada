"""Images of people in a `.tar` or `.zip`, read in place.

The law: nothing is written and no link followed; what is not read as an image is
counted.

    faces = Archive(pathlib.Path("lfw.zip"))
    faces.people["Ann"]              # ["Ann_0001.jpg", ...]
    faces.read("Ann", "Ann_0001.jpg")
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import stat
import struct
import tarfile
import weakref
import zipfile
import zlib

_PHONES = (".avif", ".heic", ".heif", ".webp")  # what cannot be decoded is told
_PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff")
SUFFIXES = frozenset((*_PICTURES, *_PHONES))

_LARGEST = 1 << 28  # bytes of an image that was deflated
# PKWARE's APPNOTE 4.3.7: signature, 22 bytes told again by the directory, two lengths
_LOCAL = struct.Struct("<4s22xHH")


@dataclasses.dataclass(frozen=True)
class _Member:
    """Where a file's bytes are.

    Attributes:
        offset: of the bytes in a tar, of the local header in a zip.
        length: bytes there.
        size: bytes of the file, where it is of a zip.
        crc: likewise its checksum.
        deflated: whether they are compressed.
    """

    offset: int
    length: int
    size: int = -1
    crc: int = 0
    deflated: bool = False


class Archive:
    """identity -> file names, of an archive.

    Attributes:
        people: the file names of every identity, in no order.
        ignored: files left out: hidden, of another kind, or at another depth.
    """

    def __init__(self, path: pathlib.Path):
        """List an archive.

        Args:
            path: `[root/]<identity>/<file>`, an uncompressed tar or a zip.

        Raises:
            ValueError: neither, damaged, or of several roots.
        """
        self._path = path
        found = _zip(path) if zipfile.is_zipfile(path) else _tar(path)
        members, folders, self.ignored = found
        depth = 3 if any(len(key) == 3 for key in members) else 2
        kept = {key: at for key, at in members.items() if len(key) == depth}
        self.ignored += len(members) - len(kept)
        roots = {key[:-2] for key in kept}
        if len(roots) > 1:
            raise ValueError(
                f"{path}: wanted one folder of <identity>/<file>, found"
                f" {sorted('/'.join(r) for r in roots)[:5]}"
            )
        self._root = "/".join((str(path), *roots.pop())) if roots else str(path)
        self._at = {key[-2:]: at for key, at in kept.items()}
        self.people: dict[str, list[str]] = {
            key[-1]: [] for key in folders if len(key) == depth - 1
        }
        for identity, file in self._at:
            self.people.setdefault(identity, []).append(file)
        self._fd = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._fd)

    def read(self, identity: str, file: str) -> bytes:
        """Return the bytes of a file.

        Raises:
            OSError: the archive ends before it does, or it is damaged.
        """
        member = self._at[identity, file]
        offset = member.offset
        if member.size >= 0:
            header = os.pread(self._fd, _LOCAL.size, offset)
            if len(header) < _LOCAL.size or not header.startswith(b"PK\x03\x04"):
                raise OSError(
                    f"{self._path}: no header of {identity}/{file} at byte {offset}"
                )
            offset += _LOCAL.size + sum(_LOCAL.unpack(header)[1:])
        data = os.pread(self._fd, member.length, offset)  # no seek: threads share it
        if len(data) != member.length:
            raise OSError(f"{self._path} ends within {identity}/{file}")
        if member.size < 0:
            return data
        try:
            if member.deflated:
                data = zlib.decompressobj(-15).decompress(data, member.size + 1)
        except zlib.error as error:
            raise OSError(
                f"{self._path}: {identity}/{file} at byte {offset}: {error}"
            ) from None
        if len(data) != member.size or zlib.crc32(data) != member.crc:
            raise OSError(
                f"{self._path}: {identity}/{file} at byte {offset} is damaged: its"
                " size or checksum is another"
            )
        return data

    def name(self, identity: str, file: str) -> str:
        """Return the path of a file, the archive's and its own."""
        return f"{self._root}/{identity}/{file}"


# Parts of names -> where it is, of images, the last of equal names; the folders, and
# how many files are no images.
_Listed = tuple[dict[tuple[str, ...], _Member], set[tuple[str, ...]], int]


def _tar(path: pathlib.Path) -> _Listed:
    members: dict[tuple[str, ...], _Member] = {}
    folders, ignored = set[tuple[str, ...]](), 0
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key = _parts(member.name)
                if member.isdir():
                    folders.add(key)
                elif member.isreg() and not member.issparse() and is_image(*key):
                    members[key] = _Member(member.offset_data, member.size)
                else:
                    ignored += 1
    except tarfile.TarError as error:
        raise ValueError(
            f"{path} is not a whole uncompressed tar ({error}); decompress it, with"
            " `gunzip` for .tgz, or unpack it and give the folder"
        ) from None
    return members, folders, ignored


def _zip(path: pathlib.Path) -> _Listed:
    members: dict[tuple[str, ...], _Member] = {}
    folders, ignored = set[tuple[str, ...]](), 0
    try:
        with zipfile.ZipFile(path) as pack:
            listed = pack.infolist()
    except (
        zipfile.BadZipFile, struct.error, OverflowError, NotImplementedError, OSError,
        ValueError,
    ) as error:  # fmt: skip
        raise ValueError(f"{path} is not a whole zip: {error}") from None
    for info in listed:
        key = _parts(info.filename)
        if info.filename.endswith("/"):
            folders.add(key)
        elif stat.S_ISLNK(info.external_attr >> 16) or not is_image(*key):
            ignored += 1
        else:
            members[key] = _member(path, info)
    return members, folders, ignored


def _member(path: pathlib.Path, info: zipfile.ZipInfo) -> _Member:
    deflated = info.compress_type == zipfile.ZIP_DEFLATED
    if info.flag_bits & 1 or not (deflated or info.compress_type == zipfile.ZIP_STORED):
        raise ValueError(
            f"{path}: {info.filename} at byte {info.header_offset} is encrypted, or"
            f" packed by method {info.compress_type}; wanted stored or deflated: unpack"
            " it and give the folder"
        )
    fits = 0 <= info.header_offset <= path.stat().st_size - info.compress_size
    if not fits or (deflated and info.file_size > _LARGEST):
        raise ValueError(
            f"{path}: {info.filename} at byte {info.header_offset} is of"
            f" {info.compress_size} bytes, {info.file_size} unpacked, which cannot be"
        )
    return _Member(
        info.header_offset, info.compress_size, info.file_size, info.CRC, deflated
    )


def is_image(*path: str) -> bool:
    """Tell whether a file is taken for an image, by its name, and not hidden."""
    suffix = pathlib.PurePath(*path).suffix.lower()
    return suffix in SUFFIXES and not any(part.startswith(".") for part in path)


def _parts(name: str) -> tuple[str, ...]:
    return tuple(p for p in name.split("/") if p not in ("", "."))
