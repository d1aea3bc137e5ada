"""Verification of billions of pairs: counts on a grid of scores, never the scores.

One law: rates at a threshold of the grid are exact, whatever the order and the parts
the scores came in. The grid's step is a power of two, so that no rounding can move a
score across a threshold.

    counts = empty()                       # 2^-16 between thresholds
    counts = counts.add(scores, same)      # as often as there are blocks
    counts = counts.merge(other)           # from another process
    far, tar, threshold = counts.roc()
    tar, threshold = counts.tar_at_far(1e-6)
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxface.eval import curves


@dataclasses.dataclass(frozen=True)
class Counts:
    """How many genuine and impostor scores lie from each threshold to the next.

    Attributes:
        genuine, impostor: [M] int64; place k counts scores in [t_k, t_(k+1)), the
            last place those of 1 and, by rounding, a little above.
        bits: t_k = -1 + k 2^-bits, for k = 0 .. M - 1 = 2^(bits + 1).
    """

    genuine: np.ndarray
    impostor: np.ndarray
    bits: int

    def add(self, scores: np.ndarray, same: np.ndarray) -> Counts:
        """Count a block of pairs.

        Args:
            scores: [n] cosines.
            same: [n] bool, True for a genuine pair; may be all of one kind.

        Raises:
            ValueError: on scores that are not finite, or beyond 1 by more than 1e-5.
        """
        scores, same = curves.checked(scores, same, classes=False)
        most = float(np.max(np.abs(scores)))
        if most > 1 + 1e-5:
            raise ValueError(f"scores reach {most:g}; wanted cosines")
        # scaling by a power of two and floor are exact
        at = np.floor(scores * 2.0**self.bits).astype(np.int64) + (1 << self.bits)
        at = np.clip(at, 0, len(self.genuine) - 1)
        counted = [
            np.bincount(at[of], minlength=len(self.genuine)) for of in (same, ~same)
        ]
        return self.merge(Counts(counted[0], counted[1], self.bits))

    def merge(self, other: Counts) -> Counts:
        """Return the counts of both.

        Raises:
            ValueError: on another grid.
        """
        if other.bits != self.bits:
            raise ValueError(f"grids of 2^-{self.bits} and 2^-{other.bits}; wanted one")
        return Counts(
            self.genuine + other.genuine, self.impostor + other.impostor, self.bits
        )

    def roc(self) -> curves.Points:
        """Compute (far, tar, threshold) at the thresholds where something is counted.

        That is the ROC of all scores rounded down to the grid.

        Raises:
            ValueError: with one kind of pairs only.
        """
        if not self.genuine.any() or not self.impostor.any():
            raise ValueError(
                f"{self.genuine.sum()} genuine and {self.impostor.sum()} impostor"
                " pairs; a curve needs both"
            )
        used = np.flatnonzero(self.genuine + self.impostor)
        tp, fp = (np.cumsum(n[::-1])[::-1][used] for n in (self.genuine, self.impostor))
        return curves.rates(tp, fp, used * 2.0**-self.bits - 1)

    def auc(self) -> float:
        """Compute the area under the ROC; scores within one step count as ties."""
        return curves.area(*self.roc()[:2])

    def eer(self) -> float:
        """Compute the equal error rate of the scores on the grid."""
        return curves.equal_error(*self.roc()[:2])

    def tar_at_far(self, far: float) -> tuple[float, float]:
        """Return (tar, the lowest threshold with something that keeps FAR <= far).

        Raises:
            ValueError: as `curves.tar_at_far` does.
        """
        curves.check_far(far, max(1, int(self.impostor.sum())))
        return curves.at(self.roc(), far)


def empty(*, bits: int = 16) -> Counts:
    """Return counts of nothing, on thresholds 2^-bits apart from -1 to 1."""
    if not 1 <= bits <= 24:
        raise ValueError(f"bits={bits}; wanted 1 to 24, of which 24 take 512 MiB")
    zero = np.zeros((2 << bits) + 1, np.int64)
    return Counts(zero, zero, bits)
