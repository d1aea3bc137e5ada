"""Which pixels of a face drive its match with another: two maps over the first one.

The law: a map is about the cosine of the two embeddings and nothing else; a pixel that
the network does not look at is zero in both.

    features = embed.features                  # images [B, H, W, 3] -> [B, D]
    gradient(features, left, right)            # [H, W], how steep the cosine is there
    occlusion(features, left, right, patch=16) # [H, W], what hiding it costs
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Features = Callable[[jax.Array], jax.Array]

_BATCH = 32  # covered copies embedded at a time


def gradient(features: Features, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return how fast the cosine changes with each pixel of the left image.

    Args:
        features: images as the network eats them, [B, H, W, 3] float32, -> [B, D].
        left: [H, W, 3] such an image.
        right: [H, W, 3] the image it is compared with.

    Returns:
        [H, W] float32, 0 and up: the length, over channels, of the cosine's gradient
        (Simonyan et al. 2014, section 3, who take the largest channel), by unit of the
        network's input.

    Raises:
        ValueError: on images that are not of one size.
    """
    _check(left, right)
    slopes = np.asarray(_slopes(_pytree(features), left, right))
    return np.linalg.norm(slopes, axis=-1)


def occlusion(
    features: Features,
    left: np.ndarray,
    right: np.ndarray,
    *,
    patch: int = 16,
    stride: int = 8,
    fill: float = 0.0,
) -> np.ndarray:
    """Return what hiding each part of the left image takes from the cosine.

    Args:
        features: images as the network eats them, [B, H, W, 3] float32, -> [B, D].
        left: [H, W, 3] such an image.
        right: [H, W, 3] the image it is compared with.
        patch: side of the square that hides, in pixels.
        stride: how far it moves on, at most `patch`, so that no pixel is left out.
        fill: what it shows; 0 is mid-grey to a network that normalises.

    Returns:
        [H, W] float32: the fall of the cosine, averaged over the squares that hide the
        pixel. Positive where the pixel speaks for a match.

    Raises:
        ValueError: on images that are not of one size, or a patch that does not fit.

    Zeiler, Fergus 2014, section 4.2.
    """
    _check(left, right)
    H, W, _ = left.shape
    if not 1 <= stride <= patch <= min(H, W):
        raise ValueError(
            f"patch {patch}, stride {stride} on {H} x {W} pixels; wanted"
            " 1 <= stride <= patch <= the image's sides"
        )
    masks = np.stack(list(_squares(H, W, patch, stride)))  # [K, H, W] bool
    features = _pytree(features)
    fall = [
        _falls(features, left, right, chunk, np.float32(fill))
        for chunk in _chunks(masks)
    ]
    cost = np.concatenate([np.asarray(f) for f in fall])[: len(masks)]  # [K]
    hidden = masks.reshape(len(masks), -1).astype(np.float32)
    return (cost @ hidden / hidden.sum(axis=0)).reshape(H, W)


@jax.jit
def _slopes(features: Features, left: jax.Array, right: jax.Array) -> jax.Array:
    """Return the gradient of the cosine, [H, W, 3]."""
    other = features(right[None])
    return jax.grad(lambda x: cosine(features(x[None]), other)[0])(left)


@jax.jit
def _falls(
    features: Features,
    left: jax.Array,
    right: jax.Array,
    masks: jax.Array,
    fill: jax.Array,
) -> jax.Array:
    """Return how much the cosine falls where each mask [B, H, W] hides, [B]."""
    other = features(right[None])
    covered = jnp.where(masks[..., None], fill, left[None])
    return cosine(features(left[None]), other) - cosine(features(covered), other)


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return the cosines of rows: [B, D], [B or 1, D] -> [B], float32."""
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    length = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    return jnp.sum(a * b, axis=-1) / length


def _squares(H: int, W: int, patch: int, stride: int) -> Iterator[np.ndarray]:
    """Yield where squares are, [H, W] bool; the last ones touch the far edges."""
    y, x = np.arange(H)[:, None], np.arange(W)[None]
    for top in (*range(0, H - patch, stride), H - patch):
        for left in (*range(0, W - patch, stride), W - patch):
            rows = (top <= y) & (y < top + patch)
            yield rows & (left <= x) & (x < left + patch)


def _chunks(masks: np.ndarray) -> Iterator[np.ndarray]:
    """Yield batches of one size, the last filled up with masks that hide nothing."""
    for i in range(0, len(masks), _BATCH):
        chunk = masks[i : i + _BATCH]
        yield np.pad(chunk, ((0, _BATCH - len(chunk)), (0, 0), (0, 0)))


def _pytree(features: Features) -> Any:
    """Return a function that a jitted one can take; a network's already is."""
    if isinstance(features, jax.tree_util.Partial):
        return features
    return jax.tree_util.Partial(features)


def _check(left: np.ndarray, right: np.ndarray) -> None:
    if left.shape != right.shape or left.ndim != 3 or left.shape[-1] != 3:
        raise ValueError(
            f"images {left.shape} and {right.shape}; wanted two of one [H, W, 3]"
        )
