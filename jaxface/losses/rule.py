"""What margin rules are written with: their declared facts, and angles.

The one law: whatever turns an angle stays finite, with a finite slope, for cosines
up to those that `softmax` hands out (just inside +-1).

    @declare(plain="normface", neutral={"m": 0.0})
    def cosface(cos, target, norm, ctx, *, m=0.35):
        return cos, target - m, ctx
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from jaxface.types import Ctx

Rule = TypeVar("Rule", bound=Callable[..., Any])
Out = tuple[jax.Array, jax.Array, Ctx]


def declare(
    *,
    plain: str,
    neutral: Mapping[str, float] | None = None,
    why: str = "",
    unit: bool = True,
    held: str = "",
    undivided: str = "",
    params: Mapping[str, float] | None = None,
    state: Mapping[str, float] | None = None,
) -> Callable[[Rule], Rule]:
    """Write a rule's facts on the rule: what it becomes, and what it carries.

    Args:
        plain: the loss it reduces to at the neutral arguments, or "none".
        neutral: those arguments.
        why: where plain is "none", the reason.
        unit: False where it wants raw inner products, not scaled cosines.
        held: what its paper holds constant while differentiating, "" for nothing.
        undivided: why it cannot serve several heads at once, "" where it can.
        params: initial values of trainable scalars.
        state: initial values of running statistics.
    """

    def mark(rule: Rule) -> Rule:
        kept: dict[str, Any] = {"plain": plain, "neutral": dict(neutral or {})}
        kept |= {"why": why, "unit": unit, "held": held, "undivided": undivided}
        kept |= {"params": dict(params or {}), "state": dict(state or {})}
        for name, fact in kept.items():
            setattr(rule, name, fact)
        return rule

    return mark


def facts(rule: Any) -> Any:
    """Return what carries a rule's facts, under the partial with its arguments."""
    return getattr(rule, "func", rule)


def arc(cos: jax.Array, m: jax.Array | float) -> jax.Array:
    """Return cos(theta + m), falling all the way. ArcFace, Deng 2019, eq. (3).

    Where theta + m passes pi the cosine would rise again; there it goes on linearly,
    cos(theta) - m sin(pi - m), as the authors' code does.

    Args:
        cos: any shape, inside +-1.
        m: radians, below pi; one, or one per cosine. Below 0 it turns back.
    """
    # By the sum formula: no arccos, whose slope is infinite at +-1.
    turned = cos * jnp.cos(m) - jnp.sqrt(1.0 - cos * cos) * jnp.sin(m)
    past = (cos < -jnp.cos(m)) & (jnp.asarray(m) > 0)  # theta > pi - m
    return jnp.where(past, cos - m * jnp.sin(m), turned)


def monotone(phi: jax.Array) -> jax.Array:
    """Return cos(phi) made to fall beyond pi too. SphereFace, Liu 2017, sec. 3.2.

    (-1)^k cos(phi) - 2k for phi in [k pi, (k + 1) pi].
    """
    k = jnp.floor(phi / jnp.pi)
    sign = 1.0 - 2.0 * jnp.mod(k, 2.0)
    return sign * jnp.cos(phi) - 2.0 * k
