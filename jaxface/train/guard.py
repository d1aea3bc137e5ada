"""Leave a step out that is not finite, inside the compiled step.

The one law: after a step that is left out, weights, moments, statistics and averages
are bit for bit what they were, on every device alike; only the step goes on. The host
learns of it with the metrics, later: it has nothing to decide.

    state = state.replace(faults=first(policy))
    state, counts = judged(old, new, loss=loss, norm=norm, g=g, policy=policy, axis=a)
    state = kept(state, updated)  # but for the step, the old one if it was left out
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxface import parallel

LARGEST = 24  # log2 of a loss scale: float32 still holds what is summed
_MOVED = ("batch_stats", "margin_state")
_UPDATED = ("params", "head", "margin_params", "opt_state", "ema")


@dataclasses.dataclass(frozen=True)
class Policy:
    """What becomes of steps that are not finite; `nonfinite` makes them.

    Attributes:
        skips: leave such a step out; False stops the run at the first.
        after: so many in a row are too many.
        times: how often too many lead back to the last good checkpoint, not to an end.
        factor: of the learning rate, each time.
        growth: steps without overflow after which the loss scale doubles; 0: no scale.
        scale: log2 of the first loss scale.
    """

    skips: bool = False
    after: int = 1
    times: int = 0
    factor: float = 1.0
    growth: int = 0
    scale: int = 0


STOP = Policy()


def first(policy: Policy) -> dict[str, np.ndarray]:
    """Return a state's counts before training; none where nothing is left out.

    Returns:
        skipped: steps left out, in all; in_row: of those the latest ones;
        rollbacks: returns to a checkpoint; scale: log2 of the loss scale; clean: steps
        since that changed. [] int32.
    """
    if not policy.skips:
        return {}
    names = ("skipped", "in_row") + ("rollbacks",) * (policy.times > 0)
    counts = {name: np.zeros((), np.int32) for name in names}
    if policy.growth:
        counts |= {"scale": np.asarray(policy.scale, np.int32)}
        counts |= {"clean": np.zeros((), np.int32)}
    return counts


def judged(
    old: Any,
    new: Any,
    *,
    loss: jax.Array,
    norm: jax.Array,
    g: Any,
    policy: Policy,
    axis: parallel.Axis,
) -> tuple[Any, dict[str, jax.Array]]:
    """Count a step that is not finite, and take its statistics back.

    Args:
        old: state before the step.
        new: with the step's statistics.
        loss: [] of the whole batch.
        norm: [] of the backbone's gradient, which it speaks for.
        g: gradients, the head's of this device's rows.
        policy: which skips.
        axis: mesh axis name(s) the head's rows are split over.

    Returns:
        (state, counts for the metrics).
    """
    # No sum of squares hides a number that is not finite; one too large to be squared
    # is no gradient to follow either.
    rows = {"head": g["head"], "statistics": new.margin_state}
    size = parallel.psum(_squares(rows), axis)
    size += _squares((g["margin"], new.batch_stats)) + loss + norm
    bad = ~jnp.isfinite(size)
    counts = dict(old.faults)
    counts["skipped"] = counts["skipped"] + bad
    counts["in_row"] = jnp.where(bad, counts["in_row"] + 1, 0)
    metrics = dict(counts)
    if policy.growth:
        metrics["loss_scale"] = loss_scale(counts)
        del metrics["scale"], metrics["clean"]
        counts |= _rescaled(counts, bad, policy)
    if policy.times:
        metrics["lr_factor"] = rate(counts, policy)
    return _chosen(bad, old, new, _MOVED).replace(faults=counts), metrics


def kept(state: Any, updated: Any) -> Any:
    """Return the updated state, or the one before where the step was left out."""
    bad = state.faults["in_row"] > 0
    return _chosen(bad, state, updated, _UPDATED)


def loss_scale(faults: Any) -> jax.Array:
    """Return what the loss is multiplied by before its gradient is taken, 2^scale."""
    return jnp.exp2(faults["scale"].astype(jnp.float32))


def _rescaled(counts: Any, bad: jax.Array, policy: Policy) -> dict[str, jax.Array]:
    """Halve after an overflow, double after `growth` steps without one.

    Micikevicius et al., Mixed Precision Training, ICLR 2018, section 3.2.
    """
    clean = jnp.where(bad, 0, counts["clean"] + 1)
    grows = clean >= policy.growth
    scale = counts["scale"] - bad + grows
    return {
        "scale": jnp.clip(scale, 0, LARGEST),
        "clean": jnp.where(grows, 0, clean),
    }


def rate(faults: Any, policy: Policy) -> jax.Array:
    """Return what the learning rate is multiplied by after these rollbacks."""
    return jnp.float32(policy.factor) ** faults["rollbacks"]


def _chosen(bad: jax.Array, old: Any, new: Any, names: tuple[str, ...]) -> Any:
    def pick(before: jax.Array, after: jax.Array) -> jax.Array:
        return jnp.where(bad, before, after)

    fields = {n: jax.tree.map(pick, getattr(old, n), getattr(new, n)) for n in names}
    return new.replace(**fields)


def _squares(tree: Any) -> jax.Array:
    found = (x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact))
    return sum((jnp.sum(jnp.square(x)) for x in found), start=jnp.float32(0))
