"""What every backbone keeps, found by listing the folder, and what parts promise."""

import functools
import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxface import models, spec
from jaxface.models import common, iresnet, mobilefacenet, seed_cnn

NAMES = sorted(set(spec.modules(models)) - {"common"})
VARIANTS = [
    (f"{name}.{variant}", make)
    for name in NAMES
    for variant, make in spec.public(
        importlib.import_module(f"jaxface.models.{name}")
    ).items()
]
SMALL = {  # one net per module that a test can afford to run
    "iresnet": iresnet.Model(stages=(2, 1), widths=(8, 16), dim=8, dropout=0.4, size=8),
    "mobilefacenet": mobilefacenet.Model(
        blocks=(1, 1, 0, 0), width=0.125, scale=2, dim=8, size=16
    ),
    "seed_cnn": seed_cnn.Model(size=24),
}
every_small = pytest.mark.parametrize("name", NAMES)


def images(n, size, seed=0):
    x = np.random.default_rng(seed).uniform(-1, 1, (n, size, size, 3))
    return jnp.asarray(x, jnp.float32)


@functools.cache
def small(name):
    """A small net, its variables (statistics not the first ones), a batch of 4."""
    model, x = SMALL[name], images(4, SMALL[name].size)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    rng = np.random.default_rng(1)
    stats = jax.tree.map(
        lambda a: a + rng.uniform(0.1, 1, a.shape).astype(a.dtype),
        variables.get("batch_stats", {}),
    )
    return model, {**variables, "batch_stats": stats}, x


def train(model, variables, x):
    """One forward pass in training: embeddings and the new statistics."""
    keys = jax.random.split(jax.random.key(1), len(x))
    return model.apply(variables, x, train=True, keys=keys, mutable=["batch_stats"])


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def dtypes(tree):
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


def shapes(model, size):
    x = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    return variables, jax.eval_shape(model.apply, variables, x)


@functools.cache
def variant_shapes(name, dtype="float32"):
    model = dict(VARIANTS)[name](dtype=dtype, axis=("data", "model"))
    return model, *shapes(model, model.size)


@pytest.mark.parametrize("name", [name for name, _ in VARIANTS])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_embedding_and_parameters_are_float32(name, dtype):
    model, variables, embedding = variant_shapes(name, dtype)
    assert embedding.shape == (2, model.dim)
    assert embedding.dtype == jnp.float32
    assert dtypes(variables) == {"float32"}


@pytest.mark.parametrize("make", dict(VARIANTS).values(), ids=dict(VARIANTS))
def test_input_is_declared(make):
    model = make()
    assert model.color in ("rgb", "bgr")
    assert model.size > 0
    assert model.std > 0
    assert 0 <= model.mean < 256


# Parameter counts by a second route: layer lists on paper, added up in Python.


def bn(c):
    return 2 * c


def iresnet_count(stages, dim=512):
    total, c = 3 * 9 * 64 + bn(64) + 64, 64
    for blocks, w in zip(stages, (64, 128, 256, 512), strict=True):
        total += c * w + bn(w)  # the projection of a stage's first block
        for _ in range(blocks):
            total += bn(c) + 9 * c * w + bn(w) + w + 9 * w * w + bn(w)
            c = w
    return total + bn(512) + (7 * 7 * 512 + 1) * dim + dim  # no last scale


def bottleneck_count(c, inner, out):
    expand = c * inner + bn(inner) + inner
    return expand + 9 * inner + bn(inner) + inner + inner * out + bn(out)


def mobilefacenet_count(blocks, scale, dim):
    c = 64 * scale
    total = 3 * 9 * c + bn(c) + c
    if blocks[0] == 1:
        total += 9 * scale * c + bn(c) + c
    else:
        total += blocks[0] * bottleneck_count(c, 128, c)
    for n, down, inner, out in zip(
        blocks[1:], (128, 256, 512), (128, 256, 256), (c, 2 * c, 2 * c), strict=True
    ):
        total += bottleneck_count(c, down, out) + n * bottleneck_count(out, inner, out)
        c = out
    separate = c * 512 + bn(512) + 512
    return total + separate + 49 * 512 + bn(512) + 512 * dim + bn(dim)


