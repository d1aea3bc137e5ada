"""Ways to damage a file, by what they aim at; the seed alone decides.

STRATA[3](random.Random(0), b"...")    # other bytes
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

NUMBERS = (0, 1, 2, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**24, 2**29 - 1, 2**31 - 1,
           2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)  # fmt: skip
# pickle's: marks, lists, tuples, memo, globals, calls, long strings, numbers
OPCODES = (
    b"(]}l)t\x85\x86\x87aeshpqrgj\x94cRbi\x81\x92\x93o0124.XTBCUS\x8a\x8b\x8dPQ\x95"
)
HEAD = 64

Mutation = Callable[[random.Random, bytes], bytes]


def put(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def number(rng: random.Random, size: int) -> bytes:
    """A number that is at the edge of something, in some width and byte order."""
    near = (*NUMBERS, size, size - 1, size + 1, 2 * size)
    width = rng.choice((1, 2, 4, 4, 8, 8))
    value = rng.choice(near) + rng.choice((-1, 0, 0, 1))
    value %= 1 << 8 * width
    return value.to_bytes(width, rng.choice(("little", "little", "big")))


def place(rng: random.Random, data: bytes) -> int:
    """A byte of it; one that is not padding, more often than not."""
    for _ in range(rng.choice((1, 8))):
        at = rng.randrange(len(data))
        if data[at]:
            break
    return at


def length(rng, data):
    return put(data, place(rng, data), number(rng, len(data)))


def aligned(rng, data):
    return put(data, place(rng, data) // 4 * 4, number(rng, len(data)))


def header(rng, data):
    at = rng.randrange(min(HEAD, len(data)))
    return put(data, at, rng.choice((number(rng, len(data)), rng.randbytes(1))))


def footer(rng, data):
    at = len(data) - 1 - rng.randrange(min(HEAD, len(data)))
    return put(data, at, rng.choice((number(rng, len(data)), rng.randbytes(1))))


def flag(rng, data):
    at = place(rng, data)
    return put(data, at, bytes([data[at] ^ 1 << rng.randrange(8)]))


def byte(rng, data):
    for _ in range(rng.randrange(1, 5)):
        data = put(data, place(rng, data), rng.randbytes(1))
    return data


def opcode(rng, data):
    at, new = place(rng, data), bytes([rng.choice(OPCODES)])
    return data[:at] + new * rng.choice((1, 1, 1, 40)) + data[at + rng.choice((0, 1)) :]


def truncation(rng, data):
    return data[: rng.randrange(len(data))]


def extension(rng, data):
    return data + rng.choice((b"\0", b"\n", data, rng.randbytes(9))) * rng.randint(1, 9)


def removal(rng, data):
    at = rng.randrange(len(data))
    return data[:at] + data[at + rng.choice((1, 4, 8, 16, 64)) :]


def splice(rng, data):
    start, to = rng.randrange(len(data)), rng.randrange(len(data))
    piece = data[start : start + rng.choice((1, 4, 8, 36, 512))]
    return data[:to] + piece + data[to + rng.choice((0, len(piece))) :]


def zeros(rng, data):
    return put(data, rng.randrange(len(data)), bytes(rng.choice((4, 16, 512))))[
        : len(data)
    ]


def digits(rng, data):
    """Another decimal number, as text, where one stands (else a length)."""
    found = list(re.finditer(rb"\d+", data))
    if not found:
        return length(rng, data)
    at = rng.choice(found)
    new = rng.choice((*NUMBERS, len(data), -1, int(at[0][:9]) + 1, 10**30))
    return data[: at.start()] + str(new).encode() + data[at.end() :]


def separator(rng, data):
    at, new = (
        rng.randrange(len(data)),
        rng.choice((b"\n", b"\t", b" ", b",", b'"', b"\r", b"\xff", b"#")),
    )
    return data[:at] + new + data[at + rng.choice((0, 1)) :]


def twice(rng, data):
    one, other = rng.choice(STRATA[:-1]), rng.choice(STRATA[:-1])
    return other(rng, one(rng, data) or b"\0")


STRATA: tuple[Mutation, ...] = (
    length, aligned, header, footer, flag, byte, opcode, truncation, extension,
    removal, splice, zeros, digits, separator, twice,
)  # fmt: skip
