"""Readers against damaged files: what `test_fuzz.py` runs in a process of its own.

    python tests/fuzz.py --readers=recordio,folder --inputs=1000 --seed=0

The law: a file that is not what it should be is read as far as it can be, or refused
with a ValueError or OSError that names it and says where. Nothing in it is executed,
and memory and time are bounded for every input. A new reader has its line in READERS.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import pathlib
import pickle
import random
import re
import resource
import signal
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator

import mutations
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import sets
from absl import logging
from array_record.python import array_record_module

from jaxface.data import ops, prepared, stream
from jaxface.data.sources import (
    array_record,
    by_attribute,
    folder,
    ijb,
    ijb_search,
    lists,
    lmdb_records,
    merged,
    pairs_bin,
    pairs_cfp,
    pairs_lines,
    pairs_npz,
    pairs_txt,
    pairs_where,
    parquet,
    recordio,
    rfw,
    templates,
    tfds,
    tfrecord,
    without,
)

MEMORY = 300 << 20  # bytes that one input may take, beyond what the process has
SECONDS = 10.0  # of the clock, for one input; a tiny set takes a millisecond
# Python's audit events of what no file may cause; a pickle's class found by our own
# `find_class` is none of them.
FORBIDDEN = re.compile(
    r"(os\.(system|exec|posix_spawn|spawn|fork)|subprocess|pickle\.find_class|socket)"
)


@dataclasses.dataclass(frozen=True)
class Reader:
    """How to make a tiny set, and how to read all of it.

    Attributes:
        make: writes it into a folder.
        use: opens and reads it; yields what the damaged records of it say.
        says: what a message has, besides the file: where in it.
        seal: makes the checksums of damaged bytes agree, to get past them.
    """

    make: Callable[[pathlib.Path], object]
    use: Callable[[pathlib.Path], Iterator[str]]
    says: str = r"byte \d+"
    seal: Callable[[bytes], bytes] = bytes


# --- sources and pairs, read whole ----------------------------------------------------


def everything(source) -> Iterator[str]:
    """Read all images and hold them against the contract; yield the damage."""
    damage, n = [], len(source)
    names = {source.name(i) for i in range(n)}
    assert len(names) == n > 0, "names are not unique"
    for i in range(n):
        try:
            record, label = source.read(i)
        except OSError as error:
            damage.append(str(error))
            continue
        assert isinstance(record, bytes | np.ndarray), "a record of another kind"
        assert type(label) is int, "a label that is not an int"
        assert 0 <= label < source.num_classes, "a label that is no class"
    if 0 < len(damage) < n:
        counted(source, damage)
    yield from damage
    try:
        labels = getattr(source, "labels", np.zeros(n))
    except ValueError as error:  # of a set that would have to read them all
        yield str(error)
    else:
        assert labels.shape == (n,), "labels of another number"
        assert 0 <= labels.min() <= labels.max() < source.num_classes


def counted(source, damage: list[str]) -> None:
    """Hold what an epoch replaces and counts against what cannot be read."""
    n = len(source)
    order = stream.Stream(source, LINE, batch_size=n, seed=0, max_bad=1.0)
    for position, example, _ in zip(*order.plan(0), strict=True):
        order.read(int(position), int(example), lambda record: record)
    assert sorted(order.bad.values()) == sorted(damage), "counted is not dropped"


LINE = ops.parse("decode|resize(8)")


def compared(found) -> Iterator[str]:
    """Read both sides of a list of pairs."""
    assert len(found.same) == len(found.left) == len(found.fold) == len(found.people)
    assert max(found.left.max(), found.right.max()) < len(found.images)
    yield from everything(found.images)


PEOPLE = [[b"\xff\xd8a", b"bb"], [b"ccc", b"d" * 9, b"e\0" * 20]]
FILES = {f"{who}/{k}.jpg": image
         for who, images in zip(("ann", "bob"), PEOPLE, strict=True)
         for k, image in enumerate(images)}  # fmt: skip


def make_files(root: pathlib.Path) -> None:
    for name, content in FILES.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(content)


def make_tar(root: pathlib.Path) -> None:
    with tarfile.open(root / "faces.tar", "w") as tar:
        for name, content in {**FILES, "ann/notes.txt": b"x"}.items():
            member = tarfile.TarInfo(f"faces/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def use_tar(root: pathlib.Path) -> Iterator[str]:
    path = root / "faces.tar"
    source = folder.Source(path, min_images=1)
    with tarfile.open(path) as tar:  # the oracle of the counter
        names = [m.name.strip("/") for m in tar if not m.isdir()]
    left = len(names) - len(source) - source.ignored
    assert 0 <= left <= len(names) - len({n.replace("./", "") for n in names})
    yield from everything(source)


def make_pack(protocol: int) -> Callable[[pathlib.Path], object]:
    pack = ([b"\xff\xd8a", b"b", b"c", b"d", np.frombuffer(b"ef", np.uint8), b"b"],
            [True, np.bool_(True), False])  # fmt: skip
    return lambda root: (root / "x.bin").write_bytes(pickle.dumps(pack, protocol))


def make_list(root: pathlib.Path) -> None:
    (root / "pairs.txt").write_text("2\t1\nann 1 2\nann 1 bob 1\ncy 1 3\ncy 3 bob 1\n")
    for name in ("ann", "bob", "cy"):
        (root / name).mkdir()
        for k in (1, 2, 3):
            (root / name / f"{name}_000{k}.jpg").write_bytes(b"x")


def make_without(root: pathlib.Path) -> None:
    make_files(root)
    (root / "far.json").write_text(json.dumps([{"name": str(root / "bob/2.jpg")}]))


def use_without(root: pathlib.Path) -> Iterator[str]:
    base = folder.Source(root, min_images=1)
    yield from everything(without.Source(base, path=root / "far.json"))


def make_shared(root: pathlib.Path) -> None:
    (root / "shared.json").write_text(json.dumps([["a/0", "b/1"], ["b/0", "a/1"]]))


def use_shared(root: pathlib.Path) -> Iterator[str]:
    few = "synthetic(identities=2, per_identity=1, size=16, start={})"
    parts = {"a": few.format(0), "b": few.format(2)}
    yield from everything(merged.Source(parts, shared=root / "shared.json"))


def use_pack(root: pathlib.Path) -> Iterator[str]:
    yield from compared(pairs_bin.pairs(root / "x.bin", folds=1))


def use_list(root: pathlib.Path) -> Iterator[str]:
    yield from compared(pairs_txt.pairs(root / "pairs.txt", root=root))


def make_records(root: pathlib.Path) -> None:
    sets.write_set(root, sets.insightface(PEOPLE), classes=2)
    (root / "classes.txt").write_text("ann\nbob\n")


def use_records(root: pathlib.Path) -> Iterator[str]:
    yield from everything(recordio.Source(root))


def make_lines(root: pathlib.Path) -> None:
    make_files(root)
    rows = ["path,label", *(f"{name},{name[:3]}" for name in FILES), "# the end", ""]
    (root / "x.csv").write_text("\n".join(rows))


def use_lines(root: pathlib.Path) -> Iterator[str]:
    source = lists.Source(root / "x.csv", min_images=1)
    lines = (root / "x.csv").read_bytes().removesuffix(b"\n").count(b"\n") + 1
    assert lines == len(source) + source.ignored, "a line went lost"
    yield from everything(source)


def make_tfrecord(root: pathlib.Path) -> None:
    rows = [sets.example(i, k) for k, images in enumerate(PEOPLE) for i in images]
    (root / "x.tfrecord").write_bytes(sets.tfrecord(rows))


def make_indexed(root: pathlib.Path) -> None:
    make_tfrecord(root)
    tfrecord.Source(root / "x.tfrecord")  # writes the index


def use_indexed(root: pathlib.Path) -> Iterator[str]:
    yield from everything(tfrecord.Source(root / "x.tfrecord"))


def use_tfrecord(root: pathlib.Path) -> Iterator[str]:
    (root / "x.tfrecord.index").unlink(missing_ok=True)
    source = tfrecord.Source(root / "x.tfrecord")
    count = len(messages((root / "x.tfrecord").read_bytes()))
    assert len(source) + source.damaged == count, "a record went uncounted"
    yield from everything(source)


def messages(data: bytes) -> list[bytes]:
    """Cut a TFRecord into its messages by their lengths."""
    found, at = [], 0
    while at + 16 <= len(data):
        size = int.from_bytes(data[at : at + 8], "little")
        found.append(data[at + 12 : at + 12 + size])
        at += 16 + size
    return found


def seal(data: bytes) -> bytes:
    """Repair the checksums of a damaged TFRecord."""
    return sets.tfrecord(messages(data))


def make_database(root: pathlib.Path) -> None:
    sets.database(root / "x.lmdb", sets.packed(PEOPLE))


def make_pickles(root: pathlib.Path) -> None:
    rows = [(image, k) for k, images in enumerate(PEOPLE) for image in images]
    items = {f"{k:03d}".encode(): pickle.dumps(r) for k, r in enumerate(rows)}
    sets.database(root / "x.lmdb", {**items, b"long": pickle.dumps((b"x" * 9000, 1))})


def use_database(root: pathlib.Path) -> Iterator[str]:
    yield from everything(lmdb_records.Source(root / "x.lmdb"))


def make_zip(root: pathlib.Path) -> None:
    with zipfile.ZipFile(root / "faces.zip", "w", zipfile.ZIP_DEFLATED) as out:
        for k, (name, content) in enumerate(FILES.items()):
            out.writestr(f"faces/{name}", content, k % 2 * zipfile.ZIP_DEFLATED)


def use_zip(root: pathlib.Path) -> Iterator[str]:
    yield from everything(folder.Source(root / "faces.zip", min_images=1))


def make_examples(root: pathlib.Path) -> None:
    for k, images in enumerate(PEOPLE):
        name = f"x.array_record-{k:05d}-of-00002"
        writer = array_record_module.ArrayRecordWriter(str(root / name), "group_size:1")
        for image in images:
            writer.write(prepared.serialize({"image": image, "label": k}))
        writer.close()


def use_examples(root: pathlib.Path) -> Iterator[str]:
    yield from everything(array_record.Source(root / "x.array_record-*"))


def make_prepared(root: pathlib.Path) -> None:
    arrays = np.zeros((4, 2, 2, 3), np.uint8)
    prepared.write(
        Arrays(arrays), root, images=np.arange(4), labels=np.array([0, 0, 1, 1]),
        classes=["ann", "bob"], name="faces", shard_size=2,
    )  # fmt: skip


@dataclasses.dataclass
class Arrays:
    images: np.ndarray
    color: str = "rgb"
    num_classes: int = 2

    def __len__(self):
        return len(self.images)

    def read(self, i):
        return self.images[i], 0

    def name(self, i):
        return str(i)


def use_prepared(root: pathlib.Path) -> Iterator[str]:
    yield from everything(array_record.Source(root / "faces"))


def use_tfds(root: pathlib.Path) -> Iterator[str]:
    yield from everything(tfds.Source(root / "faces"))


def make_parquet(root: pathlib.Path) -> None:
    images = [{"bytes": image, "path": None} for some in PEOPLE for image in some]
    told = {"info": {"features": {"label": {"names": ["ann", "bob"]}}}}
    table = pa.table({"image": images, "label": [0, 0, 1, 1, 1]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(told)})
    pq.write_table(
        table, root / "x.parquet", row_group_size=2, write_page_checksum=True
    )


def use_parquet(root: pathlib.Path) -> Iterator[str]:
    yield from everything(parquet.Source(root / "x.parquet"))


def make_npz(root: pathlib.Path) -> None:
    images = np.arange(6 * 12, dtype=np.uint8).reshape(6, 2, 2, 3)
    np.savez_compressed(root / "x.npz", images=images, issame=[True, False, True])


def use_npz(root: pathlib.Path) -> Iterator[str]:
    yield from compared(pairs_npz.pairs(root / "x.npz", folds=1))


def make_label_lines(root: pathlib.Path) -> None:
    make_list(root)
    rows = [("ann", 1, "ann", 2), ("ann", 1, "bob", 1), ("cy", 1, "cy", 3)]
    rows += [("cy", 3, "bob", 1)]
    sides = [(a, i, a == b) for row in rows for a, i, b in (
        (row[0], row[1], row[2]), (row[2], row[3], row[0]))]  # fmt: skip
    lines = [f"{name}/{name}_000{i}.jpg {int(same)}" for name, i, same in sides]
    (root / "pairs.txt").write_text("\n".join(lines) + "\n")


def use_label_lines(root: pathlib.Path) -> Iterator[str]:
    yield from compared(pairs_lines.pairs(root / "pairs.txt", root=root, folds=2))


def make_cfp(root: pathlib.Path) -> None:
    folder_name = root / "Protocol" / "Split" / "FP" / "01"
    folder_name.mkdir(parents=True)
    for kind, pose in (("F", "frontal"), ("P", "profile")):
        names = [f"Data/Images/00{k}/{pose}/01.jpg" for k in (1, 2, 3)]
        for name in names:
            (root / name).parent.mkdir(parents=True)
            (root / name).write_bytes(name.encode())
        rows = [f"{k} ../{name}" for k, name in enumerate(names, start=1)]
        (root / "Protocol" / f"Pair_list_{kind}.txt").write_text("\n".join(rows))
    (folder_name / "same.txt").write_text("1,1\n2,2\n3,3\n")
    (folder_name / "diff.txt").write_text("1,2\n3,1\n2,3\n")


def use_cfp(root: pathlib.Path) -> Iterator[str]:
    yield from compared(pairs_cfp.pairs(root, kind="FP"))


def make_templates(root: pathlib.Path) -> None:
    (root / "meta").mkdir()
    rows = [f"{name}.jpg" for name in "abc"]
    media = [f"{r} {7 + k // 2} {k}" for k, r in enumerate(rows)]
    points = [f"{r} {' '.join(map(str, range(10)))} 0.{k}" for k, r in enumerate(rows)]
    pairs = ["7 8 0", "8 8 1", "7 7 1"]
    for name, lines in (
        ("face_tid_mid", media),
        ("name_5pts_score", points),
        ("template_pair_label", pairs),
    ):
        (root / "meta" / f"x_{name}.txt").write_text("\n".join(lines) + "\n")


def use_templates(root: pathlib.Path) -> Iterator[str]:
    found = templates.templates(root, prefix="x")
    assert found.left.shape == found.right.shape == found.same.shape
    assert len(found.landmarks) == len(found.template) == len(found.names)
    assert np.isin([found.left, found.right], found.template).all()
    yield from ()


def make_attributes(root: pathlib.Path) -> None:
    make_list(root)
    (root / "x.csv").write_text("# mask\nann,on\nbob,on\ncy,on\ncy/cy_0002.jpg,off\n")


def use_attributes(root: pathlib.Path) -> Iterator[str]:
    pairs = pairs_txt.pairs(root / "pairs.txt", root=root)
    found = by_attribute.groups(pairs, path=root / "x.csv")
    assert found.group.shape == found.pairs.same.shape
    assert -1 <= found.group.min() <= found.group.max() < len(found.names)
    yield from compared(found.pairs)


def use_where(root: pathlib.Path) -> Iterator[str]:
    pairs = pairs_txt.pairs(root / "pairs.txt", root=root)
    yield from compared(pairs_where.pairs(pairs, path=root / "x.csv", both="on"))


def make_rfw(root: pathlib.Path) -> None:
    for name in rfw.NAMES:
        (root / "data" / name).mkdir(parents=True)
        (root / "txts" / name).mkdir(parents=True)
        make_list(root / "data" / name)
        lines = (root / "data" / name / "pairs.txt").read_text().split("\n", 1)[1]
        (root / "txts" / name / f"{name}_pairs.txt").write_text(lines)


def use_rfw(root: pathlib.Path) -> Iterator[str]:
    yield from compared(rfw.groups(root, folds=1).pairs)


def make_ijb(root: pathlib.Path) -> None:
    make_templates(root)
    (root / "loose_crop").mkdir()
    for name in "abc":
        (root / "loose_crop" / f"{name}.jpg").write_bytes(b"x")
    for name, rows in (("gallery_G1", "7,1"), ("gallery_G2", "8,2"),
                       ("probe_mixed", "7,1\n8,2")):  # fmt: skip
        text = f"TEMPLATE_ID,SUBJECT_ID,FILENAME\n{rows}\n"
        (root / "meta" / f"x_1N_{name}.csv").write_text(text)


def use_ijb(root: pathlib.Path) -> Iterator[str]:
    found = ijb.pairs(root, prefix="x")
    pooled(found.templates)
    assert max(found.left.max(), found.right.max()) < len(found.templates.person)
    yield from ()


def use_ijb_search(root: pathlib.Path) -> Iterator[str]:
    found = ijb_search.search(root, prefix="x")
    pooled(found.templates)
    for enrolled, probes in found.trials:
        assert max(enrolled.max(), probes.max()) < len(found.templates.person)
    yield from ()


def pooled(found) -> None:
    """Hold templates against their contract."""
    assert len(found.image) == len(found.template) == len(found.media)
    assert found.image.max() < len(found.images)
    assert found.template.max() < len(found.person)


SHARD = r"\[\d+\]|no whole ArrayRecord|no records|shards of|has \d+ records"
SET = rf"{SHARD}|JSON|metadata|UTF-8|known:|wanted|bytes|holds"
NPZ = r"no whole \.npz|at byte|format|wanted|objects|follow|ends after|no array"
PACK = r"byte \d+|list is not of|images for|two lists|split into"
ATTRIBUTES = r":\d+: |promises|are missing|byte \d+|tells nothing|are left"
# "module", or "module/variant" where there is more than one way to make a file.
READERS = {
    "array_record/files": Reader(make_examples, use_examples, SHARD),
    "array_record/set": Reader(make_prepared, use_prepared, SET),
    "tfds": Reader(make_prepared, use_tfds, SET),
    "parquet": Reader(
        make_parquet, use_parquet, "Parquet|row group|column|labels|metadata|wanted"
    ),
    "pairs_npz": Reader(make_npz, use_npz, NPZ),
    "pairs_lines": Reader(
        make_label_lines,
        use_label_lines,
        r":\d+: |pair|person|are missing|byte|outside",
    ),
    "pairs_cfp": Reader(make_cfp, use_cfp, r":\d+: |are missing|byte|outside|no pairs"),
    "templates": Reader(make_templates, use_templates, r":\d+: |byte|wanted"),
    "folder/zip": Reader(make_zip, use_zip, "not a whole|at byte|ends|holds no|wanted"),
    "folder": Reader(make_tar, use_tar, "not a whole|ends within|holds no|wanted"),
    "lists": Reader(
        make_lines, use_lines, r":\d+: |byte \d+|none of its first|no file"
    ),
    "lmdb_records": Reader(make_database, use_database),
    "lmdb_records/pickle": Reader(make_pickles, use_database),
    "merged": Reader(make_shared, use_shared, "JSON|no list of|that no set|twice"),
    "pairs_bin/4": Reader(make_pack(4), use_pack, PACK),
    "pairs_bin/0": Reader(make_pack(0), use_pack, PACK),
    "pairs_txt": Reader(make_list, use_list, r":\d+: |promises|are missing|byte \d+"),
    "recordio": Reader(
        make_records, use_records, r"byte \d+|property|index|identities|label|classes"
    ),
    "tfrecord": Reader(make_tfrecord, use_tfrecord, r"byte \d+|@\d+: "),
    "tfrecord/sealed": Reader(make_tfrecord, use_tfrecord, r"byte \d+|@\d+: ", seal),
    "tfrecord/index": Reader(make_indexed, use_indexed, r"byte \d+|@\d+: "),
    "by_attribute": Reader(make_attributes, use_attributes, ATTRIBUTES),
    "pairs_where": Reader(make_attributes, use_where, ATTRIBUTES),
    "rfw": Reader(make_rfw, use_rfw, r":\d+: |are missing|byte \d+|cannot be dealt"),
    "ijb": Reader(make_ijb, use_ijb, r":\d+: |byte|wanted|are missing"),
    "ijb_search": Reader(
        make_ijb, use_ijb_search, r":\d+: |byte|wanted|are missing|templates|person"
    ),
    "without": Reader(make_without, use_without, "names|is no list|leaves none"),
}


# --- the loop -------------------------------------------------------------------------


class HangError(BaseException):
    """An input took too long."""


def too_long(*_):
    raise HangError("it takes too long")


class ExecutedError(BaseException):
    """An input made its reader execute something, or ask a host."""


watched = False  # whether an input is being read


def watch(event: str, args: tuple) -> None:
    """Refuse what no file may cause; for `sys.addaudithook`."""
    text = event == "exec" and getattr(args[0], "co_filename", "") == "<string>"
    if watched and (text or FORBIDDEN.match(event)):
        raise ExecutedError(f"{event} {args!r}")


def judge(
    reader: Reader, root: pathlib.Path, names: list[str], seconds: float
) -> tuple[str, str]:
    """Return (outcome, why) of one input."""

    def blames(message: str) -> bool:
        return any(n in message for n in names) and bool(
            re.search(reader.says, message)
        )

    global watched
    signal.setitimer(signal.ITIMER_REAL, seconds)
    watched = True
    try:
        damage = list(reader.use(root))
    except (ValueError, OSError) as error:
        good = blames(str(error))
        return ("refused", "") if good else ("failed", f"says only: {error!r}")
    except (Exception, HangError, ExecutedError) as error:  # noqa: BLE001
        return "failed", repr(error)[:300]
    finally:
        watched = False
        signal.setitimer(signal.ITIMER_REAL, 0)
    for message in damage:
        if not blames(message):
            return "failed", f"a record says only: {message!r}"
    return ("damaged" if damage else "accepted"), ""


def run(reader: Reader, *, inputs: int, seed: int, seconds: float) -> dict:
    """Give a reader so many damaged files; return what became of them."""
    rng, outcomes, failures = random.Random(seed), Counter(), []
    with tempfile.TemporaryDirectory() as folder_name:
        root = pathlib.Path(folder_name)
        reader.make(root)
        files = {p: p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
        names = [p.name for p in files]
        outcome, why = judge(reader, root, names, seconds)
        if outcome != "accepted":
            raise AssertionError(f"the valid set: {outcome}, {why}")
        # image payloads alone are not what is tried here
        aims = [p for p in files if p.suffix not in (".jpg", ".png")]
        for k in range(inputs):
            path, mutate = rng.choice(aims), mutations.STRATA[k % len(mutations.STRATA)]
            data = reader.seal(mutate(rng, files[path]))
            path.unlink()  # a new file: an old map of it stays as it is
            path.write_bytes(data)
            outcome, why = judge(reader, root, names, seconds)
            outcomes[outcome] += 1
            outcomes[f"{mutate.__name__} {outcome}"] += 1
            if outcome == "failed":
                failures.append(f"{mutate.__name__} of {path.name}, input {k}: {why}")
            for one in aims:  # an index, too, that the reader wrote anew
                one.unlink()
                one.write_bytes(files[one])
    return {"outcomes": outcomes, "failures": failures[:20]}


def limit_memory(more: int) -> None:
    """Let this process have so many bytes beyond what it has now."""
    has = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    top = has * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (top, top))


def canary(what: str) -> Reader:
    """A reader that misbehaves when its file is damaged."""

    def use(root: pathlib.Path) -> Iterator[str]:
        if (root / "x").read_bytes() != b"canary":
            match what:
                case "hang":
                    while True:
                        pass
                case "allocate":
                    np.ones(1 << 28)  # 2 GiB
                case "kind":
                    raise KeyError(f"{root / 'x'}, byte 0: damaged")
                case "file":
                    raise ValueError("byte 0: damaged")
                case "place":
                    raise ValueError(f"{root / 'x'}: damaged")
                case "text":
                    eval("1 + 1")
                case "command":
                    os.system("true")
                case "class":
                    pickle.loads(pickle.dumps(pathlib.Path()))
                case "crash":
                    os.abort()
        yield from ()

    return Reader(lambda root: (root / "x").write_bytes(b"canary"), use)


_WAYS = "hang allocate kind file place text command class crash"
CANARIES = {way: canary(way) for way in _WAYS.split()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--readers", default=",".join(READERS))
    parser.add_argument("--inputs", type=int, required=True, help="of each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for one input")
    given = parser.parse_args()
    signal.signal(signal.SIGALRM, too_long)
    sys.addaudithook(watch)
    readers = {name: (READERS | CANARIES)[name] for name in given.readers.split(",")}
    for reader in readers.values():  # libraries load, and start their threads, once
        with tempfile.TemporaryDirectory() as folder_name:
            reader.make(pathlib.Path(folder_name))
            list(reader.use(pathlib.Path(folder_name)))
    limit_memory(MEMORY)
    found = {}
    for name, reader in readers.items():
        start = time.process_time()
        found[name] = run(
            reader, inputs=given.inputs, seed=given.seed, seconds=given.seconds
        )
        found[name]["cpu"] = round(time.process_time() - start, 2)
    print(json.dumps(found))


if __name__ == "__main__":
    logging.set_verbosity(logging.ERROR)  # every damaged image would be told
    main()
