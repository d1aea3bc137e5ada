"""TFRecord against TensorFlow's own writer and reader."""

import os
import struct

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxface.data import crc32c, decode, prepared
from jaxface.data.sources import synthetic, tfrecord


def bitwise(data):
    """CRC-32C, bit by bit."""
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


def test_the_check_values_of_rfc_3720():
    assert crc32c.crc(b"123456789") == 0xE3069283
    assert crc32c.crc(bytes(32)) == 0x8A9136AA
    assert crc32c.crc(b"\xff" * 32) == 0x62A8AB43
    assert crc32c.crc(bytes(range(32))) == 0x46DD794E


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.binary(max_size=80), st.sampled_from([0, 1, 2, 2045, 2048, 4095, 4100]))
def test_crc_is_the_bitwise_one_at_any_length(data, before):
    data = bytes(before) + data
    assert crc32c.crc(memoryview(data)) == bitwise(data)
    if len(data) >= 4:
        rows = np.frombuffer(data[-8:], np.uint8)[None]
        assert crc32c.masked_rows(rows)[0] == crc32c.masked(data[-8:])


def message(**features):
    made = {}
    for name, value in features.items():
        if isinstance(value, bytes):
            one = tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        elif isinstance(value, float):
            one = tf.train.Feature(float_list=tf.train.FloatList(value=[value]))
        else:
            value = value if isinstance(value, list) else [value]
            one = tf.train.Feature(int64_list=tf.train.Int64List(value=value))
        made[name.replace("__", "/")] = one
    features = tf.train.Features(feature=made)
    return tf.train.Example(features=features).SerializeToString()


def write(path, messages):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for one in messages:
            writer.write(one)
    return path


IMAGES = [bytes([i]) * (7 * i + 1) for i in range(6)]
LABELS = [0, 2, 1, 1, 0, 2]
WANTED = list(zip(IMAGES, LABELS, strict=True))
MESSAGES = [message(image=i, label=k, height=3, score=0.5) for i, k in WANTED]


def content(source):
    return [source.read(i) for i in range(len(source))]


def test_what_tensorflow_writes_is_read(tmp_path):
    path = write(tmp_path / "a.tfrecord", MESSAGES)
    for _ in range(2):  # without an index, and with one
        source = tfrecord.Source(path)
        assert content(source) == WANTED
        assert (source.num_classes, source.damaged) == (3, 0)
        assert source.labels.tolist() == LABELS
        assert (tmp_path / "a.tfrecord.index").exists()
    assert sorted(os.listdir(tmp_path)) == ["a.tfrecord", "a.tfrecord.index"]
    assert source.name(0) == f"{path}@0"
    with pytest.raises(AttributeError, match="numbers"):
        source.classes  # noqa: B018


def test_shards_are_read_in_order_by_folder_or_pattern(tmp_path):
    for k in range(3):
        name = f"faces-train.tfrecord-{k:05d}-of-00003"
        write(tmp_path / name, MESSAGES[3 * k : 3 * k + 3])  # the last is empty
    for path in (tmp_path, tmp_path / "faces-train*", tmp_path / "*-of-00003"):
        assert content(tfrecord.Source(path)) == WANTED
    (tmp_path / "faces-train.tfrecord-00001-of-00003").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 shards of .* are missing"):
        tfrecord.Source(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no TFRecord files at .*x"):
        tfrecord.Source(tmp_path / "x")


def test_features_of_other_names(tmp_path):
    rows = [message(image__encoded=i, image__class__label=k) for i, k in WANTED]
    path = write(tmp_path / "a.tfrecord", rows)
    names = {"image": "image/encoded", "label": "image/class/label"}
    assert content(tfrecord.Source(path, **names)) == WANTED
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"features \['image/class/label', 'im.*im"
        ):
            tfrecord.Source(path)
    assert content(tfrecord.Source(path, **names)) == WANTED


