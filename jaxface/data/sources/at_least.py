"""Another source without the people of whom it has too few images.

The law: nobody who is left loses an image; labels close ranks, in the old order.

    faces = folder.Source("faces", min_images=1)
    kept = Source(faces, images=5)
    kept.dropped          # people and images that are left out
"""

from __future__ import annotations

import numpy as np
from absl import logging

from jaxface import types
from jaxface.data import identities


class Source:
    """The images of people with at least so many.

    Attributes:
        color: of the other source.
        num_classes: people left.
        labels: [n] int32.
        classes: the names of who is left, where the other source has them.
        dropped: how many (people, images) are left out.
    """

    def __init__(self, base: types.Source, images: int):
        """Count.

        Args:
            base: images that tell their labels without being read.
            images: fewest a person may have.

        Raises:
            ValueError: `base` does not tell labels, or nobody is left.
        """
        labels = identities.labels_of(base, "at_least")
        counts = np.bincount(labels, minlength=base.num_classes)
        stays = counts >= images
        if not stays.any():
            raise ValueError(
                f"nobody has {images} images, the most are {counts.max()}; wanted fewer"
            )
        self._base, people = base, np.flatnonzero(stays)
        self._index = np.flatnonzero(stays[labels])
        self.labels = (np.cumsum(stays) - 1)[labels[self._index]].astype(np.int32)
        self.color, self.num_classes = base.color, len(people)
        if isinstance(base, types.Named):
            self.classes = [base.classes[k] for k in people.tolist()]
        self.dropped = int((~stays).sum()), len(labels) - len(self._index)
        if self.dropped[0]:
            logging.warning(
                "at_least(%d): %d people with %d images are left out",
                images,
                *self.dropped,
            )

    def __len__(self) -> int:
        return len(self._index)

    def read(self, i: int) -> tuple[bytes | np.ndarray, int]:
        """Return (the other source's record, label) of image i."""
        return self._base.read(int(self._index[i]))[0], int(self.labels[i])

    def name(self, i: int) -> str:
        """Return the other source's name of image i."""
        return self._base.name(int(self._index[i]))
