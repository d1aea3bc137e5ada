"""Ops that dress aligned faces in what the renderer draws: masks, hands, glasses.

The law: they fit a face that lies where ArcFace's template puts it, in rgb.

    line = ops.parse("decode|resize(112)|occlude(mask=0.1,glasses=0.1)|flip|normalize")
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxface.data import pipeline, resample
from jaxface.data.faces import covers, people, stage

MASK, HAND = 0.0, 0.5  # of `people.View.cover`
HAIR = stage.colour(0.1, 0.08, 0.06)

# Somebody whose eyes and mouth are seen where ArcFace's five points are.
_WHO = dataclasses.replace(
    people.identity(seed=0, identity=0),
    width=0.55,
    height=0.76,
    skull=2.4,
    jaw=2.6,
    taper=0.15,
    cheek=0.02,
    eye_v=-0.05,
    eye_gap=0.236,
    nose_long=0.375,
    mouth_v=0.17,
)
_VIEW = dataclasses.replace(
    people.view(seed=0, identity=0, index=0),
    yaw=0.0,
    pitch=0.0,
    roll=0.0,
    scale=1.333,
    shift_x=0.008,
    shift_y=-0.003,
)


def occlude(mask: float = 0.1, glasses: float = 0.1, hand: float = 0.0) -> pipeline.Op:
    """Put a mask or a hand before a face, and glasses on it, with these probabilities.

    Drawn as the rendered people wear them, as bright as the image is on average. Both
    loaders draw them in NumPy: one image at a time in Python.
    """
    for name, value in (("mask + hand", mask + hand), ("glasses", glasses)):
        pipeline.check_share(name, value)
    for name, value in (("mask", mask), ("hand", hand)):
        pipeline.check_share(name, value)

    def law(u):
        cover = np.select([u[:, 0] < mask, u[:, 0] < mask + hand], [MASK, HAND], -1.0)
        return np.concatenate([cover[:, None], u[:, 1:2] < glasses, u[:, 2:]], axis=1)

    def tensorflow(tf, image, z):
        def worn():
            done = tf.numpy_function(_worn, [image, z], tf.uint8)
            return tf.ensure_shape(done, image.shape)

        return tf.cond((z[0] >= 0) | (z[1] > 0), worn, lambda: image)

    return pipeline.Op(_worn, tensorflow, draws=14, law=law)


def _worn(image: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Draw over uint8 [n, n, 3]; z: cover or -1, glasses or 0, shapes [4] and [8]."""
    if z[0] < 0 and not z[1]:
        return image
    size = len(image)
    if image.shape[1] != size or size < 16:
        raise ValueError(
            f"occlude wants square images of 16 pixels or more, got {image.shape}:"
            " resize first"
        )
    view = dataclasses.replace(
        _VIEW,
        cover=float(z[0]),
        cover_shape=tuple(z[2:6].tolist()),
        glasses_shape=tuple(z[6:].tolist()),
    )
    scene = stage.build(_WHO, view, size=size)
    light = max(float(image.mean()) / 128, 0.05)
    scene.albedo[:] = image.transpose(2, 0, 1) * np.float32(1 / (255 * light))
    if z[1]:
        covers.glasses(scene)
    if z[0] >= 0:
        around = slice(size // 2, 5 * size // 8)
        skin = scene.albedo[:, around, around].mean((1, 2), keepdims=True)
        covers.obstacle(scene, skin, HAIR)
    worn = scene.albedo.transpose(1, 2, 0) * np.float32(255 * light)
    return np.ascontiguousarray(resample.to_uint8(worn))
