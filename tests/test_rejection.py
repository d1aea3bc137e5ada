import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from jaxface.eval import intervals, rejection


@pytest.mark.parametrize("decimals", [8, 1])
def test_errors_are_counted_anew_at_every_level(decimals):
    rng = np.random.default_rng(0)
    quality, wrong = rng.random(60).round(decimals), rng.random(60) < 0.3
    x, y = rejection.error_against_reject(quality, wrong)
    levels = sorted(set(quality))
    assert len(x) == len(y) == len(levels)
    for share, error, level in zip(x, y, levels, strict=True):
        left = quality >= level
        np.testing.assert_allclose(
            (share, error), (1 - left.mean(), wrong[left].mean())
        )


def test_a_quality_that_knows_the_errors_and_one_that_knows_nothing():
    wrong = np.arange(10) < 2
    x, y = rejection.error_against_reject(-1.0 * wrong, wrong)
    assert (x.tolist(), y.tolist()) == ([0, 0.2], [0.2, 0])
    # 0.2 until a share of 0.2 is gone, then none
    assert rejection.area_under(x, y, most=0.5) == pytest.approx(0.2 * 0.2 / 0.5)
    assert rejection.area_under(x, y, most=0.1) == pytest.approx(0.2)
    x, y = rejection.error_against_reject(np.zeros(10), wrong)
    assert (x.tolist(), y.tolist()) == ([0], [0.2])
    assert rejection.area_under(x, y, most=1.0) == pytest.approx(0.2)


def test_calibration_bins_are_sklearns():
    rng = np.random.default_rng(1)
    p = rng.random(500) ** 2
    truth = rng.random(500) < p**1.5
    found = rejection.calibration(p, truth, bins=10)
    happened, stated = calibration_curve(truth, p, n_bins=10)
    np.testing.assert_allclose(found.happened, happened)
    np.testing.assert_allclose(found.stated, stated)
    want = np.sum(found.pairs / 500 * np.abs(happened - stated))
    np.testing.assert_allclose(found.error, want)


def test_calibration_by_hand():
    p = np.array([0.0, 0.2, 0.9, 0.9, 1.0])
    found = rejection.calibration(p, np.array([0, 1, 1, 0, 1]), bins=2)
    # 0.1 stated of 2, of which half came true; 14/15 of 3, two thirds
    assert found.error == pytest.approx((0.8 + 0.8) / 5)
    assert found.pairs.tolist() == [2, 3]
    low, high = intervals.wilson([1, 2], [2, 3])
    np.testing.assert_array_equal((found.low, found.high), (low, high))


def test_an_empty_bin_knows_nothing():
    found = rejection.calibration(np.array([0.9]), np.array([True]), bins=3)
    assert np.isnan(found.stated[:2]).all()
    assert (found.low[0], found.high[0]) == (0, 1)
    assert found.error == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: rejection.calibration([0.5, 1.2], [0, 1]), "wanted .0, 1."),
        (lambda: rejection.calibration([0.5, np.nan], [0, 1]), "wanted .0, 1."),
        (lambda: rejection.calibration([0.5], [0, 1]), r"truth \(2,\)"),
        (lambda: rejection.error_against_reject([np.nan], [0]), "1 of 1 qualities"),
        (lambda: rejection.error_against_reject([], []), r"quality \(0,\)"),
        (lambda: rejection.area_under([0], [0], most=0.0), "not a share"),
    ],
)
def test_what_cannot_be_measured_is_said(call, words):
    with pytest.raises(ValueError, match=words):
        call()
