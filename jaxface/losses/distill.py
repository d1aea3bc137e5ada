"""Distillation: learn from what a frozen teacher says of the same images.

The law: a loss sees the teacher only as arrays of the batch, "teacher" [b, T] (its
embeddings) and "teacher_head" [C/n, T] (its class weights), whoever computed them, so
nothing of the teacher is trained, saved or compiled in. Zero where both agree.

    loss = relational(num_classes=10572)   # loss.also = "distill.relational(weight=1)"
    share, _, metrics = loss.share({}, ({}, {}), e, batch, key=key, axis="data")
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxface import parallel
from jaxface.losses import common
from jaxface.losses.common import Mean
from jaxface.types import Batch, Metrics


class _Seen(NamedTuple):
    """Embeddings of one of both networks: own [b, D] and those of all devices [B, D].

    Attributes:
        own: this device's.
        every: of the batch.
        me: [b], where the own ones are among them.
        axis: mesh axis name(s), None for one device.
    """

    own: jax.Array
    every: jax.Array
    me: jax.Array
    axis: parallel.Axis


# The means that add up to the loss, each also told by its name.
_Rule = Callable[[_Seen, _Seen], dict[str, Mean]]


@dataclasses.dataclass(frozen=True)
class Loss:
    """A mean over images, or pairs and triples of them; the functions below make one.

    Attributes:
        num_classes: C; there is no array of that size.
        rule: (network, teacher) -> means that add up to the loss.
        unit: whether embeddings are brought to unit length.
        one_space: whether both must have embeddings of the same size.
        pairs: whether it compares images with each other.
        reads: what it wants to find in the batch.
    """

    num_classes: int
    rule: _Rule | None = None
    unit: bool = True
    one_space: bool = True
    pairs: bool = False
    reads: ClassVar[tuple[str, ...]] = ("teacher",)

    def __post_init__(self) -> None:
        if self.rule is None:
            raise ValueError(
                "loss 'distill' is a family; wanted one of it, as in 'distill.cosine'"
            )

    def init(self, key: jax.Array, *, num_classes: int, dim: int) -> dict[str, Any]:
        """Return no head."""
        return {}

    def init_margin(self, *, dim: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return nothing: nothing is trained or kept besides the network."""
        return {}, {}

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
        """Return this device's share of the mean over the batch.

        Args:
            head: not used.
            margin: (not used, statistics that are passed through).
            embedding: [b, D], this device's examples.
            batch: with teacher [b, T].
            key: not used.
            axis: mesh axis name(s), None for one device.

        Returns:
            (share, statistics, metrics): every mean by its name and, where sizes
            agree, "teacher_cosine", the mean cosine of the two embeddings.

        Raises:
            ValueError: D is not T, and the loss compares the embeddings themselves.
        """
        assert self.rule is not None
        student, teacher = embedding, batch["teacher"]
        D, T = student.shape[-1], teacher.shape[-1]
        if self.one_space and D != T:
            raise ValueError(
                f"the teacher gives {T} numbers for an image, the network {D}; wanted"
                f" a network with dim={T}, or distill.relational, which compares"
                " distances and angles only"
            )
        teacher = jax.lax.stop_gradient(teacher).astype(common.exact(student).dtype)
        seen = [self._seen(e, batch, axis) for e in (student, teacher)]
        means = self.rule(*seen)
        share = sum(common.mean_share(m, axis=axis) for m in means.values())
        if D == T:
            cos = jnp.sum(common.unit(seen[0].own) * common.unit(seen[1].own), -1)
            means = {**means, "teacher_cosine": _mean(cos)}
        metrics = {name: common.mean_of(m, axis=axis) for name, m in means.items()}
        return jnp.asarray(share), margin[1], metrics

    def _seen(self, e: jax.Array, batch: Batch, axis: parallel.Axis) -> _Seen:
        own, every, _ = common.everyone(e, batch, unit_rows=self.unit, axis=axis)
        me = parallel.axis_index(axis) * len(own) + jnp.arange(len(own))
        return _Seen(own, every, me, axis)


