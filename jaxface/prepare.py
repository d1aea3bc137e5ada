"""Any source to the prepared form: looked at, cleaned by policy, written, described.

The law: every image of the source is either in the set or in the list of dropped ones
with its reason, and the counts agree.

    done = prepare(folder.Source("photos"), "sets/mine", policy=Policy(min_images=3))
    done.choice.dropped                  # [Drop(image=7, reason="unreadable", ...)]
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from jaxface import card, examine, types
from jaxface.data import decode, duplicates

FEW = "too few images of the person"
DUPLICATE = "duplicate"
CONFLICT = "one picture under several people"

_LIKENESS = 0.95  # correlation of two 32 x 32 grey pictures that are one picture


class Writer(Protocol):
    """Writes images [n] of a source, labels [n] 0 .. C - 1 in order, to a folder."""

    def __call__(
        self,
        source: types.Source,
        out: pathlib.Path,
        *,
        images: np.ndarray,
        labels: np.ndarray,
        classes: Sequence[str],
        progress: Callable[[int], object],
    ) -> object:
        """Write the set whole, or not at all."""
        ...


@dataclasses.dataclass(frozen=True)
class Policy:
    """What is left out, besides images that cannot be used at all.

    Attributes:
        min_images: people with fewer images, of those that are left, go.
        drop_duplicates: of equal and nearly equal pictures of a person the first stays.
        drop_conflicts: pictures that occur under several people go, all copies.
        near: bits of 64 in which the hashes of nearly equal pictures may differ.
    """

    min_images: int = 2
    drop_duplicates: bool = False
    drop_conflicts: bool = False
    near: int = 3


@dataclasses.dataclass(frozen=True)
class Drop:
    """An image that is left out: which, why, and what there is to add."""

    image: int
    reason: str
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class Choice:
    """What is kept of a source.

    Attributes:
        images: [m] int64, indices kept, in order of their new labels.
        labels: [m] int64, 0 .. C - 1.
        people: [C] int64, what the labels were.
        dropped: the others, in order.
        alike: groups of images that show one picture, each in order.
    """

    images: np.ndarray
    labels: np.ndarray
    people: np.ndarray
    dropped: list[Drop]
    alike: list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Done:
    """What `prepare` did: the rows, the choice, and the card's facts."""

    seen: examine.Seen
    choice: Choice
    facts: dict[str, Any]


def prepare(
    source: types.Source,
    out: str | os.PathLike[str],
    *,
    write: Writer,
    policy: Policy,
    cut: examine.Cut | None = None,
    workers: int = 1,
    sheet: int = 12,
    about: Mapping[str, Any] | None = None,
    progress: Callable[[str, int], Callable[[int], object]] | None = None,
) -> Done:
    """Make a prepared set with its data card.

    Args:
        source: the images.
        out: the set's folder; it also gets card.json, card.html, dropped.csv and
            duplicates.csv.
        write: the form the set has.
        policy: what is left out.
        cut: how photos become aligned faces; None keeps the images as they are.
        workers: processes that look at images.
        sheet: people shown on the card; 0 for none.
        about: what else the card says, such as the licence.
        progress: given a word and a total, makes what is told how many more are done.

    Raises:
        ValueError: if nothing is left, or the source cannot be read.
    """
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    tell = progress or (lambda word, total: lambda count: None)
    spool = out / "examined.incomplete"
    seen = examine.examine(
        source, spool, cut=cut, workers=workers, progress=tell("look", len(source))
    )
    alike = groups(seen, near=policy.near)
    choice = choose(seen, alike, policy)
    if not len(choice.images):
        raise ValueError(
            f"none of {len(source)} images is left: {reasons(choice.dropped)}; see the"
            " reasons, or lower min_images"
        )
    names = _classes(source, choice.people)
    write(
        seen.images,
        out,
        images=choice.images,
        labels=choice.labels,
        classes=names,
        progress=tell("write", len(choice.images)),
    )
    facts = _facts(seen, choice, policy) | dict(about or {})
    pictures = card.sheet(
        seen.images, choice.images, choice.labels, people=sheet
    )
    _whole(out / "dropped.csv", _dropped(source, seen, choice))
    _whole(out / "duplicates.csv", _duplicates(source, seen, choice))
    _whole(out / "card.html", card.page(out.name, facts, pictures))
    _whole(out / "card.json", json.dumps(facts, indent=1) + "\n")
    shutil.rmtree(spool)
    return Done(seen, choice, facts)


