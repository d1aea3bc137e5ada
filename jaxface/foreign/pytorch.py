"""PyTorch's `torch.save` files, read without PyTorch and without running anything.

One law: a tensor is a checked window onto bytes that are in the file. Both layouts
(zip since 1.6, one pickle before), state dicts, checkpoints around them, pickled
modules and TorchScript archives.

    read("backbone.pth")["conv1.weight"]     # [O, I, kh, kw] float32

A module gives what its `state_dict()` would; containers give their keys joined by
dots (`{"state_dict": {"fc.weight": w}}` is `state_dict.fc.weight`). Tensors within
other objects (an optimizer instance, a NumPy array) are no part of the answer.
"""

from __future__ import annotations

import dataclasses
import io
import math
import mmap
import os
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, cast

import ml_dtypes
import numpy as np

from jaxface.foreign import archive, arrays, pickles

MAGIC = 0x1950A86A20F9469CFC6C  # of the layout of one pickle after the other
MAX_DEPTH = 100  # of containers and modules in each other; the deepest nets have 15
# Expanded and shared tensors take more than the file has; whole networks hardly do.
MAX_GROWTH, MAX_EXTRA = 8, 1 << 24


@dataclasses.dataclass(eq=False)
class _Storage:
    """Where elements lie: `numel` of them, from `start`, in storage `key`."""

    dtype: np.dtype
    key: str
    numel: int
    start: int = 0


@dataclasses.dataclass(eq=False)
class _Tensor:
    """A window onto a storage, in elements of `dtype`; not checked yet."""

    storage: _Storage
    offset: Any
    size: Any
    stride: Any
    dtype: np.dtype


