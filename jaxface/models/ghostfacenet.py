"""GhostFaceNet V1 and V2: half of every layer's channels are cheap copies.

A ghost module convolves to half the channels and makes the other half from those by
a 3x3 depthwise layer; a bottleneck is two of them around a squeeze-and-excite gate.
V2 multiplies the first one by a look along rows and columns (DFC attention). The
law: layer for layer HamadYA/GhostFaceNets, and layers run in the order in which
Keras lists them. Source: Alansari et al., "GhostFaceNets", IEEE Access 2023; Han et
al., "GhostNet", CVPR 2020; Tang et al., "GhostNetV2", NeurIPS 2022.

    model = ghostfacenet.v1_1()                              # stride 1 in the stem
    variables = model.init(key, images)                      # [B, 112, 112, 3]
    embedding = model.apply(variables, images)               # [B, 512] float32
    small = ghostfacenet.Model(version=2, width=0.5, stem_stride=2, dim=128)
"""

from __future__ import annotations

import collections
import functools
import operator
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxface.models import common, depthwise, heads, normalize
from jaxface.types import Port, Published

_init = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")

# GhostNet, table 1: depthwise kernel, inner and outer channels, whether there is a
# gate; by stage, of which all but the first begin with stride 2.
_ROWS = (
    ((3, 16, 16, False),),
    ((3, 48, 24, False), (3, 72, 24, False)),
    ((5, 72, 40, True), (5, 120, 40, True)),
    (
        (3, 240, 80, False),
        (3, 200, 80, False),
        (3, 184, 80, False),
        (3, 184, 80, False),
        (3, 480, 112, True),
        (3, 672, 112, True),
    ),
    (
        (5, 672, 160, True),
        (5, 960, 160, False),
        (5, 960, 160, True),
        (5, 960, 160, False),
        (5, 960, 160, True),
    ),
)
_LAST = {1: 512, 2: 960}  # inner channels of the last row, and of the layer after it
_PLAIN = 2  # bottlenecks of V2 that come before its attention


