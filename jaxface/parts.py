"""Arrays of the network that lie in parts, one on each device, as a ZeRO or FSDP.

Rajbhandari et al., ZeRO, SC 2020: moments are only needed where a weight is updated
(stage 1), weights only while they are multiplied with (stage 3). The law: an array is
cut along its largest dimension that the devices divide, a function of its shape alone,
so weights, moments and averages of one name are cut alike; and `whole` undoes `own`.
The derivative of `whole` sums over devices and leaves each its part, so by the law of
shares the gradient of a part is complete.

    specs = cut(shapes.params, axis="data", devices=8)       # a PartitionSpec for each
    full = whole(params, specs, axis="data")                 # in a shard_map, as below
    g = summed(gradient_of(full), specs, axis="data")        # of each device's part
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxface import parallel

LEAST = 1024  # numbers; of less than that every device has its copy
# `mesh.shard` -> regex over the paths of a state: what lies in parts
TABLE = {
    "none": r"(?!)",
    "optimizer": r"^(opt_state|ema)/",
    "parameters": r"^(params|opt_state|ema)/",
}


def cut(tree: Any, *, axis: parallel.Axis, devices: int) -> Any:
    """Return for each array of a tree how it is cut: P() for those that stay whole.

    Args:
        tree: arrays or shapes.
        axis: mesh axis name(s) to cut along.
        devices: how many there are along them.
    """
    return jax.tree.map(lambda x: _spec(x.shape, axis, devices), tree)


def state_specs(
    state: Any,
    *,
    shard: str,
    axis: parallel.Axis,
    classes: parallel.Axis,
    devices: int,
) -> Any:
    """Return one PartitionSpec per leaf of a state, by the leaf's path.

    Args:
        state: tree of arrays or shapes.
        shard: a key of `TABLE`.
        axis: mesh axis name(s) of the batch, along which parts are cut.
        classes: those along which the head's rows are split.
        devices: how many there are along `axis`.
    """
    pattern = re.compile(TABLE[shard])

    def spec(path: Any, leaf: Any) -> P:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if pattern.search(name) and not parallel.of_classes(path, leaf):
            return _spec(leaf.shape, axis, devices)
        return P(classes) if parallel.of_classes(path, leaf) else P()

    return jax.tree_util.tree_map_with_path(spec, state)


def _spec(shape: tuple[int, ...], axis: parallel.Axis, devices: int) -> P:
    fit = [i for i, size in enumerate(shape) if size % devices == 0]
    if devices == 1 or not fit or math.prod(shape) < LEAST:
        return P()
    dim = max(fit, key=lambda i: shape[i])
    return P(*(None,) * dim, axis)


def whole(tree: Any, specs: Any, *, axis: parallel.Axis) -> Any:
    """Gather arrays that lie in parts."""

    def gather(x: jax.Array, dim: int) -> jax.Array:
        return jax.lax.all_gather(x, axis, axis=dim, tiled=True)

    return _map(gather, tree, specs)


def own(tree: Any, specs: Any, *, axis: parallel.Axis) -> Any:
    """Return this device's parts of whole arrays."""

    def take(x: jax.Array, dim: int) -> jax.Array:
        size = x.shape[dim] // parallel.axis_size(axis)
        start = parallel.axis_index(axis) * size
        return jax.lax.dynamic_slice_in_dim(x, start, size, dim)

    return _map(take, tree, specs)


def summed(tree: Any, specs: Any, *, axis: parallel.Axis, given: bool = False) -> Any:
    """Sum whole arrays over devices, of which each gets its own parts.

    Args:
        tree: arrays, or None where there is none.
        specs: how they are cut.
        axis: mesh axis name(s).
        given: what is cut came through `whole`: it is parts and sums already.
    """

    def scatter(x: jax.Array, dim: int) -> jax.Array:
        if given:
            return x
        return jax.lax.psum_scatter(x, axis, scatter_dimension=dim, tiled=True)

    return _map(scatter, tree, specs, rest=lambda x: parallel.psum(x, axis))


def squares(tree: Any, specs: Any, *, axis: parallel.Axis) -> jax.Array:
    """Return the sum of squares of arrays in parts, over all devices."""
    leaves = [(x, s) for x, s in _pairs(tree, specs) if x is not None]
    zero = jnp.zeros((), jnp.float32)
    cut = sum(
        (_square(x) for x, s in leaves if parallel.dimension(s) is not None), zero
    )
    full = sum((_square(x) for x, s in leaves if parallel.dimension(s) is None), zero)
    return full + parallel.psum(cut, axis)


def regathered(f: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function forget what it gathered and gather it again for its gradient.

    What else it gathers, the embeddings of a batch, is small beside the weights.
    """
    return jax.checkpoint(f, policy=lambda p, *_, **__: p.name != "all_gather")


def _square(x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(x))


def _pairs(tree: Any, specs: Any) -> list[tuple[Any, P]]:
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: x is None)
    cuts = jax.tree.leaves(specs, is_leaf=lambda s: isinstance(s, P))
    return list(zip(leaves, cuts, strict=True))


def _map(
    f: Callable[[jax.Array, int], jax.Array],
    tree: Any,
    specs: Any,
    *,
    rest: Callable[[Any], Any] = lambda x: x,
) -> Any:
    """Apply `f` to what is cut, and `rest` to all the others at once."""
    pairs = _pairs(tree, specs)
    others = {
        i: x
        for i, (x, s) in enumerate(pairs)
        if x is not None and parallel.dimension(s) is None
    }
    done = rest(others)
    out = []
    for i, (x, s) in enumerate(pairs):
        dim = parallel.dimension(s)
        out.append(done.get(i) if x is None or dim is None else f(x, dim))
    shape = jax.tree.structure(tree, is_leaf=lambda x: x is None)
    return jax.tree.unflatten(shape, out)
