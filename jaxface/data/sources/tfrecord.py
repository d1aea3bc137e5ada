"""TFRecord files of `tf.train.Example`, read without TensorFlow.

One law: a record is taken only if its checksums agree. Where records start and which
labels they have is found once and kept in a `.index` beside each file, or in memory
where that cannot be written; the records themselves stay in the mapped files.

    faces = Source("sets/faces")                  # prepared, or of TFDS
    faces = Source("faces/train.tfrecord-*")
    faces = Source("faces", image="image/encoded", label="image/class/label")
    encoded, label = faces.read(0)

A record is its length (8 bytes) and that one's checksum (4), its bytes and theirs (4):
tensorflow/core/lib/io/record_writer.h.
"""

from __future__ import annotations

import array
import glob
import mmap
import os
import pathlib
import re
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from jaxface import atomic
from jaxface.data import crc32c, example, layout

_FRAME = 16  # bytes of a record besides its own
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})$")


class Index(NamedTuple):
    """What a file holds.

    Attributes:
        offsets: [n] int64, where each record starts.
        labels: [n] int64, -1 of a record that is damaged or lacks what it should have.
        names: where labels are text; a label is a place in here.
    """

    offsets: np.ndarray
    labels: np.ndarray
    names: list[str]


class Source:
    """The images of one file or of all shards of a set, in order.

    Attributes:
        color: "rgb", or what the data set's metadata or the caller says.
        num_classes: as given or told by the data set, else one more than the largest
            label.
        labels: [n] int32.
        damaged: records left out, which were warned of.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        split: str = "train",
        image: str = "",
        label: str = "",
        num_classes: int | None = None,
        color: str = "",
    ):
        """Open the files; the first time, their records are read through.

        Args:
            path: a TFDS data set's directory or one above it, such as a prepared set;
                or a file, a pattern such as `faces-*.tfrecord`, or a folder of
                `*.tfrecord*`.
            split: of a data set.
            image: the feature with the encoded image; the data set's only one, or
                else "image".
            label: likewise the feature with the label: an integer from 0 on, or a name.
            num_classes: how many classes there are, if not all have images here.
            color: channel order the images decode to.

        Raises:
            FileNotFoundError: no such files, or shards of a set are missing.
            ValueError: a file that is not of such records, features of other names,
                or labels that are none of the classes.
        """
        told = _told(path, split=split, image=image, label=label)
        if told:
            image, label = told.image, told.label
            num_classes = num_classes or told.num_classes
        self._image, self._label = image or "image", label or "label"
        self.color = color or (told.color if told else "rgb")
        self._classes = told.classes if told else None
        self._paths = list(told.files) if told else _files(os.fspath(path))
        self._data = [_mapped(p) for p in self._paths]
        found = [
            _index(p, data, image=self._image, label=self._label)
            for p, data in zip(self._paths, self._data, strict=True)
        ]
        if told:
            _check_counts(self._paths, found, told.lengths)
        self._names = sorted({name for one in found for name in one.names})
        number = {name: k for k, name in enumerate(self._names)}
        labels = [
            _renumbered(p, one, number)
            for p, one in zip(self._paths, found, strict=True)
        ]
        kept = [one >= 0 for one in labels]
        counts = [int(k.sum()) for k in kept]
        self.damaged = sum(map(len, kept)) - sum(counts)
        self._file = np.repeat(np.arange(len(found), dtype=np.int32), counts)
        chosen = np.concatenate(kept)
        self._at = np.concatenate([one.offsets for one in found])[chosen]
        whole = np.concatenate(labels)[chosen]
        n, top = len(whole), int(whole.max(initial=-1)) + 1
        if not n:
            raise ValueError(self._nothing(path))
        self.num_classes = num_classes or top
        if top > self.num_classes or (num_classes is None and top > n):
            raise ValueError(
                f"{self.name(int(whole.argmax()))}: label {top - 1} of {n} images,"
                f" with num_classes={num_classes}; give it if that is meant"
            )
        self.labels = whole.astype(np.int32)
        if self.damaged:
            logging.warning("%s: %d records left out, damaged", path, self.damaged)

    def _nothing(self, path: str | os.PathLike[str]) -> str:
        """Say why there is no image."""
        for p, data in zip(self._paths, self._data, strict=True):
            if len(data):
                try:
                    features = sorted(example.parse(_record(data, 0)))
                except ValueError as error:
                    return f"{p}: no whole record; the first: {error}"
                return (
                    f"{p}, byte 0: features {features[:20]}; name that of the image by"
                    " image= and that of the label by label="
                )
        return f"{path}, byte 0: no records"

    @property
    def classes(self) -> Sequence[str]:
        """The labels' names, where they are text or the data set tells them."""
        if not (self._names or self._classes):
            raise AttributeError("the labels are numbers")
        return self._names or list(self._classes or ())

    def __len__(self) -> int:
        return len(self._at)

    def read(self, i: int) -> tuple[bytes, int]:
        """Return (encoded bytes, label) of image i.

        Raises:
            OSError: if the record is damaged, or is not what the index says.
        """
        file, at = int(self._file[i]), int(self._at[i])
        try:
            encoded, label = _face(
                _record(self._data[file], at), image=self._image, label=self._label
            )
        except ValueError as error:
            raise OSError(f"{self.name(i)}: {error}") from None
        wanted = int(self.labels[i])
        if label != (self._names[wanted] if self._names else wanted):
            raise OSError(
                f"{self.name(i)}: label {label!r}, in its index {wanted};"
                f" delete {self._paths[file]}.index"
            )
        return encoded, wanted

    def name(self, i: int) -> str:
        """Return the file and the byte where the record starts."""
        return f"{self._paths[self._file[i]]}@{self._at[i]}"


