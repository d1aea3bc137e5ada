"""Softmax over classes, dense or sharded by class: this device's share of it.

The law of shares: the shares of all devices sum to the global mean loss, so nothing
outside reduces it again. All arithmetic is float32 or better, whatever the
backbone's dtype. Classes are padded to a multiple of 1024, which is fixed, so a head
has one shape on every mesh; padded classes are masked out.

    loss = Loss(margin="arcface(m=0.5)", scale=64.0, num_classes=10572)
    head = loss.init(key, num_classes=10572, dim=512)            # {"kernel": ...}
    share, state, metrics = loss.share(head, margin, e, batch, key=key, axis="data")
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxface import parallel, spec
from jaxface.losses import margin as margins
from jaxface.types import Batch, Ctx, MarginRule, Metrics

SHARD = 1024  # classes per virtual shard: the unit of padding and of random draws


@dataclasses.dataclass(frozen=True)
class Loss:
    """Cross-entropy over classes with a margin rule.

    Attributes:
        num_classes: C, how many classes are real.
        margin: the rule's line, such as "arcface(m=0.5)".
        scale: s, the factor of the cosines. For few classes 64 does not train.
        gradient: "exact", the derivative of the formula, or "detached", where the
            margin shifts values but not slopes, as arcface_torch computes it.
    """

    num_classes: int
    margin: str = "arcface"
    scale: float = 64.0
    gradient: str = "exact"

    def __post_init__(self) -> None:
        if self.gradient not in ("exact", "detached"):
            raise ValueError(
                f"gradient is {self.gradient!r}; wanted 'exact' or 'detached'"
            )
        if not self.scale > 0:
            raise ValueError(f"scale is {self.scale}; wanted a positive number")
        _ = self.rule  # an unknown margin fails here, before any device work

    @functools.cached_property
    def rule(self) -> MarginRule:
        """The margin rule that `margin` names."""
        return resolve(self.margin)

    def init(self, key: jax.Array, *, num_classes: int, dim: int) -> dict[str, Any]:
        """Draw N(0, 0.01) class weights, keyed by virtual shard of 1024 classes.

        Returns:
            {"kernel": [C padded to 1024, dim] float32}.
        """
        shards = -(-num_classes // SHARD)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(shards))
        rows = jax.vmap(lambda k: jax.random.normal(k, (SHARD, dim)))(keys)
        return {"kernel": 0.01 * rows.reshape(shards * SHARD, dim)}

    def init_margin(self, *, dim: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the rule's (trainable scalars, running statistics)."""
        facts = _facts(self.rule)
        return (
            {k: jnp.asarray(v, float) for k, v in facts.params.items()},
            {k: jnp.asarray(v, float) for k, v in facts.state.items()},
        )

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
        """Return this device's share of the mean cross-entropy.

        Args:
            head: {"kernel": [C/n, D]}, this device's classes.
            margin: the rule's (trainable scalars, running statistics).
            embedding: [B/n, D], this device's examples.
            batch: with label [B/n] int32 and position [B/n] uint32.
            key: the step's key.
            axis: mesh axis name(s), None for one device.

        Returns:
            (share, new statistics, {"accuracy", "cosine", "norm"}).
        """
        w = head["kernel"]
        ids = jnp.arange(w.shape[0]) + parallel.axis_index(axis) * w.shape[0]
        gathered = gather(embedding, batch, key=key, axis=axis)
        return self.on_rows(w, ids, gathered, margin, axis=axis)

    def on_rows(
        self,
        w: jax.Array,
        ids: jax.Array,
        gathered: tuple[jax.Array, jax.Array, jax.Array],
        margin: tuple[Mapping[str, jax.Array], Mapping[str, jax.Array]],
        *,
        axis: parallel.Axis,
    ) -> tuple[jax.Array, Mapping[str, jax.Array], Metrics]:
        """Return this device's share over some classes, all of them or a sample.

        Args:
            w: [k, D], the weights of this device's k classes.
            ids: [k], which classes they are; those from `num_classes` on are none.
                Every label of the batch is among the ids of one device.
            gathered: what `gather` returns.
            margin: the rule's (trainable scalars, running statistics).
            axis: mesh axis name(s), None for one device.

        Returns:
            As `share`.
        """
        e, y, keys = gathered
        mine = y[:, None] == ids[None, :]  # [B, k]
        real = (ids < self.num_classes)[None, :]

        cos, norm = self._logits(e, w.astype(e.dtype))
        target = parallel.psum(jnp.where(mine, cos, 0.0).sum(-1), axis)  # [B]
        best = parallel.pmax(jnp.where(real, cos, -jnp.inf).max(-1), axis)
        metrics = {
            "accuracy": jnp.mean(target >= best),
            "cosine": jnp.mean(target),
            "norm": jnp.mean(norm),
        }
        params, state = margin
        new_cos, new_target, ctx = self.rule(
            cos, target, norm, Ctx(keys, params, state)
        )
        if self.gradient == "detached":
            new_cos = _straight_through(cos, new_cos)
            new_target = _straight_through(target, new_target)

        scale = self.scale if _facts(self.rule).unit else 1.0
        z = scale * jnp.where(mine, new_target[:, None], new_cos)
        z = jnp.where(real, z, -jnp.inf)
        top = parallel.pmax(z.max(-1), axis)
        total = parallel.psum(jnp.exp(z - top[:, None]).sum(-1), axis)
        mean = jnp.mean(jnp.log(total) + top - scale * new_target)
        return mean / parallel.axis_size(axis), ctx.state, metrics

    def _logits(self, e: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return (cosines or inner products [B, k], embedding norms [B])."""
        unit_e, norm = _unit(e)
        if not _facts(self.rule).unit:
            return e @ w.T, norm
        unit_w, _ = _unit(w)
        edge = 1.0 - 1e-7  # beyond it the slope of the angle is infinite
        return jnp.clip(unit_e @ unit_w.T, -edge, edge), norm


def resolve(line: str) -> MarginRule:
    """Return the margin rule a line such as "cosface(m=0.35)" names."""
    call = spec.parse_one(line)
    return spec.bind(spec.member(margins, call, kind="margin"), call)


def _facts(rule: Any) -> Any:
    return getattr(rule, "func", rule)  # under the partial that holds its arguments


def gather(
    embedding: jax.Array, batch: Batch, *, key: jax.Array, axis: parallel.Axis
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return every device's (embeddings [B, D], labels [B], keys [B])."""
    exact = jnp.promote_types(embedding.dtype, jnp.float32)
    e = parallel.gather(embedding.astype(exact), axis)
    y = parallel.gather(batch["label"], axis)
    position = parallel.gather(batch["position"], axis)
    keys = jax.vmap(lambda p: jax.random.fold_in(key, p))(position)
    return e, y, keys


def _unit(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return (unit rows, lengths [N]); a zero row stays zero, with finite slopes."""
    norm = jnp.sqrt(jnp.maximum(jnp.sum(x * x, axis=-1), 1e-24))
    return x / norm[:, None], norm


def _straight_through(before: jax.Array, after: jax.Array) -> jax.Array:
    return before + jax.lax.stop_gradient(after - before)
