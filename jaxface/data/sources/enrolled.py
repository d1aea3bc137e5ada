"""Is this picture of the enrolled person? The binary task over any labelled source.

The law: which images are drawn, and which part each belongs to, depends on the seed
and the identity alone; train and test share no image.

    faces = folder.Source("faces")
    train = Source(faces, identity=3, part="train")
    encoded, label = train.read(0)       # label 1: the enrolled person, 0: another
"""

from __future__ import annotations

import numpy as np

from jaxface import types
from jaxface.data import index

_DRAW, _SPLIT = 0xE0, 0xE1  # salts


class Source:
    """A sample of another source with labels 1 (enrolled) and 0 (others).

    Attributes:
        color: of the other source.
        num_classes: 2.
        labels: [n] int32.
    """

    num_classes = 2

    def __init__(
        self,
        base: types.Source,
        *,
        identity: int,
        negatives: int = 4,
        part: str = "train",
        test_share: float = 0.3,
        seed: int = 0,
    ):
        """Draw the images.

        Args:
            base: labelled images; its labels are `base.labels` [N] where it has them,
                else every image is read once.
            identity: the label in `base` of the enrolled person.
            negatives: images of others for each of theirs.
            part: "train" or "test"; each class is split by itself.
            test_share: share of either class in "test", in (0, 1); at least one
                image of each class is in each part.
            seed: of the draw and the split.

        Raises:
            ValueError: if there are too few images for that.
        """
        if part not in ("train", "test"):
            raise ValueError(f"part {part!r}: wanted 'train' or 'test'")
        if not 0 < test_share < 1:
            raise ValueError(f"test_share {test_share}: wanted between 0 and 1")
        labels = _labels(base)
        own, others = (
            np.flatnonzero(labels == identity),
            np.flatnonzero(labels != identity),
        )
        wanted = negatives * len(own)
        if len(own) < 2 or not 2 <= wanted <= len(others):
            raise ValueError(
                f"identity {identity} has {len(own)} images and the others"
                f" {len(others)}; wanted at least 2 and negatives={negatives} times as"
                " many: choose another identity or fewer negatives"
            )
        salt = identity << 8
        others = _shuffled(others, seed=seed, salt=salt + _DRAW)[:wanted]
        chosen = []
        for images in (own, others):
            images = _shuffled(images, seed=seed, salt=salt + _SPLIT)
            tests = min(max(round(test_share * len(images)), 1), len(images) - 1)
            chosen.append(np.sort(images[:tests] if part == "test" else images[tests:]))
        self._base, self._index = base, np.concatenate(chosen)
        self.color = base.color
        self.labels = np.repeat(np.array([1, 0], np.int32), [len(c) for c in chosen])

    def __len__(self) -> int:
        return len(self._index)

    def read(self, i: int) -> tuple[bytes | np.ndarray, int]:
        """Return (record of the other source, 1 or 0)."""
        return self._base.read(int(self._index[i]))[0], int(self.labels[i])

    def name(self, i: int) -> str:
        """Return the other source's name of image i."""
        return self._base.name(int(self._index[i]))


def _labels(base: types.Source) -> np.ndarray:
    known = getattr(base, "labels", None)
    if known is None:
        known = [base.read(i)[1] for i in range(len(base))]
    return np.asarray(known)


def _shuffled(values: np.ndarray, *, seed: int, salt: int) -> np.ndarray:
    """Order values by a number that depends on each value alone."""
    return values[
        np.argsort(index.uniform(values, seed=seed, count=1, salt=salt)[:, 0])
    ]
