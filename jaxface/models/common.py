"""Parts that backbones share: convolutions, norm, activations, dropout.

The law: an example's embedding depends on that example, its own key and, in
training, on BatchNorm statistics alone, never on how a batch lies on devices.
Everything follows torch's conventions (symmetric integer padding, momentum 0.1,
epsilon 1e-5), because the weights of this field come from there.

    x = conv(64, stride=2, dtype="bfloat16")(images)
    x = batch_norm(train=train, axis="data")(x)
    x = activate(x, "prelu")
    x = Dropout(0.4, name="dropout")(x, train=train, keys=keys)
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxface.models import convolve, normalize

Axis = str | tuple[str, ...] | None  # mesh axis name(s) of collectives
Pixels = float | tuple[float, float, float]  # of all channels, or one per channel

kaiming_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# For grouped kernels. torch's fan_out counts the outputs of all groups, C times too
# many, and the signal of an untrained net dies out; in training BatchNorm hides it.
kaiming_group = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
# torch's default for linear layers: uniform within 1/sqrt(fan_in)
torch_linear = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def torch_bias(fan_in: int) -> Callable[..., jax.Array]:
    """Make torch's default initialiser of biases: uniform within 1/sqrt(fan_in)."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        bound = 1 / math.sqrt(fan_in)
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def wide(dtype: Any) -> Any:
    """Return what parameters, statistics and embeddings are kept in.

    float32 for a compute dtype up to float32, float64 for float64.
    """
    return jnp.promote_types(dtype, jnp.float32)


def conv(
    features: int,
    *,
    kernel: int = 3,
    stride: int = 1,
    dtype: Any = jnp.float32,
    init: Callable[..., jax.Array] = kaiming_out,
    name: str | None = None,
) -> nn.Conv:
    """Make a convolution without bias, padded by half its kernel on every side.

    "SAME" would pad a strided layer on one side only; torch pads both.
    """
    pad = (kernel - 1) // 2
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        use_bias=False,
        dtype=dtype,
        param_dtype=wide(dtype),
        kernel_init=init,
        conv_general_dilated=convolve.convolve,
        name=name,
    )


def batch_norm(
    *,
    train: bool,
    axis: Axis = None,
    dtype: Any = jnp.float32,
    use_scale: bool = True,
    use_bias: bool = True,
    epsilon: float = 1e-5,
    zero: bool = False,
    name: str | None = None,
) -> normalize.BatchNorm:
    """Make a BatchNorm with torch's momentum (0.1, here 0.9) and epsilon.

    Args:
        train: normalise by the batch and update the running statistics.
        axis: mesh axis name(s) the batch statistics are averaged over; None: local.
        dtype: of the result; statistics are float32 (float64 below float64).
        use_scale: False fixes the scale at 1.
        use_bias: False fixes the bias at 0.
        epsilon: added to the variance.
        zero: start from scale 0, not 1: a branch that ends so adds nothing at first.
        name: of the module.
    """
    return normalize.BatchNorm(
        train=train,
        axis=axis,
        dtype=dtype,
        full=wide(dtype),
        use_scale=use_scale,
        use_bias=use_bias,
        epsilon=epsilon,
        scale_init=nn.initializers.zeros if zero else nn.initializers.ones,
        name=name,
    )


def products_saveable(primitive: Any, *_: Any, **__: Any) -> bool:
    """Tell `jax.checkpoint` to keep what dense layers and convolutions gave."""
    return primitive.name in ("dot_general", "conv_general_dilated")


# What is kept where blocks are recomputed; all but the last are JAX's.
POLICIES = {
    "nothing_saveable": jax.checkpoint_policies.nothing_saveable,
    "everything_saveable": jax.checkpoint_policies.everything_saveable,
    "dots_saveable": jax.checkpoint_policies.dots_saveable,
    "dots_with_no_batch_dims_saveable": (
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    ),
    "products_saveable": products_saveable,
}