# (what is pickled, the raw bytes of a storage, whether they are big-endian)
_Loaded = tuple[Any, Callable[[_Storage], memoryview], bool]


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read the tensors of a `torch.save` file.

    Args:
        path: of either layout, whatever its suffix.

    Returns:
        Tensors by dotted name in the order of the file; float16, bfloat16 and float8
        as float32.

    Raises:
        ValueError: if it is damaged, cut short, calls what no tensor needs, or holds
            no tensor.
    """
    path = os.fspath(path)
    try:
        with open(path, "rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
        value, raw, big = _zip(path) if zipped else _legacy(path)
        return _arrays(value, raw, big=big, size=os.path.getsize(path))
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{path}: not weights of PyTorch: {error}") from None


def _zip(path: str) -> _Loaded:
    """Load `NAME/data.pkl`, whose storages are `NAME/data/KEY`."""
    with archive.opened(path) as zipped:
        pickled = [n for n in zipped.namelist() if n.split("/")[1:] == ["data.pkl"]]
        if len(pickled) != 1:
            raise ValueError(
                f"{len(pickled)} members NAME/data.pkl, wanted one; it has"
                f" {zipped.namelist()[:5]}"
            )
        root = pickled[0].removesuffix("data.pkl")
        value = pickles.load(
            io.BytesIO(archive.member(zipped, pickled[0])),
            calls=_CALLS,
            persistent=_persistent,
        )
        order = b"little"
        if f"{root}byteorder" in zipped.namelist():
            order = archive.member(zipped, f"{root}byteorder")
        if order not in (b"little", b"big"):
            raise ValueError(f"byteorder {order[:20]!r} unknown; known: little, big")
        members = _storages(zipped, root, value)

    def raw(storage: _Storage) -> memoryview:
        return memoryview(members[storage.key])

    return value, raw, order == b"big"


def _storages(zipped: zipfile.ZipFile, root: str, value: Any) -> dict[str, bytes]:
    """Return the storages that the tensors need, each once."""
    keys = {tensor.storage.key: None for _, tensor in _named(value)}
    return {key: archive.member(zipped, f"{root}data/{key}") for key in keys}


def _legacy(path: str) -> _Loaded:
    """Load magic, protocol, system, object, keys: five pickles; then the storages."""
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise ValueError("the file is empty")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if data[:1] != b"\x80":
        raise ValueError(f"it begins with {data[:8]!r}, neither a zip nor a pickle")
    storages: dict[str, _Storage] = {}

    def persistent(pid: Any) -> Any:
        found = _persistent(pid)
        if isinstance(found, _Storage):
            whole = pid[4]
            known = storages.setdefault(
                found.key, _Storage(found.dtype, found.key, whole)
            )
            if (known.dtype, known.numel) != (found.dtype, whole):
                raise ValueError(f"storage {found.key!r} has two types or sizes")
        return found

    def load() -> Any:
        # a mmap has what is asked of a file here, if not the type
        file = cast(BinaryIO, data)
        return pickles.load(file, calls=_CALLS, persistent=persistent)

    if load() != MAGIC:
        raise ValueError("a pickle, but not one that torch.save wrote")
    load(), load()  # the protocol, and sizes of C types
    value, keys = load(), load()
    if not isinstance(keys, list) or not all(isinstance(k, str) for k in keys):
        raise ValueError("the storages are not listed after the object")
    places: dict[str, memoryview] = {}
    at = data.tell()
    for key in keys:
        if key not in storages or key in places:
            raise ValueError(f"storage {key!r} is listed twice, or no tensor uses it")
        wanted = storages[key]
        # PyTorch swaps these to little-endian on every machine
        count = int.from_bytes(data[at : at + 8], "little")
        end = at + 8 + count * wanted.dtype.itemsize
        if count != wanted.numel or end > len(data):
            raise ValueError(
                f"storage {key!r} at byte {at} has {count} elements, wanted"
                f" {wanted.numel}; the file ends at byte {len(data)}"
            )
        places[key] = memoryview(data)[at + 8 : end]
        at = end

    def raw(storage: _Storage) -> memoryview:
        if storage.key not in places:
            raise ValueError(f"storage {storage.key!r} is missing")
        return places[storage.key]

    return value, raw, False


def _arrays(
    value: Any, raw: Callable[[_Storage], memoryview], *, big: bool, size: int
) -> dict[str, np.ndarray]:
    """Return the tensors of an unpickled object, copied out of their storages."""
    out: dict[str, np.ndarray] = {}
    left = MAX_GROWTH * size + MAX_EXTRA
    for parts, tensor in _named(value):
        if not parts or not all(isinstance(p, str | int) for p in parts):
            raise ValueError("a tensor has no name; wanted a dict of tensors")
        name = ".".join(map(str, parts))
        if name in out:
            raise ValueError(f"two tensors are called {name!r}")
        try:
            window = _window(tensor, raw(tensor.storage), big=big)
            # narrow floats double
            left -= 4 * window.size if window.itemsize < 4 else window.nbytes
            if left < 0:
                raise ValueError("the tensors would take many times the file's size")
            out[name] = arrays.widen(window)
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"tensor {name!r}: {error}") from None
    if not out:
        raise ValueError("it holds no tensor")
    return out


def _window(tensor: _Tensor, raw: memoryview, *, big: bool) -> np.ndarray:
    """Return a view of a storage, after checking that it stays inside."""
    storage, dtype = tensor.storage, tensor.dtype
    size, stride = _whole(tensor.size), _whole(tensor.stride)
    (offset,) = _whole((tensor.offset,))
    begin, length = storage.start, storage.numel
    declared = length * storage.dtype.itemsize
    begin *= storage.dtype.itemsize
    if begin + declared > len(raw):
        raise ValueError(
            f"storage {storage.key!r} has {len(raw)} bytes, {begin + declared} declared"
        )
    if len(size) != len(stride):
        raise ValueError(f"{len(size)} sizes and {len(stride)} strides")
    numel = math.prod(size)
    if not numel:
        return np.empty(size, dtype)
    elements = declared // dtype.itemsize
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if last >= elements:
        raise ValueError(f"it reaches element {last} of a storage of {elements}")
    flat = np.frombuffer(raw, np.uint8, elements * dtype.itemsize, begin)
    flat = _typed(flat, dtype, big=big)
    # a stride along one element is never taken and may be any number
    steps = [s * dtype.itemsize * (n > 1) for n, s in zip(size, stride, strict=True)]
    return np.lib.stride_tricks.as_strided(flat[offset:], size, steps, writeable=False)


def _typed(flat: np.ndarray, dtype: np.dtype, *, big: bool) -> np.ndarray:
    """Return bytes [n * itemsize] as elements [n] of native order."""
    if dtype.kind == "b":
        return flat != 0
    # a complex number is two floats, each of them swapped
    unit = dtype.itemsize // (2 if dtype.kind == "c" else 1)
    order = ">" if big else "<"
    return flat.view(f"{order}u{unit}").astype(f"=u{unit}", copy=False).view(dtype)


def _whole(values: Any) -> tuple[int, ...]:
    """Return sizes, strides or an offset, which must be small whole numbers."""
    if not isinstance(values, tuple | list) or not all(
        type(v) is int and 0 <= v < 1 << 62 for v in values
    ):
        raise ValueError("its size, stride or offset are not whole numbers from 0")
    return tuple(values)


def _named(value: Any) -> Iterator[tuple[tuple[Any, ...], _Tensor]]:
    """Yield (parts of the name, tensor) of what was unpickled, in order."""
    waiting: list[tuple[tuple[Any, ...], Any]] = [((), value)]
    seen = 0
    while waiting:
        parts, value = waiting.pop()
        if isinstance(value, _Tensor):
            yield parts, value
            continue
        kinds = (_Tensor, dict, list, tuple, pickles.Object)
        inside = [(k, v) for k, v in _children(value) if isinstance(v, kinds)]
        # containers within themselves, or each in the next many times over
        seen += len(inside)
        if seen > pickles.MAX_OPCODES or len(parts) > MAX_DEPTH:
            raise ValueError(
                f"its containers nest deeper than {MAX_DEPTH}, or too many"
            )
        waiting.extend(((*parts, k), v) for k, v in reversed(inside))


def _children(value: Any) -> list[tuple[Any, Any]]:
    """Return (key, value) of a container or module, in the order of `state_dict`."""
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, list | tuple):
        return list(enumerate(value))
    if not isinstance(value, pickles.Object):
        return []
    attributes = value.attributes()
    match attributes:
        case {"_parameters": dict() as own, "_buffers": dict() as buffers,
              "_modules": dict() as modules}:  # fmt: skip
            unsaved = attributes.get("_non_persistent_buffers_set")
            unsaved = unsaved if isinstance(unsaved, set) else set()
            kept = {k: v for k, v in buffers.items() if k not in unsaved}
            return [*own.items(), *kept.items(), *modules.items()]
    if value.name.startswith("__torch__."):  # TorchScript: all that it holds is saved
        return list(attributes.items())
    # subclasses of dict and list, such as configs
    return [*value.items.items(), *enumerate(value.members)]


def _persistent(pid: Any) -> Any:
    """Return the storage, or the class, that a persistent id stands for."""
    match pid:
        case ("module", pickles.Global() as kind, *_):  # a class, and its source
            return kind
        case ("storage", pickles.Global(name), str() as key, _, int() as numel, *view):
            if name not in _STORAGES:
                raise ValueError(f"storage type {name[:100]!r} unknown")
            found = _Storage(_STORAGES[name], key, *_whole((numel,)))
            if view and view != [None]:
                ((_, start, length),) = view
                found.start, found.numel = _whole((start, length))
                if found.start + found.numel > numel:
                    raise ValueError(f"a view reaches out of storage {key!r}")
            return found
    raise ValueError("a persistent id that is no storage")


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> _Tensor:
    """Do as `_rebuild_tensor` and `_rebuild_tensor_v2` do."""
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor without a storage")
    # (requires_grad, backward_hooks, metadata): lazily negated or conjugated
    if len(rest) > 2 and rest[2]:
        raise ValueError("a tensor that is negated or conjugated on reading")
    return _Tensor(storage, offset, size, stride, storage.dtype)


def _tensor_v3(
    storage: Any, offset: Any, size: Any, stride: Any, *rest: Any
) -> _Tensor:
    """Do as `_rebuild_tensor_v3`: the element type is named, the storage is bytes."""
    _, _, dtype, *metadata = rest
    found = _tensor(storage, offset, size, stride, None, None, *metadata)
    if not isinstance(dtype, pickles.Global) or dtype.name not in _DTYPES:
        raise ValueError(f"element type {getattr(dtype, 'name', dtype)!r:.100} unknown")
    return dataclasses.replace(found, dtype=_DTYPES[dtype.name])


def _parameter(data: Any, *rest: Any) -> Any:
    return data


def _from_type(function: Any, kind: Any, args: Any, state: Any) -> Any:
    """Do as `_rebuild_from_type_v2`: a tensor of a subclass, or with attributes."""
    if not isinstance(function, pickles.Global) or function.name not in _TENSORS:
        raise ValueError("a tensor of a subclass that is built in its own way")
    return _TENSORS[function.name](*args)


_DTYPES = {
    f"torch.{name}": np.dtype(kind)
    for name, kind in {
        "float64": "f8", "float32": "f4", "float16": "f2", "double": "f8",
        "float": "f4", "half": "f2", "bfloat16": ml_dtypes.bfloat16,
        "float8_e4m3fn": ml_dtypes.float8_e4m3fn, "float8_e5m2": ml_dtypes.float8_e5m2,
        "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
        "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
        "int64": "i8", "int32": "i4", "int16": "i2", "int8": "i1", "uint64": "u8",
        "uint32": "u4", "uint16": "u2", "uint8": "u1", "bool": "?",
        "complex64": "c8", "complex128": "c16",
    }.items()
}  # fmt: skip
_STORAGES = {
    f"torch.{place}{name}Storage": np.dtype(kind)
    for place in ("", "cuda.", "storage.")
    for name, kind in {
        "Double": "f8", "Float": "f4", "Half": "f2", "BFloat16": ml_dtypes.bfloat16,
        "Long": "i8", "Int": "i4", "Short": "i2", "Char": "i1", "Byte": "u1",
        "Bool": "?", "ComplexFloat": "c8", "ComplexDouble": "c16",
        "Untyped": "u1", "_Untyped": "u1",
    }.items()
}  # fmt: skip
_TENSORS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
_CALLS: dict[str, Callable[..., Any]] = {
    **_TENSORS,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch.Size": tuple,
    "torch.device": lambda *args: pickles.Object("torch.device"),
    # TorchScript's lists and tagged values
    **{f"torch.jit._pickle.build_{kind}list": lambda items: items
       for kind in ("int", "double", "bool", "tensor")},
    "torch.jit._pickle.restore_type_tag": lambda value, tag: value,
}  # fmt: skip
