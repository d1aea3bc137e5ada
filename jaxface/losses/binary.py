"""Binary losses: one logit per image, or one per class, each a question of its own.

The law of shares holds as in `softmax`: shares sum to the global mean, and rows are
sharded by class. `Loss` asks "is this the enrolled person"; its network ends in the
logit itself, so it has no head. `uniface` and `sphereface2` ask "is it class j" of
every class, all with one learned bias, so one threshold suits all.

    loss = Loss(num_classes=2)
    share, _, metrics = loss.share({}, ({}, {}), logit, batch, key=key, axis=None)
    loss = uniface(num_classes=10572)    # config.loss.name = "binary.uniface(m=0.4)"
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxface import parallel
from jaxface.losses import common, softmax
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneVsAll:
    """One binary question per class, all sharing a learned bias b.

    weight * (positive * log(1 + exp(-(s (g(cos_y) - m) + b)))
              + negative * sum over j != y of log(1 + exp(s (g(cos_j) + m_other) + b)))

    with g(c) = 2 ((c + 1) / 2)^t - 1. Over a sample of classes the sum is over the
    sampled ones.

    Attributes:
        num_classes: C, how many classes are real.
        scale: s (SphereFace2's r), the factor of the cosines.
        m: margin taken off the true class.
        m_other: margin added to the others.
        t: exponent of g, which spreads the cosines of strangers; 1 leaves them.
        positive: weight of the true class (SphereFace2's lambda).
        negative: weight of each other class (its 1 - lambda).
        weight: of the whole.
        odds: b starts at -log(odds * C); 0: where the bias's own gradient is zero
            while all cosines are 0, in closed form.
    """

    num_classes: int
    scale: float = 64.0
    m: float = 0.4
    m_other: float = 0.0
    t: float = 1.0
    positive: float = 1.0
    negative: float = 1.0
    weight: float = 1.0
    odds: float = 0.0

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ValueError(f"got {self.num_classes} classes; wanted 2 or more")
        for name in ("scale", "t", "positive", "negative", "weight"):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; wanted a positive number"
                )
        if self.odds < 0:
            raise ValueError(f"odds is {self.odds}; wanted 0 or a positive number")

    def init(self, key: jax.Array, *, num_classes: int, dim: int) -> dict[str, Any]:
        """Return {"kernel": [C padded to 1024, dim]}, drawn as softmax's."""
        return {"kernel": softmax.draw(key, num_classes, dim=dim)}

    def init_margin(self, *, dim: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return ({"b": the bias}, no statistics)."""
        return {"b": jnp.asarray(self._first_bias(), float)}, {}

    def _first_bias(self) -> float:
        if self.odds > 0:
            return -math.log(self.odds * self.num_classes)
        # positive / (1 + e^(p + b)) = (C - 1) negative / (1 + e^-(n + b)), solved for
        # e^b, a quadratic; written so that nothing cancels.
        g = 2.0 * 0.5**self.t - 1.0
        p, n = self.scale * (g - self.m), self.scale * (g + self.m_other)
        z = self.positive / (self.negative * (self.num_classes - 1))
        root = math.sqrt((1.0 - z) ** 2 + 4.0 * z * math.exp(p - n))
        return math.log(2.0 * z) - n - math.log(1.0 - z + root)

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
        """Return this device's share of the mean loss.

        Args:
            head: {"kernel": [C/n, D]}, this device's classes.
            margin: ({"b": bias}, no statistics).
            embedding: [B/n, D], this device's examples.
            batch: with label [B/n] int32 and position [B/n] uint32.
            key: the step's key.
            axis: mesh axis name(s), None for one device.

        Returns:
            (share, statistics, {"accuracy", "cosine", "norm", "bias"}).
        """
        w = head["kernel"]
        ids = common.classes_here(len(w), axis=axis)
        gathered = softmax.gather(embedding, batch, key=key, axis=axis)
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
            gathered: what `softmax.gather` returns.
            margin: ({"b": bias}, no statistics).
            axis: mesh axis name(s), None for one device.

        Returns:
            As `share`.
        """
        e, y, _ = gathered
        b = margin[0]["b"].astype(e.dtype)
        mine = y[:, None] == ids[None, :]  # [B, k]
        real = (ids < self.num_classes)[None, :]
        norm = common.length(e)
        cos = softmax.cosines(common.unit(e), common.unit(w.astype(e.dtype)))
        g = 2.0 * ((cos + 1.0) / 2.0) ** self.t - 1.0

        z = jnp.where(
            mine, -self.scale * (g - self.m) - b, self.scale * (g + self.m_other) + b
        )
        terms = jnp.where(mine, self.positive, self.negative) * jax.nn.softplus(z)
        loss = self.weight * parallel.psum(jnp.where(real, terms, 0.0).sum(-1), axis)

        target = parallel.psum(jnp.where(mine, cos, 0.0).sum(-1), axis)
        best = parallel.pmax(jnp.where(real, cos, -jnp.inf).max(-1), axis)
        metrics = {
            "accuracy": jnp.mean(target >= best),
            "cosine": jnp.mean(target),
            "norm": jnp.mean(norm),
            "bias": b,
        }
        return jnp.mean(loss) / parallel.axis_size(axis), margin[1], metrics


# UniFace, Zhou et al. 2023: the unified cross-entropy with its marginal form.
uniface = functools.partial(OneVsAll, scale=64.0, m=0.4, odds=10.0)
# SphereFace2, Wen et al. 2022, of type C; the weight is its code's 50 / r.
sphereface2 = functools.partial(
    OneVsAll,
    scale=40.0,
    m=0.4,
    m_other=0.4,
    t=3.0,
    positive=0.7,
    negative=0.3,
    weight=50.0 / 40.0,
)
