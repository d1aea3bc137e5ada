"""insightface's RecordIO sets (`train.rec`, `train.idx`, `property`) without MXNet.

Images stay in the memory-mapped file, the index is an array of integers. One law:
opening reads the index and a few records, however many there are; a record is looked
at when it is read, and a damaged one is an `OSError` that names file and byte.

    faces = Source("faces_emore")        # or "some/train.rec"
    encoded, label = faces.read(0)
    write(faces, pathlib.Path("out"), images=np.arange(9), labels=faces.labels[:9])
"""

from __future__ import annotations

import contextlib
import functools
import io
import mmap
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from absl import logging
from PIL import Image

from jaxface import types
from jaxface.data import decode, records

_EXACT = 2**24  # float32 holds every integer up to here, and labels are float32
_NO_LABEL = "label {}; wanted 0, 1, 2, ... up to 2^24"
_SHIFT = 64  # how far rounding may have moved the first identity's number


class Source:
    """Images with labels; the layout of arcface_torch or of any IRHeader records.

    In insightface's layout record 0 names the records of identities, each of which
    names its images' records; the images are those before the first identity. In any
    other set every record is an image, in the order of the index.

    Attributes:
        color: "rgb".
        num_classes: from `property`, else from the identities, else from the labels.
        classes: [C] names, where `classes.txt` lists them.
    """

    color = "rgb"

    def __init__(self, path: str | os.PathLike[str]):
        """Map the records and read the index.

        Args:
            path: a folder with `train.rec`, or a `.rec` file; the index lies beside
                it under the same name, `property` and `classes.txt` where they are.

        Raises:
            FileNotFoundError: no records, or no index.
            ValueError: if one of the files is not what it should be.
        """
        rec = pathlib.Path(path)
        rec = rec / "train.rec" if rec.is_dir() else rec
        self._path = str(rec)
        self._data = _mapped(rec)
        keys, offsets = _index(rec.with_suffix(".idx"), size=len(self._data))
        self._identities: np.ndarray | None
        try:
            self._set_out(keys, offsets)
            told = _told_classes(rec.with_name("property"), images=len(self))
            self.num_classes = self._count_classes(told)
        except ValueError as error:
            raise ValueError(f"{rec}: {error}") from None
        self._names = _names(rec.with_name("classes.txt"), self.num_classes)

    def _set_out(self, keys: np.ndarray, offsets: np.ndarray) -> None:
        """Find which records are images: `_offsets`, and their `_keys`."""
        self._keys: np.ndarray | None = keys
        self._offsets, self._identities = offsets, None
        zero = np.flatnonzero(keys == 0)
        labels, image = np.zeros(0), b""
        if len(zero):
            labels, image = records.unpacked(self._data, int(offsets[zero[0]]))
        if image or len(labels) < 2:
            if not (keys[1:] > keys[:-1]).all() and len(np.unique(keys)) < len(keys):
                raise ValueError("the index names a key twice")
            return
        at = np.full(len(keys), -1, np.int64)
        if keys.max() < len(keys):
            at[keys] = offsets
        if at.min() < 0:
            raise ValueError(
                f"the index's keys are not 0 .. {len(keys) - 1}, each once"
            )
        first, end = self._boundary(at, labels)
        self._keys, self._offsets = None, at[1:first]
        self._identities = at[first:end] if first < end else None

    def _boundary(self, at: np.ndarray, labels: np.ndarray) -> tuple[int, int]:
        """Return (first identity record, one past the last)."""
        if not np.isfinite(labels[:2]).all():
            raise ValueError(f"record 0 puts identities at {labels[:2].tolist()}")
        first, end = (int(x) for x in labels[:2])
        if max(first, end) >= _EXACT:  # rounded: the first without an image it is
            end = len(at) if abs(end - len(at)) < _SHIFT else end
            nearby = range(max(first - _SHIFT, 1), min(first + _SHIFT, len(at)))
            empty = (
                k for k in nearby if not records.unpacked(self._data, int(at[k]))[1]
            )
            first = next(empty, first)
        if not 1 < first <= end <= len(at):
            raise ValueError(
                f"record 0 puts identities at {first} to {end}; the index has"
                f" {len(at)} records"
            )
        return first, end

    def _count_classes(self, told: int | None) -> int:
        listed = None if self._identities is None else len(self._identities)
        if told is None:
            return listed or int(_whole(self._scanned()).max()) + 1
        if listed is not None and told != listed:
            raise ValueError(
                f"`property` tells {told} classes, record 0 {listed} identities;"
                " correct `property`, or delete it to go by the identities"
            )
        return told

    @property
    def classes(self) -> Sequence[str]:
        """The names of the classes."""
        if self._names is None:
            raise AttributeError(f"{self._path} has no classes.txt beside it")
        return self._names

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """[n] int32; found when first asked for, from the identities if possible.

        Raises:
            ValueError: a label that is none of the classes, or a damaged record.
        """
        try:
            labels = self._by_identity()
            labels = _whole(self._scanned()) if labels is None else labels
            if labels.max() >= self.num_classes:
                raise ValueError(
                    f"a label is {labels.max()}, of {self.num_classes} classes"
                )
        except ValueError as error:
            raise ValueError(f"{self._path}: {error}") from None
        return labels

    def _scanned(self) -> np.ndarray:
        """Return every image's label as its own header has it."""
        return records.labels_at(self._data, self._offsets)[:, 0]

    def _by_identity(self) -> np.ndarray | None:
        """Return labels by the identities' ranges, None where those do not fit."""
        n = len(self)
        if self._identities is None or n + 1 >= _EXACT:
            return None
        ranges = records.labels_at(self._data, self._identities, count=2)
        starts, ends = (_whole(r) for r in ranges.T)
        tiled = starts[0] == 1 and ends[-1] == n + 1 and (starts < ends).all()
        if tiled and (starts[1:] == ends[:-1]).all():
            of = [records.labels_at(self._data, self._offsets[k])[:, 0]
                  for k in (starts - 1, ends - 2)]  # fmt: skip
            if (of[0] == of[1]).all():
                return np.repeat(_whole(of[0]), ends - starts)
        logging.info("%s: identities do not fit; reading all labels", self._path)
        return None

    def __len__(self) -> int:
        return len(self._offsets)

    def read(self, i: int) -> tuple[bytes, int]:
        """Return (encoded bytes, label) of image i.

        Raises:
            OSError: if the record is damaged, or its label none of the classes.
        """
        at = int(self._offsets[i])
        try:
            told, image = records.image_at(self._data, at)
            if not 0 <= told <= _EXACT or told != int(told):
                raise ValueError(_NO_LABEL.format(told))
            label = int(told)
            if label >= self.num_classes:
                raise ValueError(f"label {label}, of {self.num_classes} classes")
        except ValueError as error:
            where = "" if str(error).startswith("byte") else f"byte {at}: "
            raise OSError(f"{self._path}, {where}{error}") from None
        return image, label

    def name(self, i: int) -> str:
        """Return the file and the record's key."""
        n = len(self)
        key = range(1, n + 1)[i] if self._keys is None else self._keys[i]
        return f"{self._path}[{key}]"


