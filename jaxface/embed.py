"""Images in, embeddings out: on all devices, in padded batches, compiled once.

The field's protocol adds the embedding of the mirrored image and takes unit length:
`flip_sum`. The raw output serves networks that end in a logit.

    rows = make_rows(forward, variables, mesh=mesh, axis="data", one_pass=batches)
    vectors, labels = whole(rows(source))       # [len(source), D] float32
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxface import parallel
from jaxface.types import Batch, Source

Forward = Callable[[Any, jax.Array], jax.Array]
Rows = tuple[np.ndarray, np.ndarray]  # (embeddings, labels) of some images


def flip_sum(forward: Forward) -> Forward:
    """Return f(x) + f(mirrored x), of unit length; images are [B, H, W, 3]."""

    def both(variables: Any, images: jax.Array) -> jax.Array:
        e = forward(variables, images) + forward(variables, images[:, :, ::-1])
        norm = jnp.linalg.norm(e, axis=-1, keepdims=True)
        return e / jnp.maximum(norm, 1e-12)

    return both


def compile_forward(forward: Forward, *, mesh: Mesh, axis: parallel.Axis) -> Forward:
    """Compile a forward pass: images split over the mesh, results on every device."""
    whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P(axis))
    return jax.jit(forward, in_shardings=(whole, split), out_shardings=whole)


def make_rows(
    forward: Forward,
    variables: Any,
    *,
    mesh: Mesh,
    axis: parallel.Axis,
    one_pass: Callable[[Source], Iterable[Batch]],
) -> Callable[[Source], Iterator[Rows]]:
    """Make the function from a source to its embeddings and labels, batch by batch.

    Args:
        forward: from `compile_forward`.
        variables: the network's, on the mesh.
        mesh: the devices.
        axis: mesh axis name(s) of the batch.
        one_pass: source -> batches in order, with image [B, H, W, 3], label [B] and
            mask [B]; B divides by the devices.

    Returns:
        source -> (embeddings [m, D] float32, labels [m] int32) of its images, in order.
    """
    where = NamedSharding(mesh, P(axis))

    def kept(e: jax.Array, batch: Batch) -> Rows:
        mask = batch["mask"]
        rows = np.asarray(e.addressable_data(0))[mask].astype(np.float32)
        return rows, batch["label"][mask]

    def rows(source: Source) -> Iterator[Rows]:
        begun: list[tuple[jax.Array, Batch]] = []
        for batch in one_pass(source):
            # Every process reads the whole batch and places its own part of it.
            images = jax.device_put(batch["image"], where)
            begun.append((forward(variables, images), batch))
            if len(begun) > 1:  # one ahead, so that the devices never wait for us
                yield kept(*begun.pop(0))
        for last in begun:
            yield kept(*last)

    return rows


def whole(rows: Iterable[Rows]) -> Rows:
    """Return (embeddings [N, D], labels [N]) of all batches."""
    e, label = zip(*rows, strict=True)
    return np.concatenate(e), np.concatenate(label)
