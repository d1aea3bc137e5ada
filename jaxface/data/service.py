"""Other machines that make batches, where one host's cores cannot feed its accelerator.

The law: a batch is a function of its step, so worker k of n makes whole batches, those
of steps k, k + n, k + 2n, ..., and the order is that of one machine, whatever the
timing. This is not tf.data service: its workers run TensorFlow graphs, and cannot call
the readers, which are Python; and a step it hands to another worker comes twice or
never. Here a worker that is lost or falls silent stops the run, which resumes at its
step.

    serve(listen("0.0.0.0:7070"), secret, open_loader)           # on every worker
    loader = workers(("a:7070", "b:7070"), key="secret.txt")(about, start_step=500)

Messages are JSON and bytes of arrays, nothing that runs; both sides prove that they
know the secret (`multiprocessing.connection`), and are not encrypted.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import pathlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from multiprocessing import AuthenticationError, connection
from typing import Any

import numpy as np
from absl import logging

from jaxface import types

_MAX_ASK, _MAX_BATCH = 1 << 20, 2 << 30  # bytes of messages
_GREETING = 10.0  # seconds a side may be silent until both know each other
_KINDS = ("uint8", "float32", "int32", "uint32")
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


class Loader:
    """Endless training batches from workers; as `host.Loader`, `bad` included."""

    def __init__(
        self,
        addresses: Sequence[tuple[str, int]],
        secret: bytes,
        about: str,
        *,
        start_step: int = 0,
        host: int = 0,
        hosts: int = 1,
        silence: float = 600.0,
    ):
        """Connect.

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
        self.bad: dict[str, str] = {}
        self._names = [f"{name}:{port}" for name, port in addresses]
        self._start, n = start_step, len(addresses)
        asks = [Ask(about, start_step + k, n, host, hosts) for k in range(n)]
        self._connections: list[Any] = []
        for address, ask in zip(addresses, asks, strict=True):
            one = _connected(address, secret, ask)
            _bounded(one, silence)
            self._connections.append(one)
        self._pool = futures.ThreadPoolExecutor(n, "jaxface-service")
        self._coming = [
            self._pool.submit(c.recv_bytes, _MAX_BATCH) for c in self._connections
        ]

    def __iter__(self) -> Iterator[types.Batch]:
        step = self._start
        while True:
            k = (step - self._start) % len(self._coming)
            try:
                message = self._coming[k].result()
            except _LOST as error:
                raise OSError(
                    f"worker {self._names[k]} was lost at step {step}"
                    f" ({_why(error)}); start it again, and the run resumes"
                ) from None
            receive = self._connections[k].recv_bytes
            self._coming[k] = self._pool.submit(receive, _MAX_BATCH)
            batch, bad = unpacked(message, step=step, where=self._names[k])
            self.bad |= bad
            yield batch
            step += 1

    def close(self) -> None:
        """Hang up; iterating afterwards is an error."""
        for one in self._connections:
            with socket.socket(fileno=os.dup(one.fileno())) as line:
                _hung_up(line)  # wakes the thread that waits for it
        self._pool.shutdown(cancel_futures=True)
        for one in self._connections:
            one.close()


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
    places = [place(a) for a in addresses]
    return functools.partial(Loader, places, secret(key), silence=silence)


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
    open_loader: Callable[[Ask], types.Batches],
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


def _feed(one: Any, known: bytes, open_loader: Callable[[Ask], types.Batches]) -> None:
    """Send batches until the other side hangs up; its pace is set by what it takes."""
    try:
        with one:
            try:
                _greeted(one, known, first=True)
            except _LOST as error:  # a stranger, or gone again
                logging.warning("refused a client: %s", _why(error))
                return
            try:
                ask = _asked(one.recv_bytes(_MAX_ASK))
                _bounded(one, 0)  # a trainer may evaluate for hours
                loader = open_loader(ask)
            except ValueError as error:
                one.send_bytes(_refusal(error))
                return
            _pour(one, loader, ask)
    except _LOST:
        logging.info("a client has hung up")


def _pour(one: Any, loader: types.Batches, ask: Ask) -> None:
    step = ask.first
    try:
        for batch in loader:
            one.send_bytes(packed(batch, step=step, bad=loader.bad))
            step += ask.every
    except ValueError as error:  # too many unreadable images, several sizes, ...
        one.send_bytes(_refusal(error))
    finally:
        loader.close()


