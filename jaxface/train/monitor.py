"""What a run tells: a metrics log, boards to look at, a progress bar.

The one law: `metrics.jsonl` and `metrics.csv` hold only what the run's seed decides (no
clock, no speed), so an interrupted and resumed run writes the same bytes as one that
was not.

    with Monitor("run", start=0, total=9, batch_size=8, schedule=f) as monitor:
        monitor.push(1, metrics)      # device arrays, fetched later
        monitor.flush()               # rows written; a loss that is not finite raises
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
import tqdm
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from jaxface import places
from jaxface.train import writers


class NonFiniteLossError(FloatingPointError):
    """Loss or gradient became NaN or infinite, more often than is left out.

    Attributes:
        step: where.
        rollbacks: how often the run went back before.
    """

    def __init__(self, step: int, metrics: Mapping[str, Any]) -> None:
        said = f"loss is {float(metrics['loss'])} at step {step}"
        row = int(metrics.get("in_row", 0))
        if row or math.isfinite(metrics["loss"]):
            said += f", its gradient's norm {float(metrics['grad_norm'])}"
        if row:
            said += f"; {row} steps in a row were left out"
        super().__init__(said)
        self.step = step
        self.rollbacks = int(metrics.get("rollbacks", 0))


class Monitor:
    """Rows of one run, on process 0; elsewhere it only checks the loss.

    Args:
        workdir: where metrics.jsonl goes.
        start: the step resumed from; later rows are cut off.
        total: steps of the whole run.
        batch_size: images per step, for the speed shown.
        schedule: updates done -> learning rate, a column of the rows.
        every: steps between rows.
        table: also write metrics.csv.
        boards: told the same rows, the speed and the longest wait for data; made on
            process 0 only.
        after: so many steps left out in a row end the run.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        *,
        start: int,
        total: int,
        batch_size: int,
        schedule: Callable[[int], Any],
        every: int = 1,
        table: bool = False,
        boards: Sequence[writers.Writer] = (),
        after: int = 1,
    ) -> None:
        self._every = every
        self._after = after
        self._schedule = schedule
        self._batch_size = batch_size
        self._pending: list[tuple[int, Mapping[str, Any]]] = []
        self._chief = jax.process_index() == 0
        self._boards = boards
        self._logs: list[writers.Writer] = list(boards)
        if self._chief:
            workdir = places.at(workdir)
            self._logs.append(writers.Jsonl(workdir / "metrics.jsonl", start=start))
            if table:
                self._logs.append(writers.Csv(workdir / "metrics.csv", start=start))
        self._bar = tqdm.tqdm(
            total=total,
            initial=start,
            unit="step",
            disable=None if self._chief else True,
            dynamic_ncols=True,
        )
        self._clock = (time.monotonic(), start)
        self._waited = 0.0
        self._late: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
        for log in self._logs:
            try:
                log.close()
            except OSError as lost:
                if error is None:
                    raise
                logging.error("%s", lost)

    def push(
        self, step: int, metrics: Mapping[str, Any], *, waited: float = 0.0
    ) -> None:
        """Note a step's metrics, still on the device, and the wait for its batch, s."""
        self._pending.append((step, metrics))
        self._waited += waited
        self._bar.update(1)

    def flush(self) -> None:
        """Fetch what was pushed, check it, write the rows that are due.

        Raises:
            NonFiniteLossError: at the first step whose loss is not finite; where such
                steps are left out, at the last of too many in a row.
        """
        pending, self._pending = self._pending, []
        if not pending:
            return
        rows = jax.device_get(pending)
        for step, metrics in rows:
            self._check(step, metrics)
            if step % self._every == 0:
                self.write(step, metrics | {"lr": self._lr(step, metrics)})
        step, metrics = rows[-1]
        self._show(step, metrics | {"lr": self._lr(step, metrics)})

    def settle(self) -> None:
        """Write what waits in memory, before a checkpoint that stands for it."""
        for log in self._logs:
            log.settle()

    def _check(self, step: int, metrics: Mapping[str, Any]) -> None:
        in_row = metrics.get("in_row")
        if in_row is None:
            # such a gradient spoils the weights a step before their loss tells
            if not math.isfinite(metrics["loss"] + metrics.get("grad_norm", 0.0)):
                raise NonFiniteLossError(step, metrics)
        elif in_row >= self._after:
            raise NonFiniteLossError(step, metrics)
        elif in_row:
            words = "step %d was left out: loss %g, gradient's norm %g; %d in all"
            facts = (metrics[k] for k in ("loss", "grad_norm", "skipped"))
            logging.warning(words, step, *facts)

    def _lr(self, step: int, metrics: Mapping[str, Any]) -> float:
        """Return a step's learning rate, whose schedule counts no step left out."""
        updates = max(step - 1 - int(metrics.get("skipped", 0)), 0)
        return float(self._schedule(updates)) * float(metrics.get("lr_factor", 1.0))

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write one row, at once."""
        if not self._chief:
            return
        row = {k: float(v) for k, v in metrics.items()}
        if metrics.get("in_row"):  # JSON has no NaN
            row = {k: v for k, v in row.items() if math.isfinite(v)}
        for log in self._logs:
            log.write(step, row)

    def _show(self, step: int, metrics: Mapping[str, Any]) -> None:
        now = time.monotonic()
        then, since = self._clock
        self._clock = (now, step)
        seconds = max(now - then, 1e-9) / (step - since)
        speed = self._batch_size / seconds
        waits = np.array([self._waited / (step - since)])
        self._waited = 0.0
        if jax.process_count() > 1:
            waits = multihost_utils.process_allgather(waits).ravel()
            self._warn(step, waits, seconds)
        for board in self._boards:
            board.write(step, {"images_per_second": speed, "data_seconds": waits.max()})
        shown = {k: f"{float(metrics[k]):.4g}" for k in ("loss", "lr") if k in metrics}
        self._bar.set_postfix(shown | {"img/s": f"{speed:.0f}"})
        if self._bar.disable and self._chief:
            words = ", ".join(f"{k} {v}" for k, v in shown.items())
            logging.info("step %d: %s, %.0f images/s", step, words, speed)

    def _warn(self, step: int, waits: np.ndarray, seconds: float) -> None:
        """Name a process whose data is late at two looks in a row, now and then."""
        before, who = self._late, late(waits, seconds=seconds)
        self._late = who
        if who is None or who != before or not self._chief:
            return
        words = (
            "step %d: all wait for the data of process %d, %.2g s of the %.2g s that a"
            " step takes; the others wait %.2g s for theirs"
        )
        facts = step, who, waits[who], seconds, np.median(np.delete(waits, who))
        logging.log_every_n_seconds(logging.WARNING, words, 600, *facts)


def late(waits: np.ndarray, *, seconds: float) -> int | None:
    """Return the process whose data all others wait for, None where none is late.

    Args:
        waits: [P] seconds for the batch of a step, by process; two or more.
        seconds: of a step.
    """
    most = int(np.argmax(waits))
    usual = float(np.median(np.delete(waits, most)))
    return most if waits[most] > max(2 * usual, 0.1 * seconds) else None
