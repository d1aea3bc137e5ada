"""Ops that move pixels: each a matrix, and neighbours in a line become one.

line = ops.parse("decode|random_rotate(10)|random_shift(3)|normalize")
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxface.data import pipeline, resample


def random_rotate(degrees: float) -> pipeline.Op:
    """Turn about the centre by up to `degrees` either way, repeating the edge."""
    pipeline.check(degrees >= 0, f"degrees {degrees}: wanted 0 or more")

    def law(u):
        angle = np.deg2rad(degrees) * (2 * u[:, 0] - 1)  # counter-clockwise
        cos, sin = np.cos(angle), np.sin(angle)
        return _matrix(cos, -sin, 0, sin, cos, 0)

    return _warp(1, law)


def rotate(degrees: float) -> pipeline.Op:
    """Turn about the centre by `degrees` counter-clockwise, repeating the edge."""
    drawn = random_rotate(degrees)
    return dataclasses.replace(
        drawn, draws=0, law=lambda u: drawn.law(np.ones((len(u), 1)))
    )


def random_zoom(lo: float, hi: float) -> pipeline.Op:
    """Magnify about the centre by lo .. hi; below 1 the edge is repeated."""
    pipeline.check(0 < lo <= hi, f"lo {lo}, hi {hi}: wanted 0 < lo <= hi")

    def law(u):
        step = 1 / (lo + (hi - lo) * u[:, 0])
        return _matrix(step, 0, 0, 0, step, 0)

    return _warp(1, law)


def random_shift(pixels: float) -> pipeline.Op:
    """Move by up to `pixels` either way on both axes, repeating the edge."""
    pipeline.check(pixels >= 0, f"pixels {pixels}: wanted 0 or more")

    def law(u):
        x, y = pixels * (2 * u.T - 1)
        return _matrix(1, 0, x, 0, 1, y)

    return _warp(2, law)


def _matrix(*entries: Any) -> np.ndarray:
    """Return [B, 6] from six scalars or [B] arrays."""
    return np.stack(np.broadcast_arrays(*entries), axis=1).astype(np.float64)


def _warp(draws: int, law: Callable[[np.ndarray], np.ndarray]) -> pipeline.Op:
    def tensorflow(tf, image, z):
        shape = tf.shape(image)
        row = resample.from_corner(z, shape[0], shape[1])
        moved = tf.raw_ops.ImageProjectiveTransformV3(
            images=tf.cast(image, tf.float32)[None],
            transforms=tf.cast(tf.stack([*row, 0.0, 0.0])[None], tf.float32),
            output_shape=shape[:2],
            fill_value=0.0,
            interpolation="BILINEAR",
            fill_mode="NEAREST",
        )
        return pipeline.saturated(tf, moved[0])

    return pipeline.Op(resample.warp, tensorflow, draws=draws, law=law, warps=True)
