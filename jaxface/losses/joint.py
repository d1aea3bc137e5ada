"""A loss and its companions, each times its weight, under the contract of one.

The law: parts do not know of each other. All are handed the same head and statistics
and see their own by name; names that two of them claim are refused.

    loss = Joint((("softmax", 1.0, softmax), ("center", 0.003, center)))
    share, state, metrics = loss.share(head, margin, e, batch, key=key, axis="data")
    metrics["accuracy"], metrics["center/distance"], metrics["center/loss"]
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from jaxface import parallel
from jaxface.types import Batch, Loss, Metrics


@dataclasses.dataclass(frozen=True)
class Joint:
    """A weighted sum of losses.

    Attributes:
        parts: (name, weight, loss). Metrics of the first keep their names, those of
            the others become "<name>/<metric>"; each part's own value, without its
            weight, is "<name>/loss".
    """

    parts: tuple[tuple[str, float, Loss], ...]

    def __post_init__(self) -> None:
        names = [name for name, _, _ in self.parts]
        for name, weight, _ in self.parts:
            if isinstance(weight, bool) or not 0 < weight < math.inf:
                raise ValueError(
                    f"loss {name!r} has weight {weight!r}; wanted a positive number"
                )
            if names.count(name) > 1:
                raise ValueError(f"loss {name!r} is there twice; wanted each once")

    def init(self, key: jax.Array, *, num_classes: int, dim: int) -> dict[str, Any]:
        """Return the arrays of all heads; the first draws as it does alone."""
        keys = (key, *(jax.random.fold_in(key, i) for i in range(1, len(self.parts))))
        return _union(
            loss.init(k, num_classes=num_classes, dim=dim)
            for k, (_, _, loss) in zip(keys, self.parts, strict=True)
        )

    def init_margin(self, *, dim: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return all (trainable arrays, statistics)."""
        made = [loss.init_margin(dim=dim) for _, _, loss in self.parts]
        return _union(m[0] for m in made), _union(m[1] for m in made)

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
        """Return this device's share of the weighted sum.

        Args and returns are those of any loss; the first part draws as it does alone.
        """
        params, state = margin
        total: Any = 0.0
        metrics: Metrics = {}
        for i, (name, weight, loss) in enumerate(self.parts):
            part, changed, told = loss.share(
                head,
                (params, state),
                embedding,
                batch,
                key=jax.random.fold_in(key, i) if i else key,
                axis=axis,
            )
            total = total + weight * part
            state = {**state, **changed}
            value = parallel.psum(jax.lax.stop_gradient(part), axis)
            metrics |= {f"{name}/{k}" if i else k: v for k, v in told.items()}
            metrics[f"{name}/loss"] = value
        return total, state, metrics


def parts(loss: Loss) -> list[Loss]:
    """Return the losses that a loss is made of, itself if it is one."""
    if isinstance(loss, Joint):
        return [part for _, _, part in loss.parts]
    return [loss]


def _union(trees: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for tree in trees:
        for name in tree:
            if name in out:
                raise ValueError(
                    f"two losses have arrays called {name!r}; they cannot be joined"
                )
        out |= tree
    return out
