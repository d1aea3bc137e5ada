"""Metric losses: pairs of a batch pulled together or apart, without class weights.

The one law: each device compares its own images with those of all devices, so pairs
are found, and mined, over the whole batch; shares sum to a mean over it, whatever the
number of devices. An image alone of its person has no positive and adds nothing,
which the metric "anchors" tells: these losses want `data.sampler = "pk(k=4)"`.

    loss = triplet(num_classes=10572, m=0.2, mining="hard")
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


class _Pairs(NamedTuple):
    """Every pair of one of this device's b images and one of the batch's B.

    Attributes:
        own: [b, D] embeddings, of unit length unless the loss wants them raw.
        sim: [b, B] inner products: cosines where lengths are 1.
        same: [b, B] bool, two images of one person; never an image with itself.
        other: [b, B] bool, images of two people.
    """

    own: jax.Array
    sim: jax.Array
    same: jax.Array
    other: jax.Array

    @property
    def squares(self) -> jax.Array:
        """[b, B] squared distances of unit vectors."""
        return jnp.maximum(2.0 - 2.0 * self.sim, 0.0)

    @property
    def both(self) -> jax.Array:
        """[b] bool, images with a positive and a negative."""
        return self.same.any(-1) & self.other.any(-1)


# The means that add up to the loss, and those that are only told.
_Terms = tuple[list[Mean], dict[str, Mean]]


@dataclasses.dataclass(frozen=True)
class Loss:
    """A mean over the pairs, or triplets, of a batch; the functions below make one.

    Attributes:
        num_classes: C; there is no array of that size.
        rule: pairs -> the means that add up to the loss, and those for the log.
        unit: whether embeddings are brought to unit length.
        pairs: it compares images with each other.
    """

    num_classes: int
    rule: Callable[[_Pairs], _Terms] | None = None
    unit: bool = True
    pairs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.rule is None:
            raise ValueError(
                "loss 'metric' is a family; wanted one of it, as in"
                " \"metric.triplet(mining='hard')\""
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
        """Return this device's share of the mean over all pairs of the batch.

        Args:
            head: not used.
            margin: (not used, statistics that are passed through).
            embedding: [b, D], this device's examples.
            batch: with label [b] int32.
            key: not used.
            axis: mesh axis name(s), None for one device.

        Returns:
            (share, statistics, metrics): "accuracy", the share of anchors whose
            nearest other image is of the same person; "anchors", the share of images
            with a positive and a negative; mean "cosine" of positives and
            "cosine_others" of negatives; and the rule's own.
        """
        assert self.rule is not None
        own, every, y = common.everyone(
            embedding, batch, unit_rows=self.unit, axis=axis
        )
        b = len(own)
        me = parallel.axis_index(axis) * b + jnp.arange(b)
        alike = batch["label"][:, None] == y[None, :]
        itself = me[:, None] == jnp.arange(len(y))[None, :]
        pairs = _Pairs(own, own @ every.T, alike & ~itself, ~alike)
        terms, told = self.rule(pairs)
        share = sum(common.mean_share(t, axis=axis) for t in terms)
        if not self.unit:
            pairs = pairs._replace(sim=common.unit(own) @ common.unit(every).T)
        told = _common_metrics(pairs) | told
        metrics = {name: common.mean_of(m, axis=axis) for name, m in told.items()}
        return jnp.asarray(share), margin[1], metrics


def triplet(
    *, num_classes: int, m: float = 0.2, mining: str = "semi", squared: bool = True
) -> Loss:
    """Hinge on triplets, [d(a, p) - d(a, n) + m]_+. FaceNet, Schroff 2015, eq. (3).

    Args:
        num_classes: C.
        m: margin, in squared distance of unit vectors (0 .. 4) or in distance.
        mining: "all", the mean over all triplets (Hermans et al. 2017, eq. (6));
            "active", over those of them that are not yet satisfied (their "BA!=0");
            "hard", the farthest positive with the nearest negative of each anchor
            (their eq. (5)); "semi", for each pair the nearest negative that is
            farther than the positive (FaceNet, eq. (4)). Pairs without one add
            nothing, as do anchors without a triplet.
        squared: squared distances, as FaceNet; False for plain ones, as Hermans.
            Both are of unit vectors, which Hermans' are not.

    Raises:
        ValueError: unknown mining, or a margin that is not positive.
    """
    known = {"all": _all, "active": _all, "hard": _hard, "semi": _semi}
    if mining not in known:
        raise ValueError(f"mining is {mining!r}; wanted one of {', '.join(known)}")
    _positive("triplet", m=m)

    def rule(pairs: _Pairs) -> _Terms:
        d = pairs.squares if squared else common.root(pairs.squares)

        @jax.checkpoint  # [B, B] numbers of one anchor at a time, never [b, B, B]
        def of_anchor(row: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            hinge, valid = known[mining](*row, m=m)
            hinge = jnp.where(valid, hinge, 0.0)
            return hinge.sum(), valid.sum(), (hinge > 0).sum()

        rows = jax.lax.map(of_anchor, (d, pairs.same, pairs.other))
        total, valid, active = (x.sum() for x in rows)
        count = active if mining == "active" else valid
        return [(total, count)], {"violated": (active.astype(d.dtype), valid)}

    return Loss(num_classes, rule)


def contrastive(*, num_classes: int, m: float = 1.0) -> Loss:
    """Half the squared distance, or shortfall. Hadsell et al. 2006, eq. (4).

    d^2 / 2 for two images of one person, [m - d]_+^2 / 2 for two people. Hadsell draws
    pairs; here all of a batch are used, and the two kinds are averaged each by itself,
    for nearly all pairs are of the second.

    Args:
        num_classes: C.
        m: how far apart two people shall be, in distance of unit vectors, 0 .. 2.
    """
    _positive("contrastive", m=m)

    def rule(pairs: _Pairs) -> _Terms:
        near = pairs.squares / 2
        far = jax.nn.relu(m - common.root(pairs.squares)) ** 2 / 2
        terms = [_mean(near, pairs.same), _mean(far, pairs.other)]
        inside = (far > 0).astype(far.dtype)
        return terms, {"violated": _mean(inside, pairs.other)}

    return Loss(num_classes, rule)


def supervised_contrastive(*, num_classes: int, temperature: float = 0.1) -> Loss:
    """Softmax over the batch. Khosla et al. 2020, eq. (2).

    The paper's L_out, positives summed outside the logarithm, as a mean over the
    anchors that have a positive.

    Args:
        num_classes: C.
        temperature: tau, of the cosines.
    """
    _positive("supervised_contrastive", temperature=temperature)

    def rule(pairs: _Pairs) -> _Terms:
        z = pairs.sim / temperature
        total = _logsumexp(z, pairs.same | pairs.other)  # [b]
        count = pairs.same.sum(-1)
        mean = jnp.where(pairs.same, z, 0.0).sum(-1) / jnp.maximum(count, 1)
        return [_mean(total - mean, count > 0)], {}

    return Loss(num_classes, rule)


def n_pair(*, num_classes: int, l2: float = 0.002) -> Loss:
    """log(1 + sum_n exp(a n - a p)), the (N+1)-tuplet loss of Sohn, NIPS 2016.

    A mean over all (anchor, positive) pairs, each with all negatives of the batch. The
    paper takes one negative of each class, to save time; here they are at hand.
    Embeddings keep their lengths, which `l2` holds down as the paper does.

    Args:
        num_classes: C.
        l2: times the mean squared length of the embeddings.
    """
    if not l2 >= 0:
        raise ValueError(f"n_pair got l2={l2}; wanted 0 or more")

    def rule(pairs: _Pairs) -> _Terms:
        others = _logsumexp(pairs.sim, pairs.other)[:, None]  # [b, 1]
        # log(1 + e^x), and nothing to add where there is no negative
        each = jax.nn.softplus(others - pairs.sim)
        lengths = jnp.sum(pairs.own * pairs.own, -1)
        every = jnp.ones(len(lengths), bool)
        told = {"norm": _mean(jnp.sqrt(lengths), every)}
        valid = pairs.same & pairs.other.any(-1)[:, None]
        return [_mean(each, valid), _mean(l2 * lengths, every)], told

    return Loss(num_classes, rule, unit=False)


def multi_similarity(
    *,
    num_classes: int,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 1.0,
    epsilon: float = 0.1,
) -> Loss:
    """Weigh mined pairs by how bad they are. Wang et al. CVPR 2019, section 4.

    Args:
        num_classes: C.
        alpha: slope for positives.
        beta: slope for negatives.
        base: lambda, the cosine from which pairs count; the paper has 1, its code 0.5.
        epsilon: a negative is used where it is closer than the farthest positive
            less epsilon, a positive where it is farther than the nearest negative
            and epsilon.
    """
    _positive("multi_similarity", alpha=alpha, beta=beta)

    def rule(pairs: _Pairs) -> _Terms:
        s = jax.lax.stop_gradient(pairs.sim)
        farthest = jnp.where(pairs.same, s, jnp.inf).min(-1, keepdims=True)
        nearest = jnp.where(pairs.other, s, -jnp.inf).max(-1, keepdims=True)
        near = pairs.same & (s < nearest + epsilon)
        far = pairs.other & (s > farthest - epsilon)
        z = pairs.sim - base
        each = _log_one_plus(-alpha * z, near) / alpha
        each += _log_one_plus(beta * z, far) / beta
        mined = {"mined": _mean((near | far).astype(z.dtype), pairs.same | pairs.other)}
        return [_mean(each, jnp.ones(len(each), bool))], mined

    return Loss(num_classes, rule)


def circle(*, num_classes: int, m: float = 0.25, gamma: float = 256.0) -> Loss:
    """Circle loss over pairs, each at its own pace. Sun et al. CVPR 2020, eq. (6).

    With the optima 1 + m and -m, the borders 1 - m and m, and weights without a
    gradient. A mean over the anchors with a positive and a negative.

    Args:
        num_classes: C.
        m: relaxation, 0 .. 1.
        gamma: scale.
    """
    _positive("circle", m=m, gamma=gamma)

    def rule(pairs: _Pairs) -> _Terms:
        s = jax.lax.stop_gradient(pairs.sim)
        ap, an = jax.nn.relu(1 + m - s), jax.nn.relu(s + m)  # eq. (5)
        zp = -gamma * ap * (pairs.sim - (1 - m))
        zn = gamma * an * (pairs.sim - m)
        each = _logsumexp(zn, pairs.other) + _logsumexp(zp, pairs.same)
        return [_mean(jax.nn.softplus(each), pairs.both)], {}

    return Loss(num_classes, rule)


def _all(
    d: jax.Array, same: jax.Array, other: jax.Array, *, m: float
) -> tuple[jax.Array, jax.Array]:
    """Return (hinges, which are meant), [B, B], of one anchor's distances [B]."""
    hinge = jax.nn.relu(d[:, None] - d[None, :] + m)
    return hinge, same[:, None] & other[None, :]


