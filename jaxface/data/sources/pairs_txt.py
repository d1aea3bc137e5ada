"""A verification list in LFW's `pairs.txt` form, over a folder of images.

One law: a line is read as it stands or refused with its number; nothing is skipped.

    Abel_Pacheco  1  4                        the same person, images 1 and 4
    Abdel_Madi_Shabneh  1  Dean_Barker  1     two people

    found = pairs("pairs.txt", root="lfw_112")    # lfw_112/NAME/NAME_0001.jpg
    found.images.read(found.left[0])              # (encoded bytes, label)
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
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


def parse(path: str | os.PathLike[str]) -> tuple[list[Line], np.ndarray]:
    """Read a list in the form of LFW View 2.

    Args:
        path: a text file. Its first line is `FOLDS PAIRS`, or `PAIRS` for one fold;
            each fold follows with PAIRS lines `name i j` and PAIRS lines
            `name i other j`.

    Returns:
        (lines, fold [N] int64), in the order of the file.

    Raises:
        ValueError: naming the line that is not of that form.
    """
    try:
        rows = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}, byte {error.start}: not UTF-8") from None
    head = rows[0].split() if rows else []
    if len(head) not in (1, 2) or not all(h.isdecimal() and int(h) for h in head):
        raise ValueError(
            f"{path}:1: wanted `FOLDS PAIRS`, as in `10 300`; got"
            f" {rows[0] if rows else 'an empty file'!r}"
        )
    each, folds = int(head[-1]), int(head[0]) if len(head) == 2 else 1
    lines = []
    for number, row in enumerate(rows[1:], start=2):
        match row.split():
            case [name, i, j] if i.isdecimal() and j.isdecimal():
                line = Line((name, int(i)), (name, int(j)))
            case [name, i, other, j] if i.isdecimal() and j.isdecimal():
                line = Line((name, int(i)), (other, int(j)))
            case _:
                raise ValueError(
                    f"{path}:{number}: wanted `name i j` or"
                    f" `name i other j`, got {row!r}"
                )
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


def pairs(
    path: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str],
    extension: str = ".jpg",
) -> types.Pairs:
    """Read a pair list and find its images.

    Args:
        path: the list, see `parse`.
        root: folder of `NAME/NAME_0001.jpg`.
        extension: of the image files.

    Returns:
        The pairs; each image is listed once.

    Raises:
        ValueError: on a malformed list.
        FileNotFoundError: if images are missing, naming the first few.
    """
    lines, fold = parse(path)
    sides = [side for line in lines for side in line]
    known = sorted(set(sides))
    folder = pathlib.Path(root)
    paths = tuple(folder / n / f"{n}_{i:04d}{extension}" for n, i in known)
    missing = [str(p) for p in paths if not p.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(paths)} images of {path} are missing, among them"
            f" {', '.join(missing[:3])}; wanted ROOT/NAME/NAME_0001{extension}"
        )
    people = sorted({name for name, _ in known})
    person = {name: k for k, name in enumerate(people)}
    index = {side: k for k, side in enumerate(known)}
    ends = np.array([index[side] for side in sides]).reshape(-1, 2)
    labels = np.array([person[name] for name, _ in known])
    return types.Pairs(
        images=Files(paths, labels, num_classes=len(people)),
        left=ends[:, 0],
        right=ends[:, 1],
        same=np.array([line.same for line in lines]),
        fold=fold,
        people=labels[ends],
    )
