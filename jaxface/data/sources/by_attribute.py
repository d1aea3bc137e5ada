"""Pairs grouped by what a list says of their images or people, for fairness.

One law: a pair is of a group when both sides are; between groups it helps to set a
threshold and is counted apart. Whom the list does not name is an error.

    sex.csv            ann/1.jpg,f        an image, by the end of its path
                       bob,m              or a person, by the folder
    folder(path='faces')|pairs_sampled|by_attribute(path='sex.csv')|fairness
"""

from __future__ import annotations

import os

import numpy as np

from jaxface import types
from jaxface.data import attributes


def groups(pairs: types.Pairs, *, path: str | os.PathLike[str]) -> types.Groups:
    """Group pairs.

    Args:
        pairs: any verification list.
        path: the list, see `attributes`.

    Raises:
        ValueError: on a malformed list, or images it does not name.
    """
    value = attributes.of(pairs.images, attributes.read(path), str(path))
    names, index = np.unique(value, return_inverse=True)
    left, right = index[pairs.left], index[pairs.right]
    group = np.where(left == right, left, -1)
    return types.Groups(pairs, group, tuple(str(name) for name in names))