def _mapped(path: pathlib.Path) -> mmap.mmap:
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise ValueError(f"{path}, byte 0: an empty file; wanted records")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _index(path: pathlib.Path, *, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Read the index of a file of `size` bytes."""
    if not path.exists():
        raise FileNotFoundError(
            f"no index at {path}; MXNet's tools/rec2idx.py makes it of the records"
        )
    keys, offsets = records.read_index(path)
    if not len(keys):
        raise ValueError(f"{path}, byte 0: no lines; wanted `key<tab>offset`")
    if offsets.max() >= size:
        raise ValueError(
            f"{path}: key {keys[offsets.argmax()]} starts at byte {offsets.max()};"
            f" the records have {size} bytes"
        )
    return keys, offsets


def _told_classes(path: pathlib.Path, *, images: int) -> int | None:
    """Return the classes that a `property` file tells, None without one."""
    if not path.exists():
        return None
    with open(path, "rb") as file:
        text = file.read(100)
    match = re.fullmatch(rb"\s*(\d{1,9})\s*(,\s*\d{1,9}\s*)*", text)
    if not match or not 0 < int(match[1]) <= images:
        raise ValueError(
            f"{path} is {text[:40]!r}; wanted `classes,height,width`, of classes no"
            f" more than the {images} images"
        )
    return int(match[1])


def _names(path: pathlib.Path, count: int) -> list[str] | None:
    """Return the names that a `classes.txt` lists, None without one."""
    if not path.exists():
        return None
    names = path.read_text("utf-8", "surrogateescape").removesuffix("\n").split("\n")
    if not len(names) == len(set(names)) == count:
        raise ValueError(
            f"{path} has {len(names)} lines, {len(set(names))} of them different;"
            f" wanted {count}, one class a line"
        )
    return names


def _whole(labels: np.ndarray) -> np.ndarray:
    """Return float labels as int32.

    Raises:
        ValueError: if one is no integer that float32 can hold exactly.
    """
    bad = ~((labels >= 0) & (labels <= _EXACT) & (labels == np.floor(labels)))
    if bad.any():
        raise ValueError(_NO_LABEL.format(labels[bad][0]))
    return labels.astype(np.int32)


def write(
    source: types.Source,
    out: pathlib.Path,
    *,
    images: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str] | None = None,
    progress: Callable[[int], object] = lambda images: None,
) -> None:
    """Write images of a source as `train.rec`, `train.idx`, `property`.

    They go by one at a time. The index is renamed last, so a folder that opens is
    whole; what stood there before is replaced.

    Args:
        source: the images. Encoded ones are kept byte for byte, arrays become PNG.
        out: the folder, made if need be.
        images: [n] indices into `source`, in the order of the file.
        labels: [n] 0 .. C-1 in this order: all of class 0, then all of class 1, ...
        classes: [C] names, for `classes.txt`.
        progress: called with how many more images were written.

    Raises:
        ValueError: labels in another order, names of another number, or encoded
            images of a source that decodes to BGR.
    """
    n, starts = len(images), _starts(labels)
    C = len(starts)
    if not n or len(labels) != n or (classes is not None and len(set(classes)) != C):
        raise ValueError(
            f"{n} images, {len(labels)} labels of {C} classes,"
            f" {'no' if classes is None else len(set(classes))} different names"
        )
    if any("\n" in name for name in classes or ()):
        raise ValueError("a name of a class has several lines")
    out.mkdir(parents=True, exist_ok=True)
    with _replaced(out, ("train.rec", "property", "classes.txt", "train.idx")) as new:
        with open(new["train.rec"], "wb") as rec, open(new["train.idx"], "w") as index:

            def put(key: int, label: int | Sequence[int], image: bytes) -> None:
                index.write(f"{key}\t{rec.tell()}\n")
                rec.write(records.frame(records.pack(label, image, key=key)))

            put(0, (n + 1, n + 1 + C), b"")
            for k, (i, label) in enumerate(zip(images, labels, strict=True)):
                put(k + 1, int(label), _encoded(source, int(i)))
                progress(1)
            for k, (a, b) in enumerate(zip(starts, [*starts[1:], n], strict=True)):
                put(n + 1 + k, (int(a) + 1, int(b) + 1), b"")
        H, W, _ = decode.pixels(source.read(int(images[0]))[0]).shape
        new["property"].write_text(f"{C},{H},{W}\n")
        if classes is not None:
            text = "".join(f"{name}\n" for name in classes)
            new["classes.txt"].write_text(text, "utf-8", "surrogateescape")


def _starts(labels: np.ndarray) -> np.ndarray:
    """Return where each class begins, [C]."""
    steps = np.diff(labels, prepend=-1)
    if not np.isin(steps, (0, 1)).all() or (len(labels) and labels[-1] >= _EXACT):
        raise ValueError(
            f"labels {np.asarray(labels)[:9].tolist()} ...; wanted 0 .. C-1 in order,"
            f" at most 2^24 of them"
        )
    return np.flatnonzero(steps)


def _encoded(source: types.Source, i: int) -> bytes:
    """Return image i as bytes that decode to RGB."""
    record, _ = source.read(i)
    if isinstance(record, np.ndarray):
        pixels = decode.pixels(record)
        rgb = pixels[:, :, ::-1] if source.color == "bgr" else pixels
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(rgb)).save(file, "PNG")
        return file.getvalue()
    if source.color != "rgb":
        raise ValueError(
            f"{source.name(i)} is encoded and decodes to {source.color}; a RecordIO set"
            " is read as rgb: decode it first"
        )
    return record


@contextlib.contextmanager
def _replaced(
    out: pathlib.Path, names: Sequence[str]
) -> Iterator[dict[str, pathlib.Path]]:
    """Give temporary paths; on success they take the names, in this order."""
    new = {name: out / f".{name}.partial" for name in names}
    try:
        yield new
        for name in reversed(names):  # the old index goes first, the new comes last
            (out / name).unlink(missing_ok=True)
        for name in names:
            if new[name].exists():
                os.replace(new[name], out / name)
    finally:
        for path in new.values():
            path.unlink(missing_ok=True)
