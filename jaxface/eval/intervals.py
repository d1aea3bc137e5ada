"""Intervals of rates: what a sample of independent trials allows to say.

One law: an interval holds its own estimate, stays within [0, 1], and says nothing
where nothing was counted.

    tar = rate(970, 1000)                     # Rate(0.97, 0.957..., 0.978...)
    scalars |= tar.named("tar@far=1e-3")      # three scalars
    low, high = wilson(hits, trials)          # arrays broadcast
"""

from __future__ import annotations

import statistics
from typing import NamedTuple

import numpy as np


class Rate(NamedTuple):
    """A rate in [0, 1] and the ends of its interval."""

    value: float
    low: float
    high: float

    def named(self, name: str) -> dict[str, float]:
        """Return the three as scalars `name`, `name_low`, `name_high`."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


class Difference(NamedTuple):
    """A difference of two rates in [-1, 1], the ends of its interval, and its p.

    Attributes:
        value, low, high: of the first less the second.
        p: two-sided, of no difference.
    """

    value: float
    low: float
    high: float
    p: float


def rate(successes: int, n: int, *, level: float = 0.95) -> Rate:
    """Return successes / n with its Wilson interval; 0 in [0, 1] where n is 0."""
    low, high = wilson(successes, n, level=level)
    return Rate(successes / n if n else 0.0, float(low), float(high))


def wilson(
    successes: float | np.ndarray, n: float | np.ndarray, *, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Return the score interval of a binomial proportion.

    Args:
        successes: how many of n trials succeeded; arrays broadcast.
        n: independent trials, or of how many others are worth; with none, nothing is
            known and [0, 1] is returned.
        level: confidence in (0, 1).

    Returns:
        (low, high) in [0, 1], of the shape of the arguments.

    Raises:
        ValueError: if not 0 <= successes <= n, or `level` is outside (0, 1).

    Wilson 1927; the form of Brown, Cai, DasGupta 2001, eq. (4).
    """
    k, n = np.broadcast_arrays(np.asarray(successes), np.asarray(n))
    wrong = (k < 0) | (k > n)
    if wrong.any():
        raise ValueError(f"{k[wrong][0]} successes in {n[wrong][0]} trials")
    z2 = normal_quantile(level) ** 2
    p = k / np.maximum(n, 1)
    centre = (k + z2 / 2) / (n + z2)
    half = np.sqrt(z2 * (n * p * (1 - p) + z2 / 4)) / (n + z2)
    # at the ends the bound is 0 or 1 exactly; rounding must not exclude p
    low = np.maximum(0.0, np.minimum(centre - half, p))
    high = np.minimum(1.0, np.maximum(centre + half, p))
    return np.where(k == 0, 0.0, low), np.where(k == n, 1.0, high)


def normal_quantile(level: float) -> float:
    """Return z with P(|Z| <= z) = level for a standard normal Z.

    Raises:
        ValueError: if `level` is outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level={level} is not a confidence in (0, 1)")
    return statistics.NormalDist().inv_cdf((1 + level) / 2)
