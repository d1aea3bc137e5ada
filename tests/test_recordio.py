"""RecordIO against an independent writer, by the letter of dmlc-core and MXNet."""

import importlib
import io
import pathlib
import struct
import types

import numpy as np
import pytest
import sets
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxface.data import decode, records
from jaxface.data.sources import recordio

PEOPLE = [[b"a", b"bb"], [b"ccc", b"dddd", b"e" * 9], [b"f\0" * 50]]


def content(source):
    return [source.read(i) for i in range(len(source))]


WANTED = [(image, k) for k, images in enumerate(PEOPLE) for image in images]


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("classes", [None, 3])
def test_insightface_sets_are_read(tmp_path, as_list, classes):
    source = recordio.Source(
        sets.write_set(
            tmp_path, sets.insightface(PEOPLE, as_list=as_list), classes=classes
        )
    )
    assert content(source) == WANTED
    assert (source.num_classes, source.color) == (3, "rgb")
    assert source.labels.tolist() == [label for _, label in WANTED]
    assert source.name(4) == f"{tmp_path / 'train.rec'}[5]"


def test_record_0_may_come_first_and_keys_in_any_order(tmp_path):
    found = sets.insightface(PEOPLE)
    shuffled = {k: found[k] for k in np.random.default_rng(0).permutation(len(found))}
    assert content(recordio.Source(sets.write_set(tmp_path, shuffled))) == WANTED


def test_labels_are_the_images_own_where_identities_are_in_another_order(tmp_path):
    source = recordio.Source(
        sets.write_set(tmp_path, sets.insightface(PEOPLE, labels=[2, 0, 1]))
    )
    assert source.labels.tolist() == [2, 2, 0, 0, 0, 1]
    assert [label for _, label in content(source)] == source.labels.tolist()


def test_identities_that_do_not_fit_do_not_decide(tmp_path):
    found = sets.insightface(PEOPLE)
    found[8] = sets.header([3, 5])  # the second person's last image is nobody's
    source = recordio.Source(sets.write_set(tmp_path, found))
    assert source.labels.tolist() == [label for _, label in WANTED]


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("keys", [range(6), range(10, 70, 10), (5, 3, 9, 0, 1, 2)])
def test_plain_records_are_images_in_the_order_of_the_index(tmp_path, as_list, keys):
    found = {
        key: sets.header([label, 7.0] if as_list else label) + image
        for key, (image, label) in zip(keys, WANTED, strict=True)
    }
    sets.write_set(tmp_path, found, name="mine")
    source = recordio.Source(tmp_path / "mine.rec")
    assert content(source) == WANTED
    assert source.num_classes == 3
    assert source.labels.tolist() == [label for _, label in WANTED]
    assert source.name(0).endswith(f"mine.rec[{keys[0]}]")


def test_records_of_several_parts_are_joined(tmp_path):
    images = [
        b"",
        b"x",
        b"1234",
        b"12345678" + sets.WORD,
        sets.WORD,
        sets.WORD * 3 + b"y",
        b"z" + sets.WORD,
    ]
    people = [
        [
            b"first",
            *images,
            sets.WORD[:3],
            b"abcd" + sets.WORD + b"efgh" + sets.WORD + b"i",
        ]
    ]
    found = sets.insightface(people)
    source = recordio.Source(sets.write_set(tmp_path, found))
    assert [image for image, _ in content(source)] == people[0]
    kinds = {k for k in (tmp_path / "train.rec").read_bytes()[7::4] if k >> 5}
    assert kinds >= {1 << 5, 2 << 5, 3 << 5}


def test_a_label_in_a_record_of_parts_is_found(tmp_path):
    # the number of the record, in its header, is the magic number itself
    found = {
        1: struct.pack("<IfQQ", 0, 0.0, sets.MAGIC, 0) + b"a",
        2: sets.header(1) + b"b",
    }
    source = recordio.Source(sets.write_set(tmp_path, found))
    assert source.labels.tolist() == [0, 1]
    assert content(source) == [(b"a", 0), (b"b", 1)]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(
        st.sampled_from([sets.WORD, b"x", b"1234", b"\0\0", sets.WORD[:2]]), max_size=9
    )
)
def test_our_frames_are_those_of_the_independent_writer(parts):
    record = b"".join(parts)
    assert records.frame(record) == sets.frames(record)
    assert records.read(b"pad!" + sets.frames(record) + b"more", 4) == record


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.data())
def test_an_image_is_what_its_unpacked_record_holds(data):
    labels = data.draw(st.one_of(st.integers(0, 9), st.lists(st.integers(0, 9))))
    if labels == []:
        labels = 0
    image = b"".join(data.draw(st.lists(st.sampled_from([sets.WORD, b"x", b"1234"]))))
    file = bytearray(b"pad!" + sets.frames(sets.header(labels) + image) + b"more")
    for at in data.draw(st.lists(st.integers(0, len(file) - 1), max_size=2)):
        file[at] = data.draw(st.integers(0, 255))

    def told(read):
        try:
            return read(bytes(file), 4)
        except ValueError as error:
            return str(error)

    wanted, found = told(records.unpacked), told(records.image_at)
    if not isinstance(wanted, str):
        wanted = float(wanted[0][0]), wanted[1]
    np.testing.assert_equal(found, wanted)  # NaN is NaN


