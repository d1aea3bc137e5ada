"""Keras' weight files, whole models or weights alone, in PyTorch's layout.

One law: every weight in the file is named or is an error; nothing is deserialised
but numbers, and no link leads out of the file.

    read("facenet.h5")["stem.weight"]        # layer `stem`: [O, I, kh, kw]

Layers come in the order of the model. A bare `.weights.h5` of Keras 3 does not know
it: there they come by kind, and within a kind in order. A Dense layer after Flatten
keeps its inputs in Keras' order, (H, W, C).
"""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxface.foreign import archive, arrays

MAX_NODES, MAX_DEPTH = 1_000_000, 100
# Chunks that were never written take no room in the file: a memory bomb.
MAX_GROWTH, MAX_EXTRA = 8, 1 << 24

# What `vars/0`, `vars/1`, ... are, by Keras 3's name of the kind of layer.
ROLES = {
    **{f"conv{n}d": ("kernel", "bias") for n in (1, 2, 3)},
    **{f"conv{n}d_transpose": ("kernel", "bias") for n in (1, 2, 3)},
    **{f"depthwise_conv{n}d": ("depthwise_kernel", "bias") for n in (1, 2)},
    **{f"separable_conv{n}d": ("depthwise_kernel", "pointwise_kernel", "bias")
       for n in (1, 2)},
    "dense": ("kernel", "bias"),
    "p_re_lu": ("alpha",),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "layer_normalization": ("gamma", "beta"),
}  # fmt: skip


class _Layer(NamedTuple):
    """A layer of the model's config; `inner` are a nested model's."""

    name: str
    kind: str
    config: dict[str, Any]
    inner: tuple[_Layer, ...]


class _Tree(NamedTuple):
    """What a file holds, by path; `size` is the file's, in bytes."""

    groups: dict[str, Any]
    datasets: dict[str, Any]
    size: int


# (a layer's name, after those it is in, {Keras' name of the weight: its dataset})
_Found = tuple[str, dict[str, str]]


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read the weights of a Keras 2 or 3 file.

    Args:
        path: `.keras`, or HDF5 as `save` or `save_weights` wrote it.

    Returns:
        Tensors by layer and PyTorch's name; a nested model's layers are under it.

    Raises:
        ValueError: if the file is damaged, or has weights of layers unknown here.
    """
    path = os.fspath(path)
    try:
        with open(path, "rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
        if not zipped:
            return _hdf5(path, None, os.path.getsize(path))
        with archive.opened(path) as members:
            layers = _layers(json.loads(archive.member(members, "config.json")))
            content = archive.member(members, "model.weights.h5")
        return _hdf5(io.BytesIO(content), layers, len(content))
    except FileNotFoundError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, OSError, RuntimeError,
            OverflowError) as error:  # fmt: skip
        raise ValueError(f"{path}: not weights of Keras, or damaged: {error}") from None


def _hdf5(
    file: str | io.BytesIO, layers: tuple[_Layer, ...] | None, size: int
) -> dict[str, np.ndarray]:
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            "reading Keras needs `pip install jaxface[convert]`"
        ) from error
    with h5py.File(file, "r") as opened:
        root = opened
        if layers is None and "model_config" in opened.attrs:
            layers = _layers(json.loads(opened.attrs["model_config"]))
        if isinstance(opened.get("model_weights", getlink=True), h5py.HardLink):
            root = opened["model_weights"]
        tree = _tree(root, size)
        if _strings(root, "layer_names"):
            found = list(_legacy(tree, layers))
        else:
            found = list(_store(tree, "", layers, ""))
        return _arrays(tree, found)


def _tree(root: Any, size: int) -> _Tree:
    """Return all groups and datasets below a group."""
    import h5py

    tree = _Tree({"": root}, {}, size)
    waiting = [("", root, 0)]
    while waiting:
        path, group, depth = waiting.pop()
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"{path}{name} is a link to another place")
            here, node = f"{path}{name}", group[name]
            if isinstance(node, h5py.Group):
                tree.groups[here] = node
                waiting.append((f"{here}/", node, depth + 1))
            elif isinstance(node, h5py.Dataset):
                tree.datasets[here] = node
            if len(tree.groups) + len(tree.datasets) > MAX_NODES or depth > MAX_DEPTH:
                raise ValueError("its groups nest too deep, or there are too many")
    return tree


def _layers(model: Any) -> tuple[_Layer, ...]:
    """Return the layers of a model's config, in order."""
    config = model["config"]
    listed = config if isinstance(config, list) else config["layers"]
    layers = []
    for layer in listed:
        own = layer["config"]
        nested = isinstance(own, list) or isinstance(own.get("layers"), list)
        # Keras 2 lists a layer's name beside its config, in a functional model
        name = layer.get("name") or own["name"]
        inner = _layers(layer) if nested else ()
        layers.append(_Layer(name, _kind(layer["class_name"]), dict(own), inner))
    return tuple(layers)


