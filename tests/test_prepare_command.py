"""launch/prepare.py as people run it."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from test_prepare import ROOT, picture

from jaxface.data.sources import folder, pairs_bin, recordio, tfrecord


def run(tmp_path, *flags):
    line = [sys.executable, str(ROOT / "launch" / "prepare.py"), *flags]
    return subprocess.run(
        line, cwd=tmp_path, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.fixture
def faces(tmp_path):
    for k, name in enumerate(("ann", "bob", "cy", "di")):
        (tmp_path / "raw" / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(picture(3 * k + i)).save(
                tmp_path / "raw" / name / f"{i}.png"
            )
    (tmp_path / "raw" / "di" / "2.png").write_bytes(b"no image")
    return "--source=folder(path='raw')"


@pytest.mark.slow
def test_a_folder_becomes_a_set_that_says_what_is_in_it(tmp_path, faces):
    (tmp_path / "terms.txt").write_text("for tests only")
    (tmp_path / "raw" / "di" / "IMG_1.HEIC").write_bytes(b"of a phone")
    (tmp_path / "raw" / "di" / "notes.txt").write_text("no picture")
    done = run(
        tmp_path, faces, "--out=sets/mine", "--format=recordio", "--verify",
        "--min_images=3", "--licence=terms.txt", "--workers=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "9 images of 3 people" in done.stdout
    found, raw = (
        recordio.Source(tmp_path / "sets" / "mine"),
        folder.Source(tmp_path / "raw"),
    )
    assert [found.read(k) for k in range(9)] == [raw.read(k) for k in range(9)]
    facts = json.loads((tmp_path / "sets" / "mine" / "card.json").read_text())
    assert facts["licence"] == "for tests only"
    assert (sum(facts["dropped"].values()), facts["ignored"]) == (4, 1)
    assert "1 other files: no pictures" in done.stdout
    assert "IMG_1.HEIC" in (tmp_path / "sets" / "mine" / "dropped.csv").read_text()
    assert "launch/prepare.py" in facts["command"]


@pytest.mark.slow
def test_a_set_of_tfrecord_is_verified_and_written_again_where_it_is(tmp_path, faces):
    given = faces, "--out=sets/mine", "--format=tfrecord", "--verify", "--workers=1"
    for _ in range(2):
        done = run(tmp_path, *given)
        assert done.returncode == 0, done.stderr
    found, raw = (
        tfrecord.Source(tmp_path / "sets/mine"),
        folder.Source(tmp_path / "raw"),
    )
    assert [found.read(k) for k in range(11)] == [raw.read(k) for k in range(11)]
    assert list(found.classes) == ["ann", "bob", "cy", "di"]
    assert json.loads((tmp_path / "sets/mine/card.json").read_text())["verified"]


@pytest.mark.slow
def test_a_pack_is_made_by_a_protocol(tmp_path, faces):
    (tmp_path / "raw" / "di" / "2.png").unlink()
    protocol = "--protocol=pairs_sampled(count=8, folds=2)"
    done = run(tmp_path, faces, "--make_pack=x.bin", protocol)
    assert done.returncode == 0, done.stderr
    assert "x.bin: 8 pairs of 64x64, 2 folds" in done.stdout
    assert np.sum(pairs_bin.pairs(tmp_path / "x.bin", folds=2).same) == 4


@pytest.mark.slow
def test_what_is_wrong_is_said_in_one_line(tmp_path, faces):
    done = run(tmp_path, faces, "--make_pack=x.bin", "--align")
    assert done.returncode == 1
    assert done.stderr.startswith("error: a pack is of one prepared --source: first")
    done = run(tmp_path, faces, "--out=sets/MyFaces")
    assert done.returncode == 1  # before an image was looked at
    assert done.stderr.startswith("error: name 'MyFaces'; wanted a-z")
    assert not (tmp_path / "sets").exists()
