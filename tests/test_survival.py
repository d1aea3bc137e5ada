"""Disks that fill up or vanish, and signals: what is kept, said and returned."""

import logging as standard
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import types

import chaos
import jax
import numpy as np
import pytest
import tiny
from absl import logging

from jaxface import assembly, checkpoint, cli, experiment
from jaxface.train import loop, saver

# Orbax's own threads tell of the error too, one of them to a loop that has ended.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::pytest.Pytest{kind}Warning")
    for kind in ("UnhandledThreadException", "UnraisableException")
]


@pytest.fixture
def run():
    c = tiny.recipe()
    c.mesh.devices = 1
    return assembly.build(c)


@pytest.fixture
def at(monkeypatch):
    """Call functions before given steps, by when every save begun has ended."""
    real, begin = loop.run, saver.Saver.save

    def save(self, *args, **facts):
        begin(self, *args, **facts)
        self.settle()

    monkeypatch.setattr(saver.Saver, "save", save)

    def do(actions):
        def acting(state, *, batches, start, **kwargs):
            def watched():
                for t, batch in enumerate(batches, start + 1):
                    actions.get(t, lambda: None)()
                    yield batch

            return real(state, batches=watched(), start=start, **kwargs)

        monkeypatch.setattr(loop, "run", acting)

    return do