def _hard(
    d: jax.Array, same: jax.Array, other: jax.Array, *, m: float
) -> tuple[jax.Array, jax.Array]:
    valid = same.any() & other.any()
    farthest = jnp.where(same, d, -jnp.inf).max()
    nearest = jnp.where(other, d, jnp.inf).min()
    gap = jnp.where(valid, farthest, 0.0) - jnp.where(valid, nearest, 0.0)
    return jax.nn.relu(gap + m), valid


def _semi(
    d: jax.Array, same: jax.Array, other: jax.Array, *, m: float
) -> tuple[jax.Array, jax.Array]:
    beyond = other[None, :] & (d[None, :] > d[:, None])  # [B positives, B negatives]
    nearest = jnp.where(beyond, d[None, :], jnp.inf).min(-1)
    valid = same & beyond.any(-1)
    return jax.nn.relu(d - jnp.where(valid, nearest, 0.0) + m), valid


def _common_metrics(pairs: _Pairs) -> dict[str, Mean]:
    """Tell what every metric loss tells; strictly, so that a collapse scores 0."""
    cos, exact = pairs.sim, pairs.sim.dtype
    friend = jnp.where(pairs.same, cos, -jnp.inf).max(-1)
    stranger = jnp.where(pairs.other, cos, -jnp.inf).max(-1)
    return {
        "accuracy": _mean((friend > stranger).astype(exact), pairs.both),
        "anchors": _mean(pairs.both.astype(exact), jnp.ones(len(cos), bool)),
        "cosine": _mean(cos, pairs.same),
        "cosine_others": _mean(cos, pairs.other),
    }


def _mean(values: jax.Array, where: jax.Array) -> Mean:
    return jnp.where(where, values, 0.0).sum(), where.sum()


def _logsumexp(z: jax.Array, where: jax.Array) -> jax.Array:
    """Return [b] of [b, B]: over what is meant; 0, with slope 0, where nothing is."""
    some = where.any(-1, keepdims=True)
    z = jnp.where(some, jnp.where(where, z, -jnp.inf), 0.0)
    found = jax.nn.logsumexp(z, axis=-1)
    return jnp.where(some[:, 0], found, 0.0)


def _log_one_plus(z: jax.Array, where: jax.Array) -> jax.Array:
    """Return log(1 + sum of exp(z) over what is meant), [b] of [b, B]."""
    z = jnp.where(where, z, -jnp.inf)
    return jax.nn.logsumexp(jnp.pad(z, ((0, 0), (0, 1))), axis=-1)  # e^0 is the 1


def _positive(name: str, **values: float) -> None:
    for key, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} got {key}={value}; wanted a positive number")
