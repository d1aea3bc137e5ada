"""Images in, embeddings out: on all devices, in padded batches, compiled once.

The field's protocol adds the embedding of the mirrored image: `flip_sum`. The raw
output serves networks that end in a logit. Length is kept, for it tells of quality;
protocols take unit length themselves.

    passes = make_passes(model, mesh=mesh, axis="data", flip=True)
    network = Network(passes, variables, mesh, "data", batches, span)
    network(source)                             # [len(source), D] float32
    vectors, labels = whole(network.rows(source))
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxface import parallel
from jaxface.models import common
from jaxface.types import Batch, Source

Forward = Callable[..., jax.Array]
Rows = tuple[np.ndarray, np.ndarray]  # (embeddings, labels) of some images


class Passes(NamedTuple):
    """The ways through a network; made once, so that each is compiled once.

    Attributes:
        plain: (variables, images) -> [B, D], not compiled, to be differentiated.
        compiled: the same; images split over the mesh, results on every device.
        dropped: (variables, images, numbers [B] uint32) -> [B, D], compiled, with
            dropout by these numbers.
        drops: (variables, images) -> whether there is dropout; nothing is computed.
    """

    plain: Forward
    compiled: Forward
    dropped: Forward
    drops: Callable[[Any, jax.Array], bool]


def make_passes(model: Any, *, mesh: Mesh, axis: parallel.Axis, flip: bool) -> Passes:
    """Make the ways through a Linen module; `flip` is for `flip_sum`."""
    how = flip_sum if flip else lambda forward: forward

    def dropped(variables: Any, images: jax.Array, numbers: jax.Array) -> jax.Array:
        keys = jax.vmap(jax.random.key)(numbers)

        def on(call: Any, args: Any, given: dict[str, Any], context: Any) -> Any:
            # dropout alone: `train` of the whole network would change BatchNorm too
            if isinstance(context.module, common.Dropout):
                given = {**given, "train": True, "keys": keys}
            return call(*args, **given)

        with nn.intercept_methods(on):
            return how(model.apply)(variables, images)

    def drops(variables: Any, images: jax.Array) -> bool:
        rates = [0.0]

        def look(call: Any, args: Any, given: dict[str, Any], context: Any) -> Any:
            if isinstance(context.module, common.Dropout):
                rates.append(context.module.rate)
            return call(*args, **given)

        # a function of its own: of one it knows, JAX recalls the shapes and calls none
        def fresh(variables: Any, images: jax.Array) -> jax.Array:
            return model.apply(variables, images)

        with nn.intercept_methods(look):
            jax.eval_shape(fresh, variables, images)
        return max(rates) > 0

    plain = how(model.apply)
    compiled = functools.partial(compile_forward, mesh=mesh, axis=axis)
    return Passes(plain, compiled(plain), compiled(dropped, split=2), drops)


def flip_sum(forward: Forward) -> Forward:
    """Return f(x) + f(mirrored x); images are [B, H, W, 3]."""

    def both(variables: Any, images: jax.Array) -> jax.Array:
        return forward(variables, images) + forward(variables, images[:, :, ::-1])

    return both


def compile_forward(
    forward: Forward, *, mesh: Mesh, axis: parallel.Axis, split: int = 1
) -> Forward:
    """Compile a forward pass: images split over the mesh, results on every device.

    Args:
        forward: (variables, `split` arrays [B, ...]) -> [B, D].
        mesh: the devices.
        axis: mesh axis name(s) of the batch.
        split: how many arrays are split: the images, and what goes with each.
    """
    whole, parts = NamedSharding(mesh, P()), (NamedSharding(mesh, P(axis)),) * split
    return jax.jit(forward, in_shardings=(whole, *parts), out_shardings=whole)


@dataclasses.dataclass(frozen=True)
class Network:
    """A network with its weights: the `types.Network` that evaluators are handed.

    Attributes:
        passes: of the network.
        variables: its weights, on the mesh.
        mesh: the devices.
        axis: mesh axis name(s) of the batch.
        batches: (source, line of ops that degrade or "") -> batches in order, with
            image [B, H, W, 3], label [B] and mask [B]; B divides by the devices.
        span: what grey levels 0 and 255 are to the network, [3] float32 each.
    """

    passes: Passes
    variables: Any
    mesh: Mesh
    axis: parallel.Axis
    batches: Callable[[Source, str], Iterable[Batch]]
    span: tuple[np.ndarray, np.ndarray]

    @property
    def features(self) -> Callable[[jax.Array], jax.Array]:
        """Images [B, H, W, 3] float32 -> [B, D]; to be differentiated, and a pytree."""
        return jax.tree_util.Partial(self.passes.plain, self.variables)

    def __call__(self, source: Source, /) -> np.ndarray:
        """Return [len(source), D] float32, of any length."""
        return whole(self.rows(source))[0]

    def degraded(self, line: str) -> Callable[[Source], np.ndarray]:
        """Return the same, of images that ops such as "blur(2, 2)" went over."""
        return lambda source: whole(self.rows(source, line))[0]

    def rows(self, source: Source, line: str = "") -> Iterator[Rows]:
        """Yield (embeddings [m, D] float32, labels [m] int32), batch by batch."""
        begun: list[tuple[jax.Array, Batch]] = []
        for batch in self.batches(source, line):
            images = self._placed(batch["image"])
            begun.append((self.passes.compiled(self.variables, images), batch))
            if len(begun) > 1:  # one ahead, so that the devices never wait for us
                yield _kept(*begun.pop(0))
        for last in begun:
            yield _kept(*last)

    def inputs(self, source: Source, /) -> Iterator[tuple[jax.Array, np.ndarray]]:
        """Yield (images [B, H, W, 3] on the devices, mask [B]), in order."""
        for batch in self.batches(source, ""):
            yield self._placed(batch["image"]), batch["mask"]

    def vectors(
        self, images: jax.Array, numbers: np.ndarray | None = None, /
    ) -> np.ndarray:
        """Embed a batch of `inputs`, [B, D]; with numbers [B] dropout is on."""
        if numbers is None:
            return _here(self.passes.compiled(self.variables, images))
        drawn = self._placed(numbers.astype(np.uint32))
        return _here(self.passes.dropped(self.variables, images, drawn))

    def drops(self, images: jax.Array, /) -> bool:
        """Return whether the network has dropout."""
        return self.passes.drops(self.variables, images)

    def _placed(self, x: np.ndarray) -> jax.Array:
        # Every process reads the whole batch and places its own part of it.
        return jax.device_put(x, NamedSharding(self.mesh, P(self.axis)))


def whole(rows: Iterable[Rows]) -> Rows:
    """Return (embeddings [N, D], labels [N]) of all batches."""
    e, label = zip(*rows, strict=True)
    return np.concatenate(e), np.concatenate(label)


def _kept(e: jax.Array, batch: Batch) -> Rows:
    return _here(e)[batch["mask"]], batch["label"][batch["mask"]]


def _here(e: jax.Array) -> np.ndarray:
    return np.asarray(e.addressable_data(0)).astype(np.float32)
