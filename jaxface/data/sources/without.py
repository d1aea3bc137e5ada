"""Another source without some of its images, such as those a cleaning tool lists.

The law: labels, classes and the order of what is left are the other source's.

    faces = folder.Source("faces")
    kept = Source(faces, path="cleaned/far.json")    # [{"name": "faces/ann/1.jpg"}]
    encoded, label = kept.read(0)
"""

from __future__ import annotations

import json
import os
import pathlib

import numpy as np

from jaxface import types


class Source:
    """The images of another source that a list does not name.

    Attributes:
        color: of the other source.
        num_classes: of the other source; a class may have lost all its images.
        classes: the other source's names of people, where it has them.
        labels: the other source's labels of what is left, where it tells them.
    """

    def __init__(self, base: types.Source, *, path: str | os.PathLike[str]):
        """Read the list.

        Args:
            base: the images.
            path: JSON, a list of objects with the "name" of an image of `base`; other
                keys are for people.

        Raises:
            FileNotFoundError: no such list.
            ValueError: not such a list, a name that `base` lacks, or nothing left.
        """
        try:
            text = pathlib.Path(path).read_text("utf-8")
            names = {row["name"] for row in json.loads(text)}
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(
                f'{path} is no list of {{"name": ...}}: {error}; wanted what'
                " launch/prepare.py --list or launch/subcenters.py writes"
            ) from None
        all_names = [base.name(i) for i in range(len(base))]
        strange = names.difference(all_names)
        if strange:
            raise ValueError(
                f"{path} names {len(strange)} images that the source lacks, such as"
                f" {min(strange)}; was it written for another source?"
            )
        kept = [i for i, name in enumerate(all_names) if name not in names]
        if not kept:
            raise ValueError(f"{path} leaves none of {len(base)} images")
        self._base, self._index = base, np.array(kept, np.int64)
        self.color, self.num_classes = base.color, base.num_classes
        if isinstance(base, types.Named):
            self.classes = base.classes
        if isinstance(base, types.Labelled):
            self.labels = np.asarray(base.labels)[self._index]

    def __len__(self) -> int:
        return len(self._index)

    def read(self, i: int) -> tuple[bytes | np.ndarray, int]:
        """Return the other source's (record, label)."""
        return self._base.read(int(self._index[i]))

    def name(self, i: int) -> str:
        """Return the other source's name of image i."""
        return self._base.name(int(self._index[i]))
