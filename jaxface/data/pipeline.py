"""A preprocessing line once parsed: its ops, and the numbers they are handed.

The law: an example's pixels depend on its record and its numbers, and these on (seed,
position) alone. Numbers are drawn here, in NumPy, for both loaders.

    line = ops.parse("decode|resize(112)|flip|normalize")
    numbers = line.numbers(positions, seed=0)             # [B, m]
    image = line.numpy(encoded, numbers[0])               # [112, 112, 3] float32
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxface.data import index

_SALT = 0x0A06  # keeps augmentation apart from shuffling


@dataclasses.dataclass(frozen=True)
class Op:
    """One step of a line.

    Attributes:
        numpy: (image, numbers [m]) -> image.
        tensorflow: (tf, image, numbers [m]) -> image, in a graph.
        draws: how many uniform numbers an example needs.
        law: uniforms [B, draws] in [0, 1) -> the bodies' numbers [B, m].
        size: (H, W) of the output, where it does not depend on the input's.
        warps: the numbers are a matrix of `resample.warp`.
        color: channel order from here on, of an op that decodes or swaps.
        scale: (mean, std), of an op that normalises.
    """

    numpy: Callable[[Any, np.ndarray], np.ndarray]
    tensorflow: Callable[[Any, Any, Any], Any]
    draws: int = 0
    law: Callable[[np.ndarray], np.ndarray] = lambda u: u
    size: tuple[int, int] | None = None
    warps: bool = False
    color: str = ""
    scale: tuple[Any, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A parsed line.

    Attributes:
        ops: its steps; the first one decodes.
    """

    ops: tuple[Op, ...]

    @property
    def color(self) -> str:
        """Channel order of the images that come out, "rgb" or "bgr"."""
        return next(op.color for op in reversed(self.ops) if op.color)

    @property
    def reads(self) -> str:
        """Channel order of the records that go in."""
        return self.ops[0].color

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W) of the images, or None where they keep their own."""
        return next((op.size for op in reversed(self.ops) if op.size), None)

    @property
    def scale(self) -> tuple[Any, Any] | None:
        """(mean, std) that were taken off, or None for pixels of 0 .. 255."""
        return self.ops[-1].scale

    @property
    def draws(self) -> int:
        """How many random numbers an example needs; 0 for evaluation."""
        return sum(op.draws for op in self.ops)

    def numbers(self, positions: np.ndarray, *, seed: int) -> np.ndarray:
        """Draw what the bodies need at each position: [B] -> [B, m] float64."""
        u = index.uniform(positions, seed=seed, count=self.draws, salt=_SALT)
        parts = np.split(u, np.cumsum([op.draws for op in self.ops])[:-1], axis=1)
        laws = [op.law(part) for op, part in zip(self.ops, parts, strict=True)]
        return np.concatenate(laws, axis=1)

    def numpy(self, record: bytes | np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Process one example.

        Args:
            record: encoded bytes or uint8 [H, W, 3].
            numbers: [m] from `numbers`.

        Returns:
            [H, W, 3] float32 after `normalize`, else uint8.

        Raises:
            decode.UnreadableError: if the record is not an image.
            ValueError: if it is too small for a crop.
        """
        image: Any = record
        for op, part in zip(self.ops, self._parts, strict=True):
            image = op.numpy(image, numbers[part])
        return image

    def tensorflow(self, tf: Any, record: Any, numbers: Any) -> Any:
        """Process one example in a TensorFlow graph.

        Args:
            tf: the module, handed in so that nothing here imports it.
            record: scalar string tensor, `decode.is_plain` or from `decode.pack`.
            numbers: [m] float64 tensor from `numbers`.
        """
        image = record
        for op, part in zip(self.ops, self._parts, strict=True):
            image = op.tensorflow(tf, image, numbers[part])
        return tf.ensure_shape(image, [*(self.size or (None, None)), 3])

    @property
    def width(self) -> int:
        """How many numbers an example's bodies are handed."""
        return self._parts[-1].stop

    @functools.cached_property
    def _parts(self) -> list[slice]:
        """Where each op's numbers lie."""
        widths = [op.law(np.zeros((1, op.draws))).shape[1] for op in self.ops]
        ends = itertools.accumulate(widths)
        return [slice(end - m, end) for end, m in zip(ends, widths, strict=True)]
