"""The prepared form: written once, resumed, opened by TFDS that knows no jaxface."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from array_record.python.array_record_data_source import ArrayRecordDataSource
from PIL import Image

from jaxface.data import decode, example, prepared
from jaxface.data.sources import array_record, synthetic

SCENES = np.random.default_rng(0).integers(0, 256, (9, 12, 10, 3), np.uint8)


def encoded(k, kind, **options):
    out = io.BytesIO()
    Image.fromarray(SCENES[k]).save(out, kind, **options)
    return out.getvalue()


class Mixed:
    """JPEG, PNG, an array, and files that are no plain JPEG or PNG; some may fail."""

    color, num_classes = "rgb", 3

    def __init__(self, *, broken=()):
        turned = Image.Exif()
        turned[0x0112] = 6
        palette = io.BytesIO()
        Image.fromarray(SCENES[6]).convert("P").save(palette, "png")
        self.broken = broken
        self.records = [
            *(encoded(k, "jpeg") for k in range(3)),
            encoded(3, "png"),
            SCENES[4],
            encoded(5, "webp", lossless=True),
            palette.getvalue(),
            encoded(7, "jpeg", exif=turned),
            encoded(8, "jpeg"),
        ]

    def __len__(self):
        return len(self.records)

    def read(self, i):
        if i in self.broken:
            raise OSError(f"mixed/{i} is gone")
        return self.records[i], 99

    def name(self, i):
        return f"mixed/{i}"


LABELS = np.array([2, 0, 1, 1, 0, 2, 1, 0])
ORDER = np.array([8, 0, 7, 5, 3, 2, 6, 4])


def write(out, source=None, **options):
    told = {"images": ORDER, "labels": LABELS, "classes": ["ann", "bob", "cy"]}
    told |= {"name": "faces", "shard_size": 3} | options
    return prepared.write(source or Mixed(), out, **told)


def test_what_is_written_is_read_in_order_with_the_same_pixels(tmp_path):
    done = write(tmp_path, workers=2)
    assert (done.images, done.reused, done.converted) == (8, 0, 4)
    found, source = array_record.Source(tmp_path / "faces"), Mixed()
    assert found.classes == ("ann", "bob", "cy")
    assert (found.num_classes, found.labels.tolist()) == (3, LABELS.tolist())
    for k, i in enumerate(ORDER):
        record, label = found.read(k)
        wanted = source.records[i]
        if isinstance(wanted, bytes) and decode.is_plain(wanted):
            assert record == wanted
        np.testing.assert_array_equal(decode.pixels(record), decode.pixels(wanted))
        assert decode.is_plain(record)
        assert label == LABELS[k]


def test_a_run_that_was_cut_short_is_continued_and_ends_in_the_same_bytes(tmp_path):
    whole = write(tmp_path / "whole").path
    with pytest.raises(OSError, match="mixed/6 is gone"):
        write(tmp_path / "cut", Mixed(broken=[6]))
    assert not (tmp_path / "cut" / "faces" / "1.0.0").exists()
    with pytest.raises(FileNotFoundError, match="holds no TFDS data set"):
        array_record.Source(tmp_path / "cut")
    # what was finished is not read again
    seen = []
    done = write(tmp_path / "cut", Mixed(broken=ORDER[:6]), progress=seen.append)
    assert (done.reused, sum(seen)) == (2, 8)
    files = sorted(p.name for p in whole.iterdir())
    assert sorted(p.name for p in done.path.iterdir()) == files
    for file in files:
        assert (done.path / file).read_bytes() == (whole / file).read_bytes()


def test_a_finished_set_is_kept_and_another_in_its_place_refused(tmp_path):
    write(tmp_path)
    again = write(tmp_path, Mixed(broken=range(9)))
    assert (again.reused, again.images) == (3, 8)
    with pytest.raises(ValueError, match="holds another set; remove it"):
        write(tmp_path, labels=LABELS[::-1])


def test_the_order_of_channels_is_told(tmp_path):
    source = Mixed()
    source.color = "bgr"
    write(tmp_path, source)
    found = array_record.Source(tmp_path)
    assert found.color == "bgr"
    np.testing.assert_array_equal(decode.pixels(found.read(7)[0]), SCENES[4])


def test_an_image_that_cannot_be_decoded_is_named(tmp_path):
    source = Mixed()
    source.records[5] = source.records[5][:40]
    with pytest.raises(ValueError, match=r"mixed/5 cannot be decoded .*; leave it out"):
        write(tmp_path, source)


def test_a_file_name_that_is_no_text_is_kept_byte_by_byte(tmp_path):
    source = Mixed()
    source.name = lambda i: os.fsdecode(b"caf\xe9/%d" % i)
    write(tmp_path, source)
    files = sorted(map(str, (tmp_path / "faces" / "1.0.0").glob("*.array_record-*")))
    for i, record in zip(ORDER, ArrayRecordDataSource(files), strict=True):
        assert b"caf\xe9/%d" % i in record


WRONG = {
    "format": ({"format": "parquet"}, "format 'parquet'; wanted array_record or"),
    "name": ({"name": "Faces 1"}, "name 'Faces 1'; wanted a-z"),
    "coding": ({"classes": ["a", "b", "\udcff"]}, r"UTF-8.*; got \['.udcff'\]"),
    "lengths": ({"labels": LABELS[:7]}, r"labels \(7,\); wanted \[n\] each"),
    "none": ({"images": ORDER[:0], "labels": LABELS[:0]}, "n at least 1"),
    "beyond": ({"images": ORDER + 1}, r"beyond the source's 0 \.\. 8"),
    "gap": ({"labels": np.where(LABELS == 1, 0, LABELS)}, "not 0 .. 2, each at least"),
    "more": ({"classes": ["ann", "bob"]}, r"not 0 \.\. 1"),
    "twice": ({"classes": ["ann", "bob", "ann"]}, "got 'one twice'"),
    "lines": ({"classes": ["ann", "b\nb", "cy"]}, r"line ends; got \['b\\nb'\]"),
    "shard": ({"shard_size": 0}, "shard_size is 0"),
}


@pytest.mark.parametrize(("options", "says"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_say_what_is_wanted(tmp_path, options, says):
    with pytest.raises(ValueError, match=says):
        write(tmp_path, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("label", [0, 1, 127, 128, 2**31, 2**63 - 1, -1, -(2**63)])
def test_a_serialised_example_parses_to_itself(label):
    image = bytes(300)
    found = example.parse(prepared.serialize({"image": image, "label": label}))
    assert (found["image"], found["label"].tolist()) == ([image], [label])


FOREIGN = """
import json, sys
import tensorflow_datasets as tfds
out, rows, raw = sys.argv[1], [], {"image": tfds.decode.SkipDecoding()}
faces = tfds.data_source("faces", data_dir=out, decoders=raw)["train"]
stream = tfds.load("streamed", data_dir=out, split="train", decoders=raw)
shown = tfds.builder_from_directory(out + "/faces/1.0.0").as_data_source("train")
names = shown.dataset_info.features["label"].names
together = zip(faces, stream.as_numpy_iterator(), shown, strict=True)
for one, other, pixels in together:
    assert one == other
    row = one["name"].decode(), names[one["label"]], one["image"].hex()
    rows.append([*row, pixels["image"].tolist()])