def cosine(*, num_classes: int) -> Loss:
    """One less the cosine of the two embeddings of an image.

    Args:
        num_classes: C.
    """

    def rule(student: _Seen, teacher: _Seen) -> dict[str, Mean]:
        return {"cosine": _mean(1.0 - jnp.sum(student.own * teacher.own, -1))}

    return Loss(num_classes, rule)


def l2(*, num_classes: int, unit: bool = False) -> Loss:
    """Squared distance of the two embeddings of an image.

    Args:
        num_classes: C.
        unit: bring both to unit length first, which makes it twice `cosine`.
    """

    def rule(student: _Seen, teacher: _Seen) -> dict[str, Mean]:
        return {"l2": _mean(jnp.sum((student.own - teacher.own) ** 2, -1))}

    return Loss(num_classes, rule, unit=unit)


def relational(
    *,
    num_classes: int,
    distance: float = 1.0,
    angle: float = 2.0,
    unit: bool = False,
) -> Loss:
    """Same distances and angles among the images. RKD, Park et al. CVPR 2019.

    Huber's loss (delta 1) between the two networks' distances of every two images,
    each divided by its mean over the batch, and between the cosines of the angle at
    the middle one of every three. Neither changes where a network's embeddings are
    turned, moved or stretched as a whole, so the two may differ in size.

    Args:
        num_classes: C.
        distance: times the distance-wise mean; the paper's ratio is 1 to 2.
        angle: times the angle-wise mean.
        unit: compare unit vectors, which is what a cosine will see.

    Raises:
        ValueError: a negative weight, or both zero.
    """
    if min(distance, angle) < 0 or not distance + angle > 0:
        raise ValueError(
            f"relational got distance={distance}, angle={angle}; wanted weights from 0"
            " up, one of them positive"
        )

    def rule(student: _Seen, teacher: _Seen) -> dict[str, Mean]:
        means = {}
        if distance:
            gap = _huber(_distances(student), _distances(teacher))
            apart = student.me[:, None] != jnp.arange(len(student.every))[None, :]
            total = jnp.where(apart, gap, 0.0).sum()
            means["distance"] = distance * total, apart.sum()
        if angle:
            total, count = _angles(student, teacher)
            means["angle"] = angle * total, count
        return means

    return Loss(num_classes, rule, unit=unit, one_space=False, pairs=True)


def logits(
    *, num_classes: int, temperature: float = 4.0, scale: float = 64.0
) -> _Logits:
    """Same probabilities over the classes. Hinton et al. 2015, section 2.

    T^2 KL(teacher || network) of softmax(z / T), where z are scaled cosines, each
    network's with its own class weights and without a margin, whatever the main loss
    does. Both heads must be of the same people, in the same order.

    Args:
        num_classes: C.
        temperature: T.
        scale: s of z = s cos.

    Raises:
        ValueError: a temperature or scale that is not positive.
    """
    if not (temperature > 0 and scale > 0):
        raise ValueError(
            f"logits got temperature={temperature}, scale={scale}; wanted both positive"
        )
    return _Logits(num_classes, temperature, scale)


