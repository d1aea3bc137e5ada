"""ONNX graphs: their layers' tensors in order of execution, and their outputs.

One law: every float constant of more than one element is a layer's, or is an error;
an exporter may fold and rename, but no weight is lost without a word.

    read("net.onnx")["features.0.weight"]    # named after the node /features.0/Conv
    forward("net.onnx", images)              # [N, D], from NCHW float32
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxface.foreign import arrays

# Their float inputs are scales and limits: the layer has no weights.
PLAIN_OPS = frozenset(("Clip", "Pad", "Resize", "Upsample"))


@dataclasses.dataclass
class _Graph:
    """A graph's constants by name, and those that a layer took."""

    constants: dict[str, np.ndarray]
    source: dict[str, str]  # of a constant: the initialiser that Identity copied
    taken: set[str] = dataclasses.field(default_factory=set)

    def take(self, name: str) -> np.ndarray:
        self.taken.add(self.source.get(name, name))
        return self.constants[name]


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read the weights of a graph's Conv, Gemm, MatMul, BatchNormalization and PRelu.

    Args:
        path: the model; data that it keeps in files beside it is read too.

    Returns:
        Tensors in PyTorch's layout in the order of the nodes, named after them.

    Raises:
        ValueError: if the file is damaged, a layer is not as PyTorch has it, or a
            constant belongs to no layer.
    """
    path = os.fspath(path)
    model = _load(path)
    try:
        graph = _graph(model)
        names = _names(model.graph.node)
        out = {
            f"{names[index]}.{leaf}": arrays.widen(array)
            for index, leaf, array in _layers(model.graph.node, graph)
        }
        _nothing_left(model.graph, graph)
    except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
        raise ValueError(f"{path}: cannot take the graph's weights: {error}") from None
    if not out:
        raise ValueError(f"{path}: the graph has no layer with weights")
    return out


def forward(path: str | os.PathLike[str], images: np.ndarray) -> np.ndarray:
    """Run a graph, by onnxruntime if it is installed, else by ONNX's reference.

    Args:
        path: a model of one input and one output.
        images: [N, C, H, W] float32; one by one if the graph was made for one.

    Returns:
        Its output, [N, ...].

    Raises:
        ValueError: if the images or the graph are of another form.
    """
    path = os.fspath(path)
    if images.ndim != 4 or images.dtype != np.float32:
        raise ValueError(
            f"images are {images.dtype} {images.shape}; wanted NCHW float32"
        )
    graph = _load(path).graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    outputs = [value.name for value in graph.output]
    if len(inputs) != 1 or len(outputs) != 1:
        raise ValueError(
            f"{path}: inputs {[value.name for value in inputs]}, outputs {outputs};"
            " wanted one each"
        )
    run = _runner(path)
    shape = inputs[0].type.tensor_type.shape.dim
    single = len(shape) == 4 and shape[0].dim_value == 1
    batches = np.split(images, len(images)) if single and len(images) else [images]
    return np.concatenate([run(None, {inputs[0].name: b})[0] for b in batches])


def _runner(path: str) -> Any:
    try:
        import onnxruntime
    except ImportError:
        from onnx import reference

        return reference.ReferenceEvaluator(path).run
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run


def _load(path: str) -> Any:
    """Parse a model."""
    try:
        import onnx
        from google.protobuf import message
    except ImportError as error:
        raise ImportError(
            "reading ONNX needs `pip install jaxface[convert]`"
        ) from error
    with open(path, "rb"):  # a missing model is not the same as missing data of one
        pass
    try:
        return onnx.load(path)
    except (message.DecodeError, onnx.checker.ValidationError, ValueError) as error:
        raise ValueError(f"{path}: not an ONNX model, or cut short: {error}") from None
    except OSError as error:
        raise ValueError(f"{path}: its external data cannot be read: {error}") from None


def _attributes(node: Any) -> dict[str, Any]:
    from onnx import helper

    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _graph(model: Any) -> _Graph:
    """Return the constants: initialisers, Constant nodes and Identities of them."""
    from onnx import numpy_helper

    if model.graph.sparse_initializer:
        raise ValueError("it has sparse initialisers")
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    source: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type == "Constant":
            (value,) = _attributes(node).values()
            if hasattr(value, "dims"):
                value = numpy_helper.to_array(value)
            constants[node.output[0]] = np.asarray(value)
        elif node.op_type == "Identity" and node.input[0] in constants:
            (copied,), (name,) = node.input, node.output
            constants[name] = constants[copied]
            source[name] = source.get(copied, copied)
    return _Graph(constants, source)


def _names(nodes: Any) -> list[str]:
    """Return a dotted name for each node, all different.

    PyTorch calls a node `/layer1/layer1.0/conv/Conv`: the modules it is in, each by
    its whole name within the one that is no container, and the operation.
    """
    names: list[str] = []
    known: set[str] = set()
    for index, node in enumerate(nodes):
        parts: list[str] = []
        for part in filter(None, node.name.split("/")):
            if parts and part.startswith(f"{parts[-1]}."):
                parts.pop()
            parts.append(part)
        if len(parts) > 1 and re.fullmatch(rf"{node.op_type}(_\d+)?", parts[-1]):
            parts.pop()
        stem = name = ".".join(parts) or f"{node.op_type}_{index}"
        # a module may hold two layers, and MatMul and its Add are two nodes
        count = 0
        while node.op_type in _READERS and name in known:
            count += 1
            name = f"{stem}_{count}"
        if node.op_type in _READERS:
            known.add(name)
        names.append(name)
    return names


def _layers(nodes: Any, graph: _Graph) -> Iterator[tuple[int, str, np.ndarray]]:
    """Yield (index of the node, leaf, tensor) in order of execution."""
    products: dict[str, tuple[int, int]] = {}  # MatMul's output: its node, its width
    for index, node in enumerate(nodes):
        if node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type == "Add":
            for product, other in (node.input, node.input[::-1]):
                if product in products and other in graph.constants:
                    home, width = products.pop(product)
                    yield home, "bias", _vector(graph.take(other), width, node)
                    break
        elif node.op_type in _READERS:
            for leaf, array in _READERS[node.op_type](node, graph).items():
                yield index, leaf, array
                if node.op_type == "MatMul":
                    products[node.output[0]] = (index, len(array))


def _weight(node: Any, graph: _Graph, place: int) -> np.ndarray:
    if node.input[place] not in graph.constants:
        raise ValueError(f"node {node.name!r}: {node.input[place]!r} is computed")
    return graph.take(node.input[place])


def _vector(array: np.ndarray, width: int, node: Any) -> np.ndarray:
    """Return an array of one long axis, [width]."""
    if array.size != width or max(array.shape, default=1) != width:
        raise ValueError(f"node {node.name!r}: {array.shape} is no vector of {width}")
    return array.reshape(width)


def _conv(node: Any, graph: _Graph) -> dict[str, np.ndarray]:
    found = {"weight": _weight(node, graph, 1)}
    if len(node.input) > 2 and node.input[2]:
        found["bias"] = _vector(_weight(node, graph, 2), len(found["weight"]), node)
    return found


def _gemm(node: Any, graph: _Graph) -> dict[str, np.ndarray]:
    given = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0, **_attributes(node)}
    if (given["alpha"], given["beta"], given["transA"]) != (1.0, 1.0, 0):
        raise ValueError(
            f"node {node.name!r}: {given}; wanted alpha = beta = 1, no transA"
        )
    weight = _matrix(_weight(node, graph, 1), node)
    found = {"weight": weight if given["transB"] else weight.T}
    if len(node.input) > 2 and node.input[2]:
        found["bias"] = _vector(_weight(node, graph, 2), len(found["weight"]), node)
    return found


def _matmul(node: Any, graph: _Graph) -> dict[str, np.ndarray]:
    if node.input[1] not in graph.constants:  # attention: both sides are computed
        return {}
    return {"weight": _matrix(_weight(node, graph, 1), node).T}


def _matrix(array: np.ndarray, node: Any) -> np.ndarray:
    if array.ndim != 2:
        raise ValueError(f"node {node.name!r}: {array.shape} is no matrix")
    return array


def _norm(node: Any, graph: _Graph) -> dict[str, np.ndarray]:
    leaves = ("weight", "bias", "running_mean", "running_var")
    return {leaf: _weight(node, graph, 1 + k) for k, leaf in enumerate(leaves)}


def _prelu(node: Any, graph: _Graph) -> dict[str, np.ndarray]:
    slope = _weight(node, graph, 1)
    return {"weight": _vector(slope, slope.size, node)}


_READERS = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _norm,
    "PRelu": _prelu,
}


def _nothing_left(proto: Any, graph: _Graph) -> None:
    """Raise unless the constants that no layer took are no weights."""
    users: dict[str, list[str]] = {}
    for node in proto.node:
        for name in node.input:
            users.setdefault(graph.source.get(name, name), []).append(node.op_type)
    left = {}
    for name, array in graph.constants.items():
        kind = array.dtype
        is_float = kind.kind == "f" or kind in arrays.NARROW
        if (
            name in graph.source
            or name in graph.taken
            or array.size < 2
            or not is_float
        ):
            continue
        used = [op for op in users.get(name, ["nothing"]) if op != "Identity"]
        if not used or not PLAIN_OPS.issuperset(used):
            left[name] = f"{array.shape}, used by {', '.join(used[:3])}"
    if left:
        raise ValueError(f"these constants belong to no layer known here: {left}")
