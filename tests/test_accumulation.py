"""Microbatches, SAM and every optimizer in the step: dense = jit = pmap, float64."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import linen as nn
from test_step_law import B, C, D, distance, loss_with, make, run

from jaxface import assembly, experiment, spec
from jaxface.losses import binary, memory, softmax
from jaxface.train import optim
from jaxface.train import step as steps


class Plain(nn.Module):
    """Dense, dropout keyed by example, dense: no example sees another."""

    axis: str | None = None

    @nn.compact
    def __call__(self, x, train=False, keys=None):
        x = nn.Dense(32)(x.reshape(len(x), -1))
        if train:
            keep = jax.vmap(lambda k: jax.random.bernoulli(k, 0.7, (32,)))(keys)
            x = jnp.where(keep, x / 0.7, 0.0)
        return nn.Dense(D)(nn.relu(x))


def arcface():
    return softmax.Loss(num_classes=C, margin="arcface", scale=16.0)


def batch_of(rng):
    return {
        "image": rng.normal(size=(B, 4, 4, 3)),
        "label": rng.integers(0, C, B).astype(np.int32),
        "position": np.arange(B, dtype=np.uint32),
    }


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[] if n in ("sgd", "muon") else pytest.mark.slow)
        for n in spec.public(optim)
    ],
)
def test_every_optimizer_is_the_same_on_8_devices(name):
    with jax.enable_x64():
        tx = spec.public(optim)[name](lr=lambda t: 0.01 / (1 + t))
        want = run(arcface(), "dense", tx=tx, network=Plain)
        got = run(arcface(), "jit", tx=tx, network=Plain)
        assert distance(got, want) < 1e-10


@pytest.fixture(scope="module")
def whole():
    with jax.enable_x64():
        return run(arcface(), "dense", network=Plain)


@pytest.mark.parametrize(
    ("how", "parts"), [("dense", 2), ("dense", 16), ("jit", 2), ("pmap", 2)]
)
def test_parts_of_a_batch_are_averaged_to_the_whole(whole, how, parts):
    with jax.enable_x64():
        got = run(arcface(), how, network=Plain, microbatches=parts)
    assert distance(got, whole) < 1e-12


@pytest.fixture
def as_on_gpu(monkeypatch):
    """Take the branch of all platforms but the CPU: a loop over the parts."""

    def default(*operands, default, **others):
        return default(*operands)

    monkeypatch.setattr(jax.lax, "platform_dependent", default)


def test_in_a_loop_parts_are_averaged_as_well(whole, as_on_gpu):
    with jax.enable_x64():
        got = run(arcface(), "jit", network=Plain, microbatches=2)
    assert distance(got, whole) < 1e-12


@pytest.mark.parametrize(("platform", "looped"), [("cpu", False), ("cuda", True)])
def test_platform_chooses_the_loop_when_compiled(platform, looped):
    def value_and_grad(w, seen, batch):
        return (w * batch["x"].sum(), (seen, {})), w

    over_parts = jax.jit(steps.accumulated(value_and_grad, 2))
    traced = over_parts.trace(1.0, 0, {"x": jnp.ones(4)})
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.while" in text) == looped


def test_a_loop_over_parts_needs_the_memory_of_one(as_on_gpu):
    def needed(parts):
        def value_and_grad(w, seen, batch):
            order = jnp.sort(batch["x"] * w[None])  # what no compiler fuses away
            return (jnp.sum(order[:, :8]), (seen, {})), w

        over_parts = jax.jit(steps.accumulated(value_and_grad, parts))
        shapes = jnp.ones(64), 0, {"x": jnp.ones((8192, 64))}
        return over_parts.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    assert needed(8) < 0.3 * needed(1)


def test_with_frozen_statistics_batchnorm_is_no_exception():
    with jax.enable_x64():
        want = run(arcface(), "dense", frozen_stats=True)
        got = run(arcface(), "dense", frozen_stats=True, microbatches=4)
    assert distance(got, want) < 1e-12


@pytest.mark.slow
def test_parts_and_ascents_are_the_same_on_any_devices(monkeypatch):
    # BatchNorm moves, and so do the rule's own parameters and statistic
    with jax.enable_x64():
        loss = loss_with("noisy", monkeypatch)
        want = run(loss, "dense", microbatches=2, sam=0.1)
        for how in ("jit", "pmap"):
            got = run(loss, how, microbatches=2, sam=0.1)
            assert distance(got, want) < 1e-10, how


def first(loss, rng, **options):
    """Return (state, batch, what `grads` gives for them) on one device."""
    init, grads, _ = make(loss, None, optim.sgd(lr=lambda t: 0.1), **options)
    state, batch = jax.jit(init)(), batch_of(rng)
    return state, batch, jax.jit(grads)(state, batch)


def test_statistics_go_from_part_to_part():
    with jax.enable_x64():
        rng = np.random.default_rng(0)
        state, batch, (_, new, _) = first(arcface(), rng, microbatches=2)
        dense, stats = state.params["Dense_0"], state.batch_stats["BatchNorm_0"]
        mean = stats["mean"]
        for part in (slice(0, None, 2), slice(1, None, 2)):  # position mod 2
            x = batch["image"][part].reshape(B // 2, -1)
            y = x @ dense["kernel"] + dense["bias"][None]
            mean = 0.9 * mean + 0.1 * y.mean(0)
        got = new.batch_stats["BatchNorm_0"]["mean"]
        np.testing.assert_allclose(got, mean, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("line", ["adaface", "curricularface"])
def test_a_rules_averages_move_once_a_step(line):
    loss = softmax.Loss(num_classes=C, margin=line, scale=16.0)
    with jax.enable_x64():
        moved = [
            first(loss, np.random.default_rng(0), network=Plain, microbatches=m)
            for m in (1, 2, 8)
        ]
    start, *_ = moved[0]
    averages = [new.margin_state for _, _, (_, new, _) in moved]
    for name in set(start.margin_state) - {"std"}:  # a mean of std is not the std
        assert averages[0][name] != start.margin_state[name]
        for got in averages[1:]:
            np.testing.assert_allclose(got[name], averages[0][name], rtol=1e-12)
    if line == "adaface":  # what lies between parts is lost
        assert averages[2]["std"] < averages[0]["std"]


def test_a_memory_counts_steps_not_parts():
    loss = memory.Loss(num_classes=C, scale=16.0)
    with jax.enable_x64():
        found = [
            first(loss, np.random.default_rng(0), network=Plain, microbatches=m)[2][1]
            for m in (1, 4)
        ]
    for new in found:
        assert new.margin_state["steps"] == 1
        assert new.margin_state["steps"].dtype == np.int32
    seen = [new.margin_state["head"]["seen"] for new in found]
    np.testing.assert_array_equal(*seen)


def test_sam_needs_no_head():
    class Logit(Plain):
        @nn.compact
        def __call__(self, x, train=False, keys=None):
            return nn.Dense(1)(x.reshape(len(x), -1))

    with jax.enable_x64():
        options = {"network": Logit, "sam": 0.1}
        want = run(binary.Loss(), "dense", **options)
        assert distance(run(binary.Loss(), "jit", **options), want) < 1e-10


def test_averages_worked_by_hand():
    # f(w) = mean of x w^2 / 2 over a batch; the statistic counts the parts
    def value_and_grad(w, seen, batch):
        x = batch["x"].mean()
        return (x * w**2 / 2, (seen + 1, {"x": x})), x * w

    over_parts = steps.accumulated(value_and_grad, 3)
    batch = {"x": jnp.array([1.0, 2.0, 3.0, 5.0, 7.0, 12.0])}
    (value, (seen, metrics)), g = over_parts(2.0, 0, batch)
    assert (value, seen, metrics["x"], g) == (10.0, 3, 5.0, 10.0)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["nothing", "params/Dense_0/", "head/"])
def test_sam_is_the_gradient_uphill(part):
    own = {"clip": 0.0, "frozen": lambda path: path.startswith(part)}

    def at(**options):
        return first(arcface(), np.random.default_rng(0), **own, **options)

    with jax.enable_x64():
        state, batch, (g, moved, metrics) = at()
        length = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(g)))
        up = jax.tree.map(lambda w, x: w + 0.3 * x / length, state.trainable, g)
        there = state.replace(params=up["params"], head=up["head"])
        grads = make(arcface(), None, optim.sgd(lr=lambda t: 0.1), **own)[1]
        want = jax.jit(grads)(there, batch)[0]
        got = at(sam=0.3)[2]
    assert distance(got[0], want) < 1e-12  # what is frozen stays where it is
    assert distance(got[0], g) > 1e-4
    # statistics and metrics are those of the weights, not of the place uphill
    assert distance(got[1], moved) < 1e-14
    same = {k: v for k, v in got[2].items() if k != "grad_norm"}
    assert distance(same, {k: metrics[k] for k in same}) < 1e-14


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lamb", "muon"])
def test_a_run_cut_short_ends_in_the_same_bits(name, tmp_path):
    c = tiny.recipe()
    c.optim.name, c.optim.schedule = name, "cosine(cycles=2)"
    c.optim.sam, c.optim.ema, c.train.microbatches = 0.05, 0.9, 2
    c.train.length, c.checkpoint.every, c.eval.every = "4 steps", "2 steps", "2 steps"
    whole = jax.device_get(experiment.train(assembly.build(c), tmp_path))
    rows = (tmp_path / "metrics.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "checkpoints" / "4")
    again = jax.device_get(experiment.train(assembly.build(c), tmp_path))
    jax.tree.map(np.testing.assert_array_equal, again, whole)
    assert (tmp_path / "metrics.jsonl").read_bytes() == rows
