"""MobileFaceNet: inverted bottlenecks with a depthwise head, about a million weights.

Table 1 of Chen et al., "MobileFaceNets", CCBR 2018 (arXiv:1804.07573), and the two
wider ones that arcface_torch trains as `mbf` and `mbf_large`, layer for layer.

    model = mobilefacenet.mbf(activation="relu6")
    variables = model.init(key, images)              # [B, 112, 112, 3]
    embedding = model.apply(variables, images)       # [B, 512] float32
    tiny = mobilefacenet.Model(blocks=(1, 1, 1, 1), width=0.25, dim=128)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxface.models import common


class _ConvBlock(nn.Module):
    """A layer, BatchNorm, activation ("" leaves the result linear)."""

    layer: Callable[..., nn.Module]
    norm: Callable[..., nn.BatchNorm]
    activation: str = ""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.norm(name="bn")(self.layer(name="conv")(x))
        if not self.activation:
            return x
        return common.activate(x, self.activation, name="prelu")


class _Bottleneck(nn.Module):
    """1x1 to `inner` channels, depthwise 3x3 of stride s, linear 1x1 to `features`."""

    inner: int
    features: int
    stride: int
    residual: bool
    activation: str
    norm: Callable[..., nn.BatchNorm]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        layer = functools.partial
        conv = layer(common.conv, kernel=1, dtype=self.dtype)
        shift = layer(common.Depthwise, stride=self.stride, dtype=self.dtype)
        norm, act = self.norm, self.activation
        y = _ConvBlock(layer(conv, self.inner), norm, act, name="expand")(x)
        y = _ConvBlock(shift, norm, act, name="depthwise")(y)
        y = _ConvBlock(layer(conv, self.features), norm, name="project")(y)
        return x + y if self.residual else y


class _GDC(nn.Module):
    """The head: a weighted sum over pixels per channel, then dense.

    The global depthwise kernel takes the size of the feature map (7x7 at 112 px).

    Attributes:
        dim: D, the embedding size.
        norm: `common.batch_norm` with train and axis bound.
        dtype: compute dtype up to the dense layer, which runs in float32.
    """

    dim: int
    norm: Callable[..., nn.BatchNorm]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map features [B, H, W, C] to embeddings [B, D] float32."""
        _, H, W, C = x.shape
        full = common.wide(self.dtype)
        kernel = self.param("kernel", common.kaiming_group, (H, W, 1, C), full)
        x = common.depthwise(x.astype(self.dtype), kernel.astype(self.dtype))
        x = self.norm(dtype=self.dtype, name="bn")(x).reshape(-1, C)
        dense = nn.Dense(
            self.dim,
            use_bias=False,
            dtype=full,
            param_dtype=full,
            kernel_init=common.kaiming_out,
            name="fc",
        )
        return self.norm(dtype=full, name="features")(dense(x))


class Model(nn.Module):
    """MobileFaceNet.

    Attributes:
        blocks: layers before, and residual bottlenecks after, each of the three
            stride-2 bottlenecks.
        scale: factor on the trunk's channels alone, as in arcface_torch: bottlenecks
            keep 128, 256 and 512 inner channels, whatever the trunk has.
        width: factor on all channels but the embedding's, rounded to multiples of 8.
        dim: D, the embedding size.
        activation: "prelu", "relu" or "relu6".
        axis: mesh axis name(s) BatchNorm is synced over in training; None: local.
        dtype: compute dtype; parameters, statistics and embeddings are float32.
        size: pixels per side of the images it is made for; any size works, and the
            head takes its shape from the images `init` sees.
    """

    blocks: tuple[int, int, int, int] = (1, 4, 6, 2)
    scale: int = 1
    width: float = 1.0
    dim: int = 512
    activation: str = "prelu"
    axis: common.Axis = None
    dtype: Any = jnp.float32
    size: int = 112

    color = "rgb"
    mean = 127.5
    std = 127.5

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, keys: jax.Array | None = None
    ) -> jax.Array:
        """Embed images.

        Args:
            x: [B, H, W, 3], rgb, within [-1, 1].
            train: use and update batch statistics.
            keys: [B] typed PRNG keys; taken for the contract, nothing is drawn.

        Returns:
            [B, D] float32, not normalised.

        Raises:
            ValueError: an unknown activation.
        """
        norm = functools.partial(
            common.batch_norm, train=train, axis=self.axis, dtype=self.dtype
        )
        block = functools.partial(_ConvBlock, norm=norm, activation=self.activation)
        bottleneck = functools.partial(
            _Bottleneck, activation=self.activation, norm=norm, dtype=self.dtype
        )
        trunk = self._channels(64) * self.scale

        def stage(x: jax.Array, i: int, inner: int) -> jax.Array:
            for j in range(self.blocks[i]):
                x = bottleneck(
                    inner, x.shape[-1], stride=1, residual=True, name=f"stage{i}_{j}"
                )(x)
            return x

        layer = functools.partial
        conv = layer(common.conv, dtype=self.dtype)
        x = block(layer(conv, trunk, stride=2), name="stem")(x)
        if self.blocks[0] == 1:
            # arcface_torch keeps 64 groups on a wider trunk: `scale` channels each
            grouped = layer(common.Depthwise, group=self.scale, dtype=self.dtype)
            x = block(grouped, name="stage0")(x)
        else:
            x = stage(x, 0, self._channels(128))
        for i, (down, features, inner) in enumerate(
            ((128, trunk, 128), (256, 2 * trunk, 256), (512, 2 * trunk, 256)), 1
        ):
            x = bottleneck(
                self._channels(down),
                features,
                stride=2,
                residual=False,
                name=f"down{i}",
            )(x)
            x = stage(x, i, self._channels(inner))
        x = block(layer(conv, self._channels(512), kernel=1), name="conv_sep")(x)
        return _GDC(dim=self.dim, norm=norm, dtype=self.dtype, name="head")(x)

    def _channels(self, n: int) -> int:
        return max(8, round(n * self.width / 8) * 8)


paper = functools.partial(Model, dim=128)
mbf = functools.partial(Model, scale=2)
mbf_large = functools.partial(Model, blocks=(2, 8, 12, 4), scale=4)