def _told(
    path: str | os.PathLike[str], *, split: str, image: str, label: str
) -> layout.Layout | None:
    """Return what a data set says of itself, None of other files."""
    try:
        found = layout.find(path) if os.path.isdir(path) else None
    except FileNotFoundError:
        return None
    if found is None:
        return None
    given = {"split": split, "image": image, "label": label}
    return layout.read(found, format="tfrecord", **given)


def _check_counts(paths: list[str], found: list[Index], told: Sequence[int]) -> None:
    """Refuse a file of fewer or more records than the data set's metadata counts."""
    for path, one, count in zip(paths, found, told, strict=True):
        if len(one.offsets) != count:
            raise ValueError(
                f"{path} has {len(one.offsets)} records; the metadata says {count}"
            )


def _files(path: str) -> list[str]:
    """Return the files that a path means, sorted."""
    pattern = (
        os.path.join(glob.escape(path), "*.tfrecord*") if os.path.isdir(path) else path
    )
    found = [path] if os.path.isfile(path) else sorted(glob.glob(pattern))
    found = [p for p in found if not p.endswith((".index", ".partial"))]
    if not found:
        raise FileNotFoundError(f"no TFRecord files at {pattern}")
    shards = [match for p in found if (match := _SHARD.match(p))]
    for base, total in {(m[1], m[3]) for m in shards}:
        there = {int(m[2]) for m in shards if (m[1], m[3]) == (base, total)}
        missing = int(total) - len(there)
        if missing and len(found) > 1:
            raise FileNotFoundError(
                f"{missing} of {int(total)} shards of {base} are missing, or there are"
                f" more than it says; the first has number {min(there)}"
            )
    return found


def _mapped(path: str) -> mmap.mmap | bytes:
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return b""  # a shard may be empty
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _record(data: mmap.mmap | bytes, at: int) -> memoryview:
    """Return the bytes of the record at a byte, if its checksums agree."""
    if not 0 <= at <= len(data) - _FRAME:
        raise ValueError(f"byte {at}: no record here; {len(data)} bytes in all")
    length, check = struct.unpack_from("<QI", data, at)
    start = at + 12
    if crc32c.masked(data[at : at + 8]) != check:
        raise ValueError(f"byte {at}: the length's checksum does not agree")
    if length > len(data) - start - 4:
        raise ValueError(
            f"byte {at}: a record of {length} bytes; {len(data) - start - 4} are left"
        )
    record = memoryview(data)[start : start + length]
    (check,) = struct.unpack_from("<I", data, start + length)
    if crc32c.masked(record) != check:
        raise ValueError(f"byte {start}: the record's checksum does not agree")
    return record


def _face(record: memoryview, *, image: str, label: str) -> tuple[bytes, int | str]:
    """Return (encoded image, label) of an Example."""
    try:
        found = example.parse(record)
    except ValueError as error:
        raise ValueError(f"no tf.train.Example, within it {error}") from None
    for name in (image, label):
        if len(found.get(name, ())) != 1:
            raise ValueError(
                f"feature {name!r} has {len(found.get(name, ()))} values, wanted one;"
                f" there are {sorted(found)[:20]}"
            )
    encoded, told = found[image][0], found[label][0]
    if not isinstance(encoded, bytes):
        raise ValueError(f"feature {image!r} is no bytes; wanted an encoded image")
    if isinstance(told, bytes):
        return encoded, told.decode("utf-8", "surrogateescape")
    if not isinstance(told, np.int64) or not 0 <= told < 2**31:
        raise ValueError(f"label {told}; wanted a name or 0, 1, 2, ...")
    return encoded, int(told)


# --- the index ------------------------------------------------------------------------


