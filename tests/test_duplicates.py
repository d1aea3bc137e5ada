import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import fft, ndimage

from jaxface.data import duplicates


def picture(seed, side=96):
    rng = np.random.default_rng(seed)
    noise = rng.uniform(0, 1, (side, side, 3))
    smooth = ndimage.gaussian_filter(noise, (4, 4, 0))
    low, high = smooth.min(), smooth.max()
    return np.uint8(40 + 150 * (smooth - low) / (high - low))


def apart(a, b):
    one, other = (duplicates.perceptual_hash(x) for x in (a, b))
    return int(np.bitwise_count(one ^ other))


def test_the_hash_is_the_signs_of_low_frequencies():
    image = picture(0, side=32)
    grey = np.asarray(Image.fromarray(image).convert("L"), float)
    waves = fft.dctn(grey)[1:9, 1:9].ravel()
    bits = "".join("01"[int(w > np.median(waves))] for w in waves)
    assert duplicates.perceptual_hash(image) == int(bits, 2)


@pytest.mark.parametrize("seed", range(5))
def test_harmless_changes_stay_near_and_other_pictures_far(seed, tmp_path):
    image = picture(seed)
    Image.fromarray(image).save(tmp_path / "x.jpg", quality=80)
    again = np.asarray(Image.open(tmp_path / "x.jpg"))
    smaller = np.asarray(Image.fromarray(image).resize((64, 64), Image.BILINEAR))
    for changed in (again, smaller, image + np.uint8(40)):
        assert apart(image, changed) <= 3
    assert apart(image, picture(seed + 100)) > 12
    assert apart(image, image[:, ::-1]) > 12


def test_a_picture_of_one_colour_has_no_waves():
    assert duplicates.perceptual_hash(np.full((9, 7, 3), 80, np.uint8)) == 0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 2**64 - 1)), max_size=12),
    st.integers(0, 7),
)
def test_every_near_pair_is_found_and_no_other(seeds, changes, most):
    # neighbours of the seeds: a mask with few bits set
    near = [seeds[k % len(seeds)] ^ (m & (m >> 9) & (m >> 23)) for k, m in changes]
    hashes = np.array(seeds + near, np.uint64)
    first = {int(h): i for i, h in reversed(list(enumerate(hashes)))}
    wanted = set()
    for j, b in enumerate(hashes.tolist()):
        for i, a in enumerate(hashes[:j].tolist()):
            lone = first[a] == i and first[b] == j
            if (a ^ b).bit_count() <= most and (lone or (a == b and first[a] == i)):
                wanted.add((i, j))
    assert set(map(tuple, duplicates.near(hashes, most=most).tolist())) == wanted


def test_large_buckets_are_compared_in_blocks(monkeypatch):
    hashes = np.random.default_rng(0).integers(0, 2**10, 300).astype(np.uint64)
    whole = duplicates.near(hashes)
    monkeypatch.setattr(duplicates, "_BLOCK", 7)
    np.testing.assert_array_equal(duplicates.near(hashes), whole)
    with pytest.raises(ValueError, match=r"wanted 0 \.\. 7"):
        duplicates.near(hashes, most=8)
