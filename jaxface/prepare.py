"""Any source to the prepared form: looked at, cleaned by policy, written, described.

The law: every image of the source is either in the set or in the list of dropped ones
with its reason, and the counts agree.

    done = prepare(folder.Source("photos"), "sets/mine", write=write,
                   policy=curate.Policy(min_images=3))
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

from jaxface import atomic, card, curate, examine, types
from jaxface.data import decode


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


class People(Protocol):
    """What a comparison knows of the people of a source."""

    @property
    def out(self) -> Mapping[int, str]:
        """Class -> how a person is known who must not be in the set."""
        ...

    @property
    def same(self) -> np.ndarray:
        """[C] int64, the first class that is the same person; itself mostly."""
        ...

    @property
    def said(self) -> str:
        """How it was found, for the card."""
        ...


@dataclasses.dataclass(frozen=True)
class Done:
    """What `prepare` did: the rows, the choice, and the card's facts."""

    seen: examine.Seen
    choice: curate.Choice
    facts: dict[str, Any]


def prepare(
    source: types.Source,
    out: str | os.PathLike[str],
    *,
    write: Writer,
    policy: curate.Policy,
    cut: examine.Cut | None = None,
    meet: Callable[[types.Source], People] | None = None,
    back: Callable[[], types.Source] | None = None,
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
        meet: looks at all images that can be used, under the labels of the source, and
            tells who is one person and who must go.
        back: opens what was written, to be compared; None to trust it.
        workers: processes that look at images.
        sheet: people shown on the card; 0 for none.
        about: what else the card says, such as the licence.
        progress: given a word and a total, makes what is told how many more are done.

    Raises:
        ValueError: if nothing is left, the source cannot be read, or what was written
            does not read back.
    """
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    tell = progress or (lambda word, total: lambda count: None)
    spool = out / "examined.incomplete"
    seen = examine.examine(
        source, spool, cut=cut, workers=workers, progress=tell("look", len(source))
    )
    alike = curate.groups(seen, near=policy.near)
    whose, met, go = seen, None, {}
    usable = np.flatnonzero(seen.fault == "")
    if meet and len(usable):  # before the policy, which sees whom it joins as one
        met = meet(types.Picked(seen.images, usable))
        seen = dataclasses.replace(seen, label=met.same[seen.label])
        go = {int(met.same[label]): why for label, why in met.out.items()}
    choice = curate.choose(seen, alike, policy, out=go)
    if not len(choice.images):
        why = curate.reasons(choice.dropped)
        raise ValueError(
            f"none of {len(source)} images is left: {why}; is this the right source?"
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
    if back:
        compare(back(), seen, choice, progress=tell("verify", len(choice.images)))
    facts = _facts(seen, choice, policy) | {"verified": back is not None}
    facts["ignored"] = getattr(source, "ignored", 0)
    if met:
        joined = int(np.sum(met.same != np.arange(len(met.same))))
        facts["people"] = {
            "classes_joined": joined,
            "compared": "; ".join(met.said.splitlines()),
        }
    facts |= about or {}
    pictures = card.sheet(seen.images, choice.images, choice.labels, people=sheet)
    for name, text in {
        "dropped.csv": _dropped(source, whose, choice),
        "duplicates.csv": _duplicates(source, seen, choice),
        "card.html": card.page(out.name, facts, pictures),
        "card.json": json.dumps(facts, indent=1) + "\n",
    }.items():
        # names of files may be no UTF-8: they are written as they are
        atomic.write(out / name, text.encode("utf-8", "surrogateescape"))
    shutil.rmtree(spool)
    return Done(seen, choice, facts)


def compare(
    written: types.Source,
    seen: examine.Seen,
    choice: curate.Choice,
    *,
    progress: Callable[[int], object] = lambda images: None,
) -> None:
    """Read a set back: the same records, or at least pixels, and labels, in order.

    Raises:
        ValueError: at the first image that is another.
    """
    if len(written) != len(choice.images):
        raise ValueError(
            f"{len(choice.images)} images were written, {len(written)} are read back"
        )
    wanted = zip(choice.images.tolist(), choice.labels.tolist(), strict=True)
    for k, (i, label) in enumerate(wanted):
        record, found = written.read(k)
        same = examine.digest(record) == seen.digest[i].tobytes()
        if not same:  # stored in another encoding
            pixels = decode.pixels(seen.images.read(i)[0])
            same = np.array_equal(decode.pixels(record), pixels)
        if not same or found != label:
            raise ValueError(
                f"{written.name(k)}, written from {seen.images.name(i)} as label"
                f" {label}, reads back as label {found} with"
                f" {'the same' if same else 'other'} pixels; write it again"
            )
        progress(1)


def content_hash(seen: examine.Seen, choice: curate.Choice) -> str:
    """Return a hash of what is in the set: records and labels, in order."""
    made = hashlib.blake2b(choice.labels.astype("<i8").tobytes(), digest_size=16)
    made.update(seen.digest[choice.images].tobytes())
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


def _facts(
    seen: examine.Seen, choice: curate.Choice, policy: curate.Policy
) -> dict[str, Any]:
    """Return what the card says, as JSON values."""
    counts = np.bincount(choice.labels)
    people = [len(np.unique(seen.label[g])) for g in choice.alike]
    redundant = sum(len(g) for g in choice.alike) - sum(people)
    equal = sum(curate.equal(seen, g) for g in choice.alike)
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
        "dropped": curate.reasons(choice.dropped),
        "groups_of_one_picture": len(choice.alike),
        "redundant_images": {"equal": equal, "nearly_equal": redundant - equal},
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


def _dropped(source: types.Source, seen: examine.Seen, choice: curate.Choice) -> str:
    who = _names(source)
    return _csv(
        ("path", "identity", "reason", "detail"),
        (
            (source.name(d.image), who(seen.label[d.image]), d.reason, d.detail)
            for d in choice.dropped
        ),
    )


def _duplicates(source: types.Source, seen: examine.Seen, choice: curate.Choice) -> str:
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
