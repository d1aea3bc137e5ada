"""Clustering: sort an album of unknown people, and judge the heaps.

One law: the threshold at which clusters are joined is chosen on other people than
those it is judged on; where it is given, it is used as it stands.

    folder(path='album')|clustering                    two halves of the people
    folder(path='album')|clustering(threshold=0.4)     all of them at once

    bcubed(cluster, label)      # (precision [n], recall [n]) of every image
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxface import types
from jaxface.eval import intervals, linkage, verification

_GRID = np.linspace(0, 1, 101)  # thresholds that are tried
_MOST = 20_000  # images whose cosines are held: 1.6 GB


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Average-linkage clustering of labelled images.

    Attributes:
        images: of at least two people.
        threshold: mean cosine at or above which clusters are joined; None chooses it
            on one half of the people by BCubed F, judges on the other, and the other
            way round.
        seed: which people are in which half.

    Raises:
        ValueError: on too few people, or more images than memory should hold.
    """

    images: types.Source
    _: dataclasses.KW_ONLY
    threshold: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        wanted = 4 if self.threshold is None else 2
        people = len(np.unique(self._labels()))
        if people < wanted or len(self.images) > _MOST:
            raise ValueError(
                f"{len(self.images)} images of {people} people; wanted {wanted} people"
                f" or more and at most {_MOST} images"
            )

    def _labels(self) -> np.ndarray:
        if isinstance(self.images, types.Labelled):
            return np.asarray(self.images.labels)
        n = len(self.images)
        return np.array([self.images.read(i)[1] for i in range(n)], np.int64)

    @property
    def work(self) -> int:
        """Images that one run puts through the network."""
        return len(self.images)

    def run(self, embed: types.Embed) -> types.Result:
        """Embed the images once, cluster, compare with the labels.

        Args:
            embed: gives [n, D] float for the n images, of any length but zero.

        Returns:
            Scalars: bcubed_f, bcubed_precision, bcubed_recall with intervals over
            people; nmi; images, people, clusters (of as many), threshold (the mean
            over halves). Artefacts: cluster [n], identity [n], embedding [n, D].

        Raises:
            ValueError: on embeddings that are not finite, are zero, or not [n, D].
        """
        unit = verification.unit_length(embed(self.images), self.images)
        label = self._labels()
        parts = self._parts(label)
        trees = [linkage.average(unit[p]) for p in parts]
        if self.threshold is None:
            best = [_best(t, label[p]) for t, p in zip(trees, parts, strict=True)]
            best.reverse()  # each half by what was best for the other
        else:
            best = [self.threshold]
        cluster = np.empty(len(label), np.int64)
        first = 0
        for tree, part, threshold in zip(trees, parts, best, strict=True):
            found = linkage.cut(tree, threshold=threshold)
            cluster[part], first = found + first, first + int(found.max()) + 1
        scalars = scored(cluster, label) | {
            "nmi": float(np.mean([nmi(cluster[p], label[p]) for p in parts])),
            "images": len(label),
            "people": len(np.unique(label)),
            "clusters": first,
            "threshold": float(np.mean(best)),
        }
        return types.Result(
            scalars={name: float(value) for name, value in scalars.items()},
            artefacts={
                "cluster": cluster,
                "identity": label.astype(np.int64),
                "embedding": unit.astype(np.float32),
            },
        )

    def _parts(self, label: np.ndarray) -> list[np.ndarray]:
        """Return the images of each half of the people, or all of them."""
        if self.threshold is not None:
            return [np.arange(len(label))]
        people = np.random.default_rng(self.seed).permutation(np.unique(label))
        return [np.flatnonzero(np.isin(label, people[k::2])) for k in range(2)]


def _best(tree: linkage.Tree, label: np.ndarray) -> float:
    """Return the threshold with the highest BCubed F, the middle one of equals."""
    f = []
    for threshold in _GRID:
        parts = bcubed(linkage.cut(tree, threshold=threshold), label)
        f.append(_f(*(float(p.mean()) for p in parts)))
    (equal,) = np.nonzero(np.array(f) == max(f))
    return float(_GRID[equal[len(equal) // 2]])


def scored(cluster: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """Return BCubed F, precision and recall with intervals over people.

    People are resampled with all their images. An interval is never narrower than
    Wilson's for as many trials as there are people: a mean of numbers in [0, 1]
    varies no more than a proportion.
    """
    values = np.stack(bcubed(cluster, label))  # [2, n]
    _, who = np.unique(label, return_inverse=True)
    P = int(who.max()) + 1
    count = np.bincount(who)
    sums = np.stack([np.bincount(who, v) for v in values])  # [2, P]
    weights = np.random.default_rng(0).multinomial(P, np.full(P, 1 / P), 1000)
    drawn = (weights @ sums.T) / (weights @ count)[:, None]  # [R, 2]
    mean = values.mean(axis=1)
    f = np.append(mean, _f(*mean))
    every = np.column_stack([drawn, _f(*drawn.T)])
    low, high = np.quantile(every, [0.025, 0.975], axis=0)
    low = np.minimum(low, intervals.wilson(np.floor(f * P), P)[0])
    high = np.maximum(high, intervals.wilson(np.ceil(f * P), P)[1])
    out: dict[str, float] = {}
    for k, name in ((2, "f"), (0, "precision"), (1, "recall")):
        rate = intervals.Rate(*(float(x[k]) for x in (f, low, high)))
        out |= rate.named(f"bcubed_{name}")
    return out


def bcubed(cluster: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute BCubed precision and recall of every image.

    Args:
        cluster: [n] ids.
        label: [n] ids of people.

    Returns:
        (precision [n], recall [n]): the share of its person in its cluster, and the
        share of its person's images that are there; its own image counts.

    Bagga, Baldwin 1998; Amigo et al. 2009, section 3.5.
    """
    _, cell = np.unique(np.stack([cluster, label], 1), axis=0, return_inverse=True)
    both = np.bincount(cell.reshape(-1))
    sizes = []
    for ids in (cluster, label):
        _, index, counts = np.unique(ids, return_inverse=True, return_counts=True)
        sizes.append(counts[index])
    shared = both[cell.reshape(-1)]
    return shared / sizes[0], shared / sizes[1]


def nmi(cluster: np.ndarray, label: np.ndarray) -> float:
    """Compute the normalised mutual information, by the mean of both entropies.

    1 where both are one heap. Strehl, Ghosh 2002, with the arithmetic mean.
    """
    counts = [
        np.unique(ids, axis=0, return_counts=True)[1] / len(label)
        for ids in (cluster, label, np.stack([cluster, label], 1))
    ]
    own, theirs, joint = (-float(np.sum(p * np.log(p))) for p in counts)
    if not own + theirs:
        return 1.0
    return max(0.0, 2 * (own + theirs - joint) / (own + theirs))


def _f(precision: np.ndarray | float, recall: np.ndarray | float) -> np.ndarray | float:
    """Return the harmonic mean; both are above 0, for an image is with itself."""
    return 2 * precision * recall / (precision + recall)