def _index(path: str, data: mmap.mmap | bytes, *, image: str, label: str) -> Index:
    """Return what the file holds, from its `.index` if that is of this file."""
    beside = pathlib.Path(f"{path}.index")
    told = f"jaxface TFRecord index 1: {len(data)} bytes, {image!r}, {label!r}\n"
    header = told.encode("utf-8", "surrogateescape")
    if beside.exists():
        found = _loaded(beside, header, size=len(data))
        if found is not None:
            return found
        logging.info("%s is of another file or other features", beside)
    offsets = _scan(path, data)
    labels, names = _labels(path, data, offsets, image=image, label=label)
    found = Index(offsets, labels, names)
    if not beside.exists() or beside.read_bytes()[:16] == header[:16]:
        _save(beside, header, found)
    return found


def _scan(path: str, data: mmap.mmap | bytes) -> np.ndarray:
    """Return where the records start, by their lengths alone, [n] int64."""
    if data[:2] == b"\x1f\x8b":
        raise ValueError(f"{path}, byte 0: compressed by gzip; decompress it")
    starts, at, size = array.array("q"), 0, len(data)
    while at <= size - _FRAME:
        starts.append(at)
        at += _FRAME + int.from_bytes(data[at : at + 8], "little")
    offsets = np.array(starts, np.int64)
    raw = np.frombuffer(data, np.uint8)
    for k in range(0, len(offsets), 65536):
        rows = raw[offsets[k : k + 65536, None] + np.arange(12)]
        wrong = crc32c.masked_rows(rows[:, :8]) != rows[:, 8:].copy().view("<u4")[:, 0]
        if wrong.any():
            first = int(offsets[k + int(np.argmax(wrong))])
            raise ValueError(f"{path}, byte {first}: no record, or a damaged length")
    if at != size:
        last = int(offsets[-1]) if at > size else at
        raise ValueError(f"{path}, byte {last}: the last record is cut short")
    return offsets


def _labels(
    path: str, data: mmap.mmap | bytes, offsets: np.ndarray, *, image: str, label: str
) -> tuple[np.ndarray, list[str]]:
    """Return (labels [n] int64, names); -1 of a record that has none."""
    labels = np.full(len(offsets), -1, np.int64)
    names: dict[str, int] = {}
    numbers = False
    logging.info("%s: reading %d records for their labels", path, len(offsets))
    for k, at in enumerate(offsets.tolist()):
        try:
            _, told = _face(_record(data, at), image=image, label=label)
        except ValueError as error:
            logging.log_first_n(logging.WARNING, "%s: %s", 5, f"{path}@{at}", error)
            continue
        if isinstance(told, str):
            labels[k] = names.setdefault(told, len(names))
        else:
            labels[k], numbers = told, True
        if numbers and names:
            raise ValueError(f"{path}, byte {at}: some labels are text, some numbers")
    return labels, list(names)


def _loaded(path: pathlib.Path, header: bytes, *, size: int) -> Index | None:
    """Return the index in a file, None if that is of another file."""
    content = path.read_bytes()
    if not content.startswith(header):
        return None
    body = memoryview(content)[len(header) :]
    n = int.from_bytes(body[:8], "little")
    if len(body) < 8 + 16 * n:
        raise ValueError(f"{path}, byte {len(header)}: cut short; delete it")
    offsets, labels = np.frombuffer(body[8 : 8 + 16 * n], "<i8").reshape(2, n)
    text = bytes(body[8 + 16 * n :]).decode("utf-8", "surrogateescape")
    names = text.split("\n")[:-1]
    fits = n and offsets[0] == 0 and (offsets[1:] > offsets[:-1]).all()
    fits = (fits and offsets[-1] <= size - _FRAME) or (n == 0 and size == 0)
    known = len(names) if names else 2**31
    if not fits or len(set(names)) < len(names) or (n and labels.max() >= known):
        raise ValueError(f"{path}, byte {len(header)}: damaged; delete it")
    return Index(offsets.astype(np.int64), labels.astype(np.int64), names)


def _save(path: pathlib.Path, header: bytes, found: Index) -> None:
    """Write an index, or say that it stays in memory."""
    if any("\n" in name for name in found.names):
        logging.info("%s is not written: a label has several lines", path)
        return
    body = np.array([len(found.offsets)], "<i8").tobytes()
    body += found.offsets.astype("<i8").tobytes() + found.labels.astype("<i8").tobytes()
    body += "".join(f"{n}\n" for n in found.names).encode("utf-8", "surrogateescape")
    try:
        atomic.write(path, header + body)
    except OSError as error:
        logging.info("%s is kept in memory: %s", path, error)


def _renumbered(path: str, one: Index, number: dict[str, int]) -> np.ndarray:
    """Return a file's labels by the numbers of the whole set."""
    if bool(one.names) != bool(number) and (one.labels >= 0).any():
        raise ValueError(f"{path}, byte 0: labels are numbers, in other files text")
    if not one.names:
        return one.labels
    table = np.array([*(number[name] for name in one.names), -1], np.int64)
    return table[one.labels]  # -1 is the last
