"""Numbers instead of images: sources whose embeddings are known, for evaluators."""

import dataclasses
from collections.abc import Callable

import numpy as np

from jaxface import types


@dataclasses.dataclass(frozen=True)
class Album:
    """Images that are numbers: image i is number[i], of person labels[i]."""

    number: np.ndarray
    labels: np.ndarray
    color: str = "rgb"

    @property
    def num_classes(self):
        return int(self.labels.max()) + 1

    def __len__(self):
        return len(self.number)

    def read(self, i):
        return b"%d" % self.number[i], int(self.labels[i])

    def name(self, i):
        return f"faces/person{self.labels[i]}/{self.number[i]}.jpg"


def album(people=30, each=4):
    """An album, person by person."""
    return Album(np.arange(people * each), np.repeat(np.arange(people), each))


def embedder(*, signal, noise, dim=64, seed=0):
    """Embed by number alone: a direction of the person and one of the image.

    Signal 1 without noise is perfect, noise without signal knows nothing.
    """
    rng = np.random.default_rng(seed)
    people, images = rng.normal(size=(2, 1000, dim))
    people[:dim] = np.eye(dim) * np.sqrt(dim)  # the first are at right angles

    def embed(source):
        read = [source.read(i) for i in range(len(source))]
        number = np.array([int(image) for image, _ in read])
        label = np.array([label for _, label in read])
        return (signal * people[label] + noise * images[number]).astype(np.float32)

    return embed


@dataclasses.dataclass(frozen=True)
class Network:
    """A `types.Network` as far as ops go, which leave these images as they are."""

    embed: Callable[[types.Source], np.ndarray]
    features = span = None

    def __call__(self, source):
        return self.embed(source)

    def inputs(self, source):
        raise NotImplementedError("these images are numbers")

    vectors = drops = inputs

    def degraded(self, line):
        return self.embed


def moved(feed, order):
    """The same protocol over images in another order."""
    if isinstance(feed, Album):
        return Album(feed.number[order], feed.labels[order])
    place = np.argsort(order)
    if isinstance(feed, types.Pairs):
        ends = {"left": place[feed.left], "right": place[feed.right]}
        return dataclasses.replace(feed, images=moved(feed.images, order), **ends)
    if isinstance(feed, types.Templates):
        images = moved(feed.images, order)
        return dataclasses.replace(feed, images=images, image=place[feed.image])
    inner = "pairs" if isinstance(feed, types.Groups) else "templates"
    return dataclasses.replace(feed, **{inner: moved(getattr(feed, inner), order)})


def pairs(*, folds=5, seed=0):
    """Three genuine and three impostor pairs of each person in equal folds."""
    images, rng = album(), np.random.default_rng(seed)
    left = np.repeat(np.arange(0, 120, 4), 6)
    other = (left // 4 + rng.integers(1, 30, len(left))) % 30
    right = np.where(
        np.arange(180) % 2, other * 4 + 3, left + np.arange(180) % 6 // 2 + 1
    )
    people = images.labels[np.stack([left, right], axis=1)]
    same = people[:, 0] == people[:, 1]
    return types.Pairs(images, left, right, same, np.arange(180) * folds // 180, people)


def templates():
    """Two templates of two images of each person, the second a video's."""
    images = album()
    template = np.arange(120) // 2
    media = np.where(template % 2, 7, np.arange(120))
    weight = np.full(120, 0.5, np.float32)
    person = np.arange(60) // 2
    return types.Templates(images, np.arange(120), template, media, weight, person)


def template_pairs():
    """All pairs of templates."""
    left, right = np.triu_indices(60, 1)
    return types.TemplatePairs(templates(), left, right, left // 2 == right // 2)


def search():
    """Two galleries of ten people; all second templates are probes of both."""
    probes = np.arange(1, 60, 2)
    return types.Search(
        templates(), ((np.arange(0, 20, 2), probes), (np.arange(20, 40, 2), probes))
    )


def hidden():
    """Ten people to be found among both templates of twenty distractors."""
    gallery = np.append(np.arange(0, 20, 2), np.arange(20, 60))
    return types.Search(templates(), ((gallery, np.arange(1, 20, 2)),))


def groups():
    """Young, old and, where sides differ, neither."""
    found = pairs()
    old = found.people % 2
    group = np.where(old[:, 0] == old[:, 1], old[:, 0], -1)
    return types.Groups(found, group, ("young", "old"))
