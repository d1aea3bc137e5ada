"""Match by order: for names nobody has written down, and for graphs that have none.

A file lists layers as they were defined, and mostly they run so. Where they do not,
the named parts of one module of theirs may change places (numbered ones, of a list,
do not); the order of the file is tried first. A convolution with a bias where ours
has none but a BatchNorm after it is one into which that norm was folded: the norm
becomes the identity plus that bias.

    arrays, origin, folded = match(net, foreign.read("mobilefacenet.onnx"))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxface.convert.network import (
    Layer,
    MismatchError,
    Network,
    Tensors,
    their_shape,
    to_ours,
)
from jaxface.types import Port

_EPSILON = 1e-5  # of the norms that are made the identity
_STATES = 20_000  # looked at before giving up; a file in order needs one per layer


class _Sides(NamedTuple):
    """What is matched, and how theirs lies."""

    net: Network
    tensors: Tensors
    layout: Port


@dataclasses.dataclass(frozen=True)
class _Fill:
    """What one layer of theirs gives: arrays by our path, and their names."""

    arrays: dict[str, np.ndarray]
    origin: dict[str, str]
    used: int  # layers of ours
    folded: bool = False


# Their modules: a leaf has arrays (suffix -> name), any other node has children.
_Node = dict[str, Any]


def match(
    net: Network, tensors: Tensors, *, channels_last: bool = False
) -> tuple[dict[str, np.ndarray], dict[str, str], bool]:
    """Match layer after layer by kind and shape.

    Args:
        net: ours.
        tensors: theirs, in the file's order.
        channels_last: whether flattened pixels lie as ours do, as in Keras.

    Returns:
        (arrays by our path, the tensor each came from, whether norms were folded).

    Raises:
        MismatchError: how far that came, and what was wanted next.
    """
    sides = _Sides(net, tensors, Port(channels_last=channels_last))
    # A state: our layers done, their modules to come, what was filled so far. The
    # last two are linked lists, so that states share what they have in common.
    start: Any = (0, (_modules(tensors), None), None)
    stack, deepest, seen = [start], (0, ""), 0
    while stack and seen < _STATES:
        seen += 1
        done, agenda, filled = stack.pop()
        if agenda is None:
            if done == len(net.layers):
                return _collect(filled)
            deepest = max(deepest, (done, "the end of the file"))
            continue
        node, rest = agenda
        if all(isinstance(child, str) for child in node.values()):
            for fill in reversed(list(_fits(sides, node, done))):
                stack.append((done + fill.used, rest, (fill, filled)))
            deepest = max(deepest, (done, next(iter(node.values()))))
            continue
        names = list(node)
        if all(name.isdigit() for name in names):
            names = names[:1]  # a list runs in order
        for name in reversed(names):
            others = {k: v for k, v in node.items() if k != name}
            after = (others, rest) if others else rest
            stack.append((done, (node[name], after), filled))
    raise MismatchError(*_stuck(sides, deepest))


def _modules(tensors: Tensors) -> _Node:
    """Return the tree of dotted names, a layer's own arrays before its children."""
    root: _Node = {}
    for name in tensors:
        *parents, suffix = name.split(".")
        node = root
        for parent in parents:
            node = node.setdefault(parent, {})
        node[suffix] = name

    def tidy(node: _Node) -> _Node:
        own = {k: v for k, v in node.items() if isinstance(v, str)}
        parts = {k: tidy(v) for k, v in node.items() if not isinstance(v, str)}
        return {"0": own, **parts} if own and parts else own or parts

    return tidy(root)


def _collect(filled: Any) -> tuple[dict[str, np.ndarray], dict[str, str], bool]:
    arrays: dict[str, np.ndarray] = {}
    origin: dict[str, str] = {}
    folded = False
    while filled is not None:
        fill, filled = filled
        arrays, origin = fill.arrays | arrays, fill.origin | origin
        folded |= fill.folded
    return arrays, origin, folded


def _fits(sides: _Sides, group: Mapping[str, str], done: int) -> Iterator[_Fill]:
    """Yield how one layer of theirs fits our layer number `done`, if it does."""
    net, tensors, _ = sides
    if done >= len(net.layers):
        return
    layer = net.layers[done]
    theirs = {suffix: tensors[name] for suffix, name in group.items()}
    plain = _fill(sides, layer, theirs, group)
    if plain:
        yield plain
    if theirs.keys() == {"weight", "bias"} and done + 1 < len(net.layers):
        yield from _unfolded(sides, layer, net.layers[done + 1], theirs, group)


def _fill(
    sides: _Sides,
    layer: Layer,
    theirs: Mapping[str, np.ndarray],
    group: Mapping[str, str],
) -> _Fill | None:
    """Fill one layer, if kinds and shapes agree."""
    net, _, layout = sides
    fixed = {"weight": 1.0, "bias": 0.0}  # what a norm without them has
    spare = theirs.keys() - layer.arrays.keys()
    if layer.arrays.keys() - theirs.keys():
        return None
    if any(s not in fixed or np.any(theirs[s] != fixed[s]) for s in spare):
        return None
    arrays = {}
    for suffix, path in layer.arrays.items():
        array, ours = theirs[suffix], net.shapes[path]
        if array.ndim == 4 and len(ours) == 2 and array.shape[2:] == (1, 1):
            array = array[:, :, 0, 0]  # a dense layer written as a convolution
        if array.shape == (1,) and layer.kind == "PReLU":
            array = np.broadcast_to(array, ours)  # one slope for all channels
        if array.shape != their_shape(net, path, layer, layout):
            return None
        arrays[path] = to_ours(array, path, layer, layout)
    origin = {path: group[suffix] for suffix, path in layer.arrays.items()}
    return _Fill(arrays, origin, 1)


def _unfolded(
    sides: _Sides,
    layer: Layer,
    norm: Layer,
    theirs: Mapping[str, np.ndarray],
    group: Mapping[str, str],
) -> Iterator[_Fill]:
    """Yield kernel and bias of theirs as our kernel, and a norm that adds the bias."""
    bias = theirs["bias"]
    if "running_mean" not in norm.arrays or "bias" not in norm.arrays:
        return
    width = sides.net.shapes[norm.arrays["running_mean"]]
    kernel = {"weight": theirs["weight"]}
    if "bias" in layer.arrays:
        kernel["bias"] = np.zeros_like(bias)
    base = _fill(sides, layer, kernel, group)
    if base is None or bias.shape != width:
        return
    one = np.ones(width, np.float32)
    identity = {
        "weight": one,
        "bias": bias,
        "running_mean": np.zeros(width, np.float32),
        "running_var": one * np.float32(1 - _EPSILON),  # the norm divides by one
    }
    moved = {path: identity[suffix] for suffix, path in norm.arrays.items()}
    origin = base.origin | dict.fromkeys(moved, group["bias"])
    yield _Fill(base.arrays | moved, origin, 2, folded=True)


def _stuck(sides: _Sides, deepest: tuple[int, str]) -> tuple[str, list[str]]:
    """Say how far matching by order came."""
    net, _, layout = sides
    done, name = deepest
    if done >= len(net.layers):
        wrong = f"{name} is one layer more than the network has"
    else:
        layer = net.layers[done]
        shapes = ", ".join(
            f"{suffix} {their_shape(net, path, layer, layout)}"
            for suffix, path in layer.arrays.items()
        )
        wrong = f"at {name}: {layer.path} ({layer.kind}) wants {shapes}"
    return f"matched {done} of {len(net.layers)} layers by order", [wrong]
