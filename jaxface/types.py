"""The contracts between rooms: source, pairs, batch, margin rule, loss, evaluator.

Nothing here computes. A room depends on these names, never on a sibling's class,
so a new source, rule or protocol is one new file.

    source: Source = folder.Source(path="faces")
    encoded, label = source.read(0)
    result: Result = evaluator.run(embed)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    import jax

# image [B, H, W, 3] float32 or uint8, label [B] int32, position [B] uint32:
# the example's place in the endless global stream, which keys every random draw.
Batch = dict[str, Any]
Metrics = dict[str, Any]


class Source(Protocol):
    """A random-access set of labelled images.

    Attributes:
        color: channel order of what `read` decodes to, "rgb" or "bgr".
        num_classes: labels are 0 .. num_classes - 1.
    """

    @property
    def color(self) -> str:
        """The channel order."""
        ...

    @property
    def num_classes(self) -> int:
        """C."""
        ...

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def read(self, i: int) -> tuple[bytes | np.ndarray, int]:
        """Return (encoded bytes or uint8 [H, W, 3], label) of image i."""
        ...

    def name(self, i: int) -> str:
        """Return where image i came from (path or key), for messages."""
        ...


@dataclasses.dataclass(frozen=True)
class Pairs:
    """A verification list over a source.

    Attributes:
        images: the images compared; labels are not used.
        left, right: [N] int64 indices into `images`.
        same: [N] bool, True for a genuine pair.
        fold: [N] int64, the fold each pair belongs to, 0 .. K - 1.
        people: [N, 2] int64, who is on each side; equal ids are the same person.
            Pairs share people, and intervals need to know it.
    """

    images: Source
    left: np.ndarray
    right: np.ndarray
    same: np.ndarray
    fold: np.ndarray
    people: np.ndarray

    def __len__(self) -> int:
        return len(self.same)


class Ctx(NamedTuple):
    """What a margin rule may use besides cosines.

    Attributes:
        key: [B] typed PRNG keys, one per example, from (seed, step, position).
        params: the rule's trainable arrays (for example a bias).
        state: the rule's running statistics (for example a moving average).
    """

    key: jax.Array
    params: Mapping[str, jax.Array]
    state: Mapping[str, jax.Array]


class MarginRule(Protocol):
    """Element-wise in classes, so it commutes with class sharding.

    Takes cos [B, C'], target [B] (cosine to the true class), norm [B] (embedding
    length) and ctx; returns the three first as (cos, target, ctx), changed.
    """

    def __call__(
        self, cos: jax.Array, target: jax.Array, norm: jax.Array, ctx: Ctx
    ) -> tuple[jax.Array, jax.Array, Ctx]:
        """Return (cos, target, ctx), changed."""
        ...


class Loss(Protocol):
    """What a module of `jaxface.losses` builds from its config line."""

    def init(self, key: jax.Array, *, num_classes: int, dim: int) -> dict[str, Any]:
        """Return the head's arrays, class-sharded along their first axis."""
        ...

    def init_margin(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the rule's (trainable arrays, running statistics)."""
        ...

    def share(
        self,
        head: Mapping[str, jax.Array],
        margin: tuple[Mapping[str, jax.Array], Mapping[str, jax.Array]],
        embedding: jax.Array,
        batch: Batch,
        *,
        key: jax.Array,
        axis: str | tuple[str, ...] | None,
    ) -> tuple[jax.Array, Mapping[str, jax.Array], Metrics]:
        """Return (this device's share, new statistics, metrics).

        Shares sum over `axis` to the global mean loss; statistics and metrics are
        already global. `key` is the step's key; draws fold in `batch["position"]`.
        """
        ...


# Every image of a source -> embeddings [len(source), D] float32.
Embed = Callable[[Source], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Result:
    """What an evaluator found.

    Attributes:
        scalars: named numbers for tables, logs and the choice of the best.
        artefacts: named arrays for the report (scores, labels, indices).
    """

    scalars: dict[str, float]
    artefacts: dict[str, np.ndarray]


class Evaluator(Protocol):
    """A protocol: embeds its images, scores them, reports."""

    def run(self, embed: Embed) -> Result:
        """Embed, score, report."""
        ...


class Batches(Protocol):
    """An endless loader; `bad` maps the unreadable examples met so far to why."""

    bad: dict[str, str]

    def __iter__(self) -> Iterator[Batch]: ...

    def close(self) -> None:
        """End the threads that read ahead."""
        ...
