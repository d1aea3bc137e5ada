"""A verification list in LFW's `pairs.txt` form, over a folder of images.

One law: a line is read as it stands or refused with its number; nothing is skipped.

    Abel_Pacheco  1  4                        the same person, images 1 and 4
    Abdel_Madi_Shabneh  1  Dean_Barker  1     two people

    found = pairs("pairs.txt", root="lfw_112")    # lfw_112/NAME/NAME_0001.jpg
    found.images.read(found.left[0])              # (encoded bytes, label)
    found = pairs("African_pairs.txt", root="data/African", folds=10)    # RFW
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxface import types


class Line(NamedTuple):
    """One pair: (name, number) of each side; numbers count from 1."""

    left: tuple[str, int]
    right: tuple[str, int]

    @property
    def same(self) -> bool:
        """Return whether both sides carry one name."""
        return self.left[0] == self.right[0]


@dataclasses.dataclass(frozen=True)
class Files:
    """Image files with labels, as a `types.Source`."""

    paths: tuple[pathlib.Path, ...]
    labels: np.ndarray
    num_classes: int
    color: str = "rgb"

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, i: int) -> tuple[bytes, int]:
        """Return (encoded bytes, label) of image i."""
        return self.paths[i].read_bytes(), int(self.labels[i])

    def name(self, i: int) -> str:
        """Return the path of image i."""
        return str(self.paths[i])


def parse(
    path: str | os.PathLike[str], *, folds: int | None = None
) -> tuple[list[Line], np.ndarray]:
    """Read a list in the form of LFW View 2.

    Args:
        path: a text file. Its first line is `FOLDS PAIRS`, or `PAIRS` for one fold;
            each fold follows with PAIRS lines `name i j` and PAIRS lines
            `name i other j`.
        folds: of a list without that first line, as RFW's are: see `dealt`.

    Returns:
        (lines, fold [N] int64), in the order of the file.

    Raises:
        ValueError: naming the line that is not of that form.
    """
    rows = text(path).splitlines()
    if folds is not None:
        lines = [_line(path, k, row) for k, row in enumerate(rows, start=1)]
        return lines, dealt(np.array([x.same for x in lines], bool), folds, str(path))
    head = rows[0].split() if rows else []
    if len(head) not in (1, 2) or not all(_counts(h) and int(h) for h in head):
        raise ValueError(
            f"{path}:1: wanted `FOLDS PAIRS`, as in `10 300`; got"
            f" {rows[0][:80] if rows else 'an empty file'!r}; a list without it needs"
            " folds=10"
        )
    each, folds = int(head[-1]), int(head[0]) if len(head) == 2 else 1
    lines = []
    for number, row in enumerate(rows[1:], start=2):
        line = _line(path, number, row)
        if line.same != ((number - 2) % (2 * each) < each):
            wanted = "different people" if line.same else "the same person"
            raise ValueError(
                f"{path}:{number}: wanted {wanted} here, as each fold is"
                f" {each} genuine pairs, then {each} others; got {row!r}"
            )
        lines.append(line)
    if len(lines) != folds * 2 * each:
        raise ValueError(
            f"{path}: {len(lines)} pairs; the first line promises"
            f" {folds} folds of {each} + {each}"
        )
    return lines, np.arange(len(lines)) // (2 * each)


def _line(path: str | os.PathLike[str], number: int, row: str) -> Line:
    match row.split():
        case [name, i, j] if _counts(i, j):
            return Line((name, int(i)), (name, int(j)))
        case [name, i, other, j] if _counts(i, j):
            return Line((name, int(i)), (other, int(j)))
    raise ValueError(
        f"{path}:{number}: wanted `name i j` or `name i other j`, got {row[:200]!r}"
    )


def _counts(*texts: str) -> bool:
    return all(t.isascii() and t.isdigit() and len(t) < 10 for t in texts)


def text(path: str | os.PathLike[str]) -> str:
    """Return a list's text.

    Raises:
        ValueError: if it is not UTF-8.
    """
    try:
        return pathlib.Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8") from None


def dealt(same: np.ndarray, folds: int, where: str) -> np.ndarray:
    """Deal pairs to folds, genuine ones and others each in equal runs of their order.

    So lists come out right that go fold by fold, and those that have all genuine
    pairs first.

    Args:
        same: [N] bool, True for a genuine pair.
        folds: how many.
        where: the list, for the message.

    Returns:
        [N] int64.

    Raises:
        ValueError: too few pairs of a kind, or numbers that folds do not divide.
    """
    fold = np.empty(len(same), np.int64)
    for kind in (True, False):
        (place,) = np.nonzero(same == kind)
        if folds < 1 or not len(place) or len(place) % folds:
            what = "genuine" if kind else "impostor"
            raise ValueError(
                f"{where}: {len(place)} {what} pairs cannot be dealt to {folds} folds"
            )
        fold[place] = np.arange(len(place)) // (len(place) // folds)
    return fold


def pairs(
    path: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str],
    extension: str = ".jpg",
    folds: int | None = None,
) -> types.Pairs:
    """Read a pair list and find its images.

    Args:
        path: the list, see `parse`.
        root: folder of `NAME/NAME_0001.jpg`.
        extension: of the image files.
        folds: of a list whose first line does not tell, as RFW's.

    Returns:
        The pairs; each image is listed once.

    Raises:
        ValueError: on a malformed list.
        FileNotFoundError: if images are missing, naming the first few.
    """
    lines, fold = parse(path, folds=folds)
    sides = [side for line in lines for side in line]
    return of_files(
        [f"{n}/{n}_{i:04d}{extension}" for n, i in sides],
        [name for name, _ in sides],
        same=np.array([line.same for line in lines]),
        fold=fold,
        root=root,
        where=f"{path}, wanted ROOT/NAME/NAME_0001{extension}",
    )


def of_files(
    names: Sequence[str],
    people: Sequence[str] | np.ndarray,
    *,
    same: np.ndarray,
    fold: np.ndarray,
    root: str | os.PathLike[str],
    where: str,
) -> types.Pairs:
    """Return the pairs of image files.

    Args:
        names: [2N] files below `root`, both sides of a pair one after the other.
        people: [2N] who is on them, by any name.
        same: [N] bool.
        fold: [N].
        root: a folder.
        where: the list, for messages.

    Raises:
        ValueError: a name that leads out of `root`.
        FileNotFoundError: if images are missing, naming the first few.
    """
    folder = pathlib.Path(root)
    known, first, index = np.unique(
        np.array([os.path.normpath(n) for n in names], object),
        return_index=True,
        return_inverse=True,
    )
    for name in known:
        if os.path.isabs(name) or name.split(os.sep)[0] == os.pardir:
            raise ValueError(f"{where}: image {name!r} is outside {root}")
    paths = tuple(folder / name for name in known)
    missing = [str(p) for p in paths if not p.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(paths)} images are missing, among them"
            f" {', '.join(missing[:3])} ({where})"
        )
    _, person = np.unique(np.asarray(people, object), return_inverse=True)
    ends = index.reshape(-1, 2)
    labels = person[first]
    return types.Pairs(
        images=Files(paths, labels, num_classes=int(person.max()) + 1),
        left=ends[:, 0],
        right=ends[:, 1],
        same=same,
        fold=fold,
        people=person.reshape(-1, 2),
    )
