"""What every backbone keeps, found by listing the folder, and what parts promise."""

import functools
import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxface import describe, models, parallel, spec, types
from jaxface.losses import binary, softmax
from jaxface.models import common, iresnet
from jaxface.train import step as steps


def families():
    """Every module of the folder that has the agreed name."""
    found = {n: importlib.import_module(f"jaxface.models.{n}") for n in FOLDER}
    return {n: module for n, module in found.items() if hasattr(module, "Model")}


FOLDER = spec.modules(models)
FAMILIES = families()
VARIANTS = {
    f"{name}.{variant}": make
    for name, module in FAMILIES.items()
    for variant, make in spec.public(module).items()
}
PUBLISHED = {
    f"{name}.{variant}": figures
    for name, module in FAMILIES.items()
    for variant, figures in module.PUBLISHED.items()
}
# What traces or compiles a net several times is `slow` beyond the first families.
QUICK = ("iresnet", "mobilefacenet", "seed_cnn")


def quick(names):
    """Parametrize by name; families outside QUICK are slow."""
    marks = {False: [pytest.mark.slow], True: []}
    return pytest.mark.parametrize(
        "name", [pytest.param(n, marks=marks[n.split(".")[0] in QUICK]) for n in names]
    )


every_small = pytest.mark.parametrize("name", FAMILIES)
every_quick = quick(FAMILIES)


def pixels(model):
    """(H, W) of the images a model is made for."""
    return (model.size,) * 2 if isinstance(model.size, int) else model.size


def images(n, model, seed=0):
    x = np.random.default_rng(seed).uniform(-1, 1, (n, *pixels(model), 3))
    return jnp.asarray(x, jnp.float32)


def noisy(shapes):
    """Arrays of these shapes that let signals through; `init` would be compiled.

    Kernels are He's, and norms do next to nothing.
    """
    rng = np.random.default_rng(0)

    def fill(path, a):
        if not jnp.issubdtype(a.dtype, jnp.floating):
            return np.zeros(a.shape, a.dtype)
        if a.ndim < 2:
            one = path[-1] in map(jax.tree_util.DictKey, ("scale", "var"))
            return (one + rng.uniform(-0.1, 0.1, a.shape)).astype(a.dtype)
        deviation = np.float32(math.sqrt(2 / math.prod(a.shape[:-1])))
        draw = rng.standard_normal(a.shape, dtype=np.float32)
        return (deviation * draw).astype(a.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


@functools.cache
def small(name):
    """A small net, its variables (statistics not the first ones), a batch of 4."""
    model = FAMILIES[name].tiny()
    x = images(4, model)
    variables = noisy(jax.eval_shape(model.init, jax.random.key(0), x))
    rng = np.random.default_rng(1)
    stats = jax.tree.map(
        lambda a: a + rng.uniform(-0.5, 0.5, a.shape).astype(a.dtype),
        variables.get("batch_stats", {}),
    )
    return model, {**variables, "batch_stats": stats}, x


@functools.cache
def evaluate(name):
    """The forward pass of a small net in evaluation, compiled."""
    return jax.jit(small(name)[0].apply)


def train(model, variables, x):
    """One forward pass in training: embeddings and the new statistics."""
    keys = jax.random.split(jax.random.key(1), len(x))
    return model.apply(variables, x, train=True, keys=keys, mutable=["batch_stats"])


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def dtypes(tree):
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


def shapes(model, size=None):
    side = (size, size) if size else pixels(model)
    x = jax.ShapeDtypeStruct((2, *side, 3), jnp.float32)
    embedding, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
    return variables, embedding


@functools.cache
def variant_shapes(name, dtype="float32"):
    model = VARIANTS[name](dtype=dtype, axis=("data", "model"))
    return model, *shapes(model)


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


COUNTS = {
    "iresnet.r18": iresnet_count((2, 2, 2, 2)),
    "iresnet.r34": iresnet_count((3, 4, 6, 3)),
    "iresnet.r50": iresnet_count((3, 4, 14, 3)),
    "iresnet.r100": iresnet_count((3, 13, 30, 3)),
    "iresnet.r200": iresnet_count((6, 26, 60, 6)),
    "mobilefacenet.Model": mobilefacenet_count((1, 4, 6, 2), 1, 512),
    "mobilefacenet.paper": mobilefacenet_count((1, 4, 6, 2), 1, 128),
    "mobilefacenet.mbf": mobilefacenet_count((1, 4, 6, 2), 2, 512),
    "mobilefacenet.mbf_large": mobilefacenet_count((2, 8, 12, 4), 4, 512),
    "seed_cnn.Model": 11_169_089,
}


def smallest(name):
    """A family's smallest published network; they are listed by size."""
    return next(iter(FAMILIES[name].PUBLISHED), "Model")


FIRST = {f"{name}.{smallest(name)}" for name in FAMILIES}
FIRST |= {f"{name}.tiny" for name in FAMILIES}


def unless_first(name):
    return [] if name in FIRST else pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "dtype"),
    [pytest.param(n, "float32", marks=unless_first(n)) for n in VARIANTS]
    + [(f"{name}.tiny", "bfloat16") for name in FAMILIES],
)
def test_embedding_and_parameters_are_float32(name, dtype):
    model, variables, embedding = variant_shapes(name, dtype)
    assert embedding.shape == (2, model.dim)
    assert embedding.dtype == jnp.float32
    assert dtypes(variables) == {"float32"}
    if name in COUNTS:
        assert count(variables["params"]) == COUNTS[name]


