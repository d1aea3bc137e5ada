"""Images named in a text file: a path and a label on every line.

One law: a line is an image, a header, a comment or empty, or it is an error that names
it; nothing is skipped uncounted.

    # who is on which picture
    ann/1.jpg 0                  separated by a tab, a comma or a space:
    my faces/b 2.jpg 1           of several, the last field is the label
    "c,d.jpg" 1                  quotes, as CSV has them

    faces = Source("train.txt", root="faces", part="train")
    encoded, label = faces.read(0)
"""

from __future__ import annotations

import os
import pathlib
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxface.data import identities

HEADERS = frozenset(("class", "class_id", "id", "identity", "label", "person"))


class Lines(NamedTuple):
    """What a list says: of every image its path and its label, as they stand."""

    paths: list[str]
    labels: list[str]
    ignored: int


class Source:
    """Images with the labels that a list gives them.

    Labels that are all numbers are sorted as such, others as text; label k of the
    source is the k-th. A list of 0 .. C-1 keeps its labels.

    Attributes:
        color: "rgb".
        num_classes: identities of the part.
        classes: their labels in the list.
        labels: [n] int32.
        ignored: lines that name no image: the header, comments, empty ones.
    """

    color = "rgb"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        root: str | os.PathLike[str] | None = None,
        label: str = "last",
        part: str = "all",
        holdout: float = 0.1,
        seed: int = 0,
        min_images: int = 2,
    ):
        """Read the list; the images are read when they are asked for.

        Args:
            path: the list, UTF-8.
            root: what its paths are relative to; None is the list's own folder.
            label: "last" for the last field of a line, "folder" where a line is a
                path alone, as in OpenSphere's lists, and its folder the identity.
            part: "all", "train" or "validation".
            holdout: share of identities that "validation" gets, on average.
            seed: of the split.
            min_images: fewest images an identity may have.

        Raises:
            FileNotFoundError: no such list, or none of its first images.
            ValueError: a line of another form, an image listed twice, an identity
                with too few images, or a part that would be empty.
        """
        self._path = path = pathlib.Path(path)
        found = parse(path, label=label)
        self.ignored = found.ignored
        names = _ordered(set(found.labels))
        self.classes = identities.of_part(names, part, holdout=holdout, seed=seed)
        self.num_classes = len(self.classes)
        number = {name: k for k, name in enumerate(self.classes)}
        kept = [i for i, name in enumerate(found.labels) if name in number]
        self.labels = np.array([number[found.labels[i]] for i in kept], np.int32)
        self._paths = [found.paths[i] for i in kept]
        self._root = os.fspath(path.parent if root is None else root)
        counts = Counter(found.labels[i] for i in kept)
        identities.check_counts(path, counts, fewest=min_images)
        some = [self.name(i) for i in range(min(len(self), 100))]
        if not any(os.path.isfile(name) for name in some):
            raise FileNotFoundError(
                f"{path}: none of its first {len(some)} images exists, such as"
                f" {some[0]}; give the folder its paths start from as root="
            )

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, i: int) -> tuple[bytes, int]:
        """Return (encoded bytes, label) of image i.

        Raises:
            OSError: if it cannot be read.
        """
        name = self.name(i)
        if not os.path.isfile(name):  # a list may name a device that has no end
            raise FileNotFoundError(f"no file at {name}, which {self._path} names")
        return pathlib.Path(name).read_bytes(), int(self.labels[i])

    def name(self, i: int) -> str:
        """Return the path of image i."""
        return os.path.join(self._root, self._paths[i])


def parse(path: str | os.PathLike[str], *, label: str = "last") -> Lines:
    """Read a list.

    Args:
        path: the list.
        label: "last" or "folder", see `Source`.

    Raises:
        ValueError: naming the line that is not of that form, or the byte that is not
            UTF-8.
    """
    if label not in ("last", "folder"):
        raise ValueError(f"label {label!r}: wanted 'last' or 'folder'")
    try:
        text = pathlib.Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}, byte {error.start}: not UTF-8") from None
    rows = [(k, r.strip()) for k, r in enumerate(text.split("\n"), start=1)]
    empty = len(rows[-1][1]) == 0  # what follows the last line's end is no line
    told = [(k, row) for k, row in rows if row and not row.startswith("#")]
    separator = _separator([row for _, row in told]) if label == "last" else None
    found: dict[str, str] = {}
    for place, (k, row) in enumerate(told):
        fields = [row] if label == "folder" else row.rsplit(separator, 1)
        name = _unquoted(fields[0].strip())
        if place == 0 and label == "last" and fields[-1].strip().lower() in HEADERS:
            if separator and row.count(separator) > 1:
                raise ValueError(f"{path}:{k}: wanted two columns, got {row[:80]!r}")
            continue
        who = fields[-1].strip() if label == "last" else os.path.dirname(name)
        if not name or not who or (len(fields) == 1 and label == "last"):
            wanted = "`path label`" if label == "last" else "`identity/file`"
            raise ValueError(f"{path}:{k}: wanted {wanted}, got {row[:80]!r}")
        if wrong := _wrong(name, who, found):
            raise ValueError(f"{path}:{k}: {wrong}: {row[:80]!r}")
        found[name] = _unquoted(who)
    if not found:
        raise ValueError(f"{path}:1: the list names no image")
    ignored = len(rows) - empty - len(found)
    return Lines(list(found), list(found.values()), ignored)


def _wrong(name: str, who: str, found: Mapping[str, str]) -> str:
    """Return what is wrong with a line of the right form, or nothing."""
    if name in found:
        return "an image that is listed already"
    if "\0" in name:
        return "a path with a zero byte"
    if who.startswith("-") and who[1:].isdecimal():
        return "a label below 0, which is no class; take the line out"
    return ""


def _separator(rows: list[str]) -> str | None:
    """Return the first of tab and comma that every line has, else None: spaces."""
    for separator in "\t,":
        if all(separator in row for row in rows):
            return separator
    return None


def _unquoted(field: str) -> str:
    if len(field) > 1 and field[0] == field[-1] == '"':
        return field[1:-1].replace('""', '"')
    return field


def _ordered(names: set[str]) -> list[str]:
    """Return labels in order: by number if all are numbers, else as text."""
    if all(name.isascii() and name.isdecimal() and len(name) < 19 for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)