@pytest.fixture
def full():
    """A disk that takes no large file: switch it on with True, off with False."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def switch(on):
        limit = (20_000, before[1]) if on else before
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    yield switch
    switch(False)


def whole_steps(workdir):
    with checkpoint.open_manager(workdir / "checkpoints", create=False) as manager:
        return [s for s in manager.all_steps() if not checkpoint.damage(manager, s)]


def equal_ends(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.slow
def test_a_full_disk_costs_a_checkpoint_and_no_step(run, tmp_path, at, full, caplog):
    undisturbed = experiment.train(run, tmp_path / "whole")
    at({6: lambda: full(True), 16: lambda: full(False)})
    state = experiment.train(run, tmp_path / "run")
    assert caplog.text.count("SAVE FAILED, training goes on") == 2
    assert "step 10 was not saved in" in caplog.text
    assert "File too large" in caplog.text
    assert whole_steps(tmp_path / "run") == [5, 20]
    equal_ends(state, undisturbed)
    logs = [(tmp_path / w / "metrics.jsonl").read_bytes() for w in ("whole", "run")]
    assert logs[0] == logs[1]


def test_a_last_save_that_fails_is_an_error_and_can_be_made_good(
    run, tmp_path, at, full, caplog
):
    at({12: lambda: full(True)})
    words = r"last save failed: step 20 was not saved.*too large.*there is step 10"
    with pytest.raises(OSError, match=words):
        experiment.train(run, tmp_path)
    assert whole_steps(tmp_path) == [5, 10]
    assert not list((tmp_path / "checkpoints").glob("*tmp"))  # no half keeps it full
    full(False)
    at({})
    assert experiment.train(run, tmp_path).step == 20


def test_a_disk_that_vanishes_is_not_written_to_and_may_come_back(
    run, tmp_path, at, caplog
):
    workdir, away = tmp_path / "run", tmp_path / "away"

    def vanish():
        shutil.move(workdir, away)
        workdir.mkdir()  # as a mount point is left

    def come_back():
        shutil.rmtree(workdir)
        shutil.move(away, workdir)

    at({8: vanish, 13: come_back})
    experiment.train(run, workdir)
    assert "config.json is gone; is its disk mounted?" in caplog.text
    assert "rows are kept in memory, tried again" in caplog.text
    assert whole_steps(workdir)[-2:] == [15, 20]
    rows = (workdir / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 20 + 4


def test_a_disk_of_several_processes_ends_them(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    quiet = {"latest_step": lambda: None, "wait_until_finished": lambda: None}
    manager = types.SimpleNamespace(directory=tmp_path, **quiet)
    one = saver.Saver(manager, home=tmp_path / "config.json")
    with pytest.raises(OSError, match=r"step 5 was not saved.*is its disk mounted"):
        one.save(5, {})
    one.settle()  # waits for nobody


def test_a_line_stands_once_in_the_log_file_with_its_time(tmp_path):
    path = tmp_path / "logs" / "process-0.log"
    cli.log_to_file(path)
    *_, handler = standard.getLogger().handlers
    try:
        logging.warning("disk is %d %% full", 99)
        standard.getLogger("orbax").info("touched a file")
    finally:
        standard.getLogger().removeHandler(handler)
        handler.close()
    (line,) = path.read_text().splitlines()
    assert re.fullmatch(r"W\d{4} \d\d:\d\d:\d\d\.\d+ .*] disk is 99 % full", line)


def test_a_log_file_on_a_full_disk_says_so_once(tmp_path, full, capsys):
    cli.log_to_file(tmp_path / "logs" / "process-0.log")
    *_, handler = standard.getLogger().handlers
    full(True)
    try:
        for _ in range(9):
            handler.emit(standard.makeLogRecord({"msg": "x" * 4000, "levelno": 20}))
    finally:
        full(False)
        standard.getLogger().removeHandler(handler)
        handler.close()
    assert (
        capsys.readouterr().err.count("process-0.log: [Errno 27] File too large") == 1
    )


def test_a_checkpoint_folder_that_cannot_be_written_is_told(run, tmp_path, at, caplog):
    def spoil():
        shutil.rmtree(tmp_path / "run" / "checkpoints")
        (tmp_path / "run" / "checkpoints").write_text("a file")

    at({8: spoil})
    with pytest.raises(OSError, match=r"last save failed: step 20 .*Not a directory"):
        experiment.train(run, tmp_path / "run")
    assert caplog.text.count("SAVE FAILED, training goes on") == 3


def test_a_damaged_newest_checkpoint_costs_its_steps_only(run, tmp_path, caplog):
    whole = experiment.train(run, tmp_path)
    log = (tmp_path / "metrics.jsonl").read_bytes()
    data = next((tmp_path / "checkpoints/20/state").rglob("d/*"))
    data.write_bytes(data.read_bytes()[:-1])
    state = experiment.train(run, tmp_path)
    assert f"passed over: {tmp_path}/checkpoints/20: state/" in caplog.text
    assert "is now" in caplog.text
    equal_ends(state, whole)
    assert (tmp_path / "metrics.jsonl").read_bytes() == log


def test_the_second_signal_ends_at_once():
    code = (
        "import os, signal\n"
        "from jaxface.train import stopping\n"
        "with stopping.on_signals() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    while not stop():\n"
        "        pass\n"
        "    print('told', flush=True)\n"
        "    os.kill(os.getpid(), signal.{})\n"
        "    print('late')"
    )
    for name in ("SIGINT", "SIGTERM"):
        line = [sys.executable, "-c", code.format(name)]
        done = subprocess.run(line, cwd=chaos.ROOT, capture_output=True, text=True)
        assert done.stdout == "told\n"
        assert done.returncode == -getattr(signal, name)


def test_a_stopped_run_returns_what_it_saved(run, tmp_path, at):
    at({7: lambda: os.kill(os.getpid(), signal.SIGTERM)})
    assert experiment.train(run, tmp_path).step == 7
    assert whole_steps(tmp_path) == [5, 7]


@pytest.mark.parametrize(("codes", "want"), [((75, 75), 75), ((75, 3), 3), ((0, 0), 0)])
def test_several_processes_end_with_the_code_of_all(codes, want):
    code = f"import sys; sys.exit({codes}['--process=1' in sys.argv])"
    line = [sys.executable, "launch/local.py", "-n", "2", "--", "-c", code]
    assert subprocess.run(line, cwd=chaos.ROOT).returncode == want


@pytest.mark.slow
def test_kill_at_any_moment_changes_no_bit(tmp_path):
    found = chaos.run(tmp_path, kills=4, seed=0)
    assert found["differ"] == []
    assert found["compared"] > 20
