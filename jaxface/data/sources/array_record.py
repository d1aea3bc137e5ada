"""ArrayRecord files of `tf.train.Example`, at random, without TensorFlow.

A TFDS data set's directory (such as the prepared form) opens with classes and, where
they are kept, labels; files of another making are named by a pattern.

The law: the records are those of the files in order of their names, and a damaged one
is an error that names file and number.

    faces = Source("sets/faces")                         # or gs://bucket/sets/faces
    plain = Source("crops/*.array_record", label="id")   # scanned once for its labels
    encoded, label = faces.read(0)
"""

from __future__ import annotations

import collections
import functools
import os
import threading
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from jaxface.data import example, layout

# no thread pool and no read-ahead in the readers: one record is read at a time
_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_BUFFER = 32768


class Source:
    """Encoded images with labels in ArrayRecord files.

    Attributes:
        color: "rgb", or what the data set's metadata or the caller says.
        num_classes: C.
        classes: [C] names, where the data set tells them.
        labels: [n] int32; where they are not kept beside the files, every record is
            read once when they are first asked for.
    """

    classes: tuple[str, ...]

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        split: str = "train",
        image: str = "",
        label: str = "",
        color: str = "",
        max_open: int = 64,
    ):
        """Find the files; those of a data set are opened when they are first read.

        Args:
            path: a TFDS data set's directory or one above it, or a file, or a pattern
                of files such as `faces-*-of-00010`; local or gs://.
            split: of a data set.
            image: name of the encoded image in a record; the data set's only one, or
                else "image".
            label: likewise of the integer label.
            color: channel order the images decode to.
            max_open: most files open at a time.

        Raises:
            FileNotFoundError: nothing is there, or shards are missing.
            ValueError: files or metadata that cannot be understood.
            KeyError: no such split or feature.
        """
        place = epath.Path(path)
        if place.is_dir():
            found = layout.read(
                place, format="array_record", split=split, image=image, label=label
            )
            self._image, self._label = found.image, found.label
            self._shards = _Shards(found.files, found.lengths, max_open=max_open)
            if found.classes is not None:
                self.classes = found.classes
            labels, count = found.labels(), found.num_classes
            self.color = color or found.color
        else:
            files = sorted(map(os.fspath, place.parent.glob(place.name)))
            self._image, self._label = image or "image", label or "label"
            self._shards = _Shards(layout.complete(files, str(path)), max_open=max_open)
            labels, count, self.color = None, None, color or "rgb"
        if labels is not None:
            self.labels = labels
        self._count = count
        self.num_classes = int(self.labels.max()) + 1 if count is None else count

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """The labels [n]."""
        n = len(self)
        logging.info("%s: reading %d records for their labels", self.name(0), n)
        out = np.empty(n, np.int32)
        for i in range(n):
            out[i] = self._label_of(i, self._features(i))
        if self._count is not None:
            layout.check_labels(out, self._count, self.name(0))
        return out

    def __len__(self) -> int:
        return len(self._shards)

    def read(self, i: int) -> tuple[bytes, int]:
        """Return (encoded bytes, label) of image i.

        Raises:
            OSError: if the record cannot be read.
        """
        found = self._features(i)
        image = found.get(self._image)
        if not isinstance(image, list) or len(image) != 1:
            raise OSError(
                f"{self.name(i)}: {self._image!r} is not one encoded image; it has"
                f" {', '.join(sorted(found)[:20])}"
            )
        label = self._label_of(i, found)
        if label >= self.num_classes:
            raise OSError(
                f"{self.name(i)}: label {label}; wanted below {self.num_classes}"
            )
        return image[0], label

    def name(self, i: int) -> str:
        """Return the file of image i and its number there."""
        file, k = self._shards.locate(i)
        return f"{self._shards.files[file]}[{k}]"

    def _features(self, i: int) -> dict[str, list[bytes] | np.ndarray]:
        try:
            return example.parse(self._shards.read(i))
        except ValueError as error:
            raise OSError(f"{self.name(i)}: no tf.train.Example: {error}") from None

    def _label_of(self, i: int, found: dict[str, Any]) -> int:
        label = found.get(self._label)
        if not isinstance(label, np.ndarray) or label.dtype != np.int64:
            label = np.zeros(0)
        if len(label) != 1 or not 0 <= label[0] < 2**31:
            raise OSError(
                f"{self.name(i)}: {self._label!r} is not one label from 0 up; it has"
                f" {', '.join(sorted(found)[:20])}"
            )
        return int(label[0])


class _Shards:
    """Files as one list of records; at most `max_open` of them are open."""

    def __init__(
        self,
        files: tuple[str, ...],
        lengths: tuple[int, ...] | None = None,
        *,
        max_open: int,
    ):
        if max_open < 1:
            raise ValueError(f"max_open is {max_open}; wanted at least 1")
        self.files, self._max_open = files, max_open
        self._lock = threading.Lock()
        self._open: collections.OrderedDict[int, Any] = collections.OrderedDict()
        self._lengths = lengths
        try:
            counts = lengths or [
                self._reader(k).num_records() for k in range(len(files))
            ]
        except OSError as error:
            raise ValueError(str(error)) from None
        self._ends = np.cumsum(counts)
        if not self._ends[-1]:
            raise ValueError(f"{files[0]}: no records; wanted at least one")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def locate(self, i: int) -> tuple[int, int]:
        """Return (file, record in it) of record i."""
        if not 0 <= i < len(self):
            raise IndexError(f"image {i} wanted; there are 0 .. {len(self) - 1}")
        file = int(np.searchsorted(self._ends, i, side="right"))
        return file, int(i - (self._ends[file - 1] if file else 0))

    def read(self, i: int) -> bytes:
        """Return record i."""
        file, k = self.locate(i)
        reader = self._reader(file)
        try:
            return reader.read([k])[0]
        except (RuntimeError, IndexError) as error:
            raise OSError(f"{self.files[file]}[{k}]: {error}") from None

    def _reader(self, file: int) -> Any:
        with self._lock:
            if file in self._open:
                self._open.move_to_end(file)
                return self._open[file]
        reader = self._opened(file)
        with self._lock:
            self._open[file] = reader
            while len(self._open) > self._max_open:
                self._open.popitem(last=False)  # closes when its last read is over
        return reader

    def _opened(self, file: int) -> Any:
        from array_record.python import array_record_module

        path = self.files[file]
        try:
            reader = array_record_module.ArrayRecordReader(
                path, options=_OPTIONS, file_reader_buffer_size=_BUFFER
            )
            count = reader.num_records() if reader.ok() else -1
            whole = bool(count >= 0 and reader.ok())
        except RuntimeError as error:
            raise OSError(f"{path} is no whole ArrayRecord file: {error}") from None
        if not whole:
            raise OSError(
                f"{path} is no whole ArrayRecord file, or cut short: copy it again"
            )
        if self._lengths is not None and count != self._lengths[file]:
            raise OSError(
                f"{path} has {count} records; the metadata says {self._lengths[file]}"
            )
        return reader
