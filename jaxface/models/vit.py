"""ViT for faces, as arcface_torch and CVLface train it: a dense head over all tokens.

No class token and no pooling: patches of 9 (or 8) pixels become 144 (196) tokens,
blocks of attention and a ReLU6 MLP follow, and all tokens, laid end to end, go through
two dense layers with BatchNorm. In training a tenth of the tokens is left out of the
blocks and a learned token stands in their places. Layer for layer arcface_torch's
`backbones/vit.py`; after Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR
2021, and He et al., "Masked Autoencoders", CVPR 2022, section 3, for the masking.

    model = vit.t(dtype="bfloat16", axis="data")
    variables = model.init(key, images)                       # [B, 112, 112, 3]
    embedding = model.apply(variables, images)                # [B, 512] float32
    webface42m = vit.t(drop_path=0.05, mask=0.0)              # vit_t_dp005_mask0
    huge = vit.Model(stages=(48,), width=1024, mask=0.0)      # vit_h
    small = vit.Model(stages=(2,), width=64, heads=4, dim=128)
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxface.models import common, convolve, normalize
from jaxface.types import Port, Published

# Theirs is cut off at 2, not at 2 standard deviations: a hundred of them.
_init = nn.initializers.normal(0.02)


class _Attention(nn.Module):
    """Multi-head self-attention; the products and the softmax are in float32."""

    heads: int
    dropout: float
    train: bool
    dense: Callable[..., nn.Dense]

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        B, N, D = x.shape
        qkv = self.dense(3 * D, use_bias=False, name="qkv")(x)
        # whatever the compute dtype, as arcface_torch does
        qkv = qkv.astype(common.wide(qkv.dtype))
        qkv = qkv.reshape(B, N, 3, self.heads, D // self.heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]  # [B, N, heads, d]
        scores = jnp.einsum("bnhd,bmhd->bhnm", q, k) * q.shape[-1] ** -0.5
        y = jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(scores), v)
        y = self.dense(D, name="proj")(y.reshape(B, N, D))
        return common.Dropout(self.dropout, name="drop")(y, train=self.train, keys=keys)


class _Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); either branch may be dropped."""

    heads: int
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
        attention = _Attention(self.heads, *given, name="attn")
        mlp = common.Mlp(hidden, nn.relu6, *given, name="mlp")
        x = self._add(x, attention(self.norm(name="norm1")(x), keys), keys, "path1")
        return self._add(x, mlp(self.norm(name="norm2")(x), keys), keys, "path2")

    def _add(
        self, x: jax.Array, branch: jax.Array, keys: jax.Array | None, name: str
    ) -> jax.Array:
        """Add a branch, or for some examples of a training batch nothing."""
        branch = branch.astype(x.dtype)  # the sum stays float32, as under autocast
        drop = common.Dropout(self.drop_path, whole=True, name=name)
        return x + drop(branch, train=self.train, keys=keys)


class _Head(nn.Module):
    """All tokens [B, N D] -> dense, BatchNorm, dense, BatchNorm, in float32."""

    hidden: int
    dim: int
    dense: Callable[..., nn.Dense]
    norm: Callable[..., normalize.BatchNorm]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.dense(self.hidden, use_bias=False, name="fc1")(x)
        x = self.norm(name="bn1")(x)
        x = self.dense(self.dim, use_bias=False, name="fc2")(x)
        return self.norm(name="features")(x)


