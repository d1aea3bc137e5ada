"""A look at every image of a source: does it decode, what is on it, where is the face.

The law: an image gives the same row whoever looks at it. Rows are kept on disk in
whole chunks, so that what was seen before an interruption is not looked at again.

    seen = examine(source, "spool", cut=Cut(detect.Mtcnn()), workers=4)
    seen.fault[7]                        # "", "no face", "unreadable: ..."
    seen.images.read(0)                  # the aligned face, encoded
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import io
import multiprocessing
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import numpy as np
from PIL import Image

from jaxface import atomic, detect, types
from jaxface.data import decode, duplicates

ENCODINGS = ("jpeg", "png")
_PLAIN_CHUNK, _CUT_CHUNK = 512, 32  # images whose rows are saved together
_DIGEST = 16  # bytes


@dataclasses.dataclass(frozen=True)
class Cut:
    """How a photo becomes an aligned face.

    Attributes:
        detector: finds faces; it is sent to other processes.
        size: of the face, in pixels.
        choice: which of several faces, "largest" or "central".
        encoding: "jpeg" (quality 95) or "png".
    """

    detector: detect.Detector
    size: int | tuple[int, int] = 112
    choice: str = "largest"
    encoding: str = "jpeg"

    def __post_init__(self) -> None:
        if self.encoding not in ENCODINGS:
            raise ValueError(
                f"encoding {self.encoding!r}: wanted {' or '.join(ENCODINGS)}"
            )

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, bytes]:
        """Return the face that is stored, as pixels and encoded."""
        face = detect.cut(image, self.detector, size=self.size, choice=self.choice)
        buffer = io.BytesIO()
        options = {"quality": 95} if self.encoding == "jpeg" else {}
        Image.fromarray(face).save(buffer, self.encoding, **options)
        return decode.pixels(buffer.getvalue()), buffer.getvalue()


@dataclasses.dataclass(frozen=True)
class Seen:
    """One row per image of a source; rows with a fault hold zeros.

    Attributes:
        images: what there is to store: the source itself, or its aligned faces.
        label: [n] int64.
        fault: [n] text, "" or why the image cannot be used.
        digest: [n, 16] uint8 BLAKE2b of what is stored.
        hash: [n] uint64, of `duplicates.perceptual_hash`.
        size: [n, 2] int32, height and width.
        color: [n, 3] float32, mean red, green and blue of the middle.
    """

    images: types.Source
    label: np.ndarray
    fault: np.ndarray
    digest: np.ndarray
    hash: np.ndarray
    size: np.ndarray
    color: np.ndarray

    def __len__(self) -> int:
        return len(self.label)


def examine(
    source: types.Source,
    spool: str | os.PathLike[str],
    *,
    cut: Cut | None = None,
    workers: int = 1,
    progress: Callable[[int], object] = lambda images: None,
) -> Seen:
    """Look at every image.

    Args:
        source: the images.
        spool: a folder for rows and aligned faces; what it holds of the same source
            and the same `cut` is used, everything else is an error.
        cut: None to store images as they are.
        workers: processes; with 1, this one.
        progress: called with how many more images were seen.

    Raises:
        ValueError: if the spool is of another source, or damaged.
    """
    spool = pathlib.Path(spool)
    spool.mkdir(parents=True, exist_ok=True)
    _claim(spool, source, cut)
    length = _CUT_CHUNK if cut else _PLAIN_CHUNK
    starts = range(0, len(source), length)
    missing = [s for s in starts if not _path(spool, s).exists()]
    progress(len(source) - sum(min(length, len(source) - s) for s in missing))
    jobs = (_job(source, s, length) for s in missing)
    look = _Look(source.color, cut)
    for start, rows in zip(missing, _mapped(look, jobs, workers), strict=True):
        _save(spool, start, rows)
        progress(len(rows["label"]))
    rows = [_load(_path(spool, s)) for s in starts]
    whole = {key: np.concatenate([r[key] for r in rows]) for key in rows[0]}
    ends = whole.pop("end")
    images = _Faces(spool, source, whole["label"], ends, length) if cut else source
    return Seen(images=images, **whole)


@dataclasses.dataclass(frozen=True)
class _Faces:
    """The aligned faces in a spool, as a `types.Source` under the photos' names."""

    spool: pathlib.Path
    source: types.Source
    labels: np.ndarray
    ends: np.ndarray
    length: int
    color: str = "rgb"

    @property
    def num_classes(self) -> int:
        return self.source.num_classes

    def __len__(self) -> int:
        return len(self.ends)

    def read(self, i: int) -> tuple[bytes, int]:
        start = i - i % self.length
        begin = int(self.ends[i - 1]) if i > start else 0
        with open(_path(self.spool, start).with_suffix(".faces"), "rb") as file:
            file.seek(begin)
            return file.read(int(self.ends[i]) - begin), int(self.labels[i])

    def name(self, i: int) -> str:
        return self.source.name(i)


