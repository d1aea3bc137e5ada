"""Arrays in memory that two processes of one machine share: made there, never sent.

The law: a block of memory is lent with a message, and is the sender's again once the
receiver has dropped the array in it. Who keeps arrays makes the sender take more
memory; what they show never changes.

    sender, receiver = Sender(theirs), Receiver(ours)
    images = sender.empty((128, 112, 112, 3), np.uint8)     # to be filled, and then
    sender.send({"step": 3}, {"image": images, "label": labels})
    told, arrays = receiver.receive()                       # in the other process

The sender waits until it is asked, so it is never more than one message ahead.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import os
import socket
import struct
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from multiprocessing import connection
from typing import Any

import numpy as np
import numpy.typing as npt

from jaxface.data import stream

_NUMBER = struct.Struct("<i")  # of a block that comes back, or
_NEXT = -1
_MOST = 64  # blocks, each of which is an open file on both sides


class Sender:
    """Sends messages; arrays from `empty` stay where they are, others are copied."""

    def __init__(self, line: socket.socket):
        """Take a socket to a `Receiver`."""
        self._line, self._rest = line, b""
        self._messages = connection.Connection(os.dup(line.fileno()))
        self._blocks: list[mmap.mmap] = []
        self._at: dict[int, int] = {}  # address -> block
        self._free: set[int] = set()
        self._untold: dict[int, Any] = {}  # block -> its open file
        self._lock = threading.Lock()

    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike) -> np.ndarray:
        """Return memory to be filled and sent once, and not written to again.

        Where the receiver keeps very many arrays it is memory like any other.

        Raises:
            OSError: there is no more.
        """
        size = max(1, math.prod(shape) * np.dtype(dtype).itemsize)
        with self._lock:
            fits = [k for k in self._free if len(self._blocks[k]) >= size]
            if not fits and len(self._blocks) == _MOST:
                return stream.aligned(shape, dtype)
            block = min(fits) if fits else self._grown(size)
            self._free.discard(block)
        return _array(self._blocks[block], np.dtype(dtype).name, shape)

    def _grown(self, size: int) -> int:
        block, file = len(self._blocks), _memory()
        file.truncate(size)
        self._blocks.append(mmap.mmap(file.fileno(), size))
        self._at[_address(np.frombuffer(self._blocks[block], np.uint8))] = block
        self._untold[block] = file
        return block

    def send(self, told: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Wait until the other side asks, then send what can be pickled, and arrays.

        Raises:
            OSError: it has hung up.
        """
        self._wait()
        lent, copied = {}, {}
        for name, x in arrays.items():
            block = self._at.get(_address(x))
            if block is None:
                copied[name] = x
            else:
                lent[name] = [block, x.dtype.name, list(x.shape)]
        new = [k for k, _, _ in lent.values() if k in self._untold]
        self._messages.send((told, lent, new, copied))
        for k in new:
            socket.send_fds(self._line, [b"\0"], [self._untold[k].fileno()])
            self._untold.pop(k).close()

    def close(self) -> None:
        """Let go of the memory that nobody was sent."""
        self._messages.close()
        for file in self._untold.values():
            file.close()

    def _wait(self) -> None:
        """Take blocks back until the next message is asked for."""
        while True:
            while len(self._rest) >= _NUMBER.size:
                (number,) = _NUMBER.unpack_from(self._rest)
                self._rest = self._rest[_NUMBER.size :]
                if number == _NEXT:
                    return
                with self._lock:
                    self._free.add(number)
            data = self._line.recv(4096)
            if not data:
                raise ConnectionError("it has hung up")
            self._rest += data


class Receiver:
    """Receives what a `Sender` sends."""

    def __init__(self, line: socket.socket):
        """Take a socket to a `Sender`."""
        self._line = line
        self._messages = connection.Connection(os.dup(line.fileno()))
        self._blocks: dict[int, mmap.mmap] = {}

    def receive(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Ask for a message and wait for it.

        Raises:
            EOFError: the other side has hung up.
            OSError: this one has.
        """
        self._line.sendall(_NUMBER.pack(_NEXT))
        told, lent, new, arrays = self._messages.recv()
        for block in new:
            _, (fd,), _, _ = socket.recv_fds(self._line, 1, 1)
            self._blocks[block] = mmap.mmap(fd, 0)
            os.close(fd)
        for name, (block, kind, shape) in lent.items():
            memory = self._blocks[block]
            # what views of the array keep alive is this, not the array
            owner = (ctypes.c_ubyte * len(memory)).from_buffer(memory)
            arrays[name] = _array(owner, kind, shape)
            end = weakref.finalize(owner, _give_back, self._line, block, os.getpid())
            end.atexit = False
        return told, arrays


def _give_back(line: socket.socket, block: int, owner: int) -> None:
    if os.getpid() == owner:  # and not a process that was forked from it
        with contextlib.suppress(OSError):  # it has hung up
            line.sendall(_NUMBER.pack(block))


def _array(memory: Any, kind: str, shape: Sequence[int]) -> np.ndarray:
    return np.frombuffer(memory, kind, math.prod(shape)).reshape(shape)


def _address(x: np.ndarray) -> int:
    return x.__array_interface__["data"][0]


def _memory() -> Any:
    """Open memory without a name, or where there is no such thing a file without."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("jaxface-batches"), "r+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)
