r"""MXNet's RecordIO: framed records, their text index, and the header of an image.

One law: every length is held against the bytes there are before anything is made of
it; what does not fit is a ValueError with its byte.

    keys, offsets = read_index("train.idx")      # lines "key\toffset"
    labels, image = unpack(read(data, offsets[5]))
    file.write(frame(pack(3.0, image, key=5)))

A frame is a magic number, a word of 3 bits of kind and 29 of length, and the record,
padded to 4 bytes. Where a record holds the magic number at a multiple of 4, it is cut
there into several frames and the number left out (dmlc-core, recordio.h). An image
has MXNet's IRHeader before it (python/mxnet/recordio.py): flag, label, id, id2; flag
counts the labels that follow it, or is 0 where the header's label is the one.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from collections.abc import Sequence

import numpy as np

MAGIC = struct.pack("<I", 0xCED7230A)
WHOLE, FIRST, MIDDLE, LAST = range(4)  # kinds of a frame
MAX_LENGTH = 2**29 - 1
_FRAME = struct.Struct("<4sI")
_HEADER = struct.Struct("<IfQQ")
_IMAGE = struct.Struct("<4sIIfQQ")  # both
_LABEL = struct.Struct("<f")

_BLOCK = 1 << 18  # with what is made of it, this stays in the cache
_LINE = re.compile(rb"\d{1,18}\t\d{1,18}")


def read_index(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Read a `.idx` file.

    Args:
        path: lines of a record's key, a tab, and the byte where it starts.

    Returns:
        (keys [n], offsets [n]), int64, in the order of the file.

    Raises:
        ValueError: another kind of line, with its byte.
    """
    with open(path, "rb") as file:
        lines = 0
        while block := file.read(_BLOCK):
            lines += block.count(b"\n")
        file.seek(0)
        keys = np.empty(lines + 1, np.int64)  # the last line may end without "\n"
        offsets = np.empty(lines + 1, np.int64)
        rest, done, at = b"", 0, 0
        while block := file.read(_BLOCK) or (rest and b"\n"):
            text, newline, rest = (rest + block).rpartition(b"\n")
            if not newline and len(rest) > _BLOCK:
                raise ValueError(f"{path}, byte {at}: a line of {len(rest)} bytes")
            if newline:
                found = _numbers((text + b"\n").replace(b"\r\n", b"\n"))
                if found is None:
                    raise ValueError(f"{path}, {_bad_line(text, at)}")
                keys[done : done + len(found)] = found[:, 0]
                offsets[done : done + len(found)] = found[:, 1]
                done, at = done + len(found), at + len(text) + 1
    return keys[:done], offsets[:done]


def _numbers(text: bytes) -> np.ndarray | None:
    r"""Return lines "key\toffset\n" as [m, 2], or None if one is no such line."""
    digit = np.frombuffer(text, np.uint8) - np.uint8(48)  # wraps below "0"
    (ends,) = np.nonzero(digit > 9)
    lengths = np.diff(ends, prepend=-1) - 1
    tab, newline = (np.uint8(c - 48 & 255) for c in b"\t\n")
    if (
        len(ends) % 2
        or (digit[ends[0::2]] != tab).any()
        or (digit[ends[1::2]] != newline).any()
        or not 1 <= lengths.min() <= lengths.max() <= 18
    ):
        return None
    columns = []
    for first in (0, 1):
        at, length = ends[first::2] - 1, lengths[first::2]
        value, shortest = np.zeros(len(at), np.int64), length.min()
        for k in range(length.max()):
            digits = digit[at]
            if k >= shortest:  # before a short number stands another one
                digits *= k < length
            value += digits * np.int64(10**k)
            at -= 1
        columns.append(value)
    return np.stack(columns, axis=1)


def _bad_line(text: bytes, at: int) -> str:
    for line in text.split(b"\n"):
        if not _LINE.fullmatch(line.removesuffix(b"\r")):
            return f"byte {at}: wanted `key<tab>offset`, got {line[:60]!r}"
        at += len(line) + 1
    raise AssertionError("both routes read the same lines")


def read(data: mmap.mmap | bytes, at: int) -> bytes:
    """Return the record that starts at a byte.

    Raises:
        ValueError: if there is none, or it does not end within the data.
    """
    parts: list[bytes] = []
    while True:
        if not 0 <= at <= len(data) - _FRAME.size:
            raise ValueError(f"byte {at}: no record here; {len(data)} bytes in all")
        magic, word = _FRAME.unpack_from(data, at)
        kind, length = word >> 29, word & MAX_LENGTH
        if magic != MAGIC:
            raise ValueError(f"byte {at}: wanted the magic number, got {magic.hex()}")
        if kind not in ((MIDDLE, LAST) if parts else (WHOLE, FIRST)):
            raise ValueError(
                f"byte {at}: a frame of kind {kind} at part {len(parts)} of a record"
            )
        start = at + _FRAME.size
        if start + length > len(data):
            raise ValueError(
                f"byte {at}: a record of {length} bytes; {len(data) - start} are left"
            )
        parts.append(data[start : start + length])
        if kind in (WHOLE, LAST):
            return MAGIC.join(parts)
        at = start + (length + 3) // 4 * 4


