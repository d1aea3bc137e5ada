r"""Rows for a paper's table, in Markdown or LaTeX.

One law: a row is what the scalars say, in percent with its interval; nothing is chosen
by how it looks.

    print(table({"faces": {"lfw": scalars}}, kind="markdown"))
    | run | lfw accuracy |
    | --- | --- |
    | faces | 99.42 [98.86, 99.67] |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

Scalars = Mapping[str, float]
KINDS = ["latex", "markdown"]
_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


class Headline(NamedTuple):
    """The number of a result to remember.

    Attributes:
        name: of the scalar, "" where there is none.
        value: of it.
        low, high: its interval, or None.
    """

    name: str
    value: float
    low: float | None
    high: float | None


def headline(scalars: Scalars) -> Headline:
    """Return the first scalar, which is what an evaluator is asked for."""
    return (
        of(scalars, next(iter(scalars))) if scalars else Headline("", 0.0, None, None)
    )


def of(scalars: Scalars, name: str) -> Headline:
    """Return a scalar and its interval, if it has one."""
    ends = (scalars.get(f"{name}{end}") for end in ("_low", "_high"))
    return Headline(name, scalars[name], *ends)


def table(
    runs: Mapping[str, Mapping[str, Scalars]],
    *,
    kind: str,
    columns: Sequence[str] = (),
) -> str:
    """Write a header and a row for each run.

    Args:
        runs: scalars by set, by the name of the run.
        kind: "markdown" or "latex".
        columns: "<set>/<scalar>", such as "lfw/tar@far=1e-3"; without any, each set's
            headline.

    Returns:
        The lines of the table, with a line end after each. Rates (what has an
        interval) are in percent. A run without the set or scalar has "--".

    Raises:
        ValueError: an unknown kind, or a column that no run has.
    """
    if kind not in _KINDS:
        raise ValueError(f"row {kind!r} unknown; wanted one of {KINDS}")
    escape, start, between, end, rule = _KINDS[kind]
    columns = list(columns) or _headlines(runs)
    for column in columns:
        if all(_cell(sets, column, kind) is None for sets in runs.values()):
            known = {
                f"{name}/{key}" for sets in runs.values() for name, s in sets.items()
                for key in s
            }  # fmt: skip
            raise ValueError(f"no run has {column!r}; known are {sorted(known)}")
    header = [
        "run",
        *(column.replace("/", " ").replace("_", " ") for column in columns),
    ]
    rows = [
        [escape(name), *(_cell(sets, column, kind) or "--" for column in columns)]
        for name, sets in runs.items()
    ]
    lines = [list(map(escape, header)), *rows]
    text = [f"{start}{between.join(line)}{end}\n" for line in lines]
    return "".join([text[0], rule(len(header)), *text[1:]])


def _headlines(runs: Mapping[str, Mapping[str, Scalars]]) -> list[str]:
    found = [
        f"{name}/{headline(scalars).name}"
        for sets in runs.values()
        for name, scalars in sets.items()
        if scalars
    ]
    return list(dict.fromkeys(found))


def _cell(sets: Mapping[str, Scalars], column: str, kind: str) -> str | None:
    """Return the number, or None where the run lacks it."""
    name, _, key = column.rpartition("/")
    if key not in sets.get(name, {}):
        return None
    _, value, low, high = of(sets[name], key)
    if low is None or high is None:
        return f"{value:.4g}"
    if kind == "latex":
        return f"${100 * value:.2f}$ {{\\small [{100 * low:.2f}, {100 * high:.2f}]}}"
    return f"{100 * value:.2f} [{100 * low:.2f}, {100 * high:.2f}]"


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(text.split()))


def _latex(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in " ".join(text.split()))


_Form = tuple[Callable[[str], str], str, str, str, Callable[[int], str]]
_KINDS: dict[str, _Form] = {
    "markdown": (
        _markdown, "| ", " | ", " |", lambda n: f"|{' --- |' * n}\n",
    ),
    "latex": (_latex, "", " & ", r" \\", lambda n: "\\midrule\n"),
}  # fmt: skip
