"""Where rows go: JSONL and CSV, TensorBoard's event files, Weights & Biases.

The one law: a row reaches its file whole and in order, or waits in memory until the
disk takes it; training never waits for, nor ends by, a file that cannot be written. In
a bucket no file grows: there it is replaced by a longer one, before a checkpoint is.

    log = Jsonl("run/metrics.jsonl", start=0)
    log.write(1, {"loss": 2.5})
    log.close()                       # raises where rows still wait
"""

from __future__ import annotations

import csv
import io
import json
import os
import struct
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from absl import logging
from etils import epath

from jaxface import atomic, places


class Writer(Protocol):
    """Takes rows of numbers by name."""

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Write one row; a step may have several."""
        ...

    def settle(self) -> None:
        """Write what waits for a checkpoint, or let it wait on."""
        ...

    def close(self) -> None:
        """Write what waits.

        Raises:
            OSError: it could not be written.
        """
        ...


class Appended:
    """A file that grows at its end only, by whole pieces.

    Args:
        path: it, made with the first piece.

    Attributes:
        size: bytes that are in it.
    """

    def __init__(self, path: epath.PathLike) -> None:
        self._path = epath.Path(path)
        self.size = self._path.stat().length if self._path.exists() else 0
        self._waiting: list[bytes] = []
        self._fails = False

    def add(self, piece: bytes) -> None:
        """Append a piece and what waits before it, or let it wait too."""
        self._waiting.append(piece)
        if not places.in_bucket(self._path):
            self.settle()

    def settle(self) -> None:
        """Append what waits, or let it wait on."""
        try:
            self._drain()
        except OSError as error:
            if not self._fails:
                logging.error("rows are kept in memory, tried again: %s", error)
            self._fails = True

    def close(self) -> None:
        """Append what waits.

        Raises:
            OSError: it could not be written, and is lost.
        """
        try:
            self._drain()
        except OSError as error:
            lost = f"{len(self._waiting)} rows are not in {self._path}"
            raise OSError(f"{lost}: {error}") from error

    def _drain(self) -> None:
        if not self._waiting:
            return
        piece = b"".join(self._waiting)
        if places.in_bucket(self._path):
            before = self._path.read_bytes() if self.size else b""
            self._check(len(before))
            self._path.write_bytes(before[: self.size] + piece)
        else:
            with self._path.open("ab") as file:
                self._check(file.tell())
                file.truncate(self.size)  # where only a part was taken
                file.write(piece)
        self.size += len(piece)
        self._waiting.clear()
        self._fails = False

    def _check(self, size: int) -> None:
        if size < self.size:
            raise OSError(f"{self._path}: {size} bytes, had {self.size} before")


class Jsonl:
    """One object a row, {"step": 1, "loss": 2.5}.

    Args:
        path: the file; rows past `start` are cut off, as is half a line at the end.
        start: the step the run goes on from.
    """

    def __init__(self, path: epath.Path, *, start: int) -> None:
        cut_back(path, start, step_of=lambda line: json.loads(line)["step"])
        self._file = Appended(path)

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Write one row."""
        self._file.add(json.dumps({"step": step, **row}).encode() + b"\n")

    def settle(self) -> None:
        """Write what waits, or let it wait on."""
        self._file.settle()

    def close(self) -> None:
        """Write what waits."""
        self._file.close()


class Csv:
    """One number a line, `step,name,value`: names may come and go as the run does.

    `pandas.read_csv(path).pivot(index="step", columns="name", values="value")` is the
    wide table. `path` and `start` as for `Jsonl`.
    """

    HEAD = "step,name,value\n"

    def __init__(self, path: epath.Path, *, start: int) -> None:
        def step_of(line: str) -> int:
            return -1 if line == self.HEAD else int(line.partition(",")[0])

        cut_back(path, start, step_of=step_of)
        self._file = Appended(path)
        if not self._file.size:
            self._file.add(self.HEAD.encode())

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Write one row, a line for each number."""
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        lines.writerows((step, name, repr(value)) for name, value in row.items())
        self._file.add(text.getvalue().encode())

    def settle(self) -> None:
        """Write what waits, or let it wait on."""
        self._file.settle()

    def close(self) -> None:
        """Write what waits."""
        self._file.close()


class TensorBoard:
    """Event files, a new one each start, which tells to forget later steps.

    Args:
        folder: for all of them.
        start: the step the run goes on from.
    """

    def __init__(self, folder: epath.Path, *, start: int) -> None:
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.compat.tensorflow_stub import pywrap_tensorflow
        except ImportError:
            raise ImportError(
                "log.tensorboard needs tensorboard: pip install tensorboard,"
                " or set --config.log.tensorboard=False"
            ) from None
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._crc = pywrap_tensorflow.masked_crc32c
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{os.getpid()}"
        self._file = Appended(folder / name)
        began = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(file_version="brain.Event:2")
        self._add(step=start + 1, session_log=began)

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Write one row, a scalar for each number."""
        value = self._summary.Value
        scalars = [value(tag=name, simple_value=x) for name, x in row.items()]
        self._add(step=step, summary=self._summary(value=scalars))

    def settle(self) -> None:
        """Write what waits, or let it wait on."""
        self._file.settle()

    def close(self) -> None:
        """Write what waits."""
        self._file.close()

    def _add(self, **facts: Any) -> None:
        """Append a TFRecord: length, its checksum, content, its checksum."""
        content = self._event(wall_time=time.time(), **facts).SerializeToString()
        length = struct.pack("<Q", len(content))
        sums = (struct.pack("<I", self._crc(part)) for part in (length, content))
        self._file.add(length + next(sums) + content + next(sums))


class Wandb:
    """Weights & Biases, one run for a workdir however often it is resumed.

    Its own steps may only grow, and rows of one that it has already are dropped. So
    they are left to count rows, and charts are drawn over a column `step`: what a
    rollback or a resume repeats is there again, after what was there before, and the
    summary is of the last.

    Args:
        workdir: gets wandb/, and wandb.id, which names the run.
        project: its project.
        mode: "offline" sends nothing, until `wandb sync`; "online" does.
        settings: shown beside the run.
    """

    def __init__(
        self,
        workdir: epath.Path,
        *,
        project: str,
        mode: str = "offline",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        try:
            import wandb
        except ImportError:
            raise ImportError(
                f"log.wandb={project!r} needs wandb: pip install jaxface[wandb],"
                " or set --config.log.wandb=''"
            ) from None
        known = workdir / "wandb.id"
        if not known.exists():
            atomic.write(known, uuid.uuid4().hex[:8])
        kept = places.local(workdir)
        kept.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=project,
            dir=str(kept),
            id=known.read_text(),
            resume="allow",
            mode=mode,
            config=dict(settings or {}),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Write one row."""
        self._run.log({"step": step, **row})

    def settle(self) -> None:
        """Nothing waits here but in its own process."""

    def close(self) -> None:
        """End the run's session."""
        self._run.finish()


def cut_back(path: epath.Path, step: int, *, step_of: Callable[[str], int]) -> None:
    """Drop the rows of a log past a step, and half a line at its end.

    Raises:
        ValueError: a whole line that is no row.
    """
    if not path.exists():
        return
    kept = []
    for number, line in enumerate(path.read_text().splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            continue
        try:
            past = step_of(line) > step
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{path}, line {number}: {line[:40]!r} is no row of a run; repair the"
                " file or move it away"
            ) from None
        if not past:
            kept.append(line)
    atomic.write(path, "".join(kept))
