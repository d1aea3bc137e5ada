"""Is one model better than another? Tests on the same pairs, or the same seeds.

One law: only what differs between the two tells; what both get right or wrong is left
out, and differences belong to one pair or one seed.

    mcnemar(correct_a, correct_b).p          # exact, pairs independent
    sign_flip([0.4, 0.1, 0.3])               # seeds
    bootstrap.people_difference(a, b, people) and delong.auc_difference(a, b, same)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MOST = 20  # differences whose 2^20 signs are all tried


class McNemar(NamedTuple):
    """Pairs that only one of two models got right, and the p of their imbalance.

    Attributes:
        only_a, only_b: so many pairs.
        p: two-sided, of both models being right equally often.
    """

    only_a: int
    only_b: int
    p: float


def mcnemar(a: np.ndarray, b: np.ndarray, *, exact: bool = True) -> McNemar:
    """Test whether two models are right equally often on the same pairs.

    Args:
        a: [N] bool, where one model is right.
        b: [N] bool, where the other is.
        exact: use the binomial distribution, else chi square with continuity
            correction, which needs some 25 discordant pairs.

    Returns:
        A `McNemar`; pairs are taken as independent.

    Raises:
        ValueError: on shapes that do not match.

    McNemar 1947; the correction of Edwards 1948.
    """
    a, b = np.asarray(a, bool), np.asarray(b, bool)
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        raise ValueError(f"outcomes {a.shape} and {b.shape}; wanted [N] and [N]")
    only_a, only_b = int(np.sum(a & ~b)), int(np.sum(b & ~a))
    n = only_a + only_b
    if not n:
        return McNemar(0, 0, 1.0)
    if exact:
        k = np.arange(1, min(only_a, only_b) + 1)
        # log of the binomial coefficients of 0 .. k, by their quotients
        logs = np.append(0.0, np.cumsum(np.log((n - k + 1) / k)))
        p = 2 * float(np.exp(logs - n * math.log(2)).sum())
    else:
        statistic = max(abs(only_a - only_b) - 1, 0) ** 2 / n
        p = math.erfc(math.sqrt(statistic / 2))
    return McNemar(only_a, only_b, min(p, 1.0))


def sign_flip(differences: Sequence[float]) -> float:
    """Test whether paired differences have mean zero, over all their signs.

    If neither model is better, each difference could as well have had the other sign:
    p is the share of the 2^n ways whose mean is as far from zero as the one seen.

    Args:
        differences: n of them, at most `MOST`, such as one a seed.

    Returns:
        The exact two-sided p, at least 2^(1 - n).

    Raises:
        ValueError: without differences, with more than `MOST`, or any not finite.

    Fisher 1935, section 21.
    """
    d = np.asarray(differences, np.float64)
    if d.ndim != 1 or not 1 <= len(d) <= MOST or not np.isfinite(d).all():
        raise ValueError(f"differences {d.tolist()}; wanted 1 to {MOST} finite numbers")
    sums = np.zeros(1)
    for x in d:
        sums = np.concatenate([sums + x, sums - x])
    # as far, but for the order that they were added in
    return float(np.mean(np.abs(sums) >= abs(d.sum()) - 1e-12 * np.abs(d).sum()))
