"""Does the network know which faces are bad? Its error when the worst are sent away.

One law: a pair is as good as its worse image, and the threshold is that of all pairs;
so a curve of error against reject falls only as far as quality tells errors apart.

    result = Evaluator(pairs, methods=("norm", "stability")).run(network)
    result.scalars["fnmr"], result.scalars["fnmr@norm=0.1"]     # 10 % sent away
    result.artefacts["reject:norm:x"], result.artefacts["reject:norm:y"]
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from jaxface import spec, types
from jaxface.eval import bootstrap, curves, learned, rejection, verification

METHODS = ("norm", "stability", "learned")


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """False non-matches of genuine pairs, the lowest quality rejected first.

    Attributes:
        pairs: what to compare.
        methods: "norm", the embedding's length; "stability", how little the embedding
            moves with dropout on, or, in a network without any, with noise on the
            image: reported as "dropout" or "noise"; "learned", a linear score of the
            embedding, fitted on other people of this list, see `learned`.
        far: false accept rate at which the threshold is set, on all pairs.
        shares: of genuine pairs rejected, at which the error is printed.
        most: the area under a curve is taken from 0 to this share.
        passes: through the network, of "stability".
        noise: standard deviation in grey levels of 255.

    Raises:
        KeyError: an unknown method, with the nearest.
        ValueError: on pairs that are not a verification list, or impossible numbers.
    """

    pairs: types.Pairs
    _: dataclasses.KW_ONLY
    methods: tuple[str, ...] = ("norm", "stability")
    far: float = 1e-2
    shares: tuple[float, ...] = (0.1, 0.2)
    most: float = 0.3
    passes: int = 10
    noise: float = 4.0

    def __post_init__(self) -> None:
        verification.Evaluator(self.pairs, far=())  # refuses what is no list
        for name in self.methods:
            if name not in METHODS:
                raise spec.unknown("quality: method", name, METHODS)
        shares = (self.most, *self.shares)
        if not all(0 < s < 1 for s in shares) or self.passes < 2 or self.noise <= 0:
            raise ValueError(
                f"shares {self.shares}, most={self.most}, passes={self.passes},"
                f" noise={self.noise}; wanted shares in (0, 1), 2 passes or more, and"
                " noise above 0"
            )

    @property
    def work(self) -> int:
        """Images that one run puts through the network."""
        times = 1 + self.passes * ("stability" in self.methods)
        return times * len(self.pairs.images)

    def run(self, network: types.Embed) -> types.Result:
        """Embed the images once, and `passes` times more for "stability".

        Args:
            network: a `types.Network`; for "norm" any `types.Embed` will do.

        Returns:
            Scalars: fnmr of all genuine pairs at `far`, with `_low` and `_high`;
            threshold (cosine), genuine, pairs; of each method M `fnmr@M=SHARE` with
            interval and `_genuine`, how many are left at the first share of at least
            so much, and `area@M`, the mean error from 0 to `most`. Artefacts:
            `reject:M:x`, `reject:M:y` as of `rejection.error_against_reject`,
            `quality:M` [n] of each image.

        Raises:
            ValueError: as verification does, a FAR that the pairs cannot show, or
                "learned" of too few people with several images.
            TypeError: "stability" of a function that nobody can look into.
        """
        pairs = self.pairs
        embedding = np.asarray(network(pairs.images))
        found = verification.Evaluator(pairs, far=()).run(lambda images: embedding)
        scores, same = found.artefacts["scores"], np.asarray(pairs.same, bool)
        _, threshold = curves.tar_at_far(scores, same, far=self.far)
        wrong = scores[same] < threshold
        people = np.asarray(pairs.people)[same]
        scalars = bootstrap.people_rate(wrong, people).named("fnmr")
        scalars |= {"threshold": threshold, "genuine": len(wrong), "pairs": len(pairs)}
        artefacts: dict[str, np.ndarray] = {}
        for name, quality in self._qualities(network, embedding).items():
            ends = np.stack([quality[pairs.left], quality[pairs.right]])
            own = ends.min(axis=0)[same]
            x, y = rejection.error_against_reject(own, wrong)
            artefacts |= {f"reject:{name}:x": x, f"reject:{name}:y": y}
            artefacts[f"quality:{name}"] = quality
            scalars[f"area@{name}"] = rejection.area_under(x, y, most=self.most)
            for share in self.shares:
                # the first level that rejects enough; the last one keeps the best pairs
                at = min(int(np.searchsorted(x, share - 1e-9)), len(x) - 1)
                kept = own >= np.unique(own)[at]
                rate = bootstrap.people_rate(wrong[kept], people[kept])
                label = f"fnmr@{name}={share:g}"
                scalars |= rate.named(label) | {f"{label}_genuine": int(kept.sum())}
        return types.Result({k: float(v) for k, v in scalars.items()}, artefacts)

    def _qualities(
        self, network: types.Embed, embedding: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Return the quality [n] of every image, by method."""
        out = {}
        if "norm" in self.methods:
            out["norm"] = np.linalg.norm(embedding.astype(np.float64), axis=1)
        if "stability" in self.methods:
            if not isinstance(network, types.Network):
                raise TypeError(
                    "quality by stability wants a types.Network, such as"
                    f" evaluation.embedder makes; got {type(network).__name__}; or"
                    " take methods=('norm',)"
                )
            how, values = stability(
                network, self.pairs.images, passes=self.passes, noise=self.noise
            )
            out[how] = values
        if "learned" in self.methods:
            out["learned"] = learned.cross_fitted(embedding, self.pairs.owners)
        return out


