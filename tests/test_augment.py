"""What each augmentation does to an image, by hand or by another library."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from jaxface.data import ops, ops_light, ops_random, ops_worn


def picture(seed=0, size=112):
    y, x = np.mgrid[:size, :size, :1][:2]
    waves = 128 + 90 * np.sin(x / 9 + y / 7 + seed + np.arange(3))
    noise = np.random.default_rng(seed).normal(0, 9, waves.shape)
    return np.clip(waves + noise, 0, 255).astype(np.uint8)


def done(line, image, count=40):
    pipeline = ops.parse(f"decode|{line}")
    numbers = pipeline.numbers(np.arange(count), seed=0)
    return np.stack([pipeline.numpy(image, z) for z in numbers])


@pytest.mark.parametrize(
    "line",
    [
        *("window(p=0.0)", "window(lo=1.0)", "low_resolution(lo=1.0)", "erase(p=0.0)"),
        *("blur(0.01,0.01)", "color_jitter(0.5,0.5,0.5,p=0.0)", "jpeg(5,5,p=0.0)"),
        *("randaugment(magnitude=0.0)", "occlude(mask=0.0,glasses=0.0)"),
    ],
)
def test_neutral_arguments_change_nothing(line):
    found = done(line, picture())
    if line == "window(lo=1.0)":  # sides of another ratio than the image's are cut
        found = np.where(found, found, picture())
    np.testing.assert_array_equal(found, [picture()] * 40)


def test_an_op_is_done_with_its_probability():
    found = done("erase(p=0.2)", picture(size=16), count=4000)
    share = (found != picture(size=16)).any((1, 2, 3)).mean()
    assert share == pytest.approx(0.2, abs=0.02)  # three standard deviations


def test_a_window_is_black_around_and_whole_within():
    sizes = []
    for found in done("window", np.full((112, 112, 3), 9, np.uint8), count=300):
        inside = np.argwhere(found[..., 0])
        height, width = np.ptp(inside, axis=0) + 1
        assert height * width == len(inside)
        assert max(height, width) == 112 or 0.7 < height / width < 1.43
        sizes.append(len(inside) / 112**2)
    assert 0.18 < min(sizes) < 0.3
    assert max(sizes) > 0.9


def test_erased_is_noise_of_the_areas_of_the_paper():
    shares = []
    for found in done("erase(p=1.0)", np.full((112, 112, 3), 3, np.uint8), count=300):
        where = (found != 3).any(axis=2)
        shares.append(where.mean())
        noise = found[where]
        assert 100 < noise.mean() < 155
        assert 65 < noise.std() < 82  # 73.9 for all levels alike
    assert 0.015 < min(shares) < max(shares) < 0.41


def test_blur_is_scipys():
    op = ops_light.blur(1.5, 1.5)
    found = op.numpy(picture(), op.law(np.zeros((1, 1)))[0])
    oracle = ndimage.gaussian_filter(
        picture().astype(float), (1.5, 1.5, 0), mode="nearest", radius=(5, 5, 0)
    )
    np.testing.assert_allclose(found, oracle, atol=0.51)


def test_jpeg_is_pillows_at_every_quality():
    op = ops_light.jpeg(30, 32)
    numbers = op.law(np.linspace(0, 0.999, 30)[:, None])
    assert sorted(set(numbers[:, 0])) == [30, 31, 32]
    out = io.BytesIO()
    Image.fromarray(picture()).save(out, "JPEG", quality=31)
    oracle = np.asarray(Image.open(out))
    np.testing.assert_array_equal(op.numpy(picture(), np.array([31.0])), oracle)


def test_low_resolution_loses_detail_and_not_brightness():
    (found,) = done("low_resolution(lo=0.25,hi=0.25)", picture(), count=1)
    small = picture().reshape(28, 4, 28, 4, 3).mean((1, 3), dtype=np.float32)
    for c in range(3):
        plane = Image.fromarray(np.ascontiguousarray(small[..., c]))  # of floats
        oracle = np.asarray(plane.resize((112, 112), Image.BILINEAR))
        np.testing.assert_allclose(found[..., c], oracle, atol=0.51)


def test_masks_hide_the_mouth_and_glasses_frame_the_eyes():
    face = np.full((112, 112, 3), 128, np.uint8)
    masked = (done("occlude(mask=1.0,glasses=0.0)", face) != 128).any(axis=3)
    assert masked[:, 92, 42:71].all()  # between the template's mouth corners
    assert not masked[:, :60].any()
    framed = (done("occlude(mask=0.0,glasses=1.0)", face) != 128).any(axis=3)
    assert not framed[:, 75:].any()
    for x in (38, 74):  # the template's eyes
        assert framed[:, 40:64, x - 14 : x + 14].any(axis=(1, 2)).all()


def test_occlusion_wants_a_square():
    op = ops_worn.occlude(mask=1.0)
    with pytest.raises(ValueError, match=r"square images .* resize first"):
        op.numpy(picture()[:90], op.law(np.zeros((1, 14)))[0])


def test_randaugment_draws_every_kind_and_does_what_it_says():
    op, image = ops_random.randaugment(count=1, magnitude=30), picture()
    kinds = len(ops_random.KINDS)

    def result(name, way):
        u = np.array([[(ops_random.KINDS.index(name) + 0.5) / kinds, way]])
        return op.numpy(image, op.law(u)[0])

    np.testing.assert_array_equal(result("identity", 0.9), image)
    np.testing.assert_array_equal(result("solarize", 0.9), 255 - image)
    np.testing.assert_array_equal(result("posterize", 0.9), image & 0xF0)
    moved = result("translate_y", 0.9)
    np.testing.assert_allclose(
        moved[:60], (image[37:97] * 2.0 + image[38:98]) / 3, atol=1
    )
    assert result("brightness", 0.1).mean() == pytest.approx(0.1 * image.mean(), abs=1)
    same = [name for name in ops_random.KINDS if (result(name, 0.9) == image).all()]
    assert same == ["identity"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("blur(0)", "wanted 0 < lo <= hi pixels"),
        ("jpeg(90,30)", "wanted 1 <= lo <= hi <= 100"),
        ("window(lo=0.0)", "wanted 0 < lo <= hi <= 1"),
        ("erase(p=2)", r"p of 2: wanted 0 \.\. 1"),
        ("occlude(mask=0.7,hand=0.7)", "mask \\+ hand"),
        ("randaugment(magnitude=31)", r"wanted 0 \.\. 30"),
    ],
)
def test_wrong_arguments_say_what_is_wrong(line, message):
    with pytest.raises(ValueError, match=message):
        ops.parse(f"decode|{line}")
