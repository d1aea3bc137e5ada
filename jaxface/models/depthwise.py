"""Convolutions of channels on their own, or in small groups, fast on CPUs too.

The law: the values and gradients of XLA's grouped convolution, on every platform.

    y = depthwise(x, kernel, stride=2, padding=1)       # kernel [3, 3, 1, C]
    y = Depthwise(kernel=3)(x)
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from jaxface.models import common, forms


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
    return forms.choose(
        x,
        kernel,
        cpu=functools.partial(_shifted, stride=stride, padding=padding),
        native=functools.partial(_native, stride=stride, padding=padding),
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

    return forms.choose(*saved, g, cpu=shifted, native=native)


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


def _mates(x: jax.Array, M: int, r: int) -> jax.Array:
    """Move to each channel the one r places on in its group of M, in a circle.

    As a product with ones and zeros: XLA:CPU would redo any other way for every tap.
    """
    if r % M == 0:
        return x
    c = np.arange(x.shape[-1])
    return x @ jnp.zeros((len(c), len(c)), x.dtype).at[_mate(c, M, r), c].set(1)


def _mate(c: np.ndarray, M: int, r: int) -> np.ndarray:
    return c - c % M + (c + r) % M


def _of_mates(kernel: jax.Array) -> list[jax.Array]:
    """Cut a kernel [kh, kw, M, C] into M of [kh, kw, C], one for each of `_mates`."""
    _, _, M, C = kernel.shape
    c = np.arange(C)
    return [kernel[:, :, _mate(c, M, r) % M, c] for r in range(M)]


def _shifted(
    x: jax.Array, kernel: jax.Array, *, stride: int, padding: int
) -> jax.Array:
    """y[h, w] = sum over i, j of x[s h + i - p, s w + j - p] k[i, j]."""
    M, kernels = kernel.shape[2], _of_mates(kernel)
    x = _pad(x, (padding, padding, 0), (padding, padding, 0))
    y = sum(_taps(_mates(x, M, r), k, stride=stride) for r, k in enumerate(kernels))
    return jnp.asarray(y, x.dtype)


def _taps(x: jax.Array, kernel: jax.Array, *, stride: int) -> jax.Array:
    """Sum the taps of one channel each; kernel [kh, kw, C]."""
    kh, kw, C = kernel.shape
    H = (x.shape[1] - kh) // stride * stride + 1  # from a tap's first row to its last
    W = (x.shape[2] - kw) // stride * stride + 1
    y = jnp.zeros((), common.wide(x.dtype))
    for i, j in itertools.product(range(kh), range(kw)):
        tap = x[:, i : i + H : stride, j : j + W : stride].astype(y.dtype)
        y = y + tap * kernel[i, j].reshape(1, 1, 1, C)
    return y


def _shifted_dx(
    g: jax.Array,
    kernel: jax.Array,
    shape: tuple[int, ...],
    *,
    stride: int,
    padding: int,
) -> jax.Array:
    """The input gradient: the same sum with the kernel turned and g spread out."""
    kh, kw, M, _ = kernel.shape
    edges = []
    for size, out, k in zip(shape[1:3], g.shape[1:3], (kh, kw), strict=True):
        low = k - 1 - padding
        high = size + padding - ((out - 1) * stride + 1)
        edges.append((low, high, stride - 1))
    g = _pad(g, *edges)
    turned = [k[::-1, ::-1] for k in _of_mates(kernel)]
    dx = sum(_mates(_taps(g, k, stride=1), M, -r) for r, k in enumerate(turned))
    return jnp.asarray(dx, g.dtype)


def _shifted_dk(
    x: jax.Array,
    g: jax.Array,
    shape: tuple[int, ...],
    *,
    stride: int,
    padding: int,
) -> jax.Array:
    """The kernel gradient, dk[i, j] = sum of x[s h + i - p, s w + j - p] g[h, w]."""
    kh, kw, M, C = shape
    x = _pad(x, (padding, padding, 0), (padding, padding, 0))
    each = [_taps_dk(_mates(x, M, r), g, kh, kw, stride=stride) for r in range(M)]
    m, c = np.arange(M)[:, None], np.arange(C)
    # [M of `_mates`, kh, kw, C] -> [M of the group, C, kh, kw]
    return jnp.stack(each)[(m - c) % M, :, :, c].transpose(2, 3, 0, 1)


def _taps_dk(x: jax.Array, g: jax.Array, kh: int, kw: int, *, stride: int) -> jax.Array:
    """The gradient [kh, kw, C] of `_taps`.

    Walks down the rows of g and adds up products [B, W', C], one sum per tap: every
    row is read while it is in cache, and the adds vectorise over channels, which
    XLA:CPU does not manage for one fused multiply-and-reduce (8 ms against 106 ms
    for a 3x3 kernel on [16, 56, 56, 128] and two cores).
    """
    B, H, W, C = g.shape
    zero = jnp.zeros((B, W, C), common.wide(x.dtype))
    span = (W - 1) * stride + 1

    def row(a: jax.Array, h: jax.Array) -> jax.Array:
        return lax.dynamic_index_in_dim(a, h, 1, keepdims=False)

    def add_row(h: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        up = row(g, h).astype(zero.dtype)
        taps = [
            row(x, h * stride + i)[:, j : j + span : stride]
            for i, j in itertools.product(range(kh), range(kw))
        ]
        return tuple(s + tap * up for s, tap in zip(sums, taps, strict=True))

    sums = lax.fori_loop(0, H, add_row, (zero,) * (kh * kw))
    return jnp.stack([s.sum((0, 1)) for s in sums]).reshape(kh, kw, C)


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
        full = common.wide(self.dtype)
        kernel = self.param("kernel", common.kaiming_group, shape, full)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        return depthwise(x, kernel, stride=self.stride, padding=(self.kernel - 1) // 2)
