"""Every op means the same in NumPy and TensorFlow, and what its name says."""

import contextlib
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from jaxface.data import decode, ops, ops_cover, ops_light, ops_warp, resample

GEOMETRY = "random_rotate(10)|random_zoom(0.9,1.1)|random_shift(3)"
LINES = [
    "resize(20)",
    "resize((50,33))",
    "center_crop((20,17))",
    "random_crop(25,pad=3)",
    "flip",
    "bgr",
    "random_rotate(45)",
    "random_zoom(0.6,1.5)",
    "random_shift(5)",
    GEOMETRY,
    "color_jitter(0.4,0.4,0.4)",
    "brightness(1.4)",
    "rotate(20)",
    "random_gray(0.5)",
    "cutout(9,p=0.7)",
    "window(p=0.8)",
    "erase(p=0.8)",
    "low_resolution(p=0.8)",
    "color_jitter(0.5,0.5,0.5,p=0.5)",
    "blur(0.5,2.0,p=0.8)",
    "jpeg(20,90,p=0.8)",
    "resize(32)|occlude(mask=0.3,glasses=0.5,hand=0.3)",
    "randaugment(count=1,magnitude=15)",
    "randaugment(count=1,magnitude=0)",
    "normalize",
    "normalize(mean=(120.0,110.0,100.0),std=(60.0,61.0,62.0))",
    f"resize(32)|{GEOMETRY}|flip|color_jitter(0.2,0.2,0.2)|cutout(8,p=0.5)|normalize",
]


def picture(height=28, width=31, seed=0):
    """Smooth colours with some noise: uint8 [H, W, 3]."""
    y, x = np.mgrid[:height, :width, :1][:2]
    waves = 128 + 90 * np.sin(x / 4 + y / 7 + np.arange(3))
    noise = np.random.default_rng(seed).normal(0, 9, waves.shape)
    return np.clip(waves + noise, 0, 255).astype(np.uint8)


def encoded(image, kind="PNG", **options):
    out = io.BytesIO()
    Image.fromarray(image).save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("line", LINES)
def test_numpy_and_tensorflow_agree_to_a_grey_level(line):
    pipeline = ops.parse(f"decode|{line}")
    numbers = pipeline.numbers(np.arange(24), seed=1)
    graph = tf.function(lambda record, z: pipeline.tensorflow(tf, record, z))
    level = 1.001 / 127.5 if "normalize" in line else 1
    level = 1 / 60 if "std" in line else level
    for i, z in enumerate(numbers):
        image = picture(28 + i % 3, 31, seed=i)
        ours = pipeline.numpy(image, z)
        theirs = graph(tf.constant(decode.pack(image)), tf.constant(z)).numpy()
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert np.abs(ours.astype(float) - theirs.astype(float)).max() <= level


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "array"])
@pytest.mark.parametrize("height", [28, 30])
def test_an_image_that_has_its_size_is_decoded_where_it_is_wanted(kind, height):
    image = picture(height, 31)
    record = image if kind == "array" else encoded(image, kind)
    wanted = resample.resize(decode.pixels(record), size=(28, 31))
    pipeline, out = ops.parse("decode|resize((28,31))|flip"), np.empty_like(wanted)
    assert pipeline.only_decodes(record) == (height == 28)
    for mirrored in (0.0, 1.0):
        found = pipeline.numpy(record, np.array([mirrored]), out=out)
        assert found is out or (kind, height) != ("JPEG", 28)
        assert np.array_equal(found, wanted[:, ::-1] if mirrored else wanted)
    both = ops.parse("decode|resize(56)|resize((28,31))|flip")
    assert not both.only_decodes(record)


