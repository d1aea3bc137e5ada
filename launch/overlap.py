r"""Who is in two sets: training people in a test set, or one person under two labels.

    python launch/overlap.py --workdir=/tmp/mbf --source="folder(path='faces.tar')" \
        --overlap-with=lfw.bin --names=pairs.txt --out=far.json
    python launch/overlap.py --workdir=/tmp/mbf --out=shared.json \
        --merge="web:folder(path='web')" --merge="own:folder(path='own')"

The network of any workdir, trained here or converted, compares; both sets are aligned
as it was trained. The first command lists the training images of everybody who is in
the test set, by name or by similarity; `|without(path='far.json')` leaves them out. The
second writes who is in several sets, for `merged(sets=..., shared='shared.json')`.
--source alone finds people under two labels, at a --threshold.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from jaxface import (
    assembly,
    atomic,
    cli,
    embed,
    evaluation,
    experiment,
    parallel,
    types,
)
from jaxface.data.sources import merged, pairs_txt
from jaxface.eval import overlap, strangers

_WORKDIR = flags.DEFINE_string("workdir", None, "Whose network compares.")
_STEP = flags.DEFINE_string("step", "latest", "best, latest or a step's number.")
_SOURCE = flags.DEFINE_string("source", "", "The training images, a line.")
_MERGE = flags.DEFINE_multi_string("merge", [], "A set to merge, as NAME:LINE.")
_TEST = flags.DEFINE_string(
    "overlap-with", "", "The test set: a .bin pack, or a line of images or pairs."
)
_FOLDS = flags.DEFINE_integer("folds", 10, "Folds of the pack.")
_NAMES = flags.DEFINE_string("names", None, "LFW pairs.txt: who is in the pack.")
_LIST = flags.DEFINE_string("names-list", "", "A file of test names, one in a line.")
_ALARMS = flags.DEFINE_float("alarms", 1.0, "False alarms that may be expected.")
_THRESHOLD = flags.DEFINE_float("threshold", None, "Cosine of a match; or --alarms.")
_OUT = flags.DEFINE_string("out", "", "Where to write the list, JSON.")
_SHOW = flags.DEFINE_integer("show", 50, "Rows to print.")


class Test(NamedTuple):
    """The images of a test set, whose they are [n], and names of the people or none."""

    images: types.Source
    people: np.ndarray
    names: Sequence[str]


class Trained(NamedTuple):
    """Training images with their embeddings, labels and class centres."""

    source: Any
    e: np.ndarray
    label: np.ndarray
    centres: np.ndarray

    def who(self, label: int) -> str:
        """Return the name of a class, or its number."""
        named = isinstance(self.source, types.Named)
        return self.source.classes[label] if named else str(label)


def main() -> None:
    """Embed, compare, print, write."""
    cli.log_to_stderr()
    if bool(_SOURCE.value) == bool(_MERGE.value):
        raise ValueError("wanted --source, or --merge twice or more")
    if _SOURCE.value and not _TEST.value and _THRESHOLD.value is None:
        raise ValueError(
            "within one set nobody is known to be a stranger, so no threshold can be"
            " measured; wanted --threshold, such as one that --overlap-with or --merge"
            " printed"
        )
    c = experiment.saved_config(_WORKDIR.value)
    parallel.start(cpu_devices=c.mesh.cpu_devices)
    with c.unlocked():
        c.eval.sets = {}
    run = assembly.build(c, for_training=False)
    if _MERGE.value:
        sets = dict(named_line(text) for text in _MERGE.value)
        source: Any = merged.Source(sets)
    else:
        source = assembly.flow(_SOURCE.value)
    test = opened(_TEST.value) if _TEST.value else None
    _, variables = experiment.restore(run, _WORKDIR.value, step=_STEP.value)
    rows = evaluation.embedder(run, variables).rows
    e, label = embed.whole(rows(source))
    centres = strangers.class_centres(e, label, classes=source.num_classes)
    trained = Trained(source, e, label, centres)
    if test is not None:
        probes, _ = embed.whole(rows(test.images))
        found = against(trained, test, probes)
    else:
        found = among(trained)
        if _MERGE.value:
            shown = f", shared={_OUT.value!r}" if found and _OUT.value else ""
            print(f"\ndata.source: merged(sets={sets!r}{shown})")
    if _OUT.value:
        text = json.dumps(found, indent=1, ensure_ascii=False)
        atomic.write(pathlib.Path(_OUT.value), text + "\n")
        print(f"{_OUT.value}: {len(found)} entries")


def named_line(text: str) -> tuple[str, str]:
    """Split NAME:LINE."""
    name, colon, line = text.partition(":")
    if not (colon and name.isidentifier() and line):
        raise ValueError(f"--merge={text!r}; wanted NAME:LINE, as in web:folder(...)")
    return name, line


def opened(line: str) -> Test:
    """Open the test set."""
    if line.endswith(".bin"):
        line = f"pairs_bin(path={line!r}, folds={_FOLDS.value}, names={_NAMES.value!r})"
    found = assembly.flow(line)
    names: Sequence[str] = []
    if isinstance(found, types.Pairs):
        people = found.owners
        if _NAMES.value:  # people are numbered in the order of their names
            lines = pairs_txt.parse(_NAMES.value)[0][: len(found)]
            names = sorted({name for pair in lines for name, _ in pair})
        return Test(found.images, people, names)
    if not isinstance(found, types.Labelled):
        raise ValueError(f"--overlap-with={line}: images without labels, and no pairs")
    if isinstance(found, types.Named):
        names = found.classes
    return Test(found, np.asarray(found.labels), names)


def against(trained: Trained, test: Test, probes: np.ndarray) -> list[dict[str, Any]]:
    """Find and print training people of a test set; return their images."""
    found = overlap.leak(
        (trained.centres, trained.e, trained.label),
        probes,
        test.people,
        threshold=_THRESHOLD.value,
        alarms=_ALARMS.value,
    )
    print(
        f"\n{found.classes} classes ({len(trained.e)} images) against {len(probes)}"
        f" images of {found.people} people\n"
        f"{found.doubtful} training images are nearer to another class than to their"
        " own: left out of the strangers"
    )
    say(found.threshold, found.comparisons)
    why: dict[int, str] = {}
    rows = []
    for m in found.matches:
        # an image in no pair is of nobody known: -1
        known = len(test.names) and m.person >= 0
        person = test.names[m.person] if known else f"person {m.person}"
        image = test.images.name(m.image)
        why.setdefault(m.label, f"cosine {m.similarity:.3f} with {person}, {image}")
        rows.append(
            f"{m.similarity:.3f}  {trained.who(m.label)} = {person}, {m.count} of"
            f" {int((test.people == m.person).sum())} images, {image}"
        )
    show(rows, f"found by similarity: {len(why)} classes")
    named = by_name(trained, test)
    show([f"{trained.who(k)} = {name}" for k, name in named], "found by name")
    for label, name in named:
        why.setdefault(label, f"the name {name}")
    images = np.flatnonzero(np.isin(trained.label, list(why))).tolist()
    print(f"\nin both: {len(why)} classes with {len(images)} training images")
    return [
        {
            "name": trained.source.name(i),
            "class": trained.who(int(trained.label[i])),
            "why": why[int(trained.label[i])],
        }
        for i in images
    ]


def among(trained: Trained) -> list[list[str]]:
    """Find and print classes of one person; return them in groups."""
    classes = len(trained.centres)
    source = trained.source
    if isinstance(source, merged.Source):
        sizes = [part.num_classes for part in source.parts.values()]
        home = np.repeat(np.arange(len(sizes)), sizes)
        count = (sum(sizes) ** 2 - sum(s * s for s in sizes)) // 2
        largest = trained.centres[home == np.argmax(sizes)]
        print(f"\n{classes} classes of {len(sizes)} sets")
        threshold = chosen(largest, largest, np.arange(len(largest)), count)
    else:
        home, count = None, classes * (classes - 1) // 2
        print(f"\n{classes} classes of one set")
        threshold = chosen(trained.centres, trained.e, trained.label, count)
    found = overlap.shared(trained.centres, home, threshold=threshold)
    for pairs, title in (
        (found.joined, "taken for one person"),
        (found.conflicts, "conflicts, not settled here: look at them"),
    ):
        rows = (
            f"{p.similarity:.3f}  {trained.who(p.left)} = {trained.who(p.right)}"
            for p in pairs
        )
        show(list(rows), title)
    groups: dict[int, list[str]] = {}
    for label, person in enumerate(found.people.tolist()):
        groups.setdefault(person, []).append(trained.who(label))
    return [group for group in groups.values() if len(group) > 1]


def chosen(
    centres: np.ndarray, e: np.ndarray, label: np.ndarray, comparisons: int
) -> float:
    """Return the threshold, given or measured, and print what it means."""
    if _THRESHOLD.value is None:
        found = strangers.calibrate(
            centres, e, label, comparisons=comparisons, alarms=_ALARMS.value
        )
    else:
        found = strangers.measure(centres, e, label, threshold=_THRESHOLD.value)
    say(found, comparisons)
    return found.threshold


def say(found: strangers.Calibration, comparisons: int) -> None:
    """Print what a threshold means."""
    print(
        f"threshold {found.threshold:.4f}, which {found.above} of {found.strangers}"
        f" strangers pass\n{comparisons} comparisons: {found.expected(comparisons):.2g}"
        f" false alarms expected, {found.bound(comparisons):.2g} at the 95 % bound"
    )


def by_name(trained: Trained, test: Test) -> list[tuple[int, str]]:
    """Return (class, test name) of equal names."""
    names = list(test.names)
    if _LIST.value:
        lines = pathlib.Path(_LIST.value).read_text(encoding="utf-8").splitlines()
        names += [line.strip() for line in lines if line.strip()]
    if not (names and isinstance(trained.source, types.Named)):
        print("\nnames: not compared, for the sets do not both have some")
        return []
    same = overlap.by_name(trained.source.classes, names)
    return [(label, names[person]) for label, person in same]


def show(rows: Sequence[str], title: str) -> None:
    """Print the first rows under a title, and say how many are not shown."""
    print(f"\n{title}: {len(rows)} rows")
    for row in rows[: _SHOW.value]:
        print(f"  {row}")
    if len(rows) > _SHOW.value:
        print(f"  and {len(rows) - _SHOW.value} more: --show")


if __name__ == "__main__":
    flags.mark_flag_as_required("workdir")
    cli.run(main)
