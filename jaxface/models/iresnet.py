"""IResNet, the backbone of ArcFace, and the field's other ResNets of its kind.

A ResNet with a 3x3 stem of stride 1, BatchNorm before the first and after the last
convolution of a block, PReLU inside, and a dense head over all pixels instead of
pooling. `r18` to `r200` are arcface_torch's, layer for layer, names included. Their
kin differ in a few options: AdaFace's (`ir18` to `ir200`) shortens equal channels by
skipping pixels, face.evoLVe's (`irse50` and so on) also has no norm between its two
convolutions and squeeze-excitation after them, MagFace's another last norm. Source:
Duta et al., "Improved Residual Networks", ICPR 2020; Deng et al., "ArcFace", CVPR
2019; Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018.

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

from jaxface.models import common, heads, normalize
from jaxface.types import Port, Published

# First weights of (convolutions, the dense layer; None: as its head has them). The
# norm after the dense layer undoes its scale, not what its scale does to the step:
# AdaFace's weights are 17 times as long as arcface_torch's, and turn more slowly.
INITS = {
    "arcface": (nn.initializers.normal(0.1), None),
    "magface": (common.kaiming_out, None),
    "adaface": (common.kaiming_out, common.kaiming_out),
    "evolve": (common.torch_linear, common.torch_linear),  # torch's own, for both
}


class _Squeeze(nn.Module):
    """Scale every channel by what two dense layers make of all channels' means."""

    reduction: int
    dense: Callable[..., nn.Dense]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        C = x.shape[-1]
        y = x.astype(common.wide(x.dtype)).mean((1, 2))  # [B, C]
        y = nn.relu(self.dense(max(1, C // self.reduction), name="fc1")(y))
        y = nn.sigmoid(self.dense(C, name="fc2")(y))
        return x * y[:, None, None].astype(x.dtype)


class _Block(nn.Module):
    """BN, then convolutions each with its BN, an activation between, plus the input.

    "basic" has 3x3 twice, the second of stride s; "bottleneck" has 1x1 to a quarter
    of the channels, 3x3, and 1x1 of stride s. Without `middle_norm` only the last
    convolution has a BN. Where shapes differ the input is projected; with
    shortcut="pool" and equal channels, every s-th pixel of it is taken.
    """

    features: int
    stride: int
    kind: str
    activation: str
    middle_norm: bool
    shortcut: str
    squeeze: int
    zero_init: bool
    conv: Callable[..., nn.Conv]
    dense: Callable[..., nn.Dense]
    norm: Callable[..., normalize.BatchNorm]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        wide, inner, s = self.features, self.features // 4, self.stride
        layers: tuple[tuple[int, int, int], ...]  # kernel, features, stride
        if self.kind == "basic":
            layers = ((3, wide, 1), (3, wide, s))
        else:
            layers = ((1, inner, 1), (3, inner, 1), (1, wide, s))
        y = self.norm(name="bn1")(x)
        for i, (kernel, features, stride) in enumerate(layers, 1):
            last = i == len(layers)
            conv = self.conv(features, kernel=kernel, stride=stride, name=f"conv{i}")
            y = conv(y)
            if last or self.middle_norm:
                zero = last and self.zero_init
                y = self.norm(zero=zero, name=f"bn{i + 1}")(y)
            if not last:
                name = "prelu" if i == 1 else f"prelu{i}"
                y = common.activate(y, self.activation, name=name)
        if self.squeeze:
            y = _Squeeze(self.squeeze, self.dense, name="se")(y)
        return y + self._short(x)

    def _short(self, x: jax.Array) -> jax.Array:
        same, s = x.shape[-1] == self.features, self.stride
        if same and (s == 1 or self.shortcut == "pool"):
            return x[:, ::s, ::s]  # a max-pool of one pixel
        shrink = self.conv(self.features, kernel=1, stride=s, name="downsample_conv")
        return self.norm(name="downsample_bn")(shrink(x))


class Model(nn.Module):
    """IResNet.

    Attributes:
        stages: blocks per stage; every stage halves the image.
        widths: channels per stage.
        stem_width: channels of the stem; 0: the first of `widths`.
        stem_stride: 1 as published; 2 makes a quarter of the work, for CPUs.
        dim: D, the embedding size.
        activation: "prelu", "relu" or "relu6".
        block: "basic", or "bottleneck" with a quarter of the channels inside.
        middle_norm: BatchNorm after every convolution of a block, not the last alone.
        shortcut: where a block halves the image and keeps its channels, "conv"
            projects the input, "pool" takes every other pixel of it.
        squeeze: squeeze-excitation ends a block, by that reduction; 0: none.
        zero_init: the last scale of every branch starts from 0 (Goyal et al.,
            arXiv:1706.02677, section 5.1); off in all projects named here.
        init_as: whose first weights, a key of `INITS`.
        epsilon: of every BatchNorm.
        head: "E", "GDC", "GAP" or "GNAP".
        affine: what the last norm learns: "both", "bias" or "none"; "" is the head's
            own, for E "bias".
        dropout: rate before the dense layer, 0 <= rate < 1.
        remat: recompute blocks in the backward pass: less memory, a third more time;
            or a key of `common.POLICIES`.
        axis: mesh axis name(s) BatchNorm is synced over in training; None: local.
        dtype: compute dtype; parameters, statistics and embeddings are float32.
        size: pixels of the images it is made for, per side or (H, W); any size works,
            and the dense layer takes its shape from the images `init` sees.
        color: channel order of the images.
        mean: what was taken off their pixels 0 .. 255.
        std: and what the rest was divided by.
    """

    stages: tuple[int, ...] = (3, 4, 14, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stem_width: int = 0
    stem_stride: int = 1
    dim: int = 512
    activation: str = "prelu"
    block: str = "basic"
    middle_norm: bool = True
    shortcut: str = "conv"
    squeeze: int = 0
    zero_init: bool = False
    init_as: str = "arcface"
    epsilon: float = 1e-5
    head: str = "E"
    affine: str = ""
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
            x: [B, H, W, 3], normalised as `color`, `mean` and `std` say.
            train: use and update batch statistics, drop values.
            keys: [B] typed PRNG keys, one per example; needed where dropout > 0.

        Returns:
            [B, D] float32, not normalised.

        Raises:
            ValueError: stages and widths of different lengths, an unknown
                activation, block, shortcut, init_as or head, dropout out of range
                or without keys.
        """
        self._check()
        conv_init, dense_init = INITS[self.init_as]
        conv = functools.partial(common.conv, dtype=self.dtype, init=conv_init)
        norm = functools.partial(
            common.batch_norm,
            train=train,
            axis=self.axis,
            dtype=self.dtype,
            epsilon=self.epsilon,
        )
        block = self._blocks(conv, norm, conv_init)
        width = self.stem_width or self.widths[0]
        x = conv(width, stride=self.stem_stride, name="conv1")(x)
        x = norm(name="bn1")(x)
        x = common.activate(x, self.activation, name="prelu")
        stages = zip(self.stages, self.widths, strict=True)
        for i, (blocks, width) in enumerate(stages, 1):
            for j in range(blocks):
                stride = 1 if j else 2
                x = block(features=width, stride=stride, name=f"layer{i}_{j}")(x)
        head = heads.make(
            self.head,
            affine=self.affine,
            kernel_init=dense_init,
            dim=self.dim,
            norm=norm,
            dropout=self.dropout,
            dtype=self.dtype,
        )
        return head(x, train=train, keys=keys)

    def _blocks(self, conv: Any, norm: Any, init: Any) -> Callable[..., nn.Module]:
        dense = functools.partial(
            nn.Dense,
            use_bias=False,
            dtype=self.dtype,
            param_dtype=common.wide(self.dtype),
            kernel_init=init,
        )
        return functools.partial(
            common.remat(_Block, self.remat),
            kind=self.block,
            activation=self.activation,
            middle_norm=self.middle_norm,
            shortcut=self.shortcut,
            squeeze=self.squeeze,
            zero_init=self.zero_init,
            conv=conv,
            dense=dense,
            norm=norm,
        )

    def _check(self) -> None:
        if len(self.stages) != len(self.widths):
            raise ValueError(
                f"stages {self.stages} and widths {self.widths}: wanted one width"
                " per stage"
            )
        for name, known in (
            ("block", ("basic", "bottleneck")),
            ("shortcut", ("conv", "pool")),
            ("init_as", tuple(INITS)),
        ):
            if (given := getattr(self, name)) not in known:
                raise ValueError(f"{name} {given!r} unknown; wanted one of {known}")


_18, _34, _50 = (2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 14, 3)
_100, _152 = (3, 13, 30, 3), (3, 8, 36, 3)

# arcface_torch
r18 = functools.partial(Model, stages=_18)
r34 = functools.partial(Model, stages=_34)
r50 = functools.partial(Model, stages=_50)
r100 = functools.partial(Model, stages=_100)
r200 = functools.partial(Model, stages=(6, 26, 60, 6))

# MagFace. Two deviations: it drops whole channels before the dense layer, and its
# running statistics forget nine tenths at every step (momentum 0.9 read as MXNet's).
magface_r50 = functools.partial(
    Model,
    stages=_50,
    init_as="magface",
    epsilon=2e-5,
    affine="both",
    dropout=0.4,
    color="bgr",
    mean=0.0,
    std=255.0,
)
magface_r100 = functools.partial(magface_r50, stages=_100)

# AdaFace, TFace and CVLface
ir50 = functools.partial(
    Model,
    stages=_50,
    shortcut="pool",
    init_as="adaface",
    affine="none",
    dropout=0.4,
    color="bgr",
)
ir18 = functools.partial(ir50, stages=_18)
ir34 = functools.partial(ir50, stages=_34)
ir101 = functools.partial(ir50, stages=_100)
ir152 = functools.partial(
    ir50, stages=_152, widths=(256, 512, 1024, 2048), stem_width=64, block="bottleneck"
)
ir200 = functools.partial(ir152, stages=(3, 24, 36, 3))

# face.evoLVe and InsightFace_Pytorch
evolve_ir50 = functools.partial(
    Model,
    stages=_50,
    middle_norm=False,
    shortcut="pool",
    init_as="evolve",
    affine="both",
    dropout=0.5,
)
evolve_ir101 = functools.partial(evolve_ir50, stages=_100)
evolve_ir152 = functools.partial(evolve_ir50, stages=_152)
irse50 = functools.partial(evolve_ir50, squeeze=16)
irse101 = functools.partial(irse50, stages=_100)
irse152 = functools.partial(irse50, stages=_152)

# CurricularFace
curricularface_ir101 = functools.partial(
    evolve_ir101, init_as="adaface", affine="none", dropout=0.4
)

tiny = functools.partial(
    Model,
    stages=(2, 1),
    widths=(8, 16),
    shortcut="pool",
    squeeze=2,
    dim=8,
    dropout=0.4,
    size=8,
)

_MFR = "insightface challenges/mfr/README.md, MiB of the ONNX files; its README, GFLOPs"
_TFACE = "Tencent/TFace recognition/README.md, fp32 model size in MiB"
_ZOO = "cavalleria/cavaface docs/MODEL_ZOO.md, IR-SE-100, two FLOPs per multiply-add"
PUBLISHED = {
    "r18": Published(24.03, 2620.0, _MFR),
    "r34": Published(34.14, 4480.0, _MFR),
    "r50": Published(43.60, 6330.0, _MFR),
    "r100": Published(65.17, 12120.0, _MFR),
    "r200": Published(None, 23500.0, "insightface arcface_torch/README.md, ViT table"),
    "ir18": Published(24.12, None, _TFACE),
    "ir34": Published(34.34, None, _TFACE, why="printed as whole MiB"),
    "ir50": Published(43.78, None, _TFACE),
    "ir101": Published(65.27, None, _TFACE),
    "irse101": Published(65.5, 12090.0, _ZOO),
}

_ARCFACE = (
    (r"^head/", ""),
    (r"^(layer\d)_(\d+)", r"\1.\2"),
    (r"downsample_conv$", "downsample.0"),
    (r"downsample_bn$", "downsample.1"),
)
_OUTSIDE = (
    (r"^conv1$", "input_layer.0"),
    (r"^bn1$", "input_layer.1"),
    (r"^prelu$", "input_layer.2"),
    (r"^head/bn2$", "output_layer.0"),
    (r"^head/fc$", "output_layer.3"),
    (r"^head/features$", "output_layer.4"),
    (r"^layer\d_\d+/downsample_conv$", "body.#.shortcut_layer.0"),
    (r"^layer\d_\d+/downsample_bn$", "body.#.shortcut_layer.1"),
    (r"^layer\d_\d+/", "body.#.res_layer/"),
)


def _listed(*layers: str) -> tuple[tuple[str, str], ...]:
    """Rename the layers of a block to their places in a list."""
    return tuple((f"res_layer/{x}$", f"res_layer.{i}") for i, x in enumerate(layers))


# Their lists of a block's layers; squeeze-excitation has a name, or is one more.
_ADAFACE = (
    *_OUTSIDE,
    *_listed("bn1", "conv1", "bn2", "prelu", "conv2", "bn3", "prelu2", "conv3", "bn4"),
    (r"res_layer/se/", "res_layer.se_block/"),
)
_EVOLVE = (
    *_OUTSIDE,
    *_listed("bn1", "conv1", "prelu", "conv2", "bn3"),
    (r"res_layer/se/", "res_layer.5/"),
)
_SE = r"/se/fc\d$"
PORTS = {
    "arcface_torch": Port(names=_ARCFACE, constants={"features.weight": 1.0}),
    # with affine="both": their last scale is learned
    "magface": Port(names=_ARCFACE, color="bgr", mean=0.0, std=255.0),
    # TFace's too
    "adaface": Port(names=_ADAFACE, conv1x1=_SE, color="bgr"),
    "cvlface": Port(names=_ADAFACE, conv1x1=_SE),
    "curricularface": Port(names=_EVOLVE, conv1x1=_SE),
    "evolve": Port(names=_EVOLVE, conv1x1=_SE),
    # its script unpacks training images as OpenCV's bgr and saves them as rgb
    "insightface_pytorch": Port(names=_EVOLVE, conv1x1=_SE, color="bgr"),
}
