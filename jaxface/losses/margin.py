"""Margin rules, side by side: each is its equation and nothing else.

The one law: a rule is element-wise in classes. It gets cosines [B, C'] of some of
the classes, the cosine to the true class [B], embedding norms [B] and a `Ctx`, and
returns them changed. So the same lines run dense, class-sharded or sampled; unit
norms, scale, log-sum-exp and masks belong to `softmax`.

    cos, target, ctx = arcface(cos, target, norm, ctx, m=0.5)
    arcface.neutral, arcface.plain       # {"m": 0.0}, "normface"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from jaxface.types import Ctx

Rule = TypeVar("Rule", bound=Callable[..., Any])
Out = tuple[jax.Array, jax.Array, Ctx]


def _declare(
    *,
    plain: str,
    neutral: Mapping[str, float],
    unit: bool = True,
    params: Mapping[str, float] | None = None,
    state: Mapping[str, float] | None = None,
) -> Callable[[Rule], Rule]:
    """Write a rule's facts on the rule: what it becomes, and what it carries.

    Args:
        plain: the loss it reduces to at the neutral arguments.
        neutral: those arguments.
        unit: False where it wants raw inner products, not scaled cosines.
        params: initial values of trainable scalars.
        state: initial values of running statistics.
    """

    def mark(rule: Rule) -> Rule:
        facts = {"plain": plain, "neutral": dict(neutral), "unit": unit}
        facts |= {"params": dict(params or {}), "state": dict(state or {})}
        for name, fact in facts.items():
            setattr(rule, name, fact)
        return rule

    return mark


@_declare(plain="softmax", neutral={}, unit=False)
def softmax(cos: jax.Array, target: jax.Array, norm: jax.Array, ctx: Ctx) -> Out:
    """Leave logits as they are: inner products with unnormalised weights, no scale."""
    return cos, target, ctx


@_declare(plain="normface", neutral={})
def normface(cos: jax.Array, target: jax.Array, norm: jax.Array, ctx: Ctx) -> Out:
    """Use scaled cosines without a margin. NormFace, Wang et al. 2017, eq. (8)."""
    return cos, target, ctx


@_declare(plain="normface", neutral={"m": 0.0})
def arcface(
    cos: jax.Array, target: jax.Array, norm: jax.Array, ctx: Ctx, *, m: float = 0.5
) -> Out:
    """Add an angle to the true class: cos(theta + m). ArcFace, Deng 2019, eq. (3).

    Where theta + m passes pi the cosine would rise again; there the target goes on
    linearly, cos(theta) - m sin(pi - m), as the authors' code does.
    """
    turned = _add_angle(target, m)
    past = target < -jnp.cos(m)  # theta > pi - m
    return cos, jnp.where(past, target - m * jnp.sin(m), turned), ctx


@_declare(plain="normface", neutral={"m": 0.0})
def cosface(
    cos: jax.Array, target: jax.Array, norm: jax.Array, ctx: Ctx, *, m: float = 0.35
) -> Out:
    """Subtract from the true class's cosine. CosFace, Wang et al. 2018, eq. (4)."""
    return cos, target - m, ctx


def _add_angle(cos: jax.Array, m: float) -> jax.Array:
    # cos(theta + m) by the sum formula: no arccos, whose slope is infinite at +-1.
    return cos * jnp.cos(m) - jnp.sqrt(1.0 - cos * cos) * jnp.sin(m)
