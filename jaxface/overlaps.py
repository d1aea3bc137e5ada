"""Whole sets compared for people they share, by the network of any workdir.

The law: all that is found is told, under the threshold that found it and beside what
that lets pass of strangers; what becomes of it is for the caller to say.

    look = looker("/tmp/mbf", step="best")
    mine = crowd(look, source)                           # every image embedded once
    found = against(mine, opened("lfw.bin"), look)       # who is in the test set
    found.out                                            # {7: "cosine 0.593 with ..."}
    among(mine).same                                     # [C], the first class of each
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxface import assembly, embed, evaluation, experiment, parallel, types
from jaxface.data.sources import merged, pairs_txt
from jaxface.eval import overlap, strangers

Look = Callable[[types.Source], embed.Rows]  # (embeddings [n, D], labels [n])


class Crowd(NamedTuple):
    """The people of a source, which a network has looked at.

    Attributes:
        names: [C] of the classes, or their numbers.
        home: [C] int64, which of several sets a class is of; None of one set.
        e: [n, D] embeddings of the images.
        label: [n] their classes.
        centres: [C, D] mean directions; zero of a class without images.
    """

    names: Sequence[str]
    home: np.ndarray | None
    e: np.ndarray
    label: np.ndarray
    centres: np.ndarray


class Test(NamedTuple):
    """The images of a test set, whose they are [n], and names of the people or none."""

    images: types.Source
    people: np.ndarray
    names: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Found:
    """Who is in two sets.

    Attributes:
        said: what was compared, and how often strangers are taken for one person.
        lists: rows to read, the most similar first, by their titles.
        out: class -> how it is known to be in the test set.
        same: [C] int64, the first class that is the same person; itself mostly.
    """

    said: str
    lists: dict[str, list[str]]
    out: dict[int, str]
    same: np.ndarray

    def then(self, other: Found) -> Found:
        """Return both, of two about the same people."""
        return Found(
            f"{self.said}\n{other.said}".strip(),
            self.lists | other.lists,
            self.out | other.out,
            other.same[self.same],
        )

    def images(self, mine: Crowd, images: types.Source) -> list[dict[str, str]]:
        """Return who is in the test set, image by image, as `without` reads it."""
        return [
            {"name": images.name(i), "class": mine.names[k], "why": self.out[k]}
            for i, k in enumerate(mine.label.tolist())
            if k in self.out
        ]

    def groups(self, mine: Crowd) -> list[list[str]]:
        """Return the names of classes that are one person, as `merged` reads them."""
        found: dict[int, list[str]] = {}
        for label, first in enumerate(self.same.tolist()):
            found.setdefault(first, []).append(mine.names[label])
        return [group for group in found.values() if len(group) > 1]


def looker(workdir: str | os.PathLike[str], *, step: str = "latest") -> Look:
    """Return a run's network, which sees images aligned as it was trained.

    Args:
        workdir: of a run, trained here or converted.
        step: "best", "latest" or a step's number.
    """
    c = experiment.saved_config(workdir)
    parallel.start(cpu_devices=c.mesh.cpu_devices)
    with c.unlocked():
        c.eval.sets = {}
    run = assembly.build(c, for_training=False)
    _, variables = experiment.restore(run, workdir, step=step)
    network = evaluation.embedder(run, variables)
    return lambda source: embed.whole(network.rows(source))


def crowd(
    look: Look, source: types.Source, images: types.Source | None = None
) -> Crowd:
    """Look at the people of a source, or at some images of theirs."""
    e, label = look(images or source)
    count = source.num_classes
    centres = strangers.class_centres(e, label, classes=count)
    named = isinstance(source, types.Named)
    home = None
    if isinstance(source, merged.Source) and source.sets:
        home = np.repeat(np.arange(len(source.sets)), source.sets)
    names = source.classes if named else [str(k) for k in range(count)]
    return Crowd(names, home, e, label, centres)


def opened(line: str, *, folds: int = 10, names: str | None = None) -> Test:
    """Open a test set.

    Args:
        line: a .bin pack, or a line of images or pairs.
        folds: of the pack.
        names: LFW pairs.txt, which tells who is in the pack.

    Raises:
        ValueError: images without labels.
    """
    if line.endswith(".bin"):
        line = f"pairs_bin(path={line!r}, folds={folds}, names={names!r})"
    found = assembly.flow(line)
    known: Sequence[str] = []
    if isinstance(found, types.Pairs):
        if names:  # people are numbered in the order of their names
            lines = pairs_txt.parse(names)[0][: len(found)]
            known = sorted({name for pair in lines for name, _ in pair})
        return Test(found.images, found.owners, known)
    if not isinstance(found, types.Labelled):
        raise ValueError(f"{line}: images without labels, and no pairs")
    if isinstance(found, types.Named):
        known = found.classes
    return Test(found, np.asarray(found.labels), known)


def against(
    mine: Crowd,
    test: Test,
    look: Look,
    *,
    listed: Iterable[str] = (),
    threshold: float | None = None,
    alarms: float = 1.0,
) -> Found:
    """Find the people of a test set, by similarity and by name.

    Args:
        mine: the training set.
        test: the test set.
        look: embeds the test images.
        listed: more names of people to be found.
        threshold: the lowest cosine of a match; None measures it on strangers.
        alarms: false alarms that may be expected at a measured threshold.
    """
    probes, _ = look(test.images)
    leak = overlap.leak(
        (mine.centres, mine.e, mine.label),
        probes,
        test.people,
        threshold=threshold,
        alarms=alarms,
    )
    out: dict[int, str] = {}
    rows = []
    for m in leak.matches:
        # an image in no pair is of nobody known: -1
        known = len(test.names) and m.person >= 0
        person = test.names[m.person] if known else f"person {m.person}"
        image = test.images.name(m.image)
        out.setdefault(m.label, f"cosine {m.similarity:.3f} with {person}, {image}")
        rows.append(
            f"{m.similarity:.3f}  {mine.names[m.label]} = {person}, {m.count} of"
            f" {int((test.people == m.person).sum())} images, {image}"
        )
    lists = {f"found by similarity: {len(out)} classes": rows}
    said = (
        f"{leak.classes} classes ({len(mine.e)} images) against {len(probes)} images"
        f" of {leak.people} people\n{leak.doubtful} training images are nearer to"
        " another class than to their own: left out of the strangers\n"
        + _meaning(leak.threshold, leak.comparisons)
    )
    names = [*test.names, *listed]
    if names and any(any(map(str.isalpha, name)) for name in mine.names):
        equal = overlap.by_name(mine.names, names)
        lists["found by name"] = [f"{mine.names[k]} = {names[p]}" for k, p in equal]
        for label, person in equal:
            out.setdefault(label, f"the name {names[person]}")
    else:
        said += "\nnames: not compared, for the sets do not both have some"
    return Found(said, lists, out, np.arange(len(mine.names)))


def among(mine: Crowd, *, threshold: float | None = None, alarms: float = 1.0) -> Found:
    """Find classes of one person, in several sets or within one.

    Args:
        mine: the people; of `merged` sets, those of one set are taken to differ.
        threshold: the lowest cosine of one person. None measures it on the largest set.
        alarms: false alarms that may be expected at a measured threshold.

    Raises:
        ValueError: one set and no threshold.
    """
    classes = len(mine.centres)
    known: tuple[Any, Any, Any] = mine.centres, mine.e, mine.label
    if mine.home is None:
        if threshold is None:
            raise ValueError(
                "within one set nobody is known to be a stranger, so no threshold can"
                " be measured; wanted --threshold, such as one that --overlap_with or"
                " --merge printed"
            )
        sets, count = "one set", classes * (classes - 1) // 2
    else:
        sizes = np.bincount(mine.home)
        sets = f"{len(sizes)} sets"
        count = (int(sizes.sum()) ** 2 - int((sizes**2).sum())) // 2
        largest = mine.centres[mine.home == np.argmax(sizes)]
        known = largest, largest, np.arange(len(largest))
    if threshold is None:
        passed = strangers.calibrate(*known, comparisons=count, alarms=alarms)
    else:
        passed = strangers.measure(*known, threshold=threshold)
    found = overlap.shared(mine.centres, mine.home, threshold=passed.threshold)
    lists = {
        title: [
            f"{p.similarity:.3f}  {mine.names[p.left]} = {mine.names[p.right]}"
            for p in pairs
        ]
        for pairs, title in (
            (found.joined, "taken for one person"),
            (found.conflicts, "conflicts, not settled here: look at them"),
        )
    }
    first = np.unique(found.people, return_index=True)[1]
    said = f"{classes} classes of {sets}\n{_meaning(passed, count)}"
    return Found(said, lists, {}, first[found.people])


def listed(path: str | os.PathLike[str]) -> list[str]:
    """Read a file of names, one in a line."""
    lines = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip()]


def _meaning(found: strangers.Calibration, comparisons: int) -> str:
    return (
        f"threshold {found.threshold:.4f}, which {found.above} of {found.strangers}"
        f" strangers pass\n{comparisons} comparisons: {found.expected(comparisons):.2g}"
        f" false alarms expected, {found.bound(comparisons):.2g} at the 95 % bound"
    )
