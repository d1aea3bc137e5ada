"""How alike strangers are to a network: the threshold that few of them pass.

How few is measured, not assumed: images are compared with the centres of classes other
than their own, and what a search finds stands beside the number of false alarms that so
many comparisons would give.

The law: comparison is exact and its memory bounded, one block of cosines at a time.

    middle = class_centres(e, label, classes=C)                    # [C, D]
    sure = ~doubtful(middle, e, label)                             # [n]
    found = calibrate(middle, e[sure], label[sure], comparisons=1_000_000)
    found.threshold, found.expected(1_000_000)                     # cosine, alarms
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from jaxface.eval import intervals

_BLOCK = 4096  # rows of either side at a time: 64 MiB of cosines


@dataclasses.dataclass(frozen=True)
class Calibration:
    """A threshold, and how often strangers pass it.

    Attributes:
        threshold: the lowest cosine that is a match.
        strangers: comparisons of an image with the centre of another class.
        above: how many of them are matches.
    """

    threshold: float
    strangers: int
    above: int

    def expected(self, comparisons: int) -> float:
        """Return the false alarms to expect; by Bonferroni also a bound on P(any)."""
        return comparisons * self.above / self.strangers

    def bound(self, comparisons: int) -> float:
        """Return `expected` at the upper end of the rate's 95 % interval.

        Wilson's interval takes comparisons as independent; they share images, so it
        is wider in truth.
        """
        return float(comparisons * intervals.wilson(self.above, self.strangers)[1])


def class_centres(e: np.ndarray, label: np.ndarray, *, classes: int) -> np.ndarray:
    """Return every class's mean direction.

    Args:
        e: [n, D] embeddings of any length but zero.
        label: [n] int, 0 .. classes - 1.
        classes: C.

    Returns:
        [C, D] float32 of unit length; zero for a class without images.

    Raises:
        ValueError: on embeddings without a direction, or labels that do not fit.
    """
    label = _labels(label, e, classes)
    order = np.argsort(label, kind="stable")
    present, first = np.unique(label[order], return_index=True)
    out = np.zeros((classes, e.shape[1]), np.float32)
    ends = [*first[1:].tolist(), len(order)]
    # Class by class: a sorted copy of all embeddings would double the memory.
    for k, start, end in zip(present, first.tolist(), ends, strict=True):
        out[k] = unit(np.asarray(e[order[start:end]])).sum(0)
    length = np.linalg.norm(out, axis=1, keepdims=True)
    return out / np.maximum(length, np.float32(1e-12))


def doubtful(centres: np.ndarray, e: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Find images that are nearer to another class than to the rest of their own.

    Mostly wrong labels, whose likeness to the right class is no false alarm. Among
    them are also the strangers that the network itself confuses, so a threshold that
    is measured without them errs, if it errs, to the low side: say how many there are.

    Args:
        centres: [C, D], of these images, from `class_centres`.
        e: [n, D] all the images they were made from.
        label: [n] int, their classes.

    Returns:
        [n] bool; False for an image alone in its class, which nothing can judge.
    """
    label, C = _labels(label, e, len(centres)), len(centres)
    own, nearest = np.zeros(len(e)), np.full(len(e), -1.0)
    for i, j, block in blocks(e, centres):
        rows = slice(i, i + len(block))
        mine = label[rows, None] == np.arange(j, j + block.shape[1])[None, :]
        own[rows] += np.where(mine, block, 0.0).sum(1)
        nearest[rows] = np.maximum(nearest[rows], np.where(mine, -1.0, block).max(1))
    # The sum of a class's unit rows is as long as their cosines with it add up to;
    # so the centre without one of them follows from that one's cosine.
    size = np.bincount(label, weights=own, minlength=C)[label]
    others = np.sqrt(np.maximum(size**2 - 2 * size * own + 1, 1e-12))
    alone = np.bincount(label, minlength=C)[label] == 1
    return ~alone & ((size * own - 1) / others < nearest)


