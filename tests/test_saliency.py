"""Saliency: known by hand for a linear network, and zero where nothing is looked at."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.eval import saliency

H, W, D = 9, 11, 5


@pytest.fixture
def linear():
    """A linear embedder that ignores the right half, its weights, and two images."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(H, W, 3, D)).astype(np.float32)
    weights[:, 6:] = 0
    left, right = rng.normal(size=(2, H, W, 3)).astype(np.float32)
    return lambda x: jnp.einsum("bhwc,hwcd->bd", x, weights), weights, left, right


def cosine(weights, left, right):
    a, b = (np.einsum("hwc,hwcd->d", x.astype(float), weights) for x in (left, right))
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_the_gradient_of_a_linear_network_is_known_by_hand(linear):
    features, weights, left, right = linear
    a, b = (np.einsum("hwc,hwcd->d", x, weights) for x in (left, right))
    length = np.linalg.norm(a)
    a, b = a / length, b / np.linalg.norm(b)
    slope = weights @ (b - (a @ b) * a) / length  # d cos / d left, [H, W, 3]
    want = np.sqrt(np.sum(slope**2, axis=-1))
    np.testing.assert_allclose(
        saliency.gradient(features, left, right), want, atol=1e-6
    )


@pytest.mark.parametrize(("patch", "stride"), [(3, 2), (4, 4), (9, 1)])
def test_occlusion_is_what_covering_by_loops_costs(linear, patch, stride):
    features, weights, left, right = linear
    whole = cosine(weights, left, right)
    falls, hidden = np.zeros((H, W)), np.zeros((H, W))
    for top in sorted({*range(0, H - patch, stride), H - patch}):
        for first in sorted({*range(0, W - patch, stride), W - patch}):
            part = (slice(top, top + patch), slice(first, first + patch))
            covered = left.copy()
            covered[part] = 0.5
            falls[part] += whole - cosine(weights, covered, right)
            hidden[part] += 1
    given = {"patch": patch, "stride": stride, "fill": 0.5}
    found = saliency.occlusion(features, left, right, **given)
    np.testing.assert_allclose(found, falls / hidden, atol=1e-5)


def test_what_the_network_ignores_drives_nothing(linear):
    features, _, left, right = linear
    slopes = saliency.gradient(features, left, right)
    falls = saliency.occlusion(features, left, right, patch=2, stride=1)
    assert not slopes[:, 6:].any()
    # column 6 is hidden together with column 5; embeddings round to 1e-7
    np.testing.assert_allclose(falls[:, 7:], 0, atol=1e-6)
    assert slopes[:, :6].all()
    assert (np.abs(falls[:, :6]) > 1e-6).all()


def test_length_is_nothing_and_a_face_like_itself_is_on_the_top(linear):
    features, _, left, right = linear
    doubled = saliency.gradient(lambda x: 2 * features(x), left, right)
    np.testing.assert_allclose(
        doubled, saliency.gradient(features, left, right), rtol=1e-5, atol=1e-7
    )
    # the cosine of an image with itself is 1: flat, and nothing hidden can raise it
    assert saliency.gradient(features, left, left).max() < 1e-6
    assert saliency.occlusion(features, left, left, patch=3, stride=1).min() > -1e-6


def test_a_network_with_its_weights_is_compiled_once(linear):
    _, weights, left, right = linear

    def apply(w, x):
        return jnp.einsum("bhwc,hwcd->bd", x, w)

    before = saliency._slopes._cache_size()
    maps = [
        saliency.gradient(jax.tree_util.Partial(apply, w), left, right)
        for w in (weights, weights[..., ::-1] * 2, np.roll(weights, 1, axis=1))
    ]
    assert saliency._slopes._cache_size() == before + 1
    np.testing.assert_allclose(maps[0], maps[1], rtol=1e-4, atol=1e-6)
    assert np.abs(maps[0] - maps[2]).max() > 1e-3


def test_what_cannot_be_compared_is_refused(linear):
    features, _, left, right = linear
    with pytest.raises(ValueError, match=r"wanted two of one \[H, W, 3\]"):
        saliency.gradient(features, left, right[1:])
    for patch, stride in ((10, 1), (3, 4), (3, 0)):
        with pytest.raises(ValueError, match="1 <= stride <= patch"):
            saliency.occlusion(features, left, right, patch=patch, stride=stride)
