"""Curves of verification, and single numbers read off them.

One law: a pair is accepted when `score >= threshold`; a higher score is closer; tied
scores stand or fall together.

    far, tar, threshold = roc(scores, same)
    tar, threshold = tar_at_far(scores, same, far=1e-4)
    fnmr, _ = fnmr_at_fmr(scores, same, fmr=0)                # ZeroFMR
    auc(scores, same), eer(scores, same), d_prime(scores, same)
"""

from __future__ import annotations

import math

import numpy as np

Points = tuple[np.ndarray, np.ndarray, np.ndarray]


def roc(scores: np.ndarray, same: np.ndarray) -> Points:
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
    genuine, impostor = parts(scores, same)
    levels = np.unique(np.concatenate([genuine, impostor]))
    tp, fp = (len(of) - np.searchsorted(of, levels) for of in (genuine, impostor))
    return rates(tp, fp, levels)


def rates(genuine: np.ndarray, impostor: np.ndarray, levels: np.ndarray) -> Points:
    """Turn counts of acceptance [M] at rising thresholds `levels` [M] into a ROC.

    Everything is accepted at the lowest level; `roc` says what is returned.
    """
    far, tar = (np.append(n, 0)[::-1] / n[0] for n in (impostor, genuine))
    return far, tar, np.append(levels, np.inf)[::-1]


def det(scores: np.ndarray, same: np.ndarray) -> Points:
    """Compute the detection error tradeoff: (FMR, FNMR, threshold), as `roc` does.

    Martin et al. 1997; drawn on logarithmic axes.
    """
    far, tar, threshold = roc(scores, same)
    return far, 1 - tar, threshold


def auc(scores: np.ndarray, same: np.ndarray) -> float:
    """Compute the area under the ROC; ties count one half (Mann-Whitney U)."""
    return area(*roc(scores, same)[:2])


def area(far: np.ndarray, tar: np.ndarray) -> float:
    """Compute the area under the polyline of a ROC."""
    return float(np.trapezoid(tar, far))


def eer(scores: np.ndarray, same: np.ndarray) -> float:
    """Compute the equal error rate: where the ROC polyline meets FAR = 1 - TAR."""
    return equal_error(*roc(scores, same)[:2])


def equal_error(far: np.ndarray, tar: np.ndarray) -> float:
    """Compute the equal error rate of a ROC."""
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
    check_far(far)
    return _tar_at(scores, same, far)


def at(curve: Points, far: float) -> tuple[float, float]:
    """Return what `tar_at_far` does, of a ROC that is known."""
    fars, tars, thresholds = curve
    last = int(np.searchsorted(fars, far, side="right")) - 1
    return float(tars[last]), float(thresholds[last])


def check_far(far: float, impostors: float = math.inf) -> None:
    """Refuse a false accept rate that is none, or that so few impostors cannot show."""
    if not 0 < far < 1:
        raise ValueError(f"far={far} is not a rate in (0, 1)")
    if far < 1 / impostors:
        raise ValueError(
            f"far={far:g} needs at least {math.ceil(1 / far)} impostor pairs, got"
            f" {impostors}; ask for a higher far or bring more impostors"
        )


def fnmr_at_fmr(
    scores: np.ndarray, same: np.ndarray, *, fmr: float
) -> tuple[float, float]:
    """Compute the false non-match rate at a false match rate.

    FMR100 is that at fmr=0.01, FMR1000 at 0.001, and ZeroFMR at 0: the lowest FNMR
    without a false match. Arguments, threshold and errors are those of `tar_at_far`,
    but that `fmr` may be 0.

    Maio et al. 2002 (FVC2000), section 4.2.
    """
    if not 0 <= fmr < 1:
        raise ValueError(f"fmr={fmr} is not a rate in [0, 1)")
    tar, threshold = _tar_at(scores, same, fmr)
    return 1 - tar, threshold


def _tar_at(scores: np.ndarray, same: np.ndarray, far: float) -> tuple[float, float]:
    """Return (tar, threshold) with only the highest impostors put in order."""
    scores, same = checked(scores, same)
    genuine, impostor = scores[same], scores[~same]
    n = len(impostor)
    if far > 0:
        check_far(far, n)
    allowed = int(far * n) + 1
    while allowed / n > far:  # 0.29 * 100 is below 29: the quotient decides
        allowed -= 1
    # the best impostor that must not pass; all impostors above it may
    bar = np.partition(impostor, n - 1 - allowed)[n - 1 - allowed]
    # every score beyond it has a FAR within the target, so the lowest is the threshold
    passed = genuine > bar
    beyond = np.concatenate([genuine[passed], impostor[impostor > bar]])
    return float(passed.mean()), float(beyond.min(initial=np.inf))


def d_prime(scores: np.ndarray, same: np.ndarray) -> float:
    """Compute how far genuine and impostor scores lie apart, in their deviations.

    Raises:
        ValueError: if neither kind of scores varies.

    Daugman 2000, eq. (2): |mu_1 - mu_2| / sqrt((sigma_1^2 + sigma_2^2) / 2).
    """
    genuine, impostor = parts(scores, same)
    spread = math.sqrt((genuine.var() + impostor.var()) / 2)
    if not spread > 0:
        raise ValueError("d' of scores that do not vary; wanted two values or more")
    return float(abs(genuine.mean() - impostor.mean()) / spread)


def precision_recall(scores: np.ndarray, same: np.ndarray) -> Points:
    """Compute (precision, recall, threshold), each [M], the highest score first.

    Raises:
        ValueError: as `roc` does.
    """
    genuine, impostor = parts(scores, same)
    levels = np.unique(np.concatenate([genuine, impostor]))[::-1]
    right, wrong = (len(of) - np.searchsorted(of, levels) for of in (genuine, impostor))
    return right / (right + wrong), right / len(genuine), levels


def average_precision(scores: np.ndarray, same: np.ndarray) -> float:
    """Compute the precision averaged over recall: sum_n (R_n - R_(n-1)) P_n.

    No interpolation between points, which would be too kind (Davis, Goadrich 2006).
    """
    precision, recall, _ = precision_recall(scores, same)
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def parts(scores: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (genuine, impostor) scores, each sorted, from checked arrays."""
    scores, same = checked(scores, same)
    return np.sort(scores[same]), np.sort(scores[~same])


def checked(
    scores: np.ndarray, same: np.ndarray, *, classes: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Return float64 scores and bool labels, or say what is wrong with them.

    Args:
        scores: [N].
        same: [N].
        classes: whether both kinds of pairs must be there.
    """
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
