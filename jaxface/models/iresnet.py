"""IResNet, the backbone of ArcFace: 18, 34, 50, 100 and 200 layers.

ResNet with a 3x3 stem of stride 1, BatchNorm before the first and after every
convolution of a block, PReLU inside, and a dense head over all pixels instead of
pooling. Layer for layer arcface_torch's `iresnet`, names included. Source: Duta et
al., "Improved Residual Networks", ICPR 2020; Deng et al., "ArcFace", CVPR 2019.

    model = iresnet.r50(dtype="bfloat16", axis="data")
    variables = model.init(key, images)                       # [B, 112, 112, 3]
    embedding = model.apply(variables, images)                # [B, 512] float32
    small = iresnet.Model(stages=(1, 1, 1, 1), widths=(16, 32, 64, 128), dim=128)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxface.models import common

_init = nn.initializers.normal(0.1)


class _Block(nn.Module):
    """BN, conv, BN, act, conv of stride s, BN, plus the input or its projection."""

    features: int
    stride: int
    activation: str
    conv: Callable[..., nn.Conv]
    norm: Callable[..., nn.BatchNorm]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.norm(name="bn1")(x)
        y = self.conv(self.features, name="conv1")(y)
        y = self.norm(name="bn2")(y)
        y = common.activate(y, self.activation, name="prelu")
        y = self.conv(self.features, stride=self.stride, name="conv2")(y)
        y = self.norm(name="bn3")(y)
        if self.stride != 1 or x.shape[-1] != self.features:
            shrink = self.conv(
                self.features, kernel=1, stride=self.stride, name="downsample_conv"
            )
            x = self.norm(name="downsample_bn")(shrink(x))
        return x + y


class Model(nn.Module):
    """IResNet.

    Attributes:
        stages: blocks per stage; every stage halves the image.
        widths: channels per stage; the stem has the first.
        stem_stride: 1 as published; 2 makes a quarter of the work, for CPUs.
        dim: D, the embedding size.
        activation: "prelu", "relu" or "relu6".
        dropout: rate before the dense layer, 0 <= rate < 1.
        remat: recompute blocks in the backward pass: less memory, a third more time.
        axis: mesh axis name(s) BatchNorm is synced over in training; None: local.
        dtype: compute dtype; parameters, statistics and embeddings are float32.
        size: pixels per side of the images it is made for; any size works, and the
            dense layer takes its shape from the images `init` sees.
    """

    stages: tuple[int, ...] = (3, 4, 14, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stem_stride: int = 1
    dim: int = 512
    activation: str = "prelu"
    dropout: float = 0.0
    remat: bool = False
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
            train: use and update batch statistics, drop values.
            keys: [B] typed PRNG keys, one per example; needed where dropout > 0.

        Returns:
            [B, D] float32, not normalised.

        Raises:
            ValueError: stages and widths of different lengths, an unknown
                activation, dropout out of range or without keys.
        """
        if len(self.stages) != len(self.widths):
            raise ValueError(
                f"stages {self.stages} and widths {self.widths}: wanted one width"
                " per stage"
            )
        conv = functools.partial(common.conv, dtype=self.dtype, init=_init)
        norm = functools.partial(
            common.batch_norm, train=train, axis=self.axis, dtype=self.dtype
        )
        block = nn.remat(_Block) if self.remat else _Block
        x = conv(self.widths[0], stride=self.stem_stride, name="conv1")(x)
        x = norm(name="bn1")(x)
        x = common.activate(x, self.activation, name="prelu")
        stages = zip(self.stages, self.widths, strict=True)
        for i, (blocks, width) in enumerate(stages, 1):
            for j in range(blocks):
                x = block(
                    features=width,
                    stride=1 if j else 2,
                    activation=self.activation,
                    conv=conv,
                    norm=norm,
                    name=f"layer{i}_{j}",
                )(x)
        head = common.E(
            dim=self.dim, norm=norm, dropout=self.dropout, dtype=self.dtype, name="head"
        )
        return head(x, train=train, keys=keys)


r18 = functools.partial(Model, stages=(2, 2, 2, 2))
r34 = functools.partial(Model, stages=(3, 4, 6, 3))
r50 = functools.partial(Model, stages=(3, 4, 14, 3))
r100 = functools.partial(Model, stages=(3, 13, 30, 3))
r200 = functools.partial(Model, stages=(6, 26, 60, 6))
