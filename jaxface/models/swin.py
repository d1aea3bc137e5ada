"""Swin transformer for faces, as FaceX-Zoo trains it: a dense head over all tokens.

Four stages halve the image and double the channels. Attention looks at windows of 7x7
tokens, with a learned bias for every offset between two of them; every other block
shifts the windows by half, so that neighbours mix. After the last stage all tokens,
laid end to end, go through a dense layer and BatchNorm. Source: Liu et al., "Swin
Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021
(arXiv:2103.14030), section 3; Wang et al., "FaceX-Zoo", ACM MM 2021, for the head.

    model = swin.t(dtype="bfloat16", axis="data")
    variables = model.init(key, images)                     # [B, 224, 224, 3]
    embedding = model.apply(variables, images)              # [B, 512] float32
    aligned = swin.t(size=112, patch=2)                     # the same for 112 pixels
    small = swin.Model(stages=(2, 2), heads=(2, 4), width=32, size=56, dim=128)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxface.models import common, convolve
from jaxface.types import Port, Published

# Theirs is cut off at 2, not at 2 standard deviations: a hundred of them.
_init = nn.initializers.normal(0.02)


def _windows(x: jax.Array, side: int) -> jax.Array:
    """Cut [B, H, W, C] into windows [B, H W / side^2, side^2, C], row by row."""
    B, H, W, C = x.shape
    x = x.reshape(B, H // side, side, W // side, side, C)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, -1, side * side, C)


def _whole(x: jax.Array, H: int, W: int) -> jax.Array:
    """Put windows together again: `_windows` backwards."""
    B, _, N, C = x.shape
    side = round(N**0.5)
    x = x.reshape(B, H // side, W // side, side, side, C)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, H, W, C)


def _offsets(side: int) -> np.ndarray:
    """Number the offsets between any two tokens of a window: [N, N], N = side^2.

    The offset of i from j, each of its coordinates counted from 1 - side, as one
    number of 0 .. (2 side - 1)^2 - 1, rows first.
    """
    places = np.stack(np.divmod(np.arange(side**2), side), -1)  # [N, 2]
    apart = places[:, None] - places[None] + side - 1
    return apart @ np.array([2 * side - 1, 1])


def _foreign(H: int, W: int, side: int, shift: int) -> np.ndarray:
    """Tell which tokens of a shifted window were no neighbours before.

    Shifting rolls the first rows and columns to the far ends, where they share windows
    with the last ones.

    Returns:
        [H W / side^2, N, N] bool, N = side^2, True where two tokens must not meet.
    """
    rolled = [np.arange(n) >= n - shift for n in (H, W)]
    part = 2 * rolled[0][:, None] + rolled[1][None]  # [H, W]
    part = part.reshape(H // side, side, W // side, side).transpose(0, 2, 1, 3)
    part = part.reshape(-1, side * side)
    return part[:, :, None] != part[:, None]


class _Attention(nn.Module):
    """Multi-head self-attention in windows; products and softmax are in float32."""

    heads: int
    side: int
    shift: int
    dropout: float
    train: bool
    dense: Callable[..., nn.Dense]

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        _, H, W, C = x.shape
        if self.shift:
            x = jnp.roll(x, (-self.shift, -self.shift), (1, 2))
        x = _windows(x, self.side)  # [B, n, N, C]
        B, n, N, _ = x.shape
        qkv = self.dense(3 * C, name="qkv")(x)
        qkv = qkv.astype(common.wide(qkv.dtype))
        qkv = qkv.reshape(B, n, N, 3, self.heads, C // self.heads)
        q, k, v = qkv[:, :, :, 0], qkv[:, :, :, 1], qkv[:, :, :, 2]
        # eq. (4): softmax(q k' / sqrt(d) + b) v
        scores = jnp.einsum("bnihd,bnjhd->bnhij", q * q.shape[-1] ** -0.5, k)
        scores = scores + self._bias(qkv.dtype)[None, None]
        if self.shift:
            far = _foreign(H, W, self.side, self.shift)[None, :, None]
            scores = scores + jnp.where(far, -100.0, 0.0).astype(scores.dtype)
        y = jnp.einsum("bnhij,bnjhd->bnihd", jax.nn.softmax(scores), v)
        y = self.dense(C, name="proj")(y.reshape(B, n, N, C))
        y = common.Dropout(self.dropout, name="drop")(y, train=self.train, keys=keys)
        y = _whole(y, H, W)
        return jnp.roll(y, (self.shift, self.shift), (1, 2)) if self.shift else y

    def _bias(self, dtype: Any) -> jax.Array:
        """What is added to the scores of two tokens: [heads, N, N]."""
        shape = ((2 * self.side - 1) ** 2, self.heads)
        table = self.param("relative_position_bias_table", _init, shape, dtype)
        return table[_offsets(self.side)].transpose(2, 0, 1)


class _Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): eq. (3).

    For some examples of a training batch either branch is left out.
    """

    heads: int
    side: int
    shift: int
    expand: float
    dropout: float
    drop_path: float
    train: bool
    dense: Callable[..., nn.Dense]
    norm: Callable[..., nn.LayerNorm]

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        given = self.dropout, self.train, self.dense
        hidden = int(x.shape[-1] * self.expand)
        attention = _Attention(self.heads, self.side, self.shift, *given, name="attn")
        gelu = functools.partial(nn.gelu, approximate=False)
        mlp = common.Mlp(hidden, gelu, *given, name="mlp")
        x = self._add(x, attention(self.norm(name="norm1")(x), keys), keys, "path1")
        return self._add(x, mlp(self.norm(name="norm2")(x), keys), keys, "path2")

    def _add(
        self, x: jax.Array, branch: jax.Array, keys: jax.Array | None, name: str
    ) -> jax.Array:
        branch = branch.astype(x.dtype)  # the sum stays float32, as under autocast
        drop = common.Dropout(self.drop_path, whole=True, name=name)
        return x + drop(branch, train=self.train, keys=keys)


