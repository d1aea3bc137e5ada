"""What the losses over embeddings share: unit rows, safe distances, means by share.

The law of shares: a mean over the whole batch is a sum of what each device holds,
divided by the count over all devices; a count of nothing is taken for one.

    own, every, y = everyone(embedding, batch, unit_rows=True, axis="data")
    share = mean_share((hinge.sum(), valid.sum()), axis="data")
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxface import parallel
from jaxface.types import Batch

Mean = tuple[jax.Array, jax.Array]  # (sum, count) of what one device holds


def unit(x: jax.Array) -> jax.Array:
    """Return rows of length 1; a zero row stays zero, with finite slopes."""
    return x / length(x)[..., None]


def length(x: jax.Array) -> jax.Array:
    """Return the lengths of rows, from 1e-12 up, with finite slopes."""
    return jnp.sqrt(jnp.maximum(jnp.sum(x * x, axis=-1), 1e-24))


def exact(x: jax.Array) -> jax.Array:
    """Return x in float32, or float64 where it is."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def classes_here(count: int, *, axis: parallel.Axis) -> jax.Array:
    """Return [count] int32, which classes the rows of this device's head are."""
    return jnp.arange(count) + parallel.axis_index(axis) * count


def root(squares: jax.Array) -> jax.Array:
    """Return square roots whose slope is zero, not infinite, at zero."""
    return jnp.sqrt(jnp.maximum(squares, 1e-12))


def everyone(
    embedding: jax.Array, batch: Batch, *, unit_rows: bool, axis: parallel.Axis
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return (own embeddings [b, D], those of all devices [B, D], labels [B])."""
    own = exact(embedding)
    if unit_rows:
        own = unit(own)
    return own, parallel.gather(own, axis), parallel.gather(batch["label"], axis)


def mean_share(mean: Mean, *, axis: parallel.Axis) -> jax.Array:
    """Return this device's share of a mean over all devices."""
    total, count = mean
    return total / jnp.maximum(parallel.psum(count, axis), 1).astype(total.dtype)


def mean_of(mean: Mean, *, axis: parallel.Axis) -> jax.Array:
    """Return a mean over all devices, for metrics: it has no gradient."""
    total = jax.lax.stop_gradient(mean[0])
    return parallel.psum(mean_share((total, mean[1]), axis=axis), axis)
