"""Accuracy over folds: the threshold is chosen on the others.

One law: no pair is judged by a threshold that saw it, unless there is one fold only.

    found = kfold_accuracy(cos, same, fold)      # insightface's grid of thresholds
    found = view2(cos, same, fold)               # LFW's own text
    found.mean, found.standard_error, found.threshold
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from jaxface.eval import curves

# insightface's grid of squared distances, arcface_torch eval/verification.py
DISTANCES = np.arange(0, 4, 0.01)


class KFold(NamedTuple):
    """Accuracy over K folds.

    Attributes:
        mean, std: of the K held-out accuracies; std divides by K, as NumPy does.
        standard_error: of the mean: the deviation that divides by K - 1, over sqrt(K);
            NaN for one fold.
        accuracy: [K] held-out accuracy of each fold.
        threshold: [K] cosine that parts the fold's pairs.
        accepted: [N] bool, the held-out decision on each pair.
        correct: [N] bool, whether that decision was right.
    """

    mean: float
    std: float
    standard_error: float
    accuracy: np.ndarray
    threshold: np.ndarray
    accepted: np.ndarray
    correct: np.ndarray


def kfold_accuracy(scores: np.ndarray, same: np.ndarray, fold: np.ndarray) -> KFold:
    """Measure accuracy with the threshold chosen on the other folds, from a grid.

    The protocol of LFW View 2 as insightface computes it (arcface_torch
    eval/verification.py): squared distance d = 2 - 2 cos of unit embeddings,
    thresholds `DISTANCES`, accepted when d < threshold; per fold the first threshold
    that is best on all other folds. With one fold, as there, the threshold is
    chosen on the pairs it is measured on.

    Args:
        scores: [N] cosine in [-1, 1].
        same: [N] bool, True for a genuine pair.
        fold: [N] ids 0 .. K - 1; contiguous equal blocks give insightface's folds.

    Returns:
        A `KFold`. A pair's cosine above `1 - threshold / 2` is the same decision.

    Raises:
        ValueError: on scores that are not cosines, or a fold without pairs.
    """
    scores, same = curves.checked(scores, same, classes=False)
    if np.max(np.abs(scores)) > 1 + 1e-6:
        raise ValueError(f"scores reach {np.max(np.abs(scores)):g}; wanted cosines")
    fold = _folds(fold, same)
    distance = 2 - 2 * scores
    best = _best(distance, same, fold, DISTANCES, side="left")
    accepted = distance < DISTANCES[best][fold]
    return _result(accepted, same, fold, threshold=1 - DISTANCES[best] / 2)


def view2(scores: np.ndarray, same: np.ndarray, fold: np.ndarray) -> KFold:
    """Measure accuracy as the text of LFW defines it for View 2.

    Each fold is judged by the threshold of highest accuracy on all other folds, out of
    every score they have (accepted at and above it) and infinity; among equals by the
    highest. The estimate is the mean over folds with its standard error.

    Args:
        scores: [N] similarity, higher is closer, of any range.
        same: [N] bool, True for a genuine pair.
        fold: [N] ids 0 .. K - 1.

    Raises:
        ValueError: on scores that are not finite, or a fold without pairs.

    Huang et al. 2007, section IV, equations of the mean accuracy and its error.
    """
    scores, same = curves.checked(scores, same, classes=False)
    fold = _folds(fold, same)
    # Thresholds fall as distances rise. Scores of the fold itself are candidates too,
    # but decide the others as the next score above does, and that comes first.
    levels = np.append(-np.inf, np.unique(-scores))
    best = _best(-scores, same, fold, levels, side="right")
    threshold = -levels[best]
    return _result(scores >= threshold[fold], same, fold, threshold=threshold)


def _folds(fold: np.ndarray, same: np.ndarray) -> np.ndarray:
    fold = np.asarray(fold)
    sizes = np.bincount(fold, minlength=1)
    if fold.shape != same.shape or not sizes.all():
        raise ValueError(
            f"fold: {fold.shape} ids with sizes {sizes.tolist()}; wanted"
            f" one id per pair {same.shape}, from 0 and none left out"
        )
    return fold


def _best(
    distance: np.ndarray,
    same: np.ndarray,
    fold: np.ndarray,
    levels: np.ndarray,
    *,
    side: Literal["left", "right"],
) -> np.ndarray:
    """Return for each fold the first level [K] that is best on the other folds.

    A distance is accepted below a level; with side="right" also at it.
    """
    K = int(fold.max()) + 1
    right = np.empty((K, len(levels)), np.int32)
    for k in range(K):
        genuine, impostor = (
            np.searchsorted(np.sort(distance[of & (fold == k)]), levels, side=side)
            for of in (same, ~same)
        )
        right[k] = genuine + np.sum(~same & (fold == k)) - impostor
    others = right.sum(axis=0, keepdims=True) - right if K > 1 else right
    return np.argmax(others, axis=1)


def _result(
    accepted: np.ndarray, same: np.ndarray, fold: np.ndarray, *, threshold: np.ndarray
) -> KFold:
    correct, K = accepted == same, len(threshold)
    accuracy = np.bincount(fold, correct) / np.bincount(fold)
    return KFold(
        mean=float(accuracy.mean()),
        std=float(accuracy.std()),
        standard_error=float(accuracy.std(ddof=1) / K**0.5) if K > 1 else float("nan"),
        accuracy=accuracy,
        threshold=threshold,
        accepted=accepted,
        correct=correct,
    )
