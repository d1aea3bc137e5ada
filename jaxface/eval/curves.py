"""Curves of verification, and single numbers read off them.

One law: a pair is accepted when `score >= threshold`; a higher score is closer; tied
scores stand or fall together.

    far, tar, threshold = roc(scores, same)
    tar, threshold = tar_at_far(scores, same, far=1e-2)
    auc(scores, same), eer(scores, same)
"""

from __future__ import annotations

import math

import numpy as np


def roc(
    scores: np.ndarray, same: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the receiver operating characteristic, one point per distinct score.

    Args:
        scores: [N] similarity, higher is closer.
        same: [N] bool, True for a genuine pair.

    Returns:
        (far, tar, threshold), each [M + 1]: rates of accepting `score >= threshold`,
        from (0, 0) at threshold infinity to (1, 1) at the lowest score.

    Raises:
        ValueError: on scores that are not finite, or one class only.
    """
    scores, same = checked(scores, same)
    threshold, group = np.unique(-scores, return_inverse=True)  # best score first
    accepts = [np.bincount(group[of], minlength=len(threshold)) for of in (~same, same)]
    far, tar = (np.append(0, np.cumsum(n)) / n.sum() for n in accepts)
    return far, tar, np.append(np.inf, -threshold)


def auc(scores: np.ndarray, same: np.ndarray) -> float:
    """Compute the area under the ROC; ties count one half (Mann-Whitney U)."""
    far, tar, _ = roc(scores, same)
    return float(np.trapezoid(tar, far))


def eer(scores: np.ndarray, same: np.ndarray) -> float:
    """Compute the equal error rate: where the ROC polyline meets FAR = 1 - TAR."""
    far, tar, _ = roc(scores, same)
    # every ROC step raises far or tar, so far + tar - 1 increases strictly
    return float(np.interp(0.0, far + tar - 1, far))


def tar_at_far(
    scores: np.ndarray, same: np.ndarray, *, far: float
) -> tuple[float, float]:
    """Compute the true accept rate at a false accept rate.

    Args:
        scores: [N] similarity, higher is closer.
        same: [N] bool, True for a genuine pair.
        far: target rate in (0, 1).

    Returns:
        (tar, threshold): the accept rate and the lowest score that keeps FAR <= far;
        (0, inf) where no score does, because too many impostors tie at the top.

    Raises:
        ValueError: if `far` is outside (0, 1), or below 1/impostors, where no
            impostor could be accepted and the rate would say nothing about FAR.

    Protocol of IJB-C, Maze et al. 2018.
    """
    if not 0 < far < 1:
        raise ValueError(f"far={far} is not a rate in (0, 1)")
    impostors = int(np.sum(~np.asarray(same, bool)))
    if impostors == 0 or far < 1 / impostors:
        raise ValueError(
            f"far={far:g} needs at least {math.ceil(1 / far)} impostor pairs, got"
            f" {impostors}; ask for a higher far or bring more impostors"
        )
    fars, tars, thresholds = roc(scores, same)
    last = int(np.searchsorted(fars, far, side="right")) - 1
    return float(tars[last]), float(thresholds[last])


def checked(
    scores: np.ndarray, same: np.ndarray, *, classes: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Return float64 scores and bool labels, or say what is wrong with them."""
    scores, same = np.asarray(scores, np.float64), np.asarray(same, bool)
    if scores.ndim != 1 or scores.shape != same.shape or not len(scores):
        raise ValueError(
            f"scores {scores.shape} and same {same.shape}; wanted [N], [N]"
        )
    if not np.isfinite(scores).all():
        bad = int(np.sum(~np.isfinite(scores)))
        raise ValueError(f"{bad} of {len(scores)} scores are not finite")
    if classes and (same.all() or not same.any()):
        raise ValueError(
            f"{int(same.sum())} genuine of {len(same)} pairs; a curve"
            " needs genuine and impostor pairs"
        )
    return scores, same
