"""Light CNN: convolutions of which the larger of two outputs is kept, on grey images.

The max-feature-map, MFM, halves the channels of every layer and is the only
non-linearity besides pooling. Wu et al., "A Light CNN for Deep Face Representation with
Noisy Labels", IEEE TIFS 2018 (arXiv:1511.02683), section III; the nets are those of the
makers' PyTorch files, and FaceX-Zoo's, which looks at colours and ends in BatchNorm.

The originals are fed grey images, as PIL and OpenCV make them: Y = 0.299 R + 0.587 G +
0.114 B (ITU-R BT.601). Here the net takes three channels like all others and forms Y
itself, in the order `color` says. PIL and OpenCV round Y to whole grey levels; this
does not.

    model = lightcnn.lightcnn29(dtype="bfloat16")
    variables = model.init(key, images)                     # [B, 128, 128, 3] in 0 .. 1
    embedding = model.apply(variables, images)              # [B, 256] float32
    small = lightcnn.Model(stages=(1, 1, 1, 1), widths=(8, 16, 32, 16), dim=64)
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxface.models import common, heads
from jaxface.types import Port, Published

LUMA = (0.299, 0.587, 0.114)  # of red, green, blue; their sum is 1


class _Mfm(nn.Module):
    """A convolution, or a dense layer where kernel is 0, and the max-feature-map."""

    features: int
    kernel: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        k, fan_in = self.kernel, x.shape[-1] * max(1, self.kernel**2)
        layer = functools.partial(nn.Conv, kernel_size=(k, k)) if k else nn.Dense
        y = layer(
            features=2 * self.features,
            dtype=self.dtype,
            param_dtype=common.wide(self.dtype),
            kernel_init=common.torch_linear,
            bias_init=common.torch_bias(fan_in),
            name="filter",
        )(x)
        # section III-A: of N features, k competes with k + N / 2
        return jnp.maximum(y[..., : self.features], y[..., self.features :])


class _Block(nn.Module):
    """Two MFM layers of 3x3, plus the input."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        layer = functools.partial(_Mfm, x.shape[-1], 3, self.dtype)
        return x + layer(name="conv2")(layer(name="conv1")(x))