# Published figures, in millions, and how far off their rounding or format may be.
# [1] deepinsight/insightface challenges/mfr/README.md, column size(mb) of the ONNX
#     files, in MiB of float32: 91.658, 130.245, 166.305 and 248.590, times 2^20 / 4.
# [2] cavalleria/cavaface docs/MODEL_ZOO.md: "MobileFaceNet 450M/1.20M".
# [3] arXiv:1804.07573, table 2: 0.99M at 128-d.
# [4] the project's issue 2, from Keras's own summary.
# No published figure was found for r200, mbf and mbf_large: None.
COUNTS = {
    "iresnet.r18": (iresnet_count((2, 2, 2, 2)), 24.03, 0.001),  # [1]
    "iresnet.r34": (iresnet_count((3, 4, 6, 3)), 34.14, 0.001),  # [1]
    "iresnet.r50": (iresnet_count((3, 4, 14, 3)), 43.60, 0.001),  # [1]
    "iresnet.r100": (iresnet_count((3, 13, 30, 3)), 65.17, 0.001),  # [1]
    "iresnet.r200": (iresnet_count((6, 26, 60, 6)), None, None),
    "mobilefacenet.Model": (mobilefacenet_count((1, 4, 6, 2), 1, 512), 1.20, 0.005),
    "mobilefacenet.paper": (mobilefacenet_count((1, 4, 6, 2), 1, 128), 0.99, 0.015),
    "mobilefacenet.mbf": (mobilefacenet_count((1, 4, 6, 2), 2, 512), None, None),
    "mobilefacenet.mbf_large": (
        mobilefacenet_count((2, 8, 12, 4), 4, 512),
        None,
        None,
    ),
    "seed_cnn.Model": (11_169_089, 11.169089, 1e-9),  # [4]
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_the_published_ones(name):
    exact, published, tolerance = COUNTS[name]
    _, variables, _ = variant_shapes(name)
    assert count(variables["params"]) == exact
    if published is not None:
        assert exact / 1e6 == pytest.approx(published, rel=tolerance)


@pytest.mark.slow  # without jit every operation compiles for itself
@every_small
def test_jit_changes_nothing(name):
    model, variables, x = small(name)
    want = jax.jit(model.apply)(variables, x)
    np.testing.assert_allclose(model.apply(variables, x), want, rtol=1e-4, atol=1e-5)


@every_small
def test_evaluation_repeats_and_rows_are_independent(name):
    model, variables, x = small(name)
    together, again = (jax.jit(model.apply)(variables, x) for _ in range(2))
    np.testing.assert_array_equal(together, again)
    alone = jax.jit(model.apply)(variables, x[1:2])
    assert np.ptp(together, axis=0).max() > 1e-3  # different images do differ
    np.testing.assert_allclose(together[1:2], alone, rtol=1e-4, atol=1e-5)


@every_small
def test_training_moves_every_statistic_and_parameter(name):
    model, variables, x = small(name)

    def loss(params):
        y, new = train(model, {**variables, "params": params}, x)
        return (y * jnp.arange(1.0, y.size + 1).reshape(y.shape)).sum(), new

    grads, new = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert all(np.any(g) for g in jax.tree.leaves(grads))
    stats = [v.get("batch_stats", {}) for v in (variables, new)]
    assert jax.tree.all(jax.tree.map(lambda a, b: np.any(a != b), *stats))


@every_small
def test_bfloat16_is_near_float32(name):
    model, variables, x = small(name)
    want = jax.jit(model.apply)(variables, x)
    got = jax.jit(model.clone(dtype="bfloat16").apply)(variables, x)
    scale = np.abs(want).max()
    np.testing.assert_allclose(got, want, atol=0.05 * scale)


@every_small
def test_float64_is_float64_throughout(name):
    with jax.enable_x64(True):
        model = SMALL[name].clone(dtype="float64")
        variables, y = shapes(model, model.size)
        assert dtypes((variables, y)) == {"float64"}


@every_small
def test_synced_batch_norm_on_eight_devices_is_one_device(name):
    model = SMALL[name]
    with jax.enable_x64(True):
        x = images(16, model.size).astype(float)
        model = model.clone(dtype="float64")
        variables = jax.jit(model.init)(jax.random.key(0), x)
        keys = jax.random.split(jax.random.key(1), 16)

        def apply(model, x, keys):
            return model.apply(
                variables, x, train=True, keys=keys, mutable=["batch_stats"]
            )

        mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        sharded = jax.shard_map(
            functools.partial(apply, model.clone(axis="data")),
            mesh=mesh,
            in_specs=P("data"),
            out_specs=(P("data"), P()),
            check_vma=False,
        )
        want = jax.jit(functools.partial(apply, model))(x, keys)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-10),
            jax.jit(sharded)(x, keys),
            want,
        )


