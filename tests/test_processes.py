"""Several processes start together and end together; a dry run leaves nothing."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import jax
import pytest
import tiny
from conftest import ROOT

from jaxface import assembly, experiment, processes, rehearsal

CODE = (  # train.py as a user starts it, with the tests' compilation cache
    "import jax, runpy, sys\n"
    f"jax.config.update('jax_compilation_cache_dir', '{ROOT}/.jax_cache')\n"
    "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)\n"
    "runpy.run_path('launch/train.py', run_name='__main__')"
)

LATE = (  # the data of process 1 takes longer than all the rest
    "import jax, time\n"
    "from jaxface import experiment\n"
    "made = experiment.batches_of\n"
    "def late(run, loader):\n"
    "    for batch in made(run, loader):\n"
    "        time.sleep(0.2 * jax.process_index())\n"
    "        yield batch\n"
    "experiment.batches_of = late\n"
)


@pytest.fixture
def one_of_two(monkeypatch):
    """Make this process believe that it is the second of two."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    return []


@pytest.mark.parametrize(
    ("error", "code", "word"),
    [
        (ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed"), 75, "gone"),
        (RuntimeError("NCCL operation ncclAllReduce failed"), 75, "gone"),
        (ValueError("data.batch_size is 7"), 1, "data.batch_size is 7"),
        (FloatingPointError("loss is nan at step 3"), 1, "loss is nan"),
    ],
)
def test_one_of_several_says_why_and_leaves(one_of_two, caplog, error, code, word):
    with processes.together(limit=0.0, leave=one_of_two.append):
        raise error
    assert one_of_two == [code]
    assert "process 1 of 2" in caplog.text
    assert word in caplog.text


def test_a_failure_that_another_process_caused_is_not_ours():
    error = OSError("step 5 was not saved")
    assert not processes.lost_peer(error)
    error.__cause__ = RuntimeError("UNAVAILABLE: Socket closed")
    assert processes.lost_peer(error)


def test_a_single_process_raises_as_ever():
    with (
        pytest.raises(ValueError, match="Gloo"),
        processes.together(limit=0.0, leave=lambda code: pytest.fail("left")),
    ):
        raise ValueError("Gloo")


def test_a_stalled_process_leaves_and_says_where_it_stands(one_of_two, caplog, capfd):
    left = threading.Event()

    def leave(code):
        one_of_two.append(code)
        left.set()

    with processes.together(limit=0.2, leave=leave) as beat:
        beat()
        assert left.wait(30)
    assert one_of_two == [processes.AGAIN]
    assert "after 1 of them" in caplog.text
    assert "test_processes.py" in capfd.readouterr().err


def test_beats_keep_it_alive(one_of_two):
    with processes.together(limit=60.0, leave=one_of_two.append) as beat:
        beat()
    assert one_of_two == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("processes=2", "without a coordinator"),
        ("coordinator='auto'", "no TPU VM, GKE, SLURM"),
        pytest.param(
            "coordinator='127.0.0.1:1', processes=2, process=1, join_seconds=1",
            "did not meet within 1 s|DEADLINE_EXCEEDED",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_who_cannot_join_says_so(given, words):
    line = f"from jaxface import parallel; parallel.start({given})"
    done = subprocess.run(
        [sys.executable, "-c", line],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode
    assert re.search(words, done.stderr), done.stderr


@pytest.mark.slow
def test_a_signal_before_the_run_listens_ends_a_process_as_ever():
    code = (
        "import os, signal, socket\n"
        "from jaxface import parallel\n"
        "with socket.socket() as probe:\n"
        "    probe.bind(('127.0.0.1', 0))\n"
        "    port = probe.getsockname()[1]\n"
        "parallel.start(coordinator=f'127.0.0.1:{port}')\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "signal.pause()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120)
    assert done.returncode == -signal.SIGTERM


def together(workdir):
    """Start two processes that would train for hours, once both have taken steps."""
    given = [f"--config={ROOT}/tests/tiny.py", f"--workdir={workdir}"]
    given += ["--config.mesh.cpu_devices=1", "--config.train.length=1000000 steps"]
    given += ["--peer_timeout=10", "--config.eval.every=1000000 steps"]
    given += ["--config.checkpoint.best=", "--config.checkpoint.every=1000000 steps"]
    script = workdir.with_name("script.py")
    script.write_text(LATE + CODE)
    line = [sys.executable, "launch/local.py", "-n", "2", "--grace=20", "--"]
    line += [str(script), *given]
    running = subprocess.Popen(line, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    log = workdir / "metrics.jsonl"
    while not (log.exists() and log.stat().st_size) and running.poll() is None:
        time.sleep(0.2)
    assert running.poll() is None, running.stderr.read()
    return running


def child(running, index):
    """Find the process id of one of the two."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as stat, open(f"/proc/{pid}/cmdline") as c:
                parent = stat.read().rpartition(")")[2].split()[1]
                if parent == str(running.pid) and f"--process={index}\0" in c.read():
                    return int(pid)
        except FileNotFoundError:
            continue
    raise AssertionError(f"no process {index}")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_dead_or_hanging_process_ends_the_other(tmp_path, number):
    workdir = tmp_path / "run"
    running = together(workdir)
    log = workdir / "logs" / "process-0.log"
    while "all wait for the data of process 1" not in log.read_text():
        assert running.poll() is None, running.stderr.read()
        time.sleep(0.2)
    os.kill(child(running, 1), number)
    _, said = running.communicate(timeout=200)
    assert running.returncode in (134, 137, processes.AGAIN), said[-2000:]
    assert re.search("another process is gone|another task died", said)
    assert "local: process 0 ended with" in said
    logs = sorted(path.name for path in (workdir / "logs").iterdir())
    assert logs == ["process-0.log", "process-1.log"]


def test_a_dry_run_is_the_first_two_steps():
    c = tiny.recipe()
    found = rehearsal.take(assembly.build(c))
    run = assembly.build(c)
    loader, state, losses = run.loader(0), run.first_state(), []
    batches = experiment.batches_of(run, loader)
    for _ in range(rehearsal.STEPS):
        state, metrics = run.step(state, next(batches))
        losses.append(float(metrics["loss"]))
    loader.close()
    assert found.losses == pytest.approx(losses, rel=1e-6)
    assert (found.images, found.classes, found.steps) == (24, 6, 20)
    assert found.memory[0] > 4 * (found.parameters + found.head / 8)
    assert "nothing was written" in rehearsal.text(found)


def test_a_dry_run_says_when_the_loss_is_lost():
    c = tiny.recipe()
    c.optim.lr, c.optim.clip = 1e38, 0.0
    with pytest.raises(FloatingPointError, match="docs/switching"):
        rehearsal.take(assembly.build(c))


@pytest.mark.slow
def test_a_dry_run_writes_nothing_and_fails_by_its_code(tmp_path):
    flags = [f"--config={ROOT}/tests/tiny.py", f"--workdir={tmp_path}/run", "--dry_run"]

    def say(*more):
        line = [sys.executable, "-c", CODE, *flags, *more]
        return subprocess.run(line, cwd=ROOT, capture_output=True, text=True)

    done = say("--config.mesh.cpu_devices=1")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "1 x cpu" in done.stdout
    wrong = say("--config.mesh.cpu_devices=1", "--config.data.batch_size=0")
    assert wrong.returncode == 1
    assert "data.batch_size is 0" in wrong.stderr
    assert list(tmp_path.iterdir()) == []
