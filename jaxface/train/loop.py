"""The loop: draw, step, log, evaluate, save; stop when told, or when the loss is lost.

The one law: a step is saved only after its loss was seen to be finite, so the last
checkpoint is always a good one.

    with stopping.on_signals() as stop:
        state = run(state, step=step, batches=batches, start=0, total=1000, ...)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from absl import logging

from jaxface.train import monitor as monitors
from jaxface.types import Batch


def run(
    state: Any,
    *,
    step: Callable[[Any, Batch], tuple[Any, dict[str, Any]]],
    batches: Iterator[Batch],
    start: int,
    total: int,
    monitor: monitors.Monitor,
    evaluate: Callable[[Any], dict[str, float]],
    save: Callable[[int, Any, dict[str, float] | None], None],
    log_every: int,
    eval_every: int,
    save_every: int,
    stop: Callable[[], bool],
) -> Any:
    """Train from `start` to `total` and return the last state.

    Args:
        state: donated to every step.
        step: from `parallel.compile_step`.
        batches: global batches, the first being that of `start`.
        start: updates done.
        total: updates wanted.
        monitor: takes the metrics.
        evaluate: state -> scalars by "<set>/<name>".
        save: (step, state, scalars or None), which may return before it is done.
        log_every: steps between looks at the metrics.
        eval_every: steps between evaluations; the last step is always evaluated.
        save_every: steps between checkpoints; the last step is always saved.
        stop: asked after every step but the last; once it says so, the run saves and
            returns.
    """
    for done in range(start + 1, total + 1):
        begun = time.monotonic()
        batch = next(batches)
        waited = time.monotonic() - begun
        state, metrics = step(state, batch)
        monitor.push(done, metrics, waited=waited)
        last = done == total
        to_eval, to_save = last or not done % eval_every, last or not done % save_every
        stopping = not last and stop()
        if to_eval or to_save or stopping or not done % log_every:
            monitor.flush()
        scalars = evaluate(state) if to_eval else None
        if scalars:
            monitor.write(done, scalars)
        if to_save or stopping:
            monitor.settle()
            save(done, state, scalars)
        if stopping:
            logging.warning("stopped by a signal after step %d", done)
            break
    return state
