"""Who is in which pair, and how a sum over pairs varies when people are redrawn.

One law: what depends on the people alone is worked out once for all figures of a list,
and never as more than a few numbers a pair, for lists have millions.

    who = Dyads(people, same)
    spread = who.spread(residual.__getitem__)          # t [P], variance, freedom

With t_p the sum of the weighted residuals of the pairs that touch person p, S = sum_p
t_p^2, and D the squares of two-person pairs, which S has at both of their ends, S - D
sums the products of all pairs that share a person: the estimator of Fafchamps, Gubert
2007 and Aronow, Samii, Assenova 2015. Taking off the means makes it too small, the more
so the fewer the people. As Bell, McCaffrey 2002 do for clusters, it is divided by its
expectation in a model where it is known: every pair is the sum of its people's
independent effects of variance 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

_BLOCK = 1 << 20  # pairs looked at at a time


class Spread(NamedTuple):
    """How a sum of means over dyads varies.

    Attributes:
        t: [P] what each person adds to the deviation.
        variance: of the sum; not above 0 where the sample does not tell.
        freedom: degrees of freedom of that variance.
    """

    t: np.ndarray
    variance: float
    freedom: float


class Dyads:
    """The people of pairs in one or several groups, such as impostors and genuine.

    Attributes:
        group: [N] 0 .. G - 1.
        n: [G] pairs of each group; a mean over it weighs each of them 1/n.
        freedom: (sum v)^2 / sum v^2 - 1 with v_p = (Var's part of p): as many degrees
            of freedom as people touched equally often would have.
    """

    def __init__(self, people: np.ndarray, group: np.ndarray | None = None):
        """Number the people and weigh what they share.

        Args:
            people: [N, 2] person ids; equal ids make a pair of one person.
            group: [N] int or bool; one for all where it is None.

        Raises:
            ValueError: on shapes that do not match, or fewer than two people.
        """
        people = np.asarray(people)
        shape = (len(people),) if group is None else np.shape(group)
        if len(shape) != 1 or people.shape != (shape[0], 2):
            raise ValueError(f"people {people.shape} for {shape} pairs; wanted [N, 2]")
        self._P, self._ends = _numbered(people)
        if self._P < 2:
            raise ValueError(
                f"{self._P} people in {len(people)} pairs; an interval needs two"
            )
        self.group = np.zeros(shape, np.int8) if group is None else np.asarray(group)
        self.n = np.bincount(self.group)
        self._w = 1 / self.n
        self._factor, self.freedom = self._expected()

    def __len__(self) -> int:
        return len(self.group)

    def spread(self, residual: Callable[[slice], np.ndarray]) -> Spread:
        """Measure how the sum of the groups' means varies.

        Args:
            residual: a range of pairs -> [n] their outcomes less their group's mean.
        """
        t, own = np.zeros(self._P), 0.0
        for part, left, right, group in self._parts():
            x, two = self._w[group] * residual(part), left != right
            t += np.bincount(left, x, self._P)
            t += np.bincount(right[two], x[two], self._P)
            own += float(np.sum(x[two] ** 2))
        return Spread(t, float(t @ t - own) * self._factor, self.freedom)

    def _parts(self) -> Iterator[tuple[slice, np.ndarray, np.ndarray, np.ndarray]]:
        for i in range(0, len(self), _BLOCK):
            part = slice(i, i + _BLOCK)
            left, right = self._ends[part].T
            yield part, left, right, self.group[part].astype(np.int8)

    def _expected(self) -> tuple[float, float]:
        """Return what S - D is to be multiplied by, and the degrees of freedom.

        In the model t = M u with M = A - sum_g d_g d_g^T / n_g^2, where A_pq weighs the
        pairs of p and q and d_g counts the pairs of group g that touch p.
        """
        P, G, w = self._P, len(self.n), self._w
        touched = np.zeros(G * P)
        for _, left, right, group in self._parts():
            at, two = group.astype(np.int64) * P, left != right
            touched += np.bincount(at + left, minlength=G * P)
            touched += np.bincount((at + right)[two], minlength=G * P)
        d = touched.reshape(G, P)
        gram, n2, size = d @ d.T, self.n.astype(np.float64) ** 2, (w @ d) ** 2
        expected = size.sum() + 2 * self._joint()
        expected += np.sum(gram**2 / np.outer(n2, n2))
        for _, left, right, group in self._parts():
            two, weight = left != right, w[group]
            along = d[:, left] + np.where(two, d[:, right], 0.0)  # [G, n] b_i . d_g
            expected -= 2 * np.sum((weight * along**2).sum(axis=1) / n2)
            own = along[group, np.arange(len(group))] * weight
            doubled = 2 - 2 * own + np.diag(gram)[group] * weight**2
            expected -= np.sum((weight**2 * doubled)[two])
        total = float(size.sum())
        freedom = max(total**2 / float(np.sum(size**2)) - 1, 1.0)
        if expected <= 1e-9 * total:  # too few people for any of it to show
            return 0.0, freedom
        return total / float(expected), freedom

    def _joint(self) -> float:
        """Sum the squared weights of what every two people share."""
        G, P = len(self.n), self._P
        low, high = self._ends.min(axis=1), self._ends.max(axis=1)
        two = low != high
        key = (low[two].astype(np.int64) * P + high[two]) * G + self.group[two]
        key.sort()
        shared, group = np.divmod(key, G)
        if not len(key):
            return 0.0
        first = np.flatnonzero(np.diff(shared, prepend=-1))
        return float(np.sum(np.add.reduceat(self._w[group], first) ** 2))


def _numbered(people: np.ndarray) -> tuple[int, np.ndarray]:
    """Return how many people there are, and [N, 2] int32 their numbers from 0."""
    whole = np.issubdtype(people.dtype, np.integer) and people.size
    if whole and people.min() >= 0 and people.max() <= 4 * people.size:  # no sorting
        there = np.zeros(int(people.max()) + 1, bool)
        there[people] = True
        number = np.cumsum(there).astype(np.int32) - 1
        return int(there.sum()), number[people]
    ids, place = np.unique(people, return_inverse=True)
    return len(ids), place.reshape(people.shape).astype(np.int32)
