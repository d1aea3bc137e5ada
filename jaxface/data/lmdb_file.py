"""Where an LMDB file keeps its keys and values, found without the library.

One law: every page number, pointer and length is held against the file before it is
followed, and no page is entered twice; what does not fit is a ValueError with its
byte. The library itself trusts its file, and dies of a damaged one.

    found = entries(data)               # a mapped data.mdb, read only
    data[found.at[0] : found.at[0] + found.size[0]]      # the first value

Layout: liblmdb's mdb.c, data version 1 (0.9), little-endian, pages of 64-bit systems.
"""

from __future__ import annotations

import mmap
import struct
from typing import NamedTuple

import numpy as np

_MAGIC = 0xBEEFC0DE
_HEADER = 16  # of a page: number, pad, kind, where its pointers and its free room end
_NODE = 8  # of an entry: size in two halves, flags, length of the key
_META = struct.Struct("<IIQQ")  # magic, version, address, size of the map
_TREE = struct.Struct("<IHHQQQQQ")  # pad, flags, depth, pages of 3 kinds, entries, root
_BRANCH, _LEAF, _OVERFLOW = 1, 2, 4
_BIG = 1  # an entry's value has pages of its own
_NONE = 2**64 - 1


class Entries(NamedTuple):
    """All entries in the order of their keys.

    Attributes:
        key_at: [n] int64, byte where the key starts.
        key_size: [n] int64.
        at: [n] int64, byte where the value starts.
        size: [n] int64.
    """

    key_at: np.ndarray
    key_size: np.ndarray
    at: np.ndarray
    size: np.ndarray


def entries(data: mmap.mmap | bytes) -> Entries:
    """Return the entries of the main database.

    Raises:
        ValueError: not such a file, or a damaged one, with the byte.
    """
    page, count, root = _newest(data)
    raw = np.frombuffer(data, np.uint8)
    leaves: list[np.ndarray] = []
    seen: set[int] = set()
    waiting = [] if root == _NONE else [root]
    while waiting:
        number = waiting.pop()
        at = number * page
        if number in seen or number < 2 or at + page > len(data):
            raise ValueError(
                f"byte {at}: page {number} of {len(data) // page}"
                f"{' once more' if number in seen else ''}"
            )
        seen.add(number)
        kind, nodes = _nodes(raw, at, page)
        if kind == _BRANCH:
            low, high, flags, _ = nodes[:, 1:].T
            children = low | high << 16 | flags << 32
            waiting += children[::-1].tolist()
        else:
            leaves.append(_values(raw, nodes, page))
    found = np.concatenate(leaves, axis=1) if leaves else np.zeros((4, 0), np.int64)
    if found.shape[1] != count:
        raise ValueError(f"byte 0: {found.shape[1]} entries where {count} are promised")
    if found[1].sum() + found[3].sum() > len(data):
        raise ValueError(f"byte 0: entries share what the {len(data)} bytes hold")
    _check_order(raw, found[0], found[1])
    return Entries(*found)


def _check_order(raw: np.ndarray, key_at: np.ndarray, key_size: np.ndarray) -> None:
    """Refuse keys that do not rise, which a search would not find."""
    width = int(key_size.max(initial=1))
    for start in range(0, len(key_at) - 1, 4096):
        at, size = key_at[start : start + 4097], key_size[start : start + 4097]
        place = np.arange(width)
        keys = raw[np.minimum(at[:, None] + place, len(raw) - 1)].astype(np.int16)
        keys[place >= size[:, None]] = -1  # a key's beginning comes before it
        step = keys[1:] - keys[:-1]
        first = np.argmax(step != 0, axis=1)
        rises = step[np.arange(len(step)), first] > 0
        if not rises.all():
            bad = int(at[1 + int(np.argmin(rises))])
            raise ValueError(f"byte {bad}: a key that does not follow the one before")


def _newest(data: mmap.mmap | bytes) -> tuple[int, int, int]:
    """Return (bytes of a page, entries, root page) of the newer of two heads."""
    heads = []
    at, tree = _HEADER, _HEADER + _META.size
    for _ in range(2):
        if at + 152 > len(data):
            raise ValueError(f"byte {at}: cut short; {len(data)} bytes in all")
        magic, version, _, _ = _META.unpack_from(data, at)
        if (magic, version) != (_MAGIC, 1):
            raise ValueError(f"byte {at}: no LMDB file of data version 1")
        page = _TREE.unpack_from(data, tree)[0]  # the first tree's pad
        if page & (page - 1) or not 256 <= page <= 65536:
            raise ValueError(f"byte {tree}: pages of {page} bytes")
        main = tree + _TREE.size
        _, flags, *_, count, root = _TREE.unpack_from(data, main)
        if flags:
            raise ValueError(
                f"byte {main}: a database of flags {flags}; wanted a plain one, a"
                " value to a key"
            )
        (moment,) = struct.unpack_from("<Q", data, main + _TREE.size + 8)
        heads.append((moment, page, count, root))
        at, tree = at + page, tree + page
    return max(heads, key=lambda head: head[0])[1:]


def _nodes(raw: np.ndarray, at: int, page: int) -> tuple[int, np.ndarray]:
    """Return a page's kind and its entries: [n, 5] byte, low, high, flags, key size."""
    kind, lower = raw[at + 10 : at + 14].view("<u2").tolist()
    if kind not in (_BRANCH, _LEAF) or lower % 2 or not _HEADER <= lower <= page:
        raise ValueError(f"byte {at}: a page of kind {kind} where entries should be")
    starts = raw[at + _HEADER : at + lower].view("<u2").astype(np.int64)
    if len(starts) and not lower <= starts.min() <= starts.max() <= page - _NODE:
        raise ValueError(f"byte {at}: an entry outside its page")
    where = at + starts
    fields = raw[where[:, None] + np.arange(_NODE)].view("<u2").astype(np.int64)
    if (starts + _NODE + fields[:, 3] > page).any():
        raise ValueError(f"byte {at}: a key that does not end within its page")
    return kind, np.concatenate([where[:, None], fields], axis=1)


def _values(raw: np.ndarray, nodes: np.ndarray, page: int) -> np.ndarray:
    """Return a leaf's entries as `Entries` has them, [4, n]."""
    where, low, high, flags, key_size = nodes.T
    size, key_at = low | high << 16, where + _NODE
    at = key_at + key_size
    if (flags & ~_BIG).any():
        bad = int(where[np.argmax((flags & ~_BIG) != 0)])
        raise ValueError(f"byte {bad}: a database within the database, or duplicates")
    big = flags == _BIG
    end = where // page * page + page
    if (at + np.where(big, 8, size) > end).any():
        raise ValueError(f"byte {int(where[0])}: a value outside its page")
    number = raw[at[big][:, None] + np.arange(8)].view("<u8")[:, 0]
    fits = number < len(raw) // page
    start = np.where(fits, number, 0).astype(np.int64) * page + _HEADER
    if not fits.all() or (start + size[big] > len(raw)).any():
        raise ValueError(f"byte {int(where[0])}: a value outside the file")
    at = at.copy()
    at[big] = start
    return np.stack([key_at, key_size, at, size])