def _kind(name: str) -> str:
    """Return the name of a class as Keras 3 calls its groups."""
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _strings(group: Any, name: str) -> list[str]:
    """Return a list of texts among the attributes, which may come in pieces."""
    names = [name] if name in group.attrs else []
    while f"{name}{len(names)}" in group.attrs:
        names.append(f"{name}{len(names)}")
    texts = [text for piece in names for text in np.ravel(group.attrs[piece])]
    return [t.decode() if isinstance(t, bytes) else str(t) for t in texts]


def _legacy(tree: _Tree, layers: tuple[_Layer, ...] | None) -> Iterator[_Found]:
    """Yield layers that list the names of their weights: Keras 2, and 3 in `.h5`."""
    known = dict(_flat(layers or (), ""))
    found: dict[str, dict[str, str]] = {}
    for layer in _strings(tree.groups[""], "layer_names"):
        for weight in _strings(tree.groups[layer], "weight_names"):
            # LAYER/INNER/kernel:0, perhaps within the model's name, or INNER/kernel:0
            _, within, rest = f"/{weight}".partition(f"/{layer}/")
            path, _, leaf = f"{layer}/{rest if within else weight}".rpartition("/")
            if path not in known:  # Keras 2 may leave out the models in between
                ends = path.rpartition("/")[2]
                same = [p for p in known if p.startswith(f"{layer}/")]
                same = [p for p in same if p.endswith(f"/{ends}")]
                path = same[0] if len(same) == 1 else path
            leaf = leaf.removesuffix(":0")
            found.setdefault(path, {})[leaf] = f"{layer}/{weight}"
    # a nested model lists what is trained first: go back to the order of layers
    if known.keys() >= found.keys():
        found = {path: found[path] for path in known if path in found}
    version = str(tree.groups[""].attrs.get("keras_version", "2"))
    for path, weights in found.items():
        if "kernel" in weights and not version.startswith("2"):
            # Keras 3 has the same name for the kernel of a depthwise convolution
            if path not in known:
                raise ValueError(f"the kind of layer {path} is not told")
            role = ROLES.get(known[path].kind, ("kernel",))[0]
            weights = {role if k == "kernel" else k: v for k, v in weights.items()}
        yield path, weights


def _flat(layers: tuple[_Layer, ...], within: str) -> Iterator[tuple[str, _Layer]]:
    for layer in layers:
        yield f"{within}{layer.name}", layer
        yield from _flat(layer.inner, f"{within}{layer.name}/")


def _store(
    tree: _Tree, at: str, layers: tuple[_Layer, ...] | None, within: str
) -> Iterator[_Found]:
    """Yield the layers of Keras 3's store: `layers/KIND_N/vars/I`, one in another."""
    known: dict[str, _Layer] = {}
    counts: dict[str, int] = {}
    for layer in layers or ():
        count = counts[layer.kind] = counts.get(layer.kind, -1) + 1
        known[f"{layer.kind}_{count}" if count else layer.kind] = layer
    start = f"{at}layers/"
    groups = [g.removeprefix(start) for g in tree.groups if g.startswith(start)]
    groups = [g for g in groups if "/" not in g]
    if layers is None:
        groups.sort(key=_numbered)
    else:
        groups = [g for g in known if g in groups]
    for group in groups:
        layer = known.get(group) or _unlisted(tree, f"{start}{group}")
        here = f"{within}{layer.name}"
        count = sum(
            d.rpartition("/")[0] == f"{start}{group}/vars" for d in tree.datasets
        )
        if count:
            roles = _roles(layer, count, here)
            yield here, {r: f"{start}{group}/vars/{k}" for k, r in enumerate(roles)}
        inner = layer.inner if layers is not None else None
        yield from _store(tree, f"{start}{group}/", inner, f"{here}/")


def _numbered(group: str) -> tuple[str, int]:
    """Return a kind and a number: `conv2d_10` comes after `conv2d_2`."""
    match = re.fullmatch(r"(.*?)(?:_(\d{1,9}))?", group)
    return (match[1], int(match[2] or 0)) if match else (group, 0)


