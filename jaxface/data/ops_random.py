"""RandAugment: a few ops drawn from a list, all of one strength.

line = ops.parse("decode|randaugment(count=2,magnitude=9)|flip|normalize")
"""

from __future__ import annotations

import numpy as np

from jaxface.data import ops_light, ops_warp, pipeline

# Of the paper's fourteen, those below; autocontrast, equalize and sharpness are left
# out, brightness, contrast and colour are `color_jitter`'s.
KINDS = (
    *("identity", "rotate", "shear_x", "shear_y", "translate_x", "translate_y"),
    *("brightness", "contrast", "color", "posterize", "solarize"),
)
_WARP, _LIGHT = slice(1, 7), slice(7, 10)
_KIND, _BITS, _TURN = 0, 10, 11  # where in the numbers of one op


def randaugment(count: int = 2, magnitude: float = 9.0) -> pipeline.Op:
    """Do `count` ops drawn from `KINDS`, each of magnitude 0 .. 30, either way.

    Cubuk et al. 2020. At 30: 30 degrees, a shear of 0.3, a third of the image, factors
    of 0.1 or 1.9, 4 bits, all pixels inverted.
    """
    pipeline.check(count >= 1, f"count {count}: wanted 1 or more")
    pipeline.check(0 <= magnitude <= 30, f"magnitude {magnitude}: wanted 0 .. 30")
    strength = magnitude / 30
    warp, light = ops_warp.random_rotate(0), ops_light.color_jitter()

    def law(u):
        drawn = [_numbers(u[:, 2 * i : 2 * i + 2], strength) for i in range(count)]
        return np.concatenate(drawn, axis=1)

    def numpy(image, z):
        for own in z.reshape(count, -1):
            kind = int(own[_KIND])
            if kind == 1:
                h, w, _ = image.shape
                image = warp.numpy(image, own[_WARP] * (1, 1, w, 1, 1, h))
            elif kind == 2:
                image = light.numpy(image, own[_LIGHT])
            elif kind == 3:
                image = image & np.uint8(own[_BITS])
            elif kind == 4:
                image = np.where(image >= own[_TURN], 255 - image, image)
        return image

    def tensorflow(tf, image, z):
        for own in tf.unstack(tf.reshape(z, [count, -1])):
            image = tf.switch_case(
                tf.cast(own[_KIND], tf.int32),
                [f(tf, image, own) for f in (_same, warped, lit, _fewer, _turned)],
            )
        return image

    def warped(tf, image, z):
        def done():
            h, w = (tf.cast(n, z.dtype) for n in tf.unstack(tf.shape(image)[:2]))
            return warp.tensorflow(tf, image, z[_WARP] * tf.stack([1, 1, w, 1, 1, h]))

        return done

    def lit(tf, image, z):
        return lambda: light.tensorflow(tf, image, z[_LIGHT])

    return pipeline.Op(numpy, tensorflow, draws=2 * count, law=law)


def _numbers(u: np.ndarray, strength: float) -> np.ndarray:
    """Return [B, 12] of [B, 2]: which body, and what each would be handed."""
    drawn = (u[:, 0] * len(KINDS)).astype(int)
    way = strength * np.where(u[:, 1] < 0.5, -1.0, 1.0)
    z = np.zeros((len(u), 12))
    z[:, _KIND] = np.select([drawn == 0, drawn < 6, drawn < 9, drawn == 9], range(4), 4)
    angle = np.deg2rad(30) * way * (drawn == 1)
    cos, sin = np.cos(angle), np.sin(angle)
    z[:, 1], z[:, 2], z[:, 3] = cos, -sin + 0.3 * way * (drawn == 2), way * (drawn == 4)
    z[:, 4], z[:, 5], z[:, 6] = sin + 0.3 * way * (drawn == 3), cos, way * (drawn == 5)
    z[:, [3, 6]] /= 3
    for i in range(3):
        z[:, 7 + i] = 1 + 0.9 * way * (drawn == 6 + i)
    z[:, _BITS] = 256 - 2 ** round(4 * strength)
    z[:, _TURN] = 256 * (1 - strength)
    return z


def _same(tf, image, z):
    return lambda: image


def _fewer(tf, image, z):
    return lambda: tf.bitwise.bitwise_and(image, tf.cast(z[_BITS], tf.uint8))


def _turned(tf, image, z):
    return lambda: tf.where(tf.cast(image, z.dtype) >= z[_TURN], 255 - image, image)
