"""How much a network's accuracy suffers from bad images, and from an attacker.

One law: the left image of a pair stays as it is and decisions stay those of the clean
pairs: in every fold the threshold that the other folds choose without any damage. So
strength 0 is plain verification, and a curve falls as a system in use would.

    result = Evaluator(pairs, kinds=("blur", "jpeg", "pgd")).run(network)
    result.scalars["accuracy@blur=2"]
    result.artefacts["curve:blur:x"], result.artefacts["curve:blur:y"]   # [M], [M]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxface import spec, types
from jaxface.eval import bootstrap, folds, intervals, saliency, verification

# Kind -> strength -> ops that do it; pixels are those of the network's input.
CURVES: Mapping[str, Mapping[float, str]] = {
    "blur": {x: f"blur({x}, {x})" for x in (0.5, 1.0, 2.0, 4.0)},
    "jpeg": {100 - q: f"jpeg({q}, {q})" for q in (75, 50, 25, 10, 5)},
    "resolution": {
        1 - side: f"low_resolution({side}, {side})" for side in (0.5, 0.25, 0.125)
    },
    "rotation": {x: f"rotate({x})" for x in (5, 10, 20, 40)},
    "occlusion": {x: f"cutout({x})" for x in (16, 32, 48, 64)},
    "brightness": {
        round(f - 1, 3): f"brightness({f})" for f in (0.2, 0.5, 0.8, 1.25, 2.0, 4.0)
    },
    # landmarks 30 pixels from the centre that are x pixels off turn and zoom so much
    "alignment": {
        x: f"random_shift({x})|random_rotate({2 * x})"
        f"|random_zoom({1 - x / 30:.4f}, {1 + x / 30:.4f})"
        for x in (1, 2, 4, 8)
    },
}
UNITS: Mapping[str, str] = {
    "blur": "sigma, pixels",
    "jpeg": "100 - quality",
    "resolution": "share of each side lost",
    "rotation": "degrees",
    "occlusion": "side of the square, pixels",
    "brightness": "change of all pixels, share",
    "alignment": "landmarks off by up to, pixels",
    "pgd": "largest change of a pixel, grey levels",
}
ATTACK = "pgd"


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Verification of pairs whose right image was damaged, more and more.

    Attributes:
        pairs: what to compare.
        kinds: of `CURVES`, of `more`, and "pgd".
        more: further curves, as {"fog": {0.2: "op(0.2)|op2", 0.4: ...}}.
        attack: strengths of "pgd", in grey levels of 255.
        steps: gradient steps of the attack.
        whole: the attacked image is rounded to whole grey levels, so that a file of
            8 bits can hold it; strengths are whole numbers then.

    Raises:
        KeyError: an unknown kind, with the nearest.
        ValueError: on pairs that are not a verification list, or impossible strengths.
    """

    pairs: types.Pairs
    _: dataclasses.KW_ONLY
    kinds: tuple[str, ...] = (*CURVES, ATTACK)
    more: Mapping[str, Mapping[float, str]] = dataclasses.field(default_factory=dict)
    attack: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    steps: int = 10
    whole: bool = True

    def __post_init__(self) -> None:
        verification.Evaluator(self.pairs, far=())  # refuses what is no list
        known = {**CURVES, **self.more, ATTACK: dict.fromkeys(self.attack, "")}
        for kind in self.kinds:
            if kind not in known:
                raise spec.unknown("robustness: kind", kind, known)
            if not known[kind] or 0 in known[kind]:
                raise ValueError(
                    f"strengths of {kind}: {list(known[kind])}; wanted one or more, and"
                    " not 0, for that is always measured"
                )
        if self.steps < 1 or min(self.attack, default=1) <= 0:
            raise ValueError(
                f"attack={self.attack}, steps={self.steps}; wanted all above 0"
            )
        if self.whole and any(levels % 1 for levels in self.attack):
            raise ValueError(
                f"attack={self.attack}: 8 bits hold whole grey levels only; give such,"
                " or whole=False"
            )

    @property
    def work(self) -> int:
        """Images that one run puts through the network, a gradient being two more."""
        lines = {**CURVES, **self.more}
        points = sum(len(lines[kind]) for kind in self.kinds if kind != ATTACK)
        out = len(self.pairs.images) + points * len(np.unique(self.pairs.right))
        if ATTACK in self.kinds:
            out += len(self.pairs) * len(self.attack) * (3 * self.steps + 1)
        return out

    def run(self, network: types.Embed) -> types.Result:
        """Embed the clean images once, the right ones once more for every strength.

        Args:
            network: a `types.Network`.

        Returns:
            Scalars: accuracy of the clean pairs, and `accuracy@KIND=STRENGTH` with
            `_low` and `_high` (over people); pairs, people. Artefacts: for every kind
            `curve:KIND:x` [M] ascending, 0 among them, and `:y`, `:low`, `:high` [M].

        Raises:
            TypeError: where a function was handed in that nobody can look into.
            KeyError, ValueError: on ops that are wrong, or images they do not fit.
        """
        if not isinstance(network, types.Network):
            raise TypeError(
                f"robustness wants a types.Network, such as evaluation.embedder"
                f" makes; got {type(network).__name__}"
            )
        judge = _Judge(self.pairs, network(self.pairs.images))
        scalars = judge.clean.named("accuracy")
        scalars |= {"pairs": len(self.pairs), "people": judge.people}
        artefacts: dict[str, np.ndarray] = {}
        for kind in self.kinds:
            points = {0.0: judge.clean}
            for strength, damaged in self._damages(kind, network, judge.left).items():
                points[float(strength)] = judge(damaged())
                scalars |= points[float(strength)].named(
                    f"accuracy@{kind}={strength:g}"
                )
            x = np.sort(np.array(list(points)))
            y = np.array([points[at] for at in x.tolist()])  # [M, 3]
            artefacts[f"curve:{kind}:x"] = x
            for name, column in zip(("y", "low", "high"), y.T, strict=True):
                artefacts[f"curve:{kind}:{name}"] = column
        return types.Result({k: float(v) for k, v in scalars.items()}, artefacts)

    def _damages(
        self, kind: str, network: types.Network, left: np.ndarray
    ) -> dict[float, Callable[[], np.ndarray]]:
        """Return, by strength, what embeds the damaged right images, [N, D]."""
        pairs = self.pairs
        if kind == ATTACK:

            def attacked(levels: float) -> Callable[[], np.ndarray]:
                return lambda: attack(
                    *(network, pairs, left),
                    levels=levels,
                    steps=self.steps,
                    whole=self.whole,
                )

            return {levels: attacked(levels) for levels in self.attack}
        once, back = np.unique(pairs.right, return_inverse=True)
        images = types.Picked(pairs.images, once)

        def embedded(line: str) -> Callable[[], np.ndarray]:
            return lambda: network.degraded(line)(images)[back]

        lines = {**CURVES, **self.more}[kind]
        return {strength: embedded(line) for strength, line in lines.items()}


