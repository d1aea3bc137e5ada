"""Face verification: are these two images of one person?

One law: a run depends on the embeddings and the pairs alone, and on the order of the
pairs only through their folds. Embeddings come as `embed` makes them (flip-sum
included); the protocol's unit length is taken here.

    evaluator = Evaluator(pairs, far=(1e-1, 1e-2))
    result = evaluator.run(embed)       # embed: Source -> [n, D] float32
    result.scalars["accuracy"], result.scalars["tar@far=1e-2"]
    result.artefacts["scores"]          # [N] cosines
"""

from __future__ import annotations

import dataclasses

import numpy as np
from absl import logging

from jaxface import types
from jaxface.eval import bootstrap, curves, decisions, dyads, folds, project


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """The verification protocol over a pair list.

    Attributes:
        pairs: what to compare.
        far: false accept rates at which to report TAR; those that the list's
            impostor pairs cannot resolve are logged and left out.

    Raises:
        ValueError: on pairs that are not a verification list.
    """

    pairs: types.Pairs
    _: dataclasses.KW_ONLY
    far: tuple[float, ...] = (1e-1, 1e-2, 1e-3)

    def __post_init__(self) -> None:
        pairs, n = self.pairs, len(self.pairs.images)
        N = len(pairs)
        genuine = int(np.sum(pairs.same))
        if not 0 < genuine < N:
            raise ValueError(f"{genuine} genuine of {N} pairs; wanted both kinds")
        for name, shape in {
            "left": (N,),
            "right": (N,),
            "fold": (N,),
            "people": (N, 2),
        }.items():
            if np.shape(getattr(pairs, name)) != shape:
                found = np.shape(getattr(pairs, name))
                raise ValueError(f"pairs.{name} is {found}; wanted {shape}")
        ends = np.stack([pairs.left, pairs.right])
        if ends.min() < 0 or ends.max() >= n:
            raise ValueError(f"pairs name images {ends.min()} to {ends.max()} of {n}")
        lost = [short(far) for far in self.far if far < 1 / (N - genuine)]
        if lost:
            logging.info(
                "TAR at FAR %s is left out: %d impostor pairs cannot show it",
                ", ".join(lost),
                N - genuine,
            )

    @property
    def work(self) -> int:
        """Images that one run puts through the network."""
        return len(self.pairs.images)

    def run(self, embed: types.Embed) -> types.Result:
        """Embed the images once and measure.

        Args:
            embed: gives [n, D] float for the n images, of any length but zero.

        Returns:
            Scalars: accuracy (mean over folds) with accuracy_std and the interval
            over people; pairs, genuine, impostors, folds, people; threshold
            (cosine, mean over folds); precision, recall, f1 at the k-fold decisions;
            auc, eer, with intervals over people; view2 and, of two folds or more,
            view2_error: accuracy and its standard error as LFW's text defines them;
            `tar@far=1e-2` and so on; `_low`, `_high` beside the rates, over people.
            Artefacts: scores [N] (cosine), same, fold, accepted, correct, left, right,
            people [N, 2]; to be drawn, embedding [m, D] float32 of unit length and
            identity [m] of the people with most images, see `project.chosen`.

        Raises:
            ValueError: on embeddings that are not finite, are zero, or not [n, D].
        """
        pairs = self.pairs
        unit = unit_length(embed(pairs.images), pairs.images)
        # |a - b|^2 = 2 - 2 cos, summed as insightface does
        gap = unit[pairs.left] - unit[pairs.right]
        scores = 1 - np.sum(gap**2, axis=1) / 2
        same = np.asarray(pairs.same, bool)
        found = folds.kfold_accuracy(scores, same, pairs.fold)
        lfw = folds.view2(scores, same, pairs.fold)
        low, high = bootstrap.people_interval(found.correct, pairs.people)
        who, curve = dyads.Dyads(pairs.people, same), curves.roc(scores, same)
        counts = decisions.confusion(found.accepted, same)
        genuine, impostors = counts.tp + counts.fn, counts.fp + counts.tn
        scalars = {
            "accuracy": found.mean,
            "accuracy_std": found.std,
            "accuracy_low": low,
            "accuracy_high": high,
            "pairs": len(pairs),
            "genuine": genuine,
            "impostors": impostors,
            "folds": len(found.threshold),
            "people": len(np.unique(pairs.people)),
            "threshold": float(found.threshold.mean()),
            "view2": lfw.mean,
            **bootstrap.people_auc(scores, same, who).named("auc"),
            **bootstrap.people_eer(scores, same, who, curve=curve).named("eer"),
        }
        if len(lfw.threshold) > 1:
            scalars["view2_error"] = lfw.standard_error
        rates = bootstrap.people_precision_recall_f1(found.accepted, same, who)
        for name, rate in zip(("precision", "recall", "f1"), rates, strict=True):
            scalars |= rate.named(name)
        for far in self.far:
            if far >= 1 / impostors:
                tar = bootstrap.people_tar(scores, same, who, far=far, curve=curve)
                scalars |= tar.named(f"tar@far={short(far)}")
        return types.Result(
            scalars={name: float(value) for name, value in scalars.items()},
            artefacts={
                "scores": scores,
                "same": same,
                "fold": np.asarray(pairs.fold),
                "accepted": found.accepted,
                "correct": found.correct,
                "left": np.asarray(pairs.left),
                "right": np.asarray(pairs.right),
                "people": np.asarray(pairs.people),
                **_drawn(unit, pairs),
            },
        )


def _drawn(unit: np.ndarray, pairs: types.Pairs) -> dict[str, np.ndarray]:
    """Return the embeddings worth drawing and whose they are, each once."""
    person = pairs.owners
    some = project.chosen(person)
    # a pack repeats a photo in every pair it is in
    _, first = np.unique(unit[some], axis=0, return_index=True)
    some = some[np.sort(first)]
    return {"embedding": unit[some].astype(np.float32), "identity": person[some]}


def unit_length(embedding: np.ndarray, images: types.Source) -> np.ndarray:
    """Return unit embeddings [n, D] float64, or say which image has none."""
    embedding = shaped(embedding, images).astype(np.float64)
    n = len(images)
    norm = np.linalg.norm(embedding, axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(norm[:, 0]) | (norm[:, 0] == 0))
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {n} embeddings have no direction (NaN, infinite or zero),"
            f" the first of {images.name(int(bad[0]))}; the model has diverged, or"
            " these images are broken"
        )
    return embedding / norm


def shaped(embedding: np.ndarray, images: types.Source) -> np.ndarray:
    """Return what `embed` gave, if it is [n, D] for the n images."""
    embedding, n = np.asarray(embedding), len(images)
    if embedding.ndim != 2 or len(embedding) != n:
        raise ValueError(f"embed gave {embedding.shape} for {n} images; wanted [n, D]")
    return embedding


def short(far: float) -> str:
    """Write 0.001 as 1e-3."""
    mantissa, exponent = f"{far:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
