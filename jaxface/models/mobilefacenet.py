"""MobileFaceNet: inverted bottlenecks with a depthwise head, about a million weights.

Table 1 of Chen et al., "MobileFaceNets", CCBR 2018 (arXiv:1804.07573), and the two
wider ones that arcface_torch trains as `mbf` and `mbf_large`, layer for layer.

    model = mobilefacenet.mbf(activation="relu6")
    variables = model.init(key, images)              # [B, 112, 112, 3]
    embedding = model.apply(variables, images)       # [B, 512] float32
    small = mobilefacenet.Model(stages=(1, 1, 1, 1), width=0.25, dim=128)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxface.models import common, depthwise, heads, normalize
from jaxface.types import Port, Published


class _ConvBlock(nn.Module):
    """A layer, BatchNorm, activation ("" leaves the result linear)."""

    layer: Callable[..., nn.Module]
    norm: Callable[..., normalize.BatchNorm]
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
    norm: Callable[..., normalize.BatchNorm]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        layer = functools.partial
        conv = layer(common.conv, kernel=1, dtype=self.dtype)
        shift = layer(depthwise.Depthwise, stride=self.stride, dtype=self.dtype)
        norm, act = self.norm, self.activation
        y = _ConvBlock(layer(conv, self.inner), norm, act, name="expand")(x)
        y = _ConvBlock(shift, norm, act, name="depthwise")(y)
        y = _ConvBlock(layer(conv, self.features), norm, name="project")(y)
        return x + y if self.residual else y


class Model(nn.Module):
    """MobileFaceNet.

    Attributes:
        stages: layers before, and residual bottlenecks after, each of the three
            stride-2 bottlenecks. A first stage of one layer is a plain depthwise one.
        scale: factor on the trunk's channels alone, as in arcface_torch: bottlenecks
            keep 128, 256 and 512 inner channels, whatever the trunk has.
        width: factor on all channels but the embedding's, rounded to multiples of 8.
        pointwise: follow that depthwise layer by a 1x1 convolution, both with
            `stage0_activation`, as foamliu's port does.
        dim: D, the embedding size.
        activation: "prelu", "relu" or "relu6".
        stage0_activation: of a first stage of one layer; "" is `activation`.
        head: "GDC", "GNAP", "GAP" or "E".
        affine: what the last norm learns: "both", "bias" or "none"; "" is the head's
            own, for GDC "both".
        bias: whether the head's dense layer has one.
        dropout: rate before the dense layer, 0 <= rate < 1.
        remat: recompute bottlenecks in the backward pass, for less memory;
            or a key of `common.POLICIES`.
        axis: mesh axis name(s) BatchNorm is synced over in training; None: local.
        dtype: compute dtype; parameters, statistics and embeddings are float32.
        size: pixels of the images it is made for, per side or (H, W); any size works,
            and the head takes its shape from the images `init` sees.
        color: channel order of the images.
        mean: what was taken off their pixels 0 .. 255.
        std: and what the rest was divided by.
    """

    stages: tuple[int, int, int, int] = (1, 4, 6, 2)
    scale: int = 1
    width: float = 1.0
    pointwise: bool = False
    dim: int = 512
    activation: str = "prelu"
    stage0_activation: str = ""
    head: str = "GDC"
    affine: str = ""
    bias: bool = False
    dropout: float = 0.0
    remat: bool | str = False
    axis: common.Axis = None
    dtype: Any = jnp.float32
    size: int | tuple[int, int] = 112
    color: str = "rgb"
    mean: common.Pixels = 127.5
    std: common.Pixels = 127.5

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, keys: jax.Array | None = None
    ) -> jax.Array:
        """Embed images.

        Args:
            x: [B, H, W, 3], rgb, within [-1, 1].
            train: use and update batch statistics.
            keys: [B] typed PRNG keys, one per example; needed where dropout > 0.

        Returns:
            [B, D] float32, not normalised.

        Raises:
            ValueError: an unknown activation or head, dropout without keys.
        """
        norm = functools.partial(
            common.batch_norm, train=train, axis=self.axis, dtype=self.dtype
        )
        block = functools.partial(_ConvBlock, norm=norm, activation=self.activation)
        bottleneck = functools.partial(
            common.remat(_Bottleneck, self.remat),
            activation=self.activation,
            norm=norm,
            dtype=self.dtype,
        )
        trunk = self._channels(64) * self.scale

        def stage(x: jax.Array, i: int, inner: int) -> jax.Array:
            for j in range(self.stages[i]):
                x = bottleneck(
                    inner, x.shape[-1], stride=1, residual=True, name=f"stage{i}_{j}"
                )(x)
            return x

        layer = functools.partial
        conv = layer(common.conv, dtype=self.dtype)
        x = block(layer(conv, trunk, stride=2), name="stem")(x)
        if self.stages[0] == 1:
            # arcface_torch keeps 64 groups on a wider trunk: `scale` channels each
            grouped = layer(depthwise.Depthwise, group=self.scale, dtype=self.dtype)
            first = functools.partial(
                _ConvBlock,
                norm=norm,
                activation=self.stage0_activation or self.activation,
            )
            x = first(grouped, name="stage0")(x)
            if self.pointwise:
                x = first(layer(conv, trunk, kernel=1), name="pointwise")(x)
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
        head = heads.make(
            self.head,
            affine=self.affine,
            dim=self.dim,
            norm=norm,
            dropout=self.dropout,
            dtype=self.dtype,
            bias=self.bias,
        )
        return head(x, train=train, keys=keys)

    def _channels(self, n: int) -> int:
        return max(8, round(n * self.width / 8) * 8)


paper = functools.partial(Model, dim=128)
mbf = functools.partial(Model, scale=2)
mbf_large = functools.partial(Model, stages=(2, 8, 12, 4), scale=4)
foamliu = functools.partial(
    Model,
    pointwise=True,
    dim=128,
    activation="relu6",
    stage0_activation="relu",
    bias=True,
    mean=(123.675, 116.28, 103.53),  # of ImageNet
    std=(58.395, 57.12, 57.375),
)
xiaoccer = functools.partial(Model, dim=128, size=(112, 96), std=128.0)
tiny = functools.partial(
    Model, stages=(1, 1, 0, 0), width=0.125, scale=2, dim=8, dropout=0.1, size=16
)

PUBLISHED = {
    "paper": Published(
        0.99,
        221.0,
        "arXiv:1804.07573, table 2",
        why="0.996 M without the slopes of the PReLUs, printed as 0.99",
    ),
    "Model": Published(
        1.20,
        450.0,
        "cavalleria/cavaface docs/MODEL_ZOO.md",
        why="450 M FLOPs there, two for a multiply-add",
    ),
}

_CAVAFACE = (
    (r"^stem", "conv1"),
    (r"^stage0(_|$|/)", r"conv2_dw\1"),
    (r"^down1", "conv_23"),
    (r"^down2", "conv_34"),
    (r"^down3", "conv_45"),
    (r"^conv2_dw_(\d+)", r"conv2_dw.model.\1"),
    (r"^stage1_(\d+)", r"conv_3.model.\1"),
    (r"^stage2_(\d+)", r"conv_4.model.\1"),
    (r"^stage3_(\d+)", r"conv_5.model.\1"),
    (r"/expand", ".conv"),
    (r"/depthwise", ".conv_dw"),
    (r"^conv_sep", "conv_6_sep"),
    (r"^head$", "conv_6_dw.conv"),
    (r"^head/bn", "conv_6_dw.bn"),
    (r"^head/fc", "linear"),
    (r"^head/features", "bn"),
)
_ARCFACE = (
    (r"^head$", "features.layers.0.layers.0"),
    (r"^head/bn", "features.layers.0.layers.1"),
    (r"^head/fc", "features.layers.2"),
    (r"^head/features", "features.layers.3"),
    (r"/conv$", ".layers.0"),
    (r"/bn$", ".layers.1"),
    (r"/prelu$", ".layers.2"),
    (r"/expand", ".layers.0"),
    (r"/depthwise", ".layers.1"),
    (r"/project", ".layers.2"),
    (r"^stem", "layers.0"),
    (r"^down(\d)", lambda m: f"layers.{2 * int(m[1])}"),
    (r"^stage(\d)_(\d+)", lambda m: f"layers.{2 * int(m[1]) + 1}.layers.{m[2]}"),
    (r"^stage0", "layers.1"),
)


def _numbered(name: str) -> tuple[tuple[str, str], ...]:
    """Number the paper's bottlenecks in one row, as `name`.0 to `name`.14."""
    rows = ("down1", *(f"stage1_{j}" for j in range(4)), "down2")
    rows += (*(f"stage2_{j}" for j in range(6)), "down3", "stage3_0", "stage3_1")
    return tuple((f"^{row}/", f"{name}.{i}.conv/") for i, row in enumerate(rows))