@pytest.mark.parametrize("make", VARIANTS.values(), ids=VARIANTS)
def test_input_is_declared(make):
    model = make()
    assert model.color in ("rgb", "bgr")
    assert min(pixels(model)) > 0
    assert np.min(model.std) > 0
    assert np.all((np.asarray(model.mean) >= 0) & (np.asarray(model.mean) < 256))
    told = make(color="bgr", mean=(1.0, 2.0, 3.0), std=4.0)
    assert (told.color, told.mean, told.std) == ("bgr", (1.0, 2.0, 3.0), 4.0)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=unless_first(n)) for n in PUBLISHED]
)
def test_parameters_and_multiply_adds_are_the_published_ones(name):
    figures = PUBLISHED[name]
    model, variables, _ = variant_shapes(name)
    ours = {"params": count(variables["params"]) / 1e6}
    if figures.macs is not None:
        ours["macs"] = describe.macs(model) / 1e6
    for key, value in ours.items():
        theirs = getattr(figures, key)
        if theirs is None or value == pytest.approx(theirs, rel=0.005):
            continue
        assert figures.why, f"{key}: {value:.4g} M here, {theirs} M in {figures.source}"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_has_all_that_the_contract_asks_for(name):
    module = FAMILIES[name]
    public = spec.public(module)
    assert {"Model", "tiny"} <= set(public)
    assert set(module.PUBLISHED) <= set(public)
    assert all(isinstance(p, types.Published) for p in module.PUBLISHED.values())
    assert all(isinstance(p, types.Port) for p in module.PORTS.values())


@pytest.mark.slow  # without jit every operation compiles for itself
@pytest.mark.parametrize("name", QUICK)  # what Python may not do, jit refuses of all
def test_jit_changes_nothing(name):
    model, variables, x = small(name)
    want = evaluate(name)(variables, x)
    np.testing.assert_allclose(model.apply(variables, x), want, rtol=1e-4, atol=1e-5)


@every_quick
def test_evaluation_repeats_and_rows_are_independent(name):
    _, variables, x = small(name)
    together, again = (evaluate(name)(variables, x) for _ in range(2))
    np.testing.assert_array_equal(together, again)
    assert np.ptp(together, axis=0).max() > 1e-3  # different images do differ
    among_others = evaluate(name)(variables, x.at[::2].set(-x[::2]))
    assert np.abs(among_others - together)[::2].min(axis=0).max() > 1e-4
    np.testing.assert_array_equal(among_others[1::2], together[1::2])