@pytest.mark.parametrize(
    "line", ["flip|normalize", "random_shift(3)|flip|bgr|normalize", "cutout(9)|flip"]
)
def test_the_end_of_a_line_is_the_same_for_a_whole_batch(line):
    pipeline = ops.parse(f"decode|{line}")
    first, rest = pipeline.split()
    numbers = pipeline.numbers(np.arange(16), seed=2)
    images = [picture(seed=i) for i in range(16)]
    whole = np.stack(
        [pipeline.numpy(i, z) for i, z in zip(images, numbers, strict=True)]
    )
    halves = np.stack([first.numpy(i, z) for i, z in zip(images, numbers, strict=True)])
    assert halves.dtype == np.uint8
    np.testing.assert_array_equal(rest.batch(np, halves), whole)
    compiled = jax.jit(lambda x: rest.batch(jnp, x))(halves)
    np.testing.assert_allclose(compiled, whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("height", [20, 21])
def test_crops_too_large_are_refused_by_both(height):
    for line in (
        ops.parse("decode|center_crop(22)"),
        ops.parse("decode|random_crop(22)"),
    ):
        z = line.numbers(np.zeros(1), seed=0)[0]
        with pytest.raises(ValueError, match="resize first"):
            line.numpy(picture(height, 40), z)
        with pytest.raises(tf.errors.InvalidArgumentError, match="resize first"):
            line.tensorflow(tf, decode.pack(picture(height, 40)), tf.constant(z))


@pytest.mark.parametrize("size", [(14, 15), (28, 40), (60, 9)])
def test_resize_is_pillows_bilinear(size):
    image = picture()
    oracle = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
    ours = resample.resize(image, size=size).astype(int)
    assert np.abs(ours - np.asarray(oracle)).max() <= 1  # Pillow rounds twice


@pytest.mark.parametrize(
    "line",
    [
        *("random_rotate(0)", "random_zoom(1,1)", "random_shift(0)", "resize((28,31))"),
        *("rotate(0)", "brightness(1)"),
    ],
)
def test_neutral_arguments_change_nothing(line):
    pipeline = ops.parse(f"decode|{line}")
    z = pipeline.numbers(np.array([7]), seed=0)[0]
    np.testing.assert_array_equal(pipeline.numpy(picture(), z), picture())


def test_neutral_jitter_changes_nothing():
    pipeline = ops.parse("decode|color_jitter")
    z = pipeline.numbers(np.array([7]), seed=0)[0]
    np.testing.assert_array_equal(pipeline.numpy(picture(), z), picture())


def test_flipping_twice_changes_nothing():
    pipeline = ops.parse("decode|flip(p=1.0)|flip(p=1.0)")
    once = ops.parse("decode|flip(p=1.0)").numpy(picture(), np.ones(1))
    np.testing.assert_array_equal(pipeline.numpy(picture(), np.ones(2)), picture())
    np.testing.assert_array_equal(once, picture()[:, ::-1])


def test_a_quarter_turn_is_rot90():
    op = ops_warp.random_rotate(90)
    square = picture(28, 28)
    turned = op.numpy(square, op.law(np.array([[1.0]]))[0])
    np.testing.assert_array_equal(turned, np.rot90(square))


def test_zoom_by_three_magnifies_the_middle():
    op = ops_warp.random_zoom(3, 3)
    image = np.zeros((9, 9, 3), np.uint8)
    image[4, 4] = 255
    zoomed = op.numpy(image, op.law(np.array([[0.5]]))[0])[:, :, 0]
    # the tent of bilinear interpolation, three times as wide
    tent = np.maximum(0, 1 - np.abs(np.arange(9) - 4) / 3)
    np.testing.assert_allclose(zoomed, 255 * np.outer(tent, tent), atol=0.51)


def test_neighbouring_warps_are_one_warp():
    square, u = picture(20, 20), np.array([[1.0, 1.0, 0.5]])
    turn, shift = ops_warp.random_rotate(90), ops_warp.random_shift(4)
    fused = ops.parse("decode|random_rotate(90)|random_shift(4)").ops
    assert len(fused) == 2
    turned = turn.numpy(square, turn.law(u[:, :1])[0])
    oracle = shift.numpy(turned, shift.law(u[:, 1:])[0])
    np.testing.assert_array_equal(oracle[:, :-4], turned[:, 4:])
    np.testing.assert_array_equal(fused[1].numpy(square, fused[1].law(u)[0]), oracle)


def test_random_crop_reaches_every_place_and_repeats_the_edge():
    image = np.arange(4, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 3), np.uint8)
    pipeline = ops.parse("decode|random_crop(4,pad=1)")
    numbers = pipeline.numbers(np.arange(60), seed=0)
    rows = {tuple(pipeline.numpy(image, z)[:, 0, 0].tolist()) for z in numbers}
    assert rows == {(0, 0, 1, 2), (0, 1, 2, 3), (1, 2, 3, 3)}


def test_center_crop_leaves_the_smaller_margin_first():
    image = np.arange(7, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 3), np.uint8)
    pipeline = ops.parse("decode|center_crop((4,2))")
    z = pipeline.numbers(np.zeros(1), seed=0)[0]
    assert pipeline.numpy(image, z)[:, 0, 0].tolist() == [1, 2, 3, 4]
    assert pipeline.draws == 0


