"""The one switch between our own forms of a layer, for CPUs, and XLA's.

The law: both have the same values and gradients, to rounding; only the time differs.

    y = choose(x, kernel, cpu=shifted, native=plain)
    with native():                              # what is traced here takes XLA's
        traced = jax.jit(step).trace(state, batch)
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

from jax import lax

_native = contextvars.ContextVar("native", default=False)


def choose(*arrays: Any, cpu: Callable[..., Any], native: Callable[..., Any]) -> Any:
    """Call `cpu` of some arrays where a program is compiled for CPUs, else `native`."""
    if _native.get():
        return native(*arrays)
    return lax.platform_dependent(*arrays, cpu=cpu, default=native)


@contextlib.contextmanager
def native() -> Iterator[None]:
    """Trace XLA's own forms for every platform: to compare, or to count operations."""
    token = _native.set(True)
    try:
        yield
    finally:
        _native.reset(token)
