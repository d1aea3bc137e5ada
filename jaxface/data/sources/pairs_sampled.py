"""A balanced verification list drawn from any labelled source.

One law: a person belongs to one fold only, so a threshold is never chosen on the
people it is judged on; the draw depends on the seed and the labels alone.

    faces = folder.Source("validation")
    found = pairs(faces, count=2000, folds=10, seed=0)
    found.same.mean()                             # 0.5
"""

from __future__ import annotations

import numpy as np

from jaxface import types


def pairs(
    source: types.Source, *, count: int = 2000, folds: int = 10, seed: int = 0
) -> types.Pairs:
    """Draw genuine and impostor pairs, half and half.

    People are dealt to the folds, those with one image too (they serve as impostors
    only). In each fold genuine pairs are spread over its people as evenly as their
    images allow; impostor pairs are drawn uniformly among all pairs of images of two
    people. No pair occurs twice.

    Args:
        source: labelled images; only its labels are read (`source.labels` [n] where
            it has them, else image by image).
        count: number of pairs, even.
        folds: number of folds; their sizes differ by two pairs at most.
        seed: of the draw.

    Returns:
        The pairs, fold by fold, genuine ones first; `images` holds those drawn.

    Raises:
        ValueError: if the source has too few people or images for that.
    """
    if count < 2 * folds or count % 2 or folds < 1:
        raise ValueError(
            f"count={count}, folds={folds}; wanted an even count of at"
            " least one genuine and one impostor pair per fold"
        )
    labels = _labels(source)
    people, sizes = np.unique(labels, return_counts=True)
    if np.sum(sizes > 1) < folds or len(people) < 2 * folds:
        raise ValueError(
            f"{len(people)} people, {np.sum(sizes > 1)} of them with two images or"
            f" more; {folds} folds need {2 * folds} and {folds}; use fewer folds"
        )
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(people))
    # those with several images are dealt first, so that every fold gets its share
    dealt = shuffled[np.argsort(sizes[shuffled] < 2, kind="stable")]
    ends, same, fold = [], [], []
    for k, each in enumerate(_split(count // 2, folds)):
        images = np.flatnonzero(np.isin(labels, people[dealt[k::folds]]))
        images = images[np.argsort(labels[images], kind="stable")]
        for draw in (_genuine, _impostor):
            ends.append(images[draw(rng, labels[images], each, f"fold {k}")])
            same.append(np.full(each, draw is _genuine))
        fold.append(np.full(2 * each, k))
    drawn, index = np.unique(np.concatenate(ends), return_inverse=True)
    left, right = index.reshape(-1, 2).T
    return types.Pairs(
        images=types.Picked(source, drawn),
        left=left,
        right=right,
        same=np.concatenate(same),
        fold=np.concatenate(fold),
        people=labels[np.concatenate(ends)],
    )


def _genuine(
    rng: np.random.Generator, labels: np.ndarray, need: int, where: str
) -> np.ndarray:
    """Draw `need` distinct pairs of one label from sorted labels [n]: [need, 2]."""
    _, start, sizes = np.unique(labels, return_index=True, return_counts=True)
    capacity = sizes * (sizes - 1) // 2
    if capacity.sum() < need:
        raise ValueError(
            f"{where}: its {len(sizes)} people have {capacity.sum()}"
            f" genuine pairs, {need} are wanted; lower count or folds"
        )
    quota = np.zeros_like(sizes)
    while need:  # one more pair each, until dealt
        given = rng.permutation(np.flatnonzero(quota < capacity))[:need]
        quota[given] += 1
        need -= len(given)
    drawn = []
    for first, size, q in zip(start, sizes, quota, strict=True):
        rank = rng.choice(size * (size - 1) // 2, q, replace=False)
        drawn.append(first + _unrank(rank, np.arange(size)))
    return np.concatenate(drawn)


def _impostor(
    rng: np.random.Generator, labels: np.ndarray, need: int, where: str
) -> np.ndarray:
    """Draw `need` distinct pairs of two labels from sorted labels [n]: [need, 2]."""
    # sorted by label, image j differs from exactly those before its label's first
    partners = np.searchsorted(labels, labels, side="left")
    if partners.sum() < need:
        raise ValueError(
            f"{where}: its {len(labels)} images have {partners.sum()}"
            f" impostor pairs, {need} are wanted; lower count or folds"
        )
    return _unrank(rng.choice(partners.sum(), need, replace=False), partners)


def _unrank(rank: np.ndarray, partners: np.ndarray) -> np.ndarray:
    """Return pair number `rank` [q] of those (i, j) with i < partners[j]: [q, 2]."""
    end = np.cumsum(partners)
    j = np.searchsorted(end, rank, side="right")
    return np.stack([rank - (end - partners)[j], j], axis=1)


def _split(total: int, parts: int) -> list[int]:
    """Return `parts` sizes that sum to `total` and differ by one at most."""
    return [total // parts + (k < total % parts) for k in range(parts)]


def _labels(source: types.Source) -> np.ndarray:
    """Return the labels [n]; a source that knows them need not be read."""
    known = getattr(source, "labels", None)
    if known is not None:
        return np.asarray(known)
    return np.array([source.read(i)[1] for i in range(len(source))], np.int64)
