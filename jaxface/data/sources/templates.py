"""The lists of IJB-B and IJB-C: templates of many images, compared in pairs.

One law: a line is read as it stands or refused with its number; nothing is skipped.
The 15 million pairs are parsed as arrays, a block of the file at a time.

    meta/ijbc_face_tid_mid.txt           1.jpg 1 69544           file, template, medium
    meta/ijbc_name_5pts_score.txt        1.jpg 46.1 60.2 ... 0.999   5 points, score
    meta/ijbc_template_pair_label.txt    1 11065 1               templates, same person

    found = templates("IJBC", root="IJBC/loose_crop")
    found.landmarks[found.template == 1]      # [k, 5, 2]

Whitelam et al. 2017 (IJB-B), Maze et al. 2018 (IJB-C); the files are laid out as in
insightface's evaluation.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterator

import numpy as np

from jaxface.data.sources import pairs_txt

_BLOCK = 1 << 23  # bytes parsed at a time; some twenty times as many are needed
_DIGITS = 9  # of the largest number, so that int32 holds it


@dataclasses.dataclass(frozen=True)
class Templates:
    """A protocol of templates.

    Attributes:
        names: [n] image files, from `root` on.
        root: their folder.
        template: [n] int32, which template an image is of.
        media: [n] int32, which medium (photo or video) it is from.
        landmarks: [n, 5, 2] float32, pixels x, y: eyes, nose, corners of the mouth.
        score: [n] float32, the detector's.
        left, right: [N] int32, the templates of each pair.
        same: [N] bool, True for a genuine pair.
    """

    names: tuple[str, ...]
    root: str
    template: np.ndarray
    media: np.ndarray
    landmarks: np.ndarray
    score: np.ndarray
    left: np.ndarray
    right: np.ndarray
    same: np.ndarray

    def __len__(self) -> int:
        return len(self.same)


def templates(
    path: str | os.PathLike[str], *, root: str | os.PathLike[str] = "", prefix: str = ""
) -> Templates:
    """Read the lists of a protocol.

    Args:
        path: the folder with `meta`, such as `IJBC`.
        root: the images' folder; "" for `PATH/loose_crop`.
        prefix: of the lists' names; "" for the folder's in lower case, as in `ijbc`.

    Raises:
        FileNotFoundError: a list is missing.
        ValueError: on a malformed list, or lists that do not fit each other.
    """
    folder = pathlib.Path(path)
    stem = folder / "meta" / (prefix or folder.resolve().name.lower())
    names, template, media = read_media(f"{stem}_face_tid_mid.txt")
    listed, landmarks, score = read_landmarks(f"{stem}_name_5pts_score.txt")
    row = {name: k for k, name in enumerate(listed)}
    missing = [name for name in names if name not in row]
    if missing or len(row) != len(listed):
        raise ValueError(
            f"{stem}_name_5pts_score.txt: {len(listed)} lines of {len(row)} images,"
            f" without {len(missing)} of the media list's {missing[:3]}; wanted each"
            " once"
        )
    order = np.array([row[name] for name in names])
    left, right, same = read_pairs(f"{stem}_template_pair_label.txt")
    known = np.unique(template)
    for side in (left, right):
        strange = np.flatnonzero(~_among(side, known))
        if len(strange):
            raise ValueError(
                f"{stem}_template_pair_label.txt:{strange[0] + 1}: template"
                f" {side[strange[0]]} has no image in the media list"
            )
    return Templates(
        names=tuple(names),
        root=os.fspath(root or folder / "loose_crop"),
        template=template,
        media=media,
        landmarks=landmarks[order],
        score=score[order],
        left=left,
        right=right,
        same=same,
    )


def read_media(
    path: str | os.PathLike[str],
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Read lines `file template medium`.

    Returns:
        (files [n], template [n] int32, medium [n] int32).

    Raises:
        ValueError: naming the line that is not of that form.
    """
    names, numbers = list[str](), list[tuple[int, int]]()
    for at, cells in _rows(path):
        if len(cells) != 3 or not all(_is_number(c) for c in cells[1:]):
            raise _malformed(path, at, cells, "`file template medium`")
        names.append(cells[0])
        numbers.append((int(cells[1]), int(cells[2])))
    template, media = np.array(numbers, np.int32).T
    return names, template, media


