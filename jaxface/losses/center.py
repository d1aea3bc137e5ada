"""Centre loss: images are drawn to a running centre of their class.

A companion of softmax, Wen et al. ECCV 2016. The law: centres are statistics, moved
by the paper's rule and never by the optimizer. They are sharded by class as a head
is, and a step touches the centres of the batch's classes only.

    loss = Loss(num_classes=10572)       # loss.also = "center(weight=0.003)"
    _, state = loss.init_margin(dim=512)                 # {"head": {"centers": ...}}
    share, state, metrics = loss.share({}, ({}, state), e, batch, key=key, axis="data")
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxface import parallel
from jaxface.losses import common, softmax
from jaxface.types import Batch, Metrics


@dataclasses.dataclass(frozen=True)
class Loss:
    """Half the squared distance to one's centre, eq. (2), as a mean over the batch.

    The paper adds two sums over the batch, softmax's and this; here both are means, so
    its weight of 0.003 keeps its meaning.

    Attributes:
        num_classes: C.
        alpha: how far centres move, 0 .. 1.
        unit: use embeddings of unit length; the paper's are raw.
    """

    num_classes: int
    alpha: float = 0.5
    unit: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"center got alpha={self.alpha}; wanted 0 to 1")

    def init(self, key: jax.Array, *, num_classes: int, dim: int) -> dict[str, Any]:
        """Return no head: centres are not for the optimizer."""
        return {}

    def init_margin(self, *, dim: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return centres at the origin, [C padded to 1024, dim] float32."""
        rows = softmax.padded(self.num_classes)
        return {}, {"head": {"centers": jnp.zeros((rows, dim))}}

    def share(
        self,
        head: Mapping[str, jax.Array],
        margin: tuple[Mapping[str, Any], Mapping[str, Any]],
        embedding: jax.Array,
        batch: Batch,
        *,
        key: jax.Array,
        axis: parallel.Axis,
    ) -> tuple[jax.Array, Mapping[str, Any], Metrics]:
        """Return this device's share: that of the images whose centre it holds.

        Args:
            head: not used.
            margin: (not used, {"head": {"centers": [C/n, D]}}).
            embedding: [b, D], this device's examples.
            batch: with label [b] int32.
            key: not used.
            axis: mesh axis name(s), None for one device.

        Returns:
            (share, moved centres, {"distance"}: the mean distance to the centre).
        """
        _, e, y = common.everyone(embedding, batch, unit_rows=self.unit, axis=axis)
        centers = margin[1]["head"]["centers"]
        rows = len(centers)
        row = y - parallel.axis_index(axis) * rows
        row = jnp.where((row >= 0) & (row < rows), row, rows)  # past the end: not here
        here = row < rows
        c = centers.at[row].get(mode="fill", fill_value=0).astype(e.dtype)
        away = jnp.where(here[:, None], c - e, 0.0)  # [B, D]
        squares = jnp.sum(away * away, -1)
        # eq. (4): the sum over a class's images, divided by one more than their number
        count = (y[:, None] == y[None, :]).sum(-1, keepdims=True)
        move = -self.alpha * jax.lax.stop_gradient(away) / (1 + count)
        moved = centers.at[row].add(move.astype(centers.dtype), mode="drop")
        found = (common.root(squares) * here).sum(), here.sum()
        metrics = {"distance": common.mean_of(found, axis=axis)}
        state = {**margin[1], "head": {**margin[1]["head"], "centers": moved}}
        return squares.sum() / (2 * len(e)), state, metrics