def calibrate(
    centres: np.ndarray,
    e: np.ndarray,
    label: np.ndarray,
    *,
    comparisons: int,
    alarms: float = 1.0,
) -> Calibration:
    """Choose the lowest threshold with at most so many false alarms expected.

    Wrong labels among `e` make it higher: a person under two labels looks like two
    strangers who are alike. Leave out what is `doubtful`.

    Args:
        centres: [C, D] from `class_centres`.
        e: [n, D] images of known class. To measure one alarm in so many comparisons
            takes as many comparisons with strangers, n (C - 1).
        label: [n] int, their classes.
        comparisons: how many will be searched.
        alarms: false alarms that may be expected among those.

    Raises:
        ValueError: nobody to compare with, or arrays that do not fit.
    """
    if comparisons < 1 or not alarms > 0:
        raise ValueError(
            f"comparisons={comparisons}, alarms={alarms}; wanted both above 0"
        )
    strangers = _strangers(centres, _labels(label, e, len(centres)))
    allowed = math.floor(alarms * strangers / comparisons)
    if allowed >= strangers:
        raise ValueError(
            f"alarms={alarms} in {comparisons} comparisons is a match for everybody;"
            " wanted fewer alarms"
        )
    highest = np.full(allowed + 1, -np.inf, np.float32)
    for scores in _between(centres, e, label):
        scores = np.concatenate([highest, scores[scores > highest[0]]])
        highest = np.sort(np.partition(scores, -allowed - 1)[-allowed - 1 :])
    threshold = float(np.nextafter(highest[0], np.float32(np.inf)))
    return Calibration(threshold, strangers, int((highest >= threshold).sum()))


def measure(
    centres: np.ndarray, e: np.ndarray, label: np.ndarray, *, threshold: float
) -> Calibration:
    """Count the strangers that pass a given threshold; arguments of `calibrate`."""
    strangers = _strangers(centres, _labels(label, e, len(centres)))
    passed = (int((s >= threshold).sum()) for s in _between(centres, e, label))
    return Calibration(threshold, strangers, sum(passed))


def blocks(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield (first row of a, first row of b, cosines of the blocks there).

    Args:
        a: [N, D], of any length; a zero row is like nothing.
        b: [M, D].

    Raises:
        ValueError: rows that are not finite, or of several sizes.
    """
    if np.ndim(a) != 2 or np.ndim(b) != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(
            f"cannot compare {np.shape(a)} with {np.shape(b)}; wanted [N, D] and"
            " [M, D], of one network"
        )
    for i in range(0, len(a), _BLOCK):
        left = unit(a[i : i + _BLOCK])
        for j in range(0, len(b), _BLOCK):
            yield i, j, left @ unit(b[j : j + _BLOCK]).T


def _between(
    centres: np.ndarray, e: np.ndarray, label: np.ndarray
) -> Iterator[np.ndarray]:
    """Yield the cosines of images and the centres of other classes that have any."""
    label = _labels(label, e, len(centres))
    some = np.any(centres, axis=1)
    for i, j, block in blocks(e, centres):
        columns = np.arange(j, j + block.shape[1])
        other = label[i : i + len(block), None] != columns[None, :]
        yield block[other & some[None, columns]]


def _strangers(centres: np.ndarray, label: np.ndarray) -> int:
    """Return how many cosines `_between` has in all."""
    some = np.any(centres, axis=1)
    count = int(some.sum()) * len(label) - int(some[label].sum())
    if not count:
        raise ValueError(
            f"{len(label)} images of {int(some.sum())} classes: nobody to compare with;"
            " wanted images of two classes or more"
        )
    return count


def _labels(label: np.ndarray, e: np.ndarray, classes: int) -> np.ndarray:
    label = np.asarray(label)
    if label.shape != (len(e),) or (len(e) and not 0 <= label.min() <= label.max()):
        raise ValueError(
            f"labels {label.shape} of {len(e)} embeddings; wanted [n] >= 0"
        )
    if len(e) and label.max() >= classes:
        raise ValueError(f"label {label.max()} of {classes} classes")
    return label


def unit(x: np.ndarray) -> np.ndarray:
    """Return rows of length 1, float32; a zero row stays zero.

    Raises:
        ValueError: rows that are not finite.
    """
    x = np.asarray(x, np.float32)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    if not np.isfinite(length).all():
        raise ValueError(
            f"{int((~np.isfinite(length)).sum())} of {len(x)} embeddings are not"
            " finite; the network has diverged, or images are broken"
        )
    return x / np.maximum(length, np.float32(1e-12))
