"""Sub-centres: who is dominant, who strays, and starting again with one centre."""

import json
import math
import subprocess
import sys

import numpy as np
import oracles
import pytest
import test_finetune as runs
from conftest import ROOT

from jaxface import assembly, experiment, subcenters


def at(*degrees):
    """[N, 2] points of several lengths in these directions."""
    return np.array(
        [
            [(1 + k) * math.cos(math.radians(d)), (1 + k) * math.sin(math.radians(d))]
            for k, d in enumerate(degrees)
        ]
    )


def test_by_hand():
    """Class 0 at 0 and 90 degrees, class 1 at 180 and 270, class 2 without faces."""
    kernel = at(0, 90, 180, 270, 30, 60)
    e, label = at(260, 10, 80, 275, 20), np.array([1, 0, 0, 1, 0])
    found = subcenters.clean(e, label, kernel, centers=2)
    assert found.dominant.tolist() == [0, 1, 0]
    assert found.counts.tolist() == [[2, 1], [0, 2], [0, 0]]
    np.testing.assert_allclose(found.degrees, [10, 10, 80, 5, 20], atol=1e-9)
    np.testing.assert_array_equal(found.kernel, kernel[[0, 3, 4]])
    assert np.flatnonzero(found.degrees > 75).tolist() == [2]


def test_it_is_what_loops_find():
    rng = np.random.default_rng(0)
    N, C, K, D = 60, 5, 3, 4
    e, kernel = rng.normal(size=(N, D)), rng.normal(size=(C * K, D))
    label = rng.integers(0, C, N)
    found = subcenters.clean(e, label, kernel, centers=K)
    cos = [[oracles.cosine(x, w) for w in kernel[c * K : c * K + K]]
           for x, c in zip(e, label, strict=True)]  # fmt: skip
    pairs = list(zip(cos, label, strict=True))
    for c in range(C):
        votes = [row.index(max(row)) for row, own in pairs if own == c]
        assert found.counts[c].tolist() == [votes.count(k) for k in range(K)]
        best = max(range(K), key=votes.count)
        assert found.dominant[c] == best
        for i in np.flatnonzero(label == c):
            assert math.isclose(
                found.degrees[i], math.degrees(math.acos(cos[i][best])), rel_tol=1e-9
            )


@pytest.mark.parametrize(
    ("label", "rows", "said"),
    [
        ([0, 1], 5, r"centers=2; wanted \[N, D\] and \[C \* centers, D\]"),
        ([0, 2], 4, "below the number of classes"),
        ([0], 4, "wanted one per embedding"),
    ],
)
def test_what_does_not_fit_is_refused(label, rows, said):
    with pytest.raises(ValueError, match=said):
        subcenters.clean(
            np.ones((2, 3)), np.array(label), np.ones((rows, 3)), centers=2
        )


def recipe(centers, **changes):
    line = f"softmax(scale=16.0, centers={centers})"
    return runs.recipe(loss__name=line, **changes)


def test_a_growing_head_keeps_all_centers_of_a_person(tmp_path):
    old = runs.faces(tmp_path / "old", {"bob": 1, "cy": 2, "eve": 3})
    new = runs.faces(tmp_path / "new", {"ann": 9, "bob": 1, "eve": 3})
    before = runs.written(tmp_path / "a", recipe(2, data__source=old)).head["kernel"]
    given = {"init__workdir": str(tmp_path / "a"), "init__step": "0", "seed": 1}
    c = recipe(2, data__source=new, init__head="grow", **given)
    head = runs.begin(c, tmp_path).head["kernel"]
    runs.equal(head[2:6], before[[0, 1, 4, 5]])
    other = recipe(3, data__source=new, init__head="grow", **given)
    with pytest.raises(ValueError, match="has 3 centres here and 2 in"):
        runs.begin(other, tmp_path)


def command(script, *given):
    done = subprocess.run(
        [sys.executable, f"launch/{script}.py", *given],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.slow
def test_the_command_makes_a_workdir_to_go_on_from(tmp_path):
    people = runs.faces(tmp_path / "faces", {"ann": 9, "bob": 1, "eve": 3})
    runs.train(recipe(2, data__source=people), tmp_path / "k2")
    flags = (f"--workdir={tmp_path / 'k2'}", f"--out={tmp_path / 'k1'}")
    code, said = command("subcenters", *flags, "--degrees=88")
    assert code == 0, said
    far = json.loads((tmp_path / "k1" / "far.json").read_text())
    assert all(row["degrees"] > 88 for row in far)
    assert 0 < len(far) < 9
    kept = f"{people}|without(path={str(tmp_path / 'k1' / 'far.json')!r})"
    c = recipe(1, data__source=kept, init__head="grow", init__step="latest",
               init__workdir=str(tmp_path / "k1"))  # fmt: skip
    head = runs.begin(c, tmp_path).head["kernel"]
    saved = experiment.saved_config(tmp_path / "k1")
    assert saved.loss.name == "softmax(scale=16.0)"
    assert len(assembly.build(c).source) == 9 - len(far)
    both = runs.train(recipe(2, data__source=people), tmp_path / "k2").head["kernel"]
    for row, pair in zip(head[:3], both[:6].reshape(3, 2, -1), strict=True):
        assert (row == pair).all(axis=1).any()
    code, said = command("subcenters", *flags)
    assert code == 1
    assert "is there already; name a new folder" in said
