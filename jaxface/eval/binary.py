"""Binary recognition: is this image of the enrolled person or not?

One law: every number is computed from the counts tp, fp, tn, fn, so runs over many
enrolled people pool by adding counts.

    result = Evaluator(images).run(embed)     # embed: Source -> [n, 1] logits
    result.scalars["f1"], result.scalars["f1_low"]
    pooled = pool([result.scalars, other.scalars])
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from jaxface import types
from jaxface.eval import decisions


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Decisions of a one-logit classifier on images labelled 0 or 1.

    Attributes:
        images: label 1 is the enrolled person.

    Raises:
        ValueError: on other labels.
    """

    images: types.Source

    def __post_init__(self) -> None:
        found = set(_labels(self.images).tolist())
        if not found or not found <= {0, 1}:
            raise ValueError(f"labels {sorted(found)[:5]}; wanted 0 and 1")

    @property
    def work(self) -> int:
        """Images that one run puts through the network."""
        return len(self.images)

    def run(self, embed: types.Embed) -> types.Result:
        """Classify the images once and measure.

        Args:
            embed: gives [n, 1] logits for the n images.

        Returns:
            Scalars: those of `pool`. Artefacts: scores [n] (probability), same [n]
            (True for the enrolled person), correct [n].

        Raises:
            ValueError: on logits that are not [n, 1] or not numbers.
        """
        logit = np.asarray(embed(self.images), np.float64)
        if logit.shape != (len(self.images), 1) or np.isnan(logit).any():
            raise ValueError(
                f"embed gave {logit.shape} logits, {int(np.isnan(logit).sum())} of"
                f" them NaN; wanted [{len(self.images)}, 1]"
            )
        truth = _labels(self.images) == 1
        # probability above one half, as Keras' BinaryAccuracy decides
        decided = logit[:, 0] > 0
        counts = decisions.confusion(decided, truth)
        return types.Result(
            scalars=_scalars(counts, majority=int(max(truth.sum(), (~truth).sum()))),
            artefacts={
                "scores": 0.5 + 0.5 * np.tanh(logit[:, 0] / 2),
                "same": truth,
                "correct": decided == truth,
            },
        )


def pool(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Add up the counts of several runs and compute every scalar anew.

    Args:
        runs: scalars of `Evaluator.run`, one of each enrolled person.

    Returns:
        count, positives, tp, fp, tn, fn; accuracy, precision, recall, f1, each with
        `_low` and `_high` (Wilson, 95 %); majority, the accuracy of always answering
        each run's more frequent label; threshold, a probability.

    Raises:
        ValueError: if there is no run.
    """
    if not runs:
        raise ValueError("no runs to pool; wanted at least one")
    counts = decisions.Confusion(
        *(int(sum(run[name] for run in runs)) for name in decisions.Confusion._fields)
    )
    majority = sum(round(run["majority"] * run["count"]) for run in runs)
    return _scalars(counts, majority=majority)


def _scalars(counts: decisions.Confusion, *, majority: int) -> dict[str, float]:
    """Compute all scalars; `majority` counts the images of the frequent label."""
    n = sum(counts)
    precision, recall, f1 = decisions.precision_recall_f1(counts)
    rates = {
        "accuracy": decisions.accuracy(counts),
        "precision": precision,
        "recall": recall,
        "f1": f1,
    }
    scalars: dict[str, float] = {}
    for name, rate in rates.items():
        scalars |= rate.named(name)
    scalars |= {"count": n, "positives": counts.tp + counts.fn, **counts._asdict()}
    scalars |= {"majority": majority / n, "threshold": 0.5}
    return {name: float(value) for name, value in scalars.items()}


def _labels(images: types.Source) -> np.ndarray:
    """Return the labels [n]; a source that knows them need not be read."""
    known = getattr(images, "labels", None)
    if known is not None:
        return np.asarray(known)
    return np.array([images.read(i)[1] for i in range(len(images))], np.int64)
