"""Binary losses: one logit per image, "is this the enrolled person or not".

The law of shares holds as in `softmax`: shares sum to the global mean. The network
ends in the logit itself, so there is no head.

    loss = Loss(num_classes=2)
    share, _, metrics = loss.share({}, ({}, {}), logit, batch, key=key, axis=None)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxface import parallel
from jaxface.types import Batch, Metrics


@dataclasses.dataclass(frozen=True)
class Loss:
    """Binary cross-entropy on the sigmoid of one logit, in its stable form."""

    num_classes: int = 2

    def __post_init__(self) -> None:
        if self.num_classes != 2:
            raise ValueError(
                f"binary loss got {self.num_classes} classes; wanted 2. Wrap the"
                " source: `folder(...)|enrolled(identity=0)`"
            )

    def init(self, key: jax.Array, *, num_classes: int, dim: int) -> dict[str, Any]:
        """Return no head; the network must give one number per image."""
        if dim != 1:
            raise ValueError(f"binary loss got {dim} outputs per image; wanted 1 logit")
        return {}

    def init_margin(self, *, dim: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return nothing: there is no margin rule."""
        return {}, {}

    def share(
        self,
        head: Mapping[str, jax.Array],
        margin: tuple[Mapping[str, jax.Array], Mapping[str, jax.Array]],
        embedding: jax.Array,
        batch: Batch,
        *,
        key: jax.Array,
        axis: parallel.Axis,
    ) -> tuple[jax.Array, Mapping[str, jax.Array], Metrics]:
        """Return this device's share of -y log p - (1 - y) log(1 - p).

        Args:
            head: empty.
            margin: empty statistics, passed through.
            embedding: [B/n, 1] logits.
            batch: with label [B/n], 1 for the enrolled person.
            key: not used.
            axis: mesh axis name(s), None for one device.

        Returns:
            (share, statistics, {"accuracy"}).
        """
        exact = jnp.promote_types(embedding.dtype, jnp.float32)
        logit = embedding[:, 0].astype(exact)  # [B/n]
        y = batch["label"].astype(exact)
        terms = optax.losses.sigmoid_binary_cross_entropy(logit, y)
        right = (logit > 0) == (y > 0.5)
        metrics = {"accuracy": parallel.pmean(jnp.mean(right), axis)}
        return jnp.mean(terms) / parallel.axis_size(axis), margin[1], metrics
