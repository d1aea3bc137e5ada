"""Pickles that other people wrote, walked as plain data.

One law: nothing is imported, called or built by name; only the functions that the
caller lists are called. The opcodes are carried out here and not by a restricted
`pickle.Unpickler`, as CPython's dies of a deep tuple used as a key and allocates what
a memo index asks for.

    load(file, calls={"torch.Size": tuple}, persistent=refuse)
    # an instance of an unknown class is an Object: its name and its state
"""

from __future__ import annotations

import dataclasses
import os
import pickletools
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

# An opcode of one byte may cost some 60 bytes of memory: this bounds a hostile file
# to a few hundred megabytes; a network of a thousand tensors takes 60 thousand.
MAX_OPCODES = 5_000_000


@dataclasses.dataclass(frozen=True)
class Global:
    """A name that the pickle mentions; it is compared, never looked up."""

    name: str


@dataclasses.dataclass(eq=False)
class Object:
    """An instance of a class that stays unknown, and what the pickle put into it."""

    name: str
    state: Any = None
    items: dict[Any, Any] = dataclasses.field(default_factory=dict)
    members: list[Any] = dataclasses.field(default_factory=list)

    def attributes(self) -> dict[Any, Any]:
        """Return the attributes that its state sets, slots among them."""
        parts = self.state if isinstance(self.state, tuple) else (self.state,)
        return {k: v for p in parts if isinstance(p, dict) for k, v in p.items()}


def load(
    file: BinaryIO,
    *,
    calls: Mapping[str, Callable[..., Any]],
    persistent: Callable[[Any], Any],
) -> Any:
    """Read one pickle from where the file stands, and leave it behind.

    Args:
        file: binary, with `read`, `readline`, `tell` and `seek`; a `mmap` will do.
        calls: the functions that may be called, by the name the pickle gives them.
            Containers, NumPy's and the like are allowed always.
        persistent: returns what a persistent id stands for.

    Returns:
        Plain values, what `calls` and `persistent` returned, Globals and Objects.

    Raises:
        ValueError: on anything else, with the byte where it stands.
    """
    start = at = file.tell()
    size = file.seek(0, os.SEEK_END) or file.tell()  # a mmap's seek returns None
    file.seek(start)
    machine = _Machine({**_INERT, **calls}, persistent, 4 * (size - start) + 1000)
    try:
        for count, (op, arg, position) in enumerate(pickletools.genops(file)):
            at = position or 0
            if count == MAX_OPCODES:
                raise ValueError(f"more than {MAX_OPCODES} opcodes")
            machine.step(op.name, arg)
        (value,) = machine.stack
    except _DAMAGE as error:
        raise ValueError(f"pickle, byte {at}: {error}") from None
    return value


# The last one is genops' where warnings are errors: a bad escape in a text.
_DAMAGE = (ValueError, IndexError, TypeError, OverflowError, DeprecationWarning)
_MARK = object()
_LITERALS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_FRESH = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_VALUES = (
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT",
    "BINFLOAT", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES",
    "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
)  # fmt: skip
_NOTHING = ("PROTO", "FRAME", "STOP")
_STRINGS = ("STRING", "BINSTRING", "SHORT_BINSTRING")
_PLAIN = (str, bytes, int, float, complex, Global, type(None))


