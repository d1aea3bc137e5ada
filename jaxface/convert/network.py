"""A network seen from outside: its layers in order of execution, and layouts.

The law: `to_ours` undoes `to_theirs` exactly. Torch has channels before rows and
outputs before inputs, and flattens pixels channel by channel; Keras is read into
torch's layout too, except for what is flattened.

    net = Network("iresnet.r50")
    net.layers[0]         # Layer("conv1", "Conv", {"weight": "params/conv1/kernel"})
    their_shape(net, "params/conv1/kernel", net.layers[0], Port())    # (64, 3, 3, 3)
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxface import models, spec
from jaxface.types import Port

Tensors = Mapping[str, np.ndarray]
_SUFFIX = {
    "kernel": "weight",
    "scale": "weight",
    "slope": "weight",
    "mean": "running_mean",
    "var": "running_var",
}


class MismatchError(ValueError):
    """Tensors and network differ; `wrong` lists where."""

    def __init__(self, text: str, wrong: list[str]) -> None:
        shown = "; ".join(wrong[:8]) + (
            f"; and {len(wrong) - 8} more" * (len(wrong) > 8)
        )
        super().__init__(f"{text}, {len(wrong)} differ: {shown}")
        self.wrong = wrong


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer of ours, as torch would hold it.

    Attributes:
        path: such as "layer1_0/bn1"; "" for the network's own arrays.
        kind: class name of the module.
        arrays: name in torch ("weight") -> our path ("params/.../kernel").
        flat: (H, W, C) where a dense layer reads flattened pixels, else None.
        block: number of its block among those of all stages, None outside of blocks.
    """

    path: str
    kind: str
    arrays: dict[str, str]
    flat: tuple[int, ...] | None = None
    block: int | None = None


class Network:
    """What there is to fill: a model's layers in the order in which they run.

    Attributes:
        model: the Flax module.
        shapes: our path ("params/conv1/kernel") -> shape.
        layers: in order of execution.
    """

    def __init__(self, line: str) -> None:
        _, call = family_of(line)
        make = spec.module(models, call, kind="model", default="Model")
        self.model = spec.bind(make, call)()
        size = self.model.size
        side = (size, size) if isinstance(size, int) else tuple(size)
        self.shape = (*side, 3)
        images = jax.ShapeDtypeStruct((2, *self.shape), jnp.float32)
        calls: list[tuple[str, str, tuple[int, ...]]] = []

        def watch(forward: Any, args: Any, kwargs: Any, context: Any) -> Any:
            if context.method_name == "__call__":
                path = "/".join(context.module.path)
                kind = type(context.module).__name__
                calls.append((path, kind, getattr(args[0], "shape", ())))
            return forward(*args, **kwargs)

        def init(images: Any) -> Any:
            with nn.intercept_methods(watch):
                return self.model.init(jax.random.key(0), images)

        self.abstract = jax.eval_shape(init, images)
        self.shapes = {k: v.shape for k, v in flatten(self.abstract).items()}
        self.layers = self._layers(calls)

    def _layers(self, calls: list[tuple[str, str, tuple[int, ...]]]) -> list[Layer]:
        owned: dict[str, dict[str, str]] = {}
        for path in self.shapes:
            owner, _, leaf = path.partition("/")[2].rpartition("/")
            owned.setdefault(owner, {})[_SUFFIX.get(leaf, leaf)] = path
        layers, flat = [], None
        for path, kind, shape in calls:
            if kind == "Flatten":
                flat = shape[1:]
            if path not in owned:
                continue
            reads = flat if kind == "Dense" and flat is not None else None
            flat = None if kind == "Dense" else flat
            layers.append(Layer(path, kind, owned.pop(path), reads))
        # remat hides modules of a block from the watch: no order, but still layers
        layers += [Layer(p, "", arrays) for p, arrays in owned.items()]
        blocks = sorted({n for layer in layers if (n := _block(layer.path))})
        number: dict[Any, int] = {n: i for i, n in enumerate(blocks)}
        return [
            dataclasses.replace(layer, block=number.get(_block(layer.path)))
            for layer in layers
        ]

    def tree(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return arrays by path as the nested variables, of the model's dtypes."""
        whole: dict[str, Any] = {"batch_stats": {}}
        for path, like in flatten(self.abstract).items():
            *parents, leaf = path.split("/")
            node = whole
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = np.asarray(arrays[path], like.dtype)
        return whole


def family_of(line: str) -> tuple[Any, spec.Call]:
    """Return the module of jaxface.models that a model line names, and its call."""
    call = spec.parse_one(line)
    spec.module(models, call, kind="model", default="Model")  # or says what there is
    name = call.name.partition(".")[0]
    return importlib.import_module(f"{models.__name__}.{name}"), call


def _block(path: str) -> tuple[int, int] | None:
    """Return (stage, block) of a path such as "layer2_0/conv1", else None."""
    found = re.match(r"[a-z]+(\d+)_(\d+)(?:/|$)", path)
    return (int(found[1]), int(found[2])) if found else None


def flatten(tree: Any) -> dict[str, Any]:
    """Return a tree's leaves by path, as "params/conv1/kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in leaves
    }


# Layouts: torch has channels first and outputs before inputs.


def to_theirs(array: np.ndarray, path: str, layer: Layer, port: Port) -> np.ndarray:
    """Turn one of our arrays into theirs."""
    if not path.endswith("/kernel"):
        return array
    if array.ndim == 4:  # [kh, kw, I, O]; depthwise [kh, kw, M, C] alike
        return array.transpose(3, 2, 0, 1)
    if array.ndim != 2:
        return array
    if layer.flat and not port.channels_last:
        H, W, C = layer.flat
        array = array.reshape(H, W, C, -1).transpose(2, 0, 1, 3).reshape(array.shape)
    array = array.T
    if re.search(port.conv1x1, layer.path):
        array = array[:, :, None, None]
    return array


def to_ours(array: np.ndarray, path: str, layer: Layer, port: Port) -> np.ndarray:
    """Turn one of their arrays into ours: `to_theirs` backwards."""
    if not path.endswith("/kernel"):
        return array
    if array.ndim == 4 and not re.search(port.conv1x1, layer.path):
        return array.transpose(2, 3, 1, 0)
    if array.ndim == 4:
        array = array[:, :, 0, 0]
    if array.ndim != 2:
        return array
    array = array.T
    if layer.flat and not port.channels_last:
        H, W, C = layer.flat
        array = array.reshape(C, H, W, -1).transpose(1, 2, 0, 3).reshape(array.shape)
    return array


def their_shape(net: Network, path: str, layer: Layer, port: Port) -> tuple[int, ...]:
    """Return the shape they give the array at our `path`."""
    # a broadcast array has the shape and takes no memory
    empty = np.broadcast_to(np.int8(0), net.shapes[path])
    return to_theirs(empty, path, layer, port).shape
