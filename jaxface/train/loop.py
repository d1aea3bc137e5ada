"""The loop: draw, step, log, evaluate, save; stop when told, or when the loss is lost.

The one law: a step is saved only after its loss was seen to be finite, so the last
checkpoint is always a good one.

    with stop_on_signals() as stop:
        state = run(state, step=step, batches=batches, start=0, total=1000, ...)
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
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
    stop: threading.Event,
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
        stop: when set, the run saves and returns.
    """
    for done in range(start + 1, total + 1):
        state, metrics = step(state, next(batches))
        monitor.push(done, metrics)
        last = done == total
        to_eval, to_save = last or not done % eval_every, last or not done % save_every
        to_look = to_eval or to_save or not done % log_every
        stopping = not last and _agreed(stop, look=to_look)
        if to_look or stopping:
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


def _agreed(stop: threading.Event, *, look: bool) -> bool:
    """Tell whether to stop; several processes must leave at the same step."""
    if jax.process_count() == 1:
        return stop.is_set()
    if not look:
        return False
    from jax.experimental import multihost_utils

    flags = multihost_utils.process_allgather(np.array([stop.is_set()]))
    return bool(np.any(flags))


@contextlib.contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Turn the first SIGTERM or Ctrl-C into an event; a second one ends at once."""
    stop = threading.Event()
    names = (signal.SIGTERM, signal.SIGINT)
    before: dict[int, Any] = {}

    def ask(number: int, frame: Any) -> None:
        stop.set()
        for name in before:  # no exception, which would wait for a save under way
            signal.signal(name, signal.SIG_DFL)

    if threading.current_thread() is threading.main_thread():
        before.update({name: signal.signal(name, ask) for name in names})
    try:
        yield stop
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
