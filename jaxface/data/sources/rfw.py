"""Racial Faces in-the-Wild: one verification list for each of four groups.

One law: each group's list is read as `pairs_txt` reads it, whole or refused.

    test/txts/African/African_pairs.txt       m.01 1 2        in 10 folds
    test/data/African/m.01/m.01_0001.jpg

    rfw(path='RFW/test')|fairness

Wang et al., Racial Faces in the Wild, ICCV 2019.
"""

from __future__ import annotations

import os
import pathlib

from jaxface import types
from jaxface.data.sources import grouped, pairs_txt

NAMES = ("African", "Asian", "Caucasian", "Indian")


def groups(
    path: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] = "",
    folds: int = 10,
    names: tuple[str, ...] = NAMES,
) -> types.Groups:
    """Read the lists and find the images.

    Args:
        path: the folder with `txts`.
        images: a folder per group; "" for `PATH/data`.
        folds: of each list.
        names: the groups.

    Raises:
        FileNotFoundError: a list or images are missing.
        ValueError: on a malformed list.
    """
    root = pathlib.Path(path)
    return grouped.groups(
        {
            name: pairs_txt.pairs(
                root / "txts" / name / f"{name}_pairs.txt",
                root=pathlib.Path(images or root / "data") / name,
                folds=folds,
            )
            for name in names
        }
    )
