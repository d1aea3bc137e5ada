"""Ops that hide part of an image: grey, black, noise, or what people wear.

line = ops.parse("decode|erase(p=0.5)|flip|normalize")
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxface.data import pipeline

PRIME = 2**31 - 1
GREY = 128  # of what `cutout` covers: zero after `normalize()`, to half a level


def cutout(size: int, p: float = 1.0) -> pipeline.Op:
    """Cover a square of `size` pixels, centred anywhere, with probability p.

    DeVries and Taylor 2017: the square may reach over the border.
    """
    pipeline.check(isinstance(size, int) and size > 0, f"size {size!r}: wanted pixels")

    def place(z, height, width):
        top, left = z[0] * height - size / 2, z[1] * width - size / 2
        return top, left, top + size, left + size

    return pipeline.sometimes(_covered(place, lambda y, x, z: GREY, draws=2), p)


def window(lo: float = 0.2, hi: float = 1.0, p: float = 1.0) -> pipeline.Op:
    """Leave a rectangle, black around it, with probability p.

    AdaFace's crop: of lo .. hi of the area and sides of ratio 3/4 .. 4/3, cut to the
    image; their code draws anew where that does not fit.
    """
    pipeline.check(0 < lo <= hi <= 1, f"lo {lo}, hi {hi}: wanted 0 < lo <= hi <= 1")
    rectangle = _rectangle(lo, hi, 3 / 4)
    return pipeline.sometimes(
        _covered(_place, lambda y, x, z: 0, draws=4, law=rectangle, outside=True), p
    )


def erase(lo: float = 0.02, hi: float = 0.4, p: float = 0.5) -> pipeline.Op:
    """Fill a rectangle with noise, with probability p.

    Random erasing, Zhong et al. 2020, with their arguments: lo .. hi of the area,
    sides of ratio 0.3 .. 1/0.3, cut to the image where they draw anew.
    """
    pipeline.check(0 < lo <= hi <= 1, f"lo {lo}, hi {hi}: wanted 0 < lo <= hi <= 1")
    rectangle = _rectangle(lo, hi, 0.3)

    def law(u):
        return np.concatenate([rectangle(u[:, :4]), np.floor(u[:, 4:] * 2**20)], axis=1)

    def noise(y, x, z):
        value = (z[4] * 4099 + y * 1009 + x) * 3 + np.arange(3)
        for _ in range(3):  # squares, for multiples alone leave stripes; below 2**63
            value = (value % PRIME * 16807 + 12345) % PRIME
            value = value * value % PRIME
        return value // 4096 % 256

    return pipeline.sometimes(_covered(_place, noise, draws=5, law=law), p)


def _rectangle(lo: float, hi: float, least: float) -> Callable[[Any], np.ndarray]:
    """Make the law of height and width, as shares, and where in what is left."""

    def law(u):
        area = lo + (hi - lo) * u[:, 0]
        ratio = np.exp(math.log(least) * (2 * u[:, 1] - 1))
        high, wide = np.sqrt(area * ratio), np.sqrt(area / ratio)
        return np.stack([high.clip(0, 1), wide.clip(0, 1), u[:, 2], u[:, 3]], axis=1)

    return law


def _place(z, height, width):
    """Return (top, left, bottom, right) of `_rectangle`'s numbers, in pixels."""
    top, left = z[2] * (1 - z[0]) * height, z[3] * (1 - z[1]) * width
    return top, left, top + z[0] * height, left + z[1] * width


def _covered(
    place: Callable[..., Any],
    ink: Callable[..., Any],
    *,
    draws: int,
    law: Callable[[np.ndarray], np.ndarray] = lambda u: u,
    outside: bool = False,
) -> pipeline.Op:
    """Paint a rectangle, or all around it.

    Args:
        place: (numbers, height, width) -> top, left, bottom, right in pixels.
        ink: (rows [H, 1, 1], columns [1, W, 1], numbers) -> colours 0 .. 255.
        draws: as in `pipeline.Op`.
        law: as in `pipeline.Op`.
        outside: paint what the rectangle does not cover.
    """

    def within(y, x, z, height, width):
        top, left, bottom, right = place(z, height, width)
        inside = ((y >= top) & (y < bottom)) & ((x >= left) & (x < right))
        return ~inside if outside else inside

    def numpy(image, z):
        h, w, _ = image.shape
        y, x = np.arange(h)[:, None, None], np.arange(w)[None, :, None]
        color = np.asarray(ink(y, x, z.astype(np.int64))).astype(np.uint8)
        painted = np.broadcast_to(color, image.shape)
        below, above = (image, painted) if not outside else (painted, image)
        ends = [max(0, math.ceil(end)) for end in place(z.tolist(), h, w)]
        part = slice(ends[0], ends[2]), slice(ends[1], ends[3])
        out = below.copy()
        out[part] = above[part]
        return out

    def tensorflow(tf, image, z):
        shape = tf.shape(image, tf.int64)
        h, w = tf.cast(shape[0], z.dtype), tf.cast(shape[1], z.dtype)
        y = tf.range(shape[0])[:, None, None]
        x = tf.range(shape[1])[None, :, None]
        color = tf.cast(ink(y, x, tf.cast(z, tf.int64)), tf.uint8)
        rows, columns = tf.cast(y, z.dtype), tf.cast(x, z.dtype)
        return tf.where(within(rows, columns, z, h, w), color, image)

    return pipeline.Op(numpy, tensorflow, draws=draws, law=law)
