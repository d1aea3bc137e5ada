"""CRC-32C (Castagnoli) with NumPy, and as TFRecord masks it.

The law: a CRC is linear, so that of a block is the exclusive or of what each byte
gives for its place; one table, made once, has that for every place and byte.

    crc(b"123456789") == 0xE3069283      # the check value of RFC 3720, B.4
    masked(b"...")                       # tensorflow/core/lib/hash/crc32c.h
"""

from __future__ import annotations

import functools

import numpy as np

_POLYNOMIAL = 0x82F63B78  # reflected
_BLOCK = 2048  # places in the table: 2 MiB, which stays in the cache


@functools.cache
def _table() -> np.ndarray:
    """What a byte gives that has k more after it in its block, [_BLOCK * 256]."""
    first: np.ndarray = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        first = (first >> 1) ^ np.where(first & 1, np.uint32(_POLYNOMIAL), np.uint32(0))
    rows = [first]
    for _ in range(_BLOCK - 1):
        rows.append(first[rows[-1] & 255] ^ (rows[-1] >> 8))
    return np.concatenate(rows)


@functools.cache
def _places() -> np.ndarray:
    """Where the rows begin, last place first, so that the end has the rows' first."""
    return np.arange(_BLOCK - 1, -1, -1) * 256


def crc(data: bytes | memoryview) -> int:
    """Return the CRC-32C of some bytes."""
    raw = np.frombuffer(data, np.uint8)
    state = 0xFFFFFFFF
    for start in range(0, len(raw), _BLOCK):
        block = raw[start : start + _BLOCK]
        n = len(block)
        at = _places()[_BLOCK - n :] + block
        carried = np.frombuffer(state.to_bytes(4, "little"), np.uint8)[:n]
        at[:4] = _places()[_BLOCK - n :][:4] + (block[:4] ^ carried)
        state = (state >> 8 * n) ^ int(np.bitwise_xor.reduce(_table()[at]))
    return state ^ 0xFFFFFFFF


def masked(data: bytes | memoryview) -> int:
    """Return the CRC-32C of some bytes as TFRecord stores it."""
    return int(_mask(np.array([crc(data)], np.uint32))[0])


def masked_rows(rows: np.ndarray) -> np.ndarray:
    """Return `masked` of every row of uint8 [n, w], w >= 4, as uint32 [n]."""
    w = rows.shape[1]
    mixed = rows.copy()
    mixed[:, :4] ^= np.uint8(255)
    parts = _table()[_places()[_BLOCK - w :] + mixed]
    return _mask(np.bitwise_xor.reduce(parts, axis=1) ^ np.uint32(0xFFFFFFFF))


def _mask(crc: np.ndarray) -> np.ndarray:
    return ((crc >> 15) | (crc << 17)) + np.uint32(0xA282EAD8)
