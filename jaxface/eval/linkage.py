"""Average-linkage clustering of unit vectors: which images are of one person?

One law: two clusters are as alike as the mean cosine over all pairs between them, and
the most alike are joined first; ties are settled by the order of the images.

    tree = average(unit)                  # [n - 1] merges
    cluster = cut(tree, threshold=0.4)    # [n] ids; clusters no less alike are joined
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tree:
    """Merges of n images in n - 1 steps; cluster n + k is what merge k made.

    Attributes:
        left, right: [n - 1] int64, the clusters joined.
        cos: [n - 1] float64, how alike they were; never rises from child to parent.
    """

    left: np.ndarray
    right: np.ndarray
    cos: np.ndarray


def average(unit: np.ndarray) -> Tree:
    """Join all images by nearest-neighbour chains.

    Args:
        unit: [n, D] unit vectors; the cosines of all pairs are held, 4 n^2 bytes.

    Returns:
        The `Tree`.

    Benzecri 1982 (chains); Lance, Williams 1967, for the mean between clusters.
    """
    n = len(unit)
    cos = (unit @ unit.T).astype(np.float32)
    np.fill_diagonal(cos, -np.inf)
    size, name, alive = np.ones(n), np.arange(n), np.ones(n, bool)
    left, right = np.empty((2, n - 1), np.int64)
    height, chain = np.empty(n - 1), list[int]()
    for k in range(n - 1):
        if not chain:
            chain = [int(np.argmax(alive))]
        while True:
            i = chain[-1]
            j = int(np.argmax(cos[i]))
            if len(chain) > 1 and cos[i, chain[-2]] >= cos[i, j]:
                j = chain[-2]  # each is the other's nearest
                break
            chain.append(j)
        del chain[-2:]
        left[k], right[k], height[k] = name[i], name[j], cos[i, j]
        joined = (size[i] * cos[i] + size[j] * cos[j]) / (size[i] + size[j])
        cos[j, :], cos[:, j] = -np.inf, -np.inf
        joined[~alive], joined[[i, j]] = -np.inf, -np.inf
        cos[i, :], cos[:, i] = joined, joined
        size[i] += size[j]
        alive[j], name[i] = False, n + k
    return Tree(left, right, height)


def cut(tree: Tree, *, threshold: float) -> np.ndarray:
    """Return cluster ids [n], 0 .. K - 1: merges at or above the threshold are done."""
    n = len(tree.cos) + 1
    up = np.arange(2 * n - 1)
    (done,) = np.nonzero(tree.cos >= threshold)
    up[tree.left[done]] = up[tree.right[done]] = n + done
    while not np.array_equal(up, up[up]):
        up = up[up]
    return np.unique(up[:n], return_inverse=True)[1]
