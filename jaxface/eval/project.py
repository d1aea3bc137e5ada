"""Embeddings on a plane, for looking at.

One law: the same embeddings give the same plane, signs and seeds included.

    xy = PROJECTIONS["pca"](embedding)        # [n, 2]
    some = chosen(person, people=24, each=12)  # the images worth drawing
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np


def pca(embedding: np.ndarray) -> np.ndarray:
    """Project [n, D] onto its two principal axes, [n, 2]; an axis of no spread is 0.

    An axis has two directions; taken is that along which its largest entry points.

    Raises:
        ValueError: if the embedding is not [n, D] of finite numbers, n and D above 1.
    """
    x = _checked(embedding)
    x = x - x.mean(axis=0, keepdims=True)
    _, _, axes = np.linalg.svd(x, full_matrices=False)
    axes = axes[:2]  # [2, D]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1, keepdims=True), 1)
    return x @ (axes * np.sign(largest)).T


def tsne(embedding: np.ndarray) -> np.ndarray:
    """Place [n, D] on a plane, [n, 2], so that neighbours stay neighbours.

    Distances between clusters mean nothing. Perplexity 15, or less for few images.

    Raises:
        ImportError: without scikit-learn.
        ValueError: as `pca`, or for fewer than four images.

    van der Maaten, Hinton 2008.
    """
    x = _checked(embedding)
    if len(x) < 4:
        raise ValueError(f"{len(x)} images are too few for t-SNE; it needs four")
    try:
        from sklearn import manifold
    except ImportError as error:
        raise ImportError(
            "t-SNE needs scikit-learn: pip install jaxface[report]"
        ) from error
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    perplexity = min(15.0, (len(x) - 1) / 3)
    # exact and of one thread: the tree's sums hang on the number of threads
    found = manifold.TSNE(
        perplexity=perplexity, init=pca(x) * 1e-2, method="exact", random_state=0
    )
    return np.asarray(found.fit_transform(x.astype(np.float64)), np.float64)


def umap(embedding: np.ndarray) -> np.ndarray:
    """Place [n, D] on a plane, [n, 2], by cosine; 15 neighbours or less.

    Raises:
        ImportError: without umap-learn.
        ValueError: as `pca`, or for fewer than four images.

    McInnes, Healy, Melville 2018.
    """
    x = _checked(embedding)
    if len(x) < 4:
        raise ValueError(f"{len(x)} images are too few for UMAP; it needs four")
    try:
        from umap import UMAP
    except ImportError as error:
        raise ImportError("UMAP needs umap-learn: pip install jaxface[umap]") from error
    neighbours = min(15, len(x) - 1)
    how = {"init": pca(x), "random_state": 0, "n_jobs": 1}  # a seed wants one thread
    found = UMAP(n_neighbors=neighbours, metric="cosine", **how).fit_transform(x)
    return np.asarray(found, np.float64)


PROJECTIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "pca": pca,
    "tsne": tsne,
    "umap": umap,
}
TITLES = {
    "pca": "Embeddings, PCA",
    "tsne": "Embeddings, t-SNE",
    "umap": "Embeddings, UMAP",
}


def chosen(person: np.ndarray, *, people: int = 24, each: int = 12) -> np.ndarray:
    """Choose the images to draw: of those with the most, the first of each.

    Args:
        person: [n] ids, who is on each image; -1 for images of nobody known.
        people: at most so many; of equals the lower ids.
        each: images of a person at most, in their order.

    Returns:
        [m] indices, ascending.
    """
    known, count = np.unique(person[person >= 0], return_counts=True)
    most = known[np.argsort(-count, kind="stable")][:people]
    own = [np.flatnonzero(person == p)[:each] for p in most]
    return np.sort(np.concatenate([np.empty(0, np.int64), *own]))


def _checked(embedding: np.ndarray) -> np.ndarray:
    x = np.asarray(embedding, np.float64)
    if x.ndim != 2 or min(x.shape) < 2 or not np.isfinite(x).all():
        raise ValueError(
            f"embedding {x.shape}, {int(np.sum(~np.isfinite(x)))} values not finite;"
            " wanted [n, D] of finite numbers, both above 1"
        )
    return x
