"""Ops that change colours and sharpness, where every pixel stays in its place.

AdaFace's set (Kim et al. 2022, section 4.1 and their code), each part at p = 0.2, is

    window(p=0.2)|low_resolution(p=0.2)|color_jitter(0.5, 0.5, 0.5, p=0.2)
"""

from __future__ import annotations

import dataclasses
import io
import math

import numpy as np
from PIL import Image

from jaxface.data import pipeline, resample


def color_jitter(
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    p: float = 1.0,
) -> pipeline.Op:
    """Scale brightness, contrast and saturation, each by 1 - x .. 1 + x.

    Contrast is about the image's mean, saturation about the mean of a pixel's three
    channels, so the channel order does not matter. Done with probability p.
    """
    ranges = np.array([brightness, contrast, saturation])
    for value in ranges:
        pipeline.check_share("a range", value)
    cv2 = resample.opencv()

    def numpy(image, z):
        light, contrast, saturation = z.tolist()
        own = light * contrast
        matrix = np.full((3, 4), own * (1 - saturation) / 3, np.float32)
        matrix[[0, 1, 2], [0, 1, 2]] += own * saturation
        matrix[:, 3] = light * (1 - contrast) * sum(cv2.mean(image)) / 3
        return cv2.transform(image, matrix)

    def tensorflow(tf, image, z):
        mean = tf.reduce_mean(tf.cast(image, tf.float64))
        image, mean, z = (tf.cast(x, tf.float32) for x in (image, mean, z))
        light, contrast, saturation = z[0], z[1], z[2]
        image = light * (mean + contrast * (image - mean))
        grey = tf.reduce_mean(image, axis=2, keepdims=True)
        return pipeline.saturated(tf, grey + saturation * (image - grey))

    op = pipeline.Op(numpy, tensorflow, draws=3, law=lambda u: 1 + ranges * (2 * u - 1))
    return pipeline.sometimes(op, p)


def brightness(factor: float) -> pipeline.Op:
    """Multiply all pixels by `factor`; what is brighter than white is white."""
    pipeline.check(factor >= 0, f"factor {factor}: wanted 0 or more")
    given = np.array([[factor, 1.0, 1.0]])
    return dataclasses.replace(
        color_jitter(), draws=0, law=lambda u: np.repeat(given, len(u), axis=0)
    )


def random_gray(p: float) -> pipeline.Op:
    """Replace the colours by their mean with probability p."""

    def numpy(image, z):
        total = image.sum(axis=2, keepdims=True, dtype=np.float32)
        return np.broadcast_to(resample.to_uint8(total / 3), image.shape)

    def tensorflow(tf, image, z):
        total = tf.reduce_sum(tf.cast(image, tf.float32), axis=2, keepdims=True)
        return tf.broadcast_to(pipeline.saturated(tf, total / 3), tf.shape(image))

    return pipeline.sometimes(pipeline.Op(numpy, tensorflow), p)


def blur(lo: float = 0.5, hi: float = 2.0, p: float = 1.0) -> pipeline.Op:
    """Blur by a Gaussian of lo .. hi pixels, repeating the edge, with probability p."""
    pipeline.check(0 < lo <= hi, f"lo {lo}, hi {hi}: wanted 0 < lo <= hi pixels")
    at = np.arange(-math.ceil(3 * hi), math.ceil(3 * hi) + 1)
    cv2 = resample.opencv()

    def law(u):
        weights = np.exp(-((at / (lo + (hi - lo) * u)) ** 2) / 2)  # [B, taps]
        return weights / weights.sum(axis=1, keepdims=True)

    def numpy(image, z):
        edge = cv2.BORDER_REPLICATE
        return resample.to_uint8(
            cv2.sepFilter2D(image, cv2.CV_32F, z, z, borderType=edge)
        )

    def tensorflow(tf, image, z):
        z, image = tf.cast(z, tf.float32), tf.cast(image, tf.float32)
        for axis in (0, 1):
            n = tf.shape(image)[axis]
            there = tf.clip_by_value(tf.range(n) + at[:, None], 0, n - 1)
            parts = [
                z[k] * tf.gather(image, there[k], axis=axis) for k in range(len(at))
            ]
            image = tf.add_n(parts)
        return pipeline.saturated(tf, image)

    op = pipeline.Op(numpy, tensorflow, draws=1, law=law)
    return pipeline.sometimes(op, p)


def low_resolution(lo: float = 0.2, hi: float = 1.0, p: float = 1.0) -> pipeline.Op:
    """Shrink both sides to lo .. hi of themselves and back, with probability p.

    By means of areas, and back bilinearly; AdaFace's code draws one of OpenCV's five
    interpolations for each of the two.
    """
    pipeline.check(0 < lo <= hi <= 1, f"lo {lo}, hi {hi}: wanted 0 < lo <= hi <= 1")
    cv2 = resample.opencv()

    def numpy(image, z):
        h, w, _ = image.shape
        small = max(1, int(z[0] * w)), max(1, int(z[0] * h))
        # not rounded in between, or a level could become two of TensorFlow's
        image = image.astype(np.float32)
        image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
        image = cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)
        return cv2.convertScaleAbs(image)  # rounded half to even

    def tensorflow(tf, image, z):
        size = tf.shape(image)[:2]
        small = tf.maximum(1, tf.cast(z[0] * tf.cast(size, tf.float64), tf.int32))
        for to, way in ((small, "area"), (size, "bilinear")):
            image = tf.image.resize(image, to, way)
        return pipeline.saturated(tf, image)

    op = pipeline.Op(numpy, tensorflow, draws=1, law=lambda u: lo + (hi - lo) * u)
    return pipeline.sometimes(op, p)


def jpeg(lo: int = 30, hi: int = 90, p: float = 1.0) -> pipeline.Op:
    """Compress as JPEG of quality lo .. hi and read that, with probability p.

    Chroma is halved on both sides. TensorFlow's encoder is not Pillow's, so both
    loaders use Pillow's: one image at a time in Python.
    """
    pipeline.check(
        1 <= lo <= hi <= 100, f"lo {lo}, hi {hi}: wanted 1 <= lo <= hi <= 100"
    )

    def numpy(image, z):
        out = io.BytesIO()
        Image.fromarray(image).save(out, "JPEG", quality=int(z[0]), subsampling="4:2:0")
        return np.asarray(Image.open(out))

    def tensorflow(tf, image, z):
        done = tf.numpy_function(numpy, [image, z], tf.uint8)
        return tf.ensure_shape(done, image.shape)

    op = pipeline.Op(
        numpy, tensorflow, draws=1, law=lambda u: np.floor(lo + (hi - lo + 1) * u)
    )
    return pipeline.sometimes(op, p)