def test_cutout_covers_a_grey_square():
    pipeline = ops.parse("decode|cutout(6)")
    black = np.zeros((30, 30, 3), np.uint8)
    covered = [
        np.argwhere(pipeline.numpy(black, z)[:, :, 0] == ops_cover.GREY)
        for z in pipeline.numbers(np.arange(40), seed=0)
    ]
    assert max(len(c) for c in covered) == 36
    for c in covered:
        assert len(c) == np.prod(np.ptp(c, axis=0) + 1)  # a full rectangle


def test_gray_has_equal_channels_and_normalize_is_arithmetic():
    gray = ops_light.random_gray(1.0).numpy(picture(), np.zeros(1)).astype(float)
    np.testing.assert_array_equal(gray[..., 0], gray[..., 2])
    np.testing.assert_allclose(gray[..., 0], picture().mean(-1), atol=0.51)
    ends = np.array([[[0, 255, 0]]], np.uint8)
    normal = ops.parse("decode|normalize").numpy(ends, np.zeros(0))
    np.testing.assert_array_equal(normal, np.array([[[-1, 1, -1]]], np.float32))


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        ("decode|fliip", KeyError, "did you mean 'flip'"),
        ("decode|parse('flip')", KeyError, "op 'parse' unknown"),
        ("flip", ValueError, "`decode` must be the first"),
        ("decode|decode", ValueError, "`decode` must be the first"),
        ("decode|normalize|flip", ValueError, "`normalize` must be the last"),
        ("decode|resize", ValueError, "size"),
        ("decode|resize(0)", ValueError, "size 0"),
        ("decode|flip(q=1)", ValueError, r"takes \(p\)"),
        ("decode|flip(p=2)", ValueError, r"0 \.\. 1"),
        ("decode|random_zoom(2,1)", ValueError, "0 < lo <= hi"),
        ("decode(color='hsv')", ValueError, "'rgb' or 'bgr'"),
        ("decode(color='bgr')|bgr", ValueError, "bgr already"),
    ],
)
def test_wrong_lines_say_what_is_wrong(line, error, message):
    with pytest.raises(error, match=message):
        ops.parse(line)


def test_a_line_knows_its_size_and_colour():
    pipeline = ops.parse("decode(color='bgr')|resize((9,8))|center_crop(7)|flip")
    assert (pipeline.size, pipeline.color) == ((7, 7), "bgr")
    assert ops.parse("decode|flip").size is None
    swapped = ops.parse("decode|bgr|flip|normalize")
    assert (swapped.reads, swapped.color) == ("rgb", "bgr")


def test_bgr_reverses_the_channels():
    out = ops.parse("decode|bgr").numpy(picture(), np.zeros(0))
    np.testing.assert_array_equal(out, picture()[..., ::-1])


def odd_images():
    """(name, bytes, expected pixels or None) of files TensorFlow reads otherwise."""
    image, grey = picture(), picture()[..., 0]
    alpha = np.dstack([image, grey])
    deep = grey.astype(np.uint16) * 256 + 200
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter clockwise to be seen upright
    palette = np.asarray(Image.fromarray(image).convert("P").convert("RGB"))
    three = np.repeat(grey[..., None], 3, axis=2)
    out = io.BytesIO()
    Image.fromarray(image).convert("P").save(out, "PNG")
    yield "palette", out.getvalue(), palette
    yield "alpha", encoded(alpha), image
    yield "deep", encoded(deep), three
    yield "tiff", encoded(image, "TIFF"), image
    yield "webp", encoded(image, "WEBP", lossless=True), image
    yield "exif png", encoded(image, exif=exif), np.rot90(image, -1)
    yield "grey png with a clear colour", encoded(grey, transparency=3), three
    out = io.BytesIO()
    Image.fromarray(image).convert("CMYK").save(out, "JPEG", quality=100)
    yield "cmyk", out.getvalue(), None
    yield "exif jpeg", encoded(image, "JPEG", exif=exif), None


@pytest.mark.parametrize("case", list(odd_images()), ids=lambda case: case[0])
def test_odd_images_are_known_by_their_header_and_read_right(case):
    _, data, expected = case
    assert not decode.is_plain(data)
    if expected is None:  # lossy: near the picture, or the picture turned
        found = decode.pixels(data).astype(float)
        near = picture() if found.shape == picture().shape else np.rot90(picture(), -1)
        assert np.abs(found - near).mean() < 8
    else:
        np.testing.assert_array_equal(decode.pixels(data), expected)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_plain_jpeg_is_the_same_in_tensorflow(mode, options):
    image = np.asarray(Image.fromarray(picture(61, 43)).convert(mode))
    data = encoded(image, "JPEG", quality=88, **options)
    assert decode.is_plain(data)
    theirs = ops.decode().tensorflow(tf, tf.constant(data), None).numpy()
    assert np.abs(theirs.astype(int) - decode.pixels(data)).max() <= 1