class Model(nn.Module):
    """Vision transformer.

    Two deviations from the original. Which tokens are left out and which branches are
    dropped belongs to the example and its key, not to the batch. And `mask` is the
    share that is left out, where arcface_torch and CVLface only ask whether it is
    above 0 and then leave out a tenth: their "mask_005" is `mask=0.1` here.

    Attributes:
        stages: the number of blocks, as a tuple of one.
        width: channels of a token; `heads` must divide it.
        heads: of the attention.
        patch: pixels per side of a patch; what is left at the lower and right edges
            of the image is not looked at (4 of 112 pixels at 9).
        expand: hidden channels of the MLP, times `width`.
        dim: D, the embedding size.
        dropout: rate after the position embedding and in the blocks, 0 in all variants.
        drop_path: rate at which a branch of the last block is dropped; it grows
            evenly from 0 in the first.
        mask: share of the tokens left out in training, 0 <= mask < 1. At 0 the
            parameter `mask_token` exists and does nothing, as in arcface_torch; None
            is 0 without it, as in CVLface.
        remat: recompute blocks in the backward pass, for less memory;
            or a key of `common.POLICIES`.
        axis: mesh axis name(s) the head's BatchNorm is synced over; None: local.
        dtype: compute dtype of patches and blocks; parameters, the sums between
            blocks, attention, the head and embeddings are float32.
        size: pixels of the images it is made for, per side or (H, W); the position
            embedding and the head take their shape from the images `init` sees.
        color: channel order of the images.
        mean: what was taken off their pixels 0 .. 255.
        std: and what the rest was divided by.
    """

    stages: tuple[int, ...] = (12,)
    width: int = 256
    heads: int = 8
    patch: int = 9
    expand: float = 4.0
    dim: int = 512
    dropout: float = 0.0
    drop_path: float = 0.1
    mask: float | None = 0.1
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
            train: use and update batch statistics, leave out tokens, drop branches.
            keys: [B] typed PRNG keys, one per example; needed in training where mask,
                drop_path or dropout > 0.

        Returns:
            [B, D] float32, not normalised.

        Raises:
            ValueError: more than one stage, heads that do not divide the width, images
                smaller than a patch, a rate out of range or without keys.
        """
        self._check(x)
        full = common.wide(self.dtype)
        x = self._tokens(x)  # [B, N, width]
        B, N, C = x.shape
        places = jnp.zeros_like(x)  # what stands where tokens are left out
        if self.mask is not None:
            token = self.param("mask_token", _init, (1, 1, C), full)
            places = jnp.broadcast_to(token, x.shape)
        x = common.Dropout(self.dropout, name="drop")(x, train=train, keys=keys)
        if train and self.mask:
            shown = jnp.arange(B)[:, None], self._shown(N, keys)  # [B, kept]
            x = self._blocks(x[shown], train=train, keys=keys)
            x = places.at[shown].set(x, unique_indices=True)
        else:
            x = self._blocks(x, train=train, keys=keys)
        head = _Head(
            hidden=C,
            dim=self.dim,
            dense=functools.partial(
                nn.Dense, dtype=full, param_dtype=full, kernel_init=_init
            ),
            norm=functools.partial(
                common.batch_norm,
                train=train,
                axis=self.axis,
                dtype=full,
                epsilon=2e-5,
            ),
            name="head",
        )
        # not common.Flatten: tokens lie end to end in the other projects as well
        return head(x.reshape(B, N * C))

    def _check(self, x: jax.Array) -> None:
        if len(self.stages) != 1 or self.stages[0] < 1:
            raise ValueError(f"stages {self.stages}; wanted one, such as (12,)")
        if self.width % self.heads:
            raise ValueError(
                f"width {self.width} is no multiple of {self.heads} heads; change one"
            )
        if min(x.shape[1:3]) < self.patch:
            raise ValueError(
                f"images {x.shape} are smaller than a patch of {self.patch} pixels; use"
                " larger images or smaller patches"
            )
        if self.mask is not None and not 0 <= self.mask < 1:
            raise ValueError(f"mask {self.mask}; wanted None or 0 <= mask < 1")

    def _tokens(self, x: jax.Array) -> jax.Array:
        """Cut images [B, H, W, 3] into tokens with positions [B, N, width]."""
        full = common.wide(self.dtype)
        embed = nn.Conv(
            self.width,
            (self.patch, self.patch),
            strides=(self.patch, self.patch),
            padding="VALID",
            dtype=self.dtype,
            param_dtype=full,
            kernel_init=common.torch_linear,
            bias_init=common.torch_bias(3 * self.patch**2),
            name="patch",
        )
        x = embed(x)
        x = x.reshape(len(x), -1, self.width).astype(full)
        shape = (1, x.shape[1], self.width)
        return x + self.param("pos_embed", _init, shape, full)

    def _blocks(
        self, x: jax.Array, *, train: bool, keys: jax.Array | None
    ) -> jax.Array:
        """Run the blocks and the norm after them on tokens [B, n, width]."""
        full = common.wide(self.dtype)
        norm = functools.partial(
            nn.LayerNorm, epsilon=1e-5, param_dtype=full, use_fast_variance=False
        )
        block = common.remat(_Block, self.remat)
        for i, rate in enumerate(np.linspace(0, self.drop_path, self.stages[0])):
            x = block(
                heads=self.heads,
                expand=self.expand,
                dropout=self.dropout,
                drop_path=float(rate),
                train=train,
                dense=functools.partial(
                    nn.Dense,
                    dtype=self.dtype,
                    param_dtype=full,
                    kernel_init=_init,
                    dot_general=convolve.dot,
                ),
                norm=functools.partial(norm, dtype=self.dtype),
                name=f"block{i}",
            )(x, keys)
        return norm(dtype=full, name="norm")(x)

    def _shown(self, N: int, keys: jax.Array | None) -> jax.Array:
        """Choose the tokens the blocks see, for each example: [B, kept] of 0 .. N - 1.

        Raises:
            ValueError: no keys, or nothing left to see.
        """
        assert self.mask is not None
        kept = int(N * (1 - self.mask))
        if keys is None:
            raise ValueError(
                f"mask {self.mask} in training needs `keys`, one PRNG key per example;"
                " pass keys=jax.random.split(key, B) or set mask=0"
            )
        if kept < 1:
            raise ValueError(f"mask {self.mask} leaves none of {N} tokens; lower it")
        # as common.Dropout: an example's own key, and a number of its own for here
        place = zlib.crc32("/".join((*self.path, "mask")).encode())

        def choose(key: jax.Array) -> jax.Array:
            key = jax.random.fold_in(key, place)
            return jnp.argsort(jax.random.uniform(key, (N,)))[:kept]

        return jax.vmap(choose)(keys)


t = functools.partial(Model)
s = functools.partial(Model, width=512)
b = functools.partial(Model, stages=(24,), width=512)
l = functools.partial(Model, stages=(24,), width=768, drop_path=0.05)  # noqa: E741
_CVLFACE = functools.partial(Model, width=512, patch=8, mask=None)
cvlface_small = functools.partial(_CVLFACE, expand=5.0)
cvlface_base = functools.partial(_CVLFACE, stages=(24,), heads=16, expand=3.0)
tiny = functools.partial(
    Model,
    stages=(2,),
    width=16,
    heads=2,
    patch=4,
    dim=8,
    dropout=0.1,
    drop_path=0.2,
    mask=0.25,
    size=18,
)

_README = "insightface recognition/arcface_torch/README.md, section 3, GFLOPs"
PUBLISHED = {
    "t": Published(None, 1500.0, _README),
    "s": Published(None, 5700.0, _README, why="printed as 5.7, with one decimal"),
    "b": Published(None, 11400.0, _README),
    "l": Published(None, 25300.0, _README),
}

_NAMES = (
    (r"^patch$", "patch_embed/proj"),
    (r"^block(\d+)", r"blocks/\1"),
    (r"^head/fc1$", "feature/0"),
    (r"^head/bn1$", "feature/1"),
    (r"^head/fc2$", "feature/2"),
    (r"^head/features$", "feature/3"),
)
PORTS = {
    # LVFace's weights (You et al., ICCV 2025) have the same names
    "arcface_torch": Port(names=_NAMES),
    # the network is an attribute of CVLface's model
    "cvlface": Port(names=(*_NAMES, (r"^$", "net"), (r"^(?!net$)", "net/"))),
}
