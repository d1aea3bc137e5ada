"""Any TensorFlow Datasets image set with a label, at random, through TFDS itself.

The law: nothing is downloaded; images stay encoded, so that pixels are decoded as
everywhere else. TFDS 4.9.10 reads ArrayRecord at random and TFRecord as a stream only.

    faces = Source("sets/faces/1.0.0")                         # a directory
    lfw = Source("lfw", data_dir="~/tensorflow_datasets", split="train[:90%]")
    encoded, label = lfw.read(0)
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from jaxface.data import layout

# What TFDS raises on metadata that was damaged.
_REFUSED = (
    ValueError, LookupError, TypeError, AttributeError, ArithmeticError, OSError,
    RuntimeError, AssertionError, ImportError,
)  # fmt: skip


class Source:
    """Encoded images with labels of a TFDS data set.

    Attributes:
        color: "rgb", or what the data set's metadata or the caller says.
        num_classes: C.
        classes: [C] names, where the data set tells them; labels that are text are
            sorted, and text is what the classes are called.
        labels: [n] int32; every record is read once when they are first asked for.
    """

    classes: tuple[str, ...]

    def __init__(
        self,
        name: str | os.PathLike[str],
        *,
        data_dir: str | os.PathLike[str] = "",
        split: str = "train",
        image: str = "",
        label: str = "",
        color: str = "",
    ):
        """Open a data set that was prepared before.

        Args:
            name: its directory, or its name in TFDS (`lfw`, `mnist:3.*.*`).
            data_dir: where TFDS keeps sets; "" for its own default.
            split: such as "train", "train[:90%]" or "train+test".
            image: the image feature; "" for the only one.
            label: the label feature: a ClassLabel, an integer or text; "" for the
                only ClassLabel, else the only text.
            color: channel order the images decode to.

        Raises:
            FileNotFoundError: the set is not there, or was not prepared.
            ValueError: no ArrayRecord files, labels that cannot be, or no such split
                or feature.
        """
        import tensorflow_datasets as tfds

        builder = _builder(tfds, name, data_dir)
        features = tfds.features
        kinds = {
            kind: [k for k, f in builder.info.features.items() if isinstance(f, of)]
            for kind, of in (
                ("image", features.Image),
                ("label", features.ClassLabel),
                ("text", features.Text),
                ("number", features.Scalar),
            )
        }
        self._image = layout.choose(f"{name}: image feature", image, kinds["image"])
        known = kinds["label"] + kinds["text"] + kinds["number"]
        only = kinds["label"] if kinds["label"] else kinds["text"]
        chosen = only[0] if not label and len(only) == 1 else label
        self._label = layout.choose(f"{name}: label feature", chosen, known)
        if split.isidentifier():  # a slice is for TFDS to parse
            where = f"{builder.data_dir}/dataset_info.json"
            layout.choose(f"{where}: split", split, list(builder.info.splits))
        raw = {self._image: tfds.decode.SkipDecoding()}
        with _blamed(builder.data_dir):
            self._data = builder.as_data_source(split, decoders=raw)
            self._files = builder.info.splits[split].file_instructions
        for file in self._files:
            place = epath.Path(file.filename)
            if not place.exists():
                raise FileNotFoundError(
                    f"{builder.data_dir}/dataset_info.json counts"
                    f" {file.examples_in_shard} records in {file.filename}, which is"
                    " missing; wanted the whole set"
                )
            size = place.stat().length
            if file.examples_in_shard > size:
                raise ValueError(
                    f"{file.filename} has {size} bytes; dataset_info.json counts"
                    f" {file.examples_in_shard} records there"
                )
        self._name = f"{name}/{split}"
        self._features = f"{builder.data_dir}/features.json"
        self._ends = np.cumsum([file.take for file in self._files])
        told = builder.info.metadata or {}
        self.color = color or str(told.get("color", "rgb"))
        feature = builder.info.features[self._label]
        self._count = getattr(feature, "num_classes", None) or None
        if isinstance(feature, features.Text):
            texts, labels = np.unique(self._scan(), return_inverse=True)
            self.classes = tuple(texts.tolist())
            self.labels = labels.astype(np.int32)
        elif self._count is not None:
            names = tuple(feature.names)
            if names != tuple(map(str, range(len(names)))):  # what TFDS makes up
                self.classes = names
        count = self._count
        self.num_classes = int(self.labels.max()) + 1 if count is None else count

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """The labels [n]."""
        found = self._scan()
        layout.check_labels(found, self._count, self._features)
        return found.astype(np.int32)

    def __len__(self) -> int:
        return len(self._data)

    def read(self, i: int) -> tuple[bytes, int]:
        """Return (encoded bytes, label) of image i.

        Raises:
            OSError: if the record cannot be read.
        """
        row = self._row(i)
        image = row[self._image]
        if not isinstance(image, bytes):
            raise OSError(
                f"{self.name(i)}: {self._image!r} is {type(image).__name__}; wanted the"
                f" bytes of an image, see {self._features}"
            )
        if "labels" in vars(self):
            return image, int(self.labels[i])
        label = int(row[self._label])
        if not 0 <= label < self.num_classes:
            raise OSError(
                f"{self.name(i)}: label {label}; wanted 0 .. {self.num_classes - 1}"
            )
        return image, label

    def name(self, i: int) -> str:
        """Return the file of image i and its number there."""
        k = int(np.searchsorted(self._ends, i, side="right"))
        file = self._files[k]
        return f"{file.filename}[{int(i - self._ends[k]) + file.take + file.skip}]"

    def _row(self, i: int) -> dict[str, Any]:
        if not 0 <= i < len(self):
            raise IndexError(f"image {i} wanted; there are 0 .. {len(self) - 1}")
        try:
            return self._data[i]
        except (RuntimeError, ValueError) as error:
            raise OSError(f"{self.name(i)}: {error}") from None

    def _scan(self) -> np.ndarray:
        """Read every label [n], an integer or text."""
        logging.info("%s: reading %d records for their labels", self._name, len(self))
        found = [self._row(i)[self._label] for i in range(len(self))]
        texts = [f.decode("utf-8", "replace") for f in found if isinstance(f, bytes)]
        return np.array(texts or found)


@contextlib.contextmanager
def _blamed(directory: epath.PathLike) -> Iterator[None]:
    """Say which files are to blame where TFDS stumbles over its metadata."""
    from google.protobuf import json_format

    try:
        yield
    except (*_REFUSED, json_format.Error) as error:
        raise ValueError(
            f"{directory}: TFDS cannot read dataset_info.json, features.json,"
            f" metadata.json or label.labels.txt of it: {error}"
        ) from None


def _builder(tfds: Any, name: str | os.PathLike[str], data_dir: Any) -> Any:
    """Return the builder of a prepared data set of ArrayRecord files."""
    place = os.path.expanduser(os.fspath(name))
    if os.path.isdir(place) or "://" in place:
        directory = layout.find(place)
        layout.metadata(directory)
        with _blamed(directory):
            builder = tfds.builder_from_directory(directory)
            _ = builder.info.metadata  # it is read when it is asked for
    else:
        where = os.path.expanduser(data_dir) or None
        try:
            builder = tfds.builder(place, data_dir=where, try_gcs=False)
        except tfds.core.DatasetNotFoundError as error:
            raise FileNotFoundError(
                f"{name}: no directory, and no data set of TFDS in"
                f" {where or 'its default data_dir'}: {error}"
            ) from None
    if not builder.info.splits:
        raise FileNotFoundError(
            f"{name} is not prepared in {builder.data_dir}, and nothing is downloaded"
            f' here: run tfds.builder("{name}", file_format="array_record")'
            ".download_and_prepare() where that is allowed"
        )
    if builder.info.file_format.value != "array_record":
        raise ValueError(
            f"{builder.data_dir} is of {builder.info.file_format.value} files, which"
            " TFDS reads as a stream only; wanted array_record: `tfds convert_format"
            f" --dataset_version_dir={builder.data_dir} --out_dir=..."
            " --out_file_format=array_record`"
        )
    return builder
