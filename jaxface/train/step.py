"""The train step, `step(state, batch) -> (state, metrics)`, as two pure halves.

The random law: every draw is keyed by (seed, step, the example's global position),
never by a device or process, so a run is the same on 1, 2 or 8 devices. The state
is arrays only: one regex table says where each lives, and any mesh restores it.

    state = init_state(model, loss, tx, seed=0, shape=(112, 112, 3), num_classes=C)
    grads = make_grads(model, loss, axis="data")
    update = make_update(tx)
    step = parallel.compile_step(grads, update, ...)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax.sharding import PartitionSpec as P

from jaxface import parallel, parts
from jaxface.train import guard, multipliers
from jaxface.types import Batch, Loss


class TrainState(struct.PyTreeNode):
    """Everything that training changes, and the seed of all draws.

    Attributes:
        step: [] int32, updates done.
        params: the backbone's trainable arrays.
        head: the class weights, sharded by class along their first axis.
        batch_stats: running statistics of normalisation layers.
        margin_params: the margin rule's trainable scalars.
        margin_state: the margin rule's running statistics; those in "head" by class.
        opt_state: Optax's, over {"params", "head", "margin"}.
        ema: an average of `params`, empty when it is off.
        rng: [2] uint32, key data of the run's seed; never advanced.
        faults: counts of steps left out, see `guard.first`; empty where none is.
    """

    step: jax.Array
    params: Any
    head: Any
    batch_stats: Any
    margin_params: Any
    margin_state: Any
    opt_state: Any
    ema: Any
    rng: jax.Array
    faults: Any = struct.field(default_factory=dict)

    @property
    def trainable(self) -> dict[str, Any]:
        """What the optimizer moves."""
        return {"params": self.params, "head": self.head, "margin": self.margin_params}

    @property
    def variables(self) -> dict[str, Any]:
        """What the network is applied with in evaluation: averaged where EMA is on."""
        params = self.ema if jax.tree.leaves(self.ema) else self.params
        return {"params": params, "batch_stats": self.batch_stats}


def init_state(
    model: nn.Module,
    loss: Loss,
    tx: optax.GradientTransformation,
    *,
    seed: int,
    shape: tuple[int, int, int],
    num_classes: int,
    ema: float = 0.0,
    policy: guard.Policy = guard.STOP,
) -> TrainState:
    """Build the first state; pure, so it can be jitted or `eval_shape`d.

    Args:
        model: backbone, called as `model(images, train=..., keys=...)`.
        loss: the head and what trains it.
        tx: optimizer over {"params", "head", "margin"}.
        seed: of the weights and of every later draw.
        shape: (H, W, 3) of one image.
        num_classes: C.
        ema: what `make_update` gets; 0 keeps no average.
        policy: what both halves get.
    """
    key = jax.random.key(seed)
    init_key, head_key = jax.random.split(key)
    images = jnp.zeros((2, *shape), jnp.float32)
    out, variables = model.init_with_output(init_key, images)  # traced once
    dim = out.shape[-1]
    head = loss.init(head_key, num_classes=num_classes, dim=dim)
    margin_params, margin_state = loss.init_margin(dim=dim)
    params = variables["params"]
    trainable = {"params": params, "head": head, "margin": margin_params}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        head=head,
        batch_stats=variables.get("batch_stats", {}),
        margin_params=margin_params,
        margin_state=margin_state,
        opt_state=tx.init(trainable),
        ema=params if ema > 0 else {},
        rng=jax.random.key_data(key),
        faults=jax.tree.map(jnp.asarray, guard.first(policy)),
    )


def step_key(state: TrainState) -> jax.Array:
    """Return the key of all draws of the next step: of network, then of loss."""
    return jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)


def make_grads(
    model: nn.Module,
    loss: Loss,
    *,
    axis: parallel.Axis,
    classes: parallel.Axis = None,
    cut: Any = None,
    gathers: bool = False,
    clip: float = 0.0,
    frozen: Callable[[str], bool] = lambda path: False,
    frozen_stats: bool = False,
    microbatches: int = 1,
    sam: float = 0.0,
    policy: guard.Policy = guard.STOP,
) -> Callable[[TrainState, Batch], tuple[Any, TrainState, dict[str, jax.Array]]]:
    """Make the first half: gradients, written for one device.

    Args:
        model: backbone; its BatchNorm may be synced over the same axis or local.
        loss: returns this device's share.
        axis: mesh axis name(s) of the batch; None for one device.
        classes: those of them along which the head is split; None: all. Devices with
            the same rows are a group that has a part of the batch: what a margin rule
            learns of the batch moves to the mean of the groups, as under `accumulated`.
        cut: how the backbone's gradients leave, in parts; see `parts.cut`. None: whole.
        gathers: its parameters come in such parts too.
        clip: largest global norm of the backbone's gradient; 0 turns it off.
        frozen: path -> whether its gradient is left out and given as zero; `tx` must
            leave it alone too, see `multipliers.scaled`.
        frozen_stats: apply the network as in evaluation: running statistics are used
            and kept, and nothing is dropped.
        microbatches: parts of a device's batch, which it must divide into, done one
            after another; see `accumulated`.
        sam: rho of sharpness-aware minimisation: the gradient is taken where the
            loss is highest at this distance; 0 turns it off. Metrics and statistics
            are those of the weights themselves.
        policy: of steps that are not finite; metrics have counts where it skips.

    Returns:
        grads(state, batch) -> (gradients, state with new statistics, metrics).
    """
    classes = axis if classes is None else classes
    groups = parallel.rest(axis, classes)
    share_of = _make_share(model, loss, axis=classes, train=not frozen_stats)

    def grads(state: TrainState, batch: Batch) -> Any:
        specs = jax.tree.map(lambda _: P(), state.params) if cut is None else cut
        scale = guard.loss_scale(state.faults) if policy.growth else 1
        # Only what moves is differentiated, so the rest costs no backward pass, and
        # no sum over devices.
        moving, fixed = _split(state.trainable, frozen)
        # What a loss keeps of each class goes from part to part, as BatchNorm's do; the
        # rest of its statistics moves once a step, to the mean of what parts give.
        rows, rest = _by_class(state.margin_state)

        def share(moving: Any, carried: Any, part: Batch) -> Any:
            stats, rows = carried
            weights = _joined(moving, fixed)
            if gathers:
                weights["params"] = parts.whole(weights["params"], specs, axis=axis)
            total, ((stats, new), metrics) = share_of(
                weights, (stats, {**rest, **rows}), part, step_key(state)
            )
            total = total * scale / parallel.axis_size(groups)
            rows, moved = _by_class(new)
            return total, ((stats, rows), (moved, metrics))

        one = parts.regathered(share) if gathers else share
        pieces = accumulated(jax.value_and_grad(one, has_aux=True), microbatches)

        def gradient(moving: Any, specs: Any) -> Any:
            (total, aux), g = pieces(moving, (state.batch_stats, rows), batch)
            # Shares sum to the mean, so replicated leaves are summed, never averaged;
            # head rows live in one place of each group and have its whole gradient.
            g["params"] = parts.summed(g["params"], specs, axis=axis, given=gathers)
            g["margin"], total = parallel.psum((g["margin"], total), axis)
            g["head"] = parallel.psum(g["head"], groups)
            g, total = jax.tree.map(lambda x: x / scale, (g, total))
            return g, total, aux

        if sam > 0:
            # the ascent is of the weights as they lie here, whole or in parts
            lie = specs if gathers else jax.tree.map(lambda _: P(), specs)
            first, total, aux = gradient(moving, lie)
            there = _ascended(moving, first, lie, rho=sam, axis=axis, classes=classes)
            g, _, _ = gradient(there, specs)
        else:
            g, total, aux = gradient(moving, specs)
        (stats, rows), (moved, metrics) = aux
        moved, metrics = parallel.pmean((moved, metrics), groups)
        moved = jax.tree.map(lambda new, old: new.astype(old.dtype), moved, rest)
        norm = jnp.sqrt(parts.squares(g["params"], specs, axis=axis))
        if clip > 0:
            factor = jnp.minimum(1.0, clip / jnp.maximum(norm, 1e-12))
            g["params"] = optax.tree.scale(factor, g["params"])
        still = jax.tree.map(jnp.zeros_like, fixed)
        if not gathers:
            still["params"] = parts.own(still["params"], specs, axis=axis)
        g = _joined(g, still)
        # Synced statistics are equal already; local ones must become one state. The
        # mean of equal numbers is not always that number, so frozen ones are passed by.
        stats = state.batch_stats if frozen_stats else parallel.pmean(stats, axis)
        new = state.replace(batch_stats=stats, margin_state={**moved, **rows})
        metrics |= {"loss": total, "grad_norm": norm}
        if policy.skips:
            new, counts = guard.judged(
                state, new, loss=total, norm=norm, g=g, policy=policy, axis=classes
            )
            metrics |= counts
        return g, new, metrics

    return grads


def accumulated(value_and_grad: Any, parts: int) -> Any:
    """Average values and gradients over parts of a batch, one after another.

    Equal to the whole batch where examples do not meet (softmax rules, dropout).
    Statistics are handed from part to part: BatchNorm normalises by one part, and
    moves `parts` times. A margin rule's move once, to the mean of where the parts
    would move them: AdaFace's mean and CurricularFace's t to where the whole batch
    does, AdaFace's std to a mean of the parts' std; a part's margins go by its own.

    Args:
        value_and_grad: (weights, statistics, batch) -> ((mean over the batch,
            (new statistics, what else is averaged, such as metrics)), gradient).
        parts: how many; example i is in part i mod `parts`, so that the parts are the
            same on any number of devices.

    Returns:
        The same function, with averaged metrics, in the memory of one part; but on
        CPU, where parts are written out one after another, XLA saves none.
    """
    if parts == 1:
        return value_and_grad

    def over_parts(weights: Any, carried: Any, batch: Batch) -> Any:
        def one(carry: Any, i: jax.Array) -> Any:
            carried, total = carry
            part = {
                name: x if name == "teacher_head" else _part(x, i, parts)
                for name, x in batch.items()
            }
            (value, (carried, metrics)), g = value_and_grad(weights, carried, part)
            total = jax.tree.map(jnp.add, total, g)
            return (carried, total), (value, metrics)

        def loop(start: Any, *, unroll: bool = False) -> Any:
            return jax.lax.scan(one, start, jnp.arange(parts), unroll=unroll)

        start = (carried, jax.tree.map(jnp.zeros_like, weights))
        # XLA's fast convolutions on CPU are for what is outside of loops only
        (carried, total), seen = jax.lax.platform_dependent(
            start, cpu=functools.partial(loop, unroll=True), default=loop
        )
        value, metrics = jax.tree.map(lambda x: x.mean(0), seen)
        g = jax.tree.map(lambda x: x / parts, total)
        return (value, (carried, metrics)), g

    return over_parts


def _part(x: jax.Array, i: jax.Array, parts: int) -> jax.Array:
    return x.reshape(-1, parts, *x.shape[1:])[:, i]


def make_update(
    tx: optax.GradientTransformation,
    *,
    ema: float = 0.0,
    policy: guard.Policy = guard.STOP,
) -> Callable[[Any, TrainState], TrainState]:
    """Make the second half: plain Optax, which knows no axis.

    Args:
        tx: optimizer over {"params", "head", "margin"}.
        ema: decay of the average of the backbone; 0 turns it off.
        policy: what `make_grads` got.
    """

    def update(g: Any, state: TrainState) -> TrainState:
        changes, opt_state = tx.update(g, state.opt_state, state.trainable)
        if policy.times:
            factor = guard.rate(state.faults, policy)
            changes = optax.tree.scale(factor, changes)
        new = optax.apply_updates(state.trainable, changes)
        average = state.ema
        if ema > 0:
            average = optax.incremental_update(new["params"], state.ema, 1.0 - ema)
        updated = state.replace(
            step=state.step + 1,
            params=new["params"],
            head=new["head"],
            margin_params=new["margin"],
            opt_state=opt_state,
            ema=average,
        )
        return guard.kept(state, updated) if policy.skips else updated

    return update


def _make_share(
    model: nn.Module, loss: Loss, *, axis: parallel.Axis, train: bool
) -> Callable[..., Any]:
    """Make (trainable, statistics, batch, key) -> (share, (statistics, metrics))."""

    def share_of(trainable: Any, carried: Any, batch: Batch, key: jax.Array) -> Any:
        stats, margin_state = carried
        drop_key, margin_key = jax.random.split(key)
        keys = jax.vmap(lambda p: jax.random.fold_in(drop_key, p))(batch["position"])
        embedding, changed = model.apply(
            {"params": trainable["params"], "batch_stats": stats},
            batch["image"],
            train=train,
            keys=keys,
            mutable=["batch_stats"],
        )
        share, margin_state, metrics = loss.share(
            trainable["head"],
            (trainable["margin"], margin_state),
            embedding,
            batch,
            key=margin_key,
            axis=axis,
        )
        return share, ((changed.get("batch_stats", {}), margin_state), metrics)

    return share_of


def _ascended(
    weights: Any,
    g: Any,
    specs: Any,
    *,
    rho: float,
    axis: parallel.Axis,
    classes: parallel.Axis,
) -> Any:
    """Return w + rho g / |g|, as SAM eq. (2) for p = 2 (Foret et al., ICLR 2021)."""
    # each device has some rows of the head, and all of the margin's numbers
    rows = parallel.psum(optax.tree.norm(g["head"], squared=True), classes)
    rows += optax.tree.norm(g["margin"], squared=True)
    length = jnp.sqrt(rows + parts.squares(g["params"], specs, axis=axis))
    factor = rho / jnp.maximum(length, 1e-12)
    return jax.tree.map(lambda w, x: w + factor * x, weights, g)


def _by_class(statistics: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (a loss's statistics of each class, the others)."""
    rows = {k: v for k, v in statistics.items() if k == "head"}
    return rows, {k: v for k, v in statistics.items() if k != "head"}


def _split(tree: Any, frozen: Callable[[str], bool]) -> tuple[Any, Any]:
    """Return (what moves, what is frozen), each with None in the other's places."""
    fixed = jax.tree_util.tree_map_with_path(
        lambda path, _: frozen(multipliers.name_of(path)), tree
    )
    moving = jax.tree.map(lambda x, f: None if f else x, tree, fixed)
    return moving, jax.tree.map(lambda x, f: x if f else None, tree, fixed)


def _joined(a: Any, b: Any) -> Any:
    """Undo `_split`."""
    return jax.tree.map(
        lambda x, y: y if x is None else x, a, b, is_leaf=lambda x: x is None
    )
