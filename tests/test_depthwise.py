"""depthwise is the native grouped convolution, in value and gradient, everywhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxface.models import depthwise


def native(x, kernel, stride, padding):
    """The oracle: XLA's own grouped convolution."""
    pads = ((padding, padding), (padding, padding))
    dims = ("NHWC", "HWIO", "NHWC")
    groups = x.shape[-1] // kernel.shape[2]
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, None, None, dims, groups
    )


def draw(*shapes, dtype=float):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=s), dtype) for s in shapes]


def value_and_grads(f, x, kernel, weight):
    y, pull = jax.vjp(f, x, kernel)
    return y, *pull(weight)


CASES = [  # kernel, stride, padding, H, W; M channels per group
    (3, 1, 1, 6, 6, 1),
    (3, 2, 1, 6, 6, 1),
    (3, 2, 1, 7, 5, 1),
    (3, 1, 0, 5, 7, 1),
    (3, 2, 0, 8, 8, 1),
    (5, 2, 2, 9, 6, 1),
    (5, 1, 1, 8, 7, 1),
    (7, 1, 3, 7, 8, 1),
    (7, 1, 0, 7, 7, 1),
    (1, 3, 0, 8, 8, 1),
    (3, 1, 4, 5, 5, 1),
    (3, 1, 1, 6, 5, 2),
    (3, 2, 1, 7, 6, 3),
    (5, 1, 0, 5, 5, 2),
]


@pytest.mark.parametrize(("k", "stride", "padding", "H", "W", "M"), CASES)
def test_equals_the_native_form(k, stride, padding, H, W, M):
    with jax.enable_x64(True):
        x, kernel = draw((2, H, W, 6), (k, k, M, 6))
        ours = functools.partial(depthwise.depthwise, stride=stride, padding=padding)
        oracle = functools.partial(native, stride=stride, padding=padding)
        (weight,) = draw(jax.eval_shape(oracle, x, kernel).shape)
        got = jax.jit(functools.partial(value_and_grads, ours))(x, kernel, weight)
        want = value_and_grads(oracle, x, kernel, weight)
        for a, b in zip(got, want, strict=True):
            assert a.dtype == jnp.float64
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_same_outside_jit():
    x, kernel = draw((2, 5, 5, 4), (3, 3, 1, 4), dtype=jnp.float32)
    ours = functools.partial(depthwise.depthwise, padding=1)
    for a, b in zip(
        value_and_grads(ours, x, kernel, x),
        value_and_grads(functools.partial(native, stride=1, padding=1), x, kernel, x),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_sharded_over_eight_devices():
    with jax.enable_x64(True):
        x, kernel = draw((16, 6, 6, 4), (3, 3, 1, 4))
        ours = functools.partial(depthwise.depthwise, padding=1)

        def share(x, kernel):
            y, dx, dk = value_and_grads(ours, x, kernel, x)
            return y, dx, lax.psum(dk, "data")

        mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        specs = (P("data"), P("data"), P())
        sharded = jax.shard_map(
            share,
            mesh=mesh,
            in_specs=(P("data"), P()),
            out_specs=specs,
            check_vma=False,
        )
        want = value_and_grads(ours, x, kernel, x)
        for a, b in zip(jax.jit(sharded)(x, kernel), want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("platform", "grouped"), [("cpu", False), ("cuda", True)])
def test_platform_chooses_the_form_when_compiled(platform, grouped):
    x, kernel = draw((1, 6, 6, 4), (3, 3, 1, 4), dtype=jnp.float32)
    grad = jax.grad(lambda x, k: depthwise.depthwise(x, k, padding=1).sum(), (0, 1))
    traced = jax.jit(grad).trace(x, kernel)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("convolution" in text) == grouped


def test_bfloat16_adds_up_in_float32():
    x, kernel = draw((2, 32, 32, 3), (3, 3, 1, 3), dtype=jnp.bfloat16)
    ours = functools.partial(depthwise.depthwise, padding=1)
    got = value_and_grads(ours, x, kernel, x)
    wide = [a.astype(jnp.float32) for a in (x, kernel, x)]
    for a, b in zip(got, value_and_grads(ours, *wide), strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=2**-8)


@pytest.mark.parametrize("kernel", [(3, 3, 1, 5), (3, 3, 3, 4), (7, 7, 1, 4)])
def test_shapes_that_do_not_fit_are_refused(kernel):
    with pytest.raises(ValueError, match="depthwise kernel"):
        depthwise.depthwise(jnp.ones((1, 6, 6, 4)), jnp.ones(kernel))