assert not [m for m in sys.modules if m.startswith("jaxface")]
print(json.dumps(rows))
"""


@pytest.mark.slow
def test_tfds_opens_both_formats_in_a_process_that_knows_no_jaxface(tmp_path):
    write(tmp_path)
    write(tmp_path, name="streamed", format="tfrecord")
    told = subprocess.run(
        [sys.executable, "-c", FOREIGN, str(tmp_path)],
        check=True,
        capture_output=True,
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    rows = json.loads(told.stdout.splitlines()[-1])
    ours, source = array_record.Source(tmp_path / "faces"), Mixed()
    for k, (name, who, record, shown) in enumerate(rows):
        assert (name, who) == (f"mixed/{ORDER[k]}", ["ann", "bob", "cy"][LABELS[k]])
        assert bytes.fromhex(record) == ours.read(k)[0]
        if record.startswith("89"):  # PNG; decoders of JPEG differ
            np.testing.assert_array_equal(
                decode.pixels(source.records[ORDER[k]]), shown
            )
    assert len(rows) == 8


def test_rendered_people_are_prepared_exactly(tmp_path):
    faces = synthetic.Source(identities=3, per_identity=2, size=24)
    prepared.write(
        faces, tmp_path, images=np.arange(6), labels=faces.labels, classes=None,
        name="people",
    )  # fmt: skip
    found = array_record.Source(tmp_path)
    assert not hasattr(found, "classes")
    for i in range(6):
        np.testing.assert_array_equal(decode.pixels(found.read(i)[0]), faces.read(i)[0])
