"""The prepared form: any source written once as a TFDS data set of encoded images.

The law: what is read back shows the same pixels, in the order given, whichever run
wrote it. A whole set appears under its name at once or not at all; a run that was cut
short is continued from the shards it had finished.

    done = write(source, "sets", images=kept, labels=new_labels, classes=names,
                 name="faces")
    array_record.Source("sets/faces")        # without TensorFlow
    tfds.data_source("faces", data_dir="sets")["train"][0]["image"]
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import os
import pathlib
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any

import numpy as np
from absl import logging
from PIL import Image

from jaxface import types
from jaxface.data import decode, layout

VERSION = "1.0.0"
FORMATS = ("array_record", "tfrecord")

_FLAT = "group_size:1,uncompressed"  # images are compressed already


@dataclasses.dataclass(frozen=True)
class Written:
    """What `write` did.

    Attributes:
        path: the directory with the shards.
        images: how many it holds.
        reused: shards that an earlier run had finished.
        converted: images this run wrote as PNG: arrays, and files that are no plain
            JPEG or PNG (see `decode.is_plain`) and that others would decode otherwise.
    """

    path: pathlib.Path
    images: int
    reused: int
    converted: int


@dataclasses.dataclass(frozen=True)
class _Set:
    """What is to be written."""

    source: types.Source
    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...] | None
    name: str
    format: str
    shard_size: int

    @functools.cached_property
    def shards(self) -> list[slice]:
        """Which images are in each."""
        n = len(self.images)
        starts = range(0, n, self.shard_size)
        return [slice(k, min(k + self.shard_size, n)) for k in starts]

    def file(self, k: int) -> str:
        """Return the name of shard k, by TFDS's rule."""
        return f"{self.name}-train.{self.format}-{k:05d}-of-{len(self.shards):05d}"

    @functools.cached_property
    def plan(self) -> str:
        """A hash of all that decides the files' content."""
        digest = hashlib.blake2b(digest_size=16)
        told = (self.name, self.format, self.shard_size, self.source.color)
        digest.update(repr((*told, self.classes, len(self.images))).encode())
        digest.update(self.images.tobytes())
        digest.update(self.labels.tobytes())
        for i in self.images.tolist():
            digest.update(_bytes(self.source.name(i)) + b"\0")
        return digest.hexdigest()


def write(
    source: types.Source,
    out: str | os.PathLike[str],
    *,
    images: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str] | None,
    name: str,
    format: str = "array_record",
    shard_size: int = 16384,
    workers: int = 1,
    progress: Callable[[int], object] = lambda images: None,
) -> Written:
    """Write images of a source as `OUT/NAME/1.0.0`, a TFDS data set.

    Features of an image are `image` (plain JPEG and PNG files byte by byte, all else
    as PNG), `label` and `name` (what the source calls it); the split is "train".

    Args:
        source: where they come from.
        out: TFDS's `data_dir`.
        images: [n] indices into the source, in the order to write.
        labels: [n] their labels here; every number of 0 .. C - 1 occurs.
        classes: [C] who they are, or None.
        name: of the data set, in lower case.
        format: "array_record" for random access (`tfds.data_source`), "tfrecord" for
            streaming (`tfds.load`); TFDS 4.9.10 reads each by that call only.
        shard_size: images in a file.
        workers: threads, each with a shard of its own.
        progress: called with how many more images are done, by one thread at a time.

    Returns:
        Where it is, and counts.

    Raises:
        ValueError: arguments that do not fit each other; an image that cannot be
            read (leave it out); another set where this one should be.
        OSError: an image cannot be read, or the files cannot be written.
    """
    todo = _Set(
        source=source,
        images=np.asarray(images, np.int64),
        labels=np.asarray(labels, np.int64),
        classes=None if classes is None else tuple(classes),
        name=name,
        format=format,
        shard_size=shard_size,
    )
    _check(todo)
    final = pathlib.Path(out) / name / VERSION
    if final.exists():
        if _plan_of(final) != todo.plan:
            raise ValueError(
                f"{final} holds another set; remove it, or choose another name or out"
            )
        return Written(final, len(todo.images), len(todo.shards), 0)
    # the plan in its name: what another plan left behind is never taken for ours
    directory = final.with_name(f"{VERSION}.incomplete-{todo.plan[:16]}")
    directory.mkdir(parents=True, exist_ok=True)
    for other in final.parent.glob(f"{VERSION}.incomplete-*"):
        if other != directory:
            logging.warning("%s is left of a run that was cut short; remove it", other)
    lock, counts = threading.Lock(), []

    def shard(k: int) -> None:
        path, where = directory / todo.file(k), todo.shards[k]
        if path.exists():
            with lock:
                progress(where.stop - where.start)
            return
        converted = _write_shard(todo, path, where, lock, progress)
        with lock:
            counts.append(converted)

    with futures.ThreadPoolExecutor(workers) as pool:
        list(pool.map(shard, range(len(todo.shards))))
    _finish(todo, directory)
    directory.rename(final)
    reused = len(todo.shards) - len(counts)
    return Written(final, len(todo.images), reused, sum(counts))


