"""Weights of other projects in, and back out: every array used once, or an error.

The one law: nothing is guessed silently. Tensors are matched by the names a `Port` of
the network's file gives, or, where no port fits, by the order in which layers run and
by their shapes; either way each tensor is used once, each of our arrays is filled, and
what differs is listed. Files are read by `jaxface.foreign`, which runs nothing.

    found = from_tensors("iresnet.r50", foreign.read("backbone.pth"))
    found.variables                     # {"params": ..., "batch_stats": ...}
    found.line                          # "iresnet.r50(color='bgr', ...)"
    tensors = to_torch(found.line, found.variables, port="arcface_torch")
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxface import spec
from jaxface.convert import names, order
from jaxface.convert.network import (
    MismatchError,
    Network,
    Tensors,
    family_of,
    flatten,
    to_theirs,
)
from jaxface.types import Port

_COUNTER = "num_batches_tracked"  # torch's, of no use to anybody


@dataclasses.dataclass(frozen=True)
class Converted:
    """What a file became.

    Attributes:
        line: the model's line, completed by the colour order and value range of its
            images, so that a saved config says them.
        variables: {"params", "batch_stats"}, NumPy arrays in our layout.
        how: which port's names, or "order".
        origin: our path -> the tensor it was filled from.
        left: names in the file that are no part of the network (a classifier).
        folded: whether BatchNorm had been folded into the convolutions.
    """

    line: str
    variables: dict[str, Any]
    how: str
    origin: dict[str, str]
    left: tuple[str, ...]
    folded: bool


def from_tensors(
    line: str, tensors: Tensors, *, port: str = "", channels_last: bool = False
) -> Converted:
    """Fill a network from a file's tensors.

    Args:
        line: the model, such as "mobilefacenet.paper(dim=192)".
        tensors: name -> array as torch lays it out, in the file's order.
        port: whose names they are, a key of the family's PORTS; "" tries each of
            them and then the order of the layers; "order" tries only that.
        channels_last: by order, flattened pixels lie as ours do: a file of Keras's.

    Raises:
        KeyError: an unknown model or port.
        ValueError: several ports fit that disagree about colour or value range.
        MismatchError: what is missing, left over or of another shape, by name.
    """
    family, call = family_of(line)
    net = Network(line)
    ports = family.PORTS
    if port not in ("", "order", *ports):
        raise spec.unknown("port", port, [*ports, "order"])
    tensors = {k: v for k, v in tensors.items() if not k.endswith(_COUNTER)}
    failures: list[MismatchError] = []
    fits: dict[str, Converted] = {}
    for name in ports if not port else {port} & ports.keys():
        try:
            arrays, origin, left = names.match(net, tensors, ports[name])
        except MismatchError as error:
            failures.append(error)
            continue
        told = _complete(call, net.model, ports[name])
        fits[name] = Converted(told, net.tree(arrays), name, origin, left, folded=False)
    if fits:
        return _only(fits)
    nearest = min(failures, key=lambda error: len(error.wrong), default=None)
    if nearest and (port or len(nearest.wrong) < len(net.shapes) / 2):
        raise nearest  # names that are known, but not all of them
    arrays, origin, folded = order.match(net, tensors, channels_last=channels_last)
    return Converted(line, net.tree(arrays), "order", origin, (), folded)


def variants(line: str, tensors: Tensors, *, port: str = "") -> list[str]:
    """Return the lines of the model's family, without arguments, that tensors fit."""
    family, call = family_of(line)
    fits = []
    for name in spec.public(family):
        other = f"{call.name.partition('.')[0]}.{name}"
        try:
            from_tensors(other, tensors, port=port)
        except MismatchError:
            continue
        except ValueError:  # it fits, and a port must be given
            pass
        fits.append(other)
    return fits


def _only(fits: Mapping[str, Converted]) -> Converted:
    """Return the one that fits; several must agree about the images."""
    if len({found.line for found in fits.values()}) > 1:
        said = "; ".join(f"{name}: {found.line}" for name, found in fits.items())
        raise ValueError(
            f"these names are used by projects whose images differ ({said}); say"
            " which with port"
        )
    return next(iter(fits.values()))


def _complete(call: spec.Call, model: Any, port: Port) -> str:
    """Return the model's line with the images the port's project trained on."""
    given = dict(call.kwargs)
    for key in ("color", "mean", "std"):
        if getattr(model, key) != getattr(port, key):
            given.setdefault(key, getattr(port, key))
    return str(dataclasses.replace(call, kwargs=tuple(given.items())))


def to_torch(line: str, variables: Mapping[str, Any], *, port: str) -> dict[str, Any]:
    """Return a network's arrays as the project of that port names and lays them out.

    Args:
        line: the model.
        variables: {"params", "batch_stats"}.
        port: a key of the family's PORTS.
    """
    family, _ = family_of(line)
    if port not in family.PORTS:
        raise spec.unknown("port", port, family.PORTS)
    rules, net = family.PORTS[port], Network(line)
    ours = flatten(variables)
    out: dict[str, Any] = {}
    for layer in net.layers:
        for suffix, path in layer.arrays.items():
            array = to_theirs(np.asarray(ours[path]), path, layer, rules)
            out[names.their_name(layer, suffix, rules)] = array
        if "running_mean" in layer.arrays:
            out[names.their_name(layer, _COUNTER, rules)] = np.zeros((), np.int64)
    for name, value in rules.constants.items():
        like = next(v for k, v in out.items() if k.startswith(name.rpartition(".")[0]))
        out[name] = np.full(like.shape, value, like.dtype)
    return out
