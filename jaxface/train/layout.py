"""Where the arrays of a run lie, and its step compiled for that.

The law: a layout decides about memory and what is sent, never about the result. Every
device has a part of the batch; the head is split along all mesh axes or along one,
"class", and then the devices along the other have copies of it; the network is whole
on every device, or its moments, or its weights too, lie in parts (`parts.TABLE`).

    layout = make(jax.devices(), class_devices=4, shard="optimizer")
    state = jax.jit(init, out_shardings=layout.shardings(jax.eval_shape(init)))()
    step = compile_step(layout, loss, grads_of, update, like=state)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxface import parallel, parts
from jaxface.train import sampled
from jaxface.train import step as steps
from jaxface.types import Loss, SampledLoss

DATA, CLASS = "data", "class"


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where arrays lie.

    Attributes:
        mesh: the devices.
        axis: mesh axis name(s) of the batch: all of them.
        classes: mesh axis name(s) the head's rows are split along.
        shard: what of the network lies in parts, a key of `parts.TABLE`.
        how: "jit" or "pmap".
    """

    mesh: Mesh
    axis: parallel.Axis = DATA
    classes: parallel.Axis = DATA
    shard: str = "none"
    how: str = "jit"

    def specs(self, state: Any) -> Any:
        """Return the PartitionSpecs of a state, arrays or shapes."""
        return parts.state_specs(
            state,
            shard=self.shard,
            axis=self.axis,
            classes=self.classes,
            devices=self.mesh.size,
        )

    def shardings(self, state: Any) -> Any:
        """Return the NamedShardings of a state, arrays or shapes."""
        return parallel.shardings(self.specs(state), self.mesh)

    @property
    def split(self) -> NamedSharding:
        """Of a batch."""
        return NamedSharding(self.mesh, P(self.axis))

    @property
    def rows(self) -> NamedSharding:
        """Of what has a row for each class."""
        return NamedSharding(self.mesh, P(self.classes))

    @property
    def whole(self) -> NamedSharding:
        """Of what is whole on every device."""
        return NamedSharding(self.mesh, P())

    @property
    def class_devices(self) -> int:
        """Over how many devices the head is split."""
        names = (self.classes,) if isinstance(self.classes, str) else self.classes or ()
        return int(np.prod([self.mesh.shape[name] for name in names], dtype=int))


def make(
    devices: Sequence[jax.Device],
    *,
    class_devices: int = 0,
    shard: str = "none",
    how: str = "jit",
) -> Layout:
    """Lay a run out on devices.

    Args:
        devices: all that take part.
        class_devices: split the head over so many neighbours, of which the others have
            copies; 0: over all.
        shard: a key of `parts.TABLE`.
        how: "jit" or "pmap".

    Raises:
        ValueError: the devices do not divide into such groups.
    """
    n = len(devices)
    if not class_devices or class_devices == n:
        return Layout(
            parallel.make_mesh(axis=DATA, devices=devices), shard=shard, how=how
        )
    if n % class_devices:
        raise ValueError(
            f"mesh.class_devices is {class_devices}, into which {n} devices do not"
            f" divide; wanted a divisor of {n}, or 0"
        )
    mesh = jax.make_mesh(
        (n // class_devices, class_devices),
        (DATA, CLASS),
        axis_types=(AxisType.Auto,) * 2,
        devices=list(devices),
    )
    return Layout(mesh, axis=(DATA, CLASS), classes=CLASS, shard=shard, how=how)


def compile_step(
    layout: Layout,
    loss: Loss,
    grads_of: Callable[..., Any],
    update: Callable[[Any, steps.TrainState], steps.TrainState],
    *,
    like: Any,
    head_clip: float = 0.0,
) -> parallel.Step:
    """Compile a train step for a layout.

    Args:
        layout: where arrays lie.
        loss: the head and what trains it.
        grads_of: `step.make_grads`, all bound but the loss and the layout's.
        update: from `step.make_update`.
        like: the state, arrays or shapes.
        head_clip: as `sampled.make_body`'s `clip`, for a loss that samples classes.

    Returns:
        step(state, batch) -> (state, metrics).
    """
    axis, classes, specs = layout.axis, layout.classes, layout.specs(like)
    plan = {"specs": specs, "mesh": layout.mesh, "axis": axis, "how": layout.how}
    parted = layout.shard != "none"
    cut = jax.tree.map(lambda _: P(), like.params)
    if parted:
        cut = parts.cut(like.params, axis=axis, devices=layout.mesh.size)
    bound = functools.partial(
        grads_of,
        axis=axis,
        classes=classes,
        cut=cut,
        gathers=layout.shard == "parameters",
    )
    per_device = isinstance(loss, SampledLoss) or layout.how == "pmap"
    if layout.shard == "optimizer" and per_device:
        update = _in_parts(update, cut=cut, axis=axis)
    if isinstance(loss, SampledLoss):
        body = sampled.make_body(
            loss,
            make_grads=bound,
            update=update,
            axis=axis,
            classes=classes,
            clip=head_clip,
        )
        return parallel.compile_body(body, **plan)
    grad_specs = {"params": cut, "head": P(classes), "margin": P()}
    return parallel.compile_step(bound(loss), update, grad_specs=grad_specs, **plan)


def _in_parts(
    update: Callable[[Any, steps.TrainState], steps.TrainState],
    *,
    cut: Any,
    axis: parallel.Axis,
) -> Callable[[Any, steps.TrainState], steps.TrainState]:
    """Write an update for one device, whose moments and gradients are parts.

    Each device moves its own parts of the backbone, and they are gathered again.

    Args:
        update: from `step.make_update`; its optimizer must be element-wise.
        cut: what `step.make_grads` got.
        axis: mesh axis name(s) of the batch.
    """

    def updated(g: Any, state: steps.TrainState) -> steps.TrainState:
        mine = parts.own(state.params, cut, axis=axis)
        new = update(g, state.replace(params=mine))
        return new.replace(params=parts.whole(new.params, cut, axis=axis))

    return updated
