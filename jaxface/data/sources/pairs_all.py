"""Every pair of images of any labelled source, as a verification list.

One law: a person belongs to one fold only, and pairs are made within folds; with one
fold each of the n (n - 1) / 2 pairs is there once.

    found = pairs(folder.Source("faces"), folds=10)
"""

from __future__ import annotations

import numpy as np

from jaxface import types
from jaxface.data.sources import gallery

_MOST = 30_000_000  # pairs that are held, at 41 bytes


def pairs(source: types.Source, *, folds: int = 1, seed: int = 0) -> types.Pairs:
    """Make all pairs.

    Args:
        source: labelled images; only its labels are read.
        folds: to which people are dealt; with 1 a threshold is chosen on the pairs it
            is judged on.
        seed: of the deal.

    Raises:
        ValueError: too few people for the folds, or too many images to hold.
    """
    labels = gallery.labels_of(source)
    people = np.random.default_rng(seed).permutation(np.unique(labels))
    if not 1 <= folds <= len(people) // 2:
        raise ValueError(f"folds={folds} of {len(people)} people; wanted 2 in each")
    members = [np.flatnonzero(np.isin(labels, people[k::folds])) for k in range(folds)]
    count = sum(len(m) * (len(m) - 1) // 2 for m in members)
    if count > _MOST:
        raise ValueError(
            f"{count} pairs; wanted at most {_MOST}: take more folds, or pairs_sampled"
        )
    ends = [m[np.stack(np.triu_indices(len(m), 1))] for m in members]
    left, right = np.concatenate(ends, axis=1)
    return types.Pairs(
        images=source,
        left=left,
        right=right,
        same=labels[left] == labels[right],
        fold=np.repeat(np.arange(folds), [e.shape[1] for e in ends]),
        people=labels[np.stack([left, right], axis=1)],
    )