def test_labels_may_be_names(tmp_path):
    who = [b"bo", b"cy", b"\xc3\xa9", b"\xff"]
    for k in range(2):
        rows = [message(image=b"x", label=name) for name in who[k::2]]
        write(tmp_path / f"{k}.tfrecord", rows)
    for _ in range(2):
        source = tfrecord.Source(tmp_path)
        assert source.classes == ["bo", "cy", "é", "\udcff"]
        assert source.labels.tolist() == [0, 2, 1, 3]
        assert [label for _, label in content(source)] == [0, 2, 1, 3]
    write(tmp_path / "2.tfrecord", MESSAGES)
    with pytest.raises(ValueError, match=r"2\.tfrecord, byte 0: labels are numbers"):
        tfrecord.Source(tmp_path)
    write(tmp_path / "2.tfrecord", [*rows, *MESSAGES])
    with pytest.raises(ValueError, match="some labels are text, some numbers"):
        tfrecord.Source(tmp_path)


BAD = [
    message(image=b"x"),
    message(label=1),
    message(image=b"x", label=[1, 2]),
    message(image=5, label=1),
    message(image=b"x", label=-1),
    message(image=b"x", label=2**31),
    message(image=b"x", label=1.0),
    b"\x0a\xff",
]


def test_records_that_are_no_faces_are_left_out_and_counted(tmp_path):
    path = write(tmp_path / "a.tfrecord", [*BAD, *MESSAGES, *BAD])
    for _ in range(2):
        source = tfrecord.Source(path)
        assert content(source) == WANTED
        assert source.damaged == 2 * len(BAD)


def test_every_flipped_byte_is_noticed(tmp_path):
    path = write(tmp_path / "a.tfrecord", MESSAGES[:2])
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        in_length = at < 12 or 0 <= at - 16 - len(MESSAGES[0]) < 12
        if in_length:
            with pytest.raises(ValueError, match=r"a\.tfrecord, byte \d+: "):
                tfrecord.Source(path)
        else:
            source = tfrecord.Source(path, num_classes=3)
            assert (len(source), source.damaged) == (1, 1)
        (tmp_path / "a.tfrecord.index").unlink(missing_ok=True)


def test_damage_after_the_index_was_made_is_an_error_of_the_record(tmp_path):
    path = write(tmp_path / "a.tfrecord", MESSAGES)
    tfrecord.Source(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:20] + b"?" + whole[21:])
    source = tfrecord.Source(path)
    with pytest.raises(OSError, match=r"a\.tfrecord@0: byte 12: the record's checksum"):
        source.read(0)
    assert source.read(1) == WANTED[1]


def test_an_index_of_other_records_does_not_decide(tmp_path):
    path = write(tmp_path / "a.tfrecord", MESSAGES)
    tfrecord.Source(path)
    write(path, [message(image=i, label=2 - k, height=3, score=0.5) for i, k in WANTED])
    with pytest.raises(
        OSError, match=r"a\.tfrecord@0: label 2, in its index 0; delete .*\.index"
    ):
        tfrecord.Source(path).read(0)
    write(path, MESSAGES[:3])  # of another size
    assert content(tfrecord.Source(path)) == WANTED[:3]


