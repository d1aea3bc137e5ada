"""Accept or reject: counts of decisions against the truth, and rates of them.

One law: a pair is accepted when `score >= threshold`, and every rate comes with the
interval that its counts allow.

    counts = confusion(scores >= threshold, same)
    accuracy(counts), mcc(counts)
    precision, recall, f1 = precision_recall_f1(counts)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from jaxface.eval import intervals


class Confusion(NamedTuple):
    """Counts of decisions: true/false positives and negatives."""

    tp: int
    fp: int
    tn: int
    fn: int


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


def accuracy(counts: Confusion, *, level: float = 0.95) -> intervals.Rate:
    """Compute the share of right decisions with its Wilson interval."""
    return intervals.rate(counts.tp + counts.tn, sum(counts), level=level)


def precision_recall_f1(
    counts: Confusion, *, level: float = 0.95
) -> tuple[intervals.Rate, intervals.Rate, intervals.Rate]:
    """Compute precision, recall and F1, each with its Wilson interval.

    F1 is no proportion, but given tp + fp + fn the Jaccard index J = tp / (tp + fp
    + fn) is one, and F1 = 2 J / (1 + J) grows with J: J's interval carries over.
    A rate with nothing to count is 0 with the interval [0, 1].
    """
    tp, fp, _, fn = counts
    jaccard = intervals.rate(tp, tp + fp + fn, level=level)
    return (
        intervals.rate(tp, tp + fp, level=level),
        intervals.rate(tp, tp + fn, level=level),
        intervals.Rate(*(2 * j / (1 + j) for j in jaccard)),
    )


def mcc(counts: Confusion) -> float:
    """Compute Matthews' correlation of decisions and truth, in [-1, 1].

    0 where all decisions, or all truths, are one: nothing then varies together.

    Matthews 1975; Chicco, Jurman 2020, eq. (1).
    """
    tp, fp, tn, fn = counts
    # products of four counts pass 2^63; Python's integers do not mind
    spread = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return (tp * tn - fp * fn) / math.sqrt(spread) if spread else 0.0
