"""ArrayRecord files: sets of another making, missing, cut, changed and hostile ones."""

import json
import os
import shutil

import numpy as np
import pytest
from array_record.python import array_record_module

from jaxface.data import layout, prepared
from jaxface.data.sources import array_record, synthetic


def write(path, records, options="group_size:1"):
    writer = array_record_module.ArrayRecordWriter(str(path), options)
    for record in records:
        writer.write(record)
    writer.close()
    return path


def crops(path, *, shards=3, each=4, **names):
    """Write plain records: image i is the bytes of its number, label i % 5."""
    image, label = names.get("image", "image"), names.get("label", "label")
    for k in range(shards):
        numbers = range(k * each, (k + 1) * each)
        write(
            path / f"crops.array_record-{k:05d}-of-{shards:05d}",
            [prepared.serialize({image: b"%d" % i, label: i % 5}) for i in numbers],
        )
    return path / "crops.array_record-*"


def dataset(path):
    faces = synthetic.Source(identities=3, per_identity=3, size=16)
    done = prepared.write(
        faces, path, images=np.arange(9), labels=faces.labels,
        classes=list("abc"), name="faces", shard_size=4,
    )  # fmt: skip
    return done.path


def test_plain_files_are_scanned_for_labels(tmp_path):
    pattern = crops(tmp_path, image="jpg", label="id")
    found = array_record.Source(pattern, image="jpg", label="id", color="bgr")
    assert (len(found), found.num_classes, found.color) == (12, 5, "bgr")
    assert found.labels.tolist() == [i % 5 for i in range(12)]
    order = np.random.default_rng(0).permutation(12).tolist()
    assert [found.read(i) for i in order] == [(b"%d" % i, i % 5) for i in order]
    assert found.name(5).endswith("crops.array_record-00001-of-00003[1]")


def test_no_more_files_are_open_than_allowed(tmp_path):
    found = array_record.Source(crops(tmp_path, shards=9, each=1), max_open=2)
    before = len(os.listdir("/proc/self/fd"))
    for i in [*range(9), *range(9)]:
        assert found.read(i)[0] == b"%d" % i
        assert len(os.listdir("/proc/self/fd")) <= before
    assert len(found._shards._open) == 2


def test_a_missing_shard_is_an_error(tmp_path):
    pattern = crops(tmp_path)
    (tmp_path / "crops.array_record-00001-of-00003").unlink()
    with pytest.raises(FileNotFoundError, match="2 shards of 3 are there"):
        array_record.Source(pattern)
    with pytest.raises(FileNotFoundError, match="no such files"):
        array_record.Source(tmp_path / "other-*")
    path = dataset(tmp_path / "sets")
    (path / "faces-train.array_record-00002-of-00003").unlink()
    with pytest.raises(FileNotFoundError, match="2 shards of 3 are there"):
        array_record.Source(path)


def test_a_shard_of_another_length_is_an_error_where_it_is_read(tmp_path):
    path = dataset(tmp_path)
    first, last = (path / f"faces-train.array_record-0000{k}-of-00003" for k in (0, 2))
    shutil.copy(last, first)
    found = array_record.Source(path)
    with pytest.raises(OSError, match=r"00000-of-00003 has 1 records; .* says 4"):
        found.read(0)
    assert found.read(8)[1] == 2


def test_records_that_are_no_labelled_images_are_named(tmp_path):
    rows = [
        {"image": b"x", "label": 0},
        {"image": 3, "label": 1},
        {"image": b"x"},
        {"image": b"x", "label": -1},
    ]
    path = write(tmp_path / "x", [*map(prepared.serialize, rows), b"\x0a\xff"])
    with pytest.raises(OSError, match=r"x\[2\]: 'label' is not one label .*has image"):
        array_record.Source(path)
    info = dataset(tmp_path)
    names = {"split": "train", "image": "", "label": ""}
    found = array_record.Source(info, **names)
    found._shards = array_record.Source(
        write(tmp_path / "y", [prepared.serialize(rows[0])])
    )._shards
    assert found.read(0) == (b"x", 0)
    found._shards = array_record._Shards((str(path),), max_open=1)
    for k, says in enumerate(
        ("is not one encoded", "'label' is", "'label' is", "no tf"), 1
    ):
        with pytest.raises(OSError, match=rf"x\[{k}\]: .*{says}"):
            found.read(k)


