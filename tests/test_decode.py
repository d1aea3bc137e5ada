"""Photos as phones write them are read as what they show, or refused by name."""

import contextlib
import io
import sys

import numpy as np
import pillow_heif
import pytest
from PIL import Image
from test_loaders import picture

from jaxface.data import decode

FULL = {"quality": -1, "chroma": 444}  # libheif's word for lossless


def heic(pixels, **options):
    out = io.BytesIO()
    image = Image.fromarray(pixels)
    pillow_heif.from_pillow(image).save(out, **{**FULL, **options})
    return out.getvalue()


def avif(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "AVIF", quality=100, subsampling="4:4:4")
    return out.getvalue()


@pytest.mark.parametrize("write", [heic, avif])
def test_a_photo_shows_what_was_written(write):
    pixels = picture(3, 48, 80)
    found = decode.pixels(write(pixels))
    assert (found.dtype, found.shape) == (np.uint8, (48, 80, 3))
    assert np.abs(found.astype(int) - pixels).max() <= 3  # by way of YCbCr
    np.testing.assert_array_equal(
        decode.pixels(write(pixels), mirrored=True), found[:, ::-1]
    )


def test_a_photo_that_was_held_sideways_is_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # the top is at the right
    pixels = picture(3, 48, 80)
    plain = decode.pixels(heic(pixels))
    turned = decode.pixels(heic(pixels, exif=exif.tobytes()))
    np.testing.assert_array_equal(turned, np.rot90(plain, -1))


def test_without_the_package_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    decode._know_heif.cache_clear()
    with pytest.raises(decode.UnreadableError, match=r"HEIC .* jaxface\[photos\]"):
        decode.pixels(heic(picture(3)))


def test_what_is_no_image_is_told_alike_each_time():
    with pytest.raises(decode.UnreadableError, match=r"^not an image of a known"):
        decode.pixels(b"no image")


@pytest.mark.parametrize("write", [heic, avif])
def test_a_damaged_photo_is_refused(write):
    whole, rng = write(picture(3, 48, 80)), np.random.default_rng(0)
    for end in rng.integers(12, len(whole) - 40, 20):
        with pytest.raises(decode.UnreadableError):
            decode.pixels(whole[:end])
    for _ in range(200):
        damaged = bytearray(whole)
        for at in rng.integers(12, len(whole), 3):
            damaged[at] = rng.integers(256)
        with contextlib.suppress(decode.UnreadableError):
            assert decode.pixels(bytes(damaged)).shape[2] == 3
