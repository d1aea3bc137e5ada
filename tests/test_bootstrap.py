import functools

import numpy as np
import oracles_metrics as oracles
import pytest
import samples
from scipy import stats

from jaxface.eval import bootstrap, curves, delong, dyads, intervals


@pytest.mark.parametrize("effect", [0.0, 1.0])
def test_people_interval_contains_wilsons(effect):
    rng = np.random.default_rng(0)
    for seed in range(20):
        correct, people, _ = samples.outcomes(rng, P=40, N=100, effect=effect)
        low, high = bootstrap.people_interval(correct, people, seed=seed)
        inner = intervals.wilson(int(correct.sum()), len(correct))
        assert 0 <= low <= inner[0] < inner[1] <= high <= 1


@pytest.mark.parametrize("P", [6, 15, 150])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("block", [7, 1 << 20])
def test_the_spread_is_the_dyadic_variance_made_right_for_few_people(
    P, groups, block, monkeypatch
):
    monkeypatch.setattr(dyads, "_BLOCK", block)
    rng = np.random.default_rng(P)
    people = samples.pairs(rng, P, 30)
    people = np.unique(people, return_inverse=True)[1].reshape(-1, 2)
    group = rng.integers(groups, size=len(people))
    value = rng.normal(size=len(people))
    mean = np.bincount(group, value) / np.bincount(group)
    residual = value - mean[group]
    found = dyads.Dyads(people, group).spread(residual.__getitem__)
    names = np.array([f"person {k}" for k in range(P)])[people]
    again = dyads.Dyads(names, group).spread(residual.__getitem__)
    np.testing.assert_allclose(again.variance, found.variance)
    want = oracles.spread(value, people, group)
    np.testing.assert_allclose(found.variance, want)


@pytest.mark.parametrize("P", [30, 300])
def test_people_interval_has_students_tails(P):
    rng = np.random.default_rng(1)
    correct, people, _ = samples.outcomes(rng, P=P, N=600, effect=1.5)
    low, high = bootstrap.people_interval(correct, people, replicates=20_000)
    width = np.log(high / (1 - high)) - np.log(low / (1 - low))
    rate, ends = correct.mean(), np.unique(people, return_inverse=True)[1]
    residual = correct - rate
    spread = dyads.Dyads(ends.reshape(-1, 2)).spread(residual.__getitem__)
    tail = stats.t.ppf(0.975, spread.freedom)
    wanted = 2 * tail * np.sqrt(spread.variance) / (rate * (1 - rate))
    np.testing.assert_allclose(width, wanted, rtol=0.04)
    assert P / 2 < spread.freedom < P


def test_people_touched_equally_have_one_freedom_less_than_they_are():
    people = np.array([[i, j] for i in range(8) for j in range(i)])
    assert dyads.Dyads(people).freedom == pytest.approx(7)


def test_people_interval_of_perfect_outcomes_is_wilsons():
    people = np.array([[0, 0], [1, 1], [0, 1], [1, 2]])
    found = bootstrap.people_interval(np.ones(4, bool), people)
    assert found == intervals.wilson(4, 4)


def test_people_interval_is_blind_to_order_and_names():
    rng = np.random.default_rng(2)
    correct, people, _ = samples.outcomes(rng, P=30, N=50, effect=1)
    order = np.random.default_rng(3).permutation(100)
    a = bootstrap.people_interval(correct, people)
    b = bootstrap.people_interval(correct[order], 7 * people[order, ::-1] + 5)
    np.testing.assert_allclose(a, b, rtol=1e-9)


def test_one_person_and_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="an interval needs two"):
        bootstrap.people_interval(np.ones(3, bool), np.zeros((3, 2), int))
    with pytest.raises(ValueError, match=r"people \(4, 2\) for \(3,\) pairs"):
        bootstrap.people_interval(np.ones(3, bool), np.zeros((4, 2), int))
    with pytest.raises(ValueError, match=r"outcomes \(3,\) and \(4,\)"):
        bootstrap.people_difference(np.ones(3), np.ones(4), np.zeros((3, 2), int))


def test_people_auc_contains_delongs_and_its_value():
    rng = np.random.default_rng(4)
    for effect in (0.0, 1.0):
        scores, same, people, _ = samples.scored(rng, P=40, N=100, effect=effect)
        found, inner = (
            bootstrap.people_auc(scores, same, people),
            delong.auc(scores, same),
        )
        assert found.value == inner.value
        assert found.low <= inner.low < inner.high <= found.high


def test_people_eer_is_as_wide_as_redrawing_people_makes_it():
    """Of pairs of one person and of two, each with people of their own: no dyads."""
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(1.5, 1, 400), rng.normal(0, 2, 900)])
    same, people = np.arange(1300) < 400, np.repeat(np.arange(1300)[:, None], 2, 1)
    found = bootstrap.people_eer(scores, same, people)
    drawn = []
    for _ in range(1000):
        at = np.append(rng.integers(400, size=400), 400 + rng.integers(900, size=900))
        drawn.append(curves.eer(scores[at], same[at]))
    assert found.value == curves.eer(scores, same)
    want = np.quantile(drawn, [0.025, 0.975])
    np.testing.assert_allclose([found.low, found.high], want, atol=0.006)


