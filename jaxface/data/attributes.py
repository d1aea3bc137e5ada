"""What a list says of images or people: sex, age, mask, origin, ...

One law: every image gets a value, from the longest end of its path that is listed, or
else from its folder, which is its person; an image without one is an error.

    ann/1.jpg,31                 a line is a name and a value, as `sources.lists` reads
    bob 45

    value = of(images, read("age.csv"), "age.csv")        # [n] of text
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping

import numpy as np

from jaxface import types
from jaxface.data.sources import lists


def read(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read a list.

    Returns:
        name -> value.

    Raises:
        ValueError: on a malformed list.
    """
    found = lists.parse(path)
    return dict(zip(found.paths, found.labels, strict=True))


def of(images: types.Source, told: Mapping[str, str], where: str) -> np.ndarray:
    """Return the value of every image, [n] of text.

    Raises:
        ValueError: naming the first of the images that the list does not.
    """
    found = [_value(images.name(i), told) for i in range(len(images))]
    lost = [i for i, value in enumerate(found) if value is None]
    if lost:
        raise ValueError(
            f"{where} tells nothing of {len(lost)} of {len(images)} images, the first"
            f" is {images.name(lost[0])}; list its path, the end of it, or its folder"
        )
    return np.array(found, str)


def numbers(value: np.ndarray, where: str) -> np.ndarray:
    """Return values as float64.

    Raises:
        ValueError: naming the first that is no number.
    """
    out = np.empty(len(value))
    for i, text in enumerate(value):
        try:
            out[i] = float(text)
        except ValueError:
            out[i] = np.nan
        if not np.isfinite(out[i]):
            raise ValueError(f"{where}: {str(text)!r} is no number")
    return out


def _value(name: str, told: Mapping[str, str]) -> str | None:
    parts = pathlib.PurePath(name).parts
    for k in range(len(parts)):
        end = "/".join(parts[k:])
        if end in told:
            return told[end]
    return told.get(parts[-2]) if len(parts) > 1 else None