def _check(todo: _Set) -> None:
    """Refuse what TFDS, or a reader, would stumble over later."""
    n, named = len(todo.images), todo.classes
    if todo.format not in FORMATS:
        raise ValueError(f"format {todo.format!r}; wanted {' or '.join(FORMATS)}")
    check_names(todo.name, named)
    if not n or todo.images.shape != (n,) or todo.labels.shape != (n,):
        raise ValueError(
            f"images {todo.images.shape}, labels {todo.labels.shape}; wanted [n] each,"
            " n at least 1"
        )
    if todo.images.min() < 0 or todo.images.max() >= len(todo.source):
        raise ValueError(f"images beyond the source's 0 .. {len(todo.source) - 1}")
    C = int(todo.labels.max()) + 1 if named is None else len(named)
    if not np.array_equal(np.unique(todo.labels), np.arange(C)):
        raise ValueError(f"labels are not 0 .. {C - 1}, each at least once: renumber")
    if todo.shard_size < 1:
        raise ValueError(f"shard_size is {todo.shard_size}; wanted at least 1")


def check_names(name: str, classes: Sequence[str] | None) -> None:
    """Refuse names that TFDS cannot keep, before any work is done.

    Raises:
        ValueError: a data set's name beyond a-z, 0-9 and _, or classes that are empty,
            equal, not UTF-8, with a line end, or with space around.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"name {name!r}; wanted a-z, 0-9 and _, a letter first")
    told = classes or ()
    # TFDS keeps them one a line, and strips the lines
    bad = [c for c in told if not c or c != c.strip() or "\n" in c or not _is_text(c)]
    if bad or len(set(told)) != len(told):
        raise ValueError(
            "classes must be unlike each other, not empty, UTF-8, and without space"
            f" around or line ends; got {(bad or 'one twice')!r}"
        )


def _bytes(name: str) -> bytes:
    """Encode a name; bytes of a file's name that are no UTF-8 stay as they are."""
    return name.encode("utf-8", "surrogateescape")


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _plan_of(directory: pathlib.Path) -> str | None:
    """Return the plan that a finished set was written by."""
    path = directory / "metadata.json"
    return json.loads(path.read_text()).get("plan") if path.exists() else None


def _write_shard(
    todo: _Set,
    path: pathlib.Path,
    where: slice,
    lock: threading.Lock,
    progress: Callable[[int], object],
) -> int:
    """Write one file whole; return how many images became PNG."""
    part, converted = path.with_name(path.name + ".tmp"), 0
    chosen = zip(todo.images[where].tolist(), todo.labels[where].tolist(), strict=True)

    def records() -> Iterator[bytes]:
        nonlocal converted
        for i, label in chosen:
            record, name = todo.source.read(i)[0], todo.source.name(i)
            image = encoded(record, name)
            converted += image is not record
            yield serialize({"image": image, "label": label, "name": _bytes(name)})
            with lock:
                progress(1)

    {"array_record": _array_record, "tfrecord": _tfrecord}[todo.format](part, records())
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.rename(path)
    return converted


def encoded(record: bytes | np.ndarray, name: str) -> bytes:
    """Return what stands for a record in the prepared form.

    Args:
        record: as a source reads it.
        name: what it is called, for the message.

    Returns:
        A plain JPEG or PNG itself; of all else a PNG that shows the same pixels,
        channels in the same order.

    Raises:
        ValueError: it cannot be decoded.
    """
    if isinstance(record, bytes) and decode.is_plain(record):
        return record
    out = io.BytesIO()
    try:
        Image.fromarray(decode.pixels(record)).save(out, "png")
    except decode.UnreadableError as error:
        raise ValueError(f"{name} cannot be decoded ({error}); leave it out") from None
    return out.getvalue()


def _array_record(path: pathlib.Path, records: Iterator[bytes]) -> None:
    from array_record.python import array_record_module

    writer, count = array_record_module.ArrayRecordWriter(str(path), _FLAT), 0
    for record in records:
        writer.write(record)
        count += 1
    writer.close()
    # a full disk is not told to us in another way
    reader = array_record_module.ArrayRecordReader(str(path))
    if not reader.ok() or reader.num_records() != count:
        raise OSError(f"{path}: not all of {count} records were written; disk full?")


def _tfrecord(path: pathlib.Path, records: Iterator[bytes]) -> None:
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)


def _finish(todo: _Set, directory: pathlib.Path) -> None:
    """Write labels and TFDS's metadata beside the shards."""
    import tensorflow_datasets as tfds

    (directory / layout.LABELS).write_bytes(todo.labels.astype("<i4").tobytes())
    C = int(todo.labels.max()) + 1
    split = tfds.core.SplitInfo(
        name="train",
        shard_lengths=[s.stop - s.start for s in todo.shards],
        num_bytes=sum(
            (directory / todo.file(k)).stat().st_size for k in range(len(todo.shards))
        ),
    )
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=features(C, todo.classes),
        split_infos=[split],
        version=VERSION,
        check_data=False,
        metadata=tfds.core.MetadataDict(plan=todo.plan, color=todo.source.color),
    )


def features(num_classes: int, classes: Sequence[str] | None) -> dict[str, Any]:
    """Return the features of the prepared form, as TFDS has them."""
    import tensorflow_datasets as tfds

    label = {"num_classes": num_classes} if classes is None else {"names": classes}
    return {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(**label),
        "name": tfds.features.Text(),
    }


def serialize(values: dict[str, bytes | int]) -> bytes:
    """Return a `tf.train.Example` of single values.

    Args:
        values: name -> bytes or integer of 64 bits.

    The layout is that of protobuf (protobuf.dev/programming-guides/encoding) and of
    tensorflow/core/example/{example,feature}.proto.
    """
    entries = []
    for name, value in values.items():
        if isinstance(value, bytes):
            feature = _field(1, _field(1, value))  # BytesList
        else:
            packed = _varint(value % 2**64)
            feature = _field(3, _field(1, packed))  # Int64List
        entries.append(_field(1, _field(1, name.encode()) + _field(2, feature)))
    return _field(1, b"".join(entries))


def _field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
