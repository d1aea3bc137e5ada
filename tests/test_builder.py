"""TFDS's own builder over any source, with and without Beam."""

import importlib.util

import pytest

from jaxface import assembly
from jaxface.data import builder, decode
from jaxface.data.sources import array_record

LINE = "synthetic(identities=3, per_identity=2, size=24)"


def check(path):
    """Every image is there once, under its name, with its label."""
    source, found = assembly.flow(LINE), array_record.Source(path)
    rows = [found._features(k) for k in range(len(found))]
    place = {row["name"][0].decode(): k for k, row in enumerate(rows)}
    assert len(place) == len(found) == len(source) == 6
    for i in range(6):
        image, label = found.read(place[source.name(i)])
        assert (decode.pixels(image) == source.read(i)[0]).all()
        assert label == source.read(i)[1]
    assert (found.num_classes, found.color) == (3, "rgb")


def test_a_builder_writes_every_image_once(tmp_path):
    made = builder.build(assembly.flow, LINE, name="people", out=tmp_path)
    assert made.info.splits["train"].num_examples == 6
    check(tmp_path / "people" / "1.0.0")


@pytest.mark.slow
@pytest.mark.skipif(
    not importlib.util.find_spec("apache_beam"),
    reason="Apache Beam is not installed: its pins are older than ours",
)
def test_beam_writes_every_image_once(tmp_path):
    options = ["--runner=DirectRunner"]
    builder.build(assembly.flow, LINE, name="people", out=tmp_path, beam=options)
    check(tmp_path / "people" / "1.0.0")


@pytest.mark.skipif(
    bool(importlib.util.find_spec("apache_beam")), reason="Apache Beam is installed"
)
def test_without_beam_the_extra_is_named(tmp_path):
    with pytest.raises(ImportError, match=r"pip install jaxface\[beam\]"):
        builder.build(assembly.flow, LINE, name="people", out=tmp_path, beam=[])
