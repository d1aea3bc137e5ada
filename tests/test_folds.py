import numpy as np
import oracles_metrics as oracles
import pytest
from samples import draw
from sklearn.model_selection import KFold

from jaxface.eval import folds


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


@pytest.mark.parametrize("decimals", [6, 1])
@pytest.mark.parametrize("many", [1, 2, 7])
def test_view2_tries_every_score_of_the_other_folds(decimals, many):
    scores, same = draw(6, 70, decimals=decimals)
    fold = np.arange(70) % many
    found = folds.view2(scores, same, fold)
    accuracy, threshold = oracles.view2(scores, same, fold)
    np.testing.assert_array_equal(found.accuracy, accuracy)
    np.testing.assert_array_equal(found.threshold, threshold)
    assert found.mean == np.mean(accuracy)
    np.testing.assert_array_equal(found.accepted, scores >= np.array(threshold)[fold])


def test_view2_by_hand():
    # fold 0: .9 .6 | .5 .2; fold 1: .8 .3 | .7 .1 (genuine | impostor)
    scores = np.array([0.9, 0.6, 0.5, 0.2, 0.8, 0.3, 0.7, 0.1])
    same, fold = np.array([1, 1, 0, 0] * 2, bool), np.arange(8) // 4
    found = folds.view2(scores, same, fold)
    # fold 1 is best parted at .8 and above, which costs fold 0 its .6; fold 0 at .6
    assert found.threshold.tolist() == [0.8, 0.6]
    assert found.accuracy.tolist() == [0.75, 0.5]
    # deviations of 1/8 each: sqrt(2 / 64 / 1) / sqrt(2)
    assert found.standard_error == pytest.approx(0.125)


def test_view2_knows_only_the_order_of_scores():
    scores, same = draw(7)
    fold = np.arange(200) % 10
    a, b = (folds.view2(x, same, fold) for x in (scores, np.exp(9 * scores) - 40))
    np.testing.assert_array_equal(a.correct, b.correct)


def test_view2_of_constant_scores_is_chance():
    same = np.arange(40) % 2 == 0
    found = folds.view2(np.zeros(40), same, np.arange(40) // 4)
    assert (found.mean, found.standard_error) == (0.5, 0)
    assert np.isinf(found.threshold).all()  # among equals the highest
    one = folds.view2(np.zeros(40), same, np.zeros(40, int))
    assert np.isnan(one.standard_error)
