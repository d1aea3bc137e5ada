"""People in two sets: planted ones are listed, left out, and joined by merging."""

import csv
import json
import os
import subprocess
import sys

import pytest
import test_finetune as runs
import tiny
from conftest import ROOT
from PIL import Image

from jaxface import assembly, curate
from jaxface.data.sources import recordio, synthetic

HERE = {"PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A workdir with an untrained network, to which only one picture is itself."""
    workdir = tmp_path_factory.mktemp("network")
    runs.written(workdir, tiny.recipe())
    return workdir


def faces(root, people):
    """Write one picture of each person: name -> number."""
    for name, number in people.items():
        (root / name).mkdir(parents=True)
        pixels = synthetic.render(0, number, 0, size=16)
        Image.fromarray(pixels).save(root / name / "0.png")
    return f"folder(path={str(root)!r}, min_images=1)"


def command(network, *given):
    done = subprocess.run(
        [sys.executable, "launch/prepare.py", f"--workdir={network}", *given],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_training_people_of_a_test_set_are_left_out(network, tmp_path):
    train = faces(tmp_path / "train", {"Ann": 1, "bob": 2, "cy": 3, "dan": 4})
    test = faces(tmp_path / "test", {"rob": 2, "eve": 5, "ann_": 6})
    out = tmp_path / "far.json"
    flags = f"--source={train}", f"--list={out}", "--threshold=0.99999"
    (tmp_path / "names.txt").write_text("DAN\n\nzoe\n")
    extra = f"--overlap-with={test}", f"--names-list={tmp_path / 'names.txt'}"
    code, said, error = command(network, *flags, *extra)
    assert code == 0, error
    assert "4 classes (4 images) against 3 images of 3 people" in said
    assert "which 0 of 12 strangers pass\n12 comparisons: 0 false alarms" in said
    rows = {row["class"]: row["why"] for row in json.loads(out.read_text())}
    assert rows.keys() == {"Ann", "bob", "dan"}
    assert rows["Ann"] == "the name ann_"
    assert rows["bob"].startswith("cosine 1.000 with rob, ")
    kept = assembly.flow(f"{train}|without(path={str(out)!r})")
    assert [kept.name(i) for i in range(len(kept))] == [
        str(tmp_path / "train" / "cy" / "0.png")
    ]


@pytest.mark.slow
def test_merged_sets_share_a_person(network, tmp_path):
    sets = {
        "web": faces(tmp_path / "web", {"ann": 1, "bob": 2, "cy": 3}),
        "own": faces(tmp_path / "own", {"a": 4, "b": 2, "c": 5}),
    }
    out = tmp_path / "shared.json"
    merge = [f"--merge={name}:{line}" for name, line in sets.items()]
    code, said, error = command(network, *merge, f"--list={out}", "--threshold=0.99999")
    assert code == 0, error
    assert json.loads(out.read_text()) == [["web/bob", "own/b"]]
    line = said.partition("data.source: ")[2].splitlines()[0]
    both = assembly.flow(line)
    assert both.classes == ["web/ann", "web/bob", "web/cy", "own/a", "own/c"]
    assert both.labels.tolist() == [0, 1, 2, 3, 1, 4]


@pytest.mark.slow
def test_within_one_set_a_threshold_must_be_given(network, tmp_path):
    one = faces(tmp_path / "one", {"ann": 1, "bob": 2, "anna": 1})
    listing = f"--list={tmp_path / 'twice.json'}"
    code, _, error = command(network, f"--source={one}", listing)
    assert code == 1
    assert "within one set nobody is known to be a stranger" in error
    code, said, error = command(
        network, f"--source={one}", listing, "--threshold=0.99999"
    )
    assert code == 0, error
    assert "1.000  ann = anna" in said


@pytest.mark.slow
def test_a_set_is_written_merged_and_without_the_test_people(network, tmp_path):
    web = faces(tmp_path / "web", {"ann": 1, "bob": 2, "cy": 3})
    own = faces(tmp_path / "own", {"a": 1, "b": 2, "c": 5})
    test = faces(tmp_path / "test", {"rob": 2, "eve": 6})
    code, said, error = command(
        network, f"--merge=web:{web}", f"--merge=own:{own}", f"--overlap-with={test}",
        "--threshold=0.99999", f"--out={tmp_path / 'both'}", "--min-images=1",
        "--format=recordio", "--verify",
    )  # fmt: skip
    assert code == 0, error
    assert "4 images of 3 people" in said
    kept = recordio.Source(tmp_path / "both")
    assert [kept.read(i)[1] for i in range(4)] == [0, 0, 1, 2]
    with (tmp_path / "both" / "dropped.csv").open(newline="") as file:
        rows = {r["identity"]: (r["reason"], r["detail"]) for r in csv.DictReader(file)}
    assert rows.keys() == {"web/bob", "own/b"}  # one person: both go
    assert {reason for reason, _ in rows.values()} == {curate.OVERLAP}
    assert all("rob" in detail for _, detail in rows.values())
    facts = json.loads((tmp_path / "both" / "card.json").read_text())
    assert facts["people"]["classes_joined"] == 2
    assert "false alarms expected" in facts["people"]["compared"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--out=set"], "wanted --source=LINE, or --merge=NAME:LINE"),
        (
            ["--source=folder(path='a')"],
            "wanted --out=FOLDER, --make_pack=FILE.bin, or",
        ),
        (["--source=folder(path='a')", "--out=b", "--make-pack=c"], "a pack is of one"),
        (["--source=folder(path='a')", "--out=b", "--overlap-with=c"], "give its"),
        (["--merge=folder(path='a')", "--out=b"], "wanted NAME:LINE, as in web:"),
        (["--merge=a:folder(path='a')", "--out=b"], "--merge was given once"),
        (["--merge=a:b", "--merge=a:c", "--out=b"], "there is a set 'a' before it"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags, said, tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "launch" / "prepare.py", *flags],
        cwd=tmp_path, capture_output=True, text=True, env=os.environ | HERE,
    )  # fmt: skip
    assert (done.returncode, said in done.stderr) == (1, True), done.stderr
    assert not list(tmp_path.iterdir())
