"""The embedded default data: rendered people, endless, needing no file and no licence.

Image i shows person `start + i // per_identity` in circumstances number
`i % per_identity`. No two circumstances share pose, light or backdrop, so genuine
pairs always differ in all three.

Law: pixels depend on (seed, identity, index, size) alone, whatever was read before
and in whichever thread.

    source = synthetic.Source(identities=500, per_identity=20, size=56)
    image, label = source.read(0)  # uint8 [56, 56, 3] RGB, 0
    unseen = synthetic.Source(identities=100, per_identity=4, start=500)
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from jaxface.data.faces import people, portrait

SMALLEST = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Rendered people with labels.

    Attributes:
        identities: how many people.
        per_identity: pictures of each.
        size: height and width in pixels, at least 16.
        start: the first person; disjoint ranges are disjoint people.
        seed: another seed is another world of people.

    Raises:
        ValueError: for counts below 1, a size below 16, or a negative start or seed.
    """

    identities: int
    per_identity: int
    size: int = 112
    start: int = 0
    seed: int = 0
    color: ClassVar[str] = "rgb"

    def __post_init__(self) -> None:
        for name, low in (("identities", 1), ("per_identity", 1)):
            _at_least(name, getattr(self, name), low)
        _check(self.seed, self.start, 0, self.size)

    @property
    def num_classes(self) -> int:
        """Labels are 0 .. num_classes - 1."""
        return self.identities

    @property
    def labels(self) -> np.ndarray:
        """[n] int32, the label of every image."""
        people = np.arange(self.identities, dtype=np.int32)
        return np.repeat(people, self.per_identity)

    def __len__(self) -> int:
        return self.identities * self.per_identity

    def read(self, i: int) -> tuple[np.ndarray, int]:
        """Return (uint8 [size, size, 3], label) of image i."""
        label, index = self._locate(i)
        return render(self.seed, self.start + label, index, size=self.size), label

    def name(self, i: int) -> str:
        """Return which picture i is: seed, person and index."""
        label, index = self._locate(i)
        return f"synthetic/{self.seed}/{self.start + label}/{index}"

    def _locate(self, i: int) -> tuple[int, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"image {i} wanted; there are 0 .. {len(self) - 1}")
        label, index = divmod(int(i), self.per_identity)
        return label, index


def render(seed: int, identity: int, index: int, *, size: int) -> np.ndarray:
    """Render one picture of one person.

    Args:
        seed: which world of people.
        identity: which person, any integer from 0.
        index: which picture of them, any integer from 0.
        size: height and width in pixels, at least 16.

    Returns:
        [size, size, 3] uint8, RGB.

    Raises:
        ValueError: for a negative seed, identity or index, or a size below 16.
    """
    _check(seed, identity, index, size)
    who = people.identity(seed=seed, identity=identity)
    view = people.view(seed=seed, identity=identity, index=index)
    grain = people.grain(seed=seed, identity=identity, index=index, size=size)
    return portrait.draw(who, view, grain, size=size)


def sheet(source: Source, *, rows: int, columns: int) -> np.ndarray:
    """Lay out the first pictures of the first people, one person a row.

    Args:
        source: where they come from.
        rows: people.
        columns: pictures of each.

    Returns:
        [rows * size, columns * size, 3] uint8.

    Raises:
        ValueError: where the source has fewer people or pictures than that.
    """
    if not (1 <= rows <= source.identities and 1 <= columns <= source.per_identity):
        raise ValueError(
            f"a sheet of {rows} x {columns} wanted; the source has"
            f" {source.identities} people with {source.per_identity} pictures each"
        )
    firsts = [r * source.per_identity for r in range(rows)]
    return np.block([[[source.read(i + c)[0]] for c in range(columns)] for i in firsts])


def _check(seed: int, identity: int, index: int, size: int) -> None:
    for name, value in (("seed", seed), ("identity", identity), ("index", index)):
        _at_least(name, value, 0)
    _at_least("size", size, SMALLEST)


def _at_least(name: str, value: int, low: int) -> None:
    if value < low:
        raise ValueError(f"{name} is {value}; at least {low} is wanted")
