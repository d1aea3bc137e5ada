"""Margin rules that look at the example, the negatives or the batch.

The one law is `margin`'s: element-wise in classes. `norm` and `target` are those of
the whole batch, of all devices, so batch statistics are global; a sum over classes is
asked for with `ctx.negatives`, and all a rule adds to loss or scale goes by `ctx`.

    cos, target, ctx = adaface(cos, target, norm, ctx, m=0.4, h=0.333)
    loss = softmax.Loss(margin="adaface(m=0.4)", num_classes=C)

TopoFR's reweighting of samples (Dan et al. 2024) is not here: its weight is the
posterior of a mixture fitted to the entropies of whole class distributions, not a
function of each cosine.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxface.losses.rule import Out, arc, declare
from jaxface.types import Ctx


@declare(plain="normface", neutral={"m": 0.0, "std": 0.0}, held="the order")
def elastic_arc(
    cos: jax.Array,
    target: jax.Array,
    norm: jax.Array,
    ctx: Ctx,
    *,
    m: float = 0.5,
    std: float = 0.05,
    plus: bool = False,
) -> Out:
    """Add a drawn angle: cos(theta + N(m, std^2)). ElasticFace, Boutros 2022: L_EArc.

    `plus` gives the largest draws to the examples farthest from their class (the
    paper's std is then 0.0175). The authors' code takes an argsort for a rank there,
    which shuffles; this sorts.
    """
    return cos, arc(target, _drawn(target, ctx, m, std, plus)), ctx


@declare(plain="normface", neutral={"m": 0.0, "std": 0.0}, held="the order")
def elastic_cos(
    cos: jax.Array,
    target: jax.Array,
    norm: jax.Array,
    ctx: Ctx,
    *,
    m: float = 0.35,
    std: float = 0.05,
    plus: bool = False,
) -> Out:
    """Subtract a drawn margin: cos(theta) - N(m, std^2). ElasticFace 2022: L_ECos.

    `plus` as in `elastic_arc` (the paper's std is then 0.02).
    """
    return cos, target - _drawn(target, ctx, m, std, plus), ctx


@declare(plain="normface", neutral={"l_m": 0.0, "u_m": 0.0, "lambda_g": 0.0})
def magface(
    cos: jax.Array,
    target: jax.Array,
    norm: jax.Array,
    ctx: Ctx,
    *,
    l_a: float = 10.0,
    u_a: float = 110.0,
    l_m: float = 0.45,
    u_m: float = 0.8,
    lambda_g: float = 35.0,
    cosine: bool = False,
) -> Out:
    """Grow the margin with the embedding's length a. MagFace, Meng et al. 2021.

    L_Mag with the authors' linear m(a): from l_m at a = l_a to u_m at u_a, lengths
    clipped to between; plus lambda_g g(a), g = 1/a + a/u_a^2. `cosine`
    subtracts m(a) instead of turning by it (the authors' code: l_m 0.35, lambda_g
    150). Under detached gradients only g moves the length.
    """
    a = jnp.clip(norm, l_a, u_a)
    m = l_m + (u_m - l_m) / (u_a - l_a) * (a - l_a)
    ctx = ctx._replace(penalty=ctx.penalty + lambda_g * (1.0 / a + a / u_a**2))
    return cos, target - m if cosine else arc(target, m), ctx


@declare(
    plain="normface",
    neutral={"m": 0.0},
    held="the quality",
    state={"mean": 20.0, "std": 100.0},
)
def adaface(
    cos: jax.Array,
    target: jax.Array,
    norm: jax.Array,
    ctx: Ctx,
    *,
    m: float = 0.4,
    h: float = 0.333,
    decay: float = 0.99,
) -> Out:
    """Let the length, as quality, trade angle for cosine. AdaFace, Kim et al. 2022.

    Adaptive margin based on norm: q = clip(h (norm - mean) / std, -1, 1) for quality,
    target cos(theta - m q) - (m q + m). Mean and std are moving averages over global
    batches; std divides by B, so that a batch of one has one (the authors' by B - 1).
    """
    length = jax.lax.stop_gradient(jnp.clip(norm, 1e-3, 100.0))
    mean = decay * ctx.state["mean"] + (1.0 - decay) * length.mean()
    std = decay * ctx.state["std"] + (1.0 - decay) * length.std()
    quality = jnp.clip(h * (length - mean) / (std + 1e-3), -1.0, 1.0)
    theta = jnp.clip(jnp.arccos(target) - m * quality, 1e-3, jnp.pi - 1e-3)
    ctx = ctx._replace(state={"mean": mean, "std": std})
    return cos, jnp.cos(theta) - (m * quality + m), ctx


@declare(
    plain="none",
    why="negatives above the target become cos (t + cos) at any m",
    held="t",
    state={"t": 0.0},
)
def curricularface(
    cos: jax.Array,
    target: jax.Array,
    norm: jax.Array,
    ctx: Ctx,
    *,
    m: float = 0.5,
    decay: float = 0.99,
) -> Out:
    """Weigh hard negatives more as training goes on. CurricularFace, Huang 2020.

    T and N of the paper: negatives with cos > cos(theta_y + m) become cos (t + cos), t
    the moving average of the target cosines, over global batches.
    """
    mean = jax.lax.stop_gradient(target).mean()
    t = decay * ctx.state["t"] + (1.0 - decay) * mean
    turned = arc(target, m)
    hard = cos > turned[:, None]
    return jnp.where(hard, cos * (t + cos), cos), turned, ctx._replace(state={"t": t})


@declare(plain="normface", neutral={"m": 0.0, "t": 1.0})
def mv_softmax(
    cos: jax.Array,
    target: jax.Array,
    norm: jax.Array,
    ctx: Ctx,
    *,
    m: float = 0.35,
    t: float = 1.12,
    angle: bool = False,
    fixed: bool = False,
) -> Out:
    """Raise misclassified negatives by t. MV-Softmax, Wang et al. 2020.

    Hard negatives (cos above the target with its margin) become t cos + t - 1 (its
    adaptive h), or with `fixed` cos + t - 1. The margin is CosFace's, with `angle`
    ArcFace's.
    """
    moved = arc(target, m) if angle else target - m
    hard = cos > moved[:, None]
    raised = cos + (t - 1.0) if fixed else t * cos + (t - 1.0)
    return jnp.where(hard, raised, cos), moved, ctx


@declare(plain="normface", neutral={"m": 0.0, "alpha": 1.0, "sigma": 1e9})
def arcnegface(
    cos: jax.Array,
    target: jax.Array,
    norm: jax.Array,
    ctx: Ctx,
    *,
    m: float = 0.5,
    alpha: float = 1.2,
    mu: float = 0.0,
    sigma: float = 1.0,
) -> Out:
    """Weigh negatives by likeness to the target. ArcNegFace, Liu et al. 2019.

    Negatives become w (cos + 1) - 1 with the Gaussian w = alpha exp(-(cos - cos(theta_y
    + m) - mu)^2 / (2 sigma^2)), which is differentiated too.
    """
    turned = arc(target, m)
    far = (cos - turned[:, None] - mu) / sigma
    w = alpha * jnp.exp(-0.5 * far**2)
    return w * (cos + 1.0) - 1.0, turned, ctx


@declare(
    plain="none",
    why="it is normface at a scale of its own",
    held="the scale",
    undivided="it has one scale, made of the number of classes",
    state={"s": 0.0},
)
def adacos(
    cos: jax.Array,
    target: jax.Array,
    norm: jax.Array,
    ctx: Ctx,
    *,
    dynamic: bool = True,
) -> Out:
    """Choose the scale itself; the loss's is not used. AdaCos, Zhang et al. 2019.

    Fixed: sqrt(2) log(C - 1). Dynamic: log B / cos(min(pi/4, the
    batch's median angle)), B the batch's mean of the negatives' sum of exp(s cos) with
    the last s; the first is the fixed one. Over a sample of classes B is the sample's,
    which is what the softmax there divides by, and C still counts all.

    Raises:
        ValueError: two classes, whose scale would be 0.
    """
    if ctx.classes < 3:
        raise ValueError(f"adacos got {ctx.classes} classes; wanted 3 or more")
    first = math.sqrt(2.0) * math.log(ctx.classes - 1.0)
    if not dynamic:
        return cos, target, ctx._replace(scale=jnp.full_like(target, first))
    last = jnp.where(ctx.state["s"] > 0, ctx.state["s"], first)
    # exp(s cos) = e^s exp(s (cos - 1)), which cannot overflow.
    total = ctx.negatives(jnp.exp(last * (jax.lax.stop_gradient(cos) - 1.0)))
    median = jnp.median(jnp.arccos(jax.lax.stop_gradient(target)))
    s = last + jnp.log(total.mean())
    s = s / jnp.cos(jnp.minimum(jnp.pi / 4.0, median))
    return cos, target, ctx._replace(scale=s, state={"s": s})


def _drawn(
    target: jax.Array, ctx: Ctx, m: float, std: float, plus: bool
) -> jax.Array:  # [B]
    draw = jax.vmap(lambda key: jax.random.normal(key, dtype=target.dtype))(ctx.key)
    margin = m + std * draw
    if not plus:
        return margin
    rank = jnp.argsort(jnp.argsort(-target))  # 0: the closest to its class
    return jnp.sort(margin)[rank]
