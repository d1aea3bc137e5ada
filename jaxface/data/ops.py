"""Preprocessing, as a line one can say aloud: `decode|resize(112)|flip|normalize`.

The law: an op is a function of pixels and of numbers drawn in NumPy from (seed,
position), with a NumPy and a TensorFlow body that agree to one grey level (where
`randaugment` does several, a threshold may turn the first one's level into many).
Images are uint8 [H, W, 3] between ops; `normalize` ends the line in float32.
Neighbouring rotations, zooms and shifts become one warp, which blurs once.

    line = parse("decode|resize(112)|random_rotate(10)|flip|normalize")
    numbers = line.numbers(positions, seed=0)             # [B, m]
    image = line.numpy(encoded, numbers[0])               # [112, 112, 3] float32
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxface import spec
from jaxface.data import decode as decoding
from jaxface.data import (
    ops_cover,
    ops_light,
    ops_random,
    ops_warp,
    ops_worn,
    pipeline,
    resample,
)

# the integer transform and smooth chroma are what Pillow uses
_AS_PILLOW = {"dct_method": "INTEGER_ACCURATE", "fancy_upscaling": True}
ROOMS = (ops_warp, ops_light, ops_cover, ops_worn, ops_random)  # where further ops are


def parse(line: str) -> pipeline.Pipeline:
    """Build the pipeline a line describes.

    Args:
        line: ops of this module and of `ROOMS` joined by `|`: `decode` first,
            `normalize` last.

    Raises:
        KeyError: an unknown op, with the nearest match.
        ValueError: a wrong argument, or ops in an impossible order.
    """
    known = spec.public(sys.modules[__name__])
    del known["parse"]
    for room in ROOMS:
        known |= spec.public(room)
    calls = spec.parse(line)
    ops: list[pipeline.Op] = []
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
    if ops[0].cuts:
        if len(ops) < 2 or not ops[1].cuts:
            raise ValueError(
                f"{line!r}: decode(window=True) wants a center_crop or random_crop"
                " without pad right after it"
            )
        ops[:2] = _decoded_and_cut(*ops[:2])
    return pipeline.Pipeline(pipeline.joined(ops))


def _decoded_and_cut(decode: pipeline.Op, crop: pipeline.Op) -> list[pipeline.Op]:
    """Let TensorFlow decode only what a crop takes of a JPEG; the pixels are the same.

    Smooth chroma looks at its neighbours, so two pixels more on each side are decoded.
    """
    assert crop.size

    def cut(tf, record, z):
        def whole():
            return crop.tensorflow(tf, decode.tensorflow(tf, record, ()), z)

        def part():
            shape, size = tf.image.extract_jpeg_shape(record)[:2], crop.size or ()
            first = tf.cast(z * tf.cast(shape - size + 1, z.dtype), tf.int32)
            start = tf.maximum(first - 2, 0)
            end = tf.minimum(first + size + 2, shape)
            window = tf.concat([start, end - start], 0)
            image = tf.io.decode_and_crop_jpeg(record, window, channels=3, **_AS_PILLOW)
            return tf.slice(image, [*tf.unstack(first - start), 0], [*size, 3])

        jpeg = tf.strings.substr(record, 0, 2) == b"\xff\xd8"
        return tf.cond(jpeg, part, whole)

    return [
        dataclasses.replace(decode, tensorflow=lambda tf, record, z: record),
        dataclasses.replace(crop, tensorflow=cut),
    ]


def decode(color: str = "rgb", window: bool = False) -> pipeline.Op:
    """Turn encoded bytes into pixels; pixels pass through.

    Args:
        color: channel order the source gives. Nothing is swapped here: loaders
            refuse a source of the other order; `bgr` swaps for a model that wants it.
        window: decode no more of a JPEG than the crop right after takes, which pays
            for large images. Only in TensorFlow, to the same pixels; damage elsewhere
            in a file goes unnoticed there, and replaces the image in the loader `host`.
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
            return tf.io.decode_jpeg(record, channels=3, **_AS_PILLOW)  # PNG as well

        mark = tf.strings.substr(record, 0, len(decoding.RAW))
        return tf.cond(mark == decoding.RAW, raw, plain)

    return pipeline.Op(
        lambda record, z: decoding.pixels(record),
        tensorflow,
        color=color,
        cuts=window,
    )


def bgr() -> pipeline.Op:
    """Reverse the channels of an rgb image, for networks trained on bgr ones."""
    return pipeline.Op(
        lambda image, z: image[..., ::-1],
        lambda tf, image, z: tf.reverse(image, [-1]),
        lambda xp, images: images[..., ::-1],
        color="bgr",
    )


def resize(size: int | tuple[int, int]) -> pipeline.Op:
    """Resize to `size` or (height, width), antialiased, not keeping the aspect."""
    size = _size(size)

    def tensorflow(tf, image, z):
        def resized():
            return pipeline.saturated(tf, tf.image.resize(image, size, antialias=True))

        same = tf.reduce_all(tf.shape(image)[:2] == size)
        return tf.cond(same, lambda: image, resized)

    return pipeline.Op(
        lambda image, z: resample.resize(image, size=size),
        tensorflow,
        size=size,
        fits=True,
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
    pipeline.check(pad >= 0, f"pad {pad}: wanted 0 or more pixels")
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

    return pipeline.Op(numpy, tensorflow, draws=draws, law=law, size=size, cuts=not pad)


def flip(p: float = 0.5) -> pipeline.Op:
    """Mirror left to right with probability p."""
    pipeline.check_share("p", p)

    return pipeline.Op(
        lambda image, z: resample.mirror(image) if z[0] else image,
        lambda tf, image, z: tf.cond(
            z[0] > 0, lambda: tf.reverse(image, [1]), lambda: image
        ),
        draws=1,
        law=lambda u: (u < p).astype(np.float64),
        mirrors=True,
    )


def normalize(
    mean: float | tuple[float, ...] = 127.5, std: float | tuple[float, ...] = 127.5
) -> pipeline.Op:
    """Return (image - mean) / std in float32; one number, or one per channel."""
    mean32, std32 = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    pipeline.check(bool(np.all(std32 > 0)), f"std {std}: wanted more than 0")
    for value in (mean32, std32):
        pipeline.check(
            value.shape in ((), (3,)), f"{value}: wanted one number or three"
        )
    return pipeline.Op(
        lambda image, z: (image - mean32) / std32,
        lambda tf, image, z: (tf.cast(image, tf.float32) - mean32) / std32,
        lambda xp, images: (
            (images.astype(xp.float32) - mean32.reshape(1, 1, 1, -1))
            / std32.reshape(1, 1, 1, -1)
        ),
        scale=(mean, std),
    )


def _size(size: int | tuple[int, int]) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(n, int) and n > 0 for n in pair):
        raise ValueError(f"size {size!r}: wanted pixels, or (height, width)")
    return pair
