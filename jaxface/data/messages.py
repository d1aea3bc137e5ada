"""JSON and arrays over a socket: nothing that runs, and no copy but the kernel's.

The law: a message says first how long it is, and is refused where that is too much.

    send(line, {"step": 3}, {"image": images})
    told, arrays = receive(line)          # within `bound(line, seconds)`
"""

from __future__ import annotations

import json
import math
import socket
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxface.data import stream

KINDS = ("uint8", "float32", "int32", "uint32")
MAX_TOLD, MAX_ARRAYS = 1 << 26, 2 << 30  # bytes


def send(
    line: socket.socket,
    told: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Send what JSON can say, and arrays of `KINDS`."""
    whole = {k: np.ascontiguousarray(x) for k, x in (arrays or {}).items()}
    shapes = {k: [x.dtype.name, list(x.shape)] for k, x in whole.items()}
    text = json.dumps([told, shapes]).encode()
    line.sendall(struct.pack("<I", len(text)) + text)
    for x in whole.values():
        line.sendall(_bytes(x))


def receive(line: socket.socket) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Wait for a message of `send`.

    Raises:
        EOFError: the other side has hung up.
        OSError: it was silent for longer than the socket allows.
        ValueError: it sent something else, or more than `MAX_TOLD` and `MAX_ARRAYS`.
    """
    (size,) = struct.unpack("<I", _filled(line, bytearray(4)))
    if size > MAX_TOLD:
        raise ValueError(f"a message of {size} bytes; wanted at most {MAX_TOLD}")
    text = _filled(line, bytearray(size))
    try:
        told, shapes = json.loads(text)
        sizes = [_size(*x) for x in shapes.values()]
        if not isinstance(told, dict) or sum(sizes) > MAX_ARRAYS:
            raise ValueError(f"{told!r:.80} and {sum(sizes)} bytes of arrays")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"a message that cannot be read: {error}") from None
    arrays = {k: stream.aligned(shape, kind) for k, (kind, shape) in shapes.items()}
    for x in arrays.values():
        _filled(line, _bytes(x))
    return told, arrays


def _size(kind: Any, shape: Any) -> int:
    whole = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
    if kind not in KINDS or not whole or len(shape) > 8:
        raise ValueError(f"an array of {kind!r:.20} {shape!r:.80}")
    return math.prod(shape) * np.dtype(kind).itemsize


def _bytes(x: np.ndarray) -> memoryview:
    return x.reshape(-1).view(np.uint8).data


def _filled(line: socket.socket, memory: Any) -> Any:
    left = memoryview(memory)
    while left:
        count = line.recv_into(left)
        if not count:
            raise EOFError("it has hung up")
        left = left[count:]
    return memory


def bound(line: socket.socket, seconds: float) -> None:
    """Let what waits so long for the other side raise BlockingIOError; 0: for ever."""
    whole, part = divmod(seconds, 1)
    told = struct.pack("ll", int(whole), int(part * 1e6))
    for side in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        line.setsockopt(socket.SOL_SOCKET, side, told)
