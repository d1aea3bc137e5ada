import itertools
import statistics

import numpy as np
import oracles_metrics as oracles
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics
from sklearn.model_selection import KFold

from jaxface.eval import bootstrap, curves, decisions, folds, intervals


def draw(seed, n=200, *, decimals=6):
    """Cosines of n pairs, genuine ones higher; few decimals make ties."""
    rng = np.random.default_rng(seed)
    same = rng.random(n) < 0.5
    scores = np.clip(rng.normal(0.1 + 0.3 * same, 0.2), -1, 1)
    return np.round(scores, decimals), same


@pytest.mark.parametrize("decimals", [6, 1])
def test_roc_and_auc_are_sklearns(decimals):
    scores, same = draw(0, decimals=decimals)
    far, tar, threshold = curves.roc(scores, same)
    wanted = sklearn_metrics.roc_curve(same, scores, drop_intermediate=False)
    for got, want in zip((far, tar, threshold), wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-15)
    np.testing.assert_allclose(curves.auc(scores, same), oracles.auc(scores, same))


def test_auc_of_constant_and_of_separated_scores():
    same = np.array([True, False, True, False, False])
    assert curves.auc(np.zeros(5), same) == 0.5
    assert curves.eer(np.zeros(5), same) == 0.5
    assert curves.auc(1.0 * same, same) == 1
    assert curves.eer(1.0 * same, same) == 0
    assert curves.auc(-1.0 * same, same) == 0


def test_eer_lies_where_both_errors_are_equal():
    scores, same = draw(1)
    rate = curves.eer(scores, same)
    far, tar, _ = curves.roc(scores, same)
    np.testing.assert_allclose(np.interp(rate, far, tar), 1 - rate, atol=1 / same.sum())
    # turning the scores and the labels round keeps the rate
    np.testing.assert_allclose(curves.eer(-scores, ~same), rate)


@pytest.mark.parametrize("far", [0.02, 0.1, 0.29, 0.5])
@pytest.mark.parametrize("decimals", [6, 1])
def test_tar_at_far_is_the_obvious_search(far, decimals):
    scores, same = draw(2, decimals=decimals)
    got = curves.tar_at_far(scores, same, far=far)
    assert got == oracles.tar_at_far(scores, same, far)


def test_tar_at_far_counts_exactly_at_the_limit():
    scores = np.concatenate([np.arange(100), [70.5]])
    same = np.arange(101) == 100
    for accepted in range(1, 100):  # 0.29 * 100 is below 29 in floating point
        _, threshold = curves.tar_at_far(scores, same, far=accepted / 100)
        assert np.sum(scores[~same] >= threshold) == accepted


def test_tar_at_far_refuses_what_the_impostors_cannot_show():
    scores, same = draw(3)
    impostors = int(np.sum(~same))
    curves.tar_at_far(scores, same, far=1 / impostors)
    with pytest.raises(ValueError, match=f"got {impostors}"):
        curves.tar_at_far(scores, same, far=0.99 / impostors)
    with pytest.raises(ValueError, match="rate in"):
        curves.tar_at_far(scores, same, far=1.0)


def test_tar_is_zero_when_impostors_tie_at_the_top():
    same = np.array([True] * 3 + [False] * 4)
    got = curves.tar_at_far(np.array([0, 0, 0, 1, 1, 1, 1]), same, far=0.5)
    assert got == (0.0, np.inf)


@pytest.mark.parametrize("scores", [[0.1, np.nan, 0.2], [0.1, np.inf, 0.2]])
def test_scores_that_are_not_finite_are_refused(scores):
    with pytest.raises(ValueError, match="1 of 3 scores are not finite"):
        curves.roc(np.array(scores), np.array([True, False, True]))


def test_a_curve_needs_both_kinds():
    with pytest.raises(ValueError, match="3 genuine of 3"):
        curves.auc(np.zeros(3), np.ones(3, bool))


