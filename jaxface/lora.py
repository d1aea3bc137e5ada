"""Low-rank adapters on dense and convolution kernels: LoRA, Hu et al. 2021.

The law: the network is the plain one at the weights `merge` gives, so an adapted and
a merged network are equal, and a new adapter changes nothing. As in eq. (3), for
x @ W, W becomes W + alpha/r A B: A [in, r] is drawn, B [r, out] starts at zero. A
convolution's kernel [kh, kw, in, out] counts as [kh kw in, out].

The weights are merged inside the step, which is right for every layer kind and costs
the backward pass of the full kernel; what is saved is optimizer memory, reduction over
devices and, for export, everything but A and B. The base's running statistics still
follow the data, unless the step is made with `frozen_stats`.

    model = Model(iresnet.r50(), rank=8, where="layer4.*kernel$")
    variables = model.init(key, images)  # {"params": {"base", "lora"}, "batch_stats"}
    plain = model.merge(variables["params"])  # what iresnet.r50() takes
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

FROZEN = "^params/base/"  # the paths that adapters stand in for


@dataclasses.dataclass(frozen=True)
class Model:
    """A network with adapters, used as the Linen module it wraps.

    Its other attributes (dim, color, mean, std, ...) are those of `base`. Depthwise
    kernels [kh, kw, 1, C] have no adapter: there is no rank to lower.

    Attributes:
        base: the network.
        rank: r of every adapter, at least 1.
        alpha: the factor of A B is alpha / r.
        where: regex over a kernel's path within `base`, "layer1_0/conv1/kernel".
    """

    base: Any
    rank: int = 8
    alpha: float = 16.0
    where: str = "kernel$"

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0:
            raise ValueError(
                f"lora has rank {self.rank} and alpha {self.alpha}; wanted a rank of"
                " 1 or more and an alpha above 0"
            )
        try:
            re.compile(self.where)
        except re.error as error:
            raise ValueError(f"lora's where={self.where!r}: {error}") from None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "base":  # asked for while unpickling
            raise AttributeError(name)
        return getattr(self.base, name)

    def clone(self, **changes: Any) -> Model:
        """Return a copy whose base has other attributes, as Linen's `clone` does."""
        return dataclasses.replace(self, base=self.base.clone(**changes))

    def init(self, key: jax.Array, images: jax.Array) -> dict[str, Any]:
        """Draw {"params": {"base", "lora"}, ...}; A is N(0, 1/in), B is zero.

        Raises:
            ValueError: `where` matches no kernel.
        """
        base_key, adapter_key = jax.random.split(key)
        variables = self.base.init(base_key, images)
        flat = traverse_util.flatten_dict(variables["params"])
        paths = [path for path in flat if self._adapts("/".join(path), flat[path])]
        if not paths:
            kernels = ["/".join(path) for path in flat if path[-1] == "kernel"]
            raise ValueError(
                f"lora's where={self.where!r} matches no dense or convolution kernel;"
                f" there are {', '.join(kernels[:8])}"
            )
        lora: dict[tuple[str, ...], jax.Array] = {}
        keys = jax.random.split(adapter_key, len(paths))
        for path, one in zip(paths, keys, strict=True):
            w = flat[path]
            fan_in = math.prod(w.shape[:-1])
            a = jax.random.normal(one, (fan_in, self.rank), w.dtype)
            lora[*path, "a"] = a / math.sqrt(fan_in)
            lora[*path, "b"] = jnp.zeros((self.rank, w.shape[-1]), w.dtype)
        adapters = traverse_util.unflatten_dict(lora)
        return {**variables, "params": {"base": variables["params"], "lora": adapters}}

    def init_with_output(self, key: jax.Array, images: jax.Array) -> Any:
        """Return (embeddings, variables), as Linen's does."""
        variables = self.init(key, images)
        return self.apply(variables, images), variables

    def apply(
        self,
        variables: Any,
        images: jax.Array,
        *,
        train: bool = False,
        keys: jax.Array | None = None,
        mutable: Any = False,
    ) -> Any:
        """Apply the base at the merged weights; the arguments are Linen's."""
        variables = {**variables, "params": self.merge(variables["params"])}
        return self.base.apply(
            variables, images, train=train, keys=keys, mutable=mutable
        )

    def merge(self, params: Any) -> dict[str, Any]:
        """Return the base's own parameters with the adapters added in."""
        base = traverse_util.flatten_dict(params["base"])
        lora = traverse_util.flatten_dict(params["lora"])
        for *path, last in list(lora):
            if last == "a":
                w = base[tuple(path)]
                a, b = lora[*path, "a"], lora[*path, "b"]
                change = jnp.matmul(a, b, precision="highest").reshape(w.shape)
                base[tuple(path)] = w + self.alpha / self.rank * change  # eq. (3)
        return traverse_util.unflatten_dict(base)

    def _adapts(self, path: str, w: jax.Array) -> bool:
        matrix = w.ndim in (2, 4) and w.shape[-2] > 1
        return matrix and re.search(self.where, path) is not None