class _Merge(nn.Module):
    """The four tokens of every 2x2 side by side, norm, dense to twice the channels."""

    dense: Callable[..., nn.Dense]
    norm: Callable[..., nn.LayerNorm]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        B, H, W, C = x.shape
        if H % 2 or W % 2:
            raise ValueError(
                f"{H} x {W} tokens cannot be merged by twos; use images whose sides are"
                " a multiple of patch * 2^(stages - 1) * window"
            )
        y = x.reshape(B, H // 2, 2, W // 2, 2, C)
        # down before right: the second is the token below the first
        y = y.transpose(0, 1, 3, 4, 2, 5).reshape(B, H // 2, W // 2, 4 * C)
        y = self.dense(2 * C, use_bias=False, name="reduction")(
            self.norm(name="norm")(y)
        )
        return y.astype(x.dtype)


class Model(nn.Module):
    """Swin transformer; the defaults are Swin-T.

    One deviation: which branches are dropped belongs to the example and its key.

    Attributes:
        stages: blocks per stage; every other one, the first aside, shifts its windows.
        heads: of the attention, per stage; they must divide its channels.
        width: channels of the first stage; each further stage has twice as many.
        patch: pixels per side of a patch, which becomes a token.
        window: tokens per side of a window; where a side of the image has no more, the
            window is that side and nothing is shifted.
        expand: hidden channels of the MLP, times those of the stage.
        dim: D, the embedding size.
        dropout: rate after the patches and in the blocks, 0 in all variants.
        drop_path: rate at which a branch of the last block is dropped; it grows evenly
            from 0 in the first.
        remat: recompute blocks in the backward pass, for less memory;
            or a key of `common.POLICIES`.
        axis: mesh axis name(s) the head's BatchNorm is synced over; None: local.
        dtype: compute dtype of patches and blocks; parameters, the sums between
            blocks, attention, the head and embeddings are float32.
        size: pixels of the images it is made for, per side or (H, W); the dense layer
            takes its shape from the images `init` sees.
        color: channel order of the images.
        mean: what was taken off their pixels 0 .. 255.
        std: and what the rest was divided by.
    """

    stages: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    width: int = 96
    patch: int = 4
    window: int = 7
    expand: float = 4.0
    dim: int = 512
    dropout: float = 0.0
    drop_path: float = 0.2
    remat: bool | str = False
    axis: common.Axis = None
    dtype: Any = jnp.float32
    size: int | tuple[int, int] = 224
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
            train: use and update batch statistics, drop values and branches.
            keys: [B] typed PRNG keys, one per example; needed in training where
                drop_path or dropout > 0.

        Returns:
            [B, D] float32, not normalised.

        Raises:
            ValueError: stages and heads of different lengths, heads that do not divide
                the channels, images that cannot be cut into patches and windows, a
                rate out of range or without keys.
        """
        self._check(x)
        full = common.wide(self.dtype)
        dense = functools.partial(
            nn.Dense, param_dtype=full, kernel_init=_init, dot_general=convolve.dot
        )
        norm = functools.partial(
            nn.LayerNorm, epsilon=1e-5, param_dtype=full, use_fast_variance=False
        )
        x = norm(dtype=full, name="patch_norm")(self._patches(x))
        x = common.Dropout(self.dropout, name="drop")(x, train=train, keys=keys)
        x = self._stages(x, dense, norm, train=train, keys=keys)
        x = norm(dtype=full, name="norm")(x)
        # not common.Flatten: there too tokens lie end to end, not channels
        x = dense(self.dim, dtype=full, name="fc")(x.reshape(len(x), -1))
        last = common.batch_norm(
            train=train, axis=self.axis, dtype=full, name="features"
        )
        return last(x)

    def _check(self, x: jax.Array) -> None:
        if len(self.stages) != len(self.heads):
            raise ValueError(
                f"stages {self.stages} and heads {self.heads}: wanted one number of"
                " heads per stage"
            )
        widths = [self.width * 2**i for i in range(len(self.heads))]
        if any(w % h for w, h in zip(widths, self.heads, strict=True)):
            raise ValueError(
                f"channels {widths} are no multiples of heads {self.heads}; change"
                " either"
            )
        if min(x.shape[1:3]) < self.patch:
            raise ValueError(
                f"images {x.shape} are smaller than a patch of {self.patch} pixels; use"
                " larger images or smaller patches"
            )

    def _patches(self, x: jax.Array) -> jax.Array:
        """Cut images [B, H, W, 3] into tokens [B, H', W', width]."""
        full = common.wide(self.dtype)
        embed = nn.Conv(
            self.width,
            (self.patch, self.patch),
            strides=(self.patch, self.patch),
            padding="VALID",
            dtype=self.dtype,
            param_dtype=full,
            kernel_init=common.torch_linear,
            bias_init=common.torch_bias(x.shape[-1] * self.patch**2),
            name="patch",
        )
        return embed(x).astype(full)

    def _stages(
        self,
        x: jax.Array,
        dense: Callable[..., nn.Dense],
        norm: Callable[..., nn.LayerNorm],
        *,
        train: bool,
        keys: jax.Array | None,
    ) -> jax.Array:
        """Run all blocks on tokens [B, H, W, width]; the last stage has [.., C]."""
        dense = functools.partial(dense, dtype=self.dtype)
        norm = functools.partial(norm, dtype=self.dtype)
        block = functools.partial(
            common.remat(_Block, self.remat),
            expand=self.expand,
            dropout=self.dropout,
            train=train,
            dense=dense,
            norm=norm,
        )
        rates = iter(np.linspace(0, self.drop_path, sum(self.stages)))
        for i, (blocks, heads) in enumerate(zip(self.stages, self.heads, strict=True)):
            if i:
                x = _Merge(dense, norm, name=f"merge{i - 1}")(x)
            side, shift = self._window(x)
            for j in range(blocks):
                x = block(
                    heads=heads,
                    side=side,
                    shift=shift if j % 2 else 0,
                    drop_path=float(next(rates)),
                    name=f"layer{i}_{j}",
                )(x, keys)
        return x

    def _window(self, x: jax.Array) -> tuple[int, int]:
        """Choose (side, shift) of the windows on tokens [B, H, W, C]."""
        _, H, W, _ = x.shape
        if min(H, W) <= self.window:
            side, shift = min(H, W), 0
        else:
            side, shift = self.window, self.window // 2
        if H % side or W % side:
            raise ValueError(
                f"{H} x {W} tokens cannot be cut into windows of {side}; use images"
                " whose sides are a multiple of patch * 2^(stages - 1) * window"
            )
        return side, shift


t = functools.partial(Model)
s = functools.partial(Model, stages=(2, 2, 18, 2), drop_path=0.3)
tiny = functools.partial(
    Model,
    stages=(2, 1),
    heads=(2, 4),
    width=8,
    patch=2,
    window=4,
    expand=2.0,
    dim=8,
    dropout=0.1,
    drop_path=0.2,
    size=16,
)

_ZOO = "JDAI-CV/FaceX-Zoo training_mode/README.md, counted by THOP"
_LAYERS = "THOP counts layers alone, not the products of queries, keys and values"
PUBLISHED = {
    "t": Published(46.74, 4370.0, _ZOO, why=_LAYERS),
    "s": Published(68.01, 8530.0, _ZOO, why=_LAYERS),
}

PORTS = {
    "facex_zoo": Port(
        names=(
            (r"^patch$", "patch_embed.proj"),
            (r"^patch_norm$", "patch_embed.norm"),
            (r"^layer(\d)_(\d+)", r"layers.\1.blocks.\2"),
            (r"^merge(\d)", r"layers.\1.downsample"),
            (r"^norm$", "output_layer.0"),
            (r"^fc$", "output_layer.2"),
            (r"^features$", "output_layer.3"),
        ),
        # tables of what `_offsets` and `_foreign` compute
        skip=r"\.(relative_position_index|attn_mask)$",
        color="bgr",
        std=128.0,
    ),
}
