"""The train step of a loss that samples classes: only their rows are ever touched.

The law: the whole state with the sampled rows in the head's place, in its weights and
in its moments alike, is a state like any other, so the ordinary two halves train it.
Then the rows are written back. A row that was not sampled keeps weights and moments
bit for bit, no decay either; counts and schedules go on for all.

    body = make_body(loss, make_grads=grads_of, update=make_update(tx), axis="data")
    step = parallel.compile_body(body, specs=specs, mesh=mesh, axis="data")
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxface import parallel
from jaxface.train import step as steps
from jaxface.types import Batch, Loss, Sample, SampledLoss


def make_body(
    loss: SampledLoss,
    *,
    make_grads: Callable[[Loss], Callable[[steps.TrainState, Batch], Any]],
    update: Callable[[Any, steps.TrainState], steps.TrainState],
    axis: parallel.Axis,
    classes: parallel.Axis = None,
    clip: float = 0.0,
) -> parallel.Step:
    """Make the whole step, written for one device.

    Args:
        loss: draws the classes of a step.
        make_grads: `step.make_grads` for a given loss, everything else bound.
        update: from `step.make_update`; its optimizer must be element-wise, for it
            sees the sampled rows only, and of those only this device's.
        axis: mesh axis name(s) of the batch; None for one device.
        classes: those along which the head is split, as for `make_grads`; None: all.
        clip: largest norm of the head's gradient in each class shard; 0: off.

    Returns:
        body(state, batch) -> (state, metrics), for `parallel.compile_body`.
    """
    split = axis if classes is None else classes

    def body(state: steps.TrainState, batch: Batch) -> Any:
        _, key = jax.random.split(steps.step_key(state))
        label = parallel.gather(batch["label"], parallel.rest(axis, split))
        found = loss.sample(label, key=key, axis=split)
        few = _map_classes(lambda x: parallel.take_rows(x, found), state)
        g, few, metrics = make_grads(loss.over(found.id))(few, batch)
        if clip > 0:
            g["head"] = jax.tree.map(lambda x: _clipped(x, found, clip), g["head"])
        few = update(g, few)
        new = _map_classes(
            lambda x, rows: parallel.put_rows(x, found, rows), state, few
        )
        return new, metrics

    return body


def _map_classes(
    f: Callable[..., jax.Array], state: steps.TrainState, *newer: steps.TrainState
) -> steps.TrainState:
    """Apply `f` to arrays with rows for classes; take the rest from the newest."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *xs: f(*xs) if parallel.of_classes(path, xs[0]) else xs[-1],
        state,
        *newer,
    )


def _clipped(g: jax.Array, sample: Sample, clip: float) -> jax.Array:
    # Class shards are the same on any mesh; a norm over a device's rows would not be.
    shards = g.reshape(len(sample.place), -1)
    norm = jnp.sqrt(jnp.sum(shards * shards, axis=-1, keepdims=True))
    return (shards * jnp.minimum(1.0, clip / jnp.maximum(norm, 1e-12))).reshape(g.shape)
