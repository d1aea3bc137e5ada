"""Parquet files: both layouts of images, labels of each kind, damage, groups."""

import json
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxface.data.sources import parquet

STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def write(path, labels, *, first=0, names=None, plain=False, group=3, **options):
    """Write rows `first`, ...: the image of row i is the bytes of i."""
    numbers = range(first, first + len(labels))
    images = [
        b"%d" % i if plain else {"bytes": b"%d" % i, "path": None} for i in numbers
    ]
    images = pa.array(images, pa.binary() if plain else STRUCT)
    table = pa.table({"more": labels, "image": images, "label": labels})
    if names is not None:
        told = {
            "info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}
        }
        table = table.replace_schema_metadata({"huggingface": json.dumps(told)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group, **options)
    return path


@pytest.mark.parametrize("plain", [True, False])
def test_rows_are_read_across_shards_and_groups(tmp_path, plain):
    labels = [3, 1, 0, 3, 2, 1, 1, 0, 2, 3, 3, 0, 1]
    told = {"plain": plain, "names": list("abcd")}
    for k, (a, b) in enumerate([(0, 7), (7, 13)]):
        file = tmp_path / "data" / f"train-0000{k}-of-00002-fe{k}.parquet"
        write(file, labels[a:b], first=a, **told)
    write(tmp_path / "data" / "test-00000-of-00001.parquet", [0], **told)
    found = parquet.Source(tmp_path)
    assert (found.classes, found.num_classes, len(found)) == (tuple("abcd"), 4, 13)
    assert found.labels.tolist() == labels
    for i in np.random.default_rng(0).permutation(13).tolist():
        assert found.read(i) == (b"%d" % i, labels[i])
    assert found.name(8).endswith("train-00001-of-00002-fe1.parquet[0][1]")
    (tmp_path / "data" / "train-00000-of-00002-fe0.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="1 shards of 2"):
        parquet.Source(tmp_path)


def test_labels_without_names_and_labels_of_text(tmp_path):
    numbers = parquet.Source(write(tmp_path / "a.parquet", [4, 0, 2]))
    assert (numbers.num_classes, hasattr(numbers, "classes")) == (5, False)
    texts = parquet.Source(write(tmp_path / "b.parquet", ["zoe", "ann", "zoe"]))
    assert (texts.classes, texts.labels.tolist()) == (("ann", "zoe"), [1, 0, 1])


def test_few_groups_are_held_and_each_is_read_once_by_many_threads(tmp_path):
    path = write(tmp_path / "x.parquet", [0] * 30)
    found, reads = parquet.Source(path, groups=2), []
    read, together = found._read_group, threading.Barrier(4)
    found._read_group = lambda group: reads.append(group) or read(group)

    def go():
        together.wait()
        for i in range(3):
            assert found.read(i)[0] == b"%d" % i

    threads = [threading.Thread(target=go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reads == [0]
    assert [found.read(i)[0] for i in range(30)] == [b"%d" % i for i in range(30)]
    assert reads == list(range(10))
    assert list(found._held) == [8, 9]


def test_wrong_columns_say_what_is_there(tmp_path):
    path = write(tmp_path / "x.parquet", [0, 1])
    with pytest.raises(ValueError, match="no column 'face'; it has more, image, label"):
        parquet.Source(path, image="face")
    with pytest.raises(ValueError, match="column 'more' is int64; wanted binary"):
        parquet.Source(path, image="more")
    with pytest.raises(ValueError, match="column 'label' is float64; wanted whole"):
        parquet.Source(write(tmp_path / "y.parquet", [0.5]))
    with pytest.raises(ValueError, match=r"1 labels for 2 rows"):
        parquet.Source(write(tmp_path / "y.parquet", [1, None]))
    with pytest.raises(ValueError, match=r"image 1 has label 2; wanted 0 \.\. 1"):
        parquet.Source(write(tmp_path / "y.parquet", [1, 2], names=["a", "b"]))
    with pytest.raises(ValueError, match="metadata is not one"):
        parquet.Source(write(tmp_path / "y.parquet", [1, 2], names=[1, 2]))
    with pytest.raises(FileNotFoundError, match="no such files"):
        parquet.Source(tmp_path / "none.parquet")


def test_an_image_that_is_only_a_path_is_named(tmp_path):
    images = pa.array([{"bytes": None, "path": "a.jpg"}], STRUCT)
    pq.write_table(pa.table({"image": images, "label": [0]}), tmp_path / "x.parquet")
    with pytest.raises(OSError, match=r"x.parquet\[0\]\[0\] holds no bytes"):
        parquet.Source(tmp_path / "x.parquet").read(0)


def test_a_row_group_too_large_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "x.parquet", [0] * 99, group=99)
    monkeypatch.setattr(parquet, "_MAX_GROUP", 99)
    with pytest.raises(ValueError, match=r"row group 0 is of .* wanted at most 99"):
        parquet.Source(path)


def test_a_damaged_file_is_read_or_refused_by_name(tmp_path):
    rng, refused = np.random.default_rng(0), 0
    path = write(tmp_path / "x.parquet", [0, 1, 2, 0, 1, 2], write_page_checksum=True)
    data = path.read_bytes()
    for k in range(200):
        changed = bytearray(data)
        for at in rng.integers(len(data), size=1 + k % 3):
            changed[at] ^= int(rng.integers(1, 256))
        path.write_bytes(changed if k % 4 else data[: int(rng.integers(len(data)))])
        try:
            found = parquet.Source(path)
            for i in range(len(found)):
                found.read(i)
        except (OSError, ValueError) as error:  # and no other
            refused += str(path) in str(error)
    assert refused > 50


def test_what_a_dictionary_unfolds_to_is_bounded(tmp_path, monkeypatch):
    value, rows = bytes(range(256)) * 256, 100
    path = tmp_path / "bomb.parquet"
    table = {"image": pa.array([value] * rows), "label": [0] * rows}
    pq.write_table(pa.table(table), path, use_dictionary=["image"])
    assert pq.read_metadata(path).row_group(0).total_byte_size < len(value) * 2
    assert parquet.Source(path).read(99) == (value, 0)
    monkeypatch.setattr(parquet, "_MAX_GROUP", len(value) * 10)
    with pytest.raises(OSError, match="655360 bytes once decoded; wanted at most"):
        parquet.Source(path).read(0)


def test_more_rows_than_bytes_are_refused_before_their_labels_are_read(tmp_path):
    path, rows = tmp_path / "bomb.parquet", 1_000_000
    image = pa.nulls(rows, pa.binary())
    labels = pa.array(np.zeros(rows, np.int32))
    pq.write_table(pa.table({"image": image, "label": labels}), path)
    with pytest.raises(ValueError, match=r"1000000 rows in \d+ bytes; wanted at least"):
        parquet.Source(path)
