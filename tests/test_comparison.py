import dataclasses

import numpy as np
import pytest

from jaxface import types
from jaxface.eval import bootstrap, comparison, significance


def result(correct, **other):
    n = len(correct)
    ends = np.arange(n)
    found = {"correct": np.asarray(correct, bool), "same": ends % 2 == 0, "left": ends}
    found |= {"right": ends + 1, "fold": ends * 0}
    found |= {"people": np.stack([ends // 3, ends // 3 + ends % 2], axis=1)}
    return types.Result({"accuracy": float(np.mean(correct))}, found | other)


def draws(rate, seed):
    return np.random.default_rng(seed).random(90) < rate


def test_a_run_is_tested_against_the_first_on_the_same_pairs():
    a, b, c = draws(0.9, 0), draws(0.6, 1), draws(0.9, 2)
    runs = {"a": {"x": result(a)}, "b": {"x": result(b)}, "c": {"x": result(c)}}
    found = comparison.compare(runs)
    assert [(row.set, row.run, row.first) for row in found] == [
        ("x", "b", "a"),
        ("x", "c", "a"),
    ]
    people = result(a).artefacts["people"]
    assert found[0].gain == bootstrap.people_difference(b, a, people)
    assert found[0].gain.value == pytest.approx(b.mean() - a.mean())
    assert found[0].gain.high < 0
    assert found[0].test == significance.mcnemar(a, b)
    assert found[0].test.only_b == np.sum(b & ~a)


def test_a_run_against_itself_is_no_better():
    runs = {name: {"x": result(draws(0.8, 0))} for name in "ab"}
    (row,) = comparison.compare(runs)
    assert row.gain.value == 0
    assert row.gain.low < 0 < row.gain.high
    assert row.gain.p == row.test.p == 1


@pytest.mark.parametrize("part", ["same", "left", "right", "fold", "people"])
def test_other_pairs_are_refused(part):
    a = result(draws(0.8, 0))
    changed = a.artefacts[part].copy()
    changed[-1] = ~changed[-1] if part == "same" else changed[-1] + 1
    b = dataclasses.replace(a, artefacts=a.artefacts | {part: changed})
    with pytest.raises(ValueError, match=f"'a' and 'b' differ in '{part}'"):
        comparison.compare({"a": {"x": a}, "b": {"x": b}})
    b.artefacts.pop(part)
    with pytest.raises(ValueError, match=f"differ in '{part}'"):
        comparison.compare({"a": {"x": a}, "b": {"x": b}})


def test_other_sets_are_refused():
    a = result(draws(0.8, 0))
    with pytest.raises(ValueError, match=r"\['x'\], 'b' on \['y'\]"):
        comparison.compare({"a": {"x": a}, "b": {"y": a}})


def test_a_set_without_decisions_has_nothing_to_pair():
    bare = types.Result({"rank1": 0.5}, {"cmc": np.ones(3)})
    assert comparison.compare({"a": {"x": bare}, "b": {"x": bare}}) == []
    assert comparison.compare({"a": {"x": result(draws(0.8, 0))}}) == []


def test_without_people_each_pair_stands_alone():
    a, b = (result(draws(0.8, seed)) for seed in (0, 1))
    for one in (a, b):
        del one.artefacts["people"]
    (row,) = comparison.compare({"a": {"x": a}, "b": {"x": b}})
    own = np.stack([np.arange(90) + 500] * 2, axis=1)
    want = bootstrap.people_difference(
        b.artefacts["correct"], a.artefacts["correct"], own
    )
    assert row.gain == want
