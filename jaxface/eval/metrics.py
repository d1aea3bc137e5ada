"""Verification and classification metrics from scores and labels alone.

One law: a pair is accepted when `score >= threshold`, a higher score is closer, and
every rate can be given with the interval its sample allows. NumPy only, exact on
ties, deterministic.

    far, tar, threshold = roc(scores, same)
    tar, threshold = tar_at_far(scores, same, far=1e-2)
    found = kfold_accuracy(cos, same, fold)
    low, high = people_interval(found.correct, people)
"""

from __future__ import annotations

import math
import statistics
from typing import NamedTuple

import numpy as np

# insightface's grid of squared distances, arcface_torch eval/verification.py
DISTANCES = np.arange(0, 4, 0.01)


class Confusion(NamedTuple):
    """Counts of decisions: true/false positives and negatives."""

    tp: int
    fp: int
    tn: int
    fn: int


class Rate(NamedTuple):
    """A rate in [0, 1] and the ends of its interval."""

    value: float
    low: float
    high: float

    def named(self, name: str) -> dict[str, float]:
        """Return the three as scalars `name`, `name_low`, `name_high`."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


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
    scores, same = _checked(scores, same)
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
    scores, same = _checked(scores, same, classes=False)
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


def confusion(decided: np.ndarray, truth: np.ndarray) -> Confusion:
    """Count decisions [N] bool against the truth [N] bool."""
    decided, truth = np.asarray(decided, bool), np.asarray(truth, bool)
    if decided.shape != truth.shape:
        raise ValueError(f"{decided.shape} decisions for {truth.shape} truths")
    return Confusion(
        tp=int(np.sum(decided & truth)),
        fp=int(np.sum(decided & ~truth)),
        tn=int(np.sum(~decided & ~truth)),
        fn=int(np.sum(~decided & truth)),
    )


def precision_recall_f1(
    counts: Confusion, *, level: float = 0.95
) -> tuple[Rate, Rate, Rate]:
    """Compute precision, recall and F1, each with its Wilson interval.

    F1 is no proportion, but given tp + fp + fn the Jaccard index J = tp / (tp + fp
    + fn) is one, and F1 = 2 J / (1 + J) grows with J: J's interval carries over.
    A rate with nothing to count is 0 with the interval [0, 1].
    """
    tp, fp, _, fn = counts
    jaccard = rate(tp, tp + fp + fn, level=level)
    return (
        rate(tp, tp + fp, level=level),
        rate(tp, tp + fn, level=level),
        Rate(*(2 * j / (1 + j) for j in jaccard)),
    )


def rate(successes: int, n: int, *, level: float = 0.95) -> Rate:
    """Return successes / n with its Wilson interval; 0 in [0, 1] where n is 0."""
    return Rate(successes / n if n else 0.0, *wilson(successes, n, level=level))


def wilson(successes: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Return the score interval of a binomial proportion.

    Args:
        successes: how many of n trials succeeded.
        n: independent trials; with none, nothing is known and [0, 1] is returned.
        level: confidence in (0, 1).

    Raises:
        ValueError: if not 0 <= successes <= n, or `level` is outside (0, 1).

    Wilson 1927; the form of Brown, Cai, DasGupta 2001, eq. (4).
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials")
    if not 0 < level < 1:
        raise ValueError(f"level={level} is not a confidence in (0, 1)")
    if n == 0:
        return 0.0, 1.0
    p, z2 = successes / n, statistics.NormalDist().inv_cdf((1 + level) / 2) ** 2
    centre = (successes + z2 / 2) / (n + z2)
    half = math.sqrt(z2 * n * (p * (1 - p) + z2 / (4 * n))) / (n + z2)
    # at the ends the bound is 0 or 1 exactly; rounding must not exclude p
    return max(0.0, min(centre - half, p)), min(1.0, max(centre + half, p))


def people_interval(
    correct: np.ndarray,
    people: np.ndarray,
    *,
    level: float = 0.95,
    replicates: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return an interval of a mean over pairs that share people.

    Pairs that share a person are not independent: one hard face spoils all of its
    pairs. So people are resampled, not pairs. A replicate draws a weight w_p for
    each person (multinomial, mean 1); a pair of one person weighs w_a, a pair of
    two w_a + w_b - 1, which is w_a w_b without the second-order noise. Its
    deviation from the mean is then sum_p (w_p - 1) t_p / N, with t_p the sum of the
    residuals of the pairs that touch p.

    The weights' variance counts each two-person pair's own residual at both of its
    ends: S = sum_p t_p^2 exceeds the dyadic cluster-robust variance by D, the
    two-person residuals squared. The deviations are scaled to the variance S - D,
    so only the shape is the bootstrap's. That variance is itself estimated from P
    people: each replicate divides by a draw of sqrt(chi2 / (P - 1)), which turns
    normal tails into Student's. The quantiles are taken on the logit scale, and
    the interval is never narrower than Wilson's at either end: pairs that share
    people tell no more than independent ones. It is meant for 30 people and more;
    with 20 the 95 % interval holds the truth in about 92 % of simulated samples.

    Args:
        correct: [N] bool (or 0/1), the outcome of each pair.
        people: [N, 2] person ids; equal ids make a pair of one person.
        level: confidence in (0, 1).
        replicates: bootstrap draws.
        seed: of the draws.

    Returns:
        (low, high) in [0, 1].

    Raises:
        ValueError: on shapes that do not match, or fewer than two people.

    S - D sums the products of residuals of all pairs that share a person: the
    estimator of Fafchamps, Gubert 2007 and Aronow, Samii, Assenova 2015.
    """
    correct, people = np.asarray(correct, bool), np.asarray(people)
    if correct.ndim != 1 or people.shape != (len(correct), 2):
        raise ValueError(
            f"people {people.shape} for {correct.shape} pairs; wanted [N, 2] for [N]"
        )
    ids, ends = np.unique(people, return_inverse=True)
    P = len(ids)
    if P < 2:
        raise ValueError(f"{P} people in {len(correct)} pairs; an interval needs two")
    low, high = wilson(int(correct.sum()), len(correct), level=level)

    ends = ends.reshape(-1, 2)
    mean = correct.mean()
    two = ends[:, 0] != ends[:, 1]
    residual = correct - mean
    t = np.bincount(ends[:, 0], residual, P)
    t += np.bincount(ends[two, 1], residual[two], P)  # [P]
    target = np.sum(t**2) - np.sum(residual[two] ** 2)  # S - D
    drawn = np.sum(t**2) - np.sum(t) ** 2 / P  # what multinomial weights give
    # the dyadic estimate may be negative in small samples: Wilson's then stands
    if min(target, drawn) <= 1e-9 * len(correct):
        return low, high

    rng = np.random.default_rng(seed)
    weights = rng.multinomial(P, np.full(P, 1 / P), replicates)  # [R, P]
    deviation = (weights @ t - t.sum()) * math.sqrt(target / drawn) / len(correct)
    deviation /= np.sqrt(rng.chisquare(P - 1, replicates) / (P - 1))
    # on the logit scale by the delta method, so that neither end leaves [0, 1]
    logit = math.log(mean / (1 - mean)) + deviation / (mean * (1 - mean))
    tails = np.quantile(logit, [(1 - level) / 2, (1 + level) / 2])
    below, above = 0.5 + 0.5 * np.tanh(tails / 2)
    return min(low, float(below)), max(high, float(above))


def _checked(
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