class _Judge:
    """Decides on pairs by the thresholds of the clean ones."""

    def __init__(self, pairs: types.Pairs, embedding: np.ndarray):
        """Score the clean pairs; embedding [n, D]."""
        self._pairs, self._embedding = pairs, embedding
        result = verification.Evaluator(pairs, far=()).run(lambda images: embedding)
        found = folds.kfold_accuracy(result.artefacts["scores"], pairs.same, pairs.fold)
        self._threshold = found.threshold[pairs.fold]  # [N]
        value = result.scalars
        self.clean = intervals.Rate(
            *(value[f"accuracy{end}"] for end in ("", "_low", "_high"))
        )
        self.people = int(value["people"])

    @property
    def left(self) -> np.ndarray:
        """The clean left embeddings, [N, D]."""
        return self._embedding[self._pairs.left]

    def __call__(self, damaged: np.ndarray) -> intervals.Rate:
        """Return the accuracy with the right embeddings replaced by [N, D]."""
        pairs = self._pairs
        n, N = len(self._embedding), len(pairs)
        swapped = dataclasses.replace(
            pairs,
            images=types.Picked(pairs.images, np.append(np.arange(n), pairs.right)),
            right=n + np.arange(N),
        )
        rows = np.concatenate([self._embedding, damaged])
        result = verification.Evaluator(swapped, far=()).run(lambda images: rows)
        accepted = result.artefacts["scores"] > self._threshold
        correct = accepted == pairs.same
        # the mean over folds, as of the clean pairs
        mean = np.mean(np.bincount(pairs.fold, correct) / np.bincount(pairs.fold))
        return intervals.Rate(
            float(mean), *bootstrap.people_interval(correct, pairs.people)
        )