def test_identities_beyond_what_float32_holds_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(recordio, "_EXACT", 8)
    found = sets.insightface(PEOPLE)
    n = len(WANTED)
    found[0] = sets.header([n + 3, n + 6])  # rounded: two off
    source = recordio.Source(sets.write_set(tmp_path, found))
    assert content(source) == WANTED
    assert source.labels.tolist() == [label for _, label in WANTED]


@pytest.mark.parametrize("block", [16, 17, 64])
def test_the_index_is_read_alike_in_blocks_of_any_size(tmp_path, monkeypatch, block):
    monkeypatch.setattr(records, "_BLOCK", block)
    rng = np.random.default_rng(0)
    rows = rng.integers(10 ** rng.integers(1, 6, (200, 2)))
    path = tmp_path / "x.idx"
    for end, last in (("\n", "\n"), ("\n", ""), ("\r\n", "\r\n")):
        text = end.join(f"{k}\t{at}" for k, at in rows) + last
        path.write_bytes(text.encode())
        keys, offsets = records.read_index(path)
        np.testing.assert_array_equal(np.stack([keys, offsets], 1), rows)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0\t0\n1 88\n", "byte 4: wanted `key<tab>offset`, got b'1 88'"),
        ("0\t0\n\n1\t88\n", "byte 4: wanted"),
        ("0\t0\n1\t-4\n", "byte 4: wanted"),
        ("0\t0\n1\t\n", "byte 4: wanted"),
        ("0\t0\n1\t2\t3\n", "byte 4: wanted"),
        ("a\t0\n", "byte 0: wanted"),
        ("0\t" + "9" * 19, "byte 0: wanted"),
        ("0\t0\n1\t9000\n", "key 1 starts at byte 9000; the records have"),
        ("", "byte 0: no lines"),
        ("1" * 3_000_000, "byte 0: a line of"),
        ("0\t0\n1\t0\n1\t0\n", "keys are not 0 .. 2, each once"),
        ("1\t0\n1\t0\n", "names a key twice"),
    ],
)
def test_a_broken_index_is_refused(tmp_path, text, says):
    (
        sets.write_set(tmp_path, {0: sets.header([2, 3]), 1: sets.header(0) + b"a"})
        / "train.idx"
    ).write_text(text)
    with pytest.raises(ValueError, match=r"train\.(idx|rec)") as caught:
        recordio.Source(tmp_path)
    assert says in str(caught.value)


def damaged(at, value):
    content = bytearray(sets.frames(sets.header(0) + b"abcd"))
    content[at : at + len(value)] = value
    return bytes(content)


@pytest.mark.parametrize(
    ("first", "says"),
    [
        (damaged(0, b"?"), "byte 0: wanted the magic number, got 3f23d7ce"),
        (damaged(7, b"\x40"), "byte 0: a frame of kind 2 at part 0"),
        (damaged(7, b"\x20"), "byte 36: a frame of kind 0 at part 1"),
        (damaged(6, b"\xff"), "a record of 16711708 bytes;"),
        (damaged(4, b"\x17"), "a record of 23 bytes; its header has 24"),
        (damaged(8, b"\xff\xff\xff\xff"), "4294967295 labels in a record of 28"),
        (damaged(12, struct.pack("<f", 0.5)), "label 0.5; wanted 0, 1, 2"),
        (damaged(12, struct.pack("<f", -1)), "label -1.0; wanted 0, 1, 2"),
        (damaged(12, struct.pack("<f", np.inf)), "label inf; wanted 0, 1, 2"),
        (damaged(12, struct.pack("<f", float("nan"))), "label nan; wanted"),
        (damaged(12, struct.pack("<f", 2)), "label 2, of 2 classes"),
    ],
)
def test_a_damaged_record_is_an_error_of_its_own(tmp_path, first, says):
    folder = sets.write_set(
        tmp_path, {1: sets.header(0) + b"abcd", 2: sets.header(1) + b"b"}, classes=2
    )
    whole = (folder / "train.rec").read_bytes()
    (folder / "train.rec").write_bytes(first + whole[len(first) :])
    source = recordio.Source(folder)
    with pytest.raises(OSError, match=r"train.rec, byte \d+: ") as caught:
        source.read(0)
    assert says in str(caught.value)
    assert source.read(1) == (b"b", 1)
    with pytest.raises(ValueError, match=r"train.rec: "):
        source.labels  # noqa: B018


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"property": "4,112,112"},
            "`property` tells 4 classes, record 0 3 identities",
        ),
        ({"property": "many"}, "wanted `classes,height,width`"),
        ({"property": "999,112,112"}, "no more than the 6 images"),
        ({"classes.txt": "ann\nbob\n"}, "has 2 lines, 2 of them different; wanted 3"),
        ({"classes.txt": "ann\nbob\nann\n"}, "3 lines, 2 of them different"),
        ({"train.rec": ""}, "byte 0: an empty file"),
    ],
)
def test_files_that_disagree_are_refused(tmp_path, change, says):
    folder = sets.write_set(tmp_path, sets.insightface(PEOPLE))
    for name, text in change.items():
        (folder / name).write_text(text)
    with pytest.raises(ValueError, match=says):
        recordio.Source(folder)