PORTS = {
    "arcface_torch": Port(names=_ARCFACE),
    # the layout of cavaface, TreB1eN's InsightFace_Pytorch and many after them
    "cavaface": Port(names=_CAVAFACE),
    "foamliu": Port(
        names=(
            *_numbered("features"),
            (r"^(stem|conv_sep)/conv", r"\1.0"),
            (r"^(stem|conv_sep)/bn", r"\1.1"),
            (r"^stem", "conv1"),
            (r"^conv_sep", "conv2"),
            (r"^stage0/conv", "dw_conv.depthwise"),
            (r"^stage0/bn", "dw_conv.bn1"),
            (r"^pointwise/conv", "dw_conv.pointwise"),
            (r"^pointwise/bn", "dw_conv.bn2"),
            (r"expand/conv$", "0.0"),
            (r"expand/bn$", "0.1"),
            (r"depthwise/conv$", "1.0"),
            (r"depthwise/bn$", "1.1"),
            (r"project/conv$", "2"),
            (r"project/bn$", "3"),
            (r"^head$", "gdconv.depthwise"),
            (r"^head/bn", "gdconv.bn"),
            (r"^head/fc", "conv3"),
            (r"^head/features", "bn"),
        ),
        conv1x1="^head/fc",
        mean=(123.675, 116.28, 103.53),
        std=(58.395, 57.12, 57.375),
    ),
    "xiaoccer": Port(
        names=(
            *_numbered("blocks"),
            (r"^stem", "conv1"),
            (r"^stage0", "dw_conv1"),
            (r"^conv_sep", "conv2"),
            (r"expand/conv$", "0"),
            (r"expand/bn$", "1"),
            (r"expand/prelu$", "2"),
            (r"depthwise/conv$", "3"),
            (r"depthwise/bn$", "4"),
            (r"depthwise/prelu$", "5"),
            (r"project/conv$", "6"),
            (r"project/bn$", "7"),
            (r"^head$", "linear7.conv"),
            (r"^head/bn", "linear7.bn"),
            (r"^head/fc", "linear1.conv"),
            (r"^head/features", "linear1.bn"),
        ),
        conv1x1="^head/fc",
        std=128.0,
    ),
}
