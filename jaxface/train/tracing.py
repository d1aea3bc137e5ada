"""A trace of a window of steps, by JAX's profiler: what ran where, and for how long.

The one law: the window holds its steps whole and no other. What was begun before it has
ended when it opens, and it closes when its own have: tracing costs time, but no bit.

    with window(step, steps=(10, 20), folder="run/profile") as step:
        state, metrics = step(state, batch)     # the 10th to the 20th call are traced
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
from absl import logging

from jaxface.types import Batch

Step = Callable[[Any, Batch], tuple[Any, dict[str, Any]]]


@contextlib.contextmanager
def window(
    step: Step, *, steps: tuple[int, int] | None, folder: str | pathlib.Path
) -> Iterator[Step]:
    """Yield the step, some calls of which are traced.

    Args:
        step: (state, batch) -> (state, metrics).
        steps: first and last of them, counted from 1; the first one compiles. None
            traces nothing.
        folder: gets `plugins/profile/<time>/`, for xprof or TensorBoard's plugin, with
            `*.trace.json.gz` for Perfetto.

    Raises:
        ValueError: no window.
    """
    if steps is None:
        yield step
        return
    first, last = steps
    if not 1 <= first <= last:
        raise ValueError(
            f"profile: steps {first} to {last}; wanted first,last from 1 on, as in"
            " 10,20"
        )
    count, open_ = 0, False

    def traced(state: Any, batch: Batch) -> tuple[Any, dict[str, Any]]:
        nonlocal count, open_
        count += 1
        if count == first:
            jax.block_until_ready(state)
            jax.profiler.start_trace(folder)
            open_ = True
        with jax.profiler.StepTraceAnnotation("train", step_num=count):
            state, metrics = step(state, batch)
        if count == last:
            jax.block_until_ready((state, metrics))
            jax.profiler.stop_trace()
            open_ = False
            logging.info("steps %d to %d are traced in %s", first, last, folder)
        return state, metrics

    try:
        yield traced
    finally:
        if open_:
            jax.profiler.stop_trace()
        if count < last:
            words = "the trace was to be of steps %d to %d, and there were %d of them"
            logging.warning(words, first, last, count)