@every_quick
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


@every_quick
def test_bfloat16_is_near_float32(name):
    model, variables, x = small(name)
    want = evaluate(name)(variables, x)
    got = jax.jit(model.clone(dtype="bfloat16").apply)(variables, x)
    scale = np.abs(want).max()
    np.testing.assert_allclose(got, want, atol=0.05 * scale)


@every_small
def test_float64_is_float64_throughout(name):
    with jax.enable_x64(True):
        variables, y = shapes(FAMILIES[name].tiny(dtype="float64"))
        assert dtypes((variables, y)) == {"float64"}


@every_quick
def test_synced_batch_norm_on_eight_devices_is_one_device(name):
    model = FAMILIES[name].tiny()
    with jax.enable_x64(True):
        x = images(16, model).astype(float)
        model = model.clone(dtype="float64")
        variables = noisy(jax.eval_shape(model.init, jax.random.key(0), x))
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


# Whole networks, all their layers and widths, on the smallest images that pass.
SMALL = {"inception_resnet": {"size": 75}, "swin": {"size": 64, "window": 2}}


def on_small_images(name, **given):
    """A variant by its full name, made for images that cost little."""
    made = {"size": 48, **SMALL.get(name.split(".")[0], {}), **given}
    return functools.partial(VARIANTS[name], **made)


def trains_on_eight_devices(make):
    """Train two steps as `launch/train.py` does, in either precision.

    The first state is noise, not `init`'s: its draws would be compiled too.
    """
    model, rng = make(axis="data"), np.random.default_rng(0)
    mesh, rows, size = parallel.make_mesh(axis="data"), 8, pixels(model)
    loss = binary.Loss() if model.dim == 1 else softmax.Loss(num_classes=8, scale=16.0)
    tx = optax.sgd(0.01)
    init = functools.partial(
        *(steps.init_state, model, loss, tx),
        seed=0,
        shape=(*size, 3),
        num_classes=loss.num_classes,
    )
    first = noisy(jax.eval_shape(init))
    specs = parallel.state_specs(first, axis="data")
    batch = {
        "image": rng.uniform(-1, 1, (rows, *size, 3)).astype(np.float32),
        "label": np.arange(rows, dtype=np.int32) % loss.num_classes,
        "position": np.arange(rows, dtype=np.uint32),
    }
    batch = parallel.put_batch(batch, mesh=mesh, axis="data")
    for dtype in ("float32", "bfloat16"):
        step = parallel.compile_step(
            steps.make_grads(model.clone(dtype=dtype), loss, axis="data"),
            steps.make_update(tx),
            specs=specs,
            grad_specs={"params": P(), "head": P("data"), "margin": P()},
            mesh=mesh,
            axis="data",
        )
        state = jax.device_put(first, parallel.shardings(specs, mesh))
        seen = []
        for _ in range(2):
            state, metrics = step(state, batch)
            seen.append((metrics["loss"], metrics["grad_norm"]))
        assert np.isfinite(seen).all()
        assert seen[0][0] != seen[1][0]
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
        assert dtypes(state.params) == {"float32"}


@pytest.mark.parametrize("name", ["iresnet"])  # the others do so in a published size
def test_small_ones_train_on_eight_devices(name):
    trains_on_eight_devices(FAMILIES[name].tiny)


@pytest.mark.slow
@every_small
def test_the_smallest_published_network_trains_on_eight_devices(name):
    trains_on_eight_devices(on_small_images(f"{name}.{smallest(name)}"))


def a_block_a_stage(name):
    return tuple(min(n, 1) for n in VARIANTS[name]().stages)


def cut(name):
    """A published network of one block a stage."""
    return on_small_images(name, stages=a_block_a_stage(name))


