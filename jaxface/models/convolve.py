"""Convolutions and dense layers whose gradients are fast on CPUs too.

The law: the values and gradients of `lax.conv_general_dilated` and `lax.dot_general`,
whose places they take inside Flax's layers, on every platform.

    nn.Conv(64, (3, 3), padding=((1, 1), (1, 1)), conv_general_dilated=convolve)
    nn.Dense(256, dot_general=dot)
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxface.models import forms, winograd

Pads = winograd.Pads


def dot(
    x: jax.Array, kernel: jax.Array, dimension_numbers: Any, precision: Any = None
) -> jax.Array:
    """Multiply the last axis of x by a matrix, all other axes taken as one.

    The gradient of the matrix is then a product of two matrices. Over several axes at
    once XLA:CPU transposes first, and takes twice as long.

    Args:
        x: [..., C].
        kernel: [C, D].
        dimension_numbers: of `lax.dot_general`: x's last axis, the kernel's first.
        precision: of `lax.dot_general`.

    Returns:
        [..., D].

    Raises:
        ValueError: any other axes.
    """
    if dimension_numbers != (((x.ndim - 1,), (0,)), ((), ())) or kernel.ndim != 2:
        raise ValueError(
            f"dimension numbers {dimension_numbers} on {x.shape} and {kernel.shape};"
            " wanted the last axis of the one and the first of a matrix"
        )
    rows = x.reshape(-1, x.shape[-1])
    y = lax.dot_general(rows, kernel, (((1,), (0,)), ((), ())), precision=precision)
    return y.reshape(*x.shape[:-1], kernel.shape[1])


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int],
    padding: Pads,
    *,
    lhs_dilation: tuple[int, int] = (1, 1),
    rhs_dilation: tuple[int, int] = (1, 1),
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
) -> jax.Array:
    """Convolve images with a kernel.

    One pixel's kernel is a product of matrices. The gradients of wide 3x3 layers are
    `winograd`'s on CPUs, chosen when the step is compiled. Of kernels beyond one pixel
    there are no forward-mode derivatives (jvp).

    Args:
        x: [B, H, W, C].
        kernel: [kh, kw, C, D].
        strides: steps between outputs, down and right.
        padding: zeros (top, bottom), (left, right).
        lhs_dilation: 1, as all below: what Flax also hands over.
        rhs_dilation: 1.
        dimension_numbers: None or those of the shapes above.
        feature_group_count: 1.
        precision: of both.

    Returns:
        [B, H', W', D].

    Raises:
        ValueError: dilated, or in groups.
    """
    if {*lhs_dilation, *rhs_dilation, feature_group_count} != {1}:
        raise ValueError(
            f"dilations {lhs_dilation} and {rhs_dilation} and {feature_group_count}"
            " groups; wanted none: use lax.conv_general_dilated or `depthwise`"
        )
    down, right = strides
    (top, bottom), (left, low) = padding
    if kernel.shape[:2] == (1, 1) and not any((top, bottom, left, low)):
        x = x[:, ::down, ::right]
        return dot(x, kernel[0, 0], (((3,), (0,)), ((), ())), precision)
    pads = (top, bottom), (left, low)  # hashable, whatever Flax gives
    return _convolve(x, kernel, (down, right), pads, precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _convolve(
    x: jax.Array, kernel: jax.Array, strides: Any, padding: Any, precision: Any
) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )


def _forward(x: jax.Array, kernel: jax.Array, *how: Any) -> Any:
    return _convolve.fun(x, kernel, *how), (x, kernel)


def _backward(strides: Any, padding: Any, precision: Any, saved: Any, g: Any) -> Any:
    plain = functools.partial(
        _convolve.fun, strides=strides, padding=padding, precision=precision
    )
    x, kernel = saved

    def native_dx(kernel: jax.Array, g: jax.Array) -> jax.Array:
        return jax.linear_transpose(lambda x: plain(x, kernel), x)(g)[0]

    def native_dk(x: jax.Array, g: jax.Array) -> jax.Array:
        return jax.linear_transpose(lambda k: plain(x, k), kernel)(g)[0]

    if not _gains(x, kernel, strides, padding):
        return native_dx(kernel, g), native_dk(x, g)

    def fast_dx(kernel: jax.Array, g: jax.Array) -> jax.Array:
        turned = kernel[::-1, ::-1].swapaxes(2, 3)
        (top, bottom), (left, low) = padding
        pads = (2 - top, 2 - bottom), (2 - left, 2 - low)
        return winograd.convolve(g, turned, pads, precision)

    def fast_dk(x: jax.Array, g: jax.Array) -> jax.Array:
        return winograd.kernel_gradient(x, g, padding, precision)

    dx = forms.choose(kernel, g, cpu=fast_dx, native=native_dx)
    return dx, forms.choose(x, g, cpu=fast_dk, native=native_dk)


_convolve.defvjp(_forward, _backward)


def _gains(x: jax.Array, kernel: jax.Array, strides: Any, padding: Pads) -> bool:
    """Whether Winograd's gradients are faster on CPUs, and round no earlier."""
    return (
        kernel.shape[:2] == (3, 3)
        and strides == (1, 1)
        and max(map(max, padding)) <= 2
        and min(kernel.shape[2:]) >= 32
        and min(x.shape[1:3]) >= 14
        and x.dtype in (jnp.float32, jnp.float64)
    )
