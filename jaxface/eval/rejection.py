"""Is a confidence worth anything? Errors left when the least sure are sent away.

One law: what is equally sure is rejected together, so no order within ties can flatter.

    x, y = error_against_reject(quality, wrong)      # share rejected, error of the rest
    area_under(x, y, most=0.3)
    found = calibration(probability, right)
    found.error                                      # expected calibration error
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxface.eval import intervals


class Calibration(NamedTuple):
    """How probabilities compare with what happened, in B bins.

    Attributes:
        error: expected calibration error in [0, 1].
        stated: [B] mean probability of a bin; NaN for an empty one.
        happened: [B] share of what came true; NaN for an empty one.
        low, high: [B] its 95 % interval.
        pairs: [B] int, how many.
    """

    error: float
    stated: np.ndarray
    happened: np.ndarray
    low: np.ndarray
    high: np.ndarray
    pairs: np.ndarray


def error_against_reject(
    quality: np.ndarray, wrong: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the error of what is left when the lowest quality is rejected.

    Args:
        quality: [N], higher is better; of a pair, the lower of its two images'.
        wrong: [N] bool, whether each is an error at a threshold fixed beforehand;
            false non-matches, where only genuine pairs are given.

    Returns:
        (share rejected [M], error rate of the rest [M]) from nothing rejected to all
        but the best quality; M is the number of distinct qualities.

    Raises:
        ValueError: on shapes that do not match, or qualities that are not finite.

    Grother, Tabassi 2007, section 3.
    """
    quality, wrong = np.asarray(quality, np.float64), np.asarray(wrong, bool)
    if quality.ndim != 1 or quality.shape != wrong.shape or not len(quality):
        raise ValueError(f"quality {quality.shape}, wrong {wrong.shape}; wanted [N]")
    if not np.isfinite(quality).all():
        bad = int(np.sum(~np.isfinite(quality)))
        raise ValueError(f"{bad} of {len(quality)} qualities are not finite")
    _, level = np.unique(quality, return_inverse=True)
    left, errors = (np.cumsum(np.bincount(level, w)[::-1])[::-1] for w in (None, wrong))
    return (len(quality) - left) / len(quality), errors / left


def area_under(x: np.ndarray, y: np.ndarray, *, most: float) -> float:
    """Compute the mean error over shares rejected from 0 to `most`.

    The curve is a stair: between two levels the error stays that of the lower share.

    Args:
        x: [M] rising shares rejected from 0, of `error_against_reject`.
        y: [M] errors.
        most: the largest share, in (0, 1].
    """
    if not 0 < most <= 1:
        raise ValueError(f"most={most} is not a share in (0, 1]")
    ends = np.minimum(np.append(x, 1.0), most)
    return float(np.sum(np.diff(ends) * y) / most)


def calibration(
    probability: np.ndarray, truth: np.ndarray, *, bins: int = 15
) -> Calibration:
    """Compare stated probabilities with what came true, in bins of equal width.

    Args:
        probability: [N] in [0, 1], that a pair is genuine; a cosine is none.
        truth: [N] bool.
        bins: B.

    Raises:
        ValueError: on shapes that do not match, or what is no probability.

    Guo et al. 2017, eq. (3).
    """
    p, truth = np.asarray(probability, np.float64), np.asarray(truth, bool)
    if p.ndim != 1 or p.shape != truth.shape or not len(p):
        raise ValueError(f"probability {p.shape}, truth {truth.shape}; wanted [N]")
    if not np.all((p >= 0) & (p <= 1)):
        raise ValueError(
            f"probabilities from {p.min():g} to {p.max():g}; wanted [0, 1]; calibrate"
            " scores first"
        )
    if bins < 1:
        raise ValueError(f"bins={bins}; wanted at least 1")
    at = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], p)
    count, right = (np.bincount(at[of], minlength=bins) for of in (slice(None), truth))
    total = np.bincount(at, p, minlength=bins)
    error = float(np.abs(right - total).sum() / len(p))
    some = np.where(count, np.maximum(count, 1), np.nan)
    low, high = intervals.wilson(right, count)
    return Calibration(error, total / some, right / some, low, high, count)