@pytest.mark.parametrize("content", [b"", b"abc", bytes(200_000)])
def test_what_is_no_array_record_is_refused(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match="x is no whole ArrayRecord file"):
        array_record.Source(tmp_path / "x")


def test_a_damaged_file_gives_what_was_written_or_an_error(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "x"
    records = [
        prepared.serialize({"image": rng.bytes(90), "label": k}) for k in range(4)
    ]
    data = write(path, records).read_bytes()
    full = np.flatnonzero(np.frombuffer(data, np.uint8))
    wanted = array_record.Source(path)
    wanted, (refused, whole) = [wanted.read(i) for i in range(4)], (0, 0)
    for k in range(300):
        changed = bytearray(data)
        for at in rng.choice(full, 1 + k % 3):
            changed[at] ^= int(rng.integers(1, 256))
        path.write_bytes(changed if k % 4 else data[: int(rng.integers(len(data)))])
        try:
            found = array_record.Source(path)
            assert [found.read(i) for i in range(len(found))] == wanted
        except (OSError, ValueError) as error:  # and no other
            refused += str(path) in str(error)
        else:
            whole += 1
    assert refused > 200
    assert refused + whole == 300


HOSTILE = {
    "no json": ("features.json", "{", "features.json is no JSON"),
    "nested": ("features.json", "[" * 100_000, "is no JSON"),
    "list": ("dataset_info.json", "[]", "wanted a JSON object"),
    "empty": ("features.json", "{}", "metadata is not TFDS's"),
    "text": ("dataset_info.json", '{"splits": "abc"}', "metadata is not TFDS's"),
    "infinite": (
        "dataset_info.json",
        '{"splits": [{"name": "train", "shardLengths": [1e999]}]}',
        "metadata is not TFDS's",
    ),
    "negative": (
        "dataset_info.json",
        '{"splits": [{"name": "train", "shardLengths": [-1]}]}',
        "counts that cannot be",
    ),
    "names": ("label.labels.txt", "a\nb\n", "2 names, 2 of them different; wanted 3"),
    "twice": ("label.labels.txt", "a\nb\nb\n", "3 names, 2 of them different"),
    "labels": (layout.LABELS, "abc", "has 3 bytes; 9 labels take 36"),
    "label": (layout.LABELS, "\0" * 32 + "abcd", "image 8 has label .*wanted 0 .. 2"),
}


@pytest.mark.parametrize(("file", "text", "says"), HOSTILE.values(), ids=HOSTILE)
def test_metadata_that_cannot_be_is_refused(tmp_path, file, text, says):
    path = dataset(tmp_path)
    (path / file).write_text(text)
    with pytest.raises(ValueError, match=says):
        array_record.Source(path)


def test_the_set_the_split_and_the_features_are_found_or_named(tmp_path):
    path = dataset(tmp_path)
    assert len(array_record.Source(tmp_path, image="image", label="label")) == 9
    with pytest.raises(KeyError, match=r"split 'test' unknown; .*known: train"):
        array_record.Source(path, split="test")
    with pytest.raises(KeyError, match="label feature 'lable' unknown; did you mean"):
        array_record.Source(path, label="lable")
    shutil.copytree(path.parent, tmp_path / "others")
    with pytest.raises(
        ValueError, match=r"holds 2 data sets: .*faces/1\.0\.0, .*; name one"
    ):
        array_record.Source(tmp_path)
    info = json.loads((path / "dataset_info.json").read_text())
    (path / "dataset_info.json").write_text(
        json.dumps(info | {"fileFormat": "riegeli"})
    )
    with pytest.raises(ValueError, match="is of riegeli files; wanted array_record"):
        array_record.Source(path)
