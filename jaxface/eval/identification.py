"""Identification, 1:N: who of the gallery is this, and is it anybody of it at all?

One law: a trial's thresholds are its own, set by its strangers; hits are counted over
all trials, so a rate is hits by searches whatever the sizes of the galleries.

    ijb_search(path='IJBC')|identification            two galleries, probes of both
    folder(path='faces')|gallery(strangers=0.5, trials=10)|identification     as BLUFR
    tinyface(path='TinyFace')|identification          a gallery and its distractors

Closed set: rank-k, the CMC, over probes with a mate. Open set: TPIR at FPIR, a probe
being identified when its mate is first and reaches the threshold.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from absl import logging

from jaxface import types
from jaxface.eval import bootstrap, ranking, templates, verification

_CMC = 20  # ranks that are drawn
_POINTS = 40  # of the open-set curve


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Searches of probes in galleries.

    Attributes:
        search: galleries and probes.
        ranks: at which to report the CMC, the first being the one to remember.
        fpir: false positive identification rates at which to report TPIR; those that
            the strangers of the smallest trial cannot resolve are logged and left out.
        norm: keep the embeddings' lengths in pooling.
        detector: weigh images by the detector's score.

    Raises:
        ValueError: on a trial without gallery or without a probe that has a mate.
    """

    search: types.Search
    _: dataclasses.KW_ONLY
    ranks: tuple[int, ...] = (1, 5, 10)
    fpir: tuple[float, ...] = (1e-1, 1e-2, 1e-3)
    norm: bool = True
    detector: bool = True

    def __post_init__(self) -> None:
        templates.check(self.search.templates)
        if not self.search.trials or not self.ranks or min(self.ranks) < 1:
            raise ValueError(
                f"{len(self.search.trials)} trials, ranks={self.ranks}; wanted at"
                " least one of both, and ranks from 1"
            )
        for k, mated in enumerate(self._mated()):
            if not mated.any():
                raise ValueError(f"trial {k}: no probe has a mate in the gallery")
        strangers = self._strangers()
        for fpir in self.fpir:
            if not _shown(fpir, strangers):
                logging.info(
                    "TPIR at FPIR %s is left out: %d strangers cannot show it",
                    verification.short(fpir),
                    strangers,
                )

    def _mated(self) -> list[np.ndarray]:
        """Whether each probe of each trial has a mate, [Q] bool."""
        person = self.search.templates.person
        return [np.isin(person[q], person[g]) for g, q in self.search.trials]

    def _strangers(self) -> int:
        """Return how many probes without a mate the poorest trial has."""
        return min(int(np.sum(~mated)) for mated in self._mated())

    @property
    def work(self) -> int:
        """Images that one run puts through the network."""
        return len(self.search.templates.images)

    def run(self, embed: types.Embed) -> types.Result:
        """Embed the images once, pool, search every trial.

        Args:
            embed: gives [n, D] float32, its length kept.

        Returns:
            Scalars: `rank1` and so on, `tpir@fpir=1e-1` and so on with the mean
            `threshold@`, all rates with intervals over people, `_std` over trials
            where there are several; searches, mated, strangers; probes (different
            ones with a mate), people, trials, gallery (the largest). Artefacts: cmc,
            cmc_low, cmc_high [K]; fpir, tpir [M], means over trials; rank (0 without
            a mate), mate, stranger of every search.

        Raises:
            ValueError: on embeddings that are not finite or have no direction.
        """
        person = self.search.templates.person
        vectors = templates.pooled(
            self.search.templates, embed, norm=self.norm, detector=self.detector
        )
        found = [
            ranking.search_all(vectors[q], vectors[g], person[q], person[g])
            for g, q in self.search.trials
        ]
        who = [
            person[q][f.rank > 0]
            for f, (_, q) in zip(found, self.search.trials, strict=True)
        ]
        rank = [f.rank[f.rank > 0] for f in found]
        probes = len(np.unique(np.concatenate(self._probes())))
        scalars: dict[str, float] = {}
        for k in self.ranks:
            scalars |= _counted(f"rank{k}", [r <= k for r in rank], who, probes)
        scalars |= self._open_set(found, who, probes)
        mated = sum(len(r) for r in rank)
        searches = sum(len(f.rank) for f in found)
        scalars |= {
            "searches": searches,
            "mated": mated,
            "strangers": searches - mated,
            "probes": probes,
            "people": len(np.unique(np.concatenate(who))),
            "trials": len(found),
            "gallery": max(len(g) for g, _ in self.search.trials),
        }
        return types.Result(
            scalars={name: float(value) for name, value in scalars.items()},
            artefacts=self._artefacts(found, rank, who),
        )

    def _open_set(
        self, found: Sequence[ranking.Searches], who: Sequence[np.ndarray], probes: int
    ) -> dict[str, float]:
        fpir = [f for f in self.fpir if _shown(f, self._strangers())]
        opened = _open(found, fpir) if fpir else []
        scalars: dict[str, float] = {}
        for i, rate in enumerate(fpir):
            threshold = [o.threshold[i] for o in opened]
            hits = [
                (f.rank[f.rank > 0] == 1) & (f.mate[f.rank > 0] >= t)
                for f, t in zip(found, threshold, strict=True)
            ]
            name = f"fpir={verification.short(rate)}"
            scalars |= _counted(f"tpir@{name}", hits, who, probes)
            scalars[f"threshold@{name}"] = float(np.mean(threshold))
        return scalars

    def _artefacts(
        self,
        found: Sequence[ranking.Searches],
        rank: Sequence[np.ndarray],
        who: Sequence[np.ndarray],
    ) -> dict[str, np.ndarray]:
        K = min(_CMC, *(len(g) for g, _ in self.search.trials))
        one, people = np.concatenate(rank), np.concatenate(who)
        distinct = len(np.unique(np.concatenate(self._probes())))
        curve = np.array(
            [
                bootstrap.people_rate(one <= k + 1, people, distinct=distinct)
                for k in range(K)
            ]
        )
        out = dict(zip(("cmc", "cmc_low", "cmc_high"), curve.T, strict=True))
        for name in ("rank", "mate", "stranger"):
            out[name] = np.concatenate([getattr(f, name) for f in found])
        if (U := self._strangers()) > 1:
            points = np.geomspace(max(1 / U, 1e-6), 0.5, _POINTS)
            opened = _open(found, np.maximum(points, 1 / U).tolist())
            out["fpir"] = np.mean([o.fpir for o in opened], axis=0)
            out["tpir"] = np.mean([o.tpir for o in opened], axis=0)
        return out

    def _probes(self) -> list[np.ndarray]:
        """Return the probes of each trial that have a mate."""
        pairs = zip(self.search.trials, self._mated(), strict=True)
        return [q[mated] for (_, q), mated in pairs]


def _open(
    found: Sequence[ranking.Searches], fpir: Sequence[float]
) -> list[ranking.OpenSet]:
    return [ranking.open_set(f, fpir=fpir) for f in found]


def _shown(fpir: float, strangers: int) -> bool:
    """Whether so many strangers can show a rate: one of them may pass."""
    return strangers > 0 and fpir >= 1 / strangers


def _counted(
    name: str, hits: Sequence[np.ndarray], who: Sequence[np.ndarray], distinct: int
) -> dict[str, float]:
    """Return a rate over all trials with its interval, and its deviation over them."""
    rate = bootstrap.people_rate(
        np.concatenate(hits), np.concatenate(who), distinct=distinct
    )
    out = rate.named(name)
    if len(hits) > 1:
        out[f"{name}_std"] = float(np.std([h.mean() for h in hits]))
    return out
