"""Who is in two sets: training people of a test set, or one person under two labels.

The law: every pair at or above the threshold is found, and what is not settled by it is
listed; `strangers` says how often it is passed by chance.

    matches = find(centres, probes, people, threshold=0.56)
    [(m.label, m.person, m.similarity) for m in matches]           # the nearest first
    shared(centres, origin, threshold=0.56).people                 # [C], whom each is
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

from jaxface.eval import intervals, strangers

_MOST = 5_000_000  # matches kept; more is no finding but a threshold too low


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
class Leak:
    """What a search for the people of a test set among those trained on found.

    Attributes:
        matches: who is taken for whom, the nearest first.
        threshold: the lowest cosine of a match, and how often strangers pass it.
        comparisons: of a class with a test image.
        classes: how many have images.
        people: of the test set.
        doubtful: training images not taken for strangers, as nearer to another class.
    """

    matches: list[Match]
    threshold: strangers.Calibration
    comparisons: int
    classes: int
    people: int
    doubtful: int

    @property
    def scalars(self) -> dict[str, float]:
        """Return the numbers that stand beside a score."""
        found = len({m.person for m in self.matches})
        return intervals.rate(found, self.people).named("leaked") | {
            "leaked_people": found,
            "leaked_of": self.people,
            "leaked_classes": len({m.label for m in self.matches}),
            "leaked_threshold": self.threshold.threshold,
            "leaked_false_alarms": self.threshold.expected(self.comparisons),
        }


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


def find(
    centres: np.ndarray, probes: np.ndarray, people: np.ndarray, *, threshold: float
) -> list[Match]:
    """Find the training classes that are among the people of a test set.

    Args:
        centres: [C, D] from `strangers`.
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


def leak(
    trained: tuple[np.ndarray, np.ndarray, np.ndarray],
    probes: np.ndarray,
    people: np.ndarray,
    *,
    threshold: float | None = None,
    alarms: float = 1.0,
) -> Leak:
    """Find the people of a test set that a network was trained on.

    Args:
        trained: (class centres [C, D], embeddings [n, D], labels [n]) of the training
            set.
        probes: [m, D] the test images' embeddings.
        people: [m] int, whose they are.
        threshold: the lowest cosine of a match; None measures it on strangers.
        alarms: false alarms that may be expected at a measured threshold.

    Raises:
        ValueError: as `find` and `strangers.calibrate`.
    """
    centres, e, label = trained
    classes = int(np.any(centres, axis=1).sum())
    comparisons = classes * len(probes)
    doubt = strangers.doubtful(centres, e, label)
    e, label = e[~doubt], label[~doubt]
    if threshold is None:
        passed = strangers.calibrate(
            centres, e, label, comparisons=comparisons, alarms=alarms
        )
    else:
        passed = strangers.measure(centres, e, label, threshold=threshold)
    return Leak(
        matches=find(centres, probes, people, threshold=passed.threshold),
        threshold=passed,
        comparisons=comparisons,
        classes=classes,
        people=len(np.unique(people)),
        doubtful=int(doubt.sum()),
    )


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
    for i, j, block in strangers.blocks(a, b):
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
            yield Pair(
                other, k, float(strangers.unit(centres[[other, k]]).prod(0).sum())
            )


def _root(parent: list[int], i: int) -> int:
    while parent[i] != i:
        parent[i] = i = parent[parent[i]]
    return i
