"""insightface's `.bin` verification packs, read without executing anything.

A pack is a pickle of (list of 2N encoded images, list of N bools). One law: the
opcodes are walked here, by the few rules a pack needs, and everything else is an
error that names file and byte; no object is built, imported or called by name.

    found = pairs("lfw.bin", folds=10, names="pairs.txt")
    found.images.read(found.left[0])     # (encoded bytes, label)
    found.people                         # [N, 2], from the names
"""

from __future__ import annotations

import dataclasses
import hashlib
import mmap
import os
import pickletools
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxface import types
from jaxface.data.sources import pairs_txt

# An opcode of one byte may cost some 60 bytes of memory: this bounds a hostile file
# to a few hundred megabytes, and leaves room for a million real pairs.
MAX_OPCODES = 5_000_000


@dataclasses.dataclass(frozen=True)
class Images:
    """The distinct images of a pack, as a `types.Source`.

    Encoded ones stay in the memory-mapped file until they are read.
    """

    path: str
    encoded: tuple[memoryview | bytes | np.ndarray, ...]
    labels: np.ndarray
    num_classes: int
    color: str = "rgb"

    def __len__(self) -> int:
        return len(self.encoded)

    def read(self, i: int) -> tuple[bytes | np.ndarray, int]:
        """Return (encoded bytes or pixels, label) of image i."""
        image = self.encoded[i]
        image = image if isinstance(image, np.ndarray) else bytes(image)
        return image, int(self.labels[i])

    def name(self, i: int) -> str:
        """Return the pack and the number of its distinct image."""
        return f"{self.path}[{i}]"


def pairs(
    path: str | os.PathLike[str],
    *,
    folds: int = 10,
    names: str | os.PathLike[str] | None = None,
) -> types.Pairs:
    """Open a pack.

    Args:
        path: the `.bin` file.
        folds: number of contiguous folds, of the sizes of scikit-learn's KFold.
        names: LFW's `pairs.txt` whose order the pack follows, whole folds from the
            first on; it says who is on each side. Without it, byte-identical images
            are one person and genuine pairs join their two sides, which splits a
            person whose images no genuine pair connects.

    Returns:
        The pairs; each distinct image is listed once.

    Raises:
        ValueError: on anything that is not a pack, or does not agree with `names`.
    """
    images, same = _read(os.fspath(path))
    return packed(images, same, path=path, folds=folds, names=names)


