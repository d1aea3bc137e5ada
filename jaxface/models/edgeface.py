"""EdgeFace: EdgeNeXt with low-rank linear layers, 1.2 to 18 million weights.

Depthwise convolutions that grow from 3x3 to 9x9, and at the end of a stage a block
that splits its channels into scales and attends across channels instead of pixels,
which costs no more than linearly in the pixels. LayerNorm alone, no BatchNorm. The
law: layer for layer timm's `edgenext_*`, as otroshi/edgeface trains it. Source:
George et al., "EdgeFace", IEEE T-BIOM 2024 (arXiv:2307.01838); Maaz et al.,
"EdgeNeXt", ECCVW 2022 (arXiv:2206.10589); El-Nouby et al., "XCiT", NeurIPS 2021.

    model = edgeface.xs_gamma_06(drop_path=0.1)
    variables = model.init(key, images)                       # [B, 112, 112, 3]
    embedding = model.apply(variables, images)                # [B, 512] float32
    small = edgeface.Model(stages=(1, 1, 1, 1), rank=0.5, dim=128)
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxface.models import common, convolve, depthwise
from jaxface.types import Port, Published

_init = nn.initializers.truncated_normal(0.02)  # cut at two deviations, as timm's
_FOURIER = 32  # waves per axis of the positional encoding


def _norm(dtype: Any, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(
        epsilon=1e-6,
        dtype=dtype,
        param_dtype=common.wide(dtype),
        use_fast_variance=False,
        name=name,
    )


def _patches(features: int, side: int, dtype: Any, name: str) -> nn.Conv:
    """A convolution of squares that do not overlap; what they leave over is cut off."""
    return nn.Conv(
        features,
        (side, side),
        strides=(side, side),
        padding="VALID",
        dtype=dtype,
        param_dtype=common.wide(dtype),
        kernel_init=_init,
        name=name,
    )


class _LowRank(nn.Module):
    """Two linear layers in place of one, a narrow one between. EdgeFace, eq. (2)."""

    features: int
    rank: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense = functools.partial(
            nn.Dense,
            dtype=self.dtype,
            param_dtype=common.wide(self.dtype),
            kernel_init=common.torch_linear,
            dot_general=convolve.dot,
        )
        x = dense(self.rank, use_bias=False, name="linear1")(x)
        bias = common.torch_bias(self.rank)
        return dense(self.features, bias_init=bias, name="linear2")(x)


def _linear(
    inputs: int, features: int, *, ratio: float, dtype: Any, name: str
) -> nn.Module:
    """Make a linear layer; of rank ratio times the smaller side where ratio is not 0.

    The original replaces layers after it has initialised them, hence torch's default
    in the low-rank ones and EdgeNeXt's normal in the others.
    """
    if ratio:
        rank = max(2, int(min(inputs, features) * ratio))
        return _LowRank(features, rank, dtype, name=name)
    full = common.wide(dtype)
    return nn.Dense(
        features,
        dtype=dtype,
        param_dtype=full,
        kernel_init=_init,
        dot_general=convolve.dot,
        name=name,
    )


class _Depthwise(nn.Module):
    """A depthwise convolution with a bias."""

    kernel: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        full, C = common.wide(self.dtype), x.shape[-1]
        kernel = self.param("kernel", _init, (self.kernel, self.kernel, 1, C), full)
        bias = self.param("bias", nn.initializers.zeros, (C,), full)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        x = depthwise.depthwise(x, kernel, padding=self.kernel // 2)
        return x + bias.astype(self.dtype).reshape(1, 1, 1, C)


class _Attention(nn.Module):
    """Attention between the channels of a head, over all its pixels. XCiT, eq. (2)."""

    heads: int
    ratio: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x [B, N, C] to the same shape."""
        (B, N, C), full = x.shape, common.wide(self.dtype)
        ones = nn.initializers.ones
        temperature = self.param("temperature", ones, (self.heads, 1, 1), full)
        linear = functools.partial(_linear, C, ratio=self.ratio, dtype=self.dtype)
        x = linear(3 * C, name="qkv")(x)
        x = x.reshape(B, N, 3, self.heads, C // self.heads).transpose(2, 0, 3, 4, 1)
        q, k = (self._unit(y.astype(full)) for y in x[:2])  # [B, h, C / h, N]
        score = jnp.einsum("bhcn,bhdn->bhcd", q, k) * temperature[None]
        weight = jax.nn.softmax(score).astype(self.dtype)
        x = jnp.einsum("bhcd,bhdn->bnhc", weight, x[2]).reshape(B, N, C)
        return linear(C, name="proj")(x)

    @staticmethod
    def _unit(x: jax.Array) -> jax.Array:
        """Rows of length 1; a row of zeros stays so, with gradient 0."""
        squared = jnp.sum(x * x, -1, keepdims=True)
        return x * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))


