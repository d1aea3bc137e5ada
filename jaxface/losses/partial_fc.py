"""Partial FC: softmax over the classes of the batch and a random few of the others.

An et al., Partial FC: Training 10 Million Identities on a Single Machine, 2021, and
Killing Two Birds with One Stone, CVPR 2022, section 3.2. The law: in a class shard of
C classes, P of them in the batch, the sample is the P and k - P of the C - P others,
every such set equally likely, so that each other class is in with probability
(k - P)/(C - P). Draws are keyed by (seed, step, class shard); class shards are a fixed
number, whatever the number of devices, so the sample is the same on any mesh. No array
as long as the head is made where fewer than half of the classes are wanted.

    loss = Loss(margin="arcface(m=0.5)", rate=0.1, num_classes=10_000_000)
    found = loss.sample(batch["label"], key=key, axis="data")    # places and ids
    share, state, metrics = loss.over(found.id).share(rows, margin, e, batch, ...)
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxface import parallel, types
from jaxface.losses import softmax
from jaxface.types import Batch, MarginRule, Metrics

_DRAW = 0xFFFFFFFF  # folded into the step's key: a position no example gets to


@dataclasses.dataclass(frozen=True)
class Loss:
    """Cross-entropy over sampled classes with a margin rule.

    Attributes:
        num_classes: C, how many classes are real.
        margin: the rule's line, such as "arcface(m=0.5)".
        scale: s, the factor of the cosines.
        gradient: "exact" or "detached", as in `softmax.Loss`.
        centers: K, how many weights a class has, sampled together.
        filter: tau, as in `softmax.Loss`; among the sampled negatives.
        smoothing: as in `softmax.Loss`, over the sampled classes.
        dtype: "float32" or "bfloat16", as in `softmax.Loss`; rows and moments are
            float32 either way.
        sets: as in `softmax.Loss`. Shards are sampled without regard to sets, so a set
            has about its share of the sample; an example whose set has nobody else in
            it has no negatives in that step.
        rate: r in [0, 1], the part of every class shard that is sampled, yet at
            least as many rows as the global batch has images; 0 takes the classes of
            the batch and no others.
        shards: how many parts of the head are sampled each for itself, a divisor of
            1024. They lie on any number of devices that divides them.
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
    rate: float = 0.1
    shards: int = 8

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ValueError(f"rate is {self.rate}; wanted 0 (positives only) to 1")
        if self.shards < 1 or softmax.SHARD % self.shards:
            raise ValueError(
                f"shards is {self.shards}; wanted a divisor of {softmax.SHARD}, and a"
                " multiple of the number of devices"
            )
        _ = self.full  # what softmax refuses is refused here

    @functools.cached_property
    def full(self) -> softmax.Loss:
        """The same loss over any classes, all of them if need be."""
        return softmax.Loss(
            num_classes=self.num_classes,
            margin=self.margin,
            scale=self.scale,
            gradient=self.gradient,
            centers=self.centers,
            filter=self.filter,
            smoothing=self.smoothing,
            dtype=self.dtype,
            sets=self.sets,
        )

    @property
    def rule(self) -> MarginRule:
        """The margin rule that `margin` names."""
        return self.full.rule

    def init(self, key: jax.Array, *, num_classes: int, dim: int) -> dict[str, Any]:
        """Draw the head that `softmax` draws from this key."""
        return self.full.init(key, num_classes=num_classes, dim=dim)

    def init_margin(self, *, dim: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the rule's (trainable scalars, running statistics)."""
        return self.full.init_margin(dim=dim)

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
        """Return this device's share, given all its rows.

        Its gradient is as large as the head, zeros included: training goes by
        `sample` and `over` instead, and comes to the same.

        Args:
            head: {"kernel": [K C/n, D]}, this device's classes.
            margin: the rule's (trainable scalars, running statistics).
            embedding: [B/n, D], this device's examples.
            batch: with label [B/n] int32 and position [B/n] uint32.
            key: the step's key.
            axis: mesh axis name(s), None for one device.

        Returns:
            As `softmax.Loss.share`; "accuracy" is among the sampled classes.
        """
        found = self.sample(batch["label"], key=key, axis=axis)
        rows = jax.tree.map(lambda x: parallel.take_rows(x, found), dict(head))
        over = self.over(found.id)
        return over.share(rows, margin, embedding, batch, key=key, axis=axis)

    def sample(
        self, label: jax.Array, *, key: jax.Array, axis: parallel.Axis
    ) -> types.Sample:
        """Draw this device's classes for one step.

        Args:
            label: [B/n], of this device's examples.
            key: the step's key.
            axis: mesh axis name(s), None for one device.

        Raises:
            ValueError: the devices cannot share the class shards evenly.
        """
        n = parallel.axis_size(axis)
        if self.shards % n:
            raise ValueError(
                f"{n} devices cannot share {self.shards} class shards; wanted"
                f" partial_fc(shards=...) a multiple of {n}"
            )
        label = parallel.gather(label, axis).astype(jnp.int32)  # [B]
        padded = softmax.padded(self.num_classes)
        size, own = padded // self.shards, self.shards // n
        real = np.clip(self.num_classes - np.arange(self.shards) * size, 0, size)
        quota = [self.quota(int(c), len(label)) for c in real]
        slots = self.quota(size, len(label))
        draw_key = jax.random.fold_in(key, _DRAW)

        def one(shard: jax.Array) -> jax.Array:
            inside = (label >= shard * size) & (label < (shard + 1) * size)
            return sample_shard(
                jax.random.fold_in(draw_key, shard),
                jnp.where(inside, label - shard * size, size),
                jnp.asarray(real, jnp.int32)[shard],
                jnp.asarray(quota, jnp.int32)[shard],
                size=size,
                slots=slots,
                negatives=self.rate > 0,
            )

        first = parallel.axis_index(axis) * own
        shards = jnp.arange(own, dtype=jnp.int32)
        local = jax.vmap(one)(first + shards)  # [own, slots]
        taken = local < size
        place = local + shards[:, None] * size
        # Every empty slot has a place of its own past the end, where nothing is.
        empty = jnp.arange(own * slots, dtype=jnp.int32).reshape(own, slots)
        return types.Sample(
            place=jnp.where(taken, place, own * size + empty),
            id=jnp.where(taken, place + first * size, padded),
            classes=own * size,
        )

    def over(self, ids: jax.Array) -> types.Loss:
        """Return the loss whose head is the rows of these classes and no others."""
        return _Over(self.full, ids.reshape(-1))

    def quota(self, classes: int, batch: int) -> int:
        """Return k, how many of a shard's classes are sampled, positives included."""
        wanted = max(math.ceil(round(self.rate * classes, 6)), batch)
        return min(wanted, classes)


@dataclasses.dataclass(frozen=True)
class _Over:
    """Softmax over sampled rows."""

    full: softmax.Loss
    ids: jax.Array

    def init(self, key: jax.Array, *, num_classes: int, dim: int) -> dict[str, Any]:
        return self.full.init(key, num_classes=num_classes, dim=dim)

    def init_margin(self, *, dim: int) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.full.init_margin(dim=dim)

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
        w = head["kernel"]
        return self.full.on_batch(
            w, self.ids, margin, embedding, batch, key=key, axis=axis
        )


def sample_shard(
    key: jax.Array,
    positives: jax.Array,
    real: jax.Array,
    quota: jax.Array,
    *,
    size: int,
    slots: int,
    negatives: bool = True,
) -> jax.Array:
    """Choose classes of one shard: those of the batch, and others at random.

    The set is the first `quota` distinct of a sequence: the positives, then uniform
    draws with replacement. Nothing tells one negative from another in it, so every
    set of quota - P of them is equally likely. Where more than half are wanted, so
    that draws would mostly repeat, the draws are a random permutation instead, and
    where all are, simply all.

    Args:
        key: of this step and shard.
        positives: [B] places 0 .. size - 1 in the shard, `size` where elsewhere.
        real: [] how many classes the shard has; padding comes after them.
        quota: [] how many to choose, at least as many as positives, at most `real`.
        size: rows of the shard.
        slots: the largest quota of any shard.
        negatives: False chooses the positives alone.

    Returns:
        [slots] places in the shard, ascending, then `size` for empty slots.
    """
    if not negatives:
        return first_distinct(positives, quota, none=size, slots=slots)

    def proper(draws: jax.Array) -> jax.Array:
        return jnp.where(draws < real, draws, size).astype(positives.dtype)

    if slots == size:  # quota is `real` then
        return proper(jnp.arange(size, dtype=jnp.int32))
    if 2 * slots > size:
        order = proper(jax.random.permutation(key, size))
        sequence = jnp.concatenate([positives, order])
        return first_distinct(sequence, quota, none=size, slots=slots)

    def going_on(chosen: jax.Array, turn: jax.Array | int) -> jax.Array:
        turn_key = jax.random.fold_in(key, turn)
        draws = jax.random.randint(
            turn_key, (_draws(size, slots),), 0, jnp.maximum(real, 1), jnp.int32
        )
        sequence = jnp.concatenate([chosen, proper(draws)])
        return first_distinct(sequence, quota, none=size, slots=slots)

    def short(carry: tuple[jax.Array, jax.Array]) -> jax.Array:
        return (carry[0] < size).sum() < quota

    def again(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return going_on(*carry), carry[1] + 1

    # The first turn is nearly always enough; stopping there would be wrong in law.
    chosen = going_on(positives, 0)
    return jax.lax.while_loop(short, again, (chosen, jnp.asarray(1)))[0]


def first_distinct(
    sequence: jax.Array, quota: jax.Array | int, *, none: int, slots: int
) -> jax.Array:
    """Return the first `quota` distinct numbers of a sequence, ascending.

    Args:
        sequence: [L] numbers 0 .. none - 1; `none` is no number.
        quota: [] how many, at most `slots`.
        none: fills the slots that are left.
        slots: length of the result.
    """
    order = jnp.argsort(sequence, stable=True)  # equal ones in order of arrival
    ascending = sequence[order]
    before = jnp.concatenate([jnp.full((1,), -1, ascending.dtype), ascending[:-1]])
    new = (ascending != before) & (ascending < none)
    arrived = jnp.zeros(len(sequence), bool).at[order].set(new, unique_indices=True)
    rank = jnp.cumsum(arrived)  # [L], 1 for the first number to arrive
    keep = new & (rank[order] <= quota)
    slot = jnp.where(keep, jnp.cumsum(keep) - 1, slots)
    out = jnp.full((slots,), none, sequence.dtype)
    return out.at[slot].set(ascending, mode="drop")


def _draws(size: int, slots: int) -> int:
    """Return how many draws give `slots` distinct of `size`, six deviations over.

    The waiting time for the next new one is geometric (the coupon collector's).
    """
    missing = size - slots
    mean = size * math.log(size / missing)
    variance = max(size * slots / missing - mean, 0.0)
    return math.ceil(mean + 6 * math.sqrt(variance)) + 8
