"""The area under the ROC with its variance, and two areas on the same pairs.

One law: every pair's part in the area is its own rank among the other kind, from which
the variance follows without drawing a sample.

    found = auc(scores, same)                       # Rate(value, low, high)
    found = auc_difference(ours, theirs, same)      # Difference(value, low, high, p)

Pairs are taken as independent; where they share people, `bootstrap.people_auc`.
"""

from __future__ import annotations

import math

import numpy as np

from jaxface.eval import curves, intervals


def auc(scores: np.ndarray, same: np.ndarray, *, level: float = 0.95) -> intervals.Rate:
    """Compute the area under the ROC and its interval on the logit scale.

    Args:
        scores: [N] similarity, higher is closer.
        same: [N] bool, True for a genuine pair.
        level: confidence in (0, 1).

    Returns:
        (value, low, high). The interval is never narrower than Wilson's for as many
        trials as the smaller kind has pairs would be at value 0 or 1: the ranks of
        separated kinds do not vary, yet their number is finite.

    Raises:
        ValueError: on scores that are not finite, or one class only.

    DeLong, DeLong, Clarke-Pearson 1988; the logit of Pepe 2003, section 5.2.
    """
    scores, same = curves.checked(scores, same)
    return interval(*influence(scores, same), same, level=level)


def interval(
    value: float, parts: np.ndarray, same: np.ndarray, *, level: float = 0.95
) -> intervals.Rate:
    """Return `auc` of an area and its parts from `influence`."""
    error = math.sqrt(_variance(parts, parts, same))
    return on_logit(
        value, error * intervals.normal_quantile(level), _fewest(same), level
    )


def auc_difference(
    a: np.ndarray, b: np.ndarray, same: np.ndarray, *, level: float = 0.95
) -> intervals.Difference:
    """Compare the areas of two models on the same pairs.

    Args:
        a: [N] similarity of one model; only its order counts.
        b: [N] similarity of the other.
        same: [N] bool, True for a genuine pair.
        level: confidence in (0, 1).

    Returns:
        The area of a minus that of b, its interval, and the two-sided p of no
        difference; p is 1 where the models rank every pair alike.

    Raises:
        ValueError: as `auc` does, for either.

    DeLong, DeLong, Clarke-Pearson 1988, eq. (5) and what follows.
    """
    (value_a, part_a), (value_b, part_b) = (
        influence(*curves.checked(s, same)) for s in (a, b)
    )
    value, parts = value_a - value_b, part_a - part_b
    error = math.sqrt(_variance(parts, parts, np.asarray(same, bool)))
    half = error * intervals.normal_quantile(level)
    p = math.erfc(abs(value) / error / math.sqrt(2)) if error else float(value == 0)
    return intervals.Difference(value, max(-1, value - half), min(1, value + half), p)


def influence(scores: np.ndarray, same: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the area, and what each pair adds to its deviation [N], before weights.

    A genuine pair's part is the share of impostors below it (ties count one half), an
    impostor's the share of genuine pairs above it, both less the area.
    """
    genuine, impostor = np.sort(scores[same]), np.sort(scores[~same])
    parts = np.empty(len(scores))
    for of, others, sign in ((same, impostor, 1), (~same, genuine, -1)):
        below, upto = (
            np.searchsorted(others, scores[of], side) for side in ("left", "right")
        )
        share = (below + upto) / (2 * len(others))
        parts[of] = share if sign > 0 else 1 - share
    value = float(parts[same].mean())
    return value, parts - value


def on_logit(value: float, half: float, n: int, level: float) -> intervals.Rate:
    """Put an interval of half width `half` on the logit scale, around an area.

    Args:
        value: the area.
        half: half the width on its own scale.
        n: trials that the area counts as, at the ends of the scale.
        level: confidence in (0, 1).
    """
    if not 0 < value < 1:
        return intervals.rate(n if value else 0, n, level=level)
    middle, half = math.log(value / (1 - value)), half / (value * (1 - value))
    low, high = (0.5 + 0.5 * math.tanh((middle + e) / 2) for e in (-half, half))
    return intervals.Rate(value, low, high)


def _variance(a: np.ndarray, b: np.ndarray, same: np.ndarray) -> float:
    return float(
        sum((a[of] @ b[of]) / max(of.sum() - 1, 1) / of.sum() for of in (same, ~same))
    )


def _fewest(same: np.ndarray) -> int:
    return int(min(np.sum(same), np.sum(~same)))
