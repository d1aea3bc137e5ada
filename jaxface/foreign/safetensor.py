"""Safetensors files, read and written.

One law: every byte of the data belongs to one tensor. Parsed here and not by the
`safetensors` package: the format is a length, a JSON header and raw data, and so the
order of the header is kept, an error is a ValueError, and nothing needs installing.

    write("backbone.safetensors", {"conv1.weight": w})
    read("backbone.safetensors")["conv1.weight"]

Format: https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from jaxface import atomic
from jaxface.foreign import arrays

MAX_HEADER = 100_000_000  # bytes; the limit of the format's own library

_DTYPES = {
    name: np.dtype(kind)
    for name, kind in {
        "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
        "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
        "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
        "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8",
        "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?", "C64": "<c8",
    }.items()
}  # fmt: skip
_NONE = np.empty(0, np.uint8)  # frombuffer refuses to read nothing


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read the tensors of a safetensors file.

    Args:
        path: the file.

    Returns:
        Tensors by name in the order of the header; float16, bfloat16 and float8 as
        float32.

    Raises:
        ValueError: if it is damaged, cut short or of element types unknown here.
    """
    path = os.fspath(path)
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size < 10:
            raise ValueError(f"{path}: not a safetensors file: shorter than its header")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        length = int.from_bytes(data[:8], "little")
        if length > min(MAX_HEADER, len(data) - 8):
            raise ValueError(f"a header of {length} bytes, the file has {len(data)}")
        header = json.loads(data[8 : 8 + length], object_pairs_hook=_unique)
        return _tensors(header, memoryview(data)[8 + length :])
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path}: not a safetensors file: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("two entries of the header have the same name")
    return found


def _tensors(header: Any, data: memoryview) -> dict[str, np.ndarray]:
    """Return the tensors, after checking that they cover the data."""
    if not isinstance(header, dict):
        raise ValueError("the header is no object")
    header.pop("__metadata__", None)
    spans = {name: _span(name, entry, data) for name, entry in header.items()}
    # before anything is copied: entries that share bytes would be a bomb
    at = 0
    for begin, end in sorted(spans.values()):
        if begin != at:
            raise ValueError(f"the tensors overlap or leave a hole at byte {at}")
        at = end
    if at != len(data):
        raise ValueError(f"{len(data) - at} bytes belong to no tensor")
    out = {}
    for name, (begin, end) in spans.items():
        kind = _DTYPES[header[name]["dtype"]]
        raw = (
            np.frombuffer(data, np.uint8, end - begin, begin) if end > begin else _NONE
        )
        flat = raw != 0 if kind.kind == "b" else raw.view(kind)
        out[name] = arrays.widen(flat.reshape(header[name]["shape"]))
    return out


def _span(name: str, entry: Any, data: memoryview) -> tuple[int, int]:
    """Return a tensor's first byte and the one after its last."""
    match entry:
        case {
            "dtype": str() as kind,
            "shape": list() as shape,
            "data_offsets": [int() as begin, int() as end],
        } if all(type(n) is int and 0 <= n < 1 << 62 for n in shape):
            pass
        case _:
            raise ValueError(f"tensor {name!r}: wanted dtype, shape and data_offsets")
    if kind not in _DTYPES:
        raise ValueError(
            f"tensor {name!r}: dtype {kind!r} unknown; known: {sorted(_DTYPES)}"
        )
    wanted = math.prod(shape) * _DTYPES[kind].itemsize
    if not 0 <= begin <= end <= len(data) or end - begin != wanted:
        raise ValueError(
            f"tensor {name!r}: bytes {begin} to {end} of {len(data)} for {shape} of"
            f" {kind}, which takes {wanted}"
        )
    return begin, end


def write(path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray]) -> None:
    """Write tensors as PyTorch's users expect them, whole or not at all.

    Args:
        path: the file, overwritten.
        tensors: by name; the header keeps their order.

    Raises:
        ValueError: on element types that the format has not.
    """
    names = {kind.newbyteorder("="): name for name, kind in _DTYPES.items()}
    kinds = {name: a.dtype.newbyteorder("=") for name, a in tensors.items()}
    for name, kind in kinds.items():
        if kind not in names or name == "__metadata__":
            raise ValueError(
                f"tensor {name!r} of {kind} cannot be written; known: {sorted(_DTYPES)}"
            )
    # the widest elements first, so that each tensor is aligned to its own
    order = sorted(tensors, key=lambda name: -kinds[name].itemsize)
    spans, at = {}, 0
    for name in order:
        spans[name] = [at, at + tensors[name].nbytes]
        at += tensors[name].nbytes
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for name, a in tensors.items():
        header[name] = {
            "dtype": names[kinds[name]],
            "shape": list(a.shape),
            "data_offsets": spans[name],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic.file(path) as part, part.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            little = kinds[name].newbyteorder("<")
            file.write(np.ascontiguousarray(tensors[name], little).tobytes())
