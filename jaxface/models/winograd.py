"""3x3 convolutions by Winograd's minimal filtering, F(4x4, 3x3), for CPUs.

The law: the values of `lax.conv_general_dilated` and of its kernel's gradient, to
rounding; in float32 within 2e-5 of the largest value, a few times what sums in another
order differ by. Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural
Networks", CVPR 2016, section 4.3.

Overlapping windows of 6x6 pixels, four apart, become 36 numbers, each with a product of
its own: 36 multiplications for 16 outputs, where there were 144. The transforms are
passes over memory, so it pays only for many channels, and while the images that are
transformed at once stay in the caches.

    y = convolve(x, kernel, ((1, 1), (1, 1)))
    dk = kernel_gradient(x, g, ((1, 1), (1, 1)))
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Pads = tuple[tuple[int, int], tuple[int, int]]

# Equation 15 there; windows by _PIXELS, kernels by _TAPS, and back by _TILE.
_PIXELS = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
_TAPS = (
    np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]])
    / 24
)
_TILE = np.array(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
)
CACHE = 2**25  # bytes of transformed images at once, as a processor's caches hold


def convolve(
    x: jax.Array, kernel: jax.Array, padding: Pads, precision: Any = None
) -> jax.Array:
    """Convolve images with a 3x3 kernel at every pixel.

    Args:
        x: [B, H, W, C].
        kernel: [3, 3, C, D].
        padding: zeros (top, bottom), (left, right).
        precision: of the products.

    Returns:
        [B, H', W', D], as much smaller as padding leaves it.
    """
    taps = _by_both(_TAPS, kernel.reshape(9, -1)).reshape(36, *kernel.shape[2:])

    (top, bottom), (left, low) = padding
    H, W = x.shape[1] + top + bottom - 2, x.shape[2] + left + low - 2
    count = _together(x, kernel.shape[3])

    def some(x: jax.Array) -> jax.Array:
        y = _products(_windows(x, padding), taps, (2, 1), precision)
        return _tiles(y, count, _fours(H), _fours(W))

    y = lax.map(some, x.reshape(-1, count, *x.shape[1:]))
    return y.reshape(len(x), *y.shape[2:])[:, :H, :W]


def kernel_gradient(
    x: jax.Array, g: jax.Array, padding: Pads, precision: Any = None
) -> jax.Array:
    """dk[i, j] = sum over b, h, w of x[b, h + i - top, w + j - left] g[b, h, w].

    Args:
        x: [B, H, W, C], what was convolved.
        g: [B, H', W', D], the gradient of what came out.
        padding: zeros (top, bottom), (left, right) that it was convolved with.
        precision: of the products.

    Returns:
        [3, 3, C, D].
    """

    def some(both: list[jax.Array]) -> jax.Array:
        x, g = both
        return _products(_windows(x, padding), _outputs(g), (1, 1), precision)

    C, D = x.shape[3], g.shape[3]
    count = _together(x, D)
    groups = [a.reshape(-1, count, *a.shape[1:]) for a in (x, g)]
    taps = lax.map(some, groups).sum(0)
    return _by_both(_TAPS.T, taps.reshape(36, -1)).reshape(3, 3, C, D)


def _together(x: jax.Array, D: int) -> int:
    """Return how many images are done at once: they divide the batch."""
    B, H, W, C = x.shape
    size = 36 * _fours(H) * _fours(W) * (C + D) * x.dtype.itemsize
    return max(
        n for n in range(1, B + 1) if B % n == 0 and (n == 1 or n * size <= CACHE)
    )


def _fours(pixels: int) -> int:
    """Return how many tiles cover a row."""
    return -(-pixels // 4)


def _products(
    a: jax.Array, b: jax.Array, over: tuple[int, int], precision: Any
) -> jax.Array:
    """36 products of matrices, summed over an axis of the one and of the other."""
    axes = ((over[0],), (over[1],)), ((0,), (0,))
    return lax.dot_general(a, b, axes, precision=precision)


def _by_both(matrix: np.ndarray, x: jax.Array) -> jax.Array:
    """Multiply by a matrix from both sides: [n n, ...] -> [m m, ...]."""
    return jnp.asarray(np.kron(matrix, matrix), x.dtype) @ x


def _windows(x: jax.Array, padding: Pads) -> jax.Array:
    """Transform [n, H, W, C] to [36, n down right, C]."""
    (top, bottom), (left, low) = padding
    _, H, W, C = x.shape
    down, right = _fours(H + top + bottom - 2), _fours(W + left + low - 2)
    fill = (top, 4 * down + 2 - H - top), (left, 4 * right + 2 - W - left)
    x = jnp.pad(x, ((0, 0), *fill, (0, 0)))
    high, wide = 4 * down - 3, 4 * right - 3
    rows = _sums(_PIXELS, lambda i: x[:, i : i + high : 4], axis=0)
    both = _sums(_PIXELS, lambda j: rows[:, :, :, j : j + wide : 4], axis=1)
    return both.reshape(36, -1, C)


def _outputs(g: jax.Array) -> jax.Array:
    """Transform tiles of [n, H', W', D] to [36, n down right, D]."""
    n, H, W, D = g.shape
    g = jnp.pad(g, ((0, 0), (0, -H % 4), (0, -W % 4), (0, 0)))
    g = g.reshape(n, _fours(H), 4, _fours(W), 4, D)
    rows = _sums(_TILE.T, lambda i: g[:, :, i], axis=0)  # [6, n, down, right, 4, D]
    return _sums(_TILE.T, lambda j: rows[..., j, :], axis=1).reshape(36, -1, D)


def _tiles(y: jax.Array, n: int, down: int, right: int) -> jax.Array:
    """Transform [36, n down right, D] back to [n, 4 down, 4 right, D]."""
    y = y.reshape(6, 6, n, down, right, -1)
    rows = _sums(_TILE, lambda i: y[i], axis=0)  # [4, 6, n, down, right, D]
    both = _sums(_TILE, lambda j: rows[:, j], axis=4)  # [4, n, down, right, 4, D]
    return both.transpose(1, 2, 0, 3, 4, 5).reshape(n, 4 * down, 4 * right, -1)


def _sums(matrix: np.ndarray, part: Callable[[int], jax.Array], axis: int) -> jax.Array:
    """Stack the sums of parts that a matrix's rows weigh."""
    sums = [
        functools.reduce(
            operator.add, [_times(w, part(i)) for i, w in enumerate(row) if w]
        )
        for row in matrix
    ]
    # Joined with the next transform, XLA would work each sum out anew for each of its.
    return lax.optimization_barrier(jnp.stack(sums, axis))


def _times(weight: float, x: jax.Array) -> jax.Array:
    return x if weight == 1 else float(weight) * x
