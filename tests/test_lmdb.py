"""LMDB files against the library itself, as the writer and as the oracle."""

import pickle

import lmdb
import msgpack
import numpy as np
import pytest
import sets
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxface.data import lmdb_file
from jaxface.data.sources import lmdb_records

PEOPLE = [[b"a", b"bb" * 3000], [b"c" * 300, b"d" * 70_000], [b"e", b""]]
WANTED = [(image, k) for k, images in enumerate(PEOPLE) for image in images]


def content(source):
    return [source.read(i) for i in range(len(source))]


def ours(path):
    data = path.read_bytes()
    found = lmdb_file.entries(data)

    def cut(at, size):
        return [data[a : a + s] for a, s in zip(at, size, strict=True)]

    return list(
        zip(cut(found.key_at, found.key_size), cut(found.at, found.size), strict=True)
    )


def theirs(path):
    db = lmdb.open(str(path), subdir=False, readonly=True, lock=False)
    with db, db.begin() as read:
        return list(read.cursor())


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.integers(0, 700), st.integers(1, 3))
def test_any_database_has_the_librarys_entries(tmp_path_factory, seed, n, rounds):
    rng = np.random.default_rng(seed)
    path = tmp_path_factory.mktemp("lmdb") / "x"
    with lmdb.open(str(path), subdir=False, map_size=1 << 26, lock=False) as db:
        for _ in range(rounds):  # pages are freed, used again and split
            with db.begin(write=True) as write:
                for _ in range(n):
                    key = rng.bytes(int(rng.integers(1, 60)))
                    write.put(key, rng.bytes(int(rng.choice([0, 9, 2000, 5000]))))
                for key in [k for k, _ in write.cursor()][::3]:
                    write.delete(key)
    assert ours(path) == theirs(path)


def test_what_haiyuwu_packs_is_read(tmp_path):
    source = lmdb_records.Source(sets.database(tmp_path / "x", sets.packed(PEOPLE)))
    assert content(source) == WANTED
    assert (source.num_classes, source.labels.tolist()) == (3, [0, 0, 1, 1, 2, 2])
    assert source.name(5) == f"{tmp_path / 'x'}[5]"


def test_a_folder_and_old_msgpack_are_read(tmp_path):
    with (
        lmdb.open(str(tmp_path), map_size=1 << 24) as db,
        db.begin(write=True) as write,
    ):
        for i, (image, k) in enumerate(WANTED):
            row = (image.decode(), 1000 * k)  # text, as msgpack wrote bytes before 1.0
            write.put(b"%03d" % i, msgpack.dumps(row))
        write.put(b"__classnum__", msgpack.dumps(3))
    source = lmdb_records.Source(tmp_path)
    assert source.read(0) == WANTED[0]
    with pytest.raises(OSError, match=r"data\.mdb: byte \d+: label 1000 is no class"):
        source.read(2)
    with pytest.raises(
        ValueError, match=r"data\.mdb: byte \d+: label 2000 is no class"
    ):
        source.labels  # noqa: B018


@pytest.mark.parametrize("protocol", range(2, 6))
def test_pickled_pairs_are_read(tmp_path, protocol):
    items = {b"%d" % i: pickle.dumps(row, protocol) for i, row in enumerate(WANTED)}
    items[b"__len__"] = pickle.dumps(len(WANTED), protocol)
    items[b"__keys__"] = pickle.dumps(list(items), protocol)
    source = lmdb_records.Source(sets.database(tmp_path / "x", items))
    assert content(source) == WANTED
    assert source.num_classes == 3


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_something_is_refused(tmp_path):
    items = {
        b"0": pickle.dumps((b"a", 0)),
        b"1": pickle.dumps(Evil(tmp_path / "canary")),
    }
    items[b"__classnum__"] = msgpack.dumps(1)
    source = lmdb_records.Source(sets.database(tmp_path / "x", items))
    assert source.read(0) == (b"a", 0)
    with pytest.raises(OSError, match=r"x: byte \d+: pickle, byte .*mkdir"):
        source.read(1)
    assert not (tmp_path / "canary").exists()


def test_images_alone_have_their_labels_in_a_list(tmp_path):
    items = {f"k{i}.jpg".encode(): image for i, (image, _) in enumerate(WANTED)}
    path = sets.database(tmp_path / "x", items)
    rows = [f"k{i}.jpg {k}" for i, (_, k) in enumerate(WANTED)]
    (tmp_path / "labels.txt").write_text("\n".join(reversed(rows)))
    source = lmdb_records.Source(path, labels=tmp_path / "labels.txt")
    assert content(source) == WANTED
    with pytest.raises(
        ValueError, match=r"x: byte \d+: a value that begins b'a'.*labels="
    ):
        lmdb_records.Source(path)
    (tmp_path / "labels.txt").write_text("\n".join(rows[1:]))
    with pytest.raises(ValueError, match=r"5 keys for 6 images, 1 of them without"):
        lmdb_records.Source(path, labels=tmp_path / "labels.txt")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({b"__len__": msgpack.dumps(7)}, "byte 0: 6 images; its __len__ is 7"),
        ({b"__classnum__": msgpack.dumps(99)}, "byte 0: 99 classes of 6 images"),
        (
            {b"__len__": msgpack.dumps("many")},
            r"byte \d+: __len__: msgpack of kind 0xa4",
        ),
        ({b"__len__": pickle.dumps([6])}, r"byte \d+: __len__: a list"),
    ],
)
def test_a_set_that_is_not_what_it_says_is_refused(tmp_path, change, says):
    items = sets.packed(PEOPLE) | change
    with pytest.raises(ValueError, match=rf"x: {says}"):
        lmdb_records.Source(sets.database(tmp_path / "x", items))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (b"\x92", "msgpack of kind -0x1 where an image"),
        (b"\x92\x05\x01", "msgpack of kind 0x5 where an image"),
        (b"\x92\xc4\x09a\x01", "an image of 9 bytes in a value of 5"),
        (b"\x92\xc4\x01a", "msgpack of kind -0x1 where the last integer"),
        (b"\x92\xc4\x01a\xc0", "msgpack of kind 0xc0 where the last integer"),
        (b"\x92\xc4\x01a\x01\x01", "msgpack of kind 0x1 where the last integer"),
        (b"\x92\xc4\x01a\xff", "label -1; wanted"),
        (pickle.dumps((b"a", "b")), "a pickle of something else"),
    ],
)
def test_a_damaged_value_is_an_error_of_its_own(tmp_path, value, says):
    items = sets.packed(PEOPLE) | {b"3": value}
    source = lmdb_records.Source(sets.database(tmp_path / "x", items))
    with pytest.raises(OSError, match=rf"x: byte \d+: {says}"):
        source.read(3)
    assert source.read(4) == WANTED[4]


def test_databases_of_another_kind_are_refused(tmp_path):
    for number, flags in enumerate(({"dupsort": True}, {})):
        path = tmp_path / str(number)
        with lmdb.open(str(path), subdir=False, max_dbs=1, lock=False) as db:
            inner = db.open_db(b"inner", **flags)
            with db.begin(write=True, db=inner) as write:
                write.put(b"0", b"x")
        with pytest.raises(ValueError, match=r"byte \d+: a database within"):
            lmdb_records.Source(path)
    (tmp_path / "x").write_bytes(bytes(9999))
    with pytest.raises(ValueError, match="byte 16: no LMDB file of data version 1"):
        lmdb_records.Source(tmp_path / "x")
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(ValueError, match="byte 0: an empty file"):
        lmdb_records.Source(tmp_path / "x")
