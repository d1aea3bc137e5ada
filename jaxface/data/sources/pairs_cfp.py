"""The verification lists of CFP, frontal against frontal or profile faces.

One law: a line is read as it stands or refused with its number; nothing is skipped.

    Protocol/Pair_list_F.txt, Pair_list_P.txt     1 ../Data/Images/001/frontal/01.jpg
    Protocol/Split/FP/01/same.txt, diff.txt       1,5: frontal 1 against profile 5

    found = pairs("cfp-dataset", kind="FP")

Sengupta et al., Frontal to Profile Face Verification in the Wild, WACV 2016.
"""

from __future__ import annotations

import os
import pathlib

import numpy as np

from jaxface import types
from jaxface.data.sources import pairs_txt


def pairs(
    path: str | os.PathLike[str],
    *,
    kind: str = "FP",
    images: str | os.PathLike[str] = "",
) -> types.Pairs:
    """Read the lists and find the images.

    Args:
        path: the data set's folder, with `Protocol` and `Data`.
        kind: "FP", a frontal and a profile face, or "FF", two frontal ones.
        images: folder with aligned copies of `Data`; "" for the data set's own.

    Returns:
        The pairs, fold by fold, genuine ones first; each image is listed once.

    Raises:
        ValueError: on a malformed list.
        FileNotFoundError: if lists or images are missing.
    """
    if kind not in ("FP", "FF"):
        raise ValueError(f"kind {kind!r}; wanted 'FP' or 'FF'")
    protocol = pathlib.Path(path) / "Protocol"
    left = _images(protocol / "Pair_list_F.txt")
    right = _images(protocol / "Pair_list_P.txt") if kind == "FP" else left
    folds = sorted(p for p in (protocol / "Split" / kind).glob("*") if p.is_dir())
    if not folds:
        raise FileNotFoundError(f"{protocol / 'Split' / kind} has no folds 01, 02, ...")
    names, same, fold = list[str](), list[bool](), list[int]()
    for k, folder in enumerate(folds):
        for file, genuine in (("same.txt", True), ("diff.txt", False)):
            found = _pairs(folder / file, left, right, genuine=genuine)
            names += found
            same += [genuine] * (len(found) // 2)
            fold += [k] * (len(found) // 2)
    return pairs_txt.of_files(
        names,
        [_person(name) for name in names],
        same=np.array(same),
        fold=np.array(fold),
        root=images or path,
        where=f"{protocol}, Pair_list_F.txt and Pair_list_P.txt",
    )


def _images(path: pathlib.Path) -> dict[str, str]:
    """Return number -> file, from the data set's folder on."""
    out: dict[str, str] = {}
    for number, row in enumerate(pairs_txt.text(path).splitlines(), start=1):
        cells = row.split(maxsplit=1)
        if len(cells) != 2 or not _is_number(cells[0]) or cells[0] in out:
            raise ValueError(
                f"{path}:{number}: wanted `NUMBER FILE`, each number once; got"
                f" {row[:200]!r}"
            )
        out[cells[0]] = os.path.normpath(os.path.join("Protocol", cells[1].strip()))
    return out


def _pairs(
    path: pathlib.Path, left: dict[str, str], right: dict[str, str], *, genuine: bool
) -> list[str]:
    """Return both sides' files, one after the other, of a list of one kind."""
    names = list[str]()
    for number, row in enumerate(pairs_txt.text(path).splitlines(), start=1):
        cells = [cell.strip() for cell in row.split(",")]
        if len(cells) != 2 or cells[0] not in left or cells[1] not in right:
            raise ValueError(
                f"{path}:{number}: wanted two numbers of the pair lists, as in `1,5`;"
                f" got {row[:200]!r}"
            )
        sides = left[cells[0]], right[cells[1]]
        if (_person(sides[0]) == _person(sides[1])) != genuine:
            raise ValueError(
                f"{path}:{number}: {' and '.join(sides)} are of"
                f" {'two people' if genuine else 'one person'}"
            )
        names += sides
    if not names:
        raise ValueError(f"{path}: no pairs; wanted at least one")
    return names


def _person(name: str) -> str:
    """Return who is on Data/Images/PERSON/frontal/01.jpg."""
    return os.path.dirname(os.path.dirname(name))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
