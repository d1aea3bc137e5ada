"""TinyFace: low-resolution probes in a gallery full of distractors.

One law: an image is of whom the number before its first "_" says, a distractor is
nobody; every image of the three folders takes part.

    Testing_Set/Gallery_Match/12_3.jpg       enrolled
    Testing_Set/Gallery_Distractor/*.jpg     enrolled, nobody's
    Testing_Set/Probe/12_1.jpg               to be found

    tinyface(path='TinyFace')|identification

Cheng, Zhu, Gong, Low-Resolution Face Recognition, ACCV 2018.
"""

from __future__ import annotations

import os
import pathlib
import re

import numpy as np

from jaxface import types
from jaxface.data import archive
from jaxface.data.sources import gallery, pairs_txt

_FOLDERS = ("Gallery_Match", "Gallery_Distractor", "Probe")


def search(path: str | os.PathLike[str]) -> types.Search:
    """List the images of the test set.

    Args:
        path: the folder with `Testing_Set`.

    Raises:
        FileNotFoundError: a folder is missing or empty.
        ValueError: an image whose name tells nobody.
    """
    root = pathlib.Path(path) / "Testing_Set"
    paths, people, part = list[pathlib.Path](), list[int](), list[int]()
    for k, name in enumerate(_FOLDERS):
        listed = sorted(p for p in (root / name).rglob("*") if archive.is_image(p.name))
        if not listed:
            raise FileNotFoundError(f"no images in {root / name}")
        paths += listed
        part += [k] * len(listed)
        people += [-1 if name == _FOLDERS[1] else _person(p) for p in listed]
    person, where = np.array(people, np.int64), np.array(part)
    nobody = person < 0
    person[nobody] = person.max() + 1 + np.arange(nobody.sum())
    every, labels = np.unique(person, return_inverse=True)
    images = pairs_txt.Files(tuple(paths), labels, len(every))
    rows = np.arange(len(paths))
    return types.Search(
        gallery.singles(images, rows, rows, labels),
        ((np.flatnonzero(where < 2), np.flatnonzero(where == 2)),),
    )


def _person(path: pathlib.Path) -> int:
    found = re.match(r"(\d{1,9})_", path.name, re.ASCII)
    if not found:
        raise ValueError(f"{path}: wanted a name such as 12_3.jpg, of person 12")
    return int(found[1])
