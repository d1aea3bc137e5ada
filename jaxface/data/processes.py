"""Processes of this machine that make batches, none of which locks another's Python.

The law: a batch is a function of its step, so process k of n makes whole batches, those
of steps k, k + n, k + 2n, ..., and the order is that of one process, whatever the
timing. One that is lost stops the run, which resumes at its step. Images are made in
memory that both sides see (`shared`).

    loader = Loader(open_loader, count=8, start_step=500)
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from multiprocessing import resource_tracker, util
from typing import Any

from absl import logging

from jaxface import types
from jaxface.data import shared
from jaxface.data import stream as streams

_TRAINERS = (signal.SIGINT, signal.SIGTERM)  # it saves then, and wants batches still

# (first, every, memory) -> the batches of steps first, first + every, ...
OpenLoader = Callable[[int, int, streams.Memory], types.Batches]


class Loader:
    """Endless training batches; as `host.Loader`, `bad` included."""

    def __init__(self, open_loader: OpenLoader, *, count: int, start_step: int = 0):
        """Start the processes.

        Args:
            open_loader: makes the batches of one; pickled, for they begin afresh.
            count: how many.
            start_step: the first step.
        """
        self.bad: dict[str, str] = {}
        self._start = start_step
        self._lines, self._processes = _started(open_loader, count, start_step)
        # also where nobody calls `close`: Python waits for its processes at the end
        self._end = util.Finalize(self, _ended, args=[self._processes], exitpriority=0)
        self._receive = [shared.Receiver(line).receive for line in self._lines]
        self._pool = futures.ThreadPoolExecutor(count, "jaxface-processes")
        self._coming = [self._pool.submit(receive) for receive in self._receive]

    def __iter__(self) -> Iterator[types.Batch]:
        step = self._start
        while True:
            k = (step - self._start) % len(self._coming)
            try:
                told, batch = self._coming[k].result()
            except (EOFError, OSError) as error:
                raise OSError(
                    f"process {self._processes[k].pid}, which makes batches, was lost"
                    f" at step {step} ({str(error) or 'it has hung up'}); start again,"
                    " and the run resumes"
                ) from None
            if "error" in told:
                raise ValueError(f"step {step}: {told['error']}")
            self._coming[k] = self._pool.submit(self._receive[k])
            self.bad |= told["bad"]
            yield batch
            step += 1

    def close(self) -> None:
        """Hang up; iterating afterwards is an error."""
        for line in self._lines:
            try:
                line.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for it
            except OSError as error:  # the other side was first
                logging.debug("%s", error)
        self._pool.shutdown(cancel_futures=True)
        for line in self._lines:
            line.close()
        self._end()


def _started(
    open_loader: OpenLoader, count: int, start: int
) -> tuple[list[socket.socket], list[Any]]:
    context = multiprocessing.get_context("spawn")
    lines, processes = [], []
    resource_tracker.ensure_running()  # later it would unblock the signals
    held = signal.pthread_sigmask(signal.SIG_BLOCK, _TRAINERS)  # and theirs for good
    try:
        for k in range(count):
            ours, theirs = socket.socketpair()
            given = (theirs, open_loader, start + k, count)
            processes.append(context.Process(target=_make, args=given))
            processes[k].start()
            theirs.close()  # so that the end of one side is seen by the other
            lines.append(ours)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
    return lines, processes


def _make(line: socket.socket, open_loader: OpenLoader, first: int, every: int) -> None:
    """Be a process: make batches at the pace they are taken, to the trainer's end.

    Last goes what is wrong: too many unreadable images, ...
    """
    with (
        contextlib.closing(shared.Sender(line)) as sender,
        contextlib.suppress(ConnectionError),  # it has hung up
    ):
        try:
            with contextlib.closing(open_loader(first, every, sender.empty)) as loader:
                for batch in loader:
                    sender.send({"bad": loader.bad}, batch)
        except ConnectionError:
            raise
        except (ValueError, OSError) as error:
            sender.send({"error": str(error)}, {})


def _ended(processes: Sequence[Any]) -> None:
    for process in processes:
        process.kill()
        process.join()