def test_people_tar_is_as_wide_as_redrawing_people_makes_it():
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(1.5, 1, 400), rng.normal(0, 1, 900)])
    same, people = np.arange(1300) < 400, np.repeat(np.arange(1300)[:, None], 2, 1)
    found = bootstrap.people_tar(scores, same, people, far=0.05)
    drawn = []
    for _ in range(1000):
        at = np.append(rng.integers(400, size=400), 400 + rng.integers(900, size=900))
        drawn.append(curves.tar_at_far(scores[at], same[at], far=0.05)[0])
    assert found.value == curves.tar_at_far(scores, same, far=0.05)[0]
    want = np.quantile(drawn, [0.025, 0.975])
    np.testing.assert_allclose([found.low, found.high], want, atol=0.02)
    fixed = bootstrap.people_rate(scores[same] > 1.645, people[same])
    assert found.high - found.low > 1.1 * (fixed.high - fixed.low)


def test_rates_of_one_person_and_of_none_are_wilsons():
    people = np.zeros((5, 2), int)
    got = bootstrap.people_rate(np.arange(5) > 1, people)
    assert got == intervals.rate(3, 5)
    assert bootstrap.people_rate(np.zeros(0, bool), people[:0]) == (0, 0, 1)


@pytest.mark.parametrize(("scores", "value"), [([3, 2, 1, 0], 0), ([1, 1, 1, 1], 0.5)])
def test_people_eer_of_separate_and_of_constant_scores(scores, value):
    same, people = np.array([1, 1, 0, 0]), np.array([[0, 0], [1, 1], [0, 1], [1, 2]])
    found = bootstrap.people_eer(np.array(scores), same, people)
    assert found.low <= found.value == value <= found.high
    if not value:
        assert found[1:] == tuple(map(float, intervals.wilson(0, 2)))


def test_a_difference_turns_round_with_its_models():
    rng = np.random.default_rng(5)
    a, b, people, _ = samples.two_models(rng, P=40, N=300, effect=0.7)
    ab, ba = (
        bootstrap.people_difference(*x, people, replicates=20_000)
        for x in ((a, b), (b, a))
    )
    assert ab.value == pytest.approx(a.mean() - b.mean())
    assert ab.value == -ba.value
    np.testing.assert_allclose([ab.low, ab.high], [-ba.high, -ba.low], atol=3e-3)
    assert (ab.low > 0) == (ab.p < 0.05)


def test_a_model_differs_from_itself_by_nothing_that_n_pairs_can_show():
    a, _, people, _ = samples.two_models(np.random.default_rng(6), P=9, N=50, effect=0)
    found = bootstrap.people_difference(a, a, people)
    assert (found.value, found.p) == (0, 1)
    # Agresti and Min: of 102 pairs one in all differs, so 1.96 / 102, or more
    assert 0.018 < found.high < 0.04
    assert -0.04 < found.low < -0.018


def coverage(interval, sample, *, runs, **how):
    """The share of runs whose interval holds the truth; 400 draws each."""
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(runs):
        *given, truth = sample(rng, **how)
        found = interval(*given, replicates=400, seed=seed)
        low, high = found if len(found) == 2 else (found.low, found.high)
        held += low <= truth <= high
    return held / runs


tar_at_a_tenth = functools.partial(bootstrap.people_tar, far=0.1)
accepted_at_a_tenth = functools.partial(samples.accepted, far=0.1)


def test_people_interval_holds_the_truth_in_a_few_runs():
    # 3 standard errors of 60 runs below 95 %; Wilson's holds it in about half
    how = {"runs": 60, "P": 60, "N": 500, "effect": 0.7}
    assert coverage(bootstrap.people_interval, samples.outcomes, **how) >= 0.87


@pytest.mark.slow
@pytest.mark.parametrize(
    ("interval", "sample", "P", "N", "effect"),
    [
        (bootstrap.people_interval, samples.outcomes, 200, 100, 0.0),
        (bootstrap.people_interval, samples.outcomes, 30, 200, 0.7),
        (bootstrap.people_auc, samples.scored, 40, 200, 0.7),
        (bootstrap.people_eer, samples.crossed, 200, 100, 0.0),
        (bootstrap.people_eer, samples.crossed, 40, 200, 0.7),
        (tar_at_a_tenth, accepted_at_a_tenth, 400, 200, 0.0),
        (tar_at_a_tenth, accepted_at_a_tenth, 40, 200, 0.7),
        (bootstrap.people_difference, samples.two_models, 40, 150, 0.7),
    ],
)
def test_intervals_over_people_cover(interval, sample, P, N, effect):
    found = coverage(interval, sample, runs=4000, P=P, N=N, effect=effect)
    assert 0.93 <= found <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize(("P", "N", "effect"), [(400, 200, 0.0), (40, 200, 0.7)])
def test_precision_recall_and_f1_cover(P, N, effect):
    rng, held = np.random.default_rng(0), np.zeros(3)
    for seed in range(4000):
        *given, truth = samples.decided(rng, P=P, N=N, effect=effect)
        found = bootstrap.people_precision_recall_f1(*given, replicates=400, seed=seed)
        _, low, high = np.transpose(found)
        held += (low <= truth) & (truth <= high)
    np.testing.assert_array_less(0.93, held / 4000)
    np.testing.assert_array_less(held / 4000, 0.97)
