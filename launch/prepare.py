"""Turn any source into a prepared set with a data card, or into a pack of pairs.

    python launch/prepare.py --source="folder(path='photos')" --out=sets/mine --align
    python launch/prepare.py --source="array_record(path='sets/mine')" \
      --make-pack=mine.bin --protocol="pairs_sampled(count=600, folds=10)"

OUT holds the set, card.html and card.json, dropped.csv (path, identity, reason, detail)
and duplicates.csv. Repeat a command that was cut short, and it goes on.

With a network, of any workdir, people are compared: those of a test set are left out,
and who is in several sets has one label.

    python launch/prepare.py --source="folder(path='web')" --out=sets/web \
      --overlap-with=lfw.bin --names=pairs.txt --workdir=/tmp/mbf
    python launch/prepare.py --merge="web:folder(path='web')" \
      --merge="own:folder(path='own')" --out=sets/both --workdir=/tmp/mbf

With --list=FILE.json in place of --out nothing is written but who it is, for
`|without(path=...)` or `merged(sets=..., shared=...)` to read. --source alone finds
people under two labels, at a --threshold.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import shlex
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import tqdm
from absl import flags, logging

from jaxface import atomic, cli, curate, detect, examine, prepare, spec, types
from jaxface.data import packs, prepared, sources

if TYPE_CHECKING:
    from jaxface import overlaps

_FORMATS = (*prepared.FORMATS, "recordio")
_SOURCE = flags.DEFINE_string("source", None, "A line, such as folder(path='faces').")
_MERGE = flags.DEFINE_multi_string("merge", [], "NAME:LINE of a set, one of several.")
_OUT = flags.DEFINE_string("out", None, "Folder of the set; its last part names it.")
_FORMAT = flags.DEFINE_enum("format", "array_record", _FORMATS, "How it is stored.")
_VERIFY = flags.DEFINE_bool("verify", False, "Read the set back and compare.")

_ALIGN = flags.DEFINE_bool("align", False, "Photos: find a face in each, align it.")
_SIZE = flags.DEFINE_integer("size", 112, "--align: side of the faces in pixels.")
_FACE = flags.DEFINE_enum("face", "largest", detect.CHOICES, "--align: of several.")
_MIN_FACE = flags.DEFINE_integer("min_face", 20, "--align: pixels of the smallest.")
_MAX_SIDE = flags.DEFINE_integer("max_side", 1024, "--align: photos are searched at.")
_ENCODING = flags.DEFINE_enum(
    "encoding", "jpeg", examine.ENCODINGS, "--align: jpeg (quality 95) or png."
)

_MIN_IMAGES = flags.DEFINE_integer("min_images", 2, "People with fewer are left out.")
_DUPLICATES = flags.DEFINE_bool(
    "drop_duplicates", False, "Of equal pictures of a person the first stays."
)
_CONFLICTS = flags.DEFINE_bool(
    "drop_conflicts", False, "Leave out pictures that several people have."
)
_NEAR = flags.DEFINE_integer("near", 3, "Bits of 64 in which equal hashes may differ.")

_LICENCE = flags.DEFINE_string("licence", "", "Text for the card, or a file of it.")
_SHEET = flags.DEFINE_integer("sheet", 12, "People shown on the card; 0 for none.")
_WORKERS = flags.DEFINE_integer("workers", os.cpu_count() or 1, "Processes.", 1)

_WORKDIR = flags.DEFINE_string("workdir", None, "Whose network compares people.")
_STEP = flags.DEFINE_string("step", "latest", "best, latest or a step's number.")
_TEST = flags.DEFINE_string(
    "overlap_with", None, "Leave out its people: a .bin, or a line of images or pairs."
)
_FOLDS = flags.DEFINE_integer("folds", 10, "--overlap_with: folds of the pack.")
_NAMES = flags.DEFINE_string("names", None, "LFW pairs.txt: who is in the pack.")
_LISTED = flags.DEFINE_string("names_list", None, "More names of it, one in a line.")
_ALARMS = flags.DEFINE_float("alarms", 1.0, "False alarms that may be expected.")
_THRESHOLD = flags.DEFINE_float("threshold", None, "Cosine of a match; or --alarms.")
_LIST = flags.DEFINE_string("list", None, "Write who was found to this file, JSON.")
_SHOW = flags.DEFINE_integer("show", 50, "Rows of those found to print.")

_PACK = flags.DEFINE_string("make_pack", None, "Write this .bin of pairs instead.")
_PROTOCOL = flags.DEFINE_string(
    "protocol", "pairs_sampled(count=6000, folds=10)", "--make_pack: which pairs."
)


def main() -> None:
    """Prepare a set, compare people, or make a pack."""
    cli.log_to_stderr()
    check()
    from jaxface import assembly  # JAX, which a worker that looks does not need
    from jaxface.data.sources import merged

    if _PACK.value:
        pairs = assembly.flow(f"{_SOURCE.value}|{_PROTOCOL.value}")
        height, width = packs.write(
            pairs, _PACK.value, progress=bar("write", len(pairs))
        )
        folds = int(pairs.fold.max()) + 1
        print(f"{_PACK.value}: {len(pairs):,} pairs of {height}x{width}, {folds} folds")
        return
    sets = named_lines()
    source = merged.Source(sets) if sets else assembly.flow(_SOURCE.value)
    meet = comparison(source) if _WORKDIR.value else None
    if meet and not _OUT.value:
        meet(source)
        return
    out = pathlib.Path(_OUT.value).absolute()
    done = prepare.prepare(
        source,
        out,
        write=writer(source, out),
        policy=curate.Policy(
            min_images=_MIN_IMAGES.value,
            drop_duplicates=_DUPLICATES.value,
            drop_conflicts=_CONFLICTS.value,
            near=_NEAR.value,
        ),
        cut=cut() if _ALIGN.value else None,
        meet=meet,
        back=reader(out) if _VERIFY.value else None,
        workers=_WORKERS.value,
        sheet=_SHEET.value,
        about={
            "format": _FORMAT.value,
            "source": _SOURCE.value or f"merged(sets={sets!r})",
            "licence": licence(_LICENCE.value),
            "command": shlex.join(sys.argv),
        },
        progress=bar,
    )
    tell(out, done.facts)


def check() -> None:
    """Refuse flags that do not go together, before anything is opened."""
    if bool(_SOURCE.value) == bool(_MERGE.value):
        raise ValueError("wanted --source=LINE, or --merge=NAME:LINE twice or more")
    if _PACK.value:
        if _OUT.value or _MERGE.value or _ALIGN.value or _WORKDIR.value:
            raise ValueError(
                "a pack is of one prepared --source: first --align or merge into --out"
            )
    elif not (_OUT.value or (_WORKDIR.value and _LIST.value)):
        raise ValueError(
            "wanted --out=FOLDER, --make_pack=FILE.bin, or --workdir=RUN with"
            " --list=FILE.json"
        )
    if _TEST.value and not _WORKDIR.value:
        raise ValueError("--overlap_with compares by a network: give its --workdir")
    if _LIST.value and _TEST.value and _MERGE.value:
        raise ValueError("--list is of people left out or merged: one at a time")


def comparison(source: types.Source) -> Callable[[types.Source], prepare.People]:
    """Return what compares people; fail before an hour of looking."""
    from jaxface import experiment, overlaps

    experiment.saved_config(_WORKDIR.value)
    test = None
    if _TEST.value:
        test = overlaps.opened(_TEST.value, folds=_FOLDS.value, names=_NAMES.value)
    return functools.partial(compare, source, test)


def compare(
    source: types.Source, test: overlaps.Test | None, images: types.Source
) -> prepare.People:
    """Say which people of a source are in two sets, going by these of its images."""
    from jaxface import overlaps

    look = overlaps.looker(_WORKDIR.value, step=_STEP.value)
    mine = overlaps.crowd(look, source, images)
    how = {"threshold": _THRESHOLD.value, "alarms": _ALARMS.value}
    found = overlaps.Found("", {}, {}, np.arange(source.num_classes))
    if test:
        listed = overlaps.listed(_LISTED.value) if _LISTED.value else ()
        found = overlaps.against(mine, test, look, listed=listed, **how)
        say(found)
    if _MERGE.value or not test:
        joined = overlaps.among(mine, **how)
        say(joined)
        found = found.then(joined)
    if _LIST.value:
        rows = found.images(mine, images) if test else found.groups(mine)
        text = json.dumps(rows, indent=1, ensure_ascii=False)
        atomic.write(pathlib.Path(_LIST.value), text + "\n")
        print(f"{_LIST.value}: {len(rows)} entries")
        if _MERGE.value:
            print(
                f"data.source: merged(sets={named_lines()!r}, shared={_LIST.value!r})"
            )
    return found


def named_lines() -> dict[str, str]:
    """Return the lines of --merge by their names."""
    sets: dict[str, str] = {}
    for text in _MERGE.value:
        name, colon, line = text.partition(":")
        if not (colon and name.isidentifier() and line):
            raise ValueError(
                f"--merge={text!r}; wanted NAME:LINE, as in web:folder(...)"
            )
        if name in sets:
            raise ValueError(f"--merge={text!r}: there is a set {name!r} before it")
        sets[name] = line
    if len(sets) == 1:
        raise ValueError("--merge was given once; wanted two sets or more, or --source")
    return sets


def say(found: overlaps.Found) -> None:
    """Print what was found; of long lists the first rows, and how many more."""
    print(f"\n{found.said}")
    for title, rows in found.lists.items():
        print(f"\n{title}: {len(rows)} rows")
        for row in rows[: _SHOW.value]:
            print(f"  {row}")
        if len(rows) > _SHOW.value:
            print(f"  and {len(rows) - _SHOW.value} more: --show")


def cut() -> examine.Cut:
    """Return how a photo becomes a face."""
    detector = detect.Mtcnn(min_face=_MIN_FACE.value, max_side=_MAX_SIDE.value)
    return examine.Cut(
        detector, size=_SIZE.value, choice=_FACE.value, encoding=_ENCODING.value
    )


def writer(source: Any, out: pathlib.Path) -> prepare.Writer:
    """Return what stores the set in --format."""
    if _FORMAT.value == "recordio":
        from jaxface.data.sources import recordio

        return recordio.write

    prepared.check_names(
        out.name, source.classes if isinstance(source, types.Named) else None
    )

    def write_tfds(source: Any, out: pathlib.Path, **kept: Any) -> Any:
        return prepared.write(
            source,
            out.parent,
            name=out.name,
            format=_FORMAT.value,
            workers=_WORKERS.value,
            **kept,
        )

    return write_tfds


def reader(out: pathlib.Path) -> Callable[[], types.Source]:
    """Return what opens the set; ask before an hour of writing."""
    from jaxface import assembly

    known = spec.modules(sources)
    if _FORMAT.value not in known:
        raise spec.unknown("--verify: a source of", _FORMAT.value, known)
    return functools.partial(assembly.flow, f"{_FORMAT.value}(path={str(out)!r})")


def licence(given: str) -> str:
    """Return the text of a file, or what was given."""
    return pathlib.Path(given).read_text() if os.path.isfile(given) else given


def bar(word: str, total: int) -> Callable[[int], object]:
    """Return what advances a new progress bar."""
    shown = tqdm.tqdm(total=total, desc=word, unit=" images", mininterval=0.5)

    def advance(count: int) -> None:
        shown.update(count)
        if shown.n >= total:
            shown.close()

    return advance


def tell(out: pathlib.Path, facts: dict[str, Any]) -> None:
    """Say what was done."""
    print(f"{out}: {facts['images']:,} images of {facts['identities']:,} people")
    print(f"of {facts['examined']:,} looked at were left out:")
    for reason, count in facts["dropped"].items():
        print(f"  {count:>9,}  {reason}")
    print(f"  {sum(facts['dropped'].values()):>9,}  in all, listed in dropped.csv")
    if facts["ignored"]:
        print(f"{facts['ignored']:,} other files: no pictures by name or place")
    print(
        f"one picture several times: {facts['groups_of_one_picture']:,} groups,"
        f" {sum(facts['redundant_images'].values()):,} redundant images,"
        f" {facts['pictures_under_several_people']:,} pictures under several people"
        " (duplicates.csv)"
    )
    for warning in facts["warnings"]:
        logging.warning("%s", warning)
    print(f"card: {out / 'card.html'}")


if __name__ == "__main__":
    cli.run(main)
