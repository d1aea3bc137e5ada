"""Preprocessing, as a line one can say aloud: `decode|resize(112)|flip|normalize`.

The law: an op is a function of pixels and of numbers drawn in NumPy from (seed,
position), with a NumPy and a TensorFlow body that agree to one grey level. Images
are uint8 [H, W, 3] between ops; `normalize` ends the line in float32. Neighbouring
rotations, zooms and shifts become one warp, which blurs once.

    line = parse("decode|resize(112)|random_rotate(10)|flip|normalize")
    numbers = line.numbers(positions, seed=0)             # [B, m]
    image = line.numpy(encoded, numbers[0])               # [112, 112, 3] float32
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxface import spec
from jaxface.data import decode as decoding
from jaxface.data import pipeline, resample

GREY = 128  # of what `cutout` covers: zero after `normalize()`, to half a level


def parse(line: str) -> pipeline.Pipeline:
    """Build the pipeline a line describes.

    Args:
        line: ops of this module joined by `|`: `decode` first, `normalize` last.

    Raises:
        KeyError: an unknown op, with the nearest match.
        ValueError: a wrong argument, or ops in an impossible order.
    """
    known = spec.public(sys.modules[__name__])
    del known["parse"]
    calls = spec.parse(line)
    ops = []
    for i, call in enumerate(calls):
        if call.name not in known:
            raise spec.unknown("op", call.name, known)
        if (call.name == "decode") != (i == 0):
            raise ValueError(f"{line!r}: `decode` must be the first op, and only that")
        if call.name == "bgr" and ops[0].color == "bgr":
            raise ValueError(f"{line!r}: the images are bgr already; drop `bgr`")
        if call.name == "normalize" and i != len(calls) - 1:
            raise ValueError(f"{line!r}: `normalize` must be the last op")
        build = spec.bind(known[call.name], call)
        try:
            ops.append(build())
        except (TypeError, ValueError) as error:
            raise ValueError(f"{call}: {error}") from None
    return pipeline.Pipeline(_fused(ops))


def decode(color: str = "rgb") -> pipeline.Op:
    """Turn encoded bytes into pixels; pixels pass through.

    Args:
        color: channel order the source gives. Nothing is swapped here: loaders
            refuse a source of the other order; `bgr` swaps for a model that wants it.
    """
    if color not in ("rgb", "bgr"):
        raise ValueError(f"color {color!r}: wanted 'rgb' or 'bgr'")

    def tensorflow(tf, record, z):
        def raw():
            shape = tf.io.decode_raw(tf.strings.substr(record, 4, 8), tf.int32)
            shape = tf.ensure_shape(shape, [2])
            body = tf.strings.substr(record, decoding.RAW_HEADER, 2**31 - 1)
            image = tf.io.decode_raw(body, tf.uint8)
            return tf.reshape(image, [shape[0], shape[1], 3])

        def plain():
            # the integer transform and smooth chroma are what Pillow uses
            return tf.io.decode_jpeg(
                record, channels=3, dct_method="INTEGER_ACCURATE", fancy_upscaling=True
            )  # the op reads PNG as well

        mark = tf.strings.substr(record, 0, len(decoding.RAW))
        return tf.cond(mark == decoding.RAW, raw, plain)

    return pipeline.Op(
        lambda record, z: decoding.pixels(record), tensorflow, color=color
    )


def bgr() -> pipeline.Op:
    """Reverse the channels of an rgb image, for networks trained on bgr ones."""
    return pipeline.Op(
        lambda image, z: image[..., ::-1],
        lambda tf, image, z: tf.reverse(image, [-1]),
        color="bgr",
    )


def resize(size: int | tuple[int, int]) -> pipeline.Op:
    """Resize to `size` or (height, width), antialiased, not keeping the aspect."""
    size = _size(size)

    def tensorflow(tf, image, z):
        def resized():
            return _to_uint8(tf, tf.image.resize(image, size, antialias=True))

        same = tf.reduce_all(tf.shape(image)[:2] == size)
        return tf.cond(same, lambda: image, resized)

    return pipeline.Op(
        lambda image, z: resample.resize(image, size=size), tensorflow, size=size
    )


def center_crop(size: int | tuple[int, int]) -> pipeline.Op:
    """Cut `size` or (height, width) out of the middle; a smaller image is an error."""
    # just under a half: of an odd margin the smaller part goes first
    return _crop(_size(size), 0, 0, lambda u: np.full((len(u), 2), 0.499999))


def random_crop(size: int | tuple[int, int], pad: int = 0) -> pipeline.Op:
    """Cut `size` or (height, width) out of anywhere.

    Args:
        size: of the output.
        pad: pixels the image is first widened by on every side, repeating its edge.
    """
    _check(pad >= 0, f"pad {pad}: wanted 0 or more pixels")
    return _crop(_size(size), pad, 2, lambda u: u)


def _crop(
    size: tuple[int, int], pad: int, draws: int, law: Callable[[Any], Any]
) -> pipeline.Op:
    """Cut at the given share [2] of the free margin."""
    H, W = size

    def numpy(image, z):
        h, w, _ = image.shape
        if h + 2 * pad < H or w + 2 * pad < W:
            raise ValueError(
                f"cannot cut {H} x {W} out of {h} x {w} padded by {pad}: resize first"
            )
        y = int(z[0] * (h + 2 * pad - H + 1)) - pad + np.arange(H)
        x = int(z[1] * (w + 2 * pad - W + 1)) - pad + np.arange(W)
        return image[np.clip(y, 0, h - 1)[:, None], np.clip(x, 0, w - 1)[None]]

    def tensorflow(tf, image, z):
        shape = tf.shape(image)[:2]
        room = shape + 2 * pad - size
        tf.debugging.assert_non_negative(room, f"cannot cut {H} x {W}: resize first")
        first = tf.cast(z * tf.cast(room + 1, z.dtype), tf.int32) - pad
        y = tf.clip_by_value(first[0] + tf.range(H), 0, shape[0] - 1)
        x = tf.clip_by_value(first[1] + tf.range(W), 0, shape[1] - 1)
        return tf.gather(tf.gather(image, y), x, axis=1)

    return pipeline.Op(numpy, tensorflow, draws, law, size)


def flip(p: float = 0.5) -> pipeline.Op:
    """Mirror left to right with probability p."""
    _check_share("p", p)
    return pipeline.Op(
        lambda image, z: image[:, ::-1] if z[0] < p else image,
        lambda tf, image, z: tf.cond(
            z[0] < p, lambda: tf.reverse(image, [1]), lambda: image
        ),
        draws=1,
    )


def random_rotate(degrees: float) -> pipeline.Op:
    """Turn about the centre by up to `degrees` either way, repeating the edge."""
    _check(degrees >= 0, f"degrees {degrees}: wanted 0 or more")

    def law(u):
        angle = np.deg2rad(degrees) * (2 * u[:, 0] - 1)  # counter-clockwise
        cos, sin = np.cos(angle), np.sin(angle)
        return _matrix(cos, -sin, 0, sin, cos, 0)

    return _warp(1, law)


def random_zoom(lo: float, hi: float) -> pipeline.Op:
    """Magnify about the centre by lo .. hi; below 1 the edge is repeated."""
    _check(0 < lo <= hi, f"lo {lo}, hi {hi}: wanted 0 < lo <= hi")

    def law(u):
        step = 1 / (lo + (hi - lo) * u[:, 0])
        return _matrix(step, 0, 0, 0, step, 0)

    return _warp(1, law)


def random_shift(pixels: float) -> pipeline.Op:
    """Move by up to `pixels` either way on both axes, repeating the edge."""
    _check(pixels >= 0, f"pixels {pixels}: wanted 0 or more")

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
        return _to_uint8(tf, moved[0])

    return pipeline.Op(resample.warp, tensorflow, draws, law, warps=True)


def _fused(ops: Sequence[pipeline.Op]) -> tuple[pipeline.Op, ...]:
    """Join neighbouring warps into one."""
    out: list[pipeline.Op] = []
    for op in ops:
        if op.warps and out and out[-1].warps:
            op = _joined(out.pop(), op)
        out.append(op)
    return tuple(out)


def _joined(first: pipeline.Op, then: pipeline.Op) -> pipeline.Op:
    def law(u):
        # output -> between by `then`, between -> input by `first`
        outer = first.law(u[:, : first.draws]).reshape(-1, 2, 3)
        inner = then.law(u[:, first.draws :]).reshape(-1, 2, 3)
        product = outer[:, :, :2] @ inner
        product[:, :, 2] += outer[:, :, 2]
        return product.reshape(-1, 6)

    return _warp(first.draws + then.draws, law)


def color_jitter(
    brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0
) -> pipeline.Op:
    """Scale brightness, contrast and saturation, each by 1 - x .. 1 + x.

    Contrast is about the image's mean, saturation about the mean of a pixel's three
    channels, so the channel order does not matter.
    """
    ranges = np.array([brightness, contrast, saturation])
    for value in ranges:
        _check_share("a range", value)

    def body(image, mean, z):
        light, contrast, saturation = z[0], z[1], z[2]
        image = light * (mean + contrast * (image - mean))
        grey = ((image[..., 0] + image[..., 1] + image[..., 2]) / 3)[..., None]
        return grey + saturation * (image - grey)

    def numpy(image, z):
        mean = np.float32(image.mean(dtype=np.float64))
        jittered = body(image.astype(np.float32), mean, z.astype(np.float32))
        return resample.to_uint8(jittered)

    def tensorflow(tf, image, z):
        mean = tf.reduce_mean(tf.cast(image, tf.float64))
        image, mean, z = (tf.cast(x, tf.float32) for x in (image, mean, z))
        return _to_uint8(tf, body(image, mean, z))

    return pipeline.Op(numpy, tensorflow, 3, lambda u: 1 + ranges * (2 * u - 1))


def random_gray(p: float) -> pipeline.Op:
    """Replace the colours by their mean with probability p."""
    _check_share("p", p)

    def numpy(image, z):
        if z[0] >= p:
            return image
        total = image.sum(axis=2, keepdims=True, dtype=np.float32)
        return np.broadcast_to(resample.to_uint8(total / 3), image.shape)

    def tensorflow(tf, image, z):
        def gray():
            total = tf.reduce_sum(tf.cast(image, tf.float32), axis=2, keepdims=True)
            return tf.broadcast_to(_to_uint8(tf, total / 3), tf.shape(image))

        return tf.cond(z[0] < p, gray, lambda: image)

    return pipeline.Op(numpy, tensorflow, draws=1)


def cutout(size: int, p: float = 1.0) -> pipeline.Op:
    """Cover a square of `size` pixels, centred anywhere, with probability p.

    DeVries and Taylor 2017: the square may reach over the border.
    """
    _size(size)
    _check_share("p", p)

    def covered(y, x, height, width, z):
        top, left = z[1] * height - size / 2, z[2] * width - size / 2
        rows, columns = (y >= top) & (y < top + size), (x >= left) & (x < left + size)
        return rows[:, None, None] & columns[None, :, None]

    def numpy(image, z):
        h, w, _ = image.shape
        if z[0] >= p:
            return image
        hole = covered(np.arange(h), np.arange(w), h, w, z)
        return np.where(hole, np.uint8(GREY), image)

    def tensorflow(tf, image, z):
        def cut():
            h, w = (tf.cast(n, z.dtype) for n in tf.unstack(tf.shape(image)[:2]))
            hole = covered(tf.range(h), tf.range(w), h, w, z)
            return tf.where(hole, tf.constant(GREY, tf.uint8), image)

        return tf.cond(z[0] < p, cut, lambda: image)

    return pipeline.Op(numpy, tensorflow, draws=3)


def normalize(
    mean: float | tuple[float, ...] = 127.5, std: float | tuple[float, ...] = 127.5
) -> pipeline.Op:
    """Return (image - mean) / std in float32; one number, or one per channel."""
    mean32, std32 = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    _check(bool(np.all(std32 > 0)), f"std {std}: wanted more than 0")
    for value in (mean32, std32):
        _check(value.shape in ((), (3,)), f"{value}: wanted one number or three")
    return pipeline.Op(
        lambda image, z: (image - mean32) / std32,
        lambda tf, image, z: (tf.cast(image, tf.float32) - mean32) / std32,
        scale=(mean, std),
    )


def _to_uint8(tf: Any, image: Any) -> Any:
    return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)


def _size(size: int | tuple[int, int]) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(n, int) and n > 0 for n in pair):
        raise ValueError(f"size {size!r}: wanted pixels, or (height, width)")
    return pair


def _check(good: bool, message: str) -> None:
    if not good:
        raise ValueError(message)


def _check_share(name: str, value: float) -> None:
    _check(0 <= value <= 1, f"{name} of {value}: wanted 0 .. 1")
