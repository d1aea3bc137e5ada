"""Five landmarks to an upright face: a least-squares similarity and a bilinear warp.

The law: every face of every set goes through the same map, the one that published
packs were made with, so that an eye is at the same pixel in training and in testing.

    matrix = similarity(landmarks, template(112))     # [2, 3], photo -> face
    face = warp(photo, matrix, (112, 112))            # uint8 [112, 112, 3]
"""

from __future__ import annotations

import numpy as np

# Left eye, right eye, nose, left and right corner of the mouth as seen in the picture,
# x right and y down, of a face of 112 x 112 pixels: insightface's norm_crop.
_ARCFACE = (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)


def template(size: int | tuple[int, int] = 112) -> np.ndarray:
    """Where the five landmarks of an aligned face lie.

    Args:
        size: side of a square face, or (height, width). Multiples of 128 that are
            none of 112 have a margin, as insightface's norm_crop gives them: at 128
            the face is as large as at 112. (112, 96) is SphereFace's crop: 112 x 112
            without eight columns on either side. Any other square is 112 scaled.

    Returns:
        [5, 2] float64, (x, y) in pixels; a pixel's centre has whole coordinates.

    Raises:
        ValueError: if the size is not positive, or a rectangle nobody has defined.
    """
    points = np.array(_ARCFACE)
    height, width = shape(size)
    if (height, width) == (112, 96):
        return points - np.array([8.0, 0.0])
    if height != width:
        raise ValueError(
            f"size {height} x {width}: wanted a square, or 112 x 96 (height, width)"
        )
    if height % 128 == 0 and height % 112:
        return (points + np.array([8.0, 0.0])) * (height / 128)
    return points * (height / 112)


def shape(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of a size, which may be one number for both."""
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"size {height} x {width}: wanted at least one pixel")
    return height, width


def similarity(points: np.ndarray, onto: np.ndarray) -> np.ndarray:
    """Rotate, scale and shift points onto others with the least squared error.

    Args:
        points: [..., P, 2], (x, y).
        onto: [P, 2] or [..., P, 2], where they should come to lie.

    Returns:
        [..., 2, 3] float64: matrix @ (x, y, 1) is the image of (x, y).

    Raises:
        ValueError: if some points are not finite, or all lie in one place, or fit no
            rotation better than another; the first such row is named.

    Umeyama 1991, eqs. (40)-(42), without reflection. With points as complex numbers z
    the map is a z + b, and the best a is <z, w> / <z, z>, both about their means.
    """
    z, w = _complex(points), _complex(onto)
    z_mean, w_mean = z.mean(-1, keepdims=True), w.mean(-1, keepdims=True)
    z, w = z - z_mean, w - w_mean
    variance = np.sum(np.abs(z) ** 2, -1)
    cross = np.sum(z.conj() * w, -1)
    size = np.sqrt(variance * np.sum(np.abs(w) ** 2, -1))
    scale = np.abs(z_mean[..., 0]) ** 2 + variance
    # `not >`: nan is refused as well
    bad = ~(variance > 1e-12 * scale) | ~(np.abs(cross) > 1e-6 * size)
    if np.any(bad):
        row = int(np.flatnonzero(bad)[0])
        wrong = np.broadcast_to(points, (*np.shape(bad), *np.shape(points)[-2:]))
        raise ValueError(
            f"landmarks of row {row} fit no face ({int(np.sum(bad))} of"
            f" {np.size(bad)} rows): wanted finite points apart from each other, got"
            f" {wrong.reshape(-1, *wrong.shape[-2:])[row].tolist()}"
        )
    a = cross / variance
    b = w_mean[..., 0] - a * z_mean[..., 0]
    rows = [[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]]
    return np.moveaxis(np.array(rows), (0, 1), (-2, -1))


def warp(
    image: np.ndarray, matrix: np.ndarray, size: int | tuple[int, int] = 112
) -> np.ndarray:
    """Draw the image under an affine map; bilinear, black outside.

    Args:
        image: uint8 [H, W, C].
        matrix: [2, 3], from the image's pixels to those of the result.
        size: of the result.

    Returns:
        uint8 [height, width, C], what OpenCV's warpAffine gives to a grey level.

    Raises:
        ValueError: on another image, or a matrix that cannot be inverted.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or 0 in image.shape:
        raise ValueError(f"{image.dtype} {image.shape}: wanted uint8 [H, W, C]")
    linear, shift = matrix[:, :2], matrix[:, 2]
    if not abs(np.linalg.det(linear)) > 0:
        raise ValueError(f"the map {matrix.tolist()} flattens the image")
    height, width = shape(size)
    back = np.linalg.inv(linear)
    origin = -back @ shift
    y, x = np.mgrid[:height, :width]
    at = [row[0] * x + row[1] * y + o for row, o in zip(back, origin, strict=True)]
    # a border of one black pixel, on which everything further away falls
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    H, W = image.shape[:2]
    (left, right, dx), (top, bottom, dy) = _between(at[0], W), _between(at[1], H)
    above = padded[top, left] * (1 - dx) + padded[top, right] * dx
    below = padded[bottom, left] * (1 - dx) + padded[bottom, right] * dx
    return np.rint(above * (1 - dy) + below * dy).astype(np.uint8)


def _between(at: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return both neighbours in the padded image and the share of the second."""
    at = np.clip(at, -1, length) + 1
    first = np.minimum(np.floor(at).astype(np.intp), length)
    return first, first + 1, (at - first)[..., None]


def _complex(points: np.ndarray) -> np.ndarray:
    points = np.asarray(points, np.float64)
    if points.ndim < 2 or points.shape[-1] != 2 or points.shape[-2] < 2:
        raise ValueError(f"points {points.shape}: wanted [..., P, 2] with P >= 2")
    return points[..., 0] + 1j * points[..., 1]