def groups(seen: examine.Seen, *, near: int = 3) -> list[np.ndarray]:
    """Return the groups of images that show one picture, each sorted.

    Equal records are one picture; so are two whose hashes differ in at most `near`
    bits and that correlate by 0.95 or more as 32 x 32 grey pictures. What is one
    picture with the same third is one group.
    """
    usable = np.flatnonzero(seen.fault == "")
    _, first, which = np.unique(
        seen.digest[usable], axis=0, return_index=True, return_inverse=True
    )
    originals = usable[first]
    equal = np.stack([originals[which.ravel()], usable], axis=1)
    pairs = originals[duplicates.near(seen.hash[originals], most=near)]
    thumbs = {i: _thumb(seen.images, i) for i in np.unique(pairs).tolist()}
    same = [
        float(np.sum(thumbs[i] * thumbs[j])) >= _LIKENESS for i, j in pairs.tolist()
    ]
    pairs = pairs[np.array(same, bool)]
    return _joined(len(seen), np.concatenate([equal, pairs]))


def choose(seen: examine.Seen, alike: Sequence[np.ndarray], policy: Policy) -> Choice:
    """Apply a policy; every image ends up kept or dropped, never both."""
    why: dict[int, Drop] = {}
    for i in np.flatnonzero(seen.fault != "").tolist():
        reason, _, detail = str(seen.fault[i]).partition(": ")
        why[i] = Drop(i, reason, detail)
    for group in alike:
        if policy.drop_conflicts and len(np.unique(seen.label[group])) > 1:
            for i in group.tolist():
                others = group[seen.label[group] != seen.label[i]]
                why[i] = Drop(i, CONFLICT, seen.images.name(int(others[0])))
        elif policy.drop_duplicates:
            for i in group.tolist():
                first = int(group[seen.label[group] == seen.label[i]][0])
                if i != first:
                    why[i] = Drop(i, DUPLICATE, seen.images.name(first))
    kept = np.setdiff1d(np.arange(len(seen)), np.array(list(why), np.int64))
    people, which, counts = np.unique(
        seen.label[kept], return_inverse=True, return_counts=True
    )
    few = counts[which] < policy.min_images
    for i, count in zip(kept[few].tolist(), counts[which][few].tolist(), strict=True):
        why[i] = Drop(i, FEW, f"{count} left, wanted {policy.min_images}")
    kept = kept[~few]
    people, labels = np.unique(seen.label[kept], return_inverse=True)
    order = np.argsort(labels, kind="stable")
    return Choice(
        images=kept[order],
        labels=labels[order].astype(np.int64),
        people=people,
        dropped=[why[i] for i in sorted(why)],
        alike=list(alike),
    )


def reasons(dropped: Iterable[Drop]) -> dict[str, int]:
    """Count drops by reason, the most frequent first."""
    return dict(collections.Counter(d.reason for d in dropped).most_common())


def content_hash(seen: examine.Seen, choice: Choice) -> str:
    """Return a hash of what is in the set: records and labels, in order."""
    made = hashlib.blake2b(choice.labels.astype("<i8").tobytes(), digest_size=16)
    made.update(np.ascontiguousarray(seen.digest[choice.images]))
    return made.hexdigest()


def color_doubt(color: np.ndarray) -> str:
    """Return a warning if mean red does not exceed mean blue, as on skin it does.

    Args:
        color: [n, 3] mean red, green and blue of the middle of each picture.
    """
    color = np.asarray(color, np.float64)
    colored = color[np.ptp(color, axis=1) > 2]
    if not len(colored):
        return ""
    red, _, blue = colored.mean(0)
    share = float(np.mean(colored[:, 0] > colored[:, 2]))
    if red > blue and share > 0.5:
        return ""
    return (
        f"mean red {red:.1f}, mean blue {blue:.1f} in the middle of the pictures, and"
        f" red exceeds blue in {share:.0%} of {len(colored)} only: skin is redder than"
        " that; are the channels swapped (BGR)?"
    )


