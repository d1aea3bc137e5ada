"""Is one run better than another? Paired tests on the same pairs.

One law: runs are compared pair by pair, or not at all: other pairs are refused.

    for row in compare({"before": {"lfw": result}, "after": {"lfw": other}}):
        row.run, row.gain.value, row.gain.low, row.gain.high, row.test.p
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxface import types
from jaxface.eval import bootstrap, intervals, significance

_LIST = ("same", "left", "right", "fold", "people")  # what a pair list is


class Paired(NamedTuple):
    """A run against the first, on one set.

    Attributes:
        set: name of the set.
        run, first: names of the two runs.
        gain: accuracy of the run less that of the first; people are resampled.
        test: `a` is the first run; pairs are taken as independent.
    """

    set: str
    run: str
    first: str
    gain: intervals.Difference
    test: significance.McNemar


def compare(runs: Mapping[str, Mapping[str, types.Result]]) -> list[Paired]:
    """Test every run against the first, on each set that says which pairs are right.

    Args:
        runs: results by set, by the name of the run. Sets whose artefacts hold no
            `correct` have nothing to pair; where they hold no `people`, pairs are
            taken as independent.

    Returns:
        Rows by set, then by run; none for a single run.

    Raises:
        ValueError: runs with other sets, or with other pairs in a set.
    """
    (first, base), *others = runs.items()
    for run, results in others:
        if set(results) != set(base):
            raise ValueError(
                f"{first!r} was evaluated on {sorted(base)}, {run!r} on"
                f" {sorted(results)}; choose sets that both have (--sets), or give the"
                " same --pack"
            )
        for name in base:
            _same_pairs(name, {first: base[name], run: results[name]})
    return [
        _paired(name, run, first, results[name].artefacts, base[name].artefacts)
        for name in base
        for run, results in others
        if "correct" in base[name].artefacts
    ]


def _paired(
    name: str,
    run: str,
    first: str,
    ours: Mapping[str, np.ndarray],
    base: Mapping[str, np.ndarray],
) -> Paired:
    b, a = np.asarray(ours["correct"], bool), np.asarray(base["correct"], bool)
    people = base.get("people")
    if people is None:
        people = np.repeat(np.arange(len(a))[:, None], 2, axis=1)
    gain = bootstrap.people_difference(b, a, people)
    return Paired(name, run, first, gain, significance.mcnemar(a, b))


def _same_pairs(name: str, of: Mapping[str, types.Result]) -> None:
    """Raise where two results are not of one pair list."""
    (first, a), (run, b) = ((run, result.artefacts) for run, result in of.items())
    for part in _LIST:
        if (part in a) != (part in b) or (
            part in a and not np.array_equal(a[part], b[part])
        ):
            raise ValueError(
                f"set {name!r}: the pairs of {first!r} and {run!r} differ in"
                f" {part!r}; a comparison needs the same pairs: give the same --pack,"
                " --folds and --names, or runs whose config names one pair list"
            )