def test_kfold_by_hand():
    # fold 0: distances .2 .6 | .8 1.2; fold 1: .3 .9 | .5 1.6 (genuine | impostor)
    distance = np.array([0.2, 0.6, 0.8, 1.2, 0.3, 0.9, 0.5, 1.6])
    same = np.array([1, 1, 0, 0, 1, 1, 0, 0], bool)
    fold = np.repeat([0, 1], 4)
    found = folds.kfold_accuracy(1 - distance / 2, same, fold)
    # on fold 1, 3 of 4 are right first with d < .31; that keeps 3 of 4 in fold 0;
    # on fold 0, all are right first with d < .61; that keeps 2 of 4 in fold 1
    np.testing.assert_allclose(found.accuracy, [0.75, 0.5])
    np.testing.assert_allclose(found.threshold, [1 - 0.31 / 2, 1 - 0.61 / 2])
    assert found.correct.tolist() == [1, 0, 1, 1, 1, 0, 0, 1]
    assert (found.mean, found.std) == (0.625, 0.125)


@pytest.mark.parametrize(("n", "many"), [(60, 3), (47, 10), (40, 2)])
def test_kfold_is_insightfaces_loop(n, many):
    rng = np.random.default_rng(n)
    same = rng.random(n) < 0.5
    left = rng.normal(size=(n, 5))
    right = np.where(same[:, None], left + 0.8 * rng.normal(size=(n, 5)), left[::-1])
    left, right = (e / np.linalg.norm(e, axis=1, keepdims=True) for e in (left, right))
    splits = list(KFold(many, shuffle=False).split(np.arange(n)))
    accuracy, threshold = oracles.kfold(left, right, same, splits)
    fold = np.concatenate([np.full(len(t), k) for k, (_, t) in enumerate(splits)])
    cos = 1 - np.sum((left - right) ** 2, axis=1) / 2
    found = folds.kfold_accuracy(cos, same, fold)
    np.testing.assert_array_equal(found.accuracy, accuracy)
    np.testing.assert_allclose(found.threshold, 1 - threshold / 2, atol=1e-12)
    assert (found.mean, found.std) == (np.mean(accuracy), np.std(accuracy))


