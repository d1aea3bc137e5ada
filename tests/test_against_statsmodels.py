"""Intervals and tests against statsmodels, whose formulas were written by others."""

import numpy as np
import pytest

from jaxface.eval import intervals, significance

pytest.importorskip("statsmodels")
from statsmodels.stats import contingency_tables, proportion


@pytest.mark.parametrize("level", [0.8, 0.95, 0.999])
def test_wilson_is_statsmodels(level):
    k, n = np.array([0, 1, 17, 399, 400]), 400
    got = intervals.wilson(k, n, level=level)
    want = proportion.proportion_confint(k, n, alpha=1 - level, method="wilson")
    np.testing.assert_allclose(got, want, atol=1e-12)


@pytest.mark.parametrize(("only_a", "only_b"), [(1, 0), (5, 5), (12, 30), (70, 44)])
@pytest.mark.parametrize("exact", [True, False])
def test_mcnemar_is_statsmodels(only_a, only_b, exact):
    a = np.repeat([1, 0, 1, 0], [only_a, only_b, 9, 4]).astype(bool)
    b = np.repeat([0, 1, 1, 0], [only_a, only_b, 9, 4]).astype(bool)
    got = significance.mcnemar(a, b, exact=exact)
    want = contingency_tables.mcnemar([[9, only_a], [only_b, 4]], exact=exact)
    if only_a == only_b and not exact:
        assert got.p == 1  # Edwards' correction stops at 0; theirs goes beyond
    else:
        np.testing.assert_allclose(got.p, want.pvalue, rtol=1e-9)
