"""Galleries and probes drawn from any labelled source, for searches 1:N.

One law: the draw depends on the seed and the labels alone; a trial's strangers are
people of whom its gallery has no image, and no image is both enrolled and a probe.

    faces = folder.Source("faces")
    found = search(faces, enrol=1, strangers=0.5, trials=10)       # as BLUFR on LFW
    gallery, probes = found.trials[0]

BLUFR: Liao et al., A Benchmark Study of Large-Scale Unconstrained Face Recognition,
IJCB 2014.
"""

from __future__ import annotations

import numpy as np

from jaxface import types
from jaxface.data.sources import merged


def search(
    source: types.Source,
    *,
    enrol: int = 1,
    strangers: float = 0.0,
    trials: int = 1,
    distractors: str = "",
    seed: int = 0,
) -> types.Search:
    """Draw galleries and probes.

    Args:
        source: labelled images; only its labels are read (`labels` [n] where it has
            them, else image by image).
        enrol: images that make a gallery template; all others of the person are
            probes. Who has no more than these is a stranger in every trial.
        strangers: share of the other people who are left out of a trial's gallery.
        trials: how many draws.
        distractors: a line of a source, each image of which is enrolled as somebody
            whom no probe shows; "" for none.
        seed: of the draws.

    Raises:
        ValueError: nobody to enrol, or no such share.
    """
    if enrol < 1 or trials < 1 or not 0 <= strangers < 1:
        raise ValueError(
            f"enrol={enrol}, trials={trials}, strangers={strangers}; wanted 1 or more,"
            " 1 or more, and a share in [0, 1)"
        )
    labels = labels_of(source)
    people, counts = np.unique(labels, return_counts=True)
    able = people[counts > enrol]
    left_out = round(strangers * len(able))
    if not len(able) - left_out:
        raise ValueError(
            f"{len(able)} of {len(people)} people have more than enrol={enrol} images,"
            f" and {left_out} of them are to be strangers; nobody is left to enrol"
        )
    n = size = len(labels)
    parts = [(np.arange(n), np.arange(n), labels)]  # every image by itself
    other = np.arange(n, n)
    if distractors:
        source = merged.Source({"source": source, "distractors": distractors})
        size = len(source)
        other = np.arange(n, size)
        parts.append((other, other, int(people.max()) + 1 + other))
    drawn = list[tuple[np.ndarray, np.ndarray]]()
    for key in np.random.SeedSequence(seed).spawn(trials):
        rng = np.random.default_rng(key)
        known = np.sort(rng.permutation(able)[left_out:])
        chosen = _some(rng, labels, known, enrol)  # [known, enrol]
        enrolled = np.arange(size, size + len(known))
        size += len(known)
        parts.append((chosen.ravel(), np.repeat(enrolled, enrol), known))
        probes = np.setdiff1d(np.arange(n), chosen)
        drawn.append((np.concatenate([enrolled, other]), probes))
    image, template, person = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    return types.Search(singles(source, image, template, person), tuple(drawn))


def _some(
    rng: np.random.Generator, labels: np.ndarray, people: np.ndarray, count: int
) -> np.ndarray:
    """Draw so many images of each of the people, [people, count]."""
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    start = np.searchsorted(labels[order], people)
    return order[start[:, None] + np.arange(count)]


def singles(
    images: types.Source, image: np.ndarray, template: np.ndarray, person: np.ndarray
) -> types.Templates:
    """Return templates whose images are photos, each a medium of weight 1."""
    rows = np.arange(len(image))
    weight = np.ones(len(image), np.float32)
    return types.Templates(images, image, template, rows, weight, person)


def labels_of(source: types.Source) -> np.ndarray:
    """Return the labels [n]; a source that knows them need not be read."""
    if isinstance(source, types.Labelled):
        return np.asarray(source.labels, np.int64)
    return np.array([source.read(i)[1] for i in range(len(source))], np.int64)