def _waves(H: int, W: int) -> np.ndarray:
    """Return sines and cosines of the place of each pixel, [1, H, W, 64].

    Rows first, then columns; both run from 1 / n to 1 of a turn at the slowest wave.
    """
    wave = 10000.0 ** (2 * (np.arange(_FOURIER) // 2) / _FOURIER)

    def axis(n: int) -> np.ndarray:
        angle = np.arange(1, n + 1)[:, None] / (n + 1e-6) * 2 * np.pi / wave
        even = np.arange(_FOURIER) % 2 == 0
        return np.where(even, np.sin(angle), np.cos(angle))  # [n, 32]

    rows = np.broadcast_to(axis(H)[:, None], (H, W, _FOURIER))
    columns = np.broadcast_to(axis(W)[None], (H, W, _FOURIER))
    return np.concatenate([rows, columns], -1)[None]


class _Block(nn.Module):
    """What both kinds of block share.

    Attributes:
        kernel: side of the depthwise convolution (of the first kind).
        scales: groups of channels, of the attending kind.
        heads: of attention.
        positions: add the positional encoding before attention.
        ratio: rank of linear layers over their smaller side, 0 for full rank.
        scale: first value of the layer scale.
        drop: share of examples whose branches are left out.
        train: whether that happens.
        dtype: compute dtype.
    """

    kernel: int
    scales: int
    heads: int
    positions: bool
    ratio: float
    scale: float
    drop: float
    train: bool
    dtype: Any

    def finish(self, x: jax.Array, keys: jax.Array | None, part: str) -> jax.Array:
        """Scale a branch by channel ("CaiT", eq. (4)); leave it out of some examples.

        All examples of a batch have a draw of their own, one for the whole branch.
        """
        init = nn.initializers.constant(self.scale)
        last = (1,) * (x.ndim - 1)
        gamma = self.param("gamma" + part, init, x.shape[-1:], common.wide(self.dtype))
        drop = common.Dropout(self.drop, whole=True, name="drop_path" + part)
        kept = drop(x, train=self.train, keys=keys)
        return kept * gamma.astype(self.dtype).reshape(*last, -1)

    def branch(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        """Normalise, map to four times the channels and back, scale; [B, H, W, C]."""
        C = x.shape[-1]
        linear = functools.partial(_linear, ratio=self.ratio, dtype=self.dtype)
        x = _norm(self.dtype, "norm")(x)
        x = nn.gelu(linear(C, 4 * C, name="fc1")(x), approximate=False)
        x = linear(4 * C, C, name="fc2")(x)
        return self.finish(x, keys, "")


class _ConvBlock(_Block):
    """ConvNeXt's block: depthwise, then the branch, then the sum."""

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        y = _Depthwise(self.kernel, self.dtype, name="conv_dw")(x)
        return x + self.branch(y, keys)


class _AttentionBlock(_Block):
    """Split depthwise transpose attention (SDTA). EdgeNeXt, section 3.1."""

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        shortcut, (B, H, W, C) = x, x.shape
        x = self._split(x)
        if self.positions:
            wave = jnp.asarray(_waves(H, W), self.dtype)
            x = x + _patches(C, 1, self.dtype, "pos_embd")(wave)
        y = _norm(self.dtype, "norm_xca")(x.reshape(B, H * W, C))
        y = _Attention(self.heads, self.ratio, self.dtype, name="xca")(y)
        x = x + self.finish(y, keys, "_xca").reshape(B, H, W, C)
        return shortcut + self.branch(x, keys)

    def _split(self, x: jax.Array) -> jax.Array:
        """Convolve each scale after adding the one before it; the last stays."""
        width = math.ceil(x.shape[-1] / self.scales)
        ends = list(range(width, x.shape[-1], width))
        *parts, last = jnp.split(x, ends, axis=-1)
        out: list[jax.Array] = []
        for i, part in enumerate(parts):
            part = part + out[-1] if out else part
            out.append(_Depthwise(3, self.dtype, name=f"convs_{i}")(part))
        return jnp.concatenate([*out, last], -1)


class Model(nn.Module):
    """EdgeFace.

    Attributes:
        stages: blocks per stage; the first stage works on a quarter of the pixels
            per side, each later one on half of that.
        widths: channels per stage.
        attention: how many blocks at the end of each stage attend.
        kernels: side of the depthwise convolutions per stage.
        scales: groups of channels in the attending blocks, per stage.
        heads: of attention; divide every width of a stage that attends.
        positions: whether the attending blocks of a stage know their places.
        rank: gamma of the paper, rank over the smaller side of every linear layer,
            the last one included; 0 for ordinary layers.
        dim: D, the embedding size.
        layer_scale: first value of the scales of branches.
        dropout: rate before the last linear layer, 0 <= rate < 1.
        drop_path: share of examples left out of the last block's branches, from 0 in
            the first block, linearly.
        remat: recompute blocks in the backward pass: less memory, a third more time;
            or a key of `common.POLICIES`.
        axis: accepted and ignored, there is no BatchNorm.
        dtype: compute dtype; parameters and embeddings are float32.
        size: pixels of the images it is made for, per side or (H, W); any size works.
        color: channel order of the images.
        mean: what was taken off their pixels 0 .. 255.
        std: and what the rest was divided by.
    """

    stages: tuple[int, ...] = (2, 2, 6, 2)
    widths: tuple[int, ...] = (24, 48, 88, 168)
    attention: tuple[int, ...] = (0, 1, 1, 1)
    kernels: tuple[int, ...] = (3, 5, 7, 9)
    scales: tuple[int, ...] = (2, 2, 3, 4)
    heads: int = 4
    positions: tuple[bool, ...] = (False, True, False, False)
    rank: float = 0.0
    dim: int = 512
    layer_scale: float = 1e-6
    dropout: float = 0.0
    drop_path: float = 0.0
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
            train: drop values and branches.
            keys: [B] typed PRNG keys, one per example; needed where dropout or
                drop_path > 0.

        Returns:
            [B, D] float32, not normalised.

        Raises:
            ValueError: tuples of different lengths, heads that do not divide a
                width, rates out of range or without keys.
        """
        self._check()
        x = _patches(self.widths[0], 4, self.dtype, "stem_conv")(x)
        x = _norm(self.dtype, "stem_norm")(x)
        rates = iter(np.linspace(0, self.drop_path, sum(self.stages)).tolist())
        for i, blocks in enumerate(self.stages):
            if i:
                x = _norm(self.dtype, f"down{i}_norm")(x)
                x = _patches(self.widths[i], 2, self.dtype, f"down{i}_conv")(x)
            for j in range(blocks):
                attends = j >= blocks - self.attention[i]
                kind: Any = _AttentionBlock if attends else _ConvBlock
                block = common.remat(kind, self.remat)(
                    kernel=self.kernels[i],
                    scales=self.scales[i],
                    heads=self.heads,
                    positions=self.positions[i],
                    ratio=self.rank,
                    scale=self.layer_scale,
                    drop=next(rates),
                    train=train,
                    dtype=self.dtype,
                    name=f"stage{i}_{j}",
                )
                x = block(x, keys)
        full = common.wide(self.dtype)
        x = _norm(full, "head_norm")(x.astype(full).mean((1, 2)))
        x = common.Dropout(self.dropout, name="dropout")(x, train=train, keys=keys)
        return self._last(x)

    def _last(self, x: jax.Array) -> jax.Array:
        full, C = common.wide(self.dtype), x.shape[-1]
        if self.rank:
            return _linear(C, self.dim, ratio=self.rank, dtype=full, name="head_fc")(x)
        dense = nn.Dense(  # the original replaces this one too, after its start
            self.dim,
            dtype=full,
            param_dtype=full,
            kernel_init=common.torch_linear,
            bias_init=common.torch_bias(C),
            name="head_fc",
        )
        return dense(x)

    def _check(self) -> None:
        per_stage = ("widths", "attention", "kernels", "scales", "positions")
        for name in per_stage:
            if len(getattr(self, name)) != len(self.stages):
                raise ValueError(
                    f"{name} {getattr(self, name)} and stages {self.stages}: wanted"
                    " one of each per stage"
                )
        for width, n in zip(self.widths, self.attention, strict=True):
            if n and width % self.heads:
                raise ValueError(
                    f"heads {self.heads} do not divide width {width}; choose a number"
                    " that divides the widths of all stages that attend"
                )


xxs = functools.partial(Model)
xs_gamma_06 = functools.partial(
    Model, stages=(3, 3, 9, 3), widths=(32, 64, 100, 192), rank=0.6
)
s_gamma_05 = functools.partial(
    Model, stages=(3, 3, 9, 3), widths=(48, 96, 160, 304), heads=8, rank=0.5
)
base = functools.partial(
    Model, stages=(3, 3, 9, 3), widths=(80, 160, 288, 584), heads=8
)
tiny = functools.partial(
    Model,
    stages=(1, 2),
    widths=(8, 12),
    attention=(0, 1),
    kernels=(3, 5),
    scales=(2, 3),
    heads=2,
    positions=(False, True),
    rank=0.5,
    dim=8,
    layer_scale=0.5,
    dropout=0.1,
    drop_path=0.2,
    size=32,
)

# Printed are FLOPs, two for every multiply-add.
_README = "otroshi/edgeface README.md, MPARAMS; half its MFLOPs"
PUBLISHED = {
    "xxs": Published(1.24, 94.72 / 2, _README),
    "xs_gamma_06": Published(1.77, 154.00 / 2, _README),
    "s_gamma_05": Published(3.65, 306.12 / 2, _README),
    "base": Published(18.23, 1398.83 / 2, _README),
}

_TIMM = (
    (r"^stem_conv$", "stem.0"),
    (r"^stem_norm$", "stem.1"),
    (r"^down(\d)_norm$", r"stages.\1.downsample.0"),
    (r"^down(\d)_conv$", r"stages.\1.downsample.1"),
    (r"^stage(\d)_(\d+)", r"stages.\1.blocks.\2"),
    (r"/fc", ".mlp.fc"),
    (r"/convs_", ".convs."),
    (r"/pos_embd$", ".pos_embd.token_projection"),
    (r"^head_", "head."),
)
PORTS = {
    "edgeface": Port(names=(*_TIMM, (r"^", "model."))),
    # an EdgeNeXt of timm, trained on ImageNet: the start of a fine-tuning
    "timm": Port(
        names=_TIMM,
        mean=(123.675, 116.28, 103.53),
        std=(58.395, 57.12, 57.375),
    ),
}
