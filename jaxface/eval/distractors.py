"""Identification among distractors as in MegaFace: one mate hidden among strangers.

One law: every ordered pair of one person's probes is a search of its own: one image
is put among the distractors, the other is looked for; rank k is reached when fewer than
k distractors are as near.

    gallery(distractors="folder(path='flickr')", strangers=0.0)|distractors

Kemelmacher-Shlizerman et al., The MegaFace Benchmark, CVPR 2016, section 4.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxface import types
from jaxface.eval import bootstrap, ranking, templates


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Rank-k among distractors.

    Attributes:
        search: of its first trial, all people of gallery and probes that probes show
            twice or more are looked for, and the rest of the gallery are distractors.
        ranks: at which to report, the first being the one to remember.
        norm: keep the embeddings' lengths in pooling.
        detector: weigh images by the detector's score.

    Raises:
        ValueError: without distractors, or people with two templates or more.
    """

    search: types.Search
    _: dataclasses.KW_ONLY
    ranks: tuple[int, ...] = (1, 10)
    norm: bool = True
    detector: bool = True

    def __post_init__(self) -> None:
        templates.check(self.search.templates)
        strangers, looked = self._parts()
        person = self.search.templates.person[looked]
        counts = np.unique(person, return_counts=True)[1]
        if not len(strangers) or not np.any(counts > 1):
            raise ValueError(
                f"{len(strangers)} distractors, {int(np.sum(counts > 1))} people with"
                " two images or more; wanted some of both, as in"
                " gallery(distractors=\"folder(path='strangers')\")"
            )
        if not self.ranks or not 1 <= min(self.ranks) <= max(self.ranks):
            raise ValueError(f"ranks={self.ranks}; wanted numbers from 1")

    def _parts(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (distractors, templates of people who are looked for)."""
        person = self.search.templates.person
        gallery, probes = self.search.trials[0]
        shown = np.isin(person[gallery], person[probes])
        return gallery[~shown], np.union1d(gallery[shown], probes)

    @property
    def work(self) -> int:
        """Images that one run puts through the network."""
        return len(self.search.templates.images)

    def run(self, embed: types.Embed) -> types.Result:
        """Embed the images once and search.

        Args:
            embed: gives [n, D] float32, its length kept.

        Returns:
            Scalars: `rank1` and so on with intervals over people; searches, people,
            distractors. Artefacts: cmc, cmc_low, cmc_high [K].

        Raises:
            ValueError: on embeddings that are not finite or have no direction.
        """
        vectors = templates.pooled(
            self.search.templates, embed, norm=self.norm, detector=self.detector
        )
        strangers, looked = self._parts()
        person = self.search.templates.person[looked]
        K = min(max(self.ranks), len(strangers))
        best, _ = ranking.nearest(vectors[looked], vectors[strangers], k=K)  # [Q, K]
        rank, who = [], []
        for one in np.unique(person):
            (rows,) = np.nonzero(person == one)
            cos = vectors[looked[rows]] @ vectors[looked[rows]].T
            before = np.sum(
                best[rows][:, None] >= cos[..., None] - ranking.TIE, axis=-1
            )
            others = ~np.eye(len(rows), dtype=bool)
            rank.append(before[others] + 1)  # K + 1 where it is K or more
            who.append(np.full(others.sum(), one))
        reached, people = np.concatenate(rank), np.concatenate(who)
        probes = int(np.sum(np.isin(person, people)))  # each is looked for, and hidden
        scalars: dict[str, float] = {}
        for k in self.ranks:
            rate = bootstrap.people_rate(reached <= k, people, distinct=probes)
            scalars |= rate.named(f"rank{k}")
        scalars |= {
            "searches": len(reached),
            "people": len(np.unique(people)),
            "distractors": len(strangers),
        }
        curve = [
            bootstrap.people_rate(reached <= k + 1, people, distinct=probes)
            for k in range(K)
        ]
        return types.Result(
            scalars={name: float(value) for name, value in scalars.items()},
            artefacts=dict(
                zip(("cmc", "cmc_low", "cmc_high"), np.array(curve).T, strict=True)
            ),
        )