def _connected(address: tuple[str, int], known: bytes, ask: Ask) -> Any:
    name = f"{address[0]}:{address[1]}"
    try:
        line = socket.create_connection(address, _GREETING)
        line.settimeout(None)
        found = connection.Connection(line.detach())
        _greeted(found, known, first=False)
        found.send_bytes(json.dumps(dataclasses.asdict(ask)).encode())
    except AuthenticationError:
        raise OSError(f"worker {name} has another secret; wanted one file") from None
    except (EOFError, OSError) as error:
        raise OSError(
            f"worker {name} does not answer ({_why(error)}); start it with"
            " launch/serve.py, or leave it out of config.data.service"
        ) from None
    return found


def _greeted(one: Any, known: bytes, *, first: bool) -> None:
    """Prove to each other, in turn, that both know the secret."""
    _bounded(one, _GREETING)
    steps = [connection.deliver_challenge, connection.answer_challenge]
    for step in steps if first else reversed(steps):
        step(one, known)


def _bounded(one: Any, seconds: float) -> None:
    """Let what waits so long for the other side fail; 0: wait for ever."""
    whole, part = divmod(seconds, 1)
    told = struct.pack("ll", int(whole), int(part * 1e6))
    with socket.socket(fileno=os.dup(one.fileno())) as line:
        for side in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            line.setsockopt(socket.SOL_SOCKET, side, told)


def _why(error: BaseException) -> str:
    silent = isinstance(error, BlockingIOError)  # what `_bounded` leads to
    return "silent for too long" if silent else str(error) or type(error).__name__


def _hung_up(line: socket.socket) -> None:
    try:
        line.shutdown(socket.SHUT_RDWR)
    except OSError as error:  # the other side was first
        logging.debug("%s", error)


def _asked(message: bytes) -> Ask:
    try:
        ask = Ask(**json.loads(message))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"what was asked cannot be read: {error}") from None
    numbers = (ask.first, ask.every, ask.host, ask.hosts)
    if not isinstance(ask.about, str) or not all(
        isinstance(x, int) and 0 <= x < 2**53 for x in numbers
    ):
        raise ValueError(f"what was asked cannot be: {ask}")
    return ask


def _refusal(error: ValueError) -> bytes:
    return _joined({"error": str(error)}, ())


def packed(batch: types.Batch, *, step: int, bad: dict[str, str]) -> bytes:
    """Return a batch as a message."""
    arrays = {k: np.ascontiguousarray(x) for k, x in batch.items()}
    told = {k: [x.dtype.name, list(x.shape)] for k, x in arrays.items()}
    head = {"step": step, "arrays": told, "bad": dict(bad)}
    return _joined(head, (x.data for x in arrays.values()))


def _joined(head: dict[str, Any], parts: Any) -> bytes:
    text = json.dumps(head).encode()
    return b"".join((struct.pack("<I", len(text)), text, *parts))


def unpacked(
    message: bytes, *, step: int, where: str
) -> tuple[types.Batch, dict[str, str]]:
    """Return (batch, unreadable images so far) of a message.

    Raises:
        ValueError: what the worker refuses, or a message that is none for this step.
    """
    try:
        (size,) = struct.unpack_from("<I", message)
        head = json.loads(message[4 : 4 + size])
        if "error" not in head:
            batch, end, at = {}, len(message), 4 + size
            for name, (kind, shape) in head["arrays"].items():
                if kind not in _KINDS or not all(0 <= n <= end for n in shape):
                    raise ValueError(f"array {name!r} is {kind} {shape}")
                count = math.prod(shape)
                found = np.frombuffer(message, kind, count, at)
                batch[name], at = found.reshape(shape), at + found.nbytes
            if at != end or head["step"] != step:
                raise ValueError(f"step {head['step']}, {end - at} bytes are left")
            return batch, {str(k): str(v) for k, v in head["bad"].items()}
    except (ValueError, TypeError, KeyError, AttributeError, struct.error) as error:
        raise ValueError(f"worker {where}: no batch of step {step}: {error}") from None
    raise ValueError(f"worker {where}: {head['error']}")
