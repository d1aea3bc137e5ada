"""From K centres per class to one: who strays, and which centre a class keeps.

Sub-center ArcFace (Deng et al. 2020, sec. 3.5): with K centres the clean faces of a
class gather at one of them, the noise at others. The dominant centre is the one that
most faces of the class are nearest to; the other centres are dropped, and so are the
faces more than 75 degrees from it, before training again with K = 1.

The law: every face is judged by its own class's centres alone, and ties go to the
lower centre.

    found = clean(e, label, kernel, centers=3)
    found.kernel                        # [C, D], the dominant centres
    np.flatnonzero(found.degrees > 75)  # faces to leave out
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Clean:
    """What cleaning found.

    Attributes:
        kernel: [C, D], each class's dominant centre; the first for a class without
            faces.
        dominant: [C] int64, which of the K that is.
        counts: [C, K] int64, faces nearest to each centre.
        degrees: [N] float64, every face's angle to its class's dominant centre.
    """

    kernel: np.ndarray
    dominant: np.ndarray
    counts: np.ndarray
    degrees: np.ndarray


def clean(
    e: np.ndarray, label: np.ndarray, kernel: np.ndarray, *, centers: int
) -> Clean:
    """Find the dominant centres and every face's angle to them.

    Args:
        e: [N, D] embeddings, of any length.
        label: [N] int, the classes of the faces.
        kernel: [C * K, D] class weights; a class's K centres are neighbours.
        centers: K.

    Raises:
        ValueError: shapes or labels that do not fit each other.
    """
    e, label, kernel = np.asarray(e), np.asarray(label), np.asarray(kernel)
    if kernel.shape[0] % centers or e.shape[1:] != kernel.shape[1:]:
        raise ValueError(
            f"got embeddings {e.shape}, weights {kernel.shape} and centers={centers};"
            " wanted [N, D] and [C * centers, D]"
        )
    centred = kernel.reshape(-1, centers, kernel.shape[1])  # [C, K, D]
    C = len(centred)
    if label.shape != e.shape[:1] or (label < 0).any() or (label >= C).any():
        raise ValueError(
            f"got labels {label.shape} for embeddings {e.shape} and {C} classes;"
            " wanted one per embedding, from 0 up, below the number of classes"
        )
    unit_e, unit_w = _unit(e), _unit(centred)
    # Class by class: a copy of the centres for every face would be K times the faces.
    cosine = np.zeros((len(e), centers))
    order = np.argsort(label, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(label[order])) + 1):
        if len(rows):
            cosine[rows] = unit_e[rows] @ unit_w[label[rows[0]]].T
    nearest = cosine.argmax(axis=1)
    counts = np.zeros((C, centers), np.int64)
    np.add.at(counts, (label, nearest), 1)
    dominant = counts.argmax(axis=1)
    own = np.clip(cosine[np.arange(len(e)), dominant[label]], -1.0, 1.0)
    return Clean(
        kernel=centred[np.arange(C), dominant],
        dominant=dominant,
        counts=counts,
        degrees=np.degrees(np.arccos(own)),
    )


def _unit(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