def test_what_was_met_before_changes_nothing_about_a_header():
    files = [data for kind, data, _ in odd_images() if kind == "exif jpeg"]
    files += [
        encoded(picture(*size), "JPEG", quality=quality, **options)
        for size in [(61, 43), (43, 61)]
        for quality in (50, 90)
        for options in ({}, {"progressive": True}, {"optimize": True})
    ]
    files += [data[:300] for data in files]
    alone = []
    for data in files:
        decode.plain_size(encoded(picture(8, 8), "JPEG"))
        alone.append(decode.plain_size(data))
    assert alone[1] == (61, 43)
    for i in np.random.default_rng(0).integers(len(files), size=400):
        assert decode.plain_size(files[i]) == alone[i]


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_plain_png_is_the_same_in_tensorflow(mode):
    data = encoded(np.asarray(Image.fromarray(picture()).convert(mode)))
    assert decode.is_plain(data)
    theirs = ops.decode().tensorflow(tf, tf.constant(data), None).numpy()
    np.testing.assert_array_equal(theirs, decode.pixels(data))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, on a half TIFF
def test_a_file_cut_short_is_unreadable(kind):
    data = encoded(picture(), kind)
    for part in (data[: len(data) // 2], data[:9], b"", b"<html>not found</html>"):
        assert not decode.is_plain(part)
        with pytest.raises(decode.UnreadableError):
            decode.pixels(part)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, on what it mends
def test_damage_gives_pixels_or_unreadable_and_nothing_else(kind):
    data, rng = encoded(picture(), kind), np.random.default_rng(0)
    for _ in range(60):
        damaged = np.frombuffer(data, np.uint8).copy()
        damaged[rng.integers(len(data), size=4)] = rng.integers(256, size=4)
        with contextlib.suppress(decode.UnreadableError):
            decode.is_plain(damaged.tobytes())
            assert decode.pixels(damaged.tobytes()).dtype == np.uint8


@pytest.mark.parametrize("width", [1, 2, 3, 4, 8, 31, 112])
@pytest.mark.parametrize("kind", ["JPEG", "grey JPEG", "PNG", "pixels"])
def test_mirrored_while_decoded_is_mirrored_afterwards(kind, width):
    image = picture(9, width)
    if kind == "grey JPEG":
        image = image[..., 0]
    record = image if kind == "pixels" else encoded(image, kind.removeprefix("grey "))
    line, on = ops.parse("decode|flip(1)"), np.ones(1)
    wanted = decode.pixels(record)[:, ::-1]
    out = np.empty_like(wanted, order="C")
    for found in (
        decode.pixels(record, mirrored=True),
        decode.pixels(record, mirrored=True, out=out),
        line.numpy(record, on),
        ops.flip(1).numpy(decode.pixels(record), on),
    ):
        np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(line.numpy(record, 0 * on), wanted[:, ::-1])


def judged(data, **out):
    try:
        return decode.pixels(data, **out)
    except decode.UnreadableError:
        return None


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_pillow_agrees_with_the_fast_decoder_on_whole_and_damaged_jpeg(
    options, monkeypatch
):
    rng, fast = np.random.default_rng(0), decode.simplejpeg
    data = encoded(picture(), "JPEG", quality=90, **options)
    out, reached = np.empty_like(picture()), 0
    for k in range(150):
        damaged = np.frombuffer(data, np.uint8).copy()
        places = rng.integers(len(data), size=k % 4)
        damaged[places] = rng.integers(256, size=k % 4)
        record = damaged.tobytes()
        ours = judged(record, out=out)
        reached += ours is out
        monkeypatch.setattr(decode, "simplejpeg", None)
        theirs = judged(record)
        monkeypatch.setattr(decode, "simplejpeg", fast)
        assert (ours is None) == (theirs is None)
        np.testing.assert_array_equal(ours, theirs)
    assert reached > 50


def test_a_source_must_give_uint8_colour():
    with pytest.raises(ValueError, match="wanted uint8"):
        decode.pixels(np.zeros((4, 4), np.uint8))


def test_without_opencv_a_mirror_is_the_same_and_an_op_says_how_to_get_it(monkeypatch):
    face, line = picture(), ops.parse("decode|resize(40)|flip(p=1.0)")
    wanted = line.numpy(face, np.ones(1))
    monkeypatch.setattr(resample, "cv2", None)
    np.testing.assert_array_equal(line.numpy(face, np.ones(1)), wanted)
    with pytest.raises(ImportError, match="pip install opencv-python-headless"):
        ops.parse("decode|low_resolution")