def test_kfold_accepts_strictly_below_the_threshold():
    # distances 1.0, on the grid, and 1.5: the first threshold to part them is 1.01
    same = np.tile([True, False], 4)
    found = folds.kfold_accuracy(np.where(same, 0.5, 0.25), same, np.arange(8) // 4)
    np.testing.assert_allclose(found.threshold, 1 - 1.01 / 2)
    assert found.mean == 1


def test_kfold_is_blind_to_the_order_within_folds():
    scores, same = draw(4)
    fold = np.arange(200) % 5
    order = np.random.default_rng(0).permutation(200)
    a = folds.kfold_accuracy(scores, same, fold)
    b = folds.kfold_accuracy(scores[order], same[order], fold[order])
    assert a.mean == b.mean
    np.testing.assert_array_equal(a.correct[order], b.correct)


def test_kfold_of_constant_scores_is_the_share_of_impostors():
    same = np.array([True, False, False, False] * 5)
    found = folds.kfold_accuracy(np.full(20, 0.3), same, np.arange(20) // 4)
    assert (found.mean, found.std) == (0.75, 0)
    assert not found.accepted.any()


@pytest.mark.parametrize("fold", [[0, 0, 2, 2], [1, 1, 1, 1], [0, 1]])
def test_kfold_refuses_folds_left_out(fold):
    scores, same = np.zeros(4), np.array([True, False, True, False])
    with pytest.raises(ValueError, match="wanted one id per pair"):
        folds.kfold_accuracy(scores, same, np.array(fold))


def test_precision_recall_f1_are_sklearns():
    rng = np.random.default_rng(5)
    truth, decided = rng.random((2, 100)) < [[0.3], [0.4]]
    counts = decisions.confusion(decided, truth)
    got = decisions.precision_recall_f1(counts)
    want = sklearn_metrics.precision_recall_fscore_support(
        truth, decided, average="binary"
    )
    np.testing.assert_allclose([rate.value for rate in got], want[:3])
    assert counts.tn == np.sum(~truth & ~decided)


def test_rates_of_nothing_are_zero_and_know_nothing():
    counts = decisions.confusion(np.zeros(4, bool), np.zeros(4, bool))
    assert decisions.precision_recall_f1(counts) == ((0.0, 0.0, 1.0),) * 3


def test_wilson_ends_solve_the_score_equation():
    z = statistics.NormalDist().inv_cdf(0.95)
    for k, n in itertools.product((1, 7, 19), (20, 500)):
        for end in intervals.wilson(k, n, level=0.9):
            # Wilson 1927: |p_hat - p| = z sqrt(p (1 - p) / n)
            np.testing.assert_allclose(
                abs(k / n - end), z * np.sqrt(end * (1 - end) / n)
            )


def test_wilson_at_the_ends():
    assert intervals.wilson(0, 10)[0] == 0
    assert intervals.wilson(10, 10)[1] == 1
    assert intervals.wilson(0, 0) == (0, 1)
    with pytest.raises(ValueError, match="11 successes in 10"):
        intervals.wilson(11, 10)


def people_sample(rng, *, P, N, effect):
    """N genuine and N impostor pairs of P people, who differ in how hard they are.

    Returns (correct, people, true rate): a probit model with a person effect.
    """
    a, b = rng.integers(P, size=N), rng.integers(P, size=N)
    people = np.concatenate(
        [np.stack([a, a], 1), np.stack([b, (b + rng.integers(1, P, N)) % P], 1)]
    )
    hard = effect * rng.normal(size=P)
    two = people[:, 0] != people[:, 1]
    share = np.where(two, hard[people].sum(axis=1) / np.sqrt(2), hard[people[:, 0]])
    rate = statistics.NormalDist().cdf(1.2 / np.sqrt(1 + effect**2))
    return 1.2 + share + rng.normal(size=2 * N) > 0, people, rate


@pytest.mark.parametrize("effect", [0.0, 1.0])
def test_people_interval_contains_wilsons(effect):
    rng = np.random.default_rng(0)
    for seed in range(20):
        correct, people, _ = people_sample(rng, P=40, N=100, effect=effect)
        low, high = bootstrap.people_interval(correct, people, seed=seed)
        inner = intervals.wilson(int(correct.sum()), len(correct))
        assert 0 <= low <= inner[0] < inner[1] <= high <= 1


@pytest.mark.parametrize("P", [15, 300])
def test_people_interval_has_the_dyadic_variance_and_students_tails(P):
    correct, people, _ = people_sample(np.random.default_rng(1), P=P, N=300, effect=1.5)
    low, high = bootstrap.people_interval(correct, people, replicates=20_000)
    width = np.log(high / (1 - high)) - np.log(low / (1 - low))
    spread = np.sqrt(oracles.dyadic_variance(correct, people))
    rate = correct.mean()
    wanted = 2 * stats.t.ppf(0.975, P - 1) * spread / (rate * (1 - rate))
    np.testing.assert_allclose(width, wanted, rtol=0.04)


def test_people_interval_of_perfect_outcomes_is_wilsons():
    people = np.array([[0, 0], [1, 1], [0, 1], [1, 2]])
    assert bootstrap.people_interval(np.ones(4, bool), people) == intervals.wilson(4, 4)


def test_people_interval_is_blind_to_order_and_names():
    correct, people, _ = people_sample(np.random.default_rng(2), P=30, N=50, effect=1)
    order = np.random.default_rng(3).permutation(100)
    a = bootstrap.people_interval(correct, people)
    b = bootstrap.people_interval(correct[order], 7 * people[order, ::-1] + 5)
    np.testing.assert_allclose(a, b, rtol=1e-9)


def test_people_interval_refuses_one_person():
    with pytest.raises(ValueError, match="an interval needs two"):
        bootstrap.people_interval(np.ones(3, bool), np.zeros((3, 2), int))


def coverage(runs, **sample):
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(runs):
        correct, people, rate = people_sample(rng, **sample)
        low, high = bootstrap.people_interval(
            correct, people, replicates=400, seed=seed
        )
        held += low <= rate <= high
    return held / runs


def test_people_interval_holds_the_truth_in_a_few_runs():
    # 3 standard errors of 60 runs below 95 %; Wilson's holds it in about half
    assert coverage(60, P=60, N=500, effect=0.7) >= 0.87


@pytest.mark.slow
@pytest.mark.parametrize(
    ("P", "N", "effect"), [(800, 300, 0.0), (40, 1000, 0.7), (100, 1000, 1.0)]
)
def test_people_interval_covers(P, N, effect):
    assert 0.925 <= coverage(600, P=P, N=N, effect=effect) <= 0.985