def cuts():
    """The networks that differ when cut; beyond a family's largest, `thorough`."""
    largest = [f"{n}.{list(module.PUBLISHED)[-1]}" for n, module in FAMILIES.items()]
    others = [n for n in VARIANTS if hasattr(VARIANTS[n](), "stages")]
    names = [n for n in others + largest if n not in FIRST]
    different = {repr(cut(name)()): name for name in names}  # the last of those alike
    for name in sorted(different.values()):
        kind = "slow" if name in largest else "thorough"
        yield pytest.param(name, marks=getattr(pytest.mark, kind))


@pytest.mark.parametrize("name", [*cuts()])
def test_a_network_cut_to_a_block_a_stage_trains_on_eight_devices(name):
    trains_on_eight_devices(cut(name))


@every_small
def test_the_smallest_published_network_can_be_lowered(name):
    model, variables, _ = variant_shapes(f"{name}.{smallest(name)}")
    x = jax.ShapeDtypeStruct((2, *pixels(model), 3), jnp.float32)
    assert (
        "func.func public @main" in jax.jit(model.apply).lower(variables, x).as_text()
    )


@quick([n for n in VARIANTS if hasattr(VARIANTS[n](), "stages")])
def test_one_block_a_stage_is_a_network_too(name):
    whole = VARIANTS[name]()
    variables, embedding = shapes(VARIANTS[name](stages=a_block_a_stage(name)))
    assert embedding.shape == (2, whole.dim)
    assert count(variables["params"]) <= count(variant_shapes(name)[1]["params"])


@every_quick
def test_remat_changes_neither_paths_nor_values(name):
    model, variables, x = small(name)
    if not hasattr(model, "remat"):
        pytest.skip("has no blocks to recompute")
    again = model.clone(remat=True)
    paths = [jax.tree.structure(v["params"]) for v in (shapes(again)[0], variables)]
    assert paths[0] == paths[1]
    want, got = (
        jax.jit(functools.partial(train, m))(variables, x) for m in (model, again)
    )
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), got, want
    )


def slope(model, variables, x):
    """The gradient of the embeddings' mean square by every parameter."""

    def size(params):
        e, _ = train(model, variables | {"params": params}, x)
        return jnp.mean(e**2)

    return jax.grad(size)(variables["params"])


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(p, marks=[] if p == "products_saveable" else pytest.mark.slow)
        for p in (True, *common.POLICIES)
    ],
)
def test_what_is_recomputed_changes_no_gradient(how):
    model, variables, x = small("iresnet")
    want, got = (
        jax.jit(functools.partial(slope, m))(variables, x)
        for m in (model, model.clone(remat=how))
    )
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), got, want
    )


def test_a_policy_decides_what_is_computed_twice():
    model, variables, x = small("iresnet")

    def convolutions(how):
        again = functools.partial(slope, model.clone(remat=how))
        text = jax.jit(again).lower(variables, x).as_text()
        return text.count("stablehlo.convolution")

    plain = convolutions(False)
    assert convolutions("products_saveable") == plain
    assert convolutions("everything_saveable") == plain
    assert convolutions(True) == convolutions("nothing_saveable") > plain
    with pytest.raises(ValueError, match="remat is 'dots'; wanted True, False or one"):
        convolutions("dots")


@pytest.mark.parametrize("kind", [{}, {"squeeze": 4}])
def test_zero_init_makes_a_block_its_shortcut(kind):
    model, x = iresnet.tiny(zero_init=True, **kind), images(2, iresnet.tiny())

    def doubled(path, a):
        inner = "layer" in jax.tree_util.keystr(path) and path[-2].key[:4] == "conv"
        return 2 * a if inner else a

    for zero in (True, False):
        variables = jax.jit(model.clone(zero_init=zero).init)(jax.random.key(0), x)
        other = jax.tree_util.tree_map_with_path(doubled, variables)
        a, b = (jax.jit(model.apply)(v, x) for v in (variables, other))
        assert np.array_equal(a, b) == zero


@pytest.mark.parametrize("kind", ["relu", "relu6"])
def test_only_prelu_has_slopes(kind):
    def slopes(activation):
        params = shapes(iresnet.tiny(activation=activation))[0]["params"]
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
