"""A teacher in whole runs: learned from, seen rightly, and never part of the state."""

import contextlib
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny
from conftest import ROOT

from jaxface import assembly, evaluation, experiment

MODEL = "iresnet(stages=(1,), widths=(4,), dim=8{})"


def recipe(steps=8, **changes):
    c = tiny.recipe()
    c.data.ops = "decode|normalize"
    c.model.name = MODEL.format("")
    c.train.length = f"{steps} steps"
    c.eval.every = c.checkpoint.every = "4 steps"
    c.mesh.devices, c.eval.embed = 1, "output"
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return c


def taught(workdir, line="distill.cosine(weight=3.0)", **changes):
    given = {"seed": 1, "loss__also": line, "distill__workdir": str(workdir)}
    return recipe(**{**given, "distill__step": "latest", **changes})


def train(c, workdir):
    state = experiment.train(assembly.build(c), workdir)
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return jax.device_get(state), [row for row in rows if "loss" in row]


def column(rows, name):
    return np.array([row[name] for row in rows])


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A teacher, trained for four steps."""
    workdir = tmp_path_factory.mktemp("teacher")
    train(recipe(4), workdir)
    return workdir


def first_batch(c):
    run = assembly.build(c)
    with contextlib.closing(run.loader(0)) as loader:
        return next(experiment.batches_of(run, loader))


def embedded(workdir):
    """What the teacher says of every training image."""
    run = assembly.build(experiment.saved_config(workdir))
    _, variables = experiment.restore(run, workdir, step="latest")
    return evaluation.embedder(run, variables)(run.source)


def test_a_network_comes_nearer_to_its_teacher_and_resumes_to_the_bit(own, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    c = taught(own, "", loss__name="distill.cosine", loss__margin="")
    c.optim.name, c.optim.lr = "adam", 0.01
    state, rows = train(c, whole)
    cosine = column(rows, "teacher_cosine")
    assert cosine[-2:].mean() > cosine[:2].mean() + 0.1
    np.testing.assert_allclose(column(rows, "loss"), 1 - cosine, rtol=1e-4)
    # nothing of the teacher is in the state, so nothing of it is saved
    plain = jax.eval_shape(assembly.build(recipe(optim__name="adam")).init)
    assert jax.tree.structure(plain.params) == jax.tree.structure(state.params)
    assert state.head == state.margin_params == state.margin_state == {}
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "8")
    again, rows_again = train(c, cut)
    equal(again, state)
    assert rows_again == rows


@pytest.mark.slow
def test_soft_labels_are_the_same_on_eight_devices(own, tmp_path):
    line = "distill.logits(temperature=2.0, scale=16.0, weight=0.5)"
    curves = []
    for how, n in (("jit", 1), ("jit", 8), ("pmap", 8)):
        c = taught(own, line, mesh__devices=n, mesh__how=how, train__length="4 steps")
        _, rows = train(c, tmp_path / f"{how}{n}")
        curves.append(column(rows, "loss"))
        assert "distill.logits/agreement" in rows[0]
        parts = column(rows, "softmax/loss"), column(rows, "distill.logits/loss")
        np.testing.assert_allclose(curves[-1], parts[0] + 0.5 * parts[1], rtol=1e-4)
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-4)
    np.testing.assert_allclose(curves[2], curves[0], rtol=1e-4)


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_a_file_of_embeddings_says_what_the_network_says(own, tmp_path, suffix):
    rows = embedded(own)
    path = tmp_path / f"rows.{suffix}"
    np.save(path, rows) if suffix == "npy" else np.savez(path, rows)
    live = first_batch(taught(own))
    read = first_batch(taught("", distill__cache=str(path)))
    np.testing.assert_array_equal(live["example"], read["example"])
    assert live["teacher"].shape == (16, 8)
    np.testing.assert_allclose(live["teacher"], read["teacher"], rtol=1e-3, atol=1e-4)


def test_relations_are_not_cut_into_parts(own):
    for line, said in (("relational", "a loss over pairs would see"), ("cosine", "")):
        c = taught(own, f"distill.{line}(weight=1.0)", train__microbatches=2)
        with (
            pytest.raises(ValueError, match=said) if said else contextlib.nullcontext()
        ):
            assembly.build(c)


@pytest.mark.slow
def test_the_command_writes_what_a_cache_reads(own, tmp_path):
    c = experiment.saved_config(own)
    for suffix in ("npy", "npz"):
        path = tmp_path / f"rows.{suffix}"
        done = subprocess.run(
            [sys.executable, "launch/embed.py", f"--workdir={own}", f"--out={path}",
             f"--source={c.data.source}"],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        read = first_batch(taught("", distill__cache=str(path)))
        live = first_batch(taught(own))
        np.testing.assert_allclose(
            live["teacher"], read["teacher"], rtol=1e-3, atol=1e-4
        )
    source, found = assembly.flow(c.data.source), np.load(path)
    assert found["label"].tolist() == source.labels.tolist()
    assert found["name"].tolist() == [source.name(i) for i in range(len(source))]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rows.npy", "rows.npz"]


def test_a_teacher_sees_its_own_colours_and_range(own):
    here = "normalize(mean=(9.0, 30.0, 90.0), std=64.0)"
    c = taught(own)
    c.model.name = MODEL.format(", color='bgr', mean=(9.0, 30.0, 90.0), std=64.0")
    c.data.ops = c.data.eval_ops = f"decode|bgr|{here}"
    there = first_batch(taught(own))
    found = first_batch(c)
    assert np.abs(found["image"] - there["image"]).max() > 0.1
    np.testing.assert_allclose(found["teacher"], there["teacher"], atol=1e-4)


def test_a_teacher_needs_no_training_images_and_no_protocols(own, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(own, moved)
    c = json.loads((moved / "config.json").read_text())
    c["data"]["source"], c["eval"]["sets"] = "folder(path='gone')", {"x": "gone"}
    (moved / "config.json").write_text(json.dumps(c))
    batch = first_batch(taught(moved))
    np.testing.assert_array_equal(batch["teacher"], first_batch(taught(own))["teacher"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss__also": ""}, "no loss learns from it"),
        ({"distill__workdir": ""}, "learns from a teacher; set distill.workdir"),
        ({"distill__cache": "x.npy"}, "two teachers"),
        (
            {"distill__workdir": "", "distill__cache": "x.npy"}
            | {"loss__also": "distill.logits(weight=1.0)"},
            "has embeddings only",
        ),
    ],
)
def test_a_loss_and_its_teacher_come_together(own, changes, words):
    with pytest.raises(ValueError, match=words):
        assembly.build(taught(own, **changes))


def test_a_teacher_that_does_not_fit_is_refused(own, tmp_path):
    c = taught(own)
    c.data.ops = c.data.eval_ops = "decode|resize(24)|normalize"
    with pytest.raises(ValueError, match=r"for images of \(16, 16, 3\), this run's"):
        first_batch(c)
    c = taught(own, "distill.logits(weight=1.0)")
    c.data.source = c.data.source.replace("identities=6", "identities=7")
    with pytest.raises(ValueError, match="knows 6 people, and this run's 7"):
        first_batch(c)
    with pytest.raises(FileNotFoundError, match=r"no run in .*gone"):
        first_batch(taught(tmp_path / "gone"))
    for rows, words in ((np.ones((3, 8)), "wanted a row for each"), (None, "no ")):
        path = tmp_path / f"{words[:2]}.npy"
        if rows is not None:
            np.save(path, rows)
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            first_batch(taught("", distill__cache=str(path)))
