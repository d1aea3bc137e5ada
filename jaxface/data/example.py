r"""TensorFlow's `tf.train.Example`, parsed without TensorFlow or protobuf.

One law: every length is held against the bytes there are before anything is made of
it, and what the message says twice counts as protobuf counts it: lists of one kind
are joined, of several kinds and of equal names the last is taken.

    found = parse(record)
    found["image/encoded"]     # [b"\xff\xd8..."]
    found["label"]             # int64 [1]; a list of floats is float32
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

# How protobuf lays fields out: https://protobuf.dev/programming-guides/encoding
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_SIZES = {_FIXED64: 8, _FIXED32: 4}
# Numbers of the fields in tensorflow/core/example/{example,feature}.proto.
_FEATURES, _ENTRY, _KEY, _FEATURE, _ITEM = 1, 1, 1, 2, 1
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3


class _Field(NamedTuple):
    """A field's number and wire type, and where its value stands."""

    number: int
    wire: int
    start: int
    end: int


def parse(data: bytes | memoryview) -> dict[str, list[bytes] | np.ndarray]:
    """Return the features of a serialised Example.

    Args:
        data: the message, whole.

    Returns:
        name -> list of bytes, float32 [n] or int64 [n]; a feature without a value
        is an empty list.

    Raises:
        ValueError: not such a message, with the byte where that shows.
    """
    view = memoryview(data).cast("B")
    found: dict[str, list[bytes] | np.ndarray] = {}
    for features in _messages(view, 0, len(view), _FEATURES):
        for entry in _messages(view, features.start, features.end, _ENTRY):
            name, values = _entry(view, entry)
            found[name] = values
    return found


def _entry(view: memoryview, entry: _Field) -> tuple[str, list[bytes] | np.ndarray]:
    """Return one feature's name and values."""
    name, kind, lists = "", 0, list[_Field]()
    for field in _fields(view, entry.start, entry.end):
        if field.wire != _BYTES:
            continue
        if field.number == _KEY:
            name = _text(view, field)
        elif field.number == _FEATURE:
            for part in _fields(view, field.start, field.end):
                if part.wire != _BYTES or part.number > _INT64_LIST:
                    continue
                if part.number != kind:
                    kind, lists = part.number, []
                lists.append(part)
    if kind == _FLOAT_LIST:
        return name, _joined((_floats(view, p) for p in lists), np.float32)
    if kind == _INT64_LIST:
        return name, _joined((_integers(view, p) for p in lists), np.int64)
    return name, [
        bytes(view[item.start : item.end])
        for part in lists
        for item in _messages(view, part.start, part.end, _ITEM)
    ]


def _floats(view: memoryview, part: _Field) -> Iterator[np.ndarray]:
    """Yield a FloatList's values as they come, packed or one by one."""
    for item in _fields(view, part.start, part.end):
        if item.number == _ITEM and item.wire in (_BYTES, _FIXED32):
            if (item.end - item.start) % 4:
                raise ValueError(
                    f"byte {item.start}: {item.end - item.start} bytes of floats;"
                    " wanted a multiple of 4"
                )
            yield np.frombuffer(view[item.start : item.end], "<f4").astype(np.float32)


def _integers(view: memoryview, part: _Field) -> Iterator[np.ndarray]:
    """Yield an Int64List's values as they come, packed or one by one."""
    for item in _fields(view, part.start, part.end):
        if item.number == _ITEM and item.wire in (_BYTES, _VARINT):
            yield _varints(view, item)


def _joined(lists: Iterator[Iterator[np.ndarray]], dtype: type) -> np.ndarray:
    empty: np.ndarray = np.zeros(0, dtype)
    return np.concatenate([empty, *(array for values in lists for array in values)])


def _varints(view: memoryview, item: _Field) -> np.ndarray:
    """Return the integers that stand end to end in a field, int64."""
    raw = np.frombuffer(view[item.start : item.end], np.uint8)
    (last,) = np.nonzero(raw < 128)  # the high bit says that more bytes follow
    if len(raw) and (not len(last) or last[-1] != len(raw) - 1):
        raise ValueError(f"byte {item.end}: an integer is cut short")
    lengths = np.diff(last, prepend=-1)
    if len(raw) and lengths.max() > 10:
        raise ValueError(f"byte {item.start}: an integer of more than 10 bytes")
    first = last - lengths + 1
    shift = 7 * (np.arange(len(raw)) - np.repeat(first, lengths))
    parts = (raw & np.uint8(127)).astype(np.uint64) << shift.astype(np.uint64)
    whole = np.add.reduceat(parts, first) if len(first) else parts
    return whole.view(np.int64)


def _text(view: memoryview, field: _Field) -> str:
    try:
        return str(view[field.start : field.end], "utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"byte {field.start}: a name that is not UTF-8") from None


def _messages(view: memoryview, start: int, end: int, number: int) -> Iterator[_Field]:
    """Yield the fields of this number that hold bytes; others are unknown ones."""
    for field in _fields(view, start, end):
        if field.number == number and field.wire == _BYTES:
            yield field


def _fields(view: memoryview, start: int, end: int) -> Iterator[_Field]:
    """Yield the fields of the message that stands from `start` to `end`."""
    at = start
    while at < end:
        tag, value = _varint(view, at, end)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 2**29:
            raise ValueError(f"byte {at}: a field of number {number}")
        if wire == _VARINT:
            _, after = _varint(view, value, end)
        elif wire == _BYTES:
            size, value = _varint(view, value, end)
            after = value + size
        elif wire in _SIZES:
            after = value + _SIZES[wire]
        else:  # groups, which proto3 has not
            raise ValueError(f"byte {at}: a field of wire type {wire}")
        if after > end:
            raise ValueError(
                f"byte {at}: a field of {after - value} bytes; {end - value} are left"
            )
        yield _Field(number, wire, value, after)
        at = after


def _varint(view: memoryview, at: int, end: int) -> tuple[int, int]:
    """Return (integer, byte after it)."""
    value = 0
    for k in range(10):
        if at + k >= end:
            raise ValueError(f"byte {at}: an integer is cut short")
        byte = view[at + k]
        value |= (byte & 127) << 7 * k
        if byte < 128:
            return value, at + k + 1
    raise ValueError(f"byte {at}: an integer of more than 10 bytes")
