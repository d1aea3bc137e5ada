"""Match by name: a port's rules turn our paths into another project's.

arrays, names, left = match(net, tensors, iresnet.PORTS["arcface_torch"])
"""

from __future__ import annotations

import re

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


def their_name(layer: Layer, suffix: str, port: Port) -> str:
    """Return what a port calls an array of a layer: suffix "weight", "bias", ..."""
    name = layer.path
    for pattern, replacement in port.names:
        name = re.sub(pattern, replacement, name)
    name = name.replace("#", str(layer.block))
    return ".".join(filter(None, [name.replace("/", "."), suffix]))


def match(
    net: Network, tensors: Tensors, port: Port
) -> tuple[dict[str, np.ndarray], dict[str, str], tuple[str, ...]]:
    """Match by a port's names, under whichever prefix most of them are found."""
    wanted = {
        their_name(layer, suffix, port): (path, layer)
        for layer in net.layers
        for suffix, path in layer.arrays.items()
    }
    prefix = _prefix(tensors, [*wanted, *port.constants])
    inside = {
        name.removeprefix(prefix): name for name in tensors if name.startswith(prefix)
    }
    wrong = []
    arrays, names = {}, {}
    for theirs, (path, layer) in wanted.items():
        if theirs not in inside:
            wrong.append(f"{prefix}{theirs} is missing (for {path})")
            continue
        array, shape = tensors[inside[theirs]], their_shape(net, path, layer, port)
        if array.shape != shape:
            wrong.append(f"{prefix}{theirs} is {array.shape}, wanted {shape} ({path})")
            continue
        arrays[path], names[path] = to_ours(array, path, layer, port), inside[theirs]
    for theirs, value in port.constants.items():
        if theirs in inside and np.any(tensors[inside[theirs]] != value):
            wrong.append(f"{prefix}{theirs} should be {value} throughout, and is not")
    skipped = [n for n in inside if n in port.constants or port.skips(n)]
    extra = inside.keys() - wanted.keys() - set(skipped)
    wrong += [f"{inside[n]} is left over" for n in inside if n in extra]
    if wrong:
        raise MismatchError("these tensors are not that network's", wrong)
    outside = [name for name in tensors if not name.startswith(prefix)]
    passed = [inside[n] for n in skipped if n not in port.constants]
    return arrays, names, (*outside, *passed)


def _prefix(tensors: Tensors, wanted: list[str]) -> str:
    """Return what stands before most of the wanted names ("module.", "", ...)."""
    votes: dict[str, int] = {}
    names = set(wanted)
    for name in tensors:
        parts = name.split(".")
        for i in range(len(parts)):
            if ".".join(parts[i:]) in names:
                prefix = "".join(f"{p}." for p in parts[:i])
                votes[prefix] = votes.get(prefix, 0) + 1
    # of equals the shortest: "features.weight" is found in "x.features.weight" too
    return max(votes, key=lambda p: (votes[p], -len(p)), default="")
