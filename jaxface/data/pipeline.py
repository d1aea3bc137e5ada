"""A preprocessing line once parsed: its ops, and the numbers they are handed.

The law: an example's pixels depend on its record and its numbers, and these on (seed,
position) alone. Numbers are drawn here, in NumPy, for both loaders. What ends a line
without any, `normalize`, can be done to a whole batch where it is trained on, which
leaves the processor that decodes a quarter of the bytes to write:

    line = ops.parse("decode|resize(112)|flip|normalize")
    numbers = line.numbers(positions, seed=0)             # [B, m]
    image = line.numpy(encoded, numbers[0])               # [112, 112, 3] float32
    first, rest = line.split()                # decode|resize(112)|flip and normalize
    rest.batch(jnp, pixels)                               # [B, 112, 112, 3] float32
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from jaxface.data import decode, index

_SALT = 0x0A06  # keeps augmentation apart from shuffling


@dataclasses.dataclass(frozen=True)
class Op:
    """One step of a line.

    Attributes:
        numpy: (image, numbers [m]) -> image.
        tensorflow: (tf, image, numbers [m]) -> image, in a graph.
        batch: (numpy or jax.numpy, images [B, H, W, 3]) -> images, of an op that draws
            no numbers and that accelerators do as well.
        draws: how many uniform numbers an example needs.
        law: uniforms [B, draws] in [0, 1) -> the bodies' numbers [B, m].
        size: (H, W) of the output, where it does not depend on the input's.
        warps: the numbers are a matrix of `resample.warp`.
        mirrors: left to right, where its one number is not 0.
        fits: it leaves an image of `size` as it is.
        cuts: it takes a window of the image, or decodes what the next one takes.
        color: channel order from here on, of an op that decodes or swaps.
        scale: (mean, std), of an op that normalises.
    """

    numpy: Callable[[Any, np.ndarray], np.ndarray]
    tensorflow: Callable[[Any, Any, Any], Any]
    batch: Callable[[Any, Any], Any] | None = None
    draws: int = 0
    law: Callable[[np.ndarray], np.ndarray] = lambda u: u
    size: tuple[int, int] | None = None
    warps: bool = False
    mirrors: bool = False
    fits: bool = False
    cuts: bool = False
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

    @functools.cached_property
    def size(self) -> tuple[int, int] | None:
        """(H, W) of the images, or None where they keep their own."""
        return next((op.size for op in reversed(self.ops) if op.size), None)

    @property
    def scale(self) -> tuple[Any, Any] | None:
        """(mean, std) that were taken off, or None for pixels of 0 .. 255."""
        return self.ops[-1].scale

    @property
    def span(self) -> tuple[np.ndarray, np.ndarray]:
        """What black and white become, [3] float32 each."""
        mean, std = (np.float32(x) for x in self.scale or (0.0, 1.0))
        low, high = ((np.full(3, x, np.float32) - mean) / std for x in (0, 255))
        return low, high

    @property
    def draws(self) -> int:
        """How many random numbers an example needs; 0 for evaluation."""
        return sum(op.draws for op in self.ops)

    def only_decodes(self, record: bytes | np.ndarray) -> bool:
        """Tell whether this image is at most mirrored besides, as decoding can do."""
        if not self._only_fits:
            return False
        if self.size is None:
            return True
        if isinstance(record, np.ndarray):
            return self.size == record.shape[:2]
        return self.size == decode.plain_size(record)

    @functools.cached_property
    def _only_fits(self) -> bool:
        """Whether that is so of images that have the line's size."""
        rest = [op for op in self.ops[1:] if not op.fits]
        sizes = {op.size for op in self.ops if op.fits}
        return len(sizes) < 2 and (not rest or (len(rest) == 1 and rest[0].mirrors))

    def numbers(self, positions: np.ndarray, *, seed: int) -> np.ndarray:
        """Draw what the bodies need at each position: [B] -> [B, m] float64."""
        u = index.uniform(positions, seed=seed, count=self.draws, salt=_SALT)
        parts = np.split(u, np.cumsum([op.draws for op in self.ops])[:-1], axis=1)
        laws = [op.law(part) for op, part in zip(self.ops, parts, strict=True)]
        return np.concatenate(laws, axis=1)

    def numpy(
        self,
        record: bytes | np.ndarray,
        numbers: np.ndarray,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Process one example.

        Args:
            record: encoded bytes or uint8 [H, W, 3].
            numbers: [m] from `numbers`.
            out: contiguous uint8 [H, W, 3] that the image may be written to.

        Returns:
            [H, W, 3] float32 after `normalize`, else uint8; perhaps `out` itself.

        Raises:
            decode.UnreadableError: if the record is not an image.
            ValueError: if it is too small for a crop.
        """
        if self.only_decodes(record):
            mirrored = self.width > 0 and numbers[0] > 0
            return decode.pixels(record, out=out, mirrored=mirrored)
        image: Any = record
        for op, part in zip(self.ops, self._parts, strict=True):
            image = op.numpy(image, numbers[part])
        return image

    def split(self) -> tuple[Pipeline, Pipeline]:
        """Return (what is done to each image, what may be left to `batch`)."""
        k = len(self.ops)
        while k > 1 and self.ops[k - 1].batch:
            k -= 1
        return Pipeline(self.ops[:k]), Pipeline(self.ops[k:])

    def inserted(self, other: Pipeline) -> Pipeline:
        """Put another line's ops, all but `decode`, where images have their last size.

        Raises:
            ValueError: ops that change the size, the scale or the channels.
        """
        added = other.ops[1:]
        if any(op.size or op.scale or op.color for op in added):
            raise ValueError(
                "degradations must leave size, scale and channels as the network wants"
                " them, as 'blur(2, 2)|jpeg(30, 30)' does"
            )
        first, rest = self.split()
        return Pipeline(joined((*first.ops, *added, *rest.ops)))

    def batch(self, xp: Any, images: Any) -> Any:
        """Process a batch, of the second part of `split`.

        Args:
            xp: `numpy` or `jax.numpy`.
            images: uint8 [B, H, W, 3].
        """
        for op in self.ops:
            assert op.batch, "split keeps such ops before"
            images = op.batch(xp, images)
        return images

    def tensorflow(self, tf: Any, record: Any, numbers: Any) -> Any:
        """Process one example in a TensorFlow graph.

        Args:
            tf: the module, handed in so that nothing here imports it.
            record: scalar string tensor, `decode.is_plain` or from `decode.pack`.
            numbers: [m] float64 tensor from `numbers`; not read if nothing is drawn.
        """
        image = record
        for op, part in zip(self.ops, self._parts, strict=True):
            own = numbers[part] if part.stop > part.start else ()
            image = op.tensorflow(tf, image, own)
        return tf.ensure_shape(image, [*(self.size or (None, None)), 3])

    @functools.cached_property
    def width(self) -> int:
        """How many numbers an example's bodies are handed."""
        return self._parts[-1].stop if self.ops else 0

    @functools.cached_property
    def _parts(self) -> list[slice]:
        """Where each op's numbers lie."""
        widths = [op.law(np.zeros((1, op.draws))).shape[1] for op in self.ops]
        ends = itertools.accumulate(widths)
        return [slice(end - m, end) for end, m in zip(ends, widths, strict=True)]


def joined(ops: Iterable[Op]) -> tuple[Op, ...]:
    """Make one warp of neighbouring ones, which blurs once."""
    out: list[Op] = []
    for op in ops:
        if op.warps and out and out[-1].warps:
            first = out.pop()
            law = functools.partial(_product, first, op)
            op = dataclasses.replace(op, draws=first.draws + op.draws, law=law)
        out.append(op)
    return tuple(out)


def _product(first: Op, then: Op, u: np.ndarray) -> np.ndarray:
    # output -> between by `then`, between -> input by `first`
    outer = first.law(u[:, : first.draws]).reshape(-1, 2, 3)
    inner = then.law(u[:, first.draws :]).reshape(-1, 2, 3)
    product = outer[:, :, :2] @ inner
    product[:, :, 2] += outer[:, :, 2]
    return product.reshape(-1, 6)


def sometimes(op: Op, p: float) -> Op:
    """Do an op that keeps sizes with probability p, else nothing."""
    check_share("p", p)
    if p == 1:
        return op

    def law(u: np.ndarray) -> np.ndarray:
        return np.concatenate([u[:, :1] < p, op.law(u[:, 1:])], axis=1)

    return Op(
        lambda image, z: op.numpy(image, z[1:]) if z[0] else image,
        lambda tf, image, z: tf.cond(
            z[0] > 0, lambda: op.tensorflow(tf, image, z[1:]), lambda: image
        ),
        draws=1 + op.draws,
        law=law,
    )


def saturated(tf: Any, image: Any) -> Any:
    """Round half to even and saturate to 0 .. 255, as `resample.to_uint8`."""
    return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)


def check(good: bool, message: str) -> None:
    """Refuse an argument with a message."""
    if not good:
        raise ValueError(message)


def check_share(name: str, value: float) -> None:
    """Refuse what is no probability."""
    check(0 <= value <= 1, f"{name} of {value}: wanted 0 .. 1")
