import functools

import numpy as np
import pytest
from samples import draw

from jaxface.eval import curves, histogram


@pytest.mark.parametrize("bits", [3, 16])
def test_counts_are_the_metrics_of_scores_rounded_down(bits):
    scores, same = draw(0, 500)
    counts = histogram.empty(bits=bits).add(scores, same)
    grid = np.floor(scores * 2**bits) / 2**bits
    for got, want in zip(counts.roc(), curves.roc(grid, same), strict=True):
        np.testing.assert_array_equal(got, want)
    assert counts.auc() == curves.auc(grid, same)
    assert counts.eer() == curves.eer(grid, same)
    for far in (0.01, 0.1, 0.5):
        assert counts.tar_at_far(far) == curves.tar_at_far(grid, same, far=far)


def test_rates_at_the_thresholds_are_those_of_the_scores_themselves():
    scores, same = draw(1, 500)
    counts = histogram.empty(bits=5).add(scores, same)
    for far, tar, threshold in zip(*counts.roc(), strict=True):
        assert far == np.mean(scores[~same] >= threshold)
        assert tar == np.mean(scores[same] >= threshold)


def test_neither_order_nor_parts_matter():
    scores, same = draw(2, 300)
    whole = histogram.empty().add(scores, same)
    parts = [
        histogram.empty().add(scores[of], same[of])
        for of in np.array_split(np.random.default_rng(0).permutation(300), 4)
    ]
    merged = functools.reduce(histogram.Counts.merge, parts)
    np.testing.assert_array_equal(merged.genuine, whole.genuine)
    np.testing.assert_array_equal(merged.impostor, whole.impostor)
    assert whole.genuine.sum() == same.sum()


def test_a_score_on_a_threshold_is_accepted_there():
    counts = histogram.empty(bits=2).add([-1, 0.25, 0.5, 1], [0, 0, 1, 1])
    far, tar, threshold = counts.roc()
    assert threshold.tolist() == [np.inf, 1, 0.5, 0.25, -1]
    assert (far.tolist(), tar.tolist()) == ([0, 0, 0, 0.5, 1], [0, 0.5, 1, 1, 1])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda c: c.add([1.1], [1]), "reach 1.1; wanted cosines"),
        (lambda c: c.add([np.nan], [1]), "1 of 1 scores"),
        (lambda c: c.add([0.5], [1]).roc(), "1 genuine and 0 impostor"),
        (lambda c: c.add([0.5], [0]).tar_at_far(0.1), "10 impostor pairs, got 1"),
        (lambda c: c.merge(histogram.empty(bits=4)), "grids of 2"),
        (lambda c: histogram.empty(bits=30), "bits=30"),
    ],
)
def test_what_cannot_be_counted_is_said(call, words):
    with pytest.raises(ValueError, match=words):
        call(histogram.empty(bits=3))
