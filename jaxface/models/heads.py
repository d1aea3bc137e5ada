"""From a feature map to an embedding: the heads E, GDC, GAP and GNAP of the field.

All are called alike and end in a BatchNorm named `features`; what they differ in is
how pixels become one vector. Where the originals disagree whether that last norm has
a scale and a bias, `affine` says which.

    head = heads.make("E", dim=512, norm=norm, dropout=0.4)
    embedding = head(x, train=train, keys=keys)         # [B, H, W, C] -> [B, D]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxface.models import common, depthwise, normalize

AFFINE = {  # of the last norm: what is learned there
    "both": {},
    "bias": {"use_scale": False},
    "none": {"use_scale": False, "use_bias": False},
}


def make(
    kind: str,
    *,
    affine: str = "",
    kernel_init: Any = None,
    name: str = "head",
    **given: Any,
) -> nn.Module:
    """Make the head of that name.

    Args:
        kind: "E", "GDC", "GAP" or "GNAP".
        affine: "both", "bias" or "none"; "" is the kind's own.
        kernel_init: initialiser of the dense layer; None is the kind's own.
        name: of the module.
        given: dim, norm, dropout, dtype, bias.

    Raises:
        ValueError: an unknown kind or affine.
    """
    known = {"E": E, "GDC": GDC, "GAP": GAP, "GNAP": GNAP}
    if kind not in known:
        raise ValueError(f"head {kind!r} unknown; wanted one of {', '.join(known)}")
    if affine and affine not in AFFINE:
        raise ValueError(f"affine {affine!r}; wanted one of {', '.join(AFFINE)}")
    if affine:
        given["affine"] = affine
    if kernel_init:
        given["kernel_init"] = kernel_init
    return known[kind](name=name, **given)


class _Head(nn.Module):
    """What the heads share.

    Attributes:
        dim: D, the embedding size.
        norm: `common.batch_norm` with train and axis bound.
        dropout: rate before the dense layer.
        dtype: compute dtype up to the dense layer, which runs in float32.
        bias: whether the dense layer has one.
        affine: what the last norm learns, a key of `AFFINE`.
        kernel_init: initialiser of the dense layer.
    """

    dim: int
    norm: Callable[..., normalize.BatchNorm]
    dropout: float = 0.0
    dtype: Any = jnp.float32
    bias: bool = False
    affine: str = "both"
    kernel_init: Any = common.kaiming_out

    def drop(self, x: jax.Array, *, train: bool, keys: jax.Array | None) -> jax.Array:
        """Drop values of x."""
        return common.Dropout(self.dropout, name="dropout")(x, train=train, keys=keys)

    def finish(self, x: jax.Array) -> jax.Array:
        """Map [B, ...] to [B, D]: flatten, dense, norm, all in float32."""
        x = common.Flatten(name="flat")(x)
        full = common.wide(self.dtype)
        dense = nn.Dense(
            self.dim,
            use_bias=self.bias,
            dtype=full,
            param_dtype=full,
            kernel_init=self.kernel_init,
            name="fc",
        )
        return self.last(dense(x))

    def last(self, x: jax.Array) -> jax.Array:
        """Apply the norm that ends every head."""
        full = common.wide(self.dtype)
        return self.norm(dtype=full, name="features", **AFFINE[self.affine])(x)


class E(_Head):
    """InsightFace's head "E": BatchNorm, dropout, dense over all pixels, BatchNorm.

    The last scale is fixed at 1, as in arcface_torch, and is no parameter here.
    """

    bias: bool = True
    affine: str = "bias"
    kernel_init: Any = common.torch_linear

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, keys: jax.Array | None
    ) -> jax.Array:
        """Map features [B, H, W, C] to embeddings [B, D] float32."""
        x = self.norm(dtype=self.dtype, name="bn2")(x)
        x = self.drop(x, train=train, keys=keys)
        return self.finish(x)


class GDC(_Head):
    """MobileFaceNet's: a weighted sum over pixels per channel, BatchNorm, dense.

    The global depthwise kernel takes the size of the feature map (7x7 at 112 px).
    Chen et al., "MobileFaceNets", CCBR 2018, section 3.2.
    """

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, keys: jax.Array | None
    ) -> jax.Array:
        """Map features [B, H, W, C] to embeddings [B, D] float32."""
        _, H, W, C = x.shape
        full = common.wide(self.dtype)
        kernel = self.param("kernel", common.kaiming_group, (H, W, 1, C), full)
        x = depthwise.depthwise(x.astype(self.dtype), kernel.astype(self.dtype))
        x = self.norm(dtype=self.dtype, name="bn")(x)
        return self.finish(self.drop(x, train=train, keys=keys))


class GAP(_Head):
    """Global average pooling between BatchNorm and a dense layer, as in ResNet."""

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, keys: jax.Array | None
    ) -> jax.Array:
        """Map features [B, H, W, C] to embeddings [B, D] float32."""
        x = self.norm(dtype=self.dtype, name="bn2")(x)
        x = x.astype(common.wide(self.dtype)).mean((1, 2))
        return self.finish(self.drop(x, train=train, keys=keys))


class GNAP(_Head):
    """Norm-aware pooling: every pixel gets the same length before the average.

    Of face.evoLVe's and InsightFace's GNAP, with one deviation: the length is the
    example's mean, theirs the batch's, which would let a face's embedding depend on
    its neighbours. A dense layer only where the channels are not D already.
    """

    affine: str = "none"

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, keys: jax.Array | None
    ) -> jax.Array:
        """Map features [B, H, W, C] to embeddings [B, D] float32."""
        full = common.wide(self.dtype)
        x = self.norm(dtype=full, name="bn1", **AFFINE["none"])(x)
        length = jnp.sqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-12))
        x = (x * (length.mean((1, 2), keepdims=True) / length)).mean((1, 2))
        x = self.drop(x, train=train, keys=keys)
        return self.last(x) if x.shape[-1] == self.dim else self.finish(x)
