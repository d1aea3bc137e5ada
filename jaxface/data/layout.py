"""What a TFDS data set's directory says of itself, read without TFDS.

The law: shards and records are those the metadata counts; one that is missing is an
error, never a smaller set.

    found = read("sets/faces", format="array_record", split="train")
    found.files, found.lengths, found.image, found.label, found.classes
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from jaxface import spec

LABELS = "labels.int32"  # of the prepared form: [n], little-endian
_SHARD = re.compile(r"-(\d{5,9})-of-(\d{5,9})(?=[-.]|$)")
_MAX_TEXT = 1 << 30  # bytes of names: 50 million of them
_MAX_CLASSES = 2**31 - 1  # labels are int32


@dataclasses.dataclass(frozen=True)
class Layout:
    """A split of a data set.

    Attributes:
        directory: where it is.
        files: the shards, in order.
        lengths: images in each.
        image: the feature with the encoded image.
        label: the feature with the label.
        classes: names of the classes, None where they are not told.
        num_classes: C, None where it is not told.
        color: channel order the images decode to.
    """

    directory: epath.Path
    files: tuple[str, ...]
    lengths: tuple[int, ...]
    image: str
    label: str
    classes: tuple[str, ...] | None
    num_classes: int | None
    color: str

    def labels(self) -> np.ndarray | None:
        """Return the labels [n] int32 that the prepared form keeps, or None.

        Raises:
            ValueError: if that file does not fit the set.
        """
        path, n = self.directory / LABELS, sum(self.lengths)
        if not path.exists():
            return None
        if path.stat().length != 4 * n:
            raise ValueError(
                f"{path} has {path.stat().length} bytes; {n} labels take {4 * n};"
                " remove it if it is of another set"
            )
        remote = "://" in os.fspath(path)
        raw = path.read_bytes() if remote else np.memmap(os.fspath(path), mode="r")
        found = np.frombuffer(raw, "<i4")
        check_labels(found, self.num_classes, str(path))
        return found


def check_labels(labels: np.ndarray, num_classes: int | None, where: str) -> None:
    """Refuse labels [n] outside 0 .. C - 1, naming the first and its place."""
    C = _MAX_CLASSES if num_classes is None else num_classes
    (bad,) = np.nonzero((labels < 0) | (labels >= C))
    if len(bad):
        raise ValueError(
            f"{where}: image {bad[0]} has label {labels[bad[0]]}; wanted 0 .. {C - 1}"
        )


def read(
    path: str | os.PathLike[str],
    *,
    format: str,
    split: str,
    image: str = "",
    label: str = "",
) -> Layout:
    """Read the metadata of a data set.

    Args:
        path: its directory, or one above it that holds no other; local or gs://.
        format: "array_record" or "tfrecord".
        split: such as "train".
        image: the image feature; "" for the only one there is.
        label: the label feature; "" for the only ClassLabel there is.

    Raises:
        FileNotFoundError: no such set, or shards are missing.
        ValueError: metadata that cannot be understood, files of another format, or no
            such split or feature.
    """
    directory = find(path)
    told, splits, images, labels = metadata(directory)
    info, features = directory / "dataset_info.json", directory / "features.json"
    if told != format:
        raise ValueError(f"{info}: its files are {told}; wanted {format}")
    split = choose(f"{info}: split", split, splits)
    image = choose(f"{features}: image feature", image, images)
    label = choose(f"{features}: label feature", label, labels)
    pattern = f"*-{split}.{format}-*-of-*"
    beside = (".index", ".partial")  # of `sources.tfrecord`
    there = (os.fspath(p) for p in directory.glob(pattern) if p.suffix not in beside)
    files = complete(sorted(there), str(directory))
    lengths = splits[split]
    if len(files) != len(lengths):
        raise FileNotFoundError(
            f"{info}: its metadata counts {len(lengths)} files {pattern}, there are"
            f" {len(files)}"
        )
    for file, length in zip(files, lengths, strict=True):
        size = epath.Path(file).stat().length
        if length > size:  # a record takes a byte at least
            raise ValueError(
                f"{info}: its metadata counts {length} records in {file}, which has"
                f" {size} bytes"
            )
    classes = _classes(directory / f"{label}.labels.txt", labels[label])
    num_classes = labels[label] if classes is None else len(classes)
    more = directory / "metadata.json"
    color = _json(more).get("color", "rgb") if more.exists() else "rgb"
    return Layout(directory, files, lengths, image, label, classes, num_classes, color)


def find(path: str | os.PathLike[str]) -> epath.Path:
    """Return the one data set's directory at a path or up to two levels below.

    Raises:
        FileNotFoundError: there is none.
        ValueError: there are several.
    """
    place, name = epath.Path(path), "dataset_info.json"
    for pattern in (name, f"*/{name}", f"*/*/{name}"):
        found = [p.parent for p in place.glob(pattern)]
        found = [p for p in found if ".incomplete" not in p.name]
        if len(found) == 1:
            return found[0]
        if found:
            known = ", ".join(sorted(str(p) for p in found)[:5])
            raise ValueError(f"{path} holds {len(found)} data sets: {known}; name one")
    raise FileNotFoundError(f"{path} holds no TFDS data set: no {name} at or below it")


def complete(files: Sequence[str], where: str) -> tuple[str, ...]:
    """Return the files, none of whose kin `-00001-of-00005` is missing.

    Raises:
        FileNotFoundError: there are none, or some are missing.
    """
    if not files:
        raise FileNotFoundError(f"{where}: there are no such files")
    kin: dict[str, list[int]] = {}
    for file in files:
        if found := _SHARD.search(file):
            stem = f"{file[: found.start()]} of {int(found[2])}"
            kin.setdefault(stem, []).append(int(found[1]))
    for stem, numbers in kin.items():
        wanted = int(stem.rpartition(" of ")[2])
        if len(numbers) != wanted:
            raise FileNotFoundError(
                f"{len(numbers)} shards of {wanted} are there of {stem}: copy the rest"
            )
    return tuple(files)


def metadata(
    directory: epath.Path,
) -> tuple[str, dict[str, tuple[int, ...]], list[str], dict[str, int | None]]:
    """Return (format, split -> lengths, image features, label feature -> C).

    Raises:
        ValueError: metadata that is not TFDS's, naming the files.
    """
    info, features = (
        _json(directory / f"{name}.json") for name in ("dataset_info", "features")
    )
    try:
        format = str(info.get("fileFormat", "tfrecord"))
        splits = {
            str(s["name"]): tuple(int(n) for n in s.get("shardLengths", ()))
            for s in info["splits"]
        }
        found = dict(features["featuresDict"]["features"])
        images = [str(k) for k, f in found.items() if "image" in f]
        counts = {
            str(k): int(f["classLabel"].get("numClasses", 0)) or None
            for k, f in found.items()
            if "classLabel" in f
        }
        fits = all(0 <= n < 2**53 for lengths in splits.values() for n in lengths)
        fits &= all(c is None or 0 < c <= _MAX_CLASSES for c in counts.values())
    except (TypeError, AttributeError, ValueError, KeyError, OverflowError) as error:
        raise ValueError(
            f"{directory}: dataset_info.json and features.json are not metadata of"
            f" TFDS ({type(error).__name__}: {error})"
        ) from None
    if not fits:
        raise ValueError(
            f"{directory}: dataset_info.json or features.json has counts that cannot"
            f" be; wanted 0 .. 2^53 records in a shard and 1 .. {_MAX_CLASSES} classes"
        )
    for name in _classes_named(features):
        if not name.startswith("tensorflow_datasets."):  # TFDS would import it
            raise ValueError(
                f"{directory}/features.json names the class {name[:200]!r}; wanted"
                " those of tensorflow_datasets only"
            )
    return format, splits, images, counts


def _classes_named(value: Any) -> Iterator[str]:
    """Yield every class of Python that a features.json wants."""
    if isinstance(value, dict):
        yield from map(str, (v for k, v in value.items() if k == "pythonClassName"))
    inner = value.values() if isinstance(value, dict) else value
    if isinstance(value, dict | list):
        for part in inner:
            yield from _classes_named(part)


def _classes(path: epath.Path, count: int | None) -> tuple[str, ...] | None:
    """Return the names of a set's classes, one a line, where they are told."""
    if not path.exists():
        return None
    names = tuple(name for line in _text(path).split("\n") if (name := line.strip()))
    if count not in (None, len(names)) or len(set(names)) != len(names) or not names:
        raise ValueError(
            f"{path}: {len(names)} names, {len(set(names))} of them different; wanted"
            f" {count or 'as many as classes'}, each once"
        )
    return names


def choose(kind: str, name: str, known: Sequence[str] | dict[str, Any]) -> str:
    """Return a name that is known; "" is the only one there is.

    Raises:
        ValueError: unknown, with the nearest, or "" for several.
    """
    if not name and len(known) == 1:
        return next(iter(known))
    if name not in known:
        raise ValueError(spec.unknown(kind, name, known).args[0])
    return name


def _text(path: epath.Path) -> str:
    size = path.stat().length
    if size > _MAX_TEXT:
        raise ValueError(f"{path} has {size} bytes; wanted at most {_MAX_TEXT}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8") from None


def _json(path: epath.Path) -> dict[str, Any]:
    try:
        found = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: wanted a JSON object")
    return found
