"""Who is in two sets: training people of a test set, or one person under two labels.

A match is a similarity that strangers hardly reach. How hardly is measured, not
assumed: images are compared with the centres of classes other than their own, and what
is found stands beside the number of false alarms that so many comparisons would give.

The law: search is exact and its memory bounded, one block of similarities at a time.

    middle = class_centres(e, label, classes=C)                    # [C, D]
    sure = ~doubtful(middle, e, label)                             # [n]
    found = calibrate(middle, e[sure], label[sure], comparisons=C * len(probes))
    matches = find(middle, probes, people, threshold=found.threshold)
    found.expected(C * len(probes)), len(matches)                  # alarms, matches
"""

from __future__ import annotations

import dataclasses
import math
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

from jaxface.eval import metrics

_BLOCK = 4096  # rows of either side at a time: 64 MiB of similarities
_MOST = 5_000_000  # matches kept; more is no finding but a threshold too low


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
        return comparisons * metrics.wilson(self.above, self.strangers)[1]


@dataclasses.dataclass(frozen=True)
class Match:
    """A training class that is taken for a person of the test set.

    Attributes:
        label: the class.
        person: the test person.
        similarity: cosine of the class's centre and the nearest of their images.
        image: which image that is.
        count: how many of their images are at or above the threshold.
    """

    label: int
    person: int
    similarity: float
    image: int
    count: int


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two classes, left < right, and the cosine of their centres."""

    left: int
    right: int
    similarity: float


@dataclasses.dataclass(frozen=True)
class Shared:
    """Classes that are taken for one person.

    Attributes:
        people: [C] int64, whom each class is; numbered by their first class.
        joined: the pairs that made it so, the most similar first.
        conflicts: pairs at or above the threshold that were not joined, and pairs of
            one set that were; a person should look at those.
    """

    people: np.ndarray
    joined: list[Pair]
    conflicts: list[Pair]


def normalised(name: str) -> str:
    """Return a name's letters and digits, without case and accents.

    "Abdel_Madi Shabneh" and "abdel-madi shabneh" are one; "José" is "jose".
    """
    apart = unicodedata.normalize("NFKD", name.casefold())
    return "".join(c for c in apart if c.isalnum())


def by_name(train: Sequence[str], test: Sequence[str]) -> list[tuple[int, int]]:
    """Return (class, person) of equal names, in order.

    A name without a letter (a number) names nobody and equals none.
    """
    places: dict[str, list[int]] = {}
    for person, name in enumerate(test):
        places.setdefault(normalised(name), []).append(person)
    return [
        (label, person)
        for label, name in enumerate(map(normalised, train))
        if any(c.isalpha() for c in name)
        for person in places.get(name, [])
    ]


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
        out[k] = _unit(np.asarray(e[order[start:end]])).sum(0)
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
    for i, j, block in _blocks(e, centres):
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


def find(
    centres: np.ndarray, probes: np.ndarray, people: np.ndarray, *, threshold: float
) -> list[Match]:
    """Find the training classes that are among the people of a test set.

    Args:
        centres: [C, D] from `class_centres`.
        probes: [n, D] the test images' embeddings, or centres of the test people.
        people: [n] int, whose they are.
        threshold: the lowest cosine of a match, above 0.

    Returns:
        One match for every class and person with an image at or above the threshold,
        the most similar first.

    Raises:
        ValueError: as `above`, or where people and probes do not fit.
    """
    people = np.asarray(people)
    if people.shape != (len(probes),):
        raise ValueError(f"people {people.shape} of {len(probes)} probes; wanted [n]")
    label, image, score = above(centres, probes, threshold=threshold)
    order = np.lexsort((image, -score, people[image], label))
    label, image, score = label[order], image[order], score[order]
    key = np.stack([label, people[image]], axis=1)
    _, first, count = np.unique(key, axis=0, return_index=True, return_counts=True)
    matches = [
        Match(int(label[i]), int(people[image[i]]), float(score[i]), int(image[i]), n)
        for i, n in zip(first, count.tolist(), strict=True)
    ]
    return sorted(matches, key=lambda m: (-m.similarity, m.label, m.person))


def shared(
    centres: np.ndarray, origin: np.ndarray | None = None, *, threshold: float
) -> Shared:
    """Find classes of one person, between sets or within one.

    Two are joined where the similarity reaches the threshold and each is the other's
    nearest in that one's set; what is joined through a third is one person too.

    Args:
        centres: [C, D] of all sets, one after the other.
        origin: [C] int, the set of each class, in which people are taken to differ.
            None looks within one set.
        threshold: the lowest cosine of a match, above 0.

    Raises:
        ValueError: as `above`, or where centres and origin do not fit.
    """
    C = len(centres)
    home = np.zeros(C, np.int64) if origin is None else np.asarray(origin)
    if home.shape != (C,):
        raise ValueError(f"origin {home.shape} of {C} centres; wanted [C]")
    i, j, score = above(centres, centres, threshold=threshold)
    ahead = i < j if origin is None else (i < j) & (home[i] != home[j])
    i, j, score = i[ahead], j[ahead], score[ahead]
    best: dict[tuple[int, int], float] = {}
    for left, right, s in zip(i.tolist(), j.tolist(), score.tolist(), strict=True):
        for who, where in ((left, home[right]), (right, home[left])):
            best[who, where] = max(best.get((who, where), -1.0), s)
    parent = list(range(C))
    joined: list[Pair] = []
    rest: list[Pair] = []
    for at in np.lexsort((j, i, -score)).tolist():
        pair = Pair(int(i[at]), int(j[at]), float(score[at]))
        nearest = best[pair.left, home[pair.right]], best[pair.right, home[pair.left]]
        mutual = nearest == (pair.similarity, pair.similarity)
        (joined if mutual else rest).append(pair)
        if mutual:
            left, right = _root(parent, pair.left), _root(parent, pair.right)
            parent[max(left, right)] = min(left, right)
    roots = np.array([_root(parent, k) for k in range(C)], np.int64)
    people = np.unique(roots, return_inverse=True)[1]
    conflicts = [p for p in rest if people[p.left] != people[p.right]]
    if origin is not None:
        conflicts += _twice(centres, people, home)
    return Shared(people, joined, sorted(conflicts, key=lambda p: -p.similarity))


def above(
    a: np.ndarray, b: np.ndarray, *, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find all pairs of rows at or above a cosine, exactly, block by block.

    Args:
        a: [N, D], of any length; a zero row is like nothing.
        b: [M, D].
        threshold: above 0.

    Returns:
        (rows of a, rows of b, cosines), in no order that is promised.

    Raises:
        ValueError: rows that are not finite or do not fit, a threshold that is not
            above 0, or millions of matches.
    """
    if not threshold > 0:
        raise ValueError(f"threshold is {threshold}; wanted a cosine above 0")
    rows, columns, scores, count = [], [], [], 0
    for i, j, block in _blocks(a, b):
        left, right = np.nonzero(block >= threshold)
        count += len(left)
        if count > _MOST:
            raise ValueError(
                f"more than {_MOST} pairs reach {threshold}; wanted a higher threshold"
            )
        rows.append(i + left)
        columns.append(j + right)
        scores.append(block[left, right])
    empty = np.zeros(0, np.int64)
    return (
        np.concatenate([empty, *rows]),
        np.concatenate([empty, *columns]),
        np.concatenate([np.zeros(0, np.float32), *scores]),
    )


