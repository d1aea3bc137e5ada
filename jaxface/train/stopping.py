"""When a run stops: after the same step in all its processes, soon after a signal.

The one law: no main thread waits for another one, which may be in a collective that
waits for this. A thread of each process tells how many steps that has begun, and holds
it there until all have told: they stop one step after the farthest of them.

    with on_signals() as stop:
        for batch in batches:
            state = step(state, batch)
            if stop():                  # at the same step everywhere
                break
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

_LOOK = 0.5  # seconds between looks for a signal, to this process or to another
_FOLDER = "jaxface/stop"  # of the coordination service: process -> steps begun


@contextlib.contextmanager
def on_signals() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGTERM or Ctrl-C into a stop; a second one ends at once.

    Several processes stop together, whichever had the signal; once for each
    `jax.distributed.initialize`.

    Yields:
        stop(), to be called after every step but the last: tells whether to stop.
    """
    asked = threading.Event()
    names = (signal.SIGTERM, signal.SIGINT)
    before: dict[int, Any] = {}

    def ask(number: int, frame: Any) -> None:
        asked.set()
        for name in before:  # no exception, which would wait for a save under way
            signal.signal(name, signal.SIG_DFL)

    if threading.current_thread() is threading.main_thread():
        before.update({name: signal.signal(name, ask) for name in names})
    try:
        if jax.process_count() == 1:
            yield asked.is_set
        else:
            with agreed(
                asked,
                # JAX has no public way to its client
                client=ocp.multihost.get_jax_distributed_client(),
                process=jax.process_index(),
                processes=jax.process_count(),
            ) as stop:
                yield stop
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


@contextlib.contextmanager
def agreed(
    asked: threading.Event, *, client: Any, process: int, processes: int
) -> Iterator[Callable[[], bool]]:
    """Make an event of any process a stop of all.

    As JAX's preemption service does, which knows SIGTERM only and takes it from Python.

    Args:
        asked: set when this process was asked to stop.
        client: of a key-value store that all share.
        process: which of them this is.
        processes: how many there are.

    Yields:
        stop(), as of `on_signals`; it waits while it is being agreed where to stop.
    """
    lock, left, wake = threading.Lock(), threading.Event(), threading.Event()
    begun = 0  # counted by calls: a run that is rolled back takes steps again
    last: int | None = None

    def stop() -> bool:
        nonlocal begun
        if asked.is_set():
            wake.set()
        with lock:
            begun += 1
            return last is not None and begun >= last

    def told() -> list[int]:
        return [int(count) for _, count in client.key_value_dir_get(_FOLDER)]

    def listen() -> None:
        nonlocal last
        while not (asked.is_set() or told()):
            wake.wait(_LOOK)
            if left.is_set():
                return
        with lock:
            client.key_value_set(f"{_FOLDER}/{process}", str(begun))
            while len(counts := told()) < processes:
                if left.wait(_LOOK / 10):
                    return
            last = max(counts) + 1  # which may have begun since they were counted

    def watch() -> None:
        try:
            listen()
        except jax.errors.JaxRuntimeError as error:
            logging.error("signals to other processes are not heard: %s", error)

    thread = threading.Thread(target=watch, daemon=True, name="stop")
    thread.start()
    try:
        yield stop
    finally:
        left.set()
        wake.set()
        thread.join(10 * _LOOK)  # no longer: the service may be what is lost
