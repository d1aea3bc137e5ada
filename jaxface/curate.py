"""What of a source is kept: faults, duplicates, conflicts, people with few images.

The law: every image is kept or dropped with one reason, never both; what is kept
depends on the rows and the policy alone.

    alike = groups(seen, near=3)         # [array([4, 9]), ...]: one picture each
    kept = choose(seen, alike, Policy(min_images=3, drop_duplicates=True))
    kept.images, kept.labels, reasons(kept.dropped)
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from PIL import Image

from jaxface import examine, types
from jaxface.data import decode, duplicates

FEW = "too few images of the person"
DUPLICATE = "duplicate"
CONFLICT = "one picture under several people"
OVERLAP = "person of the test set"

_LIKENESS = 0.95  # correlation of two 32 x 32 grey pictures that are one picture


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


def choose(
    seen: examine.Seen,
    alike: Sequence[np.ndarray],
    policy: Policy,
    *,
    out: Mapping[int, str] | None = None,
) -> Choice:
    """Apply a policy; every image ends up kept or dropped, never both.

    Args:
        seen: the rows.
        alike: from `groups`.
        policy: what is left out.
        out: people who must not be in the set -> how they are known.
    """
    why: dict[int, Drop] = {}
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
    for label, detail in (out or {}).items():
        for i in np.flatnonzero(seen.label == label).tolist():
            why[i] = Drop(i, OVERLAP, detail)
    for i in np.flatnonzero(seen.fault != "").tolist():
        reason, _, detail = str(seen.fault[i]).partition(": ")
        why[i] = Drop(i, reason, detail)
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


def equal(seen: examine.Seen, group: np.ndarray) -> int:
    """Count the images of a group whose person has an earlier one byte by byte."""
    label = seen.label[group].astype("<i8").view(np.uint8).reshape(-1, 8)
    rows = np.column_stack([label, seen.digest[group]])
    return len(group) - len(np.unique(rows, axis=0))


def reasons(dropped: Iterable[Drop]) -> dict[str, int]:
    """Count drops by reason, the most frequent first."""
    return dict(collections.Counter(d.reason for d in dropped).most_common())


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
