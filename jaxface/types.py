"""The contracts between rooms: source, pairs, batch, margin rule, loss, evaluator.

Nothing here computes. A room depends on these names, never on a sibling's class,
so a new source, rule or protocol is one new file.

    source: Source = folder.Source(path="faces")
    encoded, label = source.read(0)
    result: Result = evaluator.run(embed)
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    import jax

# image [B, H, W, 3] float32 or uint8, label [B] int32, example [B] uint32: which image
# of the source it is; position [B] uint32: its place in the endless global stream,
# which keys every random draw. With a teacher also teacher [B, T] float32 and, where
# the loss reads them, teacher_head [C, T]: its class weights, split by class.
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


@runtime_checkable
class Named(Protocol):
    """A source that knows who its classes are; `isinstance` tells.

    Attributes:
        classes: [C] names, each once: label k is classes[k].
    """

    @property
    def classes(self) -> Sequence[str]:
        """The names."""
        ...


@runtime_checkable
class Labelled(Protocol):
    """A source that knows all labels without reading an image; `isinstance` tells.

    Attributes:
        labels: [n] integers, the label of every image.
    """

    @property
    def labels(self) -> np.ndarray:
        """The labels."""
        ...


@dataclasses.dataclass(frozen=True)
class Picked:
    """Some images of a source, in the order given; a `Source`."""

    images: Source
    which: np.ndarray

    @property
    def color(self) -> str:
        """Theirs."""
        return self.images.color

    @property
    def num_classes(self) -> int:
        """Theirs; a class may have no image here."""
        return self.images.num_classes

    def __len__(self) -> int:
        return len(self.which)

    def read(self, i: int) -> tuple[bytes | np.ndarray, int]:
        """Return (encoded bytes or pixels, label) of the i-th picked."""
        return self.images.read(int(self.which[i]))

    def name(self, i: int) -> str:
        """Return where it came from."""
        return self.images.name(int(self.which[i]))


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

    @property
    def owners(self) -> np.ndarray:
        """Whose each image is, [n] int64; -1 of an image in no pair."""
        owners = np.full(len(self.images), -1, np.int64)
        owners[self.left], owners[self.right] = self.people.T
        return owners


@dataclasses.dataclass(frozen=True)
class Templates:
    """Images taken together: each template is one person's, of one image or many.

    A row says that an image is in a template; an image may be in several.

    Attributes:
        images: the images; labels are not used.
        image: [m] int64, index into `images`.
        template: [m] int64, 0 .. T - 1, which template the row is of.
        media: [m] int64, which medium (photo or video) of it the image is from.
        weight: [m] float32, the detector's score; 1 where nobody tells.
        person: [T] int64, whose template it is.
    """

    images: Source
    image: np.ndarray
    template: np.ndarray
    media: np.ndarray
    weight: np.ndarray
    person: np.ndarray

    def __len__(self) -> int:
        return len(self.person)

    @property
    def owners(self) -> np.ndarray:
        """Whose each image is, [n] int64; -1 of an image in no template."""
        owners = np.full(len(self.images), -1, np.int64)
        owners[self.image] = self.person[self.template]
        return owners


@dataclasses.dataclass(frozen=True)
class TemplatePairs:
    """A verification list over templates: [N] templates left and right, [N] bool same.

    People may differ where pairs do not tell, so `same` decides.
    """

    templates: Templates
    left: np.ndarray
    right: np.ndarray
    same: np.ndarray

    def __len__(self) -> int:
        return len(self.same)


@dataclasses.dataclass(frozen=True)
class Search:
    """Probes to be found in galleries, 1:N.

    Attributes:
        templates: of galleries and probes.
        trials: (gallery [G], probes [Q]) int64 templates of each trial. A person
            whom a gallery lacks is, for its probes, a stranger; whom no probe shows,
            a distractor.
    """

    templates: Templates
    trials: tuple[tuple[np.ndarray, np.ndarray], ...]


@dataclasses.dataclass(frozen=True)
class Groups:
    """Pairs that fall into groups of people, such as by sex, age or origin.

    Attributes:
        pairs: all of them.
        group: [N] int64 into `names`; -1 where the two sides differ in it.
        names: [G] the groups.
    """

    pairs: Pairs
    group: np.ndarray
    names: tuple[str, ...]


class Ctx(NamedTuple):
    """What a margin rule may use besides cosines, and may change besides them.

    Attributes:
        key: [B] typed PRNG keys, one per example, from (seed, step, position).
        params: the rule's trainable arrays (for example a bias).
        state: the rule's running statistics (for example a moving average).
        scale: [] or [B], what the cosines are multiplied by afterwards.
        penalty: [] or [B], what is added to each example's loss.
        classes: C, how many classes there are, also where a sample of them is given.
        negatives: sums [B, C'] over the classes of all devices that exist and are
            not the true one -> [B]; over a sample, over the sampled ones.
    """

    key: jax.Array
    params: Mapping[str, jax.Array]
    state: Mapping[str, jax.Array]
    scale: jax.Array
    penalty: jax.Array
    classes: int
    negatives: Callable[[jax.Array], jax.Array]


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

    def init_margin(self, *, dim: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the rule's (trainable arrays, running statistics).

        Statistics under a "head" are sharded by class, as the head is.
        """
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


@dataclasses.dataclass(frozen=True)
class Sample:
    """Some of a device's classes, drawn for one step; shards of equal length.

    Attributes:
        place: [shards, k] int32, where they are among this device's classes; each
            once, and an empty slot is somewhere past the end.
        id: [shards, k] int32, which classes they are; none in empty slots.
        classes: how many this device has.
    """

    place: jax.Array
    id: jax.Array
    classes: int


@runtime_checkable
class SampledLoss(Protocol):
    """A `Loss` that needs only some rows of its head in a step; `isinstance` tells.

    Attributes:
        shards: into how many parts the classes fall, whatever the devices.
    """

    @property
    def shards(self) -> int:
        """The number of class shards."""
        ...

    def sample(
        self, label: jax.Array, *, key: jax.Array, axis: str | tuple[str, ...] | None
    ) -> Sample:
        """Draw this device's classes, those of every device's labels among them."""
        ...

    def over(self, ids: jax.Array) -> Loss:
        """Return the loss whose head is the rows of these classes and no others."""
        ...


@dataclasses.dataclass(frozen=True)
class Published:
    """What the makers of a network print about it.

    Attributes:
        params: parameters of the embedding network in millions, or None.
        macs: multiply-adds of one image in millions, or None.
        source: where that is printed.
        why: how ours comes to differ by more than 0.5 %, where it does.
    """

    params: float | None
    macs: float | None
    source: str
    why: str = ""


@dataclasses.dataclass(frozen=True)
class Port:
    """How another project names and lays out the arrays of one of our networks.

    A layer's path of ours, such as "layer1_0/bn1", becomes theirs by `names`; its
    arrays are then called as torch calls them (`weight`, `running_mean`, ...). The
    rules run in this direction only, for weights in and weights out alike.

    Attributes:
        names: (regex, replacement) pairs, each applied to the path by `re.sub`, one
            after the other; a "/" that is left becomes ".". A replacement may be a
            function of the match, where a number changes. A "#" becomes the number
            of the block, where they count blocks through all stages: with
            (r"^layer[0-9]_[0-9]+", "body.#") the first after three is "body.3".
        conv1x1: regex of dense layers (our paths) that are 1x1 convolutions there.
        constants: arrays of theirs that we keep no parameter for, with the one value
            they hold, such as {"features.weight": 1.0}.
        skip: regex of their names that belong to no layer of the network.
        channels_last: whether flattened pixels lie as ours do, as in Keras.
        color: channel order of the images.
        mean: taken off the pixels 0 .. 255, one number or one per channel.
        std: what is left is divided by.
    """

    names: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = ()
    conv1x1: str = "(?!)"  # matches nothing
    constants: Mapping[str, float] = dataclasses.field(default_factory=dict)
    skip: str = "(?!)"
    channels_last: bool = False
    color: str = "rgb"
    mean: float | tuple[float, float, float] = 127.5
    std: float | tuple[float, float, float] = 127.5

    def skips(self, name: str) -> bool:
        """Whether a tensor of theirs is no part of the network."""
        return re.search(self.skip, name) is not None


class Embed(Protocol):
    """Embeds every image of a source, in order: what all evaluators need."""

    def __call__(self, source: Source, /) -> np.ndarray:
        """Return [len(source), D] float32, of any length but zero."""
        ...


@runtime_checkable
class Network(Protocol):
    """An `Embed` that can be looked into and handed other images; `isinstance` tells.

    Images "as the network eats them" are [B, H, W, 3] float32, B as `inputs` has it.

    Attributes:
        features: such images -> [B, D], the same numbers as the embeddings, to be
            differentiated; a pytree, so that a jitted function can take it.
        span: what grey levels 0 and 255 are to the network, [3] float32 each.
    """

    @property
    def features(self) -> Callable[[jax.Array], jax.Array]:
        """The differentiable function."""
        ...

    @property
    def span(self) -> tuple[np.ndarray, np.ndarray]:
        """The darkest and the brightest input."""
        ...

    def __call__(self, source: Source, /) -> np.ndarray:
        """Return [len(source), D] float32, of any length but zero."""
        ...

    def degraded(self, line: str) -> Embed:
        """Return the same, of images that ops such as "blur(2, 2)" went over.

        They are done to uint8 images at the network's size, before it is scaled; what
        they draw depends on the image's place in the source alone.
        """
        ...

    def inputs(self, source: Source, /) -> Iterator[tuple[jax.Array, np.ndarray]]:
        """Yield (images as the network eats them, mask [B]) in order, on the devices.

        The last batch is filled up; its mask is False there.
        """
        ...

    def vectors(
        self, images: jax.Array, numbers: np.ndarray | None = None, /
    ) -> np.ndarray:
        """Embed a batch of `inputs`: [B, D] float32.

        With numbers [B], which decide what is dropped from each image, dropout is on,
        and nothing else is as in training.
        """
        ...

    def drops(self, images: jax.Array, /) -> bool:
        """Return whether the network has dropout; takes a batch of `inputs`."""
        ...


@dataclasses.dataclass(frozen=True)
class Result:
    """What an evaluator found.

    Attributes:
        scalars: named numbers for tables, logs and the choice of the best; the first
            is the one to remember.
        artefacts: named arrays for the report (scores, labels, indices).
    """

    scalars: dict[str, float]
    artefacts: dict[str, np.ndarray]


class Evaluator(Protocol):
    """A protocol: embeds its images, scores them, reports."""

    @property
    def work(self) -> int:
        """Images that one run puts through the network, again and again if so."""
        ...

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
