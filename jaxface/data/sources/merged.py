"""Several sources as one, with contiguous labels; one person of two sets has one.

The law: images keep the order of the sets and their own, and a class is a person: the
classes that the file of shared identities joins have one label, all others their own.

    sets = {"web": "folder(path='web')", "own": "folder(path='own')"}
    faces = Source(sets, shared="shared.json")    # [["web/anna", "own/ann"], ...]
    faces.classes[0], faces.name(0)               # "web/anna", "web:web/anna/1.jpg"
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxface import spec, types
from jaxface.data import sources


class Source:
    """The images of several sources, one set after the other.

    Attributes:
        color: of all of them.
        num_classes: people, each counted once.
        classes: "set/name" of each, by its first set; a number where a set names
            nobody.
        parts: the sources by the name of the set.
        people: by the name of the set, [C of the set] int32: its label -> ours.
        starts: [K + 1] int64, the first image of each set, and the end.
        sets: [K] how many classes each set has, in order, for a head of its own; None
            where a person is in several sets, who would be in several heads.
    """

    def __init__(
        self,
        sets: Mapping[str, str | types.Source],
        *,
        shared: str | os.PathLike[str] | None = None,
    ):
        """Open the sets.

        Args:
            sets: name -> source, or its line, such as "folder(path='faces')|without(
                path='far.json')".
            shared: JSON, lists of classes "set/name" that are one person, as
                launch/prepare.py --list writes it. Without it all classes differ.

        Raises:
            KeyError: a line of an unknown source.
            ValueError: no sets, sets of several colours, not such a file, or one of
                other sets.
        """
        if not (isinstance(sets, Mapping) and sets):
            raise ValueError(
                f"merged got sets={sets!r}; wanted {{name: line, ...}}, as in"
                " {'web': \"folder(path='web')\"}"
            )
        self.parts = {
            name: _opened(part) if isinstance(part, str) else part
            for name, part in sets.items()
        }
        colors = {name: part.color for name, part in self.parts.items()}
        if len(set(colors.values())) > 1:
            raise ValueError(
                f"merged got sets of several colours, {colors}; wanted one: prepare"
                " the others in it"
            )
        self.color = next(iter(colors.values()))
        names = [f"{k}/{c}" for k, part in self.parts.items() for c in _names(part)]
        groups = [] if shared is None else _groups(pathlib.Path(shared))
        label, self.classes = _joined(names, groups, where=shared)
        self.num_classes = len(self.classes)
        sizes = [part.num_classes for part in self.parts.values()]
        parts = np.split(label, np.cumsum(sizes)[:-1].tolist())
        self.people = dict(zip(self.parts, parts, strict=True))
        self.starts = np.cumsum([0, *map(len, self.parts.values())])
        self.sets = tuple(sizes) if self.num_classes == sum(sizes) else None

    @property
    def labels(self) -> np.ndarray:
        """[n] int32, the label of every image, where all sets tell theirs."""
        known = []
        for name, part in self.parts.items():
            if not isinstance(part, types.Labelled):
                raise AttributeError(f"set {name!r} tells no labels beforehand")
            known.append(self.people[name][np.asarray(part.labels)])
        return np.concatenate(known)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, i: int) -> tuple[bytes | np.ndarray, int]:
        """Return (record of the set, label)."""
        name, k = self._locate(i)
        record, label = self.parts[name].read(k)
        return record, int(self.people[name][label])

    def name(self, i: int) -> str:
        """Return "set:" and the set's own name of the image."""
        name, k = self._locate(i)
        return f"{name}:{self.parts[name].name(k)}"

    def _locate(self, i: int) -> tuple[str, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"image {i} wanted; there are 0 .. {len(self) - 1}")
        k = int(np.searchsorted(self.starts, i, side="right")) - 1
        return list(self.parts)[k], int(i - self.starts[k])


def _opened(line: str) -> types.Source:
    return spec.flow(line, [sources], kind="source", names=["Source"])


def _names(part: types.Source) -> list[str]:
    if isinstance(part, types.Named):
        return list(part.classes)
    return [str(k) for k in range(part.num_classes)]


def _groups(path: pathlib.Path) -> list[list[str]]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:  # or no UTF-8, or far too deep
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, list) or not all(
        isinstance(group, list) and all(isinstance(name, str) for name in group)
        for group in found
    ):
        raise ValueError(
            f'{path} is no list of lists of "set/name"; wanted what launch/prepare.py'
            " --list writes"
        )
    return found


def _joined(
    names: list[str], groups: list[list[str]], *, where: Any
) -> tuple[np.ndarray, list[str]]:
    """Return (label [C] int32, names of the labels), in the order of first classes."""
    place = {name: k for k, name in enumerate(names)}
    first = np.arange(len(names))
    told: set[str] = set()
    for group in groups:
        for name in group:
            if name not in place:
                raise ValueError(
                    f"{where} names {name!r}, a class that no set has; was it written"
                    " for other sets?"
                )
            if name in told:
                raise ValueError(f"{where} has {name!r} twice; wanted each class once")
            told.add(name)
        first[[place[name] for name in group]] = min(place[name] for name in group)
    kept, label = np.unique(first, return_inverse=True)
    return label.astype(np.int32), [names[k] for k in kept]
