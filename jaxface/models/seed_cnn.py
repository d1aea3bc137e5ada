"""The seed's CNN: three convolutions, three poolings, two dense layers.

Layer for layer the Keras model this project grew from: 224x224x3, convolutions of
32, 64 and 128 channels (3x3, no padding, ReLU), each followed by 2x2 max-pooling,
flattened row by row, dense 128 with ReLU, dense 1: 11,169,089 parameters. The
closing sigmoid belongs to the loss.

    model = seed_cnn.Model()                      # "is this the enrolled person?"
    logit = model.apply(variables, images)        # [B, 1] float32
    features = seed_cnn.embedding()               # [B, 128] float32, not negative
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxface.models import common
from jaxface.types import Port, Published


class Model(nn.Module):
    """The seed's CNN.

    Attributes:
        dim: size of the output: logits, or the embedding where logit is False.
        logit: whether a linear layer of `dim` follows the 128-d ReLU layer; else
            that layer, with `dim` units, is the output.
        axis: for the contract; there is no BatchNorm to sync.
        dtype: compute dtype; parameters and output are float32 (float64 below
            float64).
        size: pixels per side of the images it is made for; the dense layer takes
            its shape from the images `init` sees.
        color: channel order of the images.
        mean: what was taken off their pixels 0 .. 255.
        std: and what the rest was divided by.
    """

    dim: int = 1
    logit: bool = True
    axis: common.Axis = None
    dtype: Any = jnp.float32
    size: int = 224
    color: str = "rgb"
    mean: common.Pixels = 0.0
    std: common.Pixels = 255.0

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, keys: jax.Array | None = None
    ) -> jax.Array:
        """Map images to logits or embeddings.

        Args:
            x: [B, H, W, 3], rgb, within [0, 1].
            train: for the contract; training and evaluation are the same.
            keys: for the contract; nothing is drawn.

        Returns:
            [B, dim] float32.
        """
        full = common.wide(self.dtype)
        layer = {
            "dtype": self.dtype,
            "param_dtype": full,
            "kernel_init": nn.initializers.glorot_uniform(),  # Keras's default
        }
        for i, features in enumerate((32, 64, 128)):
            x = nn.Conv(features, (3, 3), padding="SAME", name=f"conv{i}", **layer)(x)
            # VALID, which XLA:CPU computes at half the speed of this
            x = _max_pool(nn.relu(x[:, 1:-1, 1:-1]))
        x = common.Flatten(name="flat")(x)
        units = 128 if self.logit else self.dim
        x = nn.relu(nn.Dense(units, name="dense", **layer)(x))
        if self.logit:
            x = nn.Dense(self.dim, name="logit", **layer)(x)
        return x.astype(full)


def _max_pool(x: jax.Array) -> jax.Array:
    """Keep the largest of every 2x2 pixels; an odd last row or column is left out.

    Slices instead of a window: the gradient of a windowed maximum is five times
    slower on XLA:CPU. Where values tie it is shared, not given to the first; after
    a ReLU ties are zeros, whose gradient is zero.
    """
    _, h, w, _ = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2]
    x = jnp.maximum(x[:, 0::2], x[:, 1::2])
    return jnp.maximum(x[:, :, 0::2], x[:, :, 1::2])


embedding = functools.partial(Model, dim=128, logit=False)
tiny = functools.partial(Model, size=24)

PUBLISHED = {
    "Model": Published(11.169089, None, "the project's issue 2, Keras's own summary"),
}
PORTS: dict[str, Port] = {}  # Keras names layers as they come: order finds them
