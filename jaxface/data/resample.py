"""Bilinear resampling of uint8 images in NumPy, as TensorFlow's kernels do it.

The law: computed in float32 and rounded once, half to even, so that `ops` gives the
same picture here and in TensorFlow, to a grey level.

    small = resize(image, size=(112, 112))              # antialiased
    turned = warp(image, matrix)                        # edge pixels repeated
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

try:
    import cv2
except ImportError:  # where only the core is installed
    cv2 = None  # type: ignore[assignment]

Taps = list[tuple[np.ndarray, np.ndarray]]


def opencv() -> Any:
    """Return OpenCV, whose one loop lets threads go on that NumPy's many keep waiting.

    Raises:
        ImportError: it is not there; how to get it.
    """
    if cv2 is None:
        raise ImportError("this op wants OpenCV: pip install opencv-python-headless")
    return cv2


def mirror(image: np.ndarray) -> np.ndarray:
    """Return uint8 [H, W, 3] left to right."""
    return np.ascontiguousarray(image[:, ::-1]) if cv2 is None else cv2.flip(image, 1)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Round half to even and saturate to 0 .. 255."""
    level = np.rint(image)
    np.minimum(np.maximum(level, 0, out=level), 255, out=level)
    return level.astype(np.uint8)


def resize(image: np.ndarray, *, size: tuple[int, int]) -> np.ndarray:
    """Resize with a triangle filter, widened where the image shrinks.

    Args:
        image: uint8 [h, w, 3].
        size: (H, W) wanted; the aspect is not kept.

    Returns:
        uint8 [H, W, 3]; `image` itself where it has that size.
    """
    (h, w, _), (H, W) = image.shape, size
    if (h, w) == (H, W):
        return image
    # whole rows each time: inner loops over three channels cost several times as much
    rows = image.reshape(h, w * 3).astype(np.float32)
    columns = np.ascontiguousarray(_tapped(rows, _taps(h, H)).T)  # [w * 3, H]
    found = to_uint8(_tapped(columns, _taps(w, W, 3)))  # [W * 3, H]
    return np.ascontiguousarray(found.T).reshape(H, W, 3)


def _tapped(rows: np.ndarray, taps: Taps) -> np.ndarray:
    (source, weight), *others = taps
    total = rows.take(source, 0)
    total *= weight
    for source, weight in others:
        part = rows.take(source, 0)
        part *= weight
        total += part
    return total


@functools.lru_cache(maxsize=64)
def _taps(n: int, N: int, channels: int = 1) -> Taps:
    """Return (sources [N C], weights [N C, 1]) of each tap that turns n pixels to N.

    In float32 throughout: a place rounded otherwise moves a pixel to another level.
    """
    one, half = np.float32(1), np.float32(0.5)
    step = one / (np.float32(N) / np.float32(n))
    reach = np.maximum(step, one)
    centre = (np.arange(N, dtype=np.float32) + half) * step
    first = np.ceil(centre - reach - half).astype(np.int64)
    source = first + np.arange(2 * int(np.ceil(reach)) + 1)[:, None]  # [taps, N]
    distance = (source.astype(np.float32) + half - centre) * (one / reach)
    weight = np.maximum(0, one - np.abs(distance))
    weight[(source < 0) | (source >= n)] = 0
    weight *= one / weight.sum(axis=0)
    used = weight.any(axis=1)
    source, weight = np.clip(source, 0, n - 1)[used], weight[used]
    source = (source[..., None] * channels + np.arange(channels)).reshape(
        len(source), -1
    )
    return list(zip(source, weight.repeat(channels, axis=1)[..., None], strict=True))


def warp(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Sample an image at affinely moved places, repeating its edge.

    Args:
        image: uint8 [H, W, 3].
        matrix: [6] rows (a, b, tx, c, d, ty): output (x, y) shows input
            (a x + b y + tx, c x + d y + ty), both measured from the image's centre.

    Returns:
        uint8 [H, W, 3].
    """
    H, W, _ = image.shape
    a, b, tx, c, d, ty = np.array(from_corner(matrix, H, W), np.float32)
    x, y = np.arange(W, dtype=np.float32), np.arange(H, dtype=np.float32)[:, None]
    at_x = np.clip(a * x + b * y + tx, 0, W - 1)  # [H, W]
    at_y = np.clip(c * x + d * y + ty, 0, H - 1)
    left, top = at_x.astype(np.int64), at_y.astype(np.int64)
    right, bottom = np.minimum(left + 1, W - 1), np.minimum(top + 1, H - 1)
    u, v = at_x - left.astype(np.float32), at_y - top.astype(np.float32)
    # channels first: NumPy is several times faster when its inner loop is long
    planes = image.reshape(H * W, 3).T.astype(np.float32, order="C")

    def blend(row: np.ndarray) -> np.ndarray:
        first = planes.take(row * W + left, axis=1)
        return (1 - u)[None] * first + u[None] * planes.take(row * W + right, axis=1)

    warped = to_uint8((1 - v)[None] * blend(top) + v[None] * blend(bottom))
    return np.ascontiguousarray(warped.transpose(1, 2, 0))


def from_corner(matrix: Any, height: Any, width: Any) -> list[Any]:
    """Return `warp`'s six numbers measured from the first pixel, not the centre.

    Plain arithmetic, so that NumPy and TensorFlow share it.
    """
    a, b, tx, c, d, ty = (matrix[k] for k in range(6))
    x, y = (width - 1) / 2, (height - 1) / 2
    return [a, b, x + tx - a * x - b * y, c, d, y + ty - c * x - d * y]
