"""Templates: many images of a person as one vector, and how alike templates are.

One law: images of one medium (the frames of a video) are averaged before the media are
added up, so that a long video counts as much as a photo.

    t = pool(e, template, media, weight=detector_score, normalise=False)   # [T, D] unit
    s = scores(t, left, right)                                             # [P] cosines
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_IMAGES = 192  # pooled at a time, whole templates: the products stay small
_ROWS = 8192  # pairs, or rows of cosines, held at a time
_DENSE = 64  # a cosine of a whole product is so many times cheaper than one by itself


def pool(
    e: np.ndarray,
    template: np.ndarray,
    media: np.ndarray,
    *,
    weight: np.ndarray | None,
    normalise: bool,
) -> np.ndarray:
    """Pool image embeddings into templates.

    Args:
        e: [n, D] embeddings, of the length that the network gave them.
        template: [n] int, 0 .. T - 1; each has images.
        media: [n] int >= 0, which medium of its template an image is of. Ids may be
            shared between templates: they are other media there.
        weight: [n] >= 0 that an image is multiplied by (a detector's score), or None.
        normalise: take images to unit length first; else a longer embedding, of an
            image that the network is surer of, counts for more.

    Returns:
        [T, D] float32 of unit length: sum over media of the mean over images.

    Raises:
        ValueError: on shapes or ids that do not fit, embeddings or weights that are
            not finite, or a template without a direction.

    The pooling of IJB-A, Klare et al. 2015, section 5; the switches are those of
    insightface's IJB evaluation: N1 is normalise=False, D1 a weight.
    """
    e, template, media = np.asarray(e), np.asarray(template), np.asarray(media)
    n = len(e)
    if e.ndim != 2 or not n or template.shape != (n,) or media.shape != (n,):
        raise ValueError(
            f"embeddings {e.shape}, template {template.shape}, media {media.shape};"
            " wanted [n, D], [n], [n]"
        )
    if template.min() < 0 or media.min() < 0:
        raise ValueError(f"ids from {min(template.min(), media.min())}; wanted >= 0")
    order = np.lexsort((media, template))
    sizes = np.bincount(template)
    if not sizes.all():
        lost = np.flatnonzero(sizes == 0)
        raise ValueError(
            f"{len(lost)} of {len(sizes)} templates have no image, the first is"
            f" {lost[0]}; number those that have some from 0"
        )
    scale = 1 / _media_size(template[order], media[order])  # [n], in that order
    if weight is not None:
        scale *= _weights(weight, n)[order]
    out = np.empty((len(sizes), e.shape[1]), np.float32)
    ends = np.cumsum(sizes)
    for first, last in _chunks(ends):
        start, end = ends[first] - sizes[first], ends[last - 1]
        rows = order[start:end]
        x, factor = np.asarray(e[rows], np.float32), scale[start:end]
        if normalise:
            factor = factor / _lengths(x, "image", rows)
        # a product with a matrix of factors is many times faster than sums over rows
        mix = np.zeros((last - first, len(rows)), np.float32)
        mix[template[rows] - first, np.arange(len(rows))] = factor
        total = mix @ x
        length = _lengths(total, "template", np.arange(first, last))
        out[first:last] = total / length[:, None]
    return out


def scores(templates: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Compare pairs of templates.

    A protocol that compares a good part of all templates with each other is a few
    matrix products, of which the pairs are read off; a sparse one goes pair by pair.

    Args:
        templates: [T, D] unit vectors, from `pool`.
        left: [P] int, 0 .. T - 1.
        right: [P] int, 0 .. T - 1.

    Returns:
        [P] float32 cosines.

    Raises:
        ValueError: on ids that name no template, or sides of different length.
    """
    templates = np.asarray(templates, np.float32)
    left, right, T = np.asarray(left), np.asarray(right), len(templates)
    if left.ndim != 1 or left.shape != right.shape:
        raise ValueError(f"left {left.shape}, right {right.shape}; wanted [P], [P]")
    out = np.empty(len(left), np.float32)
    if not len(left):
        return out
    low, high = (int(f([f(left), f(right)])) for f in (np.min, np.max))
    if low < 0 or high >= T:
        raise ValueError(f"pairs name templates {low} to {high} of {T}")
    rows, row = _present(left, T)
    columns, column = _present(right, T)
    if len(rows) * len(columns) > _DENSE * len(left):
        for i in range(0, len(left), _ROWS):
            a, b = (templates[side[i : i + _ROWS]] for side in (left, right))
            out[i : i + _ROWS] = np.einsum("pd,pd->p", a, b)
        return out
    step = max(1, min(_ROWS, (1 << 25) // len(columns)))  # 128 MiB of cosines
    block = (row // step).astype(np.uint16 if len(rows) // step < 1 << 16 else np.int64)
    order = np.argsort(block, kind="stable")  # a radix sort for 16 bits
    ends = np.cumsum(np.bincount(block))
    other = np.ascontiguousarray(templates[columns].T)  # [D, R]
    for k, end in enumerate(ends):
        pairs = order[ends[k - 1] if k else 0 : end]
        product = templates[rows[k * step : (k + 1) * step]] @ other
        out[pairs] = product[row[pairs] - k * step, column[pairs]]
    return out


def _present(ids: np.ndarray, T: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which ids occur [R], and each id's place among them [P]."""
    present = np.zeros(T, bool)
    present[ids] = True
    return np.flatnonzero(present), (np.cumsum(present) - 1)[ids]


def _media_size(template: np.ndarray, media: np.ndarray) -> np.ndarray:
    """Return how many images each image's medium has, [n]; both are sorted."""
    new = np.append(True, (np.diff(template) != 0) | (np.diff(media) != 0))
    starts = np.flatnonzero(new)
    return np.diff(np.append(starts, len(new)))[np.cumsum(new) - 1].astype(np.float64)


def _weights(weight: np.ndarray, n: int) -> np.ndarray:
    weight = np.asarray(weight, np.float64)
    if weight.shape != (n,) or not (np.isfinite(weight) & (weight >= 0)).all():
        raise ValueError(f"weight {weight.shape} of {n} images; wanted [n] finite >= 0")
    return weight


def _chunks(ends: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield (first, last) templates, one or more, of about `_IMAGES` images."""
    first = 0
    while first < len(ends):
        begun = ends[first - 1] if first else 0
        last = int(np.searchsorted(ends, begun + _IMAGES, side="right"))
        yield first, max(last, first + 1)
        first = max(last, first + 1)


def _lengths(x: np.ndarray, kind: str, ids: np.ndarray) -> np.ndarray:
    """Return lengths [n], or say which rows have no direction."""
    length = np.sqrt(np.einsum("nd,nd->n", x, x))
    bad = np.flatnonzero(~np.isfinite(length) | (length == 0))
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(x)} {kind}s have no direction (NaN, infinite or"
            f" zero), the first is {kind} {ids[bad[0]]}"
        )
    return length
