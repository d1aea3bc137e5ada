r"""Verification lists that name image files: CALFW, CPLFW, AgeDB-30 and their like.

One law: a line is read as it stands or refused with its number; nothing is skipped.

    Ann_0001.jpg 1          CALFW, CPLFW: two lines a pair, each with the label,
    Ann_0002.jpg 1          above 0 for the same person

    a/1.jpg a/2.jpg 1       one line a pair, its label last
    1 a/1.jpg a/2.jpg       or first

    found = pairs("pairs_CPLFW.txt", root="cplfw/aligned images")
    found = pairs("agedb_30.txt", root="AgeDB", person=r"\d+_(.+)_\d+_[fm]\.")
"""

from __future__ import annotations

import os
import re

import numpy as np

from jaxface import types
from jaxface.data.sources import pairs_bin, pairs_txt


def pairs(
    path: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str],
    folds: int = 10,
    person: str = r"([^/]+?)_\d+\.\w+$",
) -> types.Pairs:
    r"""Read a list and find its images.

    Args:
        path: the list.
        root: folder of the files it names.
        folds: see `pairs_txt.dealt`; CPLFW and CALFW are judged in 10.
        person: regular expression whose first group is the person's name in a file's;
            the default fits `NAME_0001.jpg`. With "" images are one person where
            genuine pairs connect them, which splits those nobody connects.

    Returns:
        The pairs; each image is listed once.

    Raises:
        ValueError: on a malformed list, or one that says of two images of one person
            that they are not.
        FileNotFoundError: if images are missing, naming the first few.
    """
    names, same = parse(path)
    fold = pairs_txt.dealt(same, folds, str(path))
    people: list[str] | np.ndarray
    if person:
        people = _named(names, same, re.compile(person), path)
    else:
        _, index = np.unique(np.array(names, object), return_inverse=True)
        ends = index.reshape(-1, 2)
        people = pairs_bin.joined(int(index.max()) + 1, ends[same])[index]
    return pairs_txt.of_files(
        names, people, same=same, fold=fold, root=root, where=str(path)
    )


def parse(path: str | os.PathLike[str]) -> tuple[list[str], np.ndarray]:
    """Read a list of any of the three forms, which its first line tells.

    Returns:
        (file names [2N], same [N] bool), in the order of the file.

    Raises:
        ValueError: naming the line that is not of that form.
    """
    rows = pairs_txt.text(path).splitlines()
    form = _form(rows[0].split()) if rows else ""
    if not form or (form == "two" and len(rows) % 2):
        got = repr(rows[0][:200]) if rows else "an empty file"
        raise ValueError(
            f"{path}:1: wanted `file label` on two lines a pair, `file file label` or"
            f" `label file file`; got {len(rows)} lines, the first {got}"
        )
    names, labels = list[str](), list[int]()
    for number, row in enumerate(rows, start=1):
        cells = row.split()
        if _form(cells) != form:
            raise ValueError(
                f"{path}:{number}: unlike the first line, {rows[0][:200]!r}; got"
                f" {row[:200]!r}"
            )
        label = int(cells.pop(0 if form == "first" else -1))
        if form == "two" and number % 2 == 0 and label != labels[-1]:
            raise ValueError(
                f"{path}:{number}: label {label}, and {labels[-1]} on the line before;"
                " a pair has one"
            )
        names += cells
        if form != "two" or number % 2:
            labels.append(label)
    return names, np.array(labels) > 0


def _form(cells: list[str]) -> str:
    """Return which form a line has, "" for none; labels are -1, 0, 1 or a fold."""
    label = [re.fullmatch(r"-1|\d{1,3}", cell, re.ASCII) is not None for cell in cells]
    match label:
        case [False, True]:
            return "two"
        case [False, False, True]:
            return "last"
        case [True, False, False]:
            return "first"
    return ""


def _named(
    names: list[str],
    same: np.ndarray,
    person: re.Pattern[str],
    path: str | os.PathLike[str],
) -> list[str]:
    """Return who is on each side [2N], who must agree with `same`."""
    people = []
    for name in names:
        found = person.search(name)
        if not found or not person.groups or found[1] is None:
            raise ValueError(
                f"{path}: no person in {name[:200]!r} by {person.pattern!r}; give a"
                ' `person` with one group that fits, or person=""'
            )
        people.append(found[1])
    told = np.array([a == b for a, b in zip(people[::2], people[1::2], strict=True)])
    if (told != same).any():
        k = int(np.argmax(told != same))
        raise ValueError(
            f"{path}: pair {k + 1}, {names[2 * k]} and {names[2 * k + 1]}, is said to"
            f" be of {'one person' if same[k] else 'two people'}; their names deny it"
        )
    return people