def _unlisted(tree: _Tree, group: str) -> _Layer:
    """Return what a group tells of its layer, where there is no config."""
    last = group.rpartition("/")[2]
    told = tree.groups.get(f"{group}/vars")
    name = str(told.attrs.get("name", last)) if told is not None else last
    return _Layer(name, _numbered(last)[0], {}, ())


def _roles(layer: _Layer, count: int, path: str) -> tuple[str, ...]:
    """Return what a layer's variables are."""
    roles = ROLES.get(layer.kind, ())
    if layer.kind == "batch_normalization" and count < 4:
        given = {"gamma": layer.config.get("scale"), "beta": layer.config.get("center")}
        roles = tuple(r for r in roles if count != 2 and given.get(r, True))
        roles = roles or ("moving_mean", "moving_variance")
        if count == 2:
            roles = ("moving_mean", "moving_variance")
    # only the last one, a bias, may be absent
    if not len(roles) - ("bias" in roles) <= count <= len(roles):
        raise ValueError(
            f"layer {path}, a {layer.kind}, has {count} variables and it is"
            f" not told which; known layers: {sorted(ROLES)}"
        )
    return roles[:count]


def _arrays(tree: _Tree, found: list[_Found]) -> dict[str, np.ndarray]:
    """Return the tensors of the layers, having checked that there are no others."""
    taken = {path for _, weights in found for path in weights.values()}
    # the state of an optimizer or of Dropout is no weight of the network
    other = ("optimizer", "seed_generator", "optimizer_weights")
    left = [p for p in tree.datasets if p not in taken
            and not any(part in other for part in p.split("/"))]  # fmt: skip
    if left:
        raise ValueError(f"{len(left)} weights of layers unknown here: {left[:5]}")
    if not found:
        raise ValueError("it holds no weights")
    budget = MAX_GROWTH * tree.size + MAX_EXTRA
    out: dict[str, np.ndarray] = {}
    for layer, weights in found:
        for leaf, path in weights.items():
            if path not in tree.datasets:
                raise ValueError(f"weight {path} is listed and missing")
            dataset = tree.datasets[path]
            budget -= 4 * math.prod(dataset.shape or ()) + dataset.nbytes
            if budget < 0:
                raise ValueError(
                    f"weight {path} {dataset.shape} is larger than the file"
                )
            try:
                name, array = _torch(leaf, _numbers(dataset))
            except ValueError as error:
                raise ValueError(f"weight {path} {dataset.shape}: {error}") from None
            if "pointwise_kernel" in weights:  # two layers in PyTorch
                name = f"{'depthwise' if leaf[0] == 'd' else 'pointwise'}.{name}"
            name = f"{layer}/{name}".replace("/", ".")
            if name in out:
                raise ValueError(f"two weights are called {name!r}")
            out[name] = arrays.widen(array)
    return out


def _numbers(dataset: Any) -> np.ndarray:
    if dataset.external or dataset.is_virtual:
        raise ValueError("its numbers lie in another file")
    if dataset.attrs.get("dtype") == "bfloat16" and dataset.dtype.itemsize == 2:
        return np.asarray(dataset[()]).view(ml_dtypes.bfloat16)  # HDF5 has no such type
    if dataset.shape is None or dataset.dtype.kind not in "fiub":
        raise ValueError(f"its elements are {dataset.dtype}, no numbers")
    return np.asarray(dataset[()])


def _torch(leaf: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """Return PyTorch's name and layout of a weight, given Keras'."""
    n = array.ndim
    match leaf:
        case "kernel" | "pointwise_kernel" if n >= 2:  # [..., I, O] -> [O, I, ...]
            return "weight", array.transpose(n - 1, n - 2, *range(n - 2))
        case "depthwise_kernel" if n >= 3:  # [..., C, m] -> [C * m, 1, ...]
            moved = array.transpose(n - 2, n - 1, *range(n - 2))
            C, m = moved.shape[:2]
            return "weight", moved.reshape(C * m, 1, *moved.shape[2:])
        case "alpha" if n and array.size == array.shape[-1]:  # [1, 1, C] -> [C]
            return "weight", array.reshape(-1)
        case "alpha":
            raise ValueError("PReLU has a slope per pixel; PyTorch has one per channel")
        case "gamma":
            return "weight", array
        case "beta" | "bias":
            return "bias", array
        case "moving_mean":
            return "running_mean", array
        case "moving_variance":
            return "running_var", array
    raise ValueError(f"no layout of PyTorch is known for {leaf!r} of {n} axes")
