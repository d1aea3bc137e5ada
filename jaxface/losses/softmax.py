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
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxface import parallel, spec
from jaxface.losses import adaptive, common
from jaxface.losses import margin as margins
from jaxface.losses.rule import facts
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
        centers: K, how many weights a class has; its cosine is the best of theirs.
            Sub-center ArcFace, Deng et al. 2020, uses 3.
        filter: tau; a negative with a larger cosine is taken for the same person
            under another label, and its cosine set to 0, as arcface_torch does
            (it uses 0.4). 1 filters nothing.
        smoothing: the part of the label spread evenly over the classes that exist;
            over a sample of classes, over the sampled ones.
        dtype: "float32", or "bfloat16" to round the factors of embeddings times
            weights and of their gradients; sums, margins and the weights themselves
            stay float32.
        sets: how many classes each of several sets has, in order; then every set has
            a head of its own: the softmax of an example, and its negatives, smoothing
            and accuracy, are over the classes of its label's set. () is one head.
            What a rule learns of the batch, such as AdaFace's mean, it learns of all.
    """

    mixes: ClassVar[bool] = True  # takes batches of `losses.mixing`

    num_classes: int
    margin: str = "arcface"
    scale: float = 64.0
    gradient: str = "exact"
    centers: int = 1
    filter: float = 1.0
    smoothing: float = 0.0
    dtype: str = "float32"
    sets: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.gradient not in ("exact", "detached"):
            raise ValueError(
                f"gradient is {self.gradient!r}; wanted 'exact' or 'detached'"
            )
        if not self.scale > 0:
            raise ValueError(f"scale is {self.scale}; wanted a positive number")
        if not (isinstance(self.centers, int) and self.centers >= 1):
            raise ValueError(f"centers is {self.centers}; wanted a whole number from 1")
        if not -1 <= self.filter <= 1:
            raise ValueError(f"filter is {self.filter}; wanted a cosine, -1 to 1")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype is {self.dtype!r}; wanted 'float32' or 'bfloat16'")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing is {self.smoothing}; wanted 0 to below 1")
        unit = facts(self.rule).unit  # an unknown margin fails here
        if self.filter < 1 and not unit:
            raise ValueError(
                f"filter={self.filter} compares cosines, which margin {self.margin!r}"
                " does not use; leave it at 1 or take another margin"
            )
        self._check_sets()

    def _check_sets(self) -> None:
        if not self.sets:
            return
        if min(self.sets) < 1 or sum(self.sets) != self.num_classes:
            raise ValueError(
                f"sets is {self.sets}; wanted the number of classes of each set, 1 or"
                f" more, {self.num_classes} together"
            )
        why = facts(self.rule).undivided
        if why:
            raise ValueError(
                f"margin {self.margin!r} cannot serve a head for each set: {why}; take"
                " another margin, or one head"
            )

    @functools.cached_property
    def rule(self) -> MarginRule:
        """The margin rule that `margin` names."""
        return resolve(self.margin)

    def init(self, key: jax.Array, *, num_classes: int, dim: int) -> dict[str, Any]:
        """Draw N(0, 0.01) class weights.

        Returns:
            {"kernel": [C padded to 1024, times K, dim] float32}; the K centres of a
            class are neighbours.
        """
        return {"kernel": draw(key, num_classes, dim=dim, centers=self.centers)}

    def init_margin(self, *, dim: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the rule's (trainable scalars, running statistics)."""
        given = facts(self.rule)
        return (
            {k: jnp.asarray(v, float) for k, v in given.params.items()},
            {k: jnp.asarray(v, float) for k, v in given.state.items()},
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
            head: {"kernel": [K C/n, D]}, this device's classes.
            margin: the rule's (trainable scalars, running statistics).
            embedding: [B/n, D], this device's examples.
            batch: with label [B/n] int32 and position [B/n] uint32.
            key: the step's key.
            axis: mesh axis name(s), None for one device.

        Returns:
            (share, new statistics, {"accuracy", "cosine", "norm"}, and where they
            apply "filtered", negatives per example, and "scale").
        """
        w = head["kernel"]
        count = w.shape[0] // self.centers
        ids = common.classes_here(count, axis=axis)
        return self.on_batch(w, ids, margin, embedding, batch, key=key, axis=axis)

    def on_batch(
        self,
        w: jax.Array,
        ids: jax.Array,
        margin: tuple[Mapping[str, jax.Array], Mapping[str, jax.Array]],
        embedding: jax.Array,
        batch: Batch,
        *,
        key: jax.Array,
        axis: parallel.Axis,
    ) -> tuple[jax.Array, Mapping[str, jax.Array], Metrics]:
        """Return this device's share over some classes, of a plain or mixed batch.

        Where `losses.mixing` mixed the images, the loss is lam L(label) + (1 - lam)
        L(partner). Statistics and metrics are those of `label`, the larger part; the
        mean of lam is among the latter.

        Args:
            w: [k * K, D], as for `on_rows`.
            ids: [k], which classes they are.
            margin: the rule's (trainable scalars, running statistics).
            embedding: [B/n, D], this device's examples.
            batch: as for `share`; of a mixed one also partner [B/n] int32, lam [B/n].
            key: the step's key.
            axis: mesh axis name(s), None for one device.

        Returns:
            As `share`.
        """
        e, y, keys = gather(embedding, batch, key=key, axis=axis)
        if "lam" not in batch:
            return self.on_rows(w, ids, (e, y, keys), margin, axis=axis)
        lam = parallel.gather(batch["lam"], axis).astype(e.dtype)
        partner = parallel.gather(batch["partner"], axis)
        one, state, metrics = self.on_rows(
            w, ids, (e, y, keys), margin, axis=axis, weight=lam
        )
        two, _, _ = self.on_rows(
            w, ids, (e, partner, keys), margin, axis=axis, weight=1.0 - lam
        )
        return one + two, state, metrics | {"lam": jnp.mean(lam)}

    def on_rows(
        self,
        w: jax.Array,
        ids: jax.Array,
        gathered: tuple[jax.Array, jax.Array, jax.Array],
        margin: tuple[Mapping[str, jax.Array], Mapping[str, jax.Array]],
        *,
        axis: parallel.Axis,
        weight: jax.Array | float = 1.0,
    ) -> tuple[jax.Array, Mapping[str, jax.Array], Metrics]:
        """Return this device's share over some classes, all of them or a sample.

        Over a sample the softmax, the label's smoothing and `ctx.negatives` are over
        the sampled classes; their number, where it matters, is the sample's, except
        in `ctx.classes`.

        Args:
            w: [k * K, D], the weights of this device's k classes, K for each.
            ids: [k], which classes they are; those from `num_classes` on are none.
                Every label of the batch is among the ids of one device.
            gathered: what `gather` returns.
            margin: the rule's (trainable scalars, running statistics).
            axis: mesh axis name(s), None for one device.
            weight: [B], of each example's loss.

        Returns:
            As `share`.
        """
        e, y, keys = gathered
        mine = y[:, None] == ids[None, :]  # [B, k]
        real = self._among(y, ids)  # [B, k]
        negative = real & ~mine

        def negatives(x: jax.Array) -> jax.Array:
            return parallel.psum(jnp.where(negative, x, 0.0).sum(-1), axis)

        cos, norm = self._logits(e, w.astype(e.dtype))
        target = parallel.psum(jnp.where(mine, cos, 0.0).sum(-1), axis)  # [B]
        best = parallel.pmax(jnp.where(real, cos, -jnp.inf).max(-1), axis)
        metrics = {
            "accuracy": jnp.mean(target >= best),
            "cosine": jnp.mean(target),
            "norm": jnp.mean(norm),
        }
        if self.filter < 1:
            dirty = cos > self.filter
            metrics["filtered"] = jnp.mean(negatives(dirty))
            cos = jnp.where(dirty & negative, 0.0, cos)
        given = self._ctx(keys, margin, negatives, e.dtype)
        new_cos, new_target, ctx = self.rule(cos, target, norm, given)
        if self.gradient == "detached":
            new_cos = _straight_through(cos, new_cos)
            new_target = _straight_through(target, new_target)

        scale = jnp.broadcast_to(ctx.scale, target.shape)
        if ctx.scale is not given.scale:
            metrics["scale"] = jnp.mean(scale)
        z = scale[:, None] * jnp.where(mine, new_target[:, None], new_cos)
        loss = self._cross_entropy(z, scale * new_target, real, axis) + ctx.penalty
        return jnp.mean(weight * loss) / parallel.axis_size(axis), ctx.state, metrics

    def _among(self, y: jax.Array, ids: jax.Array) -> jax.Array:
        """Return [B or 1, k] bool: the class exists, in the head of the label's set."""
        real = (ids < self.num_classes)[None, :]
        if not self.sets:
            return real
        set_of = functools.partial(
            jnp.searchsorted, jnp.asarray(np.cumsum(self.sets), ids.dtype), side="right"
        )
        return real & (set_of(y)[:, None] == set_of(ids)[None, :])

    def _cross_entropy(
        self, z: jax.Array, target: jax.Array, real: jax.Array, axis: parallel.Axis
    ) -> jax.Array:  # [B]
        masked = jnp.where(real, z, -jnp.inf)
        top = parallel.pmax(masked.max(-1), axis)
        total = parallel.psum(jnp.exp(masked - top[:, None]).sum(-1), axis)
        hit = target
        if self.smoothing > 0:
            count = parallel.psum(real.sum(-1), axis)  # [B or 1]
            spread = parallel.psum(jnp.where(real, z, 0.0).sum(-1), axis) / count
            hit = (1.0 - self.smoothing) * target + self.smoothing * spread
        return jnp.log(total) + top - hit

    def _ctx(self, keys: jax.Array, margin: Any, negatives: Any, dtype: Any) -> Ctx:
        params, state = margin
        return Ctx(
            key=keys,
            params=params,
            state=state,
            scale=jnp.asarray(self.scale if facts(self.rule).unit else 1.0, dtype),
            penalty=jnp.zeros((), dtype),
            classes=self.num_classes,
            negatives=negatives,
        )

    def _logits(self, e: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return (cosines or inner products [B, k], embedding norms [B])."""
        norm = common.length(e)
        dtype = "" if self.dtype == "float32" else self.dtype  # float64 stays too
        if facts(self.rule).unit:
            cos = cosines(common.unit(e), common.unit(w), dtype=dtype)
        else:
            cos = product(e, w, dtype=dtype)
        if self.centers == 1:
            return cos, norm
        return cos.reshape(len(e), -1, self.centers).max(-1), norm


def rules() -> dict[str, MarginRule]:
    """Return all margin rules by name."""
    return spec.public(margins) | spec.public(adaptive)


def resolve(line: str) -> MarginRule:
    """Return the margin rule a line such as "cosface(m=0.35)" names."""
    call, known = spec.parse_one(line), rules()
    if call.name not in known:
        raise spec.unknown("margin", call.name, known)
    return spec.bind(known[call.name], call)


def padded(num_classes: int) -> int:
    """Return how many rows a head has: the classes, to a multiple of 1024."""
    return -(-num_classes // SHARD) * SHARD


def draw(key: jax.Array, num_classes: int, *, dim: int, centers: int = 1) -> jax.Array:
    """Draw N(0, 0.01) rows, keyed by virtual shard of 1024 classes.

    Returns:
        [C padded to 1024, times centers, dim] float32; padding is zero, so that an
        optimizer that asks for the length of the whole (LAMB) gets it.
    """
    shards = padded(num_classes) // SHARD
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(shards))
    shape = (SHARD * centers, dim)
    rows = jax.vmap(lambda k: jax.random.normal(k, shape))(keys)
    rows = 0.01 * rows.reshape(shards * SHARD * centers, dim)
    real = jnp.arange(len(rows)) < num_classes * centers
    return jnp.where(real[:, None], rows, 0.0)


def gather(
    embedding: jax.Array, batch: Batch, *, key: jax.Array, axis: parallel.Axis
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return every device's (embeddings [B, D], labels [B], keys [B])."""
    e = parallel.gather(common.exact(embedding), axis)
    y = parallel.gather(batch["label"], axis)
    position = parallel.gather(batch["position"], axis)
    keys = jax.vmap(lambda p: jax.random.fold_in(key, p))(position)
    return e, y, keys


def cosines(unit_e: jax.Array, unit_w: jax.Array, *, dtype: str = "") -> jax.Array:
    """Return [B, k] cosines, just inside +-1, where an angle still has a slope."""
    edge = 1.0 - 1e-7
    return jnp.clip(product(unit_e, unit_w, dtype=dtype), -edge, edge)


def product(e: jax.Array, w: jax.Array, *, dtype: str = "") -> jax.Array:
    """Return [B, k] inner products of rows, the factors rounded to `dtype` if any."""
    if not dtype:
        return e @ w.T
    factors = e.astype(dtype), w.T.astype(dtype)
    return jnp.matmul(*factors, preferred_element_type=e.dtype)


def _straight_through(before: jax.Array, after: jax.Array) -> jax.Array:
    return before + jax.lax.stop_gradient(after - before)