def _facts(seen: examine.Seen, choice: Choice, policy: Policy) -> dict[str, Any]:
    """Return what the card says, as JSON values."""
    counts = np.bincount(choice.labels)
    people = [len(np.unique(seen.label[g])) for g in choice.alike]
    redundant = [len(g) - p for g, p in zip(choice.alike, people, strict=True)]
    sizes = collections.Counter(f"{h}x{w}" for h, w in seen.size[choice.images])
    color = seen.color[choice.images].astype(np.float64)
    doubt = color_doubt(color)
    per, how_many = np.unique(counts, return_counts=True)
    return {
        "images": len(choice.images),
        "identities": len(counts),
        "images_per_identity": {
            "least": int(counts.min()),
            "median": float(np.median(counts)),
            "mean": round(float(counts.mean()), 3),
            "most": int(counts.max()),
            "histogram": {str(k): int(v) for k, v in zip(per, how_many, strict=True)},
        },
        "sizes": dict(sizes.most_common()),
        "examined": len(seen),
        "dropped": reasons(choice.dropped),
        "groups_of_one_picture": len(choice.alike),
        "redundant_images": sum(redundant),
        "pictures_under_several_people": sum(p > 1 for p in people),
        "mean_rgb": [round(c, 2) for c in color.mean(0).tolist()],
        "color_order": seen.images.color,
        "warnings": [doubt] if doubt else [],
        "content_hash": content_hash(seen, choice),
        "policy": dataclasses.asdict(policy),
        "licence": "",
    }


def _classes(source: types.Source, people: np.ndarray) -> list[str]:
    if isinstance(source, types.Named):
        return [source.classes[k] for k in people.tolist()]
    return [str(k) for k in people.tolist()]


def _dropped(source: types.Source, seen: examine.Seen, choice: Choice) -> str:
    who = _names(source)
    return _csv(
        ("path", "identity", "reason", "detail"),
        (
            (source.name(d.image), who(seen.label[d.image]), d.reason, d.detail)
            for d in choice.dropped
        ),
    )


def _duplicates(source: types.Source, seen: examine.Seen, choice: Choice) -> str:
    who, kept = _names(source), set(choice.images.tolist())
    rows = []
    for k, group in enumerate(choice.alike):
        kind = "conflict" if len(np.unique(seen.label[group])) > 1 else "redundant"
        for i in group.tolist():
            fate = "kept" if i in kept else "dropped"
            rows.append((k, kind, source.name(i), who(seen.label[i]), fate))
    return _csv(("group", "kind", "path", "identity", "fate"), rows)


def _names(source: types.Source) -> Callable[[Any], str]:
    named = source.classes if isinstance(source, types.Named) else None
    return lambda label: named[int(label)] if named else str(int(label))


def _csv(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue()


def _thumb(source: types.Source, i: int) -> np.ndarray:
    """Return a grey picture [32, 32] of mean 0 and length 1."""
    pixels = np.ascontiguousarray(decode.pixels(source.read(i)[0]))
    small = Image.fromarray(pixels).convert("L").resize((32, 32), Image.Resampling.BOX)
    grey = np.asarray(small, np.float64)
    grey = grey - grey.mean()
    return grey / max(float(np.linalg.norm(grey)), 1e-9)


def _joined(n: int, pairs: np.ndarray) -> list[np.ndarray]:
    """Return the connected groups of two or more, each sorted, by their first."""
    parent: dict[int, int] = {}

    def root(i: int) -> int:
        while (up := parent.setdefault(i, i)) != i:
            parent[i] = i = parent[up]
        return i

    for i, j in pairs[pairs[:, 0] != pairs[:, 1]].tolist():
        low, high = sorted((root(i), root(j)))
        parent[high] = low
    found: dict[int, list[int]] = collections.defaultdict(list)
    for i in sorted(parent):
        found[root(i)].append(i)
    return [np.array(found[k], np.int64) for k in sorted(found)]


def _whole(path: pathlib.Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, "utf-8", "surrogateescape")
    part.replace(path)