def attack(
    network: types.Network,
    pairs: types.Pairs,
    left: np.ndarray,
    *,
    levels: float,
    steps: int,
    whole: bool,
    seed: int = 0,
) -> np.ndarray:
    """Change every right image a little, so that its pair is decided wrongly.

    Projected gradient descent with a random start (Madry et al. 2018, eq. (2.2) and
    section 5), on the cosine: genuine pairs are driven apart, impostors together. The
    attacker knows the network and the other image's embedding; what it makes is within
    `levels` of the image and between black and white.

    Args:
        network: what is attacked.
        pairs: N of them.
        left: [N, D] embeddings of the left images.
        levels: the largest change of any pixel, in grey levels of 255.
        steps: of the gradient's sign, each of 2.5 `levels` / steps.
        whole: round what was made to whole grey levels, see `rounded`.
        seed: of the start.

    Returns:
        [N, D] embeddings of the changed right images.
    """
    low, high = network.span
    level = (high - low) / 255
    # +1: the cosine is to rise
    way = np.where(pairs.same, -1.0, 1.0).astype(np.float32)
    begin, rows = 0, []
    for images, mask in network.inputs(types.Picked(pairs.images, pairs.right)):
        at = slice(begin, begin + int(mask.sum()))
        filled = ((0, len(mask) - (at.stop - begin)),)
        changed = perturb(
            network.features,
            images,
            np.pad(left[at], (*filled, (0, 0)), mode="edge"),
            np.pad(way[at], filled),
            reach=np.float32(levels) * level,
            ends=(low, high),
            steps=np.int32(steps),
            key=jax.random.fold_in(jax.random.key(seed), begin),
        )
        if whole:
            changed = rounded(changed, images, levels=levels, ends=(low, high))
        rows.append(network.vectors(changed)[mask])
        begin = at.stop
    return np.concatenate(rows)


@jax.jit
def perturb(
    features: Callable[[jax.Array], jax.Array],
    images: jax.Array,
    other: jax.Array,
    way: jax.Array,
    *,
    reach: jax.Array,
    ends: tuple[jax.Array, jax.Array],
    steps: jax.Array,
    key: jax.Array,
) -> jax.Array:
    """Move images within a box so that cosines move as asked.

    Args:
        features: a pytree of a function, [B, H, W, 3] -> [B, D].
        images: [B, H, W, 3] as the network eats them.
        other: [B, D] what each is compared with.
        way: [B] 1 to raise the cosine, -1 to lower it, 0 to stand still.
        reach: [3] the largest change, per channel.
        ends: [3] the lowest and the highest input there is, per channel.
        steps: how many.
        key: of the start.

    Returns:
        [B, H, W, 3] the changed images.
    """
    channel, one = (1, 1, 1, 3), (-1, 1, 1, 1)
    reach = reach.reshape(channel)
    low = jnp.maximum(images - reach, ends[0].reshape(channel))
    high = jnp.minimum(images + reach, ends[1].reshape(channel))
    start = jax.random.uniform(key, images.shape, images.dtype, -1.0, 1.0)
    step = 2.5 * reach / steps

    def gain(x: jax.Array) -> jax.Array:
        return jnp.sum(way * saliency.cosine(features(x), other))

    def move(_: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.clip(x + step * jnp.sign(jax.grad(gain)(x)), low, high)

    first = jnp.clip(images + reach * start * jnp.abs(way).reshape(one), low, high)
    return jax.lax.fori_loop(0, steps, move, first)


@jax.jit
def rounded(
    changed: jax.Array,
    images: jax.Array,
    *,
    levels: float,
    ends: tuple[jax.Array, jax.Array],
) -> jax.Array:
    """Round images to whole grey levels, no further than `levels` from others.

    Args:
        changed: [B, H, W, 3] as the network eats them.
        images: [B, H, W, 3] the others, which need not be whole themselves.
        levels: at least 1.
        ends: [3] what grey levels 0 and 255 are to the network, per channel.

    Returns:
        [B, H, W, 3] what a file of 8 bits gives the network.
    """
    low, high = (end.reshape(1, 1, 1, 3) for end in ends)
    grey, of = (255 * (x - low) / (high - low) for x in (changed, images))
    slack = 1e-2  # what float32 leaves uncertain of a level
    first, last = jnp.ceil(of - levels - slack), jnp.floor(of + levels + slack)
    kept = jnp.clip(jnp.round(grey), jnp.maximum(first, 0), jnp.minimum(last, 255))
    return low + kept * (high - low) / 255
