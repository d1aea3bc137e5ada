import numpy as np
import oracles_metrics as oracles
import pytest
from samples import draw
from sklearn import metrics as sklearn_metrics

from jaxface.eval import curves


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


ALL = (
    curves.roc, curves.det, curves.auc, curves.eer, curves.d_prime,
    curves.precision_recall, curves.average_precision,
    lambda s, y: curves.tar_at_far(s, y, far=0.5),
    lambda s, y: curves.fnmr_at_fmr(s, y, fmr=0),
)  # fmt: skip


@pytest.mark.parametrize("metric", ALL)
@pytest.mark.parametrize(
    ("scores", "same", "words"),
    [
        ([0.1, np.nan, 0.2], [1, 0, 1], "1 of 3 scores are not finite"),
        ([0.1, np.inf, np.nan], [1, 0, 1], "2 of 3 scores are not finite"),
        ([0.1, 0.2, 0.2], [1, 1, 1], "3 genuine of 3 pairs"),
        ([0.1, 0.2, 0.2], [0, 0, 0], "0 genuine of 3 pairs"),
        ([0.1, 0.2], [0, 1, 0], r"scores \(2,\) and same \(3,\)"),
        ([], [], r"scores \(0,\)"),
    ],
)
def test_every_metric_says_what_it_cannot_measure(metric, scores, same, words):
    with pytest.raises(ValueError, match=words):
        metric(np.array(scores), np.array(same, bool))


@pytest.mark.parametrize("decimals", [6, 1, 0])
def test_average_precision_and_its_curve_are_sklearns(decimals):
    scores, same = draw(9, decimals=decimals)
    precision, recall, threshold = curves.precision_recall(scores, same)
    wanted = sklearn_metrics.precision_recall_curve(same, scores)
    for got, want in zip((precision, recall, threshold), wanted, strict=True):
        np.testing.assert_allclose(got[::-1], want[: len(got)], atol=1e-15)
    want = sklearn_metrics.average_precision_score(same, scores)
    np.testing.assert_allclose(curves.average_precision(scores, same), want)


@pytest.mark.parametrize("decimals", [6, 1])
def test_det_is_sklearns(decimals):
    scores, same = draw(10, decimals=decimals)
    fmr, fnmr, threshold = curves.det(scores, same)
    # ours begins at infinity, and goes on where theirs has no false negative left
    want = sklearn_metrics.det_curve(same, scores, drop_intermediate=False)
    points = {(f, m) for f, m in zip(fmr.round(9), fnmr.round(9), strict=True)}
    assert {(f, m) for f, m in zip(*np.round(want[:2], 9), strict=True)} <= points
    assert np.all(np.diff(fmr) >= 0)
    assert np.all(np.diff(fnmr) <= 0)
    assert len(threshold) == len(set(threshold)) == len(set(scores)) + 1


def test_fnmr_at_fmr_by_hand():
    # 1000 impostors at 0 .. 999, genuine pairs around their tops
    scores = np.concatenate([np.arange(1000), [998.5, 995, 999, 1000, 2000]])
    same = np.arange(1005) >= 1000
    # without a false match only 1000 and 2000 pass: 999 ties with an impostor
    assert curves.fnmr_at_fmr(scores, same, fmr=0) == (1 - 0.4, 1000)
    # FMR1000: one false match, 999, and with it its genuine tie
    assert curves.fnmr_at_fmr(scores, same, fmr=1e-3) == (1 - 0.8, 998.5)
    # FMR100: ten, 990 .. 999
    assert curves.fnmr_at_fmr(scores, same, fmr=1e-2) == (0, 990)
    with pytest.raises(ValueError, match="10000 impostor pairs, got 1000"):
        curves.fnmr_at_fmr(scores, same, fmr=1e-4)


def test_tar_at_far_reads_the_roc():
    rng = np.random.default_rng(11)
    for decimals in (0, 1, 2, 6):
        scores, same = draw(int(rng.integers(99)), 300, decimals=decimals)
        fars, tars, thresholds = curves.roc(scores, same)
        for far in rng.uniform(0.01, 1, 20):
            last = np.searchsorted(fars, far, side="right") - 1
            got = curves.tar_at_far(scores, same, far=far)
            assert got == (tars[last], thresholds[last])


def test_d_prime_by_hand():
    scores, same = np.array([3, 5, 0, 2, 1]), np.array([1, 1, 0, 0, 0], bool)
    # means 4 and 1, variances 1 and 2/3
    assert curves.d_prime(scores, same) == pytest.approx(3 / np.sqrt((1 + 2 / 3) / 2))
    assert curves.d_prime(7 - 2 * scores, same) == pytest.approx(
        curves.d_prime(scores, same)
    )
    with pytest.raises(ValueError, match="do not vary"):
        curves.d_prime(1.0 * same, same)