class _Group(nn.Module):
    """MFM layers of 1x1, which keeps the channels, and of 3x3."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = _Mfm(x.shape[-1], 1, self.dtype, name="conv_a")(x)
        return _Mfm(self.features, 3, self.dtype, name="conv")(x)


def _pool(x: jax.Array, kind: str) -> jax.Array:
    """Pool every 2x2 pixels; an odd last row or column counts for "max" alone.

    Slices instead of a window: the gradient of a windowed maximum is slow on XLA:CPU.
    """
    if kind == "max":  # as with torch's ceil_mode: the edge is its own neighbour
        odd = [(0, n % 2) for n in x.shape[1:3]]
        x = jnp.pad(x, ((0, 0), *odd, (0, 0)), mode="edge")
    h, w = (n // 2 * 2 for n in x.shape[1:3])
    rows = x[:, 0:h:2, :w], x[:, 1:h:2, :w]
    top = jnp.maximum(*rows)
    top = jnp.maximum(top[:, :, 0::2], top[:, :, 1::2])
    if kind == "max":
        return top
    mean = (rows[0] + rows[1]) / 4
    return top + mean[:, :, 0::2] + mean[:, :, 1::2]


class Model(nn.Module):
    """Light CNN; the defaults are Light CNN-29.

    Attributes:
        stages: residual blocks before each of the four groups that widen; may be 0.
        widths: channels of the first layer and after the first three groups; the
            fourth keeps what the third gives.
        kernel: side of the first layer's kernel.
        pool: "max", or "sum" of largest and mean.
        grey: whether the net turns its images into grey ones first.
        head: what makes the embedding of the pixels: "mfm", a dense layer with MFM;
            "linear"; or "E", InsightFace's, with all scales learned.
        dim: D, the embedding size.
        dropout: rate, 0 <= rate < 1; on the embedding in training, as in the
            originals, and with head "E" before its dense layer.
        remat: recompute blocks in the backward pass: less memory, a third more time;
            or a key of `common.POLICIES`.
        axis: mesh axis name(s) the BatchNorm of head "E" is synced over; None: local.
            Without that head there is none.
        dtype: compute dtype; parameters, the head and embeddings are float32.
        size: pixels of the images it is made for, per side or (H, W); any size works,
            and the dense layer takes its shape from the images `init` sees.
        color: channel order of the images.
        mean: what was taken off their pixels 0 .. 255.
        std: and what the rest was divided by.
    """

    stages: tuple[int, ...] = (1, 2, 3, 4)
    widths: tuple[int, ...] = (48, 96, 192, 128)
    kernel: int = 5
    pool: str = "max"
    grey: bool = True
    head: str = "mfm"
    dim: int = 256
    dropout: float = 0.5
    remat: bool | str = False
    axis: common.Axis = None
    dtype: Any = jnp.float32
    size: int | tuple[int, int] = 128
    color: str = "rgb"
    mean: common.Pixels = 0.0
    std: common.Pixels = 255.0

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, keys: jax.Array | None = None
    ) -> jax.Array:
        """Embed images.

        Args:
            x: [B, H, W, 3], normalised as `color`, `mean` and `std` say.
            train: drop values; use and update batch statistics of head "E".
            keys: [B] typed PRNG keys, one per example; needed where dropout > 0.

        Returns:
            [B, D] float32, not normalised.

        Raises:
            ValueError: other than four stages and widths, an unknown pool or head,
                `grey` with channels that are normalised differently, dropout out of
                range or without keys.
        """
        self._check()
        if self.grey:
            x = self._to_grey(x)
        block = common.remat(_Block, self.remat)
        x = _Mfm(self.widths[0], self.kernel, self.dtype, name="conv1")(x)
        x = _pool(x, self.pool)
        after = (*self.widths[1:], self.widths[-1])
        for i, (blocks, width) in enumerate(zip(self.stages, after, strict=True), 1):
            for j in range(blocks):
                x = block(self.dtype, name=f"block{i}_{j}")(x)
            x = _Group(width, self.dtype, name=f"group{i}")(x)
            if i != 3:
                x = _pool(x, self.pool)
        return self._embed(x, train=train, keys=keys)

    def _check(self) -> None:
        if len(self.stages) != 4 or len(self.widths) != 4:
            raise ValueError(
                f"stages {self.stages} and widths {self.widths}: wanted four of each"
            )
        for name, known in (("pool", ("max", "sum")), ("head", ("mfm", "linear", "E"))):
            if (given := getattr(self, name)) not in known:
                raise ValueError(f"{name} {given!r} unknown; wanted one of {known}")
        if self.grey and (np.ptp(self.mean) or np.ptp(self.std)):
            raise ValueError(
                f"mean {self.mean} and std {self.std} differ between channels, which"
                " would tint the grey; give one number each, or set grey=False"
            )

    def _to_grey(self, x: jax.Array) -> jax.Array:
        """Map [B, H, W, 3] to [B, H, W, 1].

        With one mean and std for all channels they may well be normalised already.
        """
        luma = jnp.asarray(LUMA if self.color == "rgb" else LUMA[::-1], x.dtype)
        return (x * luma[None, None, None]).sum(-1, keepdims=True)

    def _embed(self, x: jax.Array, *, train: bool, keys: jax.Array | None) -> jax.Array:
        full = common.wide(self.dtype)
        if self.head == "E":
            norm = functools.partial(common.batch_norm, train=train, axis=self.axis)
            head = heads.make(
                "E",
                affine="both",
                dim=self.dim,
                norm=norm,
                dropout=self.dropout,
                dtype=self.dtype,
            )
            return head(x, train=train, keys=keys)
        x = common.Flatten(name="flat")(x.astype(full))
        if self.head == "mfm":
            x = _Mfm(self.dim, 0, full, name="fc")(x)
        else:
            x = nn.Dense(
                self.dim,
                dtype=full,
                param_dtype=full,
                kernel_init=common.torch_linear,
                bias_init=common.torch_bias(x.shape[-1]),
                name="fc",
            )(x)
        return common.Dropout(self.dropout, name="dropout")(x, train=train, keys=keys)


lightcnn9 = functools.partial(Model, stages=(0, 0, 0, 0))
lightcnn29 = functools.partial(Model)
lightcnn29v2 = functools.partial(Model, pool="sum", head="linear")
# FaceX-Zoo: 112 pixels in bgr; a fifth of the values is dropped before the dense layer
facex_zoo = functools.partial(
    Model,
    pool="sum",
    grey=False,
    head="E",
    dim=512,
    dropout=0.2,
    size=112,
    color="bgr",
    mean=127.5,
    std=128.0,
)
tiny = functools.partial(
    Model,
    stages=(1, 0, 1, 0),
    widths=(4, 8, 8, 4),
    kernel=3,
    pool="sum",
    head="E",
    dim=8,
    dropout=0.1,
    size=16,
)

PUBLISHED = {
    "facex_zoo": Published(11.60, 2840.0, "JDAI-CV/FaceX-Zoo training_mode/README.md"),
}

_NAMES = ((r"^(block\d)_(\d+)", r"\1.\2"),)
_CLASSIFIER = r"^fc2\."
_LIGHTCNN = Port(names=_NAMES, skip=_CLASSIFIER, mean=0.0, std=255.0)
PORTS = {
    "lightcnn29": _LIGHTCNN,
    "lightcnn29v2": _LIGHTCNN,
    "lightcnn9": Port(
        names=(
            (r"^conv1/", "features.0/"),
            # pools stand between the groups of their list, but not after the third
            (r"^group(\d)", lambda m: f"features.{(2, 4, 6, 7)[int(m[1]) - 1]}"),
            (r"^fc/", "fc1/"),
        ),
        skip=_CLASSIFIER,
        mean=0.0,
        std=255.0,
    ),
    "facex_zoo": Port(
        names=(
            *_NAMES,
            (r"^head/bn2$", "output_layer.0"),
            (r"^head/fc$", "output_layer.3"),
            (r"^head/features$", "output_layer.4"),
        ),
        color="bgr",
        std=128.0,
    ),
}
