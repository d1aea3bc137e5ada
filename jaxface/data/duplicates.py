"""Pictures that are the same, or nearly: a perceptual hash and who is close to whom.

The law: two pictures are near duplicates if their hashes differ in at most `most` of
64 bits; every such pair is found, however many pictures there are.

    hashes = np.array([perceptual_hash(image) for image in images], np.uint64)
    pairs = near(hashes, most=3)                      # [P, 2], i < j
"""

from __future__ import annotations

import itertools

import numpy as np
from PIL import Image

_SIDE = 32  # of the picture that is transformed
_BLOCK = 2048  # rows compared at once: 2048 x 2048 x 8 bytes


def perceptual_hash(image: np.ndarray) -> np.uint64:
    """Return 64 bits that survive scaling, recompression and changes of brightness.

    The signs, about their median, of the 8 x 8 lowest frequencies of a 32 x 32 grey
    picture, the constant left out: pHash, Zauner 2010, section 3.2.1.

    Args:
        image: uint8 [H, W, 3] RGB.

    Returns:
        The hash; zero frequencies and pictures of one colour give zeros.
    """
    small = (
        Image.fromarray(image).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    )
    pixels = np.asarray(small, np.float64)
    waves = _COSINES @ (pixels - pixels.mean()) @ _COSINES.T  # [8, 8]
    waves = np.where(np.abs(waves) > 1e-6, waves, 0.0).ravel()
    bits = waves > np.median(waves)
    return np.packbits(bits).view(">u8")[0].astype(np.uint64)


# Frequencies 1 .. 8: a change of brightness moves frequency 0 alone.
_COSINES = np.cos(
    np.pi / _SIDE * np.outer(np.arange(1, 9), np.arange(_SIDE) + 0.5)
)  # [8, 32]


def near(hashes: np.ndarray, *, most: int = 3) -> np.ndarray:
    """Find the pairs whose hashes differ in at most `most` bits.

    Of pictures with one hash only the first is compared with others, and each later
    one is paired with the first, so that a thousand equal ones give 999 pairs.

    Args:
        hashes: [n] uint64.
        most: bits, 0 .. 7.

    Returns:
        [P, 2] int64, each i < j, sorted.

    Raises:
        ValueError: if `most` is out of range.

    A hash is cut into most + 1 parts; of two that differ in `most` bits at most, one
    part at least is equal (Manku et al. 2007): only those are compared.
    """
    if not 0 <= most <= 7:
        raise ValueError(f"most={most}: wanted 0 .. 7 of 64 bits")
    hashes = np.asarray(hashes, np.uint64)
    distinct, first, group = np.unique(hashes, return_index=True, return_inverse=True)
    later = np.setdiff1d(np.arange(len(hashes)), first)
    found = [np.stack([first[group[later]], later], axis=1)]
    edges = np.linspace(0, 64, most + 2).astype(int)
    for low, high in itertools.pairwise(edges.tolist()):
        mask = np.uint64(((1 << (high - low)) - 1) << low)
        part = distinct & mask
        order = np.argsort(part, kind="stable")
        starts = np.flatnonzero(np.diff(part[order])) + 1
        for bucket in np.split(order, starts) if most else ():
            if len(bucket) > 1:
                found += [first[p] for p in _close(distinct, bucket, most)]
    pairs = np.sort(np.concatenate(found).reshape(-1, 2), axis=1)
    return np.unique(pairs, axis=0).astype(np.int64)


def _close(hashes: np.ndarray, bucket: np.ndarray, most: int) -> list[np.ndarray]:
    """Return the close pairs among some hashes, compared block by block."""
    found = []
    for a in range(0, len(bucket), _BLOCK):
        for b in range(a, len(bucket), _BLOCK):
            left, right = bucket[a : a + _BLOCK], bucket[b : b + _BLOCK]
            apart = np.bitwise_count(hashes[left][:, None] ^ hashes[right][None])
            i, j = np.nonzero(apart <= most)
            own = left[i] != right[j]
            found.append(np.stack([left[i], right[j]], axis=1)[own])
    return found
