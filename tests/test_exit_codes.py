"""What a run says at its end, and with which code, whatever happened to it."""

import os
import re
import subprocess
import sys

import chaos
import pytest
from test_survival import whole_steps

from jaxface import processes

FLAGS = (
    *(chaos.CONFIG, "--config.mesh.cpu_devices=1"),
    *("--config.eval.every=20 steps", "--config.checkpoint.best="),
)
ALONE = ["unshare", "--mount", *["--map-root-user"] * (os.geteuid() != 0)]
DISKS = {
    "full": "No space left on device",
    "read-only": "Read-only file system",
    "vanished": "config.json is gone; is its disk mounted?",
}


def train(workdir, fault="none", step=0, *flags, processes=1):
    """Run tests/faulty.py; return (exit code, what it said last)."""
    line = [sys.executable]
    if processes > 1:
        line += ["launch/local.py", "-n", str(processes), "--"]
    line += ["tests/faulty.py", fault, str(step)]
    line += [*FLAGS, f"--workdir={workdir}", *flags]
    if fault in DISKS:
        try:
            subprocess.run([*ALONE, "true"], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("this machine lets no test mount anything")
        line = [*ALONE, *line]
    done = subprocess.run(
        line,
        cwd=chaos.ROOT,
        env=os.environ | chaos.QUICK,
        capture_output=True,
        text=True,
        timeout=300,  # rather than hang as long as Orbax waits for a lost process
    )
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    return done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("fault", DISKS)
def test_a_disk_that_fails_to_the_end(tmp_path, fault):
    code, said = train(tmp_path / "run", fault, 12)
    assert code == 1, said[-2000:]
    assert said.count("SAVE FAILED, training goes on") == 2  # of 15 and 20
    *_, last = said.splitlines()
    assert last.startswith("error: the last save failed: step 20 was not saved in")
    assert DISKS[fault] in last
    assert "there is step 10: " in last
    assert whole_steps(tmp_path / "run") == [5, 10]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "why"), [("full", DISKS["full"]), ("limited", "File too large")]
)
def test_a_disk_that_fails_ends_several_processes(tmp_path, fault, why):
    # "limited" is told where the save is under way, and by the first process alone
    code, said = train(tmp_path / "run", fault, 12, processes=2)
    assert code == 1, said[-2000:]
    words = "process 0 of 2 failed, and the others end: step 15 was not saved in"
    (told,) = [line for line in said.splitlines() if words in line]
    assert why in told
    assert told.endswith(
        "there is step 10: see to the disk and run the same command again"
    )
    assert "local: process 0 ended with 1, the first to end" in said
    assert whole_steps(tmp_path / "run") == [5, 10]


@pytest.mark.slow
def test_a_stopped_run_and_the_same_command_again(tmp_path):
    code, said = train(tmp_path, "signal", 7)
    assert code == processes.AGAIN == 75, said[-2000:]
    assert "stopped by a signal after step 7" in said
    assert whole_steps(tmp_path) == [5, 7]
    (tmp_path / "checkpoints/7/state/_METADATA").unlink()
    code, said = train(tmp_path)
    assert code == 0, said[-2000:]
    assert "DAMAGED CHECKPOINT, passed over: " in said
    assert "resuming at step 5" in said
    for step in (15, 20):
        (tmp_path / f"checkpoints/{step}/state/_METADATA").unlink()
    code, said = train(tmp_path)
    assert code == 1
    assert said.count("DAMAGED CHECKPOINT, passed over") == 2
    assert said.splitlines()[-1].startswith("error: every checkpoint is damaged: ")


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_soon(tmp_path):
    rare = [f"--config.{x}.every=1000 steps" for x in ("log", "eval", "checkpoint")]
    rare += ["--config.train.length=120 steps", "--config.log.csv=True"]
    rare += [f"--config.checkpoint.best={chaos.BEST}"]
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    code, said = train(cut, "signal-one", 7, *rare, processes=2)
    assert code == processes.AGAIN, said[-2000:]
    (step,) = whole_steps(cut)
    assert 7 <= step < 100
    assert re.findall(r"stopped by a signal after step (\d+)", said) == [str(step)] * 2
    for workdir in (cut, whole):
        code, said = train(workdir, "none", 0, *rare, processes=2)
        assert code == 0, said[-2000:]
        assert (f"resuming at step {step}" in said) == (workdir == cut)
    assert chaos.ended(cut) == chaos.ended(whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "row", "rolled"),
    [("stop", 0, 0), ("skip(after=2)", 2, 0), ("rollback(after=1, times=2)", 1, 2)],
)
def test_a_lost_loss_ends_the_run(tmp_path, policy, row, rolled):
    flags = ("--config.optim.lr=1e30", f"--config.train.nonfinite={policy}")
    code, said = train(tmp_path, "none", 0, *flags)
    assert code == 1
    assert said.count("ROLLED BACK to step 0") == rolled
    *_, last = said.splitlines()
    assert last.startswith("error: loss is ")
    assert (f"; {row} steps in a row were left out: its batch" in last) == (row > 0)
    assert "Last good checkpoint: none yet" in last
