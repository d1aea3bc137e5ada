"""Template verification, 1:1 as in IJB-B and IJB-C: are these two sets one person?

One law: a template is one vector, the sum over its media of the mean over a medium's
images, and a pair's score the cosine of two. insightface's switches, spelled out:

    N  norm       longer embeddings count for more; without, all are of unit length
    D  detector   images are weighted by the detector's score
    F  flip       the mirrored image is added: config.eval.embed = "flip_sum"

    ijb(path='IJBC')|templates                            N1 D1
    ijb(path='IJBC')|templates(norm=False, detector=False)      N0 D0
"""

from __future__ import annotations

import dataclasses

import numpy as np
from absl import logging

from jaxface import types
from jaxface.eval import bootstrap, curves, dyads, pooling, verification


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Verification of template pairs.

    Attributes:
        pairs: what to compare.
        far: false accept rates at which to report TAR, the first being the one to
            remember; those that the list cannot resolve are logged and left out.
        norm: keep the embeddings' lengths in pooling.
        detector: weigh images by the detector's score.

    Raises:
        ValueError: on pairs that are not a verification list, or resolve no rate.
    """

    pairs: types.TemplatePairs
    _: dataclasses.KW_ONLY
    far: tuple[float, ...] = (1e-4, 1e-1, 1e-2, 1e-3, 1e-5, 1e-6)
    norm: bool = True
    detector: bool = True

    def __post_init__(self) -> None:
        genuine, N = int(np.sum(self.pairs.same)), len(self.pairs)
        if not 0 < genuine < N:
            raise ValueError(f"{genuine} genuine of {N} pairs; wanted both kinds")
        check(self.pairs.templates)
        lost = [far for far in self.far if far < 1 / (N - genuine)]
        if len(lost) == len(self.far):
            raise ValueError(
                f"{N - genuine} impostor pairs resolve none of far={self.far}; wanted"
                " a higher one"
            )
        for far in lost:
            logging.info(
                "TAR at FAR %s is left out: %d impostor pairs cannot show it",
                verification.short(far),
                N - genuine,
            )

    @property
    def work(self) -> int:
        """Images that one run puts through the network."""
        return len(self.pairs.templates.images)

    def run(self, embed: types.Embed) -> types.Result:
        """Embed the images once, pool, compare.

        Args:
            embed: gives [n, D] float32, its length kept.

        Returns:
            Scalars: `tar@far=1e-4` and so on, auc and eer, with intervals over people;
            `threshold@` beside each TAR; pairs, genuine, impostors, templates, images.
            Artefacts: scores [N] float32 (cosine), same.

        Raises:
            ValueError: on embeddings that are not finite, or a template without
                direction.
        """
        pairs = self.pairs
        vectors = pooled(pairs.templates, embed, norm=self.norm, detector=self.detector)
        scores = pooling.scores(vectors, pairs.left, pairs.right)
        same = np.asarray(pairs.same, bool)
        _, person = np.unique(self.pairs.templates.person, return_inverse=True)
        ends = np.stack([person[pairs.left], person[pairs.right]], axis=1)
        who, curve = dyads.Dyads(ends, same), curves.roc(scores, same)
        impostors, genuine = who.n
        scalars: dict[str, float] = {}
        for target in self.far:
            if target >= 1 / impostors:
                rate = bootstrap.people_tar(scores, same, who, far=target, curve=curve)
                name = f"far={verification.short(target)}"
                scalars |= rate.named(f"tar@{name}")
                scalars[f"threshold@{name}"] = min(curves.at(curve, target)[1], 2.0)
        scalars |= {
            "pairs": len(pairs),
            "genuine": genuine,
            "impostors": impostors,
            "templates": len(pairs.templates),
            "images": len(pairs.templates.images),
            **bootstrap.people_auc(scores, same, who).named("auc"),
            **bootstrap.people_eer(scores, same, who, curve=curve).named("eer"),
        }
        return types.Result(
            scalars={name: float(value) for name, value in scalars.items()},
            artefacts={"scores": scores, "same": same},
        )


def check(templates: types.Templates) -> None:
    """Refuse rows that do not fit.

    Raises:
        ValueError: naming what does not.
    """
    m, T = len(templates.image), len(templates)
    for name, end in (("image", len(templates.images)), ("template", T)):
        ids = getattr(templates, name)
        if len(ids) != m or not m or ids.min() < 0 or ids.max() >= end:
            raise ValueError(f"templates.{name}: wanted [{m}] ids below {end}")
    if templates.media.shape != (m,) or templates.weight.shape != (m,):
        raise ValueError(
            f"media {templates.media.shape}, weight {templates.weight.shape}; wanted"
            f" [{m}]"
        )


def pooled(
    templates: types.Templates, embed: types.Embed, *, norm: bool, detector: bool
) -> np.ndarray:
    """Embed the images once and pool them: [T, D] unit float32."""
    e = verification.shaped(embed(templates.images), templates.images)
    if not np.array_equal(templates.image, np.arange(len(e))):
        e = e[templates.image]
    return pooling.pool(
        e,
        templates.template,
        templates.media,
        weight=templates.weight if detector else None,
        normalise=not norm,
    )
