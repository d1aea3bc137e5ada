"""BatchNorm that meets other devices once forward and once for the gradient.

The law: values and gradients of Flax's, whatever the number of devices. Differentiated
by rote, the sums over a batch are taken apart again, each a pass over the images and a
message of its own; by hand, as Ioffe and Szegedy (ICML 2015, section 3) have it, two
sums are enough, and a program is a third shorter.

    y = BatchNorm(train=True, axis="data")(x)
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from jaxface import parallel


class BatchNorm(nn.Module):
    """Normalise each channel by the batch, or by running statistics.

    The running variance is the biased one; torch keeps the unbiased, larger by
    N / (N - 1) for N = B H W values per channel.

    Attributes:
        train: normalise by the batch and update the running statistics.
        axis: mesh axis name(s) the batch statistics are averaged over; None: local.
        dtype: of the result.
        full: of parameters, statistics and sums.
        use_scale: False fixes the scale at 1.
        use_bias: False fixes the bias at 0.
        epsilon: added to the variance.
        momentum: of the running statistics.
        scale_init: of the scale.
    """

    train: bool
    axis: parallel.Axis = None
    dtype: Any = jnp.float32
    full: Any = jnp.float32
    use_scale: bool = True
    use_bias: bool = True
    epsilon: float = 1e-5
    momentum: float = 0.9
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [..., C] to the same shape."""
        shape = (x.shape[-1],)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, self.full)
        var = self.variable("batch_stats", "var", jnp.ones, shape, self.full)
        scale, bias = jnp.ones(shape, self.full), jnp.zeros(shape, self.full)
        if self.use_scale:
            scale = self.param("scale", self.scale_init, shape, self.full)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, shape, self.full)
        if not self.train:
            found = mean.value, var.value
            y = _affine(x.astype(self.full), found, scale, bias, self.epsilon)
            return y.astype(self.dtype)
        held = lax.stop_gradient(x.astype(self.full))
        found = statistics(held, mean.value, self.axis)
        if not self.is_initializing():
            for running, new in zip((mean, var), found, strict=True):
                old = self.momentum * running.value
                running.value = old + (1 - self.momentum) * new
        y = normalized(x.astype(self.full), found, scale, bias, self.epsilon, self.axis)
        return y.astype(self.dtype)


def statistics(
    x: jax.Array, near: jax.Array, axis: parallel.Axis
) -> tuple[jax.Array, jax.Array]:
    """Return mean and variance [C] of [..., C] over all devices of an axis.

    E[x^2] - E[x]^2 cancels where the mean is large, so squares are those of distances
    from `near`. Both sums in one pass are what accelerators do in a fused step; XLA:CPU
    does not vectorise two sums in one loop, and two passes are twice as fast there.

    Args:
        x: [..., C].
        near: [C] about where the mean is, the same on all devices: the running one.
        axis: mesh axis name(s); None: of this device alone.
    """
    mean, var = lax.platform_dependent(x, near, cpu=_in_two, default=_in_one)
    if axis is None:
        return mean, var
    off = mean - near
    sums = parallel.pmean(jnp.stack([off, var + jnp.square(off)]), axis)
    return near + sums[0], _without(sums[1], sums[0])


def _in_one(x: jax.Array, near: jax.Array) -> tuple[jax.Array, jax.Array]:
    far, over = _less(x, near), tuple(range(x.ndim - 1))
    off = far.mean(over)
    return near + off, _without(jnp.square(far).mean(over), off)


def _in_two(x: jax.Array, near: jax.Array) -> tuple[jax.Array, jax.Array]:
    del near
    over = tuple(range(x.ndim - 1))
    mean = x.mean(over)
    return mean, jnp.square(_less(x, mean)).mean(over)


def _without(squares: jax.Array, off: jax.Array) -> jax.Array:
    return jnp.maximum(squares - jnp.square(off), 0)  # rounding may pass 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def normalized(
    x: jax.Array,
    found: tuple[jax.Array, jax.Array],
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float,
    axis: parallel.Axis,
) -> jax.Array:
    """Normalise by the statistics of x itself, which is in the gradient of x.

    Args:
        x: [..., C].
        found: from `statistics`, of x; nothing flows back to them.
        scale: [C].
        bias: [C].
        epsilon: added to the variance.
        axis: mesh axis name(s) of `statistics`.

    Returns:
        [..., C].
    """
    return _affine(x, found, scale, bias, epsilon)


def _forward(x: Any, found: Any, scale: Any, bias: Any, epsilon: float, _: Any) -> Any:
    return _affine(x, found, scale, bias, epsilon), (x, found, scale)


def _backward(epsilon: float, axis: parallel.Axis, saved: Any, g: jax.Array) -> Any:
    x, (mean, var), scale = saved
    over = tuple(range(x.ndim - 1))
    gain = lax.rsqrt(var + epsilon)
    unit = _times(_less(x, mean), gain)
    sums = jnp.stack([(g * unit).sum(over), g.sum(over)])  # of scale and bias, too
    along, shift = parallel.pmean(sums, axis) / (x.size // x.shape[-1])
    dx = _times(_less(g, shift) - _times(unit, along), gain * scale)
    return dx, (jnp.zeros_like(mean), jnp.zeros_like(var)), sums[0], sums[1]


normalized.defvjp(_forward, _backward)


def _affine(x: Any, found: Any, scale: Any, bias: Any, epsilon: float) -> jax.Array:
    mean, var = found
    return _less(_times(_less(x, mean), lax.rsqrt(var + epsilon) * scale), -bias)


def _less(x: jax.Array, row: jax.Array) -> jax.Array:
    return x - row.reshape((1,) * (x.ndim - 1) + row.shape)


def _times(x: jax.Array, row: jax.Array) -> jax.Array:
    return x * row.reshape((1,) * (x.ndim - 1) + row.shape)
