"""SphereFace's nets: residual blocks without shortcuts' norms, stride by convolution.

Table 2 of Liu et al., "SphereFace: Deep Hypersphere Embedding for Face Recognition",
CVPR 2017 (arXiv:1704.08063): 20 to 64 convolutions with PReLU and no BatchNorm on
112x96 images (`sphere20` to `sphere64`), and the nets of the same makers' OpenSphere
(`sfnet20` and so on) with ReLU on 112x112, where BatchNorm may follow every layer.
They differ in where a block's last activation stands: inside the branch, as in the
paper, or after the sum.

    model = sphereface.sfnet20bn(dtype="bfloat16", axis="data")
    variables = model.init(key, images)                     # [B, 112, 112, 3]
    embedding = model.apply(variables, images)              # [B, 512] float32
    small = sphereface.Model(stages=(1, 1, 1, 1), widths=(8, 16, 32, 64), dim=128)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxface.models import common, normalize
from jaxface.types import Port, Published


@dataclasses.dataclass(frozen=True)
class _Init:
    """First weights of a project.

    Attributes:
        down: of the convolutions of stride 2.
        block: of those in residual blocks.
        dense: of the last layer.
        zero_bias: biases start from 0; else as torch has them.
    """

    down: Callable[..., jax.Array]
    block: Callable[..., jax.Array]
    dense: Callable[..., jax.Array]
    zero_bias: bool = False


_small = nn.initializers.normal(0.01)
_xavier = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")  # Caffe's
_glorot = nn.initializers.glorot_uniform()
_glorot_normal = nn.initializers.variance_scaling(1.0, "fan_avg", "normal")
INITS = {
    "caffe": _Init(_xavier, _small, _xavier, zero_bias=True),
    "cosface": _Init(_glorot, _small, _glorot, zero_bias=True),
    "torch": _Init(*(common.torch_linear,) * 3),
    "deprecated": _Init(_glorot_normal, _small, common.torch_linear),
    "opensphere": _Init(common.kaiming_out, common.kaiming_out, common.torch_linear),
}


class _Block(nn.Module):
    """One convolution of stride 2, or two of stride 1 whose result is added to x."""

    features: int
    stride: int
    activation: str
    after_sum: bool
    use_bias: bool
    zero_bias: bool
    conv: Callable[..., nn.Conv]
    norm: Callable[..., normalize.BatchNorm] | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        residual = self.stride == 1
        y = x
        for i in (1, 2) if residual else (1,):
            y = self._conv(y, f"conv{i}")
            if self.norm is not None:
                y = self.norm(name=f"bn{i}")(y)
            if i == 2 and self.after_sum:
                y = x + y
            y = common.activate(y, self.activation, name=f"prelu{i}")
        return x + y if residual and not self.after_sum else y

    def _conv(self, x: jax.Array, name: str) -> jax.Array:
        bias = nn.initializers.zeros
        if not self.zero_bias:
            bias = common.torch_bias(9 * x.shape[-1])
        layer = self.conv(
            self.features,
            strides=(self.stride, self.stride),
            use_bias=self.use_bias,
            bias_init=bias,
            name=name,
        )
        return layer(x)


class Model(nn.Module):
    """SphereFace's net; the defaults are the paper's with 20 convolutions.

    Attributes:
        stages: residual blocks of two convolutions per stage, which may be 0; before
            them each stage halves the image by a convolution of stride 2.
        widths: channels per stage.
        dim: D, the embedding size.
        activation: "prelu", "relu" or "relu6".
        after_sum: the last activation of a block follows the sum with its input;
            else the branch ends in it.
        norm: BatchNorm after every layer, the dense one included; convolutions then
            have no bias.
        block_bias: without `norm`, whether the convolutions of blocks have a bias;
            those of stride 2 always do. The paper's are 0 and never learned.
        init_as: whose first weights, a key of `INITS`.
        dropout: rate before the dense layer, 0 <= rate < 1; 0 in all variants.
        remat: recompute blocks in the backward pass: less memory, a third more time;
            or a key of `common.POLICIES`.
        axis: mesh axis name(s) BatchNorm is synced over in training; None: local.
        dtype: compute dtype; parameters, statistics, the dense layer and embeddings
            are float32.
        size: pixels of the images it is made for, per side or (H, W); any size works,
            and the dense layer takes its shape from the images `init` sees.
        color: channel order of the images.
        mean: what was taken off their pixels 0 .. 255.
        std: and what the rest was divided by.
    """

    stages: tuple[int, ...] = (1, 2, 4, 1)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    dim: int = 512
    activation: str = "prelu"
    after_sum: bool = False
    norm: bool = False
    block_bias: bool = False
    init_as: str = "caffe"
    dropout: float = 0.0
    remat: bool | str = False
    axis: common.Axis = None
    dtype: Any = jnp.float32
    size: int | tuple[int, int] = (112, 96)
    color: str = "bgr"
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
            ValueError: stages and widths of different lengths, an unknown activation
                or init_as, dropout out of range or without keys.
        """
        self._check()
        init = INITS[self.init_as]
        full = common.wide(self.dtype)
        norm = functools.partial(common.batch_norm, train=train, axis=self.axis)
        block = functools.partial(
            common.remat(_Block, self.remat),
            activation=self.activation,
            after_sum=self.after_sum,
            zero_bias=init.zero_bias,
            norm=functools.partial(norm, dtype=self.dtype) if self.norm else None,
        )
        conv = functools.partial(
            nn.Conv,
            kernel_size=(3, 3),
            padding=((1, 1), (1, 1)),
            dtype=self.dtype,
            param_dtype=full,
        )
        down = functools.partial(
            block,
            stride=2,
            use_bias=not self.norm,
            conv=functools.partial(conv, kernel_init=init.down),
        )
        residual = functools.partial(
            block,
            stride=1,
            use_bias=self.block_bias and not self.norm,
            conv=functools.partial(conv, kernel_init=init.block),
        )
        for i, (blocks, width) in enumerate(
            zip(self.stages, self.widths, strict=True), 1
        ):
            x = down(width, name=f"layer{i}_0")(x)
            for j in range(1, blocks + 1):
                x = residual(width, name=f"layer{i}_{j}")(x)
        x = common.Flatten(name="flat")(x)
        x = common.Dropout(self.dropout, name="dropout")(x, train=train, keys=keys)
        zero = nn.initializers.zeros
        x = nn.Dense(
            self.dim,
            dtype=full,
            param_dtype=full,
            kernel_init=init.dense,
            bias_init=zero if init.zero_bias else common.torch_bias(x.shape[-1]),
            name="fc",
        )(x)
        return norm(dtype=full, name="features")(x) if self.norm else x

    def _check(self) -> None:
        if len(self.stages) != len(self.widths):
            raise ValueError(
                f"stages {self.stages} and widths {self.widths}: wanted one width"
                " per stage"
            )
        if self.init_as not in INITS:
            raise ValueError(
                f"init_as {self.init_as!r} unknown; wanted one of {', '.join(INITS)}"
            )