@pytest.mark.parametrize(
    "ends", [[0.0, 3.0], [9.0, 8.0], [7.0, 11.0], [7.0, float("nan")]]
)
def test_record_0_is_held_against_the_index(tmp_path, ends):
    found = sets.insightface(PEOPLE)
    found[0] = sets.header(ends)
    with pytest.raises(ValueError, match="record 0 puts identities at"):
        recordio.Source(sets.write_set(tmp_path, found))


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train\.rec"):
        recordio.Source(tmp_path)
    (sets.write_set(tmp_path, sets.insightface(PEOPLE)) / "train.idx").unlink()
    with pytest.raises(FileNotFoundError, match=r"no index at .*train\.idx; MXNet"):
        recordio.Source(tmp_path)


def png(i):
    file = io.BytesIO()
    Image.new("RGB", (4, 3), (i, 2, 3)).save(file, "PNG")
    return file.getvalue()


def faces(items, color="rgb"):
    return types.SimpleNamespace(
        color=color, read=lambda i: items[i], name=lambda i: f"face {i}"
    )


def test_what_is_written_is_read_back(tmp_path):
    items = [(png(i), 9) for i in range(5)]
    order, labels = np.array([4, 0, 3, 1]), np.array([0, 0, 1, 2])
    names = ["ann", "bob\udcff", "cy"]
    recordio.write(
        faces(items), tmp_path / "a", images=order, labels=labels, classes=names
    )
    source = recordio.Source(tmp_path / "a")
    wanted = [(items[i][0], k) for i, k in zip(order, labels, strict=True)]
    assert content(source) == wanted
    assert (source.labels.tolist(), source.classes) == ([0, 0, 1, 2], names)
    assert (tmp_path / "a" / "property").read_text() == "3,3,4\n"
    # and byte for byte what the independent writer makes of it
    people = [[items[4][0], items[0][0]], [items[3][0]], [items[1][0]]]
    found = dict(sorted(sets.insightface(people).items()))
    theirs = sets.write_set(tmp_path / "b", found)
    for name in ("train.rec", "train.idx"):
        assert (tmp_path / "a" / name).read_bytes() == (theirs / name).read_bytes()


@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_arrays_are_written_as_png_in_rgb(tmp_path, color):
    array = np.random.default_rng(0).integers(256, size=(6, 5, 3), dtype=np.uint8)
    source = faces([(array, 0)], color)
    recordio.write(source, tmp_path, images=np.array([0]), labels=np.array([0]))
    found = decode.pixels(recordio.Source(tmp_path).read(0)[0])
    np.testing.assert_array_equal(found, array if color == "rgb" else array[:, :, ::-1])


def test_a_set_that_is_not_finished_is_not_there(tmp_path):
    items = [(png(0), 0), (np.zeros(3), 0)]
    with pytest.raises(ValueError, match="wanted uint8"):
        recordio.write(
            faces(items), tmp_path, images=np.arange(2), labels=np.zeros(2, int)
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("labels", "classes", "says"),
    [
        ([0, 1, 0], None, r"labels \[0, 1, 0\].*in order"),
        ([1, 1, 2], None, "in order"),
        ([0, 2, 2], None, "in order"),
        ([0, 0], None, "3 images, 2 labels"),
        ([0, 0, 1], ["a"], "2 classes, 1 different names"),
        ([0, 0, 1], ["a", "b\nc"], "several lines"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, labels, classes, says):
    given = {"images": np.arange(3), "labels": np.array(labels), "classes": classes}
    with pytest.raises(ValueError, match=says):
        recordio.write(faces([(png(0), 0)] * 3), tmp_path, **given)
    with pytest.raises(ValueError, match="face 0 is encoded and decodes to bgr"):
        recordio.write(
            faces([(png(0), 0)], "bgr"), tmp_path, images=[0], labels=np.array([0])
        )


def readable(source, i):
    try:
        return source.read(i)[1] == i // 50
    except OSError:
        return False


@pytest.fixture
def bench(monkeypatch):
    launch = pathlib.Path(__file__).parent.parent / "launch"
    monkeypatch.syspath_prepend(launch)
    return importlib.import_module("bench_records")


def test_a_sparse_set_of_the_bench_is_a_set(tmp_path, bench):
    bench.generate(tmp_path, count=900, batch=16)
    source = recordio.Source(tmp_path)
    assert (len(source), source.num_classes) == (900, 18)
    there = [i for i in range(900) if readable(source, i)]
    assert there == sorted(bench.first(900, 16))


@pytest.mark.slow
def test_five_million_images_open_within_200_mb(bench):
    rows = {row.unit: row for row in bench.opening(5_000_000, repeats=1)}
    assert rows["MB"].value < 200