def test_remat_changes_neither_paths_nor_values():
    model, variables, x = small("iresnet")
    again = model.clone(remat=True)
    assert jax.tree.structure(shapes(again, 8)[0]) == jax.tree.structure(variables)
    want, got = (
        jax.jit(functools.partial(train, m))(variables, x) for m in (model, again)
    )
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), got, want
    )


@pytest.mark.parametrize("kind", ["relu", "relu6"])
def test_only_prelu_has_slopes(kind):
    def slopes(activation):
        params = shapes(SMALL["iresnet"].clone(activation=activation), 8)[0]["params"]
        paths = jax.tree_util.tree_leaves_with_path(params)
        return [p for p, _ in paths if "slope" in jax.tree_util.keystr(p)]

    assert not slopes(kind)
    assert len(slopes("prelu")) == 4  # the stem and three blocks


def test_unknown_activation_and_uneven_stages_are_refused():
    with pytest.raises(ValueError, match="'gelu' unknown"):
        shapes(iresnet.Model(activation="gelu"), 32)
    with pytest.raises(ValueError, match="one width"):
        shapes(iresnet.Model(stages=(1, 1)), 32)


def test_prelu_starts_at_a_quarter():
    x = jnp.asarray([[-4.0, 8.0]])
    y, _ = common.PReLU().init_with_output(jax.random.key(0), x)
    np.testing.assert_array_equal(y, [[-1.0, 8.0]])


def test_batch_norm_survives_a_large_mean():
    x = np.random.default_rng(0).normal(1000.0, 1.0, (32, 8, 8, 4))
    norm = common.batch_norm(train=True)
    y, variables = norm.init_with_output(jax.random.key(0), jnp.asarray(x, jnp.float32))
    want = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)
    np.testing.assert_allclose(y, want, atol=1e-3)
    _, new = norm.apply(variables, jnp.asarray(x, jnp.float32), mutable=["batch_stats"])
    stats = new["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.1 * x.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * x.var((0, 1, 2)), rtol=1e-4)


# Dropout: the mask belongs to the example.

KEYS = jax.random.split(jax.random.key(7), 8)


def drop(x, keys, rate=0.4, train=True, name=None):
    return common.Dropout(rate, name=name).apply({}, x, train=train, keys=keys)


def test_dropout_follows_its_example():
    x, order = jnp.ones((8, 50)), np.random.default_rng(0).permutation(8)
    y = drop(x, KEYS)
    np.testing.assert_array_equal(drop(x, KEYS[order]), y[order])
    np.testing.assert_array_equal(drop(x[:3], KEYS[:3]), y[:3])
    assert len(np.unique(y, axis=0)) == 8


def test_dropout_keeps_the_mean():
    y = drop(jnp.ones((8, 4000)), KEYS)
    np.testing.assert_allclose(np.unique(y), [0.0, 1 / 0.6], rtol=1e-6)
    assert np.mean(y) == pytest.approx(1.0, abs=5 * math.sqrt(0.4 / 0.6 / 32000))


def test_dropout_differs_between_layers():
    class Two(common.nn.Module):
        @common.nn.compact
        def __call__(self, x):
            a, b = common.Dropout(0.5, name="a"), common.Dropout(0.5, name="b")
            return [d(x, train=True, keys=KEYS) for d in (a, b)]

    a, b = Two().apply({}, jnp.ones((8, 50)))
    assert np.any(a != b)


def test_dropout_is_off_in_evaluation_and_at_rate_zero():
    x = jnp.ones((8, 5))
    np.testing.assert_array_equal(drop(x, None, train=False), x)
    np.testing.assert_array_equal(drop(x, None, rate=0.0), x)


def test_dropout_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="needs `keys`"):
        drop(jnp.ones((8, 5)), None)
    with pytest.raises(ValueError, match="0 <= rate < 1"):
        drop(jnp.ones((8, 5)), KEYS, rate=1.0)
