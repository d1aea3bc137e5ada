"""Processes of one run end together: a dead or silent one must not leave the others.

The law: whoever fails says why, in its own log, and leaves at once, so that the others
notice; whoever loses another says so and exits with AGAIN, on which launchers restart.

    with processes.together(limit=1800.0) as beat:
        experiment.train(run, workdir, beat=beat)      # beat() after every step
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator

import jax
from absl import logging

AGAIN = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong with the run, start it again
# What a user can mend is told without a traceback, as in `cli`.
_MENDABLE = (KeyError, ValueError, OSError, FloatingPointError, ImportError)

# What the libraries under a collective say of the other side.
_PEER = re.compile(
    r"gloo|nccl|connection (?:closed|reset|refused)|coordination service|heartbeat"
    r"|barrier timed out|UNAVAILABLE|slice health|megascale",
    re.IGNORECASE,
)


def lost_peer(error: BaseException) -> bool:
    """Tell whether an error, or what caused it, is about another process."""
    raised = isinstance(error, jax.errors.JaxRuntimeError | ValueError | RuntimeError)
    if raised and _PEER.search(str(error)):
        return True
    return error.__cause__ is not None and lost_peer(error.__cause__)


@contextlib.contextmanager
def together(
    *, limit: float, leave: Callable[[int], None] = os._exit
) -> Iterator[Callable[[], None]]:
    """End this process at once when it fails or stalls, if it is one of several.

    At a usual exit JAX waits for the other processes, which wait for this one in a
    collective: so there is none.

    Args:
        limit: seconds without a beat after which the process is ended; 0 is for ever.
        leave: ends the process with a code.

    Yields:
        beat(), to be called after every step.
    """
    alone = jax.process_count() == 1
    with _watched(0.0 if alone else limit, leave) as beat:
        try:
            yield beat
        except Exception as error:
            if alone:
                raise
            # Whatever it is: a traceback of ours must not keep the others waiting.
            leave(_told(error))


def _told(error: Exception) -> int:
    who = f"process {jax.process_index()} of {jax.process_count()}"
    if lost_peer(error):
        logging.error(
            "%s: another process is gone, see the end of its own log; start all again"
            " to go on from the last checkpoint (%s)",
            who,
            " ".join(str(error).split())[:300],
        )
        code = AGAIN
    else:
        ours = not isinstance(error, _MENDABLE)
        logging.error(
            "%s failed, and the others end: %s",
            who,
            error,
            exc_info=error if ours else None,
        )
        code = 1
    logging.flush()
    sys.stderr.flush()
    return code


@contextlib.contextmanager
def _watched(limit: float, leave: Callable[[int], None]) -> Iterator[Callable]:
    """Run a thread that ends the process when nobody beats."""
    done = threading.Event()
    last = [time.monotonic(), 0]  # when, how many

    def beat() -> None:
        last[0], last[1] = time.monotonic(), last[1] + 1

    def watch() -> None:
        while not done.wait(min(limit / 4, 5.0)):
            silent = time.monotonic() - last[0]
            if silent > limit:
                logging.error(
                    "process %d of %d: no step for %.0f s, after %d of them: this"
                    " process or another hangs; where this one is stands below, start"
                    " all again to go on from the last checkpoint",
                    jax.process_index(),
                    jax.process_count(),
                    silent,
                    last[1],
                )
                logging.flush()
                faulthandler.dump_traceback()
                leave(AGAIN)
                return

    if limit:
        threading.Thread(target=watch, daemon=True, name="watch").start()
    try:
        yield beat
    finally:
        done.set()
