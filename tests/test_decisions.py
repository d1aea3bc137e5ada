import numpy as np
import pytest
from samples import draw
from sklearn import metrics as sklearn_metrics

from jaxface.eval import decisions


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


@pytest.mark.parametrize("threshold", [-2, -0.1, 0.2, 0.5, 2])
def test_accuracy_and_mcc_at_a_threshold_are_sklearns(threshold):
    scores, same = draw(8)
    decided = scores >= threshold
    counts = decisions.confusion(decided, same)
    want = sklearn_metrics.matthews_corrcoef(same, decided)
    np.testing.assert_allclose(decisions.mcc(counts), want, atol=1e-12)
    rate = decisions.accuracy(counts)
    assert rate.value == sklearn_metrics.accuracy_score(same, decided)
    assert rate.low < rate.value < rate.high


def test_mcc_of_billions_does_not_overflow():
    n = 3 * 10**9
    assert decisions.mcc(decisions.Confusion(n, 0, n, 0)) == 1
    assert decisions.mcc(decisions.Confusion(0, n, 0, n)) == -1


def test_decisions_and_truths_of_different_number_are_refused():
    with pytest.raises(ValueError, match=r"\(3,\) decisions for \(4,\) truths"):
        decisions.confusion(np.ones(3), np.ones(4))
