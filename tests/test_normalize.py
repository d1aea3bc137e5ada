"""BatchNorm against Flax's, differentiated by rote, on one device and on eight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from jaxface import parallel
from jaxface.models import common, normalize

RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(16, 3, 5, 6))
VARIABLES = {
    "params": {"scale": RNG.uniform(0.5, 2, 6), "bias": RNG.normal(size=6)},
    "batch_stats": {"mean": RNG.normal(size=6), "var": RNG.uniform(0.5, 2, 6)},
}


def flax(**given):
    return nn.BatchNorm(
        use_running_average=not given.pop("train"),
        axis_name=given.pop("axis", None),
        momentum=0.9,
        epsilon=1e-3,
        use_fast_variance=False,
        param_dtype=jnp.float64,
        **given,
    )


def ours(**given):
    return common.batch_norm(dtype=jnp.float64, epsilon=1e-3, **given)


def values_and_gradients(norm, x, weight, axis=None):
    """Outputs, new statistics, and gradients of a weighted sum, the weights' summed."""
    kept = {k: v for k, v in VARIABLES["params"].items() if getattr(norm, f"use_{k}")}

    def loss(params, x):
        given = VARIABLES | {"params": params}
        y, new = norm.apply(given, x, mutable=["batch_stats"])
        return (y * weight).sum(), (y, new)

    (gp, gx), (y, new) = jax.grad(loss, (0, 1), has_aux=True)(kept, x)
    return (y, gx), (new, parallel.psum(gp, axis))


def close(got, want):
    same = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12)
    jax.tree.map(same, got, want)


@pytest.mark.parametrize("rank", [2, 4])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("used", [(True, True), (True, False), (False, True)])
def test_it_is_flax_batch_norm(rank, train, used):
    with jax.enable_x64(True):
        weight = WEIGHT if rank == 4 else WEIGHT[:, 0, 0]
        x = jnp.asarray(RNG.normal(2, 3, weight.shape))
        how = {"train": train, "use_scale": used[0], "use_bias": used[1]}
        want, got = (values_and_gradients(n(**how), x, weight) for n in (flax, ours))
        close(got, want)
        assert not train or np.any(got[1][0]["batch_stats"]["mean"] != 0)


@pytest.mark.parametrize("make", [flax, ours])
def test_eight_devices_are_one(make):
    with jax.enable_x64(True):
        x = jnp.asarray(RNG.normal(2, 3, WEIGHT.shape))
        mesh = parallel.make_mesh(axis="data")
        norm = make(train=True, axis="data")
        split = jax.shard_map(
            functools.partial(values_and_gradients, norm, axis="data"),
            mesh=mesh,
            in_specs=P("data"),
            out_specs=(P("data"), P()),
            check_vma=False,
        )
        want = values_and_gradients(make(train=True), x, WEIGHT)
        close(jax.jit(split)(x, jnp.asarray(WEIGHT)), want)


def test_devices_meet_twice():
    """For mean and variance, and for both sums of the gradient."""
    mesh = parallel.make_mesh(axis="data")
    norm = common.batch_norm(train=True, axis="data")

    def slope(x):
        def loss(x):
            given = norm.init(jax.random.key(0), x)
            return (norm.apply(given, x, mutable=["batch_stats"])[0] ** 2).sum()

        return jax.grad(loss)(x)

    split = jax.shard_map(
        slope, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False
    )
    text = jax.jit(split).lower(jnp.ones((16, 6))).as_text()
    assert text.count("stablehlo.all_reduce") == 2


@pytest.mark.parametrize("form", [normalize._in_one, normalize._in_two])
def test_both_forms_of_the_statistics_are_numpys(form):
    x = RNG.normal(1000, 3, (64, 5, 6)).astype(np.float32)
    mean, var = form(jnp.asarray(x), jnp.full(6, 1001.0))
    exact = x.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(var, exact.var((0, 1)), rtol=1e-5)


def test_accelerators_read_a_batch_once_for_its_statistics():
    x, near = jnp.ones((64, 6)), jnp.ones(6)
    stats = jax.jit(lambda x, near: normalize.statistics(x, near, None))
    text = {
        kind: stats.trace(x, near).lower(lowering_platforms=(kind,)).as_text()
        for kind in ("cpu", "cuda", "tpu")
    }
    # the second pass of the CPU's form waits for the mean
    assert text["cuda"].count("stablehlo.maximum") == 1
    assert text["tpu"].count("stablehlo.maximum") == 1
    assert text["cpu"].count("stablehlo.maximum") == 0


def test_what_is_rounded_and_what_is_not():
    norm = common.batch_norm(train=True, dtype=jnp.bfloat16)
    x = jnp.asarray(RNG.normal(size=(8, 6)), jnp.bfloat16)
    y, variables = norm.init_with_output(jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16
    assert {a.dtype for a in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_a_sum_of_what_has_mean_zero_is_flat():
    norm = common.batch_norm(train=True)
    x = jnp.asarray(RNG.normal(size=(8, 6)), jnp.float32)
    variables = norm.init(jax.random.key(0), x)

    def total(x):
        return norm.apply(variables, x, mutable=["batch_stats"])[0].sum()

    np.testing.assert_allclose(jax.grad(total)(x), 0, atol=1e-6)