def stability(
    network: types.Network, images: types.Source, *, passes: int, noise: float
) -> tuple[str, np.ndarray]:
    """Measure how little embeddings move when the network is disturbed.

    SER-FIQ (Terhorst et al. 2020, eq. (1)) draws masks of the last layer's dropout;
    here all dropout of the network is on. A network without dropout sees the image
    under Gaussian noise instead, which is no longer their method.

    Args:
        network: what is disturbed.
        images: n of them.
        passes: m, how often; the network is run that often on each image.
        noise: standard deviation in grey levels, where there is no dropout.

    Returns:
        ("dropout" or "noise", [n] float64 in (0, 1], 1 where nothing moves).
    """
    low, high = network.span
    deviation = noise * (high - low) / 255
    dropout, begin, out = None, 0, []
    for batch, mask in network.inputs(images):
        if dropout is None:
            dropout = network.drops(batch)
        rows = []
        for t in range(passes):
            numbers = (begin + np.arange(len(mask))) * passes + t
            numbers = numbers.astype(np.uint32)
            if dropout:
                rows.append(network.vectors(batch, numbers))
            else:
                rows.append(network.vectors(_noisy(batch, numbers, deviation)))
        out.append(steadiness(np.stack(rows)[:, mask]))
        begin += int(mask.sum())
    return "dropout" if dropout else "noise", np.concatenate(out)


def steadiness(rows: np.ndarray) -> np.ndarray:
    """Return 2 sigmoid(-2 / m^2 sum_{i<j} |x_i - x_j|) of unit embeddings.

    Args:
        rows: [m, n, D] m embeddings of each image, of any length but zero.

    Returns:
        [n] in (0, 1].

    SER-FIQ, Terhorst et al. 2020, eq. (1).
    """
    rows = rows.astype(np.float64)
    rows = rows / np.linalg.norm(rows, axis=2, keepdims=True)
    apart = [np.linalg.norm(rows - row, axis=2) for row in rows]  # m of [m, n]
    # every pair is in there twice, and each with itself at 0
    mean = np.sum(apart, axis=(0, 1)) / len(rows) ** 2
    return 2 / (1 + np.exp(mean))


@jax.jit
def _noisy(images: jax.Array, numbers: jax.Array, deviation: jax.Array) -> jax.Array:
    """Add Gaussian noise [3] to images [B, H, W, 3], drawn by a number each."""

    def draw(number: jax.Array) -> jax.Array:
        return jax.random.normal(jax.random.key(number), images.shape[1:])

    return images + jax.vmap(draw)(numbers) * deviation.reshape(1, 1, 1, 3)
