"""Another source with some of its labels made wrong, to see what noise does.

The law: which labels are wrong, and what they become, depends on (seed, place) alone;
`truth` keeps the right ones.

    noisy = Source(synthetic.Source(identities=200, per_identity=60), share=0.2)
    record, label = noisy.read(0)
"""

from __future__ import annotations

import functools

import numpy as np

from jaxface import types
from jaxface.data import identities, index

_CHOSEN, _OTHER = 0xBAD0, 0xBAD1  # salts


class Source:
    """The images of another source, a share of them under another label.

    Attributes:
        color: of the other source.
        num_classes: of the other source.
        labels: [n] int32, some of them wrong.
        truth: [n] int32, the other source's.
    """

    def __init__(self, base: types.Source, *, share: float, seed: int = 0):
        """Choose the images and their wrong labels.

        Args:
            base: images that tell their labels without being read.
            share: of the images, 0 .. 1, rounded to whole images.
            seed: any integer.

        Raises:
            ValueError: a share out of range, fewer than two classes, or a source
                that does not tell its labels.
        """
        labels = identities.labels_of(base, "mislabelled")
        if not 0 <= share <= 1:
            raise ValueError(f"share is {share}; wanted 0 .. 1")
        if base.num_classes < 2:
            raise ValueError("one class: there is no other label; wanted two or more")
        self._base = base
        self.color, self.num_classes = base.color, base.num_classes
        self.truth = labels.astype(np.int32)
        n = len(self.truth)
        draw = functools.partial(index.uniform, np.arange(n), seed=seed, count=1)
        wrong = np.argsort(draw(salt=_CHOSEN)[:, 0], kind="stable")[: round(share * n)]
        # a step of 1 .. C - 1 around the circle of labels never ends where it began
        step = 1 + (draw(salt=_OTHER)[:, 0] * (self.num_classes - 1)).astype(np.int32)
        self.labels = self.truth.copy()
        self.labels[wrong] = (self.truth + step)[wrong] % self.num_classes

    def __len__(self) -> int:
        return len(self._base)

    def read(self, i: int) -> tuple[bytes | np.ndarray, int]:
        """Return (the other source's record, the label here) of image i."""
        return self._base.read(i)[0], int(self.labels[i])

    def name(self, i: int) -> str:
        """Return the other source's name of image i."""
        return self._base.name(i)