def _channels(n: float) -> int:
    """Round to a multiple of 4, never down by more than a tenth."""
    rounded = max(4, int(n + 2) // 4 * 4)
    return rounded + 4 if rounded < 0.9 * n else rounded


def _rows(
    stages: tuple[int, ...], version: int
) -> Iterator[tuple[int, int, int, int, bool]]:
    """Yield (kernel, stride, inner, features, gated) of every bottleneck.

    Raises:
        ValueError: an unknown version, stages that the table does not have.
    """
    if version not in _LAST:
        raise ValueError(f"version {version}; wanted 1 or 2")
    most = tuple(len(rows) for rows in _ROWS)
    if len(stages) != len(most) or any(map(operator.gt, stages, most)):
        raise ValueError(f"stages {stages}; wanted five numbers of at most {most}")
    for i, (n, rows) in enumerate(zip(stages, _ROWS, strict=True)):
        for j, (kernel, inner, features, gated) in enumerate(rows[:n]):
            stride = 2 if i and not j else 1
            last = (i, j) == (4, 4)
            yield kernel, stride, _LAST[version] if last else inner, features, gated


class _Depthwise(nn.Module):
    """A depthwise convolution padded as torch does, or as TensorFlow does.

    Attributes:
        kernel: (rows, columns), odd.
        stride: step between outputs.
        same: TensorFlow's "same", which pads a strided layer less at the start.
        dtype: compute dtype.
    """

    kernel: tuple[int, int]
    stride: int
    same: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x [B, H, W, C] to [B, H', W', C]."""
        shape = (*self.kernel, 1, x.shape[-1])
        full = common.wide(self.dtype)
        kernel = self.param("kernel", common.kaiming_group, shape, full)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        h, w = (self._pad(n, k) for n, k in zip(x.shape[1:3], self.kernel, strict=True))
        if h == w and h[0] == h[1]:  # nothing to copy
            return depthwise.depthwise(x, kernel, stride=self.stride, padding=h[0])
        x = jnp.pad(x, ((0, 0), h, w, (0, 0)))
        return depthwise.depthwise(x, kernel, stride=self.stride)

    def _pad(self, size: int, kernel: int) -> tuple[int, int]:
        if not self.same:
            return kernel // 2, kernel // 2
        total = max((-(-size // self.stride) - 1) * self.stride + kernel - size, 0)
        return total // 2, total - total // 2


def _stem(features: int, stride: int, same: bool, dtype: Any) -> nn.Conv:
    return nn.Conv(
        features,
        (3, 3),
        strides=(stride, stride),
        padding="SAME" if same else 1,
        use_bias=False,
        dtype=dtype,
        param_dtype=common.wide(dtype),
        kernel_init=_init,
        name="stem_conv",
    )


def _resize(x: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Resize [B, H, W, C] to [B, H', W', C] bilinearly, pixels at their centres.

    As tf.image.resize without antialias. Two looks per axis, not a matrix product.
    """
    for axis, size in enumerate(shape, 1):
        n = x.shape[axis]
        place = (np.arange(size) + 0.5) * n / size - 0.5
        low = np.floor(place)
        share = (place - low).reshape((-1,) + (1,) * (3 - axis))[None]
        if axis == 2:
            share = share[None]
        ends = [np.clip(low + i, 0, n - 1).astype(int) for i in (0, 1)]
        a, b = (jnp.take(x, end, axis=axis) for end in ends)
        x = a + (b - a) * jnp.asarray(share, x.dtype)
    return x


class _Bottleneck(nn.Module):
    """Ghost module, depthwise layer where strided, gate, ghost module, plus the input.

    Attributes:
        kernel: side of the depthwise kernels but the ghosts'.
        stride: of the first of them.
        inner: channels between the ghost modules.
        features: channels that come out.
        gated: squeeze and excite.
        attention: DFC, in the first ghost module.
        same: TensorFlow's padding.
        slope: of the gate's hard sigmoid.
        norm: `common.batch_norm` with train, axis and dtype bound.
        dtype: compute dtype.
    """

    kernel: int
    stride: int
    inner: int
    features: int
    gated: bool
    attention: bool
    same: bool
    slope: float
    norm: Callable[..., normalize.BatchNorm]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x [B, H, W, C] to [B, H', W', features].

        Raises:
            ValueError: an image too small for attention.
        """
        y = self.norm(name="ghost_1_prim_bn")(
            self._point(x, self.inner // 2, "ghost_1_prim")
        )
        y = common.activate(y, "prelu", name="ghost_1_prim_prelu")
        ghost = self.norm(name="ghost_1_cheap_bn")(self._shift(y, "ghost_1_cheap"))
        ghost = common.activate(ghost, "prelu", name="ghost_1_cheap_prelu")
        y = jnp.concatenate([y, ghost], -1)
        if self.attention:
            y = y * self._attend(x)
        if self.stride > 1:
            y = self._shift(y, "down", (self.kernel,) * 2, self.stride)
            y = self.norm(name="down_bn")(y)
        if self.gated:
            y = y * self._gate(y)
        return self._second(x, y)

    def _second(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """Add the second ghost module of y to x, whose shape is changed if need be.

        Keras lists layers by their distance from the end, so the two branches take
        turns: weights whose names say nothing are matched by that order.
        """
        y = self._point(y, self.features // 2, "ghost_2_prim")
        if self.stride == 1 and x.shape[-1] == self.features:
            y = self.norm(name="ghost_2_prim_bn")(y)
            ghost = self.norm(name="ghost_2_cheap_bn")(self._shift(y, "ghost_2_cheap"))
            return x + jnp.concatenate([y, ghost], -1)
        x = self._shift(x, "short_1", (self.kernel,) * 2, self.stride)
        y = self.norm(name="ghost_2_prim_bn")(y)
        x = self.norm(name="short_1_bn")(x)
        ghost = self._shift(y, "ghost_2_cheap")
        x = self._point(x, self.features, "short_2")
        ghost = self.norm(name="ghost_2_cheap_bn")(ghost)
        x = self.norm(name="short_2_bn")(x)
        return x + jnp.concatenate([y, ghost], -1)

    def _attend(self, x: jax.Array) -> jax.Array:
        """Look along rows and columns at half the size. GhostNetV2, section 4.1."""
        H, W = x.shape[1:3]
        if min(H, W) < 2:
            raise ValueError(f"attention halves its input {x.shape}; use larger images")
        far = nn.avg_pool(x, (2, 2), (2, 2))
        far = self._point(far, self.inner, "ghost_1_short_1")
        far = self.norm(name="ghost_1_short_1_bn")(far)
        far = self._shift(far, "ghost_1_short_2", (1, 5))
        far = self.norm(name="ghost_1_short_2_bn")(far)
        far = self._shift(far, "ghost_1_short_3", (5, 1))
        far = self.norm(name="ghost_1_short_3_bn")(far)
        return _resize(nn.sigmoid(far), (H, W))

    def _gate(self, x: jax.Array) -> jax.Array:
        """Squeeze to a quarter of the channels and excite, [B, 1, 1, C]."""
        dense = functools.partial(
            nn.Dense,
            dtype=self.dtype,
            param_dtype=common.wide(self.dtype),
            kernel_init=_init,
        )
        C = x.shape[-1]
        x = x.mean((1, 2), keepdims=True)
        x = dense(_channels(C / 4), name="se_1_conv")(x)
        x = common.activate(x, "prelu", name="se_prelu")
        x = dense(C, name="se_2_conv")(x)
        return jnp.clip(x * self.slope + 0.5, 0, 1)

    def _point(self, x: jax.Array, features: int, name: str) -> jax.Array:
        """Convolve 1x1, each pixel on its own."""
        conv = functools.partial(common.conv, kernel=1, dtype=self.dtype, init=_init)
        return conv(features, name=f"{name}_conv")(x)

    def _shift(
        self, x: jax.Array, name: str, kernel: tuple[int, int] = (3, 3), stride: int = 1
    ) -> jax.Array:
        """Convolve each channel on its own."""
        name = f"{name}_dw_conv"
        return _Depthwise(kernel, stride, self.same, self.dtype, name=name)(x)


class Model(nn.Module):
    """GhostFaceNet.

    Attributes:
        stages: bottlenecks per stage, at most (1, 2, 2, 6, 5); all but the first
            stage halve the image.
        version: 1, or 2 with DFC attention from the third bottleneck on. V2 comes
            from another library: it pads as torch does, its gates have slope 1/6
            instead of 1/5, and its last layers are wider.
        width: factor on all channels but the embedding's, rounded to multiples of 4.
        stem_stride: 1 or 2, the last number of the original's names.
        bias: whether the last layer has one.
        dim: D, the embedding size.
        dropout: rate before the last layer, 0 <= rate < 1.
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

    stages: tuple[int, ...] = (1, 2, 2, 6, 5)
    version: int = 1
    width: float = 1.3
    stem_stride: int = 1
    bias: bool = False
    dim: int = 512
    dropout: float = 0.0
    remat: bool | str = False
    axis: common.Axis = None
    dtype: Any = jnp.float32
    size: int | tuple[int, int] = 112
    color: str = "rgb"
    mean: common.Pixels = 127.5
    std: common.Pixels = 128.0

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
            ValueError: an unknown version, more bottlenecks than there are, images
                too small for attention, dropout out of range or without keys.
        """
        rows = _rows(self.stages, self.version)
        same = self.version == 1
        norm = functools.partial(
            common.batch_norm, train=train, axis=self.axis, dtype=self.dtype
        )
        conv = functools.partial(common.conv, dtype=self.dtype, init=_init)
        x = _stem(_channels(16 * self.width), self.stem_stride, same, self.dtype)(x)
        x = common.activate(norm(name="stem_bn")(x), "prelu", name="stem_prelu")
        for i, (kernel, stride, inner, features, gated) in enumerate(rows):
            block = common.remat(_Bottleneck, self.remat)
            x = block(
                kernel=kernel,
                stride=stride,
                inner=_channels(inner * self.width),
                features=_channels(features * self.width),
                gated=gated,
                attention=self.version == 2 and i >= _PLAIN,
                same=same,
                slope=1 / 5 if same else 1 / 6,
                norm=norm,
                dtype=self.dtype,
                name=f"stack{i + 1}",
            )(x)
        last = _channels(_LAST[self.version] * self.width)
        x = conv(last, kernel=1, name="pre_conv")(x)
        x = common.activate(norm(name="pre_bn")(x), "prelu", name="pre_prelu")
        # The original starts its head by Glorot; BatchNorm takes the scale away.
        head = heads.make(
            "GDC",
            dim=self.dim,
            norm=norm,
            dropout=self.dropout,
            dtype=self.dtype,
            bias=self.bias,
        )
        return head(x, train=train, keys=keys)


v1_2 = functools.partial(Model, stem_stride=2)
v1_1 = functools.partial(Model, bias=True)
v2_2 = functools.partial(Model, version=2, stem_stride=2)
v2_1 = functools.partial(Model, version=2)
tiny = functools.partial(
    Model,
    stages=(1, 1, 1, 1, 1),
    version=2,
    width=0.1,
    bias=True,
    dim=8,
    dropout=0.1,
    size=16,
)

_WHY = (
    "theirs is TensorFlow's profile halved, in which activations, gates and pools"
    " count; its convolutions alone are as many as ours"
)
_PLOT = "HamadYA/GhostFaceNets plot_parameters.py"
PUBLISHED = {
    "v1_2": Published(None, 60.3, _PLOT, _WHY),
    "v1_1": Published(None, 215.7, _PLOT, _WHY),
    "v2_1": Published(
        6.79572, 272.105, "HamadYA/GhostFaceNets Flops.ipynb, trainable", _WHY
    ),
}


@functools.cache
def _automatic() -> dict[str, str]:
    """Name V1's layers as Keras does where nobody else does: by kind and number.

    In the order in which the original makes them, for the first model of a session.
    """
    ghost_1 = ("prim_conv", "prim_bn", "prim_prelu", "cheap_dw_conv", "cheap_bn")
    ghost_2 = ("prim_conv", "prim_bn", "cheap_dw_conv", "cheap_bn")
    made, before = ["stem_conv", "stem_bn", "stem_prelu"], 16
    for i, (_, stride, _, features, gated) in enumerate(_rows((1, 2, 2, 6, 5), 1), 1):
        changed = stride > 1 or features != before
        parts = [f"ghost_1_{part}" for part in (*ghost_1, "cheap_prelu")]
        parts += ["down_dw_conv", "down_bn"] * (stride > 1)
        parts += ["se_1_conv", "se_prelu", "se_2_conv", "se_gate"] * gated
        parts += [f"ghost_2_{part}" for part in ghost_2]
        parts += [
            "short_1_dw_conv",
            "short_1_bn",
            "short_2_conv",
            "short_2_bn",
        ] * changed
        made += [f"stack{i}/{part}" for part in parts]
        before = features
    kinds = {
        "dw_conv": "depthwise_conv2d",
        "conv": "conv2d",
        "bn": "batch_normalization",
        "prelu": "activation",  # which the original replaces, the name stays
        "gate": "activation",
    }
    names: dict[str, str] = {}
    numbers = collections.Counter[str]()
    for path in [*made, "pre_conv", "pre_bn", "pre_prelu"]:
        kind = next(theirs for end, theirs in kinds.items() if path.endswith(end))
        names[path] = f"{kind}_{numbers[kind]}" if numbers[kind] else kind
        numbers[kind] += 1
    return names


_HEAD = (
    (r"^head$", "GDC_dw"),
    (r"^head/bn$", "GDC_batchnorm"),
    (r"^head/fc$", "GDC_conv"),
    (r"^head/features$", "pre_embedding"),
)
_keras = functools.partial(Port, conv1x1=r"^head/fc$|/se_\d_conv$", std=128.0)
PORTS = {
    # Keras counts on from model to model: of one that was not the first, V1's
    # names fit nothing, and its weights are matched by their order.
    "keras_v1": _keras(
        names=(*_HEAD, (r"^.+$", lambda m: _automatic().get(m[0], m[0])))
    ),
    "keras_v2": _keras(names=(*_HEAD, (r"^(stack\d+)/", r"\1_"))),
}
