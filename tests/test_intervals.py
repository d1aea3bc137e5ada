import itertools
import statistics

import numpy as np
import pytest
from scipy import stats

from jaxface.eval import intervals


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


def test_wilson_is_scipys_for_arrays():
    n = np.array([[1], [7], [400]])
    k = np.array([0, 1, 1]) + 0 * n
    low, high = intervals.wilson(k, n, level=0.99)
    for at in np.ndindex(k.shape):
        want = stats.binomtest(int(k[at]), int(n[at[0], 0])).proportion_ci(
            0.99, method="wilson"
        )
        np.testing.assert_allclose([low[at], high[at]], want, atol=1e-12)


def test_a_rate_is_named_with_its_ends():
    found = intervals.rate(9, 10)
    low, high = intervals.wilson(9, 10)
    assert found.named("tar") == {"tar": 0.9, "tar_low": low, "tar_high": high}
    with pytest.raises(ValueError, match=r"level=1\.0 is not a confidence"):
        intervals.rate(9, 10, level=1.0)
