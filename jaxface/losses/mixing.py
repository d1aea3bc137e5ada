"""Mixed batches: every image takes a part of another's, and has two labels.

The law: what an image takes is a function of (seed, its position), and whom it takes
from of the global batch alone, so a batch is the same on any mesh and after any
interruption. The larger part is the image's own: Beta(alpha, alpha) is symmetric, so
lam = max(lam, 1 - lam) changes no mixture, only which of its two images is called the
first (MixMatch, Berthelot et al. 2019, eq. (9)).

    mix = functools.partial(mixup, alpha=0.2)
    batch = mixed(batch, mix=mix, seed=0)     # image, and also partner [B], lam [B]
    loss = lam L(label) + (1 - lam) L(partner)             # of softmax.Loss
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxface.types import Batch

# (images [B, H, W, 3], those they take from, keys [B]) -> (images, lam [B]).
Mix = Callable[..., tuple[jax.Array, jax.Array]]

_MIX = 0xFFFFFFFE  # folded into the seed's key: a step no run gets to


def mixup(
    image: jax.Array,
    other: jax.Array,
    keys: jax.Array,
    *,
    alpha: float = 0.2,
    p: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Return lam x_i + (1 - lam) x_j. mixup, Zhang et al. 2018, section 2.

    Args:
        image: [B, H, W, 3] floating.
        other: [B, H, W, 3], what each takes from.
        keys: [B] typed keys.
        alpha: lam is of Beta(alpha, alpha), the larger part of it.
        p: share of the images that are mixed.

    Returns:
        (images, lam [B] in 0.5 .. 1): how much of each is its own.
    """
    lam = _drawn(keys, alpha=alpha, p=p).astype(image.dtype)
    part = lam[:, None, None, None]
    return part * image + (1.0 - part) * other, lam


def cutmix(
    image: jax.Array,
    other: jax.Array,
    keys: jax.Array,
    *,
    alpha: float = 1.0,
    p: float = 0.5,
) -> tuple[jax.Array, jax.Array]:
    """Paste a box of x_j into x_i. CutMix, Yun et al. 2019, eq. (1) and (2).

    The box has sqrt(1 - lam) of height and width, rounded down, and its centre
    anywhere; lam is then the share of pixels it leaves, as in the authors' code.

    Args and returns are those of `mixup`.
    """
    H, W = image.shape[1:3]
    lam = _drawn(keys, alpha=alpha, p=p)
    centre = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 2), (2,)))
    side = jnp.sqrt(1.0 - lam)
    middle = jnp.floor(centre(keys) * jnp.array([[H, W]]))  # [B, 2]

    def span(middle: jax.Array, n: int) -> jax.Array:  # [B, n] bool
        size = jnp.floor(side * n)
        first = (middle - jnp.floor(size / 2.0))[:, None]
        place = jnp.arange(n)[None, :]
        return (place >= first) & (place < first + size[:, None])

    rows, columns = span(middle[:, 0], H), span(middle[:, 1], W)
    box = rows[:, :, None] & columns[:, None, :]  # [B, H, W]
    left = 1.0 - box.mean((1, 2), dtype=image.dtype)
    return jnp.where(box[..., None], other, image), left


def mixed(batch: Batch, *, mix: Mix, seed: int) -> Batch:
    """Return a global batch whose images take from those half a batch away.

    A batch is in random order, so half a batch away is anybody; with the sampler `pk`,
    somebody else.

    Args:
        batch: image [B, H, W, 3] floating, label [B], position [B] and others.
        mix: `mixup` or `cutmix`, its hyper-parameters bound.
        seed: the run's.

    Returns:
        The batch with mixed images, and besides partner [B] int32, the other label,
        and lam [B] in the images' dtype, the part of `label`.
    """
    key = jax.random.fold_in(jax.random.key(seed), _MIX)
    keys = jax.vmap(lambda p: jax.random.fold_in(key, p))(batch["position"])
    half = len(batch["label"]) // 2
    other, partner = (jnp.roll(batch[k], half, axis=0) for k in ("image", "label"))
    image, lam = mix(batch["image"], other, keys)
    return {**batch, "image": image, "partner": partner, "lam": lam}


def check(*, alpha: float, p: float) -> None:
    """Refuse hyper-parameters out of range."""
    if not alpha > 0 or not 0 <= p <= 1:
        raise ValueError(
            f"mixing got alpha={alpha} and p={p}; wanted alpha above 0 and p from 0 to"
            " 1"
        )


def _drawn(keys: jax.Array, *, alpha: float, p: float) -> jax.Array:
    """Return lam [B] in 0.5 .. 1, float32; exactly 1 where nothing is mixed."""
    check(alpha=alpha, p=p)

    def one(key: jax.Array) -> jax.Array:
        beta = jax.random.beta(jax.random.fold_in(key, 0), alpha, alpha)
        hit = jax.random.uniform(jax.random.fold_in(key, 1)) < p
        return jnp.where(hit, jnp.maximum(beta, 1.0 - beta), 1.0)

    return jax.vmap(one)(keys)