def remat(block: Any, how: bool | str) -> Any:
    """Recompute a block in the backward pass, or what a policy does not keep of it.

    Args:
        block: a module class.
        how: False keeps everything; True nothing; or a key of `POLICIES`.

    Raises:
        ValueError: an unknown policy.
    """
    if isinstance(how, bool):
        return nn.remat(block) if how else block
    if how not in POLICIES:
        raise ValueError(
            f"remat is {how!r}; wanted True, False or one of {', '.join(POLICIES)}"
        )
    return nn.remat(block, policy=POLICIES[how])


class PReLU(nn.Module):
    """max(x, 0) + slope min(x, 0) with a learned slope per channel, first 0.25."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x [..., C] to the same shape."""
        init = nn.initializers.constant(0.25)
        slope = self.param("slope", init, (x.shape[-1],), wide(x.dtype))
        slope = slope.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
        return jnp.where(x >= 0, x, slope * x)


def activate(x: jax.Array, kind: str, *, name: str | None = None) -> jax.Array:
    """Apply "prelu" (as module `name`), "relu" or "relu6" inside a module.

    Raises:
        ValueError: any other kind.
    """
    if kind == "prelu":
        return PReLU(name=name)(x)
    if kind == "relu":
        return nn.relu(x)
    if kind == "relu6":
        return nn.relu6(x)
    raise ValueError(f"activation {kind!r} unknown; wanted 'prelu', 'relu' or 'relu6'")


class Flatten(nn.Module):
    """Rows of pixels after one another: [B, H, W, C] -> [B, H W C].

    A module, so that `convert` sees which dense layer reads pixels: other projects
    flatten channel by channel.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x [B, ...] to [B, N]."""
        return x.reshape(x.shape[0], math.prod(x.shape[1:]))


class Dropout(nn.Module):
    """Dropout whose mask belongs to the example, not to the batch or device.

    An example's mask is drawn from its own key, folded with a hash of this module's
    path, so it is the same on any number of devices and differs between layers.

    Attributes:
        rate: share of values set to zero, 0 <= rate < 1; the rest grow by
            1 / (1 - rate).
        whole: all values of an example together: drop-path, where x is a branch.
    """

    rate: float
    whole: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, keys: jax.Array | None
    ) -> jax.Array:
        """Drop values of x [B, ...] by keys [B] (typed PRNG keys).

        Raises:
            ValueError: a rate outside [0, 1), or training without keys.
        """
        if not 0 <= self.rate < 1:
            raise ValueError(f"dropout {self.rate}; wanted 0 <= rate < 1")
        if not train or self.rate == 0:
            return x
        if keys is None:
            raise ValueError(
                f"dropout {self.rate} in training needs `keys`, one PRNG key per"
                " example; pass keys=jax.random.split(key, B) or set dropout=0"
            )
        # crc32, because Python's hash() differs between processes
        layer = zlib.crc32("/".join(self.path).encode())

        def mask(key: jax.Array) -> jax.Array:
            key = jax.random.fold_in(key, layer)
            shape = (1,) * (x.ndim - 1) if self.whole else x.shape[1:]
            return jax.random.bernoulli(key, 1 - self.rate, shape)

        return jnp.where(jax.vmap(mask)(keys), x / (1 - self.rate), 0)


class Mlp(nn.Module):
    """Dense, activation, dense: what a transformer's block does to each token.

    Attributes:
        hidden: features in between.
        activation: what they pass through.
        dropout: rate after either layer.
        train: whether that happens.
        dense: makes a layer of so many features.
    """

    hidden: int
    activation: Callable[[jax.Array], jax.Array]
    dropout: float
    train: bool
    dense: Callable[..., nn.Dense]

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        """Map x [..., C] by keys [B], one per example."""

        def drop(x: jax.Array, name: str) -> jax.Array:
            layer = Dropout(self.dropout, name=name)
            return layer(x, train=self.train, keys=keys)

        y = self.activation(self.dense(self.hidden, name="fc1")(x))
        return drop(self.dense(x.shape[-1], name="fc2")(drop(y, "drop1")), "drop2")
