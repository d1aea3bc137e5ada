"""The pairs of a verification list that an attribute picks: masked, cross-age, ...

One law: a pair is kept or left out by its two values alone; kept ones keep their fold,
their people and their order, and those left out are counted in the log.

    worn.csv: ann/1.jpg,masked      age.csv: ann/1.jpg,31

    pairs_txt(...)|pairs_where(path='worn.csv', one='masked')       against any other
    pairs_txt(...)|pairs_where(path='worn.csv', both='masked')
    pairs_txt(...)|pairs_where(path='age.csv', apart=20)            years or more
"""

from __future__ import annotations

import os

import numpy as np
from absl import logging

from jaxface import types
from jaxface.data import attributes


def pairs(
    base: types.Pairs,
    *,
    path: str | os.PathLike[str],
    one: str | None = None,
    both: str | None = None,
    apart: float | None = None,
) -> types.Pairs:
    """Keep some pairs; give exactly one condition.

    Args:
        base: the pairs.
        path: the list of values, see `attributes`.
        one: the value of exactly one side.
        both: the value of both sides.
        apart: how far the values, numbers, are apart at least.

    Raises:
        ValueError: on a malformed list, images it does not name, or no genuine or no
            impostor pair left in some fold.
    """
    if sum(given is not None for given in (one, both, apart)) != 1:
        raise ValueError(
            f"one={one!r}, both={both!r}, apart={apart!r}; wanted exactly one of them"
        )
    value = attributes.of(base.images, attributes.read(path), str(path))
    if apart is not None:
        number = attributes.numbers(value, str(path))
        keep = np.abs(number[base.left] - number[base.right]) >= apart
    else:
        has = value == (one if both is None else both)
        sides = has[base.left], has[base.right]
        keep = np.logical_xor(*sides) if both is None else np.logical_and(*sides)
    used, ends = np.unique(
        np.stack([base.left[keep], base.right[keep]]), return_inverse=True
    )
    left, right = ends.reshape(2, -1)
    kept = types.Pairs(
        images=types.Picked(base.images, used),
        left=left,
        right=right,
        same=base.same[keep],
        fold=base.fold[keep],
        people=base.people[keep],
    )
    sizes = [len(np.unique(kept.fold[kept.same == kind])) for kind in (True, False)]
    folds = len(np.unique(base.fold))
    if min(sizes) < folds:
        raise ValueError(
            f"{path}: {int(keep.sum())} of {len(base)} pairs are left, genuine ones in"
            f" {sizes[0]} and impostors in {sizes[1]} of {folds} folds; wanted both in"
            " each: a wider condition, or fewer folds"
        )
    logging.info(
        "pairs_where: %d of %d pairs left out", len(base) - len(kept), len(base)
    )
    return kept
