"""Small runs on any layout, in float64 where jax.enable_x64 is on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxface.losses import softmax
from jaxface.train import layout as layouts
from jaxface.train import optim, schedules
from jaxface.train import step as steps

B, C, D = 16, 40, 8


class Net(nn.Module):
    """Dense, synced BatchNorm, dropout keyed by example, dense; two arrays are cut."""

    axis: object = None

    @nn.compact
    def __call__(self, x, train=False, keys=None):
        x = nn.Dense(64)(x.reshape(len(x), -1))  # [48, 64]
        x = nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            axis_name=self.axis if train else None,
        )(x)
        if train:
            keep = jax.vmap(lambda k: jax.random.bernoulli(k, 0.7, (64,)))(keys)
            x = jnp.where(keep, x / 0.7, 0.0)
        x = nn.relu(nn.Dense(32)(x))  # [64, 32]
        return nn.Dense(D, name="head")(x)


def batch_of(t):
    rng = np.random.default_rng(t)
    return {
        "image": rng.normal(size=(B, 4, 4, 3)),
        "label": rng.integers(0, C, B).astype(np.int32),
        "position": np.arange(t * B, (t + 1) * B, dtype=np.uint32),
    }


def loss_of(margin="cosface", make=softmax.Loss, **given):
    return make(num_classes=C, margin=margin, scale=16.0, **given)


def tx_of(make=optim.adamw, **given):
    rate = schedules.polynomial(peak=0.05, warmup_steps=0, total_steps=9)
    return make(lr=rate, **given)


def lay(shard="none", class_devices=0, how="jit", devices=8):
    return layouts.make(
        jax.devices()[:devices], class_devices=class_devices, shard=shard, how=how
    )


def first(loss, tx, layout, net=None, ema=0.9, **given):
    net = net or Net(layout.axis)

    def init():
        state = steps.init_state(
            net, loss, tx, seed=0, shape=(4, 4, 3), num_classes=C, ema=ema, **given
        )
        return jax.tree.map(
            lambda x: x.astype(float) if x.dtype == jnp.float32 else x, state
        )

    return jax.jit(init, out_shardings=layout.shardings(jax.eval_shape(init)))()


def compiled(loss, tx, layout, state, net=None, head_clip=0.0, ema=0.9, **options):
    grads_of = functools.partial(
        steps.make_grads, net or Net(layout.axis), **{"clip": 0.5} | options
    )
    update = steps.make_update(tx, ema=ema, policy=options.get("policy", _STOP))
    return layouts.compile_step(
        layout, loss, grads_of, update, like=state, head_clip=head_clip
    )


_STOP = steps.guard.STOP


def run(loss, tx, layout, count=3, **options):
    """Return (state, metrics of each step), on the host."""
    given = {k: options[k] for k in ("policy", "net", "ema") if k in options}
    state = first(loss, tx, layout, **given)
    step = compiled(loss, tx, layout, state, **options)
    seen = []
    for t in range(count):
        state, metrics = step(state, jax.device_put(batch_of(t), layout.split))
        seen.append(metrics)
    return jax.device_get((state, seen))


def distance(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(x - y).max()) for x, y in pairs)
