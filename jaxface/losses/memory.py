"""Softmax against prototypes that remember the last face of each class.

The one law: memories are written, never trained. A row belongs to one class and lives
where its class lives; of several faces of a class in one batch the last one is kept.

    loss = Loss(num_classes=10572, margin="arcface(m=0.5)", start=8000)
    _, state = loss.init_margin(dim=512)     # {"steps", "head": {"face", "seen"}}
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxface import parallel
from jaxface.losses import common, softmax
from jaxface.losses.rule import facts
from jaxface.types import Batch, Metrics


@dataclasses.dataclass(frozen=True)
class Loss:
    """Variational prototype learning. VPL, Deng et al. 2021.

    From step `start` on, a class whose last face was seen at most `span` steps ago has
    the prototype unit((1 - lam) unit(w) + lam M), M that face's unit embedding, which
    is held constant; every other class has w as ever.

    Attributes:
        num_classes: C, how many classes are real.
        margin: the rule's line; it must use cosines.
        scale: s, the factor of the cosines.
        gradient: "exact" or "detached", of the margin, as in `softmax`.
        lam: how much of the prototype is memory, 0 to below 1.
        start: steps before memories are used; they are written from the first.
        span: steps a memory lasts.
    """

    num_classes: int
    margin: str = "arcface"
    scale: float = 64.0
    gradient: str = "exact"
    lam: float = 0.15
    start: int = 8000
    span: int = 200

    def __post_init__(self) -> None:
        if not 0 <= self.lam < 1:
            raise ValueError(f"lam is {self.lam}; wanted 0 to below 1")
        if self.start < 0 or self.span < 1:
            raise ValueError(
                f"got start={self.start} and span={self.span}; wanted 0 or more steps"
                " and at least 1"
            )
        if not facts(self.base.rule).unit:
            raise ValueError(
                f"memory mixes directions, margin {self.margin!r} uses lengths; take"
                " another margin, such as 'normface'"
            )

    @functools.cached_property
    def base(self) -> softmax.Loss:
        """The softmax over the prototypes."""
        return softmax.Loss(self.num_classes, self.margin, self.scale, self.gradient)

    def init(self, key: jax.Array, *, num_classes: int, dim: int) -> dict[str, Any]:
        """Return {"kernel": [C padded to 1024, dim]}, drawn as softmax's."""
        return self.base.init(key, num_classes=num_classes, dim=dim)

    def init_margin(self, *, dim: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the rule's (trainable scalars, statistics), and no memories.

        The statistics have, besides the rule's own, "steps" done and of every class
        "head": {"face": [C padded, dim], "seen": [C padded]}; `seen` is the step the
        face was written at, counted from 1; 0 is never.
        """
        params, state = self.base.init_margin(dim=dim)
        padded = softmax.padded(self.num_classes)
        rows = {"face": jnp.zeros((padded, dim)), "seen": jnp.zeros(padded, jnp.int32)}
        return params, state | {"steps": jnp.zeros((), jnp.int32), "head": rows}

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
        """Return this device's share of the mean cross-entropy.

        Args:
            head: {"kernel": [C/n, D]}, this device's classes.
            margin: the rule's (trainable scalars, statistics), with this device's rows.
            embedding: [B/n, D], this device's examples.
            batch: with label [B/n] int32 and position [B/n] uint32.
            key: the step's key.
            axis: mesh axis name(s), None for one device.

        Returns:
            (share, new statistics, softmax's metrics and "remembered", the part of
            the classes whose memory is used).
        """
        params, state = margin
        gathered = softmax.gather(embedding, batch, key=key, axis=axis)
        k = len(head["kernel"])
        first = parallel.axis_index(axis) * k
        fresh = self._fresh(state)
        e, y, _ = gathered
        rows = self._prototypes(head["kernel"].astype(e.dtype), state, fresh)
        own = {name: state[name] for name in facts(self.base.rule).state}
        share, rest, metrics = self.base.on_rows(
            rows, first + jnp.arange(k), gathered, (params, own), axis=axis
        )
        count = parallel.psum(fresh.sum(), axis)
        metrics = metrics | {"remembered": count / self.num_classes}
        written = self._written(state, jax.lax.stop_gradient(e), y - first)
        return share, {**rest, **written}, metrics

    def _fresh(self, state: Mapping[str, Any]) -> jax.Array:  # [k]
        now, seen = state["steps"] + 1, state["head"]["seen"]
        return (seen > 0) & (now - seen <= self.span) & (state["steps"] >= self.start)

    def _prototypes(
        self, w: jax.Array, state: Mapping[str, Any], fresh: jax.Array
    ) -> jax.Array:  # [k, D]
        unit = common.unit(w)
        face = state["head"]["face"].astype(w.dtype)
        mixed = (1.0 - self.lam) * unit + self.lam * face
        return jnp.where(fresh[:, None], mixed, unit)

    def _written(
        self, state: Mapping[str, Any], e: jax.Array, place: jax.Array
    ) -> dict[str, Any]:
        """Write each class's last face; `place` [B] is its row here, or outside."""
        k, order = len(state["head"]["seen"]), jnp.arange(len(place))
        later = (place[:, None] == place[None, :]) & (order[None, :] > order[:, None])
        here = (place >= 0) & (place < k) & ~later.any(-1)
        place = jnp.where(here, place, k)  # k is no row, and is dropped
        now, unit = state["steps"] + 1, common.unit(e)
        face, seen = state["head"]["face"], state["head"]["seen"]
        return {
            "steps": now,
            "head": {
                "face": face.at[place].set(unit.astype(face.dtype), mode="drop"),
                "seen": seen.at[place].set(now, mode="drop"),
            },
        }
