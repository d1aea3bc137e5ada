"""Our convolution and dense product are XLA's own, in value and gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from jaxface.models import convolve, depthwise, forms, normalize, winograd

CASES = [  # kernel, strides, padding, input [H, W, C], D; FAST has our route
    ((3, 3), (2, 2), ((1, 1), (1, 1)), (15, 30, 32), 33),
    ((3, 3), (1, 1), ((1, 1), (1, 1)), (5, 19, 32), 32),
    ((3, 3), (1, 1), ((1, 1), (1, 1)), (14, 30, 3), 32),
    ((3, 3), (1, 1), ((3, 1), (1, 1)), (14, 14, 32), 32),
    ((1, 1), (1, 1), ((0, 0), (0, 0)), (4, 5, 6), 3),
    ((1, 1), (2, 3), ((0, 0), (0, 0)), (5, 7, 6), 3),
    ((1, 1), (1, 1), ((1, 0), (0, 2)), (3, 28, 16), 2),
    ((5, 3), (1, 1), ((2, 1), (0, 3)), (16, 29, 32), 32),
    ((1, 7), (1, 1), ((0, 0), (3, 3)), (2, 28, 16), 2),
]
FAST = [
    ((3, 3), (1, 1), ((1, 1), (1, 1)), (16, 14, 32), 33),
    ((3, 3), (1, 1), ((0, 0), (0, 0)), (14, 21, 33), 32),
    ((3, 3), (1, 1), ((2, 1), (0, 2)), (15, 17, 32), 32),
]


def draw(*shapes, dtype=float):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=s), dtype) for s in shapes]


def native(x, kernel, strides, padding):
    """The oracle: XLA's own convolution."""
    dims = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, strides, padding, None, None, dims)


def value_and_grads(f, x, kernel, weight):
    y, pull = jax.vjp(f, x, kernel)
    return y, *pull(weight)


def both(kernel, strides, padding, shape, D, dtype):
    x, k = draw((2, *shape), (*kernel, shape[-1], D), dtype=dtype)
    ours, oracle = (
        functools.partial(f, strides=strides, padding=padding)
        for f in (convolve.convolve, native)
    )
    (weight,) = draw(jax.eval_shape(oracle, x, k).shape, dtype=dtype)
    return [
        jax.jit(functools.partial(value_and_grads, f))(x, k, weight)
        for f in (ours, oracle)
    ]


@pytest.mark.parametrize("case", CASES + FAST)
def test_equals_the_native_form(case):
    with jax.enable_x64(True):
        for a, b in zip(*both(*case, float), strict=True):
            assert a.dtype == jnp.float64
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", FAST)
@pytest.mark.parametrize("cache", [1, 2**25])
def test_float32_differs_by_rounding(case, cache, monkeypatch):
    monkeypatch.setattr(winograd, "CACHE", cache)  # an image at a time, or all
    for a, b in zip(*both(*case, jnp.float32), strict=True):
        assert abs(a - b).max() <= 2e-5 * abs(b).max()


@pytest.mark.parametrize("case", FAST)
def test_the_fast_convolution_is_the_native_one(case):
    kernel, strides, padding, shape, D = case
    with jax.enable_x64(True):
        x, k = draw((3, *shape), (*kernel, shape[-1], D))
        fast = winograd.convolve(x, k, padding)
        np.testing.assert_allclose(fast, native(x, k, strides, padding), atol=1e-11)


def test_bfloat16_gradients_are_the_native_ones():
    for a, b in zip(*both(*FAST[0], jnp.bfloat16), strict=True):
        assert a.dtype == jnp.bfloat16
        assert jnp.array_equal(a, b)


@pytest.mark.parametrize(("platform", "fast"), [("cpu", True), ("cuda", False)])
@pytest.mark.parametrize("case", [CASES[0], *FAST])
def test_platform_chooses_the_gradient_when_compiled(platform, fast, case):
    kernel, strides, padding, shape, D = case
    x, k = draw((2, *shape), (*kernel, shape[-1], D), dtype=jnp.float32)

    def loss(x, k):
        return convolve.convolve(x, k, strides, padding).sum()

    step = jax.jit(jax.grad(loss, (0, 1))).trace(x, k)
    text = step.lower(lowering_platforms=(platform,)).as_text()
    products = text.count("batching_dims")  # 36 at once, forward in none
    assert products == (2 if fast and case in FAST else 0)


def test_a_dense_layer_is_flax_own():
    with jax.enable_x64(True):
        (x,) = draw((2, 3, 4, 5))
        plain, ours = nn.Dense(6), nn.Dense(6, dot_general=convolve.dot)
        params = plain.init(jax.random.key(0), x)
        (weight,) = draw((2, 3, 4, 6))
        for a, b in zip(
            value_and_grads(lambda x, p: ours.apply(p, x), x, params, weight),
            value_and_grads(lambda x, p: plain.apply(p, x), x, params, weight),
            strict=True,
        ):
            jax.tree.map(
                functools.partial(np.testing.assert_allclose, rtol=1e-12), a, b
            )


def test_what_it_cannot_do_is_refused():
    x, kernel = draw((1, 4, 4, 2), (3, 3, 2, 2))
    none = ((0, 0), (0, 0))
    with pytest.raises(ValueError, match="wanted none"):
        convolve.convolve(x, kernel, (1, 1), none, rhs_dilation=(2, 2))
    with pytest.raises(ValueError, match="wanted the last axis"):
        convolve.dot(x, kernel, (((3,), (2,)), ((), ())))


def test_one_switch_takes_xlas_own_forms():
    same = ((1, 1), (1, 1))

    def layers(x, kernel, taps):
        y = depthwise.depthwise(convolve.convolve(x, kernel, (1, 1), same), taps)
        return y.sum() + sum(normalize.statistics(y, y[0, 0, 0], None)).sum()

    shapes = (2, 16, 16, 32), (3, 3, 32, 32), (3, 3, 1, 32)
    given = [jnp.ones(shape) for shape in shapes]

    def text():
        slope = jax.jit(jax.grad(lambda *x: layers(*x), (0, 1, 2)))
        return slope.lower(*given).as_text()

    ours = text()
    with forms.native():
        native = text()
    # a convolution, its two gradients; the same of channels on their own
    assert native.count("stablehlo.convolution") == 6
    assert ours.count("stablehlo.convolution") == 1
    assert text() == ours
