"""Several sources as one, one after the other, each with labels of its own.

The law: set k's images are starts[k] .. starts[k + 1] - 1 and its people follow those
of the sets before; nobody is taken for somebody of another set. One head serves all:
its classes are the sets' side by side. The sampler `mixed` draws the sets by weight.

    both = Source(sets=("folder(path='asia')", "recordio(path='glint')|at_least(5)"))
    both.starts            # [0, 5794, 17000000]
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxface import spec, types
from jaxface.data import sources


class Source:
    """The images of all sets.

    Attributes:
        color: of every set.
        num_classes: the sum of the sets'.
        classes: number of the set and name, as "1/anna", where every set has names.
        labels: [n] int32, where every set tells its own.
        starts: [K + 1] int64, where each set begins, and the end.
    """

    def __init__(self, sets: Sequence[str]):
        """Open the sets.

        Args:
            sets: lines of sources, each once.

        Raises:
            KeyError: a line names no source.
            ValueError: fewer than two sets, one of them twice, or colours differ.
        """
        if isinstance(sets, str) or len(sets) < 2 or len(set(sets)) < len(sets):
            raise ValueError(f"mix(sets={sets!r}): wanted two or more different lines")
        self._sets = [_open(line) for line in sets]
        colors = {s.color for s in self._sets}
        if len(colors) > 1:
            raise ValueError(f"mix(sets={sets!r}): some are rgb and some are bgr")
        (self.color,) = colors
        self.starts = np.cumsum([0, *map(len, self._sets)])
        self._first = np.cumsum([0, *(s.num_classes for s in self._sets)])
        self.num_classes = int(self._first[-1])
        named = [s.classes for s in self._sets if isinstance(s, types.Named)]
        if len(named) == len(sets):
            self.classes = [f"{k}/{x}" for k, names in enumerate(named) for x in names]
        told = [s.labels for s in self._sets if isinstance(s, types.Labelled)]
        if len(told) == len(sets):
            shifted = [
                np.add(x, first) for x, first in zip(told, self._first, strict=False)
            ]
            self.labels = np.concatenate(shifted).astype(np.int32)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, i: int) -> tuple[bytes | np.ndarray, int]:
        """Return (record, label) of image i."""
        k, j = self._locate(i)
        record, label = self._sets[k].read(j)
        return record, int(self._first[k]) + label

    def name(self, i: int) -> str:
        """Return the set's name of image i, after the number of the set."""
        k, j = self._locate(i)
        return f"{k}/{self._sets[k].name(j)}"

    def _locate(self, i: int) -> tuple[int, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"image {i} wanted; there are 0 .. {len(self) - 1}")
        k = int(np.searchsorted(self.starts, i, side="right")) - 1
        return k, int(i - self.starts[k])


def _open(line: str) -> types.Source:
    value = None
    for i, call in enumerate(spec.parse(line)):
        make = spec.module(sources, call, kind="source", default="Source")
        value = spec.bind(make, call if i == 0 else call.after(value))()
    return value
