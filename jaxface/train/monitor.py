"""What a run tells: a metrics log, TensorBoard events, a progress bar.

The one law: `metrics.jsonl` holds only what the run's seed decides (no clock, no
speed), so an interrupted and resumed run writes the same bytes as one that was not.

    with Monitor("run", start=0, total=9, batch_size=8, schedule=f) as monitor:
        monitor.push(1, metrics)      # device arrays, fetched later
        monitor.flush()               # rows written; a loss that is not finite raises
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import jax
import tqdm
from absl import logging


class NonFiniteLossError(FloatingPointError):
    """The loss became NaN or infinite; `step` is where."""

    def __init__(self, step: int, loss: float) -> None:
        super().__init__(f"loss is {loss} at step {step}")
        self.step = step


class Monitor:
    """Rows of one run, on process 0; elsewhere it only checks the loss.

    Args:
        workdir: where metrics.jsonl and events go.
        start: the step resumed from; later rows are cut off.
        total: steps of the whole run.
        batch_size: images per step, for the speed shown.
        schedule: updates done -> learning rate, a column of the rows.
        every: steps between rows.
        tensorboard: also write event files.
    """

    def __init__(
        self,
        workdir: str | pathlib.Path,
        *,
        start: int,
        total: int,
        batch_size: int,
        schedule: Callable[[int], Any],
        every: int = 1,
        tensorboard: bool = False,
    ) -> None:
        self._every = every
        self._schedule = schedule
        self._batch_size = batch_size
        self._pending: list[tuple[int, Mapping[str, Any]]] = []
        self._chief = jax.process_index() == 0
        self._path = pathlib.Path(workdir) / "metrics.jsonl"
        self._events = None
        if self._chief:
            cut_back(self._path, start)
            self._file = self._path.open("a")
            if tensorboard:
                self._events = _events(pathlib.Path(workdir) / "tensorboard", start)
        self._bar = tqdm.tqdm(
            total=total,
            initial=start,
            unit="step",
            disable=None if self._chief else True,
            dynamic_ncols=True,
        )
        self._clock = (time.monotonic(), start)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
        if self._chief:
            self._file.close()
            if self._events:
                self._events.close()

    def push(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Note a step's metrics, still on the device."""
        self._pending.append((step, metrics))
        self._bar.update(1)

    def flush(self) -> None:
        """Fetch what was pushed, check it, write the rows that are due.

        Raises:
            NonFiniteLossError: at the first step whose loss is not finite.
        """
        pending, self._pending = self._pending, []
        if not pending:
            return
        rows = jax.device_get(pending)
        for step, metrics in rows:
            if not math.isfinite(metrics["loss"]):
                raise NonFiniteLossError(step, float(metrics["loss"]))
            if step % self._every == 0:
                self.write(step, metrics | {"lr": self._schedule(step - 1)})
        step, metrics = rows[-1]
        self._show(step, metrics | {"lr": self._schedule(step - 1)})

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write one row, at once."""
        if not self._chief:
            return
        row = {"step": step} | {k: float(v) for k, v in metrics.items()}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._events:
            for name, value in row.items():
                if name != "step":
                    self._events.add_scalar(name, value, step)

    def _show(self, step: int, metrics: Mapping[str, Any]) -> None:
        now = time.monotonic()
        then, since = self._clock
        self._clock = (now, step)
        speed = (step - since) * self._batch_size / max(now - then, 1e-9)
        if self._events:
            self._events.add_scalar("images_per_second", speed, step)
        shown = {k: f"{float(metrics[k]):.4g}" for k in ("loss", "lr") if k in metrics}
        self._bar.set_postfix(shown | {"img/s": f"{speed:.0f}"})
        if self._bar.disable and self._chief:
            words = ", ".join(f"{k} {v}" for k, v in shown.items())
            logging.info("step %d: %s, %.0f images/s", step, words, speed)


def cut_back(path: pathlib.Path, step: int) -> None:
    """Drop the rows of a metrics log past a step, and a half-written last line."""
    if not path.exists():
        return
    kept = [
        line
        for line in path.read_text().splitlines(keepends=True)
        if line.endswith("\n") and json.loads(line)["step"] <= step
    ]
    replacement = path.with_suffix(".tmp")
    replacement.write_text("".join(kept))
    os.replace(replacement, path)


def _events(directory: pathlib.Path, start: int) -> Any:
    try:
        import tensorboardX
    except ImportError:
        raise ImportError(
            "log.tensorboard needs tensorboardX: pip install tensorboardX,"
            " or set --config.log.tensorboard=False"
        ) from None
    return tensorboardX.SummaryWriter(str(directory), purge_step=start + 1)
