"""LMDB sets of faces as other projects pack them, read without the library.

One law: nothing of a file is executed or trusted; see `lmdb_file` for its pages and
`foreign.pickles` for pickles. A value is one of

    msgpack of [image bytes, label]       HaiyuWu/SOTA-Face-Recognition-Train-and-Test
    pickle of (image bytes, label)        the ImageFolderLMDB of many projects
    the image's bytes alone               with a list of `key label` beside it

    faces = Source("ms1mv2.lmdb")
    faces = Source("images.lmdb", labels="labels.txt")

Keys that begin with "__" hold no image; `__len__` and `__classnum__` are heeded. What
was packed by pyarrow.serialize cannot be read: pyarrow itself no longer does.
"""

from __future__ import annotations

import functools
import io
import mmap
import os
import pathlib
from typing import Any

import numpy as np

from jaxface.data import lmdb_file
from jaxface.data.sources import lists
from jaxface.foreign import pickles

_TUPLE = b"\x92"  # msgpack's array of two
_PICKLE = b"\x80"
# msgpack: how many bytes of length follow the byte that says bytes (or text, as old
# versions wrote them), and of an integer its bytes and sign
_LENGTHS = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_INTEGERS = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}


class Source:
    """The images of a database in the order of their keys.

    Attributes:
        color: "rgb".
        num_classes: from `__classnum__` or the list, else from all labels.
    """

    color = "rgb"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        labels: str | os.PathLike[str] | None = None,
    ):
        """Find the entries; values are looked at when they are read.

        Args:
            path: the file, or the folder of a `data.mdb`.
            labels: a list of `key label`, see `lists`, labels 0 .. C-1; where values
                are images alone.

        Raises:
            FileNotFoundError: no such file.
            ValueError: another kind of file, a damaged one, or one that has not as
                many images as it says.
        """
        path = pathlib.Path(path)
        self._path = str(path / "data.mdb" if path.is_dir() else path)
        with open(self._path, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise ValueError(f"{self._path}, byte 0: an empty file")
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            found = lmdb_file.entries(self._data)
            told = self._told(found)
            self._found = lmdb_file.Entries(*(f[~self._special(found)] for f in found))
            n = len(self)
            if not n or told.get("__len__", n) != n:
                raise ValueError(
                    f"byte 0: {n} images; its __len__ is {told.get('__len__')}"
                )
            self._listed = None if labels is None else self._read_list(labels)
            classes = told.get("__classnum__")
            if self._listed is not None:
                classes = int(self._listed.max()) + 1
            self.num_classes = classes or int(self._all_labels().max()) + 1
            if not 0 < self.num_classes <= n:
                raise ValueError(f"byte 0: {self.num_classes} classes of {n} images")
        except ValueError as error:
            raise ValueError(f"{self._path}: {error}") from None

    def _special(self, found: lmdb_file.Entries) -> np.ndarray:
        """Return which keys begin with "__", [n] bool."""
        raw = np.frombuffer(self._data, np.uint8)
        two = raw[np.minimum(found.key_at[:, None] + np.arange(2), len(raw) - 1)]
        return (found.key_size > 2) & (two == ord("_")).all(axis=1)

    def _told(self, found: lmdb_file.Entries) -> dict[str, int]:
        """Return the numbers that the database tells of itself."""
        told: dict[str, int] = {}
        for i in np.flatnonzero(self._special(found)).tolist():
            key = self._slice(found.key_at[i], found.key_size[i])
            if key in (b"__len__", b"__classnum__"):
                value = self._slice(found.at[i], found.size[i])
                try:
                    told[key.decode()] = _number(value)
                except ValueError as error:
                    raise ValueError(
                        f"byte {found.at[i]}: {key.decode()}: {error}"
                    ) from None
        return told

    def _read_list(self, path: str | os.PathLike[str]) -> np.ndarray:
        """Return the labels [n] that a list gives the keys."""
        listed = lists.parse(path)
        given = dict(zip(listed.paths, listed.labels, strict=True))
        keys = [self._key(i) for i in range(len(self))]
        missing = [key for key in keys if key not in given]
        if missing or len(given) != len(keys):
            raise ValueError(
                f"{path}:1: {len(given)} keys for {len(keys)} images,"
                f" {len(missing)} of them without, such as {missing[:1]}"
            )
        values = [given[key] for key in keys]
        wrong = [v for v in values if not (v.isascii() and v.isdecimal())]
        if wrong or max(int(v[:12]) for v in values) >= len(keys):
            raise ValueError(f"{path}:1: label {(wrong or ['too large'])[0]!r}")
        return np.array([int(v) for v in values], np.int32)

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """[n] int32; all values are looked at when it is first asked for.

        Raises:
            ValueError: a damaged value, or a label that is none of the classes.
        """
        try:
            found = self._all_labels()
            if found.max() >= self.num_classes:
                at = int(self._found.at[found.argmax()])
                raise ValueError(f"byte {at}: label {found.max()} is no class")
        except ValueError as error:
            raise ValueError(f"{self._path}: {error}") from None
        return found.astype(np.int32)

    def _all_labels(self) -> np.ndarray:
        if self._listed is not None:
            return self._listed
        return np.array([self._parts(i)[1] for i in range(len(self))], np.int64)

    def _slice(self, at: int, size: int) -> bytes:
        return self._data[int(at) : int(at) + int(size)]

    def _key(self, i: int) -> str:
        raw = self._slice(self._found.key_at[i], self._found.key_size[i])
        return raw.decode("utf-8", "surrogateescape")

    def _parts(self, i: int) -> tuple[bytes, int]:
        """Return (encoded image, label) of image i, as the value has them."""
        at = int(self._found.at[i])
        value = self._slice(at, int(self._found.size[i]))
        if self._listed is not None:
            return value, int(self._listed[i])
        try:
            if value[:1] == _TUPLE:
                size, start = _length(value, 1)
                image, label = (
                    value[start : start + size],
                    _integer(value, start + size),
                )
            elif value[:1] == _PICKLE:
                image, label = _pair(_pickled(value))
            else:
                raise ValueError(
                    f"a value that begins {value[:8]!r}; wanted an image with its label"
                    " as msgpack or pickle packs them, or labels= a list of `key label`"
                )
            if not 0 <= label < 2**31:
                raise ValueError(f"label {label}; wanted 0, 1, 2, ...")
        except ValueError as error:
            raise ValueError(f"byte {at}: {error}") from None
        return image, label

    def __len__(self) -> int:
        return len(self._found.at)

    def read(self, i: int) -> tuple[bytes, int]:
        """Return (encoded bytes, label) of image i.

        Raises:
            OSError: if the value is damaged, or its label none of the classes.
        """
        try:
            image, label = self._parts(i)
            if label >= self.num_classes:
                raise ValueError(f"byte {self._found.at[i]}: label {label} is no class")
        except ValueError as error:
            raise OSError(f"{self._path}: {error}") from None
        return image, label

    def name(self, i: int) -> str:
        """Return the file and the key."""
        return f"{self._path}[{self._key(i)}]"


def _length(value: bytes, at: int) -> tuple[int, int]:
    """Return (length, byte after it) of msgpack's bytes or text, in bounds."""
    kind = value[at] if at < len(value) else -1
    width = _LENGTHS.get(kind, 0)
    if not (width or 0xA0 <= kind <= 0xBF):
        raise ValueError(f"msgpack of kind {kind:#x} where an image should be")
    start = at + 1 + width
    size = int.from_bytes(value[at + 1 : start], "big") if width else kind - 0xA0
    if start + size > len(value):
        raise ValueError(f"an image of {size} bytes in a value of {len(value)}")
    return size, start


def _integer(value: bytes, at: int) -> int:
    """Return the msgpack integer that ends the value."""
    kind = value[at] if at < len(value) else -1
    width = 0 if 0 <= kind < 128 or kind >= 0xE0 else _INTEGERS.get(kind)
    if width is None or at + 1 + width != len(value):
        raise ValueError(f"msgpack of kind {kind:#x} where the last integer should be")
    if not width:
        return kind if kind < 128 else kind - 256
    return int.from_bytes(value[at + 1 :], "big", signed=kind >= 0xD0)


def _pickled(value: bytes) -> Any:
    def refuse(_: Any) -> Any:
        raise ValueError("a persistent id has no place in a set of images")

    def empty() -> bytes:  # how protocol 2 writes no bytes at all
        return b""

    return pickles.load(
        io.BytesIO(value), calls={"__builtin__.bytes": empty}, persistent=refuse
    )


def _number(value: bytes) -> int:
    """Return the one integer that a value is."""
    found = _pickled(value) if value[:1] == _PICKLE else _integer(value, 0)
    if not isinstance(found, int):
        raise ValueError(f"a {type(found).__name__}, wanted a number")
    return found


def _pair(found: Any) -> tuple[bytes, int]:
    match found:
        case (bytes() as image, int() as label):
            return image, label
    raise ValueError("a pickle of something else; wanted (image bytes, label)")