@dataclasses.dataclass(frozen=True)
class _Logits:
    """Class probabilities against the teacher's, sharded by class as the heads are."""

    num_classes: int
    temperature: float
    scale: float
    reads: ClassVar[tuple[str, ...]] = ("teacher", "teacher_head")

    def init(self, key: jax.Array, *, num_classes: int, dim: int) -> dict[str, Any]:
        """Return no head: the main loss has it."""
        return {}

    def init_margin(self, *, dim: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return nothing."""
        return {}, {}

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
        """Return this device's share: that of the classes whose weights it holds.

        Args:
            head: {"kernel": [C/n, D]}, this device's classes.
            margin: (not used, statistics that are passed through).
            embedding: [b, D], this device's examples.
            batch: with teacher [b, T] and teacher_head [C/n, T].
            key: not used.
            axis: mesh axis name(s), None for one device.

        Returns:
            (share, statistics, {"agreement"}: where both have the same best class).

        Raises:
            ValueError: the main loss has no head, or one of other classes.
        """
        w, theirs = head.get("kernel", jnp.zeros((0, 1))), batch["teacher_head"]
        if len(w) != len(theirs):
            raise ValueError(
                f"distill.logits compares class weights; got {len(w)} rows here and"
                f" {len(theirs)} of the teacher on each device; wanted a main loss that"
                " is softmax over the same classes"
            )
        ids = common.classes_here(len(w), axis=axis)
        real = (ids < self.num_classes)[None, :]
        teacher = jax.lax.stop_gradient(batch["teacher"])
        log_q, best = self._log_softmax(embedding, w, batch, real, axis)
        log_p, theirs_best = self._log_softmax(teacher, theirs, batch, real, axis)
        p = jnp.exp(log_p)
        # Where there is no class both are -inf, whose difference is no number.
        gap = jnp.where(real, log_p, 0.0) - jnp.where(real, log_q, 0.0)
        agree = parallel.psum((best & theirs_best).any(-1), axis) > 0
        metrics = {"agreement": jnp.mean(agree)}
        share = self.temperature**2 * jnp.sum(p * gap) / len(gap)
        return share, margin[1], metrics

    def _log_softmax(
        self,
        e: jax.Array,
        w: jax.Array,
        batch: Batch,
        real: jax.Array,
        axis: parallel.Axis,
    ) -> tuple[jax.Array, jax.Array]:
        """Return [B, C/n] log-probabilities, and [B, C/n] which class is the best."""
        _, every, _ = common.everyone(e, batch, unit_rows=True, axis=axis)
        cos = every @ common.unit(w.astype(every.dtype)).T
        z = jnp.where(real, self.scale / self.temperature * cos, -jnp.inf)
        top = parallel.pmax(z.max(-1), axis)[:, None]
        total = parallel.psum(jnp.exp(z - top).sum(-1, keepdims=True), axis)
        return z - top - jnp.log(total), z == top


def _distances(seen: _Seen) -> jax.Array:
    """Return [b, B] distances, divided by their mean over all pairs of the batch."""
    own, every = seen.own, seen.every
    squares = jnp.sum(own * own, -1)[:, None] + jnp.sum(every * every, -1)[None, :]
    squares = squares - 2.0 * own @ every.T
    apart = seen.me[:, None] != jnp.arange(len(every))[None, :]
    d = common.root(jnp.where(apart, squares, 0.0))
    mean = parallel.psum(jnp.where(apart, d, 0.0).sum(), seen.axis)
    count = len(every) * (len(every) - 1)
    return d * count / jnp.maximum(mean, 1e-12)


def _angles(student: _Seen, teacher: _Seen) -> Mean:
    """Return sum and count over angles i j k with this device's images as j."""
    B = len(student.every)

    @jax.checkpoint  # [B, B] cosines of one middle at a time, never [b, B, B]
    def at(row: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        s, t, me = row
        gap = _huber(_cosines_at(s, student.every), _cosines_at(t, teacher.every))
        others = jnp.arange(B) != me
        valid = others[:, None] & others[None, :] & ~jnp.eye(B, dtype=bool)
        return jnp.where(valid, gap, 0.0).sum(), valid.sum()

    total, count = jax.lax.map(at, (student.own, teacher.own, student.me))
    return total.sum(), count.sum()


def _cosines_at(middle: jax.Array, every: jax.Array) -> jax.Array:
    """Return the cosines of the angles at [D] between any two of [B, D]: [B, B]."""
    ways = every - middle[None, :]
    squares = jnp.sum(ways * ways, -1, keepdims=True)
    # Images that coincide have no angle, and no slope.
    ways = jnp.where(squares > 1e-12, ways, 0.0) / common.root(squares)
    return ways @ ways.T


def _huber(x: jax.Array, y: jax.Array) -> jax.Array:
    """Return half the square of the difference up to 1, and its tangent beyond."""
    gap = jnp.abs(x - y)
    return jnp.where(gap <= 1.0, 0.5 * gap * gap, gap - 0.5)


def _mean(values: jax.Array) -> Mean:
    return values.sum(), jnp.asarray(len(values))
