"""Parts that backbones share: convolutions, norm, activations, dropout.

The law: an example's embedding depends on that example, its own key and, in
training, on BatchNorm statistics alone, never on how a batch lies on devices.
Everything follows torch's conventions (symmetric integer padding, momentum 0.1,
epsilon 1e-5), because the weights of this field come from there.

    x = conv(64, stride=2, dtype="bfloat16")(images)
    x = batch_norm(train=train, axis="data")(x)
    x = activate(x, "prelu")
    x = Depthwise(kernel=3)(x)
"""

from __future__ import annotations

import functools
import itertools
import math
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

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
) -> nn.BatchNorm:
    """Make a BatchNorm with torch's momentum (0.1, here 0.9) and epsilon.

    The variance takes two passes over the batch: E[x^2] - E[x]^2 cancels where
    the mean is large. The running variance is flax's, the biased one; torch keeps
    the unbiased, larger by N / (N - 1) for N = B H W values per channel.

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
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=epsilon,
        dtype=dtype,
        param_dtype=wide(dtype),
        use_scale=use_scale,
        use_bias=use_bias,
        scale_init=nn.initializers.zeros if zero else nn.initializers.ones,
        # flax hands it to lax.pmean, which takes several names
        axis_name=axis,  # type: ignore[arg-type]
        use_fast_variance=False,
        force_float32_reductions=wide(dtype) == jnp.float32,
        name=name,
    )


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
    """

    rate: float

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
            return jax.random.bernoulli(key, 1 - self.rate, x.shape[1:])

        return jnp.where(jax.vmap(mask)(keys), x / (1 - self.rate), 0)


def depthwise(
    x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: int = 0
) -> jax.Array:
    """Convolve every channel, or every small group of M channels, on its own.

    XLA:CPU runs the native grouped convolution 30 to 80 times too slowly, so there
    the layer is a sum of shifted multiply-adds, with a gradient written out below.
    GPU and TPU get the native form; the choice is made when the step is compiled.
    Reverse mode only: no forward-mode derivatives (jvp) pass through.

    Args:
        x: [B, H, W, C].
        kernel: [kh, kw, M, C], of x's dtype; M = 1 is the depthwise convolution.
        stride: step between outputs, both ways.
        padding: zeros put on every side.

    Returns:
        [B, H', W', C] with H' = (H + 2 padding - kh) // stride + 1.

    Raises:
        ValueError: shapes that do not fit.
    """
    kh, kw, M, C = kernel.shape
    if x.shape[-1] != C or C % M:
        raise ValueError(
            f"depthwise kernel {kernel.shape} on input {x.shape}; wanted"
            " [kh, kw, M, C] on [B, H, W, C], where M divides C"
        )
    if x.shape[1] + 2 * padding < kh or x.shape[2] + 2 * padding < kw:
        raise ValueError(
            f"depthwise kernel {kernel.shape} is larger than its input {x.shape}"
            f" padded by {padding}; use larger images or a smaller kernel"
        )
    if M == 1 and x.shape[1:3] == (kh, kw) and padding == 0:  # a weighted sum
        return (x * kernel.reshape(1, kh, kw, C)).sum((1, 2), keepdims=True)
    return _depthwise(x, kernel, stride, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_shifted, stride=stride, padding=padding),
        default=functools.partial(_native, stride=stride, padding=padding),
    )


def _forward(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> Any:
    return _depthwise(x, kernel, stride, padding), (x, kernel)


def _backward(stride: int, padding: int, saved: Any, g: jax.Array) -> Any:
    def native(x: jax.Array, kernel: jax.Array, g: jax.Array) -> Any:
        forward = functools.partial(_native, stride=stride, padding=padding)
        return jax.vjp(forward, x, kernel)[1](g)

    def shifted(x: jax.Array, kernel: jax.Array, g: jax.Array) -> Any:
        dx = _shifted_dx(g, kernel, x.shape, stride=stride, padding=padding)
        dk = _shifted_dk(x, g, kernel.shape, stride=stride, padding=padding)
        return dx, dk.astype(kernel.dtype)

    return lax.platform_dependent(*saved, g, cpu=shifted, default=native)


_depthwise.defvjp(_forward, _backward)


def _native(x: jax.Array, kernel: jax.Array, *, stride: int, padding: int) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2],
    )