def read_landmarks(
    path: str | os.PathLike[str],
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Read lines `file x1 y1 ... x5 y5 score`.

    Returns:
        (files [n], landmarks [n, 5, 2] float32, score [n] float32).

    Raises:
        ValueError: naming the line that is not of that form.
    """
    names, rows = list[str](), list[np.ndarray]()
    for at, cells in _rows(path):
        try:
            row = np.array([float(c) for c in cells[1:]], np.float32)
        except ValueError:
            row = np.empty(0, np.float32)
        if len(row) != 11 or not np.isfinite(row).all():
            raise _malformed(path, at, cells, "`file x1 y1 ... x5 y5 score`")
        names.append(cells[0])
        rows.append(row)
    found = np.stack(rows)
    return names, found[:, :10].reshape(-1, 5, 2), found[:, 10]


def read_pairs(
    path: str | os.PathLike[str],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read lines `template template label`, label 1 for the same person and 0 for two.

    Returns:
        (left [N] int32, right [N] int32, same [N] bool).

    Raises:
        ValueError: naming the line that is not of that form.
    """
    blocks, lines = [], 0
    with open(path, "rb") as file:
        rest = b""
        while block := file.read(_BLOCK):
            head, line_end, tail = (rest + block).rpartition(b"\n")
            if not line_end and len(tail) > _BLOCK:
                raise ValueError(f"{path}:{lines + 1}: a line of over {_BLOCK} bytes")
            rest = tail
            if line_end:
                blocks.append(_triples(head + b"\n", path, lines))
                lines += len(blocks[-1])
    if rest:
        blocks.append(_triples(rest + b"\n", path, lines))
    if not blocks:
        raise ValueError(f"{path}: no pairs; wanted at least one")
    found = np.concatenate(blocks)
    bad = np.flatnonzero(found[:, 2] > 1)
    if len(bad):
        raise ValueError(
            f"{path}:{bad[0] + 1}: label {found[bad[0], 2]}; wanted 0 or 1"
        )
    return found[:, 0].copy(), found[:, 1].copy(), found[:, 2] == 1


def _triples(block: bytes, path: str | os.PathLike[str], lines: int) -> np.ndarray:
    """Return the numbers of whole lines of three, [k, 3] int32."""
    raw = np.frombuffer(block, np.uint8)
    digit = raw - np.uint8(48)  # wraps round for what comes before "0"
    inside = digit < 10
    line = raw == 10
    ends = np.flatnonzero(inside[:-1] & ~inside[1:])
    starts = np.flatnonzero(inside & ~np.concatenate([[False], inside[:-1]]))
    count = int(line.sum())
    each = np.diff(np.searchsorted(starts, np.flatnonzero(line)), prepend=0)
    lengths = ends - starts + 1
    other = ~(inside | line | (raw == 32) | (raw == 9) | (raw == 13))
    if other.any() or (each != 3).any() or lengths.max() > _DIGITS:
        rows = block.split(b"\n")
        for k in range(count):
            cells = rows[k].split()
            if len(cells) != 3 or not all(c.isdigit() and len(c) < 10 for c in cells):
                texts = [str(c[:20], "ascii", "replace") for c in cells]
                raise _malformed(
                    path, lines + k + 1, texts, "`template template label`"
                )
    values = np.zeros(len(starts), np.int32)
    for k in range(int(lengths.max())):
        has = lengths > k
        values[has] += digit[ends[has] - k].astype(np.int32) * np.int32(10**k)
    return values.reshape(-1, 3)


def _among(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return which values [N] are among sorted ones; `np.isin` would sort them all."""
    place = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return known[place] == values


def _rows(path: str | os.PathLike[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield (number, cells) of the lines of a list, which has at least one."""
    rows = pairs_txt.text(path).splitlines()
    if not rows:
        raise ValueError(f"{path}: an empty file; wanted at least one line")
    for number, row in enumerate(rows, start=1):
        yield number, row.split()


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _DIGITS


def _malformed(
    path: str | os.PathLike[str], line: int, cells: list[str], wanted: str
) -> ValueError:
    got = " ".join(cells)[:200]
    return ValueError(f"{path}:{line}: wanted {wanted}; got {got!r}")
