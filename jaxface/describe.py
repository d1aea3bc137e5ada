"""What a network costs: parameters, multiply-adds, FLOPs, memory, layer by layer.

The law: every multiply-add belongs to one layer and the rows add up to the totals.
Counted as the field's tables count, for one image in evaluation: convolutions, dense
layers and the products of attention; not norms, activations, biases or pooling; zeros
of a padding count. Networks are traced on shapes alone: no weight is ever allocated.

    rows = layers(iresnet.r50())                      # at the network's own size
    macs(iresnet.r50(), 112) == sum(row.macs for row in rows)               # 6.3e9
    cost(iresnet.r50(), batch=8).train_bytes          # of one image
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend import core

Path = tuple[str, ...]
Calls = dict[Path, tuple[str, tuple[int, ...]]]  # path -> class, shape; by first call
Size = int | tuple[int, int] | None  # pixels per side, (H, W), or the network's own
Macs = collections.Counter[int]  # multiply-adds by number of the layer
Marks = dict[core.Var, int]  # what is known of a value, see `_spread`

_MARK = re.compile(r"@(\d+)")  # in a name stack: the number of a layer
_PRODUCT = -1
_CALLS = {
    *("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"),
    *("custom_jvp_call", "custom_vjp_call"),
}
_LAYOUT = {
    *("reshape", "broadcast_in_dim", "squeeze", "transpose", "copy"),
    *("convert_element_type",),
}


@dataclasses.dataclass(frozen=True)
class Layer:
    """One row of the table: a module that has parameters or multiplies.

    Attributes:
        path: its names from the network down, joined by "/"; "" is the network.
        kind: its class.
        shape: of what it gives for one image.
        parameters: its own, without those of modules inside.
        macs: multiply-adds of its own for one image.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    macs: int


@dataclasses.dataclass(frozen=True)
class Cost:
    """What XLA says a network costs, all of it per image.

    FLOPs are of the network as written and in the form GPU and TPU get: a
    multiply-add is two, norms and activations count, zeros of a padding do not, and
    of a loop only one turn. Bytes are temporaries on this machine's device.

    Attributes:
        forward_flops: in evaluation.
        train_flops: forward in training and the gradient of every parameter; the
            head and the optimizer are not the network's.
        forward_bytes: of the compiled forward pass; None where not asked for.
        train_bytes: the same with the gradient.
    """

    forward_flops: float
    train_flops: float
    forward_bytes: float | None = None
    train_bytes: float | None = None


def layers(model: Any, size: Size = None) -> list[Layer]:
    """List what has parameters or multiplies, in the order it is called.

    Args:
        model: backbone; one with an axis will do, as nothing is trained.
        size: pixels per side, or (H, W); None is the network's own.

    Raises:
        ValueError: multiply-adds that cannot be counted, as in an open-ended loop.
    """
    images = _images(model, size, 1)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    called, traced = _trace(model, variables, images)
    inputs = zip(traced.jaxpr.invars, jax.tree.leaves(variables), strict=False)
    counts = _walk(traced.jaxpr, 0, {v: math.prod(x.shape) for v, x in inputs})
    own = collections.Counter[Path]()
    for keys, leaf in jax.tree.leaves_with_path(variables.get("params", {})):
        path = tuple(key.key for key in keys)
        while path not in called:  # the network itself is (), and always called
            path = path[:-1]
        own[path] += math.prod(leaf.shape)
    return [
        Layer("/".join(path), kind, shape, own[path], counts[number])
        for number, (path, (kind, shape)) in enumerate(called.items())
        if own[path] or counts[number]
    ]


def macs(model: Any, size: Size = None) -> int:
    """Count the multiply-adds of one image; see `layers`."""
    return sum(row.macs for row in layers(model, size))


def parameters(model: Any, size: Size = None) -> int:
    """Count the parameters, running statistics not among them."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), _images(model, size, 1))
    return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes.get("params", {})))


def cost(model: Any, size: Size = None, *, batch: int = 1, memory: bool = True) -> Cost:
    """Ask XLA what the network costs per image.

    Args:
        model: backbone, its `axis` None.
        size: pixels per side, or (H, W); None is the network's own.
        batch: images at a time. Memory that does not grow with it, such as weights
            laid out anew, is shared among them.
        memory: compile for this machine's device, which takes a while.
    """
    images = _images(model, size, batch)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
    state = [name for name in variables if name != "params"]

    def forward(variables: Any, x: jax.Array) -> jax.Array:
        return model.apply(variables, x)

    def train(variables: Any, x: jax.Array, keys: jax.Array) -> Any:
        def energy(params: Any) -> Any:
            y, changed = model.apply(
                {**variables, "params": params}, x, train=True, keys=keys, mutable=state
            )
            return (y * y).sum(), changed

        return jax.grad(energy, has_aux=True)(variables["params"])

    traces = (
        jax.jit(forward).trace(variables, images),
        jax.jit(train).trace(variables, images, keys),
    )
    # Lowered for TPU, whatever the device: XLA:CPU gets depthwise layers as loops,
    # of which the analysis sees one turn.
    flops = [t.lower(lowering_platforms=("tpu",)).cost_analysis() for t in traces]
    per_image = [f["flops"] / batch for f in flops]
    if not memory:
        return Cost(*per_image)
    compiled = [t.lower().compile().memory_analysis() for t in traces]
    return Cost(*per_image, *(c.temp_size_in_bytes / batch for c in compiled))


def _trace(model: Any, variables: Any, images: Any) -> tuple[Calls, Any]:
    """Trace a network, the number of its layer in every instruction's name."""
    called: Calls = {}
    numbers: dict[Path, int] = {}

    def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if module.scope is None:  # not yet part of the network
            return call(*args, **kwargs)
        path, kind = module.path, type(module).__name__.lstrip("_")
        called.setdefault(path, (kind, ()))
        with jax.named_scope(f"@{numbers.setdefault(path, len(numbers))}"):
            y = call(*args, **kwargs)
        if context.method_name == "__call__":
            called[path] = kind, jax.tree.leaves(y)[0].shape[1:]
        return y

    def forward(variables: Any, x: Any) -> Any:  # new each time: no trace is reused
        return model.apply(variables, x)

    with nn.intercept_methods(watch):
        return called, jax.make_jaxpr(forward)(variables, images)


