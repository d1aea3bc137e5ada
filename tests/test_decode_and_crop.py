"""A crop right after `decode` gives the pixels of decoding all and cutting then."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from jaxface.data import decode, ops

CUT = ops.parse("decode(window=True)|random_crop((30, 37))")
APART = ops.parse("decode|random_crop((30, 37))")


def encoded(seed, kind="JPEG", size=(75, 90), mode="RGB", **options):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (12, 11, 3), np.uint8)
    out = io.BytesIO()
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    image.convert(mode).save(out, kind, **options)
    return out.getvalue()


KINDS = {
    **{f"chroma{k}": {"subsampling": k} for k in (0, 1, 2)},
    "progressive": {"progressive": True},
    "grey": {"mode": "L"},
    "png": {"kind": "PNG"},
    "just": {"size": (37, 30)},
}
PLACES = [*np.random.default_rng(1).random((6, 2)), (0, 0), (1 - 1e-9, 1 - 1e-9)]


@tf.function(
    input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([2], tf.float64)]
)
def graph(record, z):
    return CUT.tensorflow(tf, record, z)


@pytest.mark.parametrize("kind", KINDS)
def test_the_pixels_are_those_of_cutting_afterwards(kind):
    for seed, z in enumerate(PLACES):
        record = encoded(seed, **KINDS[kind])
        got = graph(record, np.array(z)).numpy()
        np.testing.assert_array_equal(got, APART.tensorflow(tf, record, np.array(z)))
        np.testing.assert_array_equal(got, CUT.numpy(record, np.array(z)))


def test_packed_pixels_pass_too():
    record = decode.pack(decode.pixels(encoded(0)))
    got = graph(record, np.array([0.3, 0.6]))
    np.testing.assert_array_equal(got, CUT.numpy(encoded(0), np.array([0.3, 0.6])))


def test_damage_beyond_the_window_changes_no_pixel_in_it():
    rng, came = np.random.default_rng(0), 0
    for seed in range(60):
        record, z = bytearray(encoded(seed)), rng.random(2)
        start = record.index(b"\xff\xda") + 20
        record[rng.integers(start, len(record) - 2)] ^= 1 << rng.integers(8)
        try:
            got = graph(bytes(record), z).numpy()
        except tf.errors.InvalidArgumentError:
            continue  # its batch is made again with Pillow as the judge
        try:
            wanted = CUT.numpy(bytes(record), z)
        except decode.UnreadableError:
            continue  # the part that was not looked at
        came += 1
        np.testing.assert_array_equal(got, wanted)
    assert came > 30


def test_it_wants_a_crop_within_the_image():
    for line in ("resize(9)", "random_crop(9,pad=1)", "flip"):
        with pytest.raises(ValueError, match="right after it"):
            ops.parse(f"decode(window=True)|{line}")


def test_what_is_too_small_or_no_image_is_an_error():
    for record in (encoded(0, size=(36, 30)), encoded(0)[:40], b"\xff\xd8no"):
        with pytest.raises(tf.errors.InvalidArgumentError):
            graph(record, np.array([0.5, 0.5]))
