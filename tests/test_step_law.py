"""The law of shares: dense = jit = pmap, on 8 devices, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from jaxface import parallel
from jaxface.losses import memory, softmax
from jaxface.train import step as steps

B, C, D = 16, 40, 8


class Net(nn.Module):
    """Dense, synced BatchNorm, dropout keyed by example, dense."""

    axis: str | None = None

    @nn.compact
    def __call__(self, x, train=False, keys=None):
        x = nn.Dense(32)(x.reshape(len(x), -1))
        x = nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            axis_name=self.axis if train else None,
        )(x)
        if train:
            keep = jax.vmap(lambda k: jax.random.bernoulli(k, 0.7, (32,)))(keys)
            x = jnp.where(keep, x / 0.7, 0.0)
        # Named like the class head on purpose: it must stay replicated.
        return nn.Dense(D, name="head")(nn.relu(x))


def noisy(cos, target, norm, ctx):
    """A rule that uses all a rule may: keys, a trainable scalar and a statistic."""
    draw = jax.vmap(lambda k: jax.random.normal(k, dtype=target.dtype))(ctx.key)
    state = {"t": 0.9 * ctx.state["t"] + 0.1 * target.mean()}
    moved = target - 0.3 - 0.05 * draw - ctx.params["b"]
    return cos * (1.0 + state["t"]), moved, ctx._replace(state=state)


noisy.unit, noisy.params, noisy.state = True, {"b": 0.1}, {"t": 0.0}


def make(loss, axis, tx, network=Net, clip=1.0, **options):
    net = network(axis)

    def init():
        state = steps.init_state(
            net, loss, tx, seed=0, shape=(4, 4, 3), num_classes=C, ema=0.9
        )
        return jax.tree.map(
            lambda x: x.astype(float) if x.dtype == jnp.float32 else x, state
        )

    grads = steps.make_grads(net, loss, axis=axis, clip=clip, **options)
    return init, grads, steps.make_update(tx, ema=0.9)


def run(loss, how, n_steps=3, tx=None, **options):
    tx = tx or optax.sgd(0.5, momentum=0.9)
    axis = None if how == "dense" else "data"
    init, grads, update = make(loss, axis, tx, **options)
    state = jax.jit(init)()
    if how == "dense":

        @jax.jit
        def step(s, b):
            g, s, m = grads(s, b)
            return update(g, s), m

        def place(batch):
            return batch
    else:
        mesh = parallel.make_mesh(axis="data")
        specs = parallel.state_specs(state, axis="data")
        state = jax.device_put(state, parallel.shardings(specs, mesh))
        grad_specs = {"params": P(), "head": P("data"), "margin": P()}
        step = parallel.compile_step(
            grads,
            update,
            specs=specs,
            grad_specs=grad_specs,
            mesh=mesh,
            axis="data",
            how=how,
        )

        def place(batch):
            return parallel.put_batch(batch, mesh=mesh, axis="data")

    losses = []
    for t in range(n_steps):
        rng = np.random.default_rng(t)
        batch = {
            "image": rng.normal(size=(B, 4, 4, 3)),
            "label": rng.integers(0, C, B).astype(np.int32),
            "position": np.arange(t * B, (t + 1) * B, dtype=np.uint32),
        }
        state, metrics = step(state, place(batch))
        losses.append(metrics)
    return jax.device_get((state, losses))


def distance(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(x - y).max()) for x, y in pairs)


def loss_with(rule, monkeypatch, **kwargs):
    if rule == "memory":
        return memory.Loss(num_classes=C, margin="cosface", scale=16.0, start=1, span=1)
    if rule == "noisy":
        monkeypatch.setattr(softmax, "resolve", lambda line: noisy)
    return softmax.Loss(num_classes=C, margin=rule, scale=16.0, **kwargs)


# `test_margins` has all rules; here are those without and with statistics, and all.
@pytest.mark.parametrize(
    "rule", ["softmax", "arcface", "magface", "adaface", "memory", "noisy"]
)
def test_dense_is_jit_is_pmap(rule, monkeypatch):
    with jax.enable_x64():
        loss = loss_with(rule, monkeypatch)
        want = run(loss, "dense")
        assert want[0].head["kernel"].dtype == np.float64
        assert rule != "memory" or want[1][-1]["remembered"] > 0
        for how in ("jit", "pmap"):
            assert distance(run(loss, how), want) < 1e-10, how


def test_detached_gradient_is_the_same_everywhere(monkeypatch):
    with jax.enable_x64():
        loss = loss_with("arcface", monkeypatch, gradient="detached")
        want = run(loss, "dense")
        assert distance(run(loss, "jit"), want) < 1e-10
        exact = run(loss_with("arcface", monkeypatch), "dense")
        assert distance(exact[0].params, want[0].params) > 1e-4


def test_unsampled_padding_never_moves(monkeypatch):
    with jax.enable_x64():
        state, _ = run(loss_with("cosface", monkeypatch), "jit", n_steps=1)
        rows = state.opt_state[0].trace["head"]["kernel"]
        assert np.abs(rows[:C]).min(axis=1).max() > 0
        assert not rows[C:].any()


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match=r"mesh.how is 'jax'; wanted 'jit' or 'pmap'"):
        parallel.compile_step(
            None,
            None,
            specs=P(),
            grad_specs=P(),
            mesh=parallel.make_mesh(),
            axis="data",
            how="jax",
        )