def _images(model: Any, size: Size, batch: int) -> jax.ShapeDtypeStruct:
    size = size or model.size
    side = (size, size) if isinstance(size, int) else size
    return jax.ShapeDtypeStruct((batch, *side, 3), jnp.float32)


def _walk(jaxpr: core.Jaxpr, owner: int, marks: Marks) -> Macs:
    """Count a program; what names no layer itself is the `owner`'s."""
    total = Macs()
    for eqn in jaxpr.eqns:
        named = _MARK.findall(str(eqn.source_info.name_stack))
        here = int(named[-1]) if named else owner
        total[here] += _macs(eqn, marks)
        total.update(_inside(eqn, here, marks))
        _spread(eqn, marks)
    return total


def _macs(eqn: core.JaxprEqn, marks: Marks) -> int:
    """Count one instruction."""
    name, out = eqn.primitive.name, eqn.outvars[0].aval if eqn.outvars else None
    if name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        lhs = eqn.invars[0].aval.shape
        return out.size * math.prod(lhs[i] for i in contracted)
    if name == "conv_general_dilated":  # a kernel's inputs are those of its group
        kernel = eqn.invars[1].aval
        outputs = kernel.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
        return out.size * (kernel.size // outputs)
    if name == "reduce_sum" and _mark(eqn.invars[0], marks) == _PRODUCT:
        return eqn.invars[0].aval.size
    return 0


def _inside(eqn: core.JaxprEqn, owner: int, marks: Marks) -> Macs:
    """Count the programs that an instruction runs."""
    name = eqn.primitive.name
    operands = eqn.invars[1:] if name == "cond" else eqn.invars
    counts = [
        _walk(body, owner, _handed(operands, body.invars, marks))
        for body in _bodies(eqn)
    ]
    if name == "cond":  # one branch: what GPU and TPU get, else the dearest
        platforms = eqn.params.get("branches_platforms") or ()
        if None in platforms:
            return counts[platforms.index(None)]
        return max(counts, key=lambda c: c.total())
    if name == "scan":
        return Macs({k: n * eqn.params["length"] for k, n in counts[0].items()})
    total = sum(counts, Macs())
    if total and name not in _CALLS:
        raise ValueError(
            f"multiply-adds inside {name!r} cannot be counted; wanted lax.scan or"
            " lax.fori_loop of a fixed length instead of a loop"
        )
    return total


def _bodies(eqn: core.JaxprEqn) -> list[core.Jaxpr]:
    """List the programs among an instruction's parameters."""
    values = jax.tree.leaves(
        list(eqn.params.values()),
        is_leaf=lambda x: isinstance(x, core.Jaxpr | core.ClosedJaxpr),
    )
    found = [v for v in values if isinstance(v, core.Jaxpr | core.ClosedJaxpr)]
    return [getattr(v, "jaxpr", v) for v in found]


def _handed(operands: Any, inside: Any, marks: Marks) -> Marks:
    """Rename marks for the inside of a call; a scan hands in one slice of a stack."""
    known = zip(inside, (_mark(v, marks) for v in operands), strict=False)
    return {v: min(mark, v.aval.size) for v, mark in known if mark}


def _mark(value: Any, marks: Marks) -> int:
    return 0 if isinstance(value, core.Literal) else marks.get(value, 0)


def _spread(eqn: core.JaxprEqn, marks: Marks) -> None:
    """Tell convolutions that are written as a product and a sum, by marks.

    `common.depthwise` does so where the kernel is as large as the image. A weight is
    marked by its size, whatever its layout; a product of a value and a weight that
    has a number of its own for each element, by _PRODUCT. The sum of one counts.
    """
    name = eqn.primitive.name
    if name in _LAYOUT and (mark := _mark(eqn.invars[0], marks)):
        marks[eqn.outvars[0]] = mark
    elif name == "mul":
        out = eqn.outvars[0]
        for value, weight in (eqn.invars, eqn.invars[::-1]):
            one_each = value.aval.size == out.aval.size == _mark(weight, marks)
            if one_each and not _mark(value, marks):
                marks[out] = _PRODUCT