# What goes to a worker: (record or None, why there is none, label) of each image.
_Job = list[tuple[bytes | np.ndarray | None, str, int]]


def _job(source: types.Source, start: int, length: int) -> _Job:
    job: _Job = []
    for i in range(start, min(start + length, len(source))):
        try:
            record, label = source.read(i)
            job.append((record, "", label))
        except (OSError, ValueError) as error:
            if not isinstance(source, types.Labelled):
                raise ValueError(
                    f"{source.name(i)}: {error}; whose image it is cannot be known"
                ) from None
            job.append((None, f"unreadable: {error}", int(source.labels[i])))
    return job


@dataclasses.dataclass(frozen=True)
class _Look:
    """Looks at some images; sent to other processes."""

    color: str
    cut: Cut | None

    def __call__(self, job: _Job) -> dict[str, Any]:
        n = len(job)
        rows: dict[str, Any] = {
            "label": np.array([label for *_, label in job], np.int64),
            "digest": np.zeros((n, _DIGEST), np.uint8),
            "hash": np.zeros(n, np.uint64),
            "size": np.zeros((n, 2), np.int32),
            "color": np.zeros((n, 3), np.float32),
        }
        faults, faces = [], []
        for k, (record, fault, _) in enumerate(job):
            face = b""
            if record is not None:
                try:
                    face = self._row(record, rows, k)
                except detect.NoFaceError as error:
                    fault = str(error)
                except decode.UnreadableError as error:
                    fault = f"unreadable: {error}"
            faults.append(fault)
            faces.append(face)
        end = np.cumsum([len(face) for face in faces], dtype=np.int64)
        return rows | {"fault": np.array(faults), "end": end, "faces": b"".join(faces)}

    def _row(self, record: bytes | np.ndarray, rows: dict[str, Any], k: int) -> bytes:
        """Fill row k; return the encoded face, if one is cut."""
        image = decode.pixels(record)
        if self.color == "bgr":
            image = image[..., ::-1]
        face = b""
        if self.cut:
            image, face = self.cut(np.ascontiguousarray(image))
        H, W = image.shape[:2]
        stored = face if self.cut else record
        rows["digest"][k] = np.frombuffer(digest(stored), np.uint8)
        rows["hash"][k] = duplicates.perceptual_hash(np.ascontiguousarray(image))
        rows["size"][k] = H, W
        middle = image[H // 4 : H - H // 4, W // 4 : W - W // 4]
        rows["color"][k] = middle.reshape(-1, 3).mean(0)
        return face


def digest(record: bytes | np.ndarray) -> bytes:
    """Return 16 bytes that tell one record from another; arrays have a shape."""
    if isinstance(record, np.ndarray):
        record = repr(record.shape).encode() + record.tobytes()
    return hashlib.blake2b(record, digest_size=_DIGEST).digest()


def _mapped(look: _Look, jobs: Iterator[_Job], workers: int) -> Iterator[Any]:
    """Apply `look` to the jobs, in order; few of them are read ahead."""
    if workers <= 1:
        yield from map(look, jobs)
        return
    # not a fork: the parent has threads
    start = multiprocessing.get_context("spawn")
    with futures.ProcessPoolExecutor(workers, mp_context=start) as pool:
        waiting: collections.deque[futures.Future[Any]] = collections.deque()
        for job in jobs:
            waiting.append(pool.submit(look, job))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _claim(spool: pathlib.Path, source: types.Source, cut: Cut | None) -> None:
    """Write into a new spool whose it is; refuse another's."""
    made = hashlib.blake2b(repr((len(source), source.color, cut)).encode())
    for i in range(len(source)):
        made.update(source.name(i).encode("utf-8", "surrogateescape") + b"\0")
    owner, told = spool / "owner", made.hexdigest()
    if owner.exists():
        if owner.read_text() != told:
            raise ValueError(
                f"{spool} is left of another source or other settings; remove it, or"
                " repeat that command to finish it"
            )
    else:
        atomic.write(owner, told.encode())


def _path(spool: pathlib.Path, start: int) -> pathlib.Path:
    return spool / f"{start:010d}.npz"


def _save(spool: pathlib.Path, start: int, rows: dict[str, Any]) -> None:
    """Write a chunk; its rows come last, for they say that it is whole."""
    path, faces = _path(spool, start), rows.pop("faces")
    atomic.write(path.with_suffix(".faces"), faces)
    buffer = io.BytesIO()
    np.savez(buffer, **rows)
    atomic.write(path, buffer.getvalue())


def _load(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as rows:
            return dict(rows)
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it") from None