def _pad(x: jax.Array, *edges: tuple[int, int, int]) -> jax.Array:
    """Pad or crop H and W by (low, high, zeros between neighbours)."""
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *edges, (0, 0, 0)))


def _members(x: jax.Array, M: int) -> list[jax.Array]:
    """For each place m in a group: x with m's channel in all places of its group."""
    return [jnp.repeat(x[..., m::M], M, axis=-1) if M > 1 else x for m in range(M)]


def _shifted(
    x: jax.Array, kernel: jax.Array, *, stride: int, padding: int
) -> jax.Array:
    """y[h, w] = sum over i, j of x[s h + i - p, s w + j - p] k[i, j]."""
    kh, kw, M, C = kernel.shape
    x = _pad(x, (padding, padding, 0), (padding, padding, 0))
    H = (x.shape[1] - kh) // stride * stride + 1  # from a tap's first row to its last
    W = (x.shape[2] - kw) // stride * stride + 1
    y = jnp.zeros((), wide(x.dtype))
    for i, j in itertools.product(range(kh), range(kw)):
        tap = x[:, i : i + H : stride, j : j + W : stride].astype(y.dtype)
        for m, member in enumerate(_members(tap, M)):
            y = y + member * kernel[i, j, m].reshape(1, 1, 1, C)
    return y.astype(x.dtype)


def _shifted_dx(
    g: jax.Array,
    kernel: jax.Array,
    shape: tuple[int, ...],
    *,
    stride: int,
    padding: int,
) -> jax.Array:
    """The input gradient: the same sum with the kernel turned and g spread out."""
    kh, kw, M, C = kernel.shape
    edges = []
    for size, out, k in zip(shape[1:3], g.shape[1:3], (kh, kw), strict=True):
        low = k - 1 - padding
        high = size + padding - ((out - 1) * stride + 1)
        edges.append((low, high, stride - 1))
    turned = kernel[::-1, ::-1].reshape(kh, kw, M, C // M, M)  # in, group, out
    turned = turned.transpose(0, 1, 4, 3, 2).reshape(kernel.shape)
    return _shifted(_pad(g, *edges), turned, stride=1, padding=0)


def _shifted_dk(
    x: jax.Array,
    g: jax.Array,
    shape: tuple[int, ...],
    *,
    stride: int,
    padding: int,
) -> jax.Array:
    """The kernel gradient, dk[i, j] = sum of x[s h + i - p, s w + j - p] g[h, w].

    Walks down the rows of g and adds up products [B, W', C], one sum per tap: every
    row is read while it is in cache, and the adds vectorise over channels, which
    XLA:CPU does not manage for one fused multiply-and-reduce (8 ms against 106 ms
    for a 3x3 kernel on [16, 56, 56, 128] and two cores).
    """
    kh, kw, M, C = shape
    B, H, W, _ = g.shape
    x = _pad(x, (padding, padding, 0), (padding, padding, 0))
    zero = jnp.zeros((B, W, C), wide(x.dtype))
    span = (W - 1) * stride + 1

    def row(a: jax.Array, h: jax.Array) -> jax.Array:
        return lax.dynamic_index_in_dim(a, h, 1, keepdims=False)

    def add_row(h: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        up = row(g, h).astype(zero.dtype)
        taps = [
            member
            for i, j in itertools.product(range(kh), range(kw))
            for member in _members(row(x, h * stride + i)[:, j : j + span : stride], M)
        ]
        return tuple(s + tap * up for s, tap in zip(sums, taps, strict=True))

    sums = lax.fori_loop(0, H, add_row, (zero,) * (kh * kw * M))
    return jnp.stack([s.sum((0, 1)) for s in sums]).reshape(shape)


class Depthwise(nn.Module):
    """A grouped convolution without bias whose groups keep their width.

    Attributes:
        kernel: side of the square kernel, padded by half.
        stride: step between outputs.
        group: channels per group; 1 is a depthwise convolution.
        dtype: compute dtype.
    """

    kernel: int = 3
    stride: int = 1
    group: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x [B, H, W, C] to [B, H', W', C]."""
        shape = (self.kernel, self.kernel, self.group, x.shape[-1])
        kernel = self.param("kernel", kaiming_group, shape, wide(self.dtype))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        return depthwise(x, kernel, stride=self.stride, padding=(self.kernel - 1) // 2)
