import itertools

import numpy as np
import pytest
import samples
from scipy import stats

from jaxface.eval import curves, delong, significance


def outcomes(only_a, only_b, both=5, none=3):
    a = np.repeat([1, 0, 1, 0], [only_a, only_b, both, none]).astype(bool)
    b = np.repeat([0, 1, 1, 0], [only_a, only_b, both, none]).astype(bool)
    return a, b


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 1), (3, 9), (7, 7), (900, 1010)])
def test_mcnemar_is_the_binomial_test(only_a, only_b):
    found = significance.mcnemar(*outcomes(only_a, only_b))
    want = stats.binomtest(only_a, only_a + only_b).pvalue
    np.testing.assert_allclose(found.p, want, rtol=1e-9)
    assert found[:2] == (only_a, only_b)


def test_mcnemar_with_chi_square_is_scipys():
    found = significance.mcnemar(*outcomes(30, 52), exact=False)
    np.testing.assert_allclose(found.p, stats.chi2.sf((22 - 1) ** 2 / 82, 1))
    assert significance.mcnemar(*outcomes(8, 8), exact=False).p == 1


def test_models_that_agree_do_not_differ():
    assert significance.mcnemar(*outcomes(0, 0)) == (0, 0, 1)
    with pytest.raises(ValueError, match=r"outcomes \(2,\) and \(3,\)"):
        significance.mcnemar(np.ones(2), np.ones(3))


def test_sign_flip_tries_all_signs():
    d = np.random.default_rng(0).normal(0.4, 1, 8)
    means = [abs(np.mean(d * s)) for s in itertools.product((1, -1), repeat=8)]
    want = np.mean(np.array(means) >= abs(d.mean()) - 1e-12)
    assert significance.sign_flip(d) == want
    assert significance.sign_flip(d) == significance.sign_flip(-d[::-1])


def test_sign_flip_by_hand():
    assert significance.sign_flip([0.1, 0.2, 0.3]) == 2 / 8
    assert significance.sign_flip([0.0, 0.0]) == 1
    for wrong in ([], [np.nan], [0.1] * 21):
        with pytest.raises(ValueError, match="wanted 1 to 20 finite"):
            significance.sign_flip(wrong)


def test_delong_is_the_variance_of_all_comparisons():
    scores, same = samples.draw(12, 60, decimals=1)
    wins = np.sign(scores[same][:, None] - scores[~same][None, :]) / 2 + 0.5
    m, n = wins.shape
    error = np.sqrt(wins.mean(1).var(ddof=1) / m + wins.mean(0).var(ddof=1) / n)
    found = delong.auc(scores, same, level=0.9)
    np.testing.assert_allclose(found.value, curves.auc(scores, same))
    logit = np.log(np.array(found) / (1 - np.array(found)))
    half = stats.norm.ppf(0.95) * error / (found.value * (1 - found.value))
    np.testing.assert_allclose(logit[1:] - logit[0], [-half, half])


def test_delong_of_separated_and_of_constant_scores():
    same = np.arange(30) < 10
    low = stats.binomtest(10, 10).proportion_ci(method="wilson")[0]
    assert delong.auc(1.0 * same, same) == pytest.approx((1, low, 1))
    assert delong.auc(-1.0 * same, same) == pytest.approx((0, 0, 1 - low))
    found = delong.auc(np.zeros(30), same)
    assert found == (0.5, 0.5, 0.5)  # what never varies is not about to


def test_delong_difference_has_the_size_it_says():
    # Two equal models: p is uniform, so below 0.1 in a tenth of 400 runs, +- 3 errors
    rng = np.random.default_rng(13)
    same = np.arange(120) < 60
    found = []
    for _ in range(400):
        common = rng.normal(size=120) + 1.2 * same
        a, b = (common + rng.normal(size=120) for _ in range(2))
        found.append(delong.auc_difference(a, b, same))
    assert abs(np.mean([d.p < 0.1 for d in found]) - 0.1) < 0.045
    assert all((d.low <= 0 <= d.high) == (d.p >= 0.05) for d in found)


def test_delong_difference_of_a_model_and_itself():
    scores, same = samples.draw(14)
    assert delong.auc_difference(scores, 3 * scores, same) == (0, 0, 0, 1)


@pytest.mark.parametrize(("m", "n", "apart"), [(60, 60, 1.0), (50, 500, 2.0)])
@pytest.mark.slow
def test_delongs_interval_covers(m, n, apart):
    rng = np.random.default_rng(0)
    same, truth = np.arange(m + n) < m, samples.CDF(apart / np.sqrt(2))
    found = [
        delong.auc(rng.normal(size=m + n) + apart * same, same) for _ in range(4000)
    ]
    assert 0.93 <= np.mean([r.low <= truth <= r.high for r in found]) <= 0.97
