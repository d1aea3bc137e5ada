"""The mini-language: `name(arg=1)|module.name2("x")`, one line that names code.

It serves models, losses, margins, optimizers, sources and preprocessing. A name
resolves to a module of a package or to a public member of a module; arguments are
literals, bound to the signature before anything runs. Nothing is ever evaluated.

    calls = parse("resize(112)|flip|normalize")
    build = bind(member(ops, calls[0]), calls[0])    # functools.partial
    op = build()
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any


@dataclasses.dataclass(frozen=True)
class Call:
    """One parsed element: dotted name and its literal arguments."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()

    def after(self, value: Any) -> Call:
        """Return the call with what the part before it made as first argument."""
        return dataclasses.replace(self, args=(value, *self.args))

    def __str__(self) -> str:
        shown = [repr(a) for a in self.args]
        shown += [f"{k}={v!r}" for k, v in self.kwargs]
        return f"{self.name}({', '.join(shown)})" if shown else self.name


def parse(line: str) -> tuple[Call, ...]:
    """Parse `a(x=1)|b.c` into calls.

    Args:
        line: calls joined by `|`; arguments are Python literals.

    Returns:
        The calls, in order.

    Raises:
        ValueError: where the line is not of that form.
    """
    try:
        tree = ast.parse(line.strip(), mode="eval").body
        return tuple(_calls(tree))
    except (SyntaxError, ValueError, RecursionError) as error:
        raise ValueError(
            f"cannot read {line!r}: wanted `name(arg=literal)|name2`, as in"
            f" 'resize(112)|flip'; {error}"
        ) from None


def parse_one(line: str) -> Call:
    """Parse a line that must hold exactly one call."""
    calls = parse(line)
    if len(calls) != 1:
        raise ValueError(f"{line!r} has {len(calls)} parts; one was wanted")
    return calls[0]


def _calls(node: ast.expr) -> Iterable[Call]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        yield from _calls(node.left)
        yield from _calls(node.right)
    elif isinstance(node, ast.Call):
        args = tuple(ast.literal_eval(a) for a in node.args)
        if any(k.arg is None for k in node.keywords):
            raise ValueError("`**` is not allowed")
        kwargs = tuple((str(k.arg), ast.literal_eval(k.value)) for k in node.keywords)
        yield Call(_dotted(node.func), args, kwargs)
    else:
        yield Call(_dotted(node))


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    raise ValueError(f"{ast.unparse(node)!r} is not a name")


def unknown(kind: str, name: str, known: Iterable[str]) -> KeyError:
    """Return the error for a name nobody knows, with the nearest match."""
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f" did you mean {near[0]!r}?" if near else ""
    return KeyError(f"{kind} {name!r} unknown;{hint} known: {', '.join(choices)}")


def public(module: ModuleType) -> dict[str, Callable[..., Any]]:
    """Return the public callables a module defines itself."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and callable(value)
        and (
            getattr(value, "__module__", None) == module.__name__
            # variants are partials of the module's own class
            or getattr(getattr(value, "func", None), "__module__", None)
            == module.__name__
        )
    }


def member(module: ModuleType, call: Call, *, kind: str) -> Callable[..., Any]:
    """Return the public member of `module` that `call` names.

    Raises:
        KeyError: unknown name, with the choices and the nearest match.
    """
    known = public(module)
    if call.name not in known:
        raise unknown(kind, call.name, known)
    return known[call.name]


def modules(package: ModuleType) -> list[str]:
    """Return the module names of a package, without importing them."""
    return [m.name for m in pkgutil.iter_modules(package.__path__)]


def module(
    package: ModuleType, call: Call, *, kind: str, default: str
) -> Callable[..., Any]:
    """Return `package.<module>.<default>`, or `.<member>` for a dotted name.

    Args:
        package: where the modules live.
        call: `iresnet(depth=50)` or `iresnet.r50`.
        kind: the word for messages, such as "model".
        default: the agreed public name, such as "Model".

    Raises:
        KeyError: unknown module or member, with the choices.
    """
    name, _, attribute = call.name.partition(".")

    def members(name: str) -> dict[str, Callable[..., Any]]:
        return public(importlib.import_module(f"{package.__name__}.{name}"))

    known = modules(package)
    if name not in known or default not in members(name):
        raise unknown(kind, name, (m for m in known if default in members(m)))
    found, wanted = members(name), attribute or default
    if wanted not in found:
        raise unknown(kind, f"{name}.{wanted}", (f"{name}.{m}" for m in found))
    return found[wanted]


def agreed(
    package: ModuleType, call: Call, *, names: Iterable[str]
) -> Callable[..., Any]:
    """Return the one of several agreed names that a module exposes."""
    found = importlib.import_module(f"{package.__name__}.{call.name}")
    members = public(found)
    for name in names:
        if name in members:
            return members[name]
    raise unknown(call.name, " or ".join(names), members)


def bind(
    build: Callable[..., Any], call: Call, given: Mapping[str, Any] | None = None
) -> functools.partial[Any]:
    """Bind a call's arguments to a signature, without running it.

    Args:
        build: what the call names.
        call: its arguments.
        given: arguments the program supplies, which the line may not repeat.

    Raises:
        ValueError: unknown, repeated or missing arguments, with the signature.
    """
    signature = inspect.signature(build)
    named = dict(call.kwargs)
    try:
        signature.bind_partial(*call.args, **named, **(given or {}))
    except TypeError as error:
        names = ", ".join(p for p in signature.parameters)
        raise ValueError(f"{call}: {error}; {call.name} takes ({names})") from None
    return functools.partial(build, *call.args, **named, **(given or {}))


def flow(
    line: str, packages: Iterable[ModuleType], *, kind: str, names: Iterable[str]
) -> Any:
    """Build what a line says, each part fed by the one before as first argument.

    Args:
        line: such as "folder(path='x')|pairs_sampled(count=600)".
        packages: whose modules the parts name.
        kind: the word for messages, such as "source".
        names: the agreed names, of which each module exposes one.

    Raises:
        KeyError: a part that no package has, with the choices.
    """
    value: Any = None
    known = {name: package for package in packages for name in modules(package)}
    for i, call in enumerate(parse(line)):
        if call.name not in known:
            raise unknown(kind, call.name, known)
        make = agreed(known[call.name], call, names=names)
        value = bind(make, call if i == 0 else call.after(value))()
    return value
