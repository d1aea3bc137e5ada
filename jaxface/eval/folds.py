"""Accuracy over folds: the threshold is chosen on the others.

One law: no pair is judged by a threshold that saw it, unless there is one fold only.

    found = kfold_accuracy(cos, same, fold)
    found.mean, found.accuracy, found.threshold
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxface.eval import curves

# insightface's grid of squared distances, arcface_torch eval/verification.py
DISTANCES = np.arange(0, 4, 0.01)


class KFold(NamedTuple):
    """What `kfold_accuracy` found.

    Attributes:
        mean, std: of the K held-out accuracies; std divides by K, as NumPy does.
        accuracy: [K] held-out accuracy of each fold.
        threshold: [K] cosine above which the fold's pairs were accepted.
        accepted: [N] bool, the held-out decision on each pair.
        correct: [N] bool, whether that decision was right.
    """

    mean: float
    std: float
    accuracy: np.ndarray
    threshold: np.ndarray
    accepted: np.ndarray
    correct: np.ndarray


def kfold_accuracy(scores: np.ndarray, same: np.ndarray, fold: np.ndarray) -> KFold:
    """Measure accuracy with the threshold chosen on the other folds.

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
    fold = np.asarray(fold)
    sizes = np.bincount(fold, minlength=1)
    if fold.shape != same.shape or not sizes.all():
        raise ValueError(
            f"fold: {fold.shape} ids with sizes {sizes.tolist()}; wanted"
            f" one id per pair {same.shape}, from 0 and none left out"
        )
    distance = 2 - 2 * scores
    right = np.stack(
        [_right(distance[fold == k], same[fold == k]) for k in range(len(sizes))]
    )  # [K, T]
    others = right.sum(axis=0, keepdims=True) - right if len(sizes) > 1 else right
    best = np.argmax(others, axis=1)  # the first of equals, as the reference
    accuracy = right[np.arange(len(sizes)), best] / sizes
    accepted = distance < DISTANCES[best][fold]
    return KFold(
        mean=float(accuracy.mean()),
        std=float(accuracy.std()),
        accuracy=accuracy,
        threshold=1 - DISTANCES[best] / 2,
        accepted=accepted,
        correct=accepted == same,
    )


def _right(distance: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Count right decisions at every threshold, [T]."""
    genuine, impostor = (
        np.searchsorted(np.sort(distance[of]), DISTANCES, side="left")
        for of in (same, ~same)
    )
    return genuine + np.sum(~same) - impostor
