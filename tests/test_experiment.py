"""The whole system in miniature: any mesh, any interruption, any wrong input."""

import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny

from jaxface import assembly, experiment

ROOT = pathlib.Path(__file__).parent.parent


def curve(workdir):
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return np.array([row["loss"] for row in rows if "loss" in row])


def trained(workdir, c):
    """Train in this process and return the loss curve."""
    experiment.train(assembly.build(c), workdir)
    return curve(workdir)


def command(workdir, *flags):
    return [
        *("launch/train.py", f"--config={ROOT}/tests/tiny.py", f"--workdir={workdir}"),
        *("--config.mesh.cpu_devices=1", *flags),
    ]


def start(workdir, *flags, before=""):
    """Start a run as a user does, in a process of its own."""
    code = (
        "import jax, runpy, sys\n"
        f"jax.config.update('jax_compilation_cache_dir', '{ROOT}/.jax_cache')\n"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)\n"
        f"{before}\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    line = f"import sys; sys.argv = {command(workdir, *flags)!r}\n{code}"
    with said(workdir).open("w") as file:
        return subprocess.Popen(
            [sys.executable, "-c", line], cwd=ROOT, stdout=file, stderr=file
        )


def said(workdir):
    """Where a run's output goes: beside its workdir, which it makes itself."""
    return workdir.with_name(f"{workdir.name}.log")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The run on one device that others must equal."""
    workdir = tmp_path_factory.mktemp("one")
    c = tiny.recipe()
    c.mesh.devices = 1
    return workdir, trained(workdir, c)


@pytest.mark.parametrize(("how", "n"), [("jit", 8), ("pmap", 8), ("jit", 2)])
def test_the_curve_is_the_same_on_any_mesh(one, tmp_path, how, n):
    c = tiny.recipe()
    c.mesh.devices, c.mesh.how = n, how
    np.testing.assert_allclose(trained(tmp_path, c), one[1], rtol=1e-4)


@pytest.mark.slow
def test_the_curve_is_the_same_in_float64(tmp_path):
    with jax.enable_x64():
        curves = []
        for i, (how, n) in enumerate([("jit", 1), ("jit", 8), ("pmap", 8)]):
            c = tiny.recipe()
            c.mesh.devices, c.mesh.how, c.model.dtype = n, how, "float64"
            curves.append(trained(tmp_path / str(i), c))
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-10)
    np.testing.assert_allclose(curves[2], curves[0], rtol=1e-10)


@pytest.mark.slow
def test_two_processes_of_four_devices_are_one_device(one, tmp_path):
    given = [*command(tmp_path)[:3], "--config.mesh.cpu_devices=4"]
    line = [sys.executable, "launch/local.py", "-n", "2", "--", *given]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    np.testing.assert_allclose(curve(tmp_path), one[1], rtol=1e-4)


def test_training_learns_and_evaluation_restores(one):
    workdir, losses = one
    assert losses[-5:].mean() < losses[:5].mean()
    run = assembly.build(experiment.saved_config(workdir))
    step, results = experiment.evaluate(run, workdir, step="best")
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    logged = {r["step"]: r for r in rows if "unseen/accuracy" in r}
    best = max(r["unseen/accuracy"] for r in logged.values())
    assert results["unseen"].scalars["accuracy"] == best
    assert logged[step]["unseen/auc"] == pytest.approx(
        results["unseen"].scalars["auc"], abs=1e-6
    )


def test_evaluation_needs_no_training_images(one):
    workdir, _ = one
    c = experiment.saved_config(workdir)
    c.data.source = "folder(path='gone')"
    c.eval.sets = {"other": c.eval.sets.unseen.replace("start=100", "start=200")}
    run = assembly.build(c, for_training=False)
    _, results = experiment.evaluate(run, workdir, step="20")
    assert results["other"].scalars["pairs"] == 40


@pytest.mark.slow
def test_the_evaluation_script_writes_what_it_prints(one, tmp_path):
    workdir, page = one[0], tmp_path / "report.html"

    def say(*flags):
        line = [sys.executable, "launch/evaluate.py", f"--workdir={workdir}", *flags]
        return subprocess.run(line, cwd=ROOT, capture_output=True, text=True)

    flags = ("--sets=unseen", "--step=20", "--leaks", "--row=markdown")
    done = say(*flags, f"--report={page}")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((workdir / "eval" / "20" / "unseen.json").read_text())
    assert found["leaked_of"] == 8
    assert (
        f"unseen: {found['leaked_people']:.0f} of 8 people are taken for some of the 6"
        " trained on" in done.stdout
    )
    low, high = found["accuracy_low"], found["accuracy_high"]
    assert done.stdout.splitlines()[-1] == (
        f"unseen: accuracy {found['accuracy']:.3f} [{low:.3f}, {high:.3f}] on 40 pairs"
    )
    assert "unseen" in page.read_text()
    assert "| run | unseen accuracy |" in done.stdout
    done = say("--sets=unsen")
    assert done.returncode == 1
    assert "did you mean 'unseen'" in done.stderr


@pytest.mark.slow
def test_two_runs_are_compared_on_the_same_pairs_only(one, tmp_path):
    workdir, other, page = one[0], tmp_path / "other", tmp_path / "both.html"
    shutil.copytree(workdir, other)

    def say(*flags):
        line = [sys.executable, "launch/evaluate.py", f"--workdir={workdir}"]
        line += [f"--workdir={other}", "--step=20", *flags]
        return subprocess.run(line, cwd=ROOT, capture_output=True, text=True)

    done = say(f"--report={page}")
    assert done.returncode == 0, done.stderr[-3000:]
    told = f"accuracy of other less that of {workdir.name}: +0.0000 ["
    assert told in done.stdout
    assert "Which is better?" in page.read_text()
    text = (other / "config.json").read_text()
    (other / "config.json").write_text(text.replace("start=100", "start=200"))
    done = say()
    assert done.returncode == 1
    assert "holds other pictures" in done.stderr


@pytest.mark.slow
def test_training_works_where_tensorflow_is_not_installed(tmp_path):
    block = "sys.modules['tensorflow'] = None"
    a, b = tmp_path / "a", tmp_path / "b"
    process = start(a, "--config.train.length=2 steps", before=block)
    assert process.wait(240) == 0, said(a).read_text()
    assert start(b, "--config.data.loader=tfdata", before=block).wait(240) == 1
    assert "set --config.data.loader=host" in said(b).read_text()