def _twice(centres: np.ndarray, people: np.ndarray, home: np.ndarray) -> Iterator[Pair]:
    """Yield classes of one set that became one person through another set."""
    first: dict[tuple[int, int], int] = {}
    for k, key in enumerate(zip(people.tolist(), home.tolist(), strict=True)):
        other = first.setdefault(key, k)
        if other != k:
            yield Pair(other, k, float(_unit(centres[[other, k]]).prod(0).sum()))


def _blocks(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield (first row of a, first row of b, cosines of the blocks there)."""
    if np.ndim(a) != 2 or np.ndim(b) != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(
            f"cannot compare {np.shape(a)} with {np.shape(b)}; wanted [N, D] and"
            " [M, D], of one network"
        )
    for i in range(0, len(a), _BLOCK):
        left = _unit(a[i : i + _BLOCK])
        for j in range(0, len(b), _BLOCK):
            yield i, j, left @ _unit(b[j : j + _BLOCK]).T


def _between(
    centres: np.ndarray, e: np.ndarray, label: np.ndarray
) -> Iterator[np.ndarray]:
    """Yield the cosines of images and the centres of other classes that have any."""
    label = _labels(label, e, len(centres))
    some = np.any(centres, axis=1)
    for i, j, block in _blocks(e, centres):
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


def _unit(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float32)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    if not np.isfinite(length).all():
        raise ValueError(
            f"{int((~np.isfinite(length)).sum())} of {len(x)} embeddings are not"
            " finite; the network has diverged, or images are broken"
        )
    return x / np.maximum(length, np.float32(1e-12))


def _root(parent: list[int], i: int) -> int:
    while parent[i] != i:
        parent[i] = i = parent[parent[i]]
    return i
