"""Other processes that make batches, here or on other machines.

The law: a batch is a function of its step, so worker k of n makes whole batches, those
of steps k, k + n, k + 2n, ..., and the order is that of one process, whatever the
timing. This is not tf.data service: its workers run TensorFlow graphs, and cannot call
the readers, which are Python; and a step it hands to another worker comes twice or
never. Here a worker that is lost or falls silent stops the run, which resumes at its
step.

    loader = started(open_loader, about, count=8, start_step=500)     # of this machine
    serve(listen("0.0.0.0:7070"), secret, open_loader)           # on every other one
    loader = workers(("a:7070", "b:7070"), key="secret.txt")(about, start_step=500)

Processes of this machine make images in memory that both sides see (`shared`). Over a
network go JSON and bytes of arrays, nothing that runs; both sides prove that they know
the secret (`multiprocessing.connection`), and are not encrypted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import multiprocessing
import os
import pathlib
import signal
import socket
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent import futures
from multiprocessing import AuthenticationError, connection, resource_tracker, util
from typing import Any

import numpy as np
from absl import logging

from jaxface import types
from jaxface.data import messages, shared
from jaxface.data import stream as streams

_GREETING = 10.0  # seconds a side may be silent until both know each other
_TRAINERS = (signal.SIGINT, signal.SIGTERM)  # it saves then, and wants batches still
_Message = tuple[dict[str, Any], dict[str, np.ndarray]]
_Batches = Generator[_Message, None, None]
_LOST = (EOFError, OSError, AuthenticationError)


@dataclasses.dataclass(frozen=True)
class Ask:
    """What a trainer wants of a worker.

    Attributes:
        about: all that decides what is in a batch, as text; the worker's must equal.
        first: the first step.
        every: each step is so many after the one before.
        host: the trainer's process, whose slice of each batch is wanted.
        hosts: how many share a batch.
    """

    about: str
    first: int
    every: int
    host: int
    hosts: int


OpenLoader = Callable[[Ask, streams.Memory], types.Batches]


class Loader:
    """Endless training batches from workers; as `host.Loader`, `bad` included."""

    def __init__(
        self,
        lines: dict[str, socket.socket],
        *,
        start_step: int = 0,
        shares: bool = False,
        processes: Sequence[Any] = (),
    ):
        """Listen.

        Args:
            lines: by the name of each worker, the k-th of which makes the batches of
                steps start_step + k, start_step + k + n, ...
            start_step: the first step.
            shares: the workers share memory, see `shared`.
            processes: of this machine, which end with the loader.
        """
        self.bad: dict[str, str] = {}
        self._names, self._lines = list(lines), list(lines.values())
        self._receive = [_receiver(line, shares=shares) for line in self._lines]
        self._start = start_step
        # also where nobody calls `close`: Python waits for its processes at the end
        self._end = util.Finalize(self, _ended, args=[processes], exitpriority=0)
        self._pool = futures.ThreadPoolExecutor(len(lines), "jaxface-service")
        self._coming = [self._pool.submit(receive) for receive in self._receive]

    def __iter__(self) -> Iterator[types.Batch]:
        step = self._start
        while True:
            k = (step - self._start) % len(self._coming)
            try:
                told, batch = self._coming[k].result()
            except _LOST as error:
                raise OSError(
                    f"{self._names[k]}, which makes batches, was lost at step {step}"
                    f" ({_why(error)}); start again, and the run resumes"
                ) from None
            except ValueError as error:
                raise ValueError(f"{self._names[k]} at step {step}: {error}") from None
            self._coming[k] = self._pool.submit(self._receive[k])
            self.bad |= _bad(told, step=step, where=self._names[k])
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


def _receiver(line: socket.socket, *, shares: bool) -> Callable[[], _Message]:
    if shares:
        return shared.Receiver(line).receive
    return functools.partial(messages.receive, line)


def started(
    open_loader: OpenLoader,
    about: str,
    *,
    count: int,
    start_step: int = 0,
    host: int = 0,
    hosts: int = 1,
) -> Loader:
    """Start processes of this machine that make batches; Python locks none of another.

    Args:
        open_loader: makes the batches of an ask; pickled, for they begin afresh.
        about: all that decides what is in a batch, see `Ask`.
        count: how many.
        start_step: the first step.
        host: this process, 0 .. hosts - 1.
        hosts: how many processes share a batch.
    """
    context = multiprocessing.get_context("spawn")
    lines, processes = {}, []
    resource_tracker.ensure_running()  # later it would unblock the signals
    held = signal.pthread_sigmask(signal.SIG_BLOCK, _TRAINERS)  # and theirs for good
    try:
        for ask in _asks(about, start_step, count, host, hosts):
            ours, theirs = socket.socketpair()
            process = context.Process(target=_made, args=(theirs, ask, open_loader))
            process.start()
            theirs.close()  # so that the end of one side is seen by the other
            lines[f"process {process.pid}"] = ours
            processes.append(process)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
    return Loader(lines, start_step=start_step, shares=True, processes=processes)


def _made(line: socket.socket, ask: Ask, open_loader: OpenLoader) -> None:
    """Be a process of `started`: it goes with its trainer."""
    with (
        contextlib.closing(shared.Sender(line)) as sender,
        contextlib.suppress(ConnectionError),  # it has hung up
    ):
        _pour(sender.send, _batches(open_loader, ask, sender.empty))


def _ended(processes: Sequence[Any]) -> None:
    for process in processes:
        process.kill()
        process.join()


def connected(
    addresses: Sequence[tuple[str, int]],
    secret: bytes,
    about: str,
    *,
    start_step: int = 0,
    host: int = 0,
    hosts: int = 1,
    silence: float = 600.0,
) -> Loader:
    """Connect to workers that `serve`.

    Args:
        addresses: (host, port) of every worker.
        secret: what the workers know too.
        about: all that decides what is in a batch, see `Ask`.
        start_step: the first step.
        host: this process, 0 .. hosts - 1.
        hosts: how many processes share a batch.
        silence: seconds without a byte from a worker after which it is lost.

    Raises:
        OSError: a worker that is not there, is silent, or does not know the secret.
        ValueError: a silence of no time.
    """
    if silence <= 0:
        raise ValueError(f"silence is {silence}; wanted seconds, more than 0")
    lines = {}
    asks = _asks(about, start_step, len(addresses), host, hosts)
    with contextlib.ExitStack() as opened:
        for address, ask in zip(addresses, asks, strict=True):
            name = f"worker {address[0]}:{address[1]}"
            lines[name] = opened.enter_context(_reached(name, address, secret, ask))
            messages.bound(lines[name], silence)
        opened.pop_all()
    return Loader(lines, start_step=start_step)


def _asks(about: str, start: int, count: int, host: int, hosts: int) -> list[Ask]:
    return [Ask(about, start + k, count, host, hosts) for k in range(count)]


def workers(
    addresses: Sequence[str], *, key: str, silence: float = 600.0
) -> Callable[..., Loader]:
    """Return what connects to workers, as a config's line says them.

    Args:
        addresses: "host:port" of each, in an order that need not stay the same.
        key: file with the secret; all of its bytes count but spaces at the ends.
        silence: seconds without a byte from a worker after which it is lost.

    Raises:
        ValueError: no addresses, or one of another form.
        FileNotFoundError: no such file.
    """
    if isinstance(addresses, str) or not addresses:
        raise ValueError(f"workers got {addresses!r}; wanted ('host:port', ...)")
    known = [place(a) for a in addresses]
    return functools.partial(connected, known, secret(key), silence=silence)


def place(address: str) -> tuple[str, int]:
    """Read "host:port"."""
    name, _, port = address.rpartition(":")
    if not name or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"address {address!r}; wanted host:port, as in 'a:7070'")
    return name, int(port)


def secret(path: str | os.PathLike[str]) -> bytes:
    """Read a secret of at least 16 bytes from a file."""
    found = pathlib.Path(path).read_bytes().strip()
    if len(found) < 16:
        raise ValueError(
            f"{path} holds a secret of {len(found)} bytes; wanted 16 or more, as from"
            " `head -c 32 /dev/urandom | base64`"
        )
    return found


def listen(address: str) -> connection.Listener:
    """Return a socket for `serve`."""
    return connection.Listener(place(address), backlog=64)


def serve(
    listener: connection.Listener,
    known: bytes,
    open_loader: OpenLoader,
    *,
    clients: float = math.inf,
) -> None:
    """Make batches for whoever asks and knows the secret, each in a thread of its own.

    Args:
        listener: from `listen`.
        known: the secret.
        open_loader: makes the batches of an ask, or raises a ValueError that is told
            to the asker.
        clients: how many to take before returning.
    """
    threads: list[threading.Thread] = []
    while len(threads) < clients:
        told = (listener.accept(), known, open_loader)
        thread = threading.Thread(target=_feed, args=told, daemon=True)
        threads.append(thread)
        thread.start()
    for thread in threads:
        thread.join()


def _feed(
    one: connection.Connection,
    known: bytes,
    open_loader: OpenLoader,
) -> None:
    with socket.socket(fileno=os.dup(one.fileno())) as line, one:
        try:
            try:
                _greet(line, one, known, first=True)
            except _LOST as error:  # a stranger, or gone again
                logging.warning("refused a client: %s", _why(error))
                return
            try:
                ask = _asked(messages.receive(line)[0])
            except ValueError as error:
                messages.send(line, {"error": str(error)})
                return
            messages.bound(line, 0)  # a trainer may evaluate for hours
            send = functools.partial(messages.send, line)
            _pour(send, _batches(open_loader, ask, streams.aligned))
        except _LOST:
            logging.info("a client has hung up")


def _pour(send: Callable[..., None], batches: _Batches) -> None:
    """Send batches until the other side hangs up, at the pace it takes them.

    Last goes what is wrong: no such ask, too many unreadable images, ...
    """
    with contextlib.closing(batches):
        for told, batch in batches:
            send(told, batch)


def _batches(open_loader: OpenLoader, ask: Ask, memory: streams.Memory) -> _Batches:
    step = ask.first
    try:
        with contextlib.closing(open_loader(ask, memory)) as loader:
            for batch in loader:
                yield {"step": step, "bad": loader.bad}, batch
                step += ask.every
    except (ValueError, OSError) as error:
        yield {"error": str(error)}, {}


def _reached(
    name: str, address: tuple[str, int], known: bytes, ask: Ask
) -> socket.socket:
    with contextlib.ExitStack() as opened:
        try:
            line = opened.enter_context(socket.create_connection(address, _GREETING))
            line.settimeout(None)
            with connection.Connection(os.dup(line.fileno())) as one:
                _greet(line, one, known, first=False)
            messages.send(line, dataclasses.asdict(ask))
        except AuthenticationError:
            raise OSError(f"{name} has another secret; wanted one file") from None
        except (EOFError, OSError) as error:
            raise OSError(
                f"{name} does not answer ({_why(error)}); start it with"
                " launch/serve.py, or leave it out of config.data.service"
            ) from None
        opened.pop_all()
    return line


def _greet(
    line: socket.socket, one: connection.Connection, known: bytes, *, first: bool
) -> None:
    """Prove to each other, in turn, that both know the secret."""
    messages.bound(line, _GREETING)
    steps = [connection.deliver_challenge, connection.answer_challenge]
    for step in steps if first else reversed(steps):
        step(one, known)


def _why(error: BaseException) -> str:
    silent = isinstance(error, BlockingIOError)  # what `messages.bound` leads to
    return "silent for too long" if silent else str(error) or type(error).__name__


def _asked(told: dict[str, Any]) -> Ask:
    try:
        ask = Ask(**told)
    except TypeError as error:
        raise ValueError(f"what was asked cannot be read: {error}") from None
    numbers = (ask.first, ask.every, ask.host, ask.hosts)
    if not isinstance(ask.about, str) or not all(
        isinstance(x, int) and 0 <= x < 2**53 for x in numbers
    ):
        raise ValueError(f"what was asked cannot be: {ask}")
    return ask


def _bad(told: dict[str, Any], *, step: int, where: str) -> dict[str, str]:
    """Return the unreadable images that came with a batch.

    Raises:
        ValueError: what the worker refuses, or a message that is none for this step.
    """
    if "error" in told:
        raise ValueError(f"{where}: {told['error']}")
    bad = told.get("bad")
    if told.get("step") != step or not isinstance(bad, dict):
        raise ValueError(f"{where}: no batch of step {step}, but {told!r:.80}")
    return {str(k): str(v) for k, v in bad.items()}
