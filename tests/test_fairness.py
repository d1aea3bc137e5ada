"""Groups at one threshold: rates, gaps and ratios worked by hand."""

import dataclasses

import album
import numpy as np
import pytest

from jaxface import types
from jaxface.eval import bootstrap, fairness

# 10 genuine and 10 impostor pairs of each group; how many pass 60 degrees
GENUINE, IMPOSTOR = {"a": 9, "b": 6}, {"a": 1, "b": 3}


def faces():
    """Each pair has two images of its own, 50 degrees apart if it passes, else 80."""
    degrees, same, group = [], [], []
    for g, name in enumerate("ab"):
        for kind, counts in ((True, GENUINE), (False, IMPOSTOR)):
            passes = np.arange(10) < counts[name]
            degrees += np.where(passes, 50, 80).tolist()
            same += [kind] * 10
            group += [g] * 10
    n = len(same)
    ends = np.deg2rad(np.stack([np.zeros(n), degrees], axis=1).ravel())
    points = np.stack([np.cos(ends), np.sin(ends)], axis=1)
    people = np.arange(2 * n).reshape(n, 2)
    people[:, 1] = np.where(same, people[:, 0], people[:, 1])
    left = np.arange(0, 2 * n, 2)
    images = album.Album(np.arange(2 * n), people.ravel())
    fold = np.arange(n) % 2
    pairs = types.Pairs(images, left, left + 1, np.array(same), fold, people)
    groups = types.Groups(pairs, np.array(group), ("a", "b"))
    return groups, lambda source: points


def test_gaps_and_ratios_by_hand():
    groups, embed = faces()
    found = fairness.Evaluator(groups, far=0.25).run(embed)  # 4 of 20 pass 50 degrees
    s = found.scalars
    np.testing.assert_allclose(s["threshold"], np.cos(np.deg2rad(50)))
    assert [s[f"{r}:{g}"] for r in ("tar", "far") for g in "ab"] == [0.9, 0.6, 0.1, 0.3]
    assert s["tar_gap"] == pytest.approx(0.3)
    assert s["far_gap"] == pytest.approx(0.2)
    assert s["equalised_odds"] == pytest.approx(0.3)
    assert s["far_ratio"] == pytest.approx(3)
    assert s["far_inequity"] == pytest.approx(0.3 / np.sqrt(0.03))
    assert s["discrepancy"] == pytest.approx(1 - (0.3 + 0.2) / 2)
    # 50 degrees tell apart what they can: 9 + 9 and 6 + 7 of 20 are right
    assert (s["accuracy:a"], s["accuracy:b"]) == pytest.approx((0.9, 0.65))
    assert s["accuracy_gap"] == pytest.approx(0.25)
    assert s["error_ratio"] == pytest.approx(3.5)
    joint = [  # both groups at once: 97.5 % each
        bootstrap.people_interval(
            np.arange(20) < right, groups.pairs.people[:20], level=0.975
        )
        for right in (18, 13)
    ]
    worst = joint[0][1] - joint[1][0]
    assert s["accuracy_gap_high"] == pytest.approx(worst, abs=0.02)
    assert s["accuracy_gap_low"] == max(0, joint[0][0] - joint[1][1]) == 0
    assert 1 <= s["error_ratio_low"] < 3.5 < s["error_ratio_high"]
    assert found.artefacts["group"].tolist() == ["a", "b"]
    np.testing.assert_allclose(found.artefacts["group_tar"], [0.9, 0.6])
    assert found.artefacts["group_pairs"].tolist() == [20, 20]


def test_pairs_across_groups_move_the_threshold_only():
    groups, embed = faces()
    across = np.where(groups.pairs.same, groups.group, -1)
    across[[10, 11, 30, 31]] = [0, 0, 1, 1]  # two impostor pairs stay in each group
    s = fairness.Evaluator(dataclasses.replace(groups, group=across), far=0.25)
    scalars = s.run(embed).scalars
    assert scalars["across"] == 16
    assert (scalars["far:a"], scalars["far:b"]) == (0.5, 1)
    np.testing.assert_allclose(scalars["threshold"], np.cos(np.deg2rad(50)))


def test_ratios_need_a_false_accept_in_every_group():
    groups, embed = faces()
    scalars = fairness.Evaluator(groups, far=0.1).run(embed).scalars  # none allowed
    assert scalars["far_gap"] == 0
    assert not [name for name in scalars if name.startswith("far_ratio")]


def test_gaps_cover_the_truth_jointly():
    """Groups that are alike have a gap of nothing, and the interval must say so."""
    held = []
    for seed in range(40):
        embed = album.embedder(signal=1, noise=1, seed=seed)
        scalars = fairness.Evaluator(album.groups(), far=0.1).run(embed).scalars
        held.append(scalars["tar_gap_low"] == 0)
    assert np.mean(held) >= 0.95


def test_groups_that_cannot_be_compared_are_refused():
    groups, _ = faces()
    with pytest.raises(ValueError, match="wanted two groups or more"):
        fairness.Evaluator(dataclasses.replace(groups, names=("a",)))
    lost = np.where(groups.pairs.same & (groups.group == 1), -1, groups.group)
    with pytest.raises(ValueError, match="'b' has 0 genuine and 10 impostor"):
        fairness.Evaluator(dataclasses.replace(groups, group=lost))
    with pytest.raises(ValueError, match="at least one false accept to allow"):
        fairness.Evaluator(groups, far=0.01)
