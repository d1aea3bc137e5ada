"""Margin rules, side by side: each is its equation and nothing else.

The one law: a rule is element-wise in classes. It gets cosines [B, C'] of some of
the classes, the cosine to the true class [B], embedding norms [B] and a `Ctx`, and
returns them changed. So the same lines run dense, class-sharded or sampled; unit
norms, scale, log-sum-exp and masks belong to `softmax`. Here are the rules whose
margin is fixed; those that adapt it to the example or the batch are in `adaptive`.

    cos, target, ctx = arcface(cos, target, norm, ctx, m=0.5)
    arcface.neutral, arcface.plain       # {"m": 0.0}, "normface"
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxface.losses.rule import Out, arc, declare, monotone
from jaxface.types import Ctx


@declare(plain="softmax", unit=False)
def softmax(cos: jax.Array, target: jax.Array, norm: jax.Array, ctx: Ctx) -> Out:
    """Leave logits as they are: inner products with unnormalised weights, no scale."""
    return cos, target, ctx


@declare(plain="normface")
def normface(cos: jax.Array, target: jax.Array, norm: jax.Array, ctx: Ctx) -> Out:
    """Use scaled cosines without a margin. NormFace, Wang et al. 2017, eq. (8)."""
    return cos, target, ctx


@declare(plain="normface", neutral={"m": 0.0})
def arcface(
    cos: jax.Array,
    target: jax.Array,
    norm: jax.Array,
    ctx: Ctx,
    *,
    m: float = 0.5,
    easy: bool = False,
) -> Out:
    """Add an angle to the true class: cos(theta + m). ArcFace, Deng 2019, eq. (3).

    `easy` leaves targets beyond 90 degrees alone, as the authors' easy margin does.
    """
    turned = arc(target, m)
    return cos, jnp.where(target > 0, turned, target) if easy else turned, ctx


@declare(plain="normface", neutral={"m": 0.0})
def cosface(
    cos: jax.Array, target: jax.Array, norm: jax.Array, ctx: Ctx, *, m: float = 0.35
) -> Out:
    """Subtract from the true class's cosine. CosFace, Wang et al. 2018, eq. (4)."""
    return cos, target - m, ctx


@declare(plain="normface", neutral={"m1": 1.0, "m2": 0.0, "m3": 0.0})
def combined(
    cos: jax.Array,
    target: jax.Array,
    norm: jax.Array,
    ctx: Ctx,
    *,
    m1: float = 1.0,
    m2: float = 0.3,
    m3: float = 0.2,
) -> Out:
    """Combine all three: cos(m1 theta + m2) - m3. ArcFace, Deng 2019, eq. (4).

    The paper's cosine rises again once m1 theta + m2 passes pi; here it goes on
    falling as SphereFace's does, so m1 alone is `sphereface`.
    """
    return cos, monotone(m1 * jnp.arccos(target) + m2) - m3, ctx


@declare(plain="normface", neutral={"m": 1.0})
def sphereface(
    cos: jax.Array, target: jax.Array, norm: jax.Array, ctx: Ctx, *, m: float = 1.7
) -> Out:
    """Multiply the angle to the true class. SphereFace, Liu et al. 2017, eq. (7).

    The paper scales by the embedding's length; here the length is fixed to s (hard
    feature normalisation), as its authors came to do in SphereFace-R.
    """
    return cos, monotone(m * jnp.arccos(target)), ctx


@declare(plain="normface", neutral={"m": 1.0})
def sphereface_r(
    cos: jax.Array,
    target: jax.Array,
    norm: jax.Array,
    ctx: Ctx,
    *,
    m: float = 1.5,
    version: int = 1,
) -> Out:
    """Multiply angles simply. SphereFace-R, Liu et al. 2022, versions 1 and 2.

    Version 1 takes cos(min(pi, m theta)) of the true class, version 2 takes
    cos(theta / m) of the others. Its gradient detachment is `gradient="detached"`.

    Raises:
        ValueError: another version.
    """
    if version == 1:
        return cos, jnp.cos(jnp.minimum(m * jnp.arccos(target), jnp.pi)), ctx
    if version == 2:
        return jnp.cos(jnp.arccos(cos) / m), target, ctx
    raise ValueError(f"sphereface_r got version={version}; wanted 1 or 2")


@declare(
    plain="none",
    why="without weights it is cosface, which no m makes of it",
    held="the weights [O - cos]+",
)
def circle(
    cos: jax.Array, target: jax.Array, norm: jax.Array, ctx: Ctx, *, m: float = 0.25
) -> Out:
    """Weight each cosine by how far it is from its goal. Circle Loss, Sun et al. 2020.

    eq. (5) and the paper's margins, for class labels: the true class has alpha =
    [1 + m - cos]+ and the goal 1 - m, the others alpha = [cos + m]+ and the goal m. The
    scale is its gamma (the paper's 256).
    """
    up = jax.lax.stop_gradient(jnp.maximum(1.0 + m - target, 0.0))
    down = jax.lax.stop_gradient(jnp.maximum(cos + m, 0.0))
    return down * (cos - m), up * (target - (1.0 - m)), ctx


@declare(plain="none", why="its logits are squares of angles, not cosines, at any m")
def qamface(
    cos: jax.Array, target: jax.Array, norm: jax.Array, ctx: Ctx, *, m: float = 0.5
) -> Out:
    """Square the angle from the far side: (2 pi - theta)^2. QAMFace, ICIP 2020.

    The true class has (2 pi - (theta + m))^2. Logits reach 39, so scales are small
    (the authors' code has 6).
    """
    goal = (2.0 * jnp.pi - jnp.arccos(target) - m) ** 2
    return (2.0 * jnp.pi - jnp.arccos(cos)) ** 2, goal, ctx