def packed(
    images: Sequence[memoryview | bytes | np.ndarray],
    same: np.ndarray,
    *,
    path: str | os.PathLike[str],
    folds: int,
    names: str | os.PathLike[str] | None,
    color: str = "rgb",
) -> types.Pairs:
    """Return the pairs of a pack's 2N images and `same` [N]; see `pairs`."""
    N = len(same)
    if not 1 <= folds <= N:
        raise ValueError(f"{path}: {N} pairs cannot be split into {folds} folds")
    fold = np.repeat(
        np.arange(folds), [N // folds + (k < N % folds) for k in range(folds)]
    )
    distinct, ends = _distinct(images)
    if names is None:
        labels = joined(len(distinct), ends[same])
        people = labels[ends]
    else:
        people = _named(names, same, fold)
        labels = np.zeros(len(distinct), np.int64)
        labels[ends] = people
    return types.Pairs(
        images=Images(os.fspath(path), distinct, labels, int(labels.max()) + 1, color),
        left=ends[:, 0],
        right=ends[:, 1],
        same=same,
        fold=fold,
        people=people,
    )


def _distinct(
    images: Sequence[memoryview | bytes | np.ndarray],
) -> tuple[tuple[memoryview | bytes | np.ndarray, ...], np.ndarray]:
    """Return the distinct images and the pairs' indices into them, [N, 2]."""
    place: dict[bytes, int] = {}
    # a pickle refers to a repeated object by its memo: hash each object once
    digest: dict[int, bytes] = {}
    index = []
    for image in images:
        if id(image) not in digest:
            buffer: Any = image  # all three kinds are
            digest[id(image)] = hashlib.blake2b(buffer).digest()
        index.append(place.setdefault(digest[id(image)], len(place)))
    _, first = np.unique(index, return_index=True)
    return tuple(images[i] for i in first), np.array(index).reshape(-1, 2)


def joined(n: int, genuine: np.ndarray) -> np.ndarray:
    """Return person ids [n]: images joined by genuine pairs [k, 2] are one person."""
    parent = list(range(n))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    for left, right in genuine.tolist():
        parent[root(left)] = root(right)
    return np.unique([root(i) for i in range(n)], return_inverse=True)[1]


def _named(
    names: str | os.PathLike[str], same: np.ndarray, fold: np.ndarray
) -> np.ndarray:
    """Return person ids [N, 2] from a list that must agree with the pack."""
    lines, listed = pairs_txt.parse(names)
    N = len(same)
    told = np.array([line.same for line in lines[:N]])
    if len(told) < N or (told != same).any():
        unlike = int(np.sum(told != same[: len(told)]))
        raise ValueError(
            f"{names} is not this pack's list: {len(lines)} pairs for the pack's {N},"
            f" {unlike} of another kind (same or different)"
        )
    if (listed[:N] != fold).any():
        raise ValueError(
            f"{names} puts these {N} pairs into {listed[N - 1] + 1} folds,"
            f" folds={fold[-1] + 1} was asked; people would be in several"
        )
    sides = [[side[0] for side in line] for line in lines[:N]]
    return np.unique(sides, return_inverse=True)[1].reshape(N, 2)


def _read(path: str) -> tuple[list[memoryview | bytes], np.ndarray]:
    """Return the 2N encoded images and `same` [N] of a pack."""
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise ValueError(f"{path}: the file is empty; wanted a pack of pairs")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    at = 0
    try:
        machine = _Machine(data)
        for count, (op, arg, position) in enumerate(
            pickletools.genops(data)  # type: ignore[arg-type]  # it reads mmap, too
        ):
            at = position or 0
            if count == MAX_OPCODES:
                raise ValueError(f"more than {MAX_OPCODES} opcodes")
            machine.step(op.name, arg)
        (found,) = machine.stack
        images, flags = found
    except (ValueError, IndexError, TypeError) as error:
        raise ValueError(
            f"{path}: not a pack of pairs, or cut short, at byte {at}: {error}"
        ) from None
    images = [i.raw if isinstance(i, _Array) else i for i in _list(images, path)]
    if not all(isinstance(i, memoryview | bytes) for i in images):
        raise ValueError(f"{path}: the first list is not of encoded images")
    flags = list(flags.raw) if isinstance(flags, _Array) else _list(flags, path)
    if not all(isinstance(f, int) and f in (0, 1) for f in flags):
        raise ValueError(f"{path}: the second list is not of True and False")
    if not flags or len(images) != 2 * len(flags):
        raise ValueError(
            f"{path}: {len(images)} images for {len(flags)} pairs; wanted two each"
        )
    return images, np.array(flags, bool)


def _list(found: Any, path: str) -> list[Any]:
    if not isinstance(found, list):
        raise ValueError(f"{path}: wanted (images, same), two lists")
    return found


@dataclasses.dataclass(frozen=True)
class _Global:
    """A name that the pickle mentions; it is compared, never looked up."""

    name: str


@dataclasses.dataclass
class _Array:
    """A NumPy array of one-byte items, of which only the bytes matter."""

    raw: memoryview | bytes = b""


_MARK = object()
_BYTE = object()  # the dtype b1 or u1
_CONSTANTS = {"NEWTRUE": True, "NEWFALSE": False, "NONE": None, "EMPTY_TUPLE": ()}


class _Machine:
    """The pickle virtual machine, cut down to plain values.

    `pickletools.genops` parses the opcodes; it builds nothing and reads no length
    past the end of the file.
    """

    def __init__(self, data: mmap.mmap) -> None:
        self.stack: list[Any] = []
        self._data = data
        self._memo: dict[int, Any] = {}
        self._encoded = 0

    def step(self, name: str, arg: Any) -> None:
        """Carry out one opcode, or raise ValueError, IndexError or TypeError."""
        stack = self.stack
        match name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "NEWTRUE" | "NEWFALSE" | "NONE" | "EMPTY_TUPLE":
                stack.append(_CONSTANTS[name])
            case "INT" | "LONG" | "LONG1" | "BININT" | "BININT1" | "BININT2":
                stack.append(arg)
            case "UNICODE" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(arg)
            case "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8" | "BYTEARRAY8":
                stack.append(self._slice(len(arg)))
            case "BINSTRING" | "SHORT_BINSTRING":  # bytes, as Python 2 wrote them
                stack.append(self._slice(len(arg)))
            case "MARK":
                stack.append(_MARK)
            case "EMPTY_LIST":
                stack.append([])
            case "LIST":
                stack.append(self._since_mark())
            case "APPEND":
                self._extend([stack.pop()])
            case "APPENDS":
                self._extend(self._since_mark())
            case "TUPLE":
                stack.append(tuple(self._since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [stack.pop() for _ in range(int(name[-1]))]
                stack.append(tuple(reversed(items)))
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memo[arg] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                if arg not in self._memo:
                    raise ValueError(f"nothing is stored as {arg}")
                stack.append(self._memo[arg])
            case "GLOBAL":
                stack.append(_Global(arg.replace(" ", ".")))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                stack.append(_Global(".".join((module, attribute))))
            case "REDUCE":
                args, function = stack.pop(), stack.pop()
                stack.append(self._call(function, args))
            case "BUILD":
                state, built = stack.pop(), stack[-1]
                self._build(built, state)
            case _:
                raise ValueError(f"opcode {name} has no place in a pack")

    def _slice(self, length: int) -> memoryview:
        end = self._data.tell()
        return memoryview(self._data)[end - length : end]

    def _since_mark(self) -> list[Any]:
        items: list[Any] = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def _extend(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError("an item is appended to something that is no list")
        self.stack[-1].extend(items)

    def _call(self, function: Any, args: Any) -> Any:
        """Return what one of five harmless functions would give."""
        # NumPy renamed `core` to `_core` in 2.0
        name = getattr(function, "name", "a value").replace("._core.", ".core.")
        match name, args:
            case "_codecs.encode", (str() as text, str() as codec) if codec in (
                "latin1",
                "latin-1",
            ):
                # one stored text may be encoded many times over: a memory bomb
                self._encoded += len(text)
                if self._encoded > len(self._data):
                    raise ValueError("more bytes encoded than the file holds")
                return text.encode("latin-1")
            case "numpy.dtype", (kind, *_) if _text(kind) in ("b1", "u1"):
                return _BYTE
            case "numpy.core.multiarray.scalar", (dtype, raw) if dtype is _BYTE:
                return bool(raw[0])
            case "numpy.core.multiarray._reconstruct", _:
                return _Array()
            case (
                "numpy.core.numeric._frombuffer",
                (memoryview() as raw, dtype, *_),
            ) if dtype is _BYTE:
                return _Array(raw)
        raise ValueError(f"a call of {name} with such arguments has no place in a pack")

    def _build(self, built: Any, state: Any) -> None:
        """Fill an array; a dtype's state (byte order) means nothing for bytes."""
        match state:
            case (_, _, dtype, _, (memoryview() | bytes()) as raw) if (
                dtype is _BYTE and isinstance(built, _Array)
            ):
                built.raw = raw
            case _ if built is not _BYTE:
                raise ValueError("an object is given a state; wanted plain values")


def _text(value: Any) -> Any:
    """Return Python 2's strings, which arrive as bytes, as text."""
    return bytes(value).decode("ascii") if isinstance(value, memoryview) else value
