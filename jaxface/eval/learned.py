"""A quality learned from a network's own embeddings: how well a face will match.

One law: nobody is scored by a head that saw them. People, not images, are dealt to
parts, and the head that scores a part is fitted on the others.

    wanted = margin(embedding, person)                # [n], NaN where nobody can tell
    head = fit(features(embedding), wanted)
    score = head(features(others))                    # [m]
    score = cross_fitted(embedding, person)           # [n], each by others' people

The head is linear: frozen features, as CR-FIQA (Boutros et al. 2023) puts a head of one
layer on a backbone's; it needs no image and no gradient.
"""

from __future__ import annotations

import dataclasses

import numpy as np

_PEOPLE = 20  # with several images, who must be there to learn from
_RIDGE = 500.0  # as good for 240 faces as for 4,600: 100 to 2,000 hardly differ


@dataclasses.dataclass(frozen=True)
class Head:
    """A linear score of features.

    Attributes:
        mean, std: [F] of the features it was fitted on; a feature that did not vary
            has std 1.
        weight: [F] of features less mean, over std.
        bias: what is added.
    """

    mean: np.ndarray
    std: np.ndarray
    weight: np.ndarray
    bias: float

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Return the scores [n] of features [n, F]; higher is better."""
        return (features - self.mean) / self.std @ self.weight + self.bias


def features(embedding: np.ndarray) -> np.ndarray:
    """Return direction and log of the length of embeddings [n, D]: [n, D + 1]."""
    e = np.asarray(embedding, np.float64)
    length = np.linalg.norm(e, axis=1, keepdims=True)
    return np.concatenate([e / length, np.log(length)], axis=1)


def margin(embedding: np.ndarray, person: np.ndarray) -> np.ndarray:
    """Compute how much nearer each image is to its own person's than to others'.

    The mean cosine with the person's other images less that with all images of others.
    SDD-FIQA (Ou et al. 2021, eq. (4)) takes the Wasserstein distance of the two samples
    of cosines, which is this difference wherever the genuine ones lie above.

    Args:
        embedding: [n, D] of any length but zero.
        person: [n] int, whose.

    Returns:
        [n] float64 in [-2, 2]; NaN for the only image of a person.
    """
    unit = np.asarray(embedding, np.float64)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    _, who, count = np.unique(person, return_inverse=True, return_counts=True)
    total = np.zeros((len(count), unit.shape[1]))
    np.add.at(total, who, unit)
    own = np.sum(unit * total[who], axis=1)
    others = unit @ total.sum(axis=0) - own
    n = count[who]
    with np.errstate(invalid="ignore"):
        genuine = np.where(n > 1, (own - 1) / np.maximum(n - 1, 1), np.nan)
    return genuine - others / np.maximum(len(unit) - n, 1)


def fit(x: np.ndarray, wanted: np.ndarray, *, ridge: float = _RIDGE) -> Head:
    """Fit a head by ridge regression, in closed form.

    Args:
        x: [n, F] features.
        wanted: [n] what the score is to be; rows of NaN teach nothing.
        ridge: penalty on the weights; n rows outweigh it when n is larger.

    Raises:
        ValueError: fewer than two rows, or a penalty not above 0.

    Hoerl, Kennard 1970, eq. (2.1), on features of mean 0 and variance 1.
    """
    told = np.isfinite(wanted)
    if told.sum() < 2 or ridge <= 0:
        raise ValueError(
            f"{int(told.sum())} rows to fit on, ridge={ridge}; wanted two or more, and"
            " a penalty above 0"
        )
    x, y = x[told], wanted[told]
    mean, std = x.mean(axis=0), x.std(axis=0)
    std = np.where(std > 1e-12, std, 1.0)
    z = (x - mean) / std
    gram = z.T @ z + ridge * np.eye(z.shape[1])
    weight = np.linalg.solve(gram, z.T @ (y - y.mean()))
    return Head(mean, std, weight, float(y.mean()))


def cross_fitted(
    embedding: np.ndarray,
    person: np.ndarray,
    *,
    parts: int = 5,
    ridge: float = _RIDGE,
) -> np.ndarray:
    """Score every image by a head that saw none of its person's.

    Scores of different parts are of one kind, what is fitted is the same margin; its
    impostors are people of the head's own parts only.

    Args:
        embedding: [n, D] with its length kept.
        person: [n] int; -1 of nobody known, whose images are scored and teach nothing.
        parts: into how many people are dealt, in the order of their ids.
        ridge: of `fit`.

    Returns:
        [n] float64, higher is better.

    Raises:
        ValueError: too few people with several images to learn from.
    """
    known, x = person >= 0, features(embedding)
    people, count = np.unique(person[known], return_counts=True)
    if parts < 2 or np.sum(count > 1) < max(parts, _PEOPLE):
        raise ValueError(
            f"{np.sum(count > 1)} of {len(people)} people have two images or more,"
            f" parts={parts}; a learned quality needs {max(parts, _PEOPLE)} of them"
            " and 2 parts or more; leave 'learned' out, or take a larger set"
        )
    # those with several images are dealt first, so that every part gets its share
    order = people[np.argsort(count < 2, kind="stable")]
    dealt = np.full(len(person), -1)
    for k in range(parts):
        dealt[np.isin(person, order[k::parts])] = k
    out = np.empty(len(person))
    for k in range(-1, parts):
        teach, asked = known & (dealt != k), dealt == k
        if asked.any():
            taught = margin(embedding[teach], person[teach])
            out[asked] = fit(x[teach], taught, ridge=ridge)(x[asked])
    return out
