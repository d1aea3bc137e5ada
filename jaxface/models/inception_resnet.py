"""Inception-ResNet-v1, the network behind the name FaceNet in most programs.

Three kinds of residual blocks whose branches see more and more pixels, each ending in
a 1x1 convolution whose result is scaled down before it is added. As in
davidsandberg/facenet and timesler/facenet-pytorch, names included. Source: Szegedy et
al., "Inception-v4, Inception-ResNet and the Impact of Residual Connections on
Learning", AAAI 2017, section 3.2 and figures 10 to 15.

    model = inception_resnet.Model(dtype="bfloat16")
    variables = model.init(key, images)                       # [B, 160, 160, 3]
    embedding = model.apply(variables, images)                # [B, 512] float32
    small = inception_resnet.Model(stages=(1, 1, 1), width=0.25, dim=128)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxface.models import common, normalize
from jaxface.types import Port, Published

# facenet's, for every layer; facenet-pytorch has torch's own and expects to load
_init = nn.initializers.glorot_uniform()
_SMALLEST = 75  # pixels that leave one in the last map

# A layer: (channels, (kernel height, width), stride). One of stride 2 has no padding.
Layer = tuple[int, tuple[int, int], int]


class _ConvBlock(nn.Module):
    """Convolution, BatchNorm, ReLU."""

    features: int
    kernel: tuple[int, int]
    stride: int
    pad: bool
    norm: Callable[..., normalize.BatchNorm]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = nn.Conv(
            self.features,
            self.kernel,
            strides=(self.stride, self.stride),
            padding=[(k // 2 * self.pad,) * 2 for k in self.kernel],
            use_bias=False,
            dtype=self.dtype,
            param_dtype=common.wide(self.dtype),
            kernel_init=_init,
            name="conv",
        )
        return nn.relu(self.norm(name="bn")(conv(x)))


def _branch(x: jax.Array, i: int, layers: tuple[Layer, ...], block: Any) -> jax.Array:
    """Run branch i; its layers are numbered where there are several."""
    for j, (features, kernel, stride) in enumerate(layers):
        name = f"branch{i}_{j}" if len(layers) > 1 else f"branch{i}"
        x = block(features, kernel, stride, stride == 1, name=name)(x)
    return x


class _Residual(nn.Module):
    """x + scale times what the branches say together, then ReLU (not in the last)."""

    branches: tuple[tuple[Layer, ...], ...]
    scale: float
    block: Callable[..., nn.Module]
    dtype: Any
    relu: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        parts = [_branch(x, i, b, self.block) for i, b in enumerate(self.branches)]
        up = nn.Conv(
            x.shape[-1],
            (1, 1),
            dtype=self.dtype,
            param_dtype=common.wide(self.dtype),
            kernel_init=_init,
            name="conv2d",
        )
        x = x + self.scale * up(jnp.concatenate(parts, -1))
        return nn.relu(x) if self.relu else x


class _Reduction(nn.Module):
    """Halve the map: branches that end in stride 2, and a max-pool, side by side."""

    branches: tuple[tuple[Layer, ...], ...]
    block: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        parts = [_branch(x, i, b, self.block) for i, b in enumerate(self.branches)]
        return jnp.concatenate([*parts, _max_pool(x)], -1)


def _max_pool(x: jax.Array) -> jax.Array:
    """Keep the largest of 3x3 pixels, every second way both ways, without padding.

    Slices instead of a window, whose gradient is slow on XLA:CPU. Ties share it;
    all that is pooled here comes from a ReLU, where ties are zeros without gradient.
    """
    _, H, W, _ = x.shape
    h, w = (H - 1) // 2, (W - 1) // 2
    rows = [x[:, i : i + 2 * h - 1 : 2] for i in range(3)]
    x = functools.reduce(jnp.maximum, rows)
    columns = [x[:, :, i : i + 2 * w - 1 : 2] for i in range(3)]
    return functools.reduce(jnp.maximum, columns)


class Model(nn.Module):
    """Inception-ResNet-v1.

    Attributes:
        stages: residual blocks of the three kinds; one more of the last kind, without
            ReLU, always follows.
        width: factor on all channels but the embedding's; no layer gets less than 4.
        dim: D, the embedding size.
        dropout: rate before the dense layer, 0 <= rate < 1.
        remat: recompute blocks in the backward pass, for less memory;
            or a key of `common.POLICIES`.
        axis: mesh axis name(s) BatchNorm is synced over in training; None: local.
        dtype: compute dtype; parameters, statistics and embeddings are float32.
        size: pixels of the images it is made for, per side or (H, W); any from 75 on
            works, with the same weights.
        color: channel order of the images.
        mean: what was taken off their pixels 0 .. 255.
        std: and what the rest was divided by.
    """

    stages: tuple[int, int, int] = (5, 10, 5)
    width: float = 1.0
    dim: int = 512
    dropout: float = 0.6
    remat: bool | str = False
    axis: common.Axis = None
    dtype: Any = jnp.float32
    size: int | tuple[int, int] = 160
    color: str = "rgb"
    mean: common.Pixels = 127.5
    std: common.Pixels = 128.0

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, keys: jax.Array | None = None
    ) -> jax.Array:
        """Embed images.

        Args:
            x: [B, H, W, 3], normalised as `color`, `mean` and `std` say.
            train: use and update batch statistics, drop values.
            keys: [B] typed PRNG keys, one per example; needed where dropout > 0.

        Returns:
            [B, D] float32, not normalised.

        Raises:
            ValueError: images below 75 pixels, dropout out of range or without keys.
        """
        if min(x.shape[1:3]) < _SMALLEST:
            raise ValueError(
                f"images of {x.shape[1]} x {x.shape[2]} pixels; inception_resnet needs"
                f" {_SMALLEST} a side, so enlarge them"
            )
        norm = functools.partial(
            common.batch_norm,
            train=train,
            axis=self.axis,
            dtype=self.dtype,
            epsilon=1e-3,
        )
        block = functools.partial(_ConvBlock, norm=norm, dtype=self.dtype)
        x = self._trunk(self._stem(x, block), block)
        full = common.wide(self.dtype)
        x = x.astype(full).mean((1, 2))  # [B, C]
        x = common.Dropout(self.dropout, name="dropout")(x, train=train, keys=keys)
        dense = nn.Dense(
            self.dim,
            use_bias=False,
            dtype=full,
            param_dtype=full,
            kernel_init=_init,
            name="last_linear",
        )
        return norm(dtype=full, name="last_bn")(dense(x))

    def _stem(self, x: jax.Array, block: Any) -> jax.Array:
        c = self._channels
        x = block(c(32), (3, 3), 2, pad=False, name="conv2d_1a")(x)
        x = block(c(32), (3, 3), 1, pad=False, name="conv2d_2a")(x)
        x = _max_pool(block(c(64), (3, 3), 1, pad=True, name="conv2d_2b")(x))
        x = block(c(80), (1, 1), 1, pad=False, name="conv2d_3b")(x)
        x = block(c(192), (3, 3), 1, pad=False, name="conv2d_4a")(x)
        return block(c(256), (3, 3), 2, pad=False, name="conv2d_4b")(x)

    def _trunk(self, x: jax.Array, block: Any) -> jax.Array:
        residual = functools.partial(
            common.remat(_Residual, self.remat),
            block=block,
            dtype=self.dtype,
        )
        reduction = common.remat(_Reduction, self.remat)
        kinds = (
            (self._wide(32), 0.17),
            (self._cross(128, 7), 0.10),
            (self._cross(192, 3), 0.20),
        )
        names = ("mixed_6a", "mixed_7a")
        reductions = (self._mixed_6a(), self._mixed_7a())
        for i, (branches, scale) in enumerate(kinds):
            for j in range(self.stages[i]):
                x = residual(branches, scale, name=f"repeat_{i + 1}_{j}")(x)
            if i < len(names):
                x = reduction(reductions[i], block, name=names[i])(x)
        branches, _ = kinds[-1]
        return residual(branches, 1.0, relu=False, name="block8")(x)

    # What the branches hold: figures 10 to 15 of the paper.

    def _wide(self, n: int) -> tuple[tuple[Layer, ...], ...]:
        one, three = self._layer(n, 1), self._layer(n, 3)
        return (one,), (one, three), (one, three, three)

    def _cross(self, n: int, k: int) -> tuple[tuple[Layer, ...], ...]:
        one = self._layer(n, 1)
        c = self._channels(n)
        return (one,), (one, (c, (1, k), 1), (c, (k, 1), 1))

    def _mixed_6a(self) -> tuple[tuple[Layer, ...], ...]:
        layer = self._layer
        return (
            (layer(384, 3, 2),),
            (layer(192, 1), layer(192, 3), layer(256, 3, 2)),
        )

    def _mixed_7a(self) -> tuple[tuple[Layer, ...], ...]:
        layer = self._layer
        one, last = layer(256, 1), layer(256, 3, 2)
        return (one, layer(384, 3, 2)), (one, last), (one, layer(256, 3), last)

    def _layer(self, n: int, kernel: int, stride: int = 1) -> Layer:
        return self._channels(n), (kernel, kernel), stride

    def _channels(self, n: int) -> int:
        return max(4, round(n * self.width))


tiny = functools.partial(Model, stages=(1, 1, 1), width=0.03125, dim=8, size=75)

PUBLISHED = {
    "Model": Published(
        23.469,
        1423.0,
        "openvinotoolkit/open_model_zoo models/public/facenet-20180408-102900"
        "/README.md, two FLOPs per multiply-add",
    ),
}

PORTS = {
    "facenet_pytorch": Port(
        names=(
            (r"^repeat_(\d)_(\d+)", r"repeat_\1.\2"),
            (r"branch(\d)_(\d)", r"branch\1.\2"),
        ),
        skip=r"^logits\.",
        std=128.0,
    ),
}
