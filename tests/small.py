"""A small net with a head of a few thousand classes, and what trains it, in float64."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxface import parallel, spec
from jaxface.losses import partial_fc
from jaxface.train import optim, sampled, schedules
from jaxface.train import step as steps

B, C, D, SIZE = 8, 2500, 4, 3072  # SIZE: the head's rows, padded
MESHES = {"dense": None, "jit": "data", "pmap": "data"}


class Net(nn.Module):
    """One dense layer, as good as any backbone for the head's sake."""

    @nn.compact
    def __call__(self, x, train=False, keys=None):
        return nn.Dense(D)(x.reshape(len(x), -1))


def batches(count):
    for t in range(count):
        rng = np.random.default_rng(t)
        yield {
            "image": rng.normal(size=(B, 2, 2, 3)),
            "label": rng.integers(0, C, B).astype(np.int32),
            "position": np.arange(t * B, (t + 1) * B, dtype=np.uint32),
        }


def exact(state):
    """A state in float64."""
    return jax.tree.map(
        lambda x: x.astype(float) if x.dtype == jnp.float32 else x, state
    )


def start(loss, tx, num_classes=C):
    """The first state; float64 where jax.enable_x64 is on."""
    init = functools.partial(steps.init_state, Net(), loss, tx, seed=0, shape=(2, 2, 3))
    return jax.jit(lambda: exact(init(num_classes=num_classes)))()


def compiled(loss, tx, state, how="dense", devices=8, microbatches=1, **kwargs):
    """The jitted step, and its state in its place."""
    axis = MESHES[how]
    update = steps.make_update(tx)
    grads_of = functools.partial(
        steps.make_grads, Net(), axis=axis, microbatches=microbatches
    )
    if isinstance(loss, partial_fc.Loss):
        body = sampled.make_body(
            loss, make_grads=grads_of, update=update, axis=axis, **kwargs
        )
    else:

        def body(state, batch):
            g, state, metrics = grads_of(loss)(state, batch)
            return update(g, state), metrics

    if axis is None:
        return jax.jit(body), state
    mesh = parallel.make_mesh(axis=axis, devices=jax.devices()[:devices])
    specs = parallel.state_specs(state, axis=axis)
    state = jax.device_put(state, parallel.shardings(specs, mesh))
    step = parallel.compile_body(body, specs=specs, mesh=mesh, axis=axis, how=how)
    return step, state


def train(loss, tx, count=3, how="dense", state=None, skip=0, **kwargs):
    state = start(loss, tx) if state is None else state
    step, state = compiled(loss, tx, state, how, **kwargs)
    seen = []
    for batch in itertools.islice(batches(skip + count), skip, None):
        state, metrics = step(state, batch)
        seen.append(metrics)
    return jax.device_get((state, seen))


def make_tx(line="sgd(weight_decay=0.01)"):
    call = spec.parse_one(line)
    rate = schedules.polynomial(peak=0.5, warmup_steps=0, total_steps=9)
    return spec.bind(spec.member(optim, call, kind="optimizer"), call)(lr=rate)


def loss_of(rate=0.1, rule="cosface(m=0.2)", **kwargs):
    return partial_fc.Loss(num_classes=C, margin=rule, scale=8.0, rate=rate, **kwargs)


def close(a, b, tolerance=1e-12):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=tolerance), a, b
    )


def rows_of(tree):
    """The arrays with rows for classes, real ones only."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [x[:C] for path, x in leaves if parallel.of_classes(path, x)]


@functools.partial(jax.jit, static_argnums=0)
def _sample(loss, label, key):
    return loss.sample(label, key=key, axis=None).id


def sampled_ids(loss, label, key):
    return np.asarray(_sample(loss, label, key))