def unpack(record: bytes) -> tuple[np.ndarray, bytes]:
    """Return (labels float32 [m], what follows the header).

    Raises:
        ValueError: if the record is shorter than its header says.
    """
    if len(record) < _HEADER.size:
        raise ValueError(f"a record of {len(record)} bytes; its header has 24")
    flag, label, _, _ = _HEADER.unpack_from(record)
    end = _HEADER.size + 4 * flag
    if end > len(record):
        raise ValueError(f"{flag} labels in a record of {len(record)} bytes")
    if not flag:
        return np.array([label], np.float32), record[end:]
    return np.frombuffer(record, "<f4", flag, _HEADER.size), record[end:]


def unpacked(data: mmap.mmap | bytes, at: int) -> tuple[np.ndarray, bytes]:
    """Return what `unpack` makes of the record at a byte, which its errors name."""
    record = read(data, at)
    try:
        return unpack(record)
    except ValueError as error:
        raise ValueError(f"byte {at}: {error}") from None


def image_at(data: mmap.mmap | bytes, at: int) -> tuple[float, bytes]:
    """Return (first label, image) of the record at a byte, as `unpacked` would.

    Raises:
        ValueError: if there is none, or it is damaged, with its byte.
    """
    if 0 <= at <= len(data) - _IMAGE.size:
        magic, word, flag, label, _, _ = _IMAGE.unpack_from(data, at)
        image, end = at + _IMAGE.size + 4 * flag, at + _FRAME.size + word
        if magic == MAGIC and word <= MAX_LENGTH and image <= end <= len(data):
            if flag:
                (label,) = _LABEL.unpack_from(data, at + _IMAGE.size)
            return label, data[image:end]
    labels, rest = unpacked(data, at)
    return float(labels[0]), rest


def labels_at(
    data: mmap.mmap | bytes, offsets: np.ndarray, *, count: int = 1
) -> np.ndarray:
    """Return the first labels of many records, float32 [n, count].

    Args:
        data: the file.
        offsets: [n] where the records start.
        count: labels wanted of each; more than 1 only of headers that list them.

    Raises:
        ValueError: on a record without so many, with its byte.
    """
    out = np.empty((len(offsets), count), np.float32)
    raw = np.frombuffer(data, np.uint8)
    width = _FRAME.size + _HEADER.size + 4 * count
    for start in range(0, len(offsets), 4096):
        at = offsets[start : start + 4096]
        where = np.minimum(at[:, None] + np.arange(width), len(raw) - 1)
        words = raw[where].view("<u4")  # magic, word, flag, label, id, id2, labels
        alone = words[:, 2] == 0
        labels = words.view("<f4")[:, 8:].copy()
        labels[alone, 0] = words.view("<f4")[alone, 3]
        needed = _HEADER.size + 4 * words[:, 2].astype(np.int64)
        magic = words[:, 0] == np.frombuffer(MAGIC, "<u4")
        # one part, long enough, within the file, labels enough: as almost all are
        plain = magic & (words[:, 1] <= MAX_LENGTH) & (needed <= words[:, 1])
        plain &= at + _FRAME.size + words[:, 1].astype(np.int64) <= len(raw)
        plain &= np.where(alone, 1, words[:, 2]) >= count
        for i in np.flatnonzero(~plain):
            found, _ = unpacked(data, int(at[i]))
            if len(found) < count:
                raise ValueError(f"byte {at[i]}: {len(found)} labels, wanted {count}")
            labels[i] = found[:count]
        out[start : start + len(at)] = labels
    return out


def pack(labels: float | Sequence[float], image: bytes, *, key: int) -> bytes:
    """Return a record: the header of an image with one label or several, and it."""
    if isinstance(labels, Sequence):
        listed = np.asarray(labels, "<f4").tobytes()
        return _HEADER.pack(len(labels), 0.0, key, 0) + listed + image
    return _HEADER.pack(0, labels, key, 0) + image


def frame(record: bytes) -> bytes:
    """Return a record as it stands in a file.

    Raises:
        ValueError: if it is longer than the format can say, 2^29 - 1 bytes.
    """
    cuts, at = [], record.find(MAGIC)
    while at >= 0:
        if at % 4 == 0:
            cuts.append(at)
        at = record.find(MAGIC, at + (4 if at % 4 == 0 else 1))
    starts, ends = [0, *(cut + 4 for cut in cuts)], [*cuts, len(record)]
    out = []
    for k, (start, end) in enumerate(zip(starts, ends, strict=True)):
        if end - start > MAX_LENGTH:
            raise ValueError(f"a record of {len(record)} bytes; at most {MAX_LENGTH}")
        kind = (LAST if k else WHOLE) if k == len(cuts) else (MIDDLE if k else FIRST)
        word = kind << 29 | end - start
        out += [_FRAME.pack(MAGIC, word), record[start:end], bytes(-(end - start) % 4)]
    return b"".join(out)
