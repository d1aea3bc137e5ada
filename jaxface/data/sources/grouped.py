"""Verification lists of several groups of people as one, for fairness.

One law: every list is a group, and no person is in two.

    found = groups({"young": "pairs_bin(path='y.bin')", "old": other_pairs})

    grouped({'young': "...", 'old': "..."})|fairness       as a line
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jaxface import spec, types
from jaxface.data import sources
from jaxface.data.sources import merged


def groups(sets: Mapping[str, str | types.Pairs]) -> types.Groups:
    """Join lists.

    Args:
        sets: group -> pairs, or their line.

    Raises:
        ValueError: no sets, or sets of several colours.
    """
    if not isinstance(sets, Mapping) or not sets:
        raise ValueError(f"grouped got {sets!r}; wanted {{name: line of pairs, ...}}")
    lists = [_opened(pairs) for pairs in sets.values()]
    start = people = 0
    moved: list[tuple[np.ndarray, ...]] = []
    for k, pairs in enumerate(lists):
        _, who = np.unique(pairs.people, return_inverse=True)
        who = who.reshape(-1, 2)
        moved.append(
            (
                pairs.left + start,
                pairs.right + start,
                np.asarray(pairs.same, bool),
                pairs.fold,
                who + people,
                np.full(len(pairs), k),
            )
        )
        start, people = start + len(pairs.images), people + int(who.max()) + 1
    left, right, same, fold, who, group = (
        np.concatenate(column) for column in zip(*moved, strict=True)
    )
    images = merged.Source({k: p.images for k, p in zip(sets, lists, strict=True)})
    pairs = types.Pairs(images, left, right, same, fold, who)
    return types.Groups(pairs, group, tuple(sets))


def _opened(pairs: str | types.Pairs) -> types.Pairs:
    if isinstance(pairs, str):
        return spec.flow(pairs, (sources,), kind="source", names=("Source", "pairs"))
    return pairs