def test_an_index_that_cannot_be_written_stays_in_memory(tmp_path, monkeypatch):
    path = write(tmp_path / "a.tfrecord", MESSAGES)
    (tmp_path / "a.tfrecord.index").write_text("of another program")
    assert content(tfrecord.Source(path)) == WANTED
    assert (tmp_path / "a.tfrecord.index").read_text() == "of another program"
    (tmp_path / "a.tfrecord.index").unlink()

    def refuse(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr(os, "replace", refuse)
    assert content(tfrecord.Source(path)) == WANTED
    assert os.listdir(tmp_path) == ["a.tfrecord"]


@pytest.mark.parametrize("end", range(1, 60, 7))
def test_a_damaged_index_is_refused(tmp_path, end):
    path = write(tmp_path / "a.tfrecord", MESSAGES)
    tfrecord.Source(path)
    index = tmp_path / "a.tfrecord.index"
    whole = index.read_bytes()
    index.write_bytes(whole[:-end])
    with pytest.raises(ValueError, match=r"a\.tfrecord\.index, byte \d+: .*delete it"):
        tfrecord.Source(path)
    index.write_bytes(whole.replace(struct.pack("<q", 0), struct.pack("<q", 2**40)))
    with pytest.raises(ValueError, match=r"a\.tfrecord\.index, byte \d+: .*delete it"):
        tfrecord.Source(path)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "byte 0: no records"),
        (b"\x1f\x8b" + bytes(50), "byte 0: compressed by gzip"),
        (bytes(50), "byte 0: no record, or a damaged length"),
        (struct.pack("<Q", 2**63) + bytes(50), "byte 0: no record, or a damaged"),
        (
            struct.pack("<QI", 99, crc32c.masked(struct.pack("<Q", 99))) + bytes(20),
            "byte 0: the last record is cut short",
        ),
        (b"short", "byte 0: the last record is cut short"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path, data, says):
    (tmp_path / "a.tfrecord").write_bytes(data)
    with pytest.raises(ValueError, match=rf"a\.tfrecord, {says}"):
        tfrecord.Source(tmp_path / "a.tfrecord")


def test_labels_beyond_the_images_must_be_meant(tmp_path):
    path = write(tmp_path / "a.tfrecord", [*MESSAGES, message(image=b"x", label=99)])
    with pytest.raises(
        ValueError, match=r"label 99 of 7 images, with num_classes=None"
    ):
        tfrecord.Source(path)
    assert tfrecord.Source(path, num_classes=100).num_classes == 100
    with pytest.raises(ValueError, match="label 99 of 7 images, with num_classes=50"):
        tfrecord.Source(path, num_classes=50)


# --- data sets of TFDS --------------------------------------------------------


def prepared_set(tmp_path):
    faces = synthetic.Source(identities=3, per_identity=4, size=16)
    chosen = {"images": np.arange(12), "labels": np.repeat([0, 1, 2], 4)}
    told = {"name": "faces", "format": "tfrecord", "classes": ("ann", "bob", "cy")}
    prepared.write(faces, tmp_path, **chosen, **told)
    return faces, tmp_path / "faces" / prepared.VERSION


def test_a_prepared_set_opens_with_its_names_at_any_level(tmp_path):
    faces, directory = prepared_set(tmp_path)
    for path in (tmp_path, tmp_path / "faces", directory):
        found = tfrecord.Source(path)
        assert (list(found.classes), found.color) == (["ann", "bob", "cy"], "rgb")
        assert found.num_classes == 3
        assert found.labels.tolist() == np.repeat([0, 1, 2], 4).tolist()
        for i in range(12):
            record, label = found.read(i)
            assert label == faces.read(i)[1]
            assert (decode.pixels(record) == decode.pixels(faces.read(i)[0])).all()
    # the second time from the `.index` beside the shard, which counts as no shard
    assert list(directory.glob("*.index"))


def test_it_is_what_tfds_reads(tmp_path):
    _, directory = prepared_set(tmp_path)
    ours = tfrecord.Source(directory)
    builder = tfds.builder_from_directory(directory)
    theirs = builder.as_dataset(split="train", shuffle_files=False)
    for i, one in enumerate(theirs.as_numpy_iterator()):
        record, label = ours.read(i)
        assert label == one["label"]
        assert (decode.pixels(record) == one["image"]).all()
    assert i == 11


def test_a_data_set_that_is_not_whole_is_refused(tmp_path):
    _, directory = prepared_set(tmp_path)
    with pytest.raises(ValueError, match="split 'test' unknown"):
        tfrecord.Source(directory, split="test")
    (shard,) = directory.glob("*.tfrecord-*")
    data = shard.read_bytes()
    last = tfrecord.Source(shard, image="image")._at[-1]
    shard.with_name(shard.name + ".index").unlink()
    shard.write_bytes(data[:last])
    with pytest.raises(ValueError, match="has 11 records; the metadata says 12"):
        tfrecord.Source(directory)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match="no such files"):
        tfrecord.Source(directory)
