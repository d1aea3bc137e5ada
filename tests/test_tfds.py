"""TFDS sets: labels of each kind, names, slices; nothing unprepared is fetched."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from jaxface.data import prepared
from jaxface.data.sources import tfds as source

PEOPLE = [b"Zoe", b"Ann", b"Zoe", b"Bob", b"Ann"]


def write(path, label, labels, *, format="array_record"):
    """Write a data set of TFDS: the image of record i is the bytes of i."""
    path.mkdir(parents=True)
    name = path / f"{path.parent.name}-test.{format}-00000-of-00001"
    writer = array_record_module.ArrayRecordWriter(str(name), "group_size:1")
    for i, value in enumerate(labels):
        writer.write(prepared.serialize({"image": b"%d" % i, "who": value}))
    writer.close()
    tfds.folder_dataset.write_metadata(
        data_dir=path,
        features={"image": tfds.features.Image(), "who": label},
        split_infos=[
            tfds.core.SplitInfo(name="test", shard_lengths=[len(labels)], num_bytes=0)
        ],
        check_data=False,
    )
    return path


def test_class_labels_keep_their_names(tmp_path):
    label = tfds.features.ClassLabel(names=["a", "b", "c", "d"])
    path = write(tmp_path / "set" / "1.0.0", label, [3, 1, 0, 3])
    found = source.Source(path, split="test")
    assert (found.classes, found.num_classes, found.color) == (tuple("abcd"), 4, "rgb")
    assert [found.read(i) for i in (3, 0, 1)] == [(b"3", 3), (b"0", 3), (b"1", 1)]
    assert found.labels.tolist() == [3, 1, 0, 3]
    assert found.labels.dtype == np.int32
    unnamed = write(
        tmp_path / "n" / "1.0.0", tfds.features.ClassLabel(num_classes=4), [3]
    )
    assert not hasattr(source.Source(unnamed, split="test"), "classes")


def test_labels_that_are_text_are_sorted_as_lfw_has_them(tmp_path):
    path = write(tmp_path / "lfw" / "1.0.0", tfds.features.Text(), PEOPLE)
    found = source.Source(path, split="test")
    assert found.classes == ("Ann", "Bob", "Zoe")
    assert [found.read(i)[1] for i in range(5)] == [2, 0, 2, 1, 0]
    assert found.labels.tolist() == [2, 0, 2, 1, 0]


def test_whole_numbers_count_classes_and_negative_ones_are_refused(tmp_path):
    number = tfds.features.Scalar(np.int64)
    path = write(tmp_path / "a" / "1.0.0", number, [5, 0, 2])
    found = source.Source(path, split="test", label="who")
    assert (found.num_classes, found.read(0)) == (6, (b"0", 5))
    path = write(tmp_path / "b" / "1.0.0", number, [5, -1, 2])
    with pytest.raises(ValueError, match="image 1 has label -1"):
        source.Source(path, split="test", label="who")


def test_a_named_set_and_a_slice_of_its_split(tmp_path):
    label = tfds.features.ClassLabel(num_classes=9)
    write(tmp_path / "faces" / "1.0.0", label, range(9))
    part = source.Source("faces", data_dir=tmp_path, split="test[3:5]")
    assert [part.read(i) for i in range(len(part))] == [(b"3", 3), (b"4", 4)]
    assert part.name(1).endswith("faces-test.array_record-00000-of-00001[4]")
    with pytest.raises(ValueError, match=r"split 'train' unknown; .*known: test"):
        source.Source("faces", data_dir=tmp_path)
    with pytest.raises(ValueError, match="label feature 'whom' unknown; did you mean"):
        source.Source("faces", data_dir=tmp_path, split="test", label="whom")


def test_a_label_beyond_the_classes_is_an_unreadable_record(tmp_path):
    label = tfds.features.ClassLabel(num_classes=3)
    path = write(tmp_path / "set" / "1.0.0", label, [0, 7, 1])
    found = source.Source(path, split="test")
    with pytest.raises(OSError, match=r"-00001\[1\]: label 7; wanted 0 \.\. 2"):
        found.read(1)
    with pytest.raises(ValueError, match="image 1 has label 7"):
        _ = found.labels


def test_what_is_not_prepared_is_not_fetched(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lfw is not prepared in .*nothing is"):
        source.Source("lfw", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no TFDS data set"):
        source.Source(tmp_path)


def test_tfrecord_sets_name_the_conversion(tmp_path):
    label = tfds.features.ClassLabel(num_classes=3)
    path = write(tmp_path / "set" / "1.0.0", label, [0], format="tfrecord")
    with pytest.raises(ValueError, match=r"of tfrecord files.*tfds convert_format"):
        source.Source(path, split="test")