_20, _36, _64 = (1, 2, 4, 1), (2, 4, 8, 2), (3, 8, 16, 3)

# of the paper, as wy1iu/sphereface's Caffe files have them
sphere20 = functools.partial(Model, stages=_20)
sphere36 = functools.partial(Model, stages=_36)
sphere64 = functools.partial(Model, stages=_64)
# clcarwin/sphereface_pytorch
sphere20a = functools.partial(sphere20, block_bias=True, init_as="torch")
# MuggleWang/CosFace_pytorch; its deeper net has one block less in the second stage
cosface20 = functools.partial(sphere20, init_as="cosface", color="rgb", std=127.5)
cosface64 = functools.partial(cosface20, stages=(3, 7, 16, 3))

# OpenSphere. Its trained nets without BatchNorm are those it calls deprecated.
sfnet20_deprecated = functools.partial(
    Model,
    stages=_20,
    activation="relu",
    block_bias=True,
    init_as="deprecated",
    size=112,
    color="rgb",
    std=127.5,
)
sfnet64_deprecated = functools.partial(sfnet20_deprecated, stages=_64)
sfnet20 = functools.partial(sfnet20_deprecated, after_sum=True, init_as="opensphere")
sfnet64 = functools.partial(sfnet20, stages=_64)
sfnet20bn = functools.partial(sfnet20, norm=True)
sfnet64bn = functools.partial(sfnet64, norm=True)
tiny = functools.partial(
    Model, stages=(1, 1), widths=(8, 16), norm=True, dim=8, dropout=0.2, size=8
)

PUBLISHED = {
    "sphere20": Published(
        22.671, 1752.0, "OpenVINO Open Model Zoo, Sphereface: MParams, half its GFLOPs"
    ),
}

_STAGED = ((r"^layer(\d)_(\d+)", r"layer\1.\2"),)
PORTS = {
    "opensphere": Port(names=_STAGED),
    "opensphere_deprecated": Port(
        names=(
            (r"^(layer\d_0)/conv1$", r"\1/conv"),
            *_STAGED,
        )
    ),
    # layers counted within a stage: 1 is that of stride 2, 2 and 3 the first block's
    "clcarwin": Port(
        names=(
            (r"^layer(\d)_0/conv1$", r"conv\1_1"),
            (r"^layer(\d)_0/prelu1$", r"relu\1_1"),
            (
                r"^layer(\d)_(\d+)/(conv|prelu)(\d)$",
                lambda m: f"{m[3]}{m[1]}_{2 * int(m[2]) + int(m[4]) - 1}",
            ),
            (r"^prelu", "relu"),
            (r"^fc$", "fc5"),
        ),
        skip=r"^fc6\.",  # the classifier
        color="bgr",
        std=128.0,
    ),
    "cosface_pytorch": Port(
        names=(
            (r"^layer(\d)_0/conv1$", r"layer\1.0"),
            (r"^layer(\d)_0/prelu1$", r"layer\1.1"),
            (r"^layer(\d)_(\d+)", lambda m: f"layer{m[1]}.{int(m[2]) + 1}"),
        ),
    ),
}