class _Machine:
    """The pickle virtual machine without its last step, running what it is told.

    `pickletools.genops` parses the opcodes; it builds nothing and reads no length
    past the end of the file.
    """

    def __init__(
        self,
        calls: Mapping[str, Callable[..., Any]],
        persistent: Callable[[Any], Any],
        budget: int,
    ) -> None:
        self.stack: list[Any] = []
        self._calls = calls
        self._persistent = persistent
        self._budget = budget
        self._memo: dict[int, Any] = {}

    def step(self, name: str, arg: Any) -> None:
        """Carry out an opcode, or raise ValueError, IndexError or TypeError."""
        stack = self.stack
        if name in _VALUES:
            stack.append(arg)
        elif name in _LITERALS:
            stack.append(_LITERALS[name])
        elif name in _FRESH:
            stack.append(_FRESH[name]())
        elif name in _STRINGS:
            stack.append(_text(arg))
        elif name not in _NOTHING and not self._memorise(name, arg):
            self._make(name, arg)

    def _memorise(self, name: str, arg: Any) -> bool:
        """Carry out an opcode of stack, memo or containers, if it is one."""
        match name:
            case "MARK":
                self.stack.append(_MARK)
            case "POP":
                self.stack.pop()
            case "POP_MARK":
                self._since_mark()
            case "DUP":
                self.stack.append(self.stack[-1])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memo[arg] = self.stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = self.stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                if arg not in self._memo:
                    raise ValueError(f"nothing is stored as {arg}")
                self.stack.append(self._memo[arg])
            case _:
                return self._collect(name)
        return True

    def _collect(self, name: str) -> bool:
        """Carry out an opcode that makes or fills a container, if it is one."""
        stack = self.stack
        match name:
            case "LIST":
                stack.append(self._since_mark())
            case "TUPLE":
                stack.append(tuple(self._since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [stack.pop() for _ in range(int(name[-1]))]
                stack.append(tuple(reversed(items)))
            case "DICT":
                items = self._since_mark()
                stack.append({})
                self._set(items)
            case "FROZENSET":
                stack.append(_set(self._since_mark()))
            case "APPEND":
                self._extend([stack.pop()])
            case "APPENDS":
                self._extend(self._since_mark())
            case "ADDITEMS":
                items = self._since_mark()
                if not isinstance(stack[-1], set):
                    raise ValueError("an item is added to something that is no set")
                stack[-1].update(_set(items))
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self._set([key, value])
            case "SETITEMS":
                self._set(self._since_mark())
            case _:
                return False
        return True

    def _make(self, name: str, arg: Any) -> None:
        """Carry out an opcode that would import, build or call something."""
        stack = self.stack
        match name:
            case "GLOBAL":
                stack.append(Global(arg.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                stack.append(_global(module, attribute))
            case "REDUCE":
                args, function = stack.pop(), stack.pop()
                stack.append(self._call(function, args))
            case "INST":
                args = self._since_mark()
                stack.append(self._instance(Global(arg.replace(" ", ".", 1)), args))
            case "OBJ":
                kind, *args = self._since_mark()
                stack.append(self._instance(kind, args))
            case "NEWOBJ":
                _, kind = stack.pop(), stack.pop()
                stack.append(_new(kind))
            case "NEWOBJ_EX":
                _, _, kind = stack.pop(), stack.pop(), stack.pop()
                stack.append(_new(kind))
            case "BUILD":
                state, built = stack.pop(), stack[-1]
                if isinstance(built, Object):
                    built.state = state
                elif not isinstance(built, dict):  # torch's _metadata of an OrderedDict
                    raise ValueError(f"a state is given to {_word(built)}")
            case "BINPERSID":
                stack.append(self._persistent(stack.pop()))
            case _:
                raise ValueError(f"opcode {name} has no place in a file of weights")

    def _since_mark(self) -> list[Any]:
        items: list[Any] = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def _extend(self, items: list[Any]) -> None:
        filled = self.stack[-1]
        if isinstance(filled, Object):
            filled = filled.members
        if not isinstance(filled, list):
            raise ValueError("an item is appended to something that is no list")
        filled.extend(items)

    def _set(self, items: list[Any]) -> None:
        filled = self.stack[-1]
        if isinstance(filled, Object):
            filled = filled.items
        if not isinstance(filled, dict):
            raise ValueError("a key is set in something that is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            filled[_key(key)] = value

    def _instance(self, kind: Any, args: list[Any]) -> Any:
        """Return what INST and OBJ make: a call, unless nothing is passed."""
        return self._call(kind, tuple(args)) if args else _new(kind)

    def _call(self, function: Any, args: Any) -> Any:
        if not isinstance(function, Global):
            raise ValueError(f"it calls {_word(function)}, which is no function")
        if function.name not in self._calls:
            raise ValueError(
                f"it calls {function.name[:200]!r}, which no tensor needs; the file may"
                " be malicious, nothing of it was run"
            )
        if not isinstance(args, tuple):
            raise ValueError(f"it calls {function.name} without a tuple of arguments")
        # one stored list may be copied many times over: a memory bomb
        sized = (str, bytes, list, tuple, dict, set)
        self._budget -= sum(len(a) for a in (args, *args) if isinstance(a, sized))
        if self._budget < 0:
            raise ValueError("its calls copy more than the file holds")
        return self._calls[function.name](*args)


def _global(module: Any, attribute: Any) -> Global:
    if not (isinstance(module, str) and isinstance(attribute, str)):
        raise ValueError("a name is made of something that is no text")
    if len(module) + len(attribute) > 1000:  # joined often, a long text is a bomb
        raise ValueError(f"a name of {len(module) + len(attribute)} letters")
    return Global(f"{module}.{attribute}")


def _new(kind: Any) -> Any:
    """Return what `kind.__new__` would, as plain data."""
    if not isinstance(kind, Global):
        raise ValueError(f"an instance of {_word(kind)}, which is no class")
    return {} if kind.name in _DICTS else Object(kind.name)


def _key(value: Any) -> Any:
    """Return a key, unless hashing it could recurse."""
    for part in value if isinstance(value, tuple) else (value,):
        by_identity = type(part).__hash__ is object.__hash__
        if not (isinstance(part, _PLAIN) or by_identity):
            raise ValueError(f"{_word(part)} is part of a key")
    return value


def _word(value: Any) -> str:
    """Return a few words about a value: its text could fill the memory."""
    return (
        value.name[:200] if isinstance(value, Global) else f"a {type(value).__name__}"
    )


def _text(string: str) -> str | bytes:
    """Return a string of Python 2, which genops takes for Latin-1, as torch does."""
    raw = string.encode("latin-1")
    try:
        return raw.decode()
    except UnicodeDecodeError:  # raw data of an array
        return raw


def _set(items: Any = ()) -> set[Any]:
    return {_key(item) for item in items}


def _dict(items: Any = ()) -> dict[Any, Any]:
    pairs = items.items() if isinstance(items, dict) else items
    return {_key(key): value for key, value in pairs}


def _encode(text: str, codec: str = "utf-8") -> bytes:
    if codec not in ("latin1", "latin-1", "utf-8", "utf8"):
        raise ValueError(f"a text is encoded as {codec[:40]!r}")
    return text.encode(codec)


def _bytes(content: Any = b"", codec: str = "utf-8") -> bytes:
    if isinstance(content, str):
        return _encode(content, codec)
    if not isinstance(content, bytes):  # a number would allocate as much
        raise ValueError(f"bytes are made of {_word(content)}")
    return content


def _reconstructor(kind: Any, base: Any, state: Any) -> Any:
    return _new(kind)


def _inert(name: str) -> Callable[..., Object]:
    """Return a function that makes an Object and nothing else."""
    return lambda *args: Object(name)


def _defaultdict(factory: Any = None, items: Any = ()) -> dict[Any, Any]:
    return _dict(items)


_DICTS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _dict,
    "collections.Counter": _dict,
    "collections.defaultdict": _defaultdict,
}
_BUILTINS: dict[str, Callable[..., Any]] = {
    "set": _set,
    "frozenset": _set,
    "bytearray": _bytes,
    "complex": complex,
}
_ARRAYS = ("multiarray.scalar", "multiarray._reconstruct", "numeric._frombuffer")
# What checkpoints hold beside tensors: counters, random states, paths, dates.
_INERT: dict[str, Callable[..., Any]] = {
    **_DICTS,
    **{f"builtins.{name}": function for name, function in _BUILTINS.items()},
    **{f"__builtin__.{name}": function for name, function in _BUILTINS.items()},
    "_codecs.encode": _encode,
    "copyreg._reconstructor": _reconstructor,
    "copy_reg._reconstructor": _reconstructor,
    **{name: _inert(name) for name in (
        *(f"numpy.{core}.{name}" for core in ("core", "_core") for name in _ARRAYS),
        "numpy.dtype", "numpy.random._pickle.__randomstate_ctor",
        "numpy.random._pickle.__generator_ctor",
        "numpy.random._pickle.__bit_generator_ctor",
        "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePosixPath",
        "datetime.datetime", "datetime.date", "datetime.timedelta",
    )},
}  # fmt: skip
