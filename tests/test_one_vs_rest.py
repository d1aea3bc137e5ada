"""Many people's binary networks: pooled counts, and a stop that stops them all."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parent.parent


def start(workdir):
    line = "decode|resize(32)|normalize(mean=0, std=255)"
    given = ("ops", line), ("eval_ops", line), ("batch_size", 8), ("workers", 2)
    return subprocess.Popen(
        [
            *(sys.executable, "launch/one_vs_rest.py", "--identities=2"),
            *(f"--workdir={workdir}", f"--config={ROOT}/configs/seed_binary.py"),
            *(f"--config.data.{key}={value}" for key, value in given),
            *("--config.train.length=120 steps", "--config.eval.every=120 steps"),
            *("--config.eval.batch_size=8", "--config.checkpoint.every=120 steps"),
        ],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_stopped_run_goes_on_and_pools_everybody(tmp_path):
    process, log = start(tmp_path), tmp_path / "0" / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text()):
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "stopped; run the same command again to go on" in said
    assert not (tmp_path / "1").exists()  # nor was the next person begun
    assert not (tmp_path / "pooled.json").exists()

    process = start(tmp_path)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    pooled = json.loads((tmp_path / "pooled.json").read_text())
    rows = [
        json.loads((tmp_path / str(i) / "metrics.jsonl").read_text().splitlines()[-1])
        for i in range(2)
    ]
    for name in ("tp", "fp", "tn", "fn", "count"):
        assert pooled[name] == sum(row[f"person/{name}"] for row in rows)
    assert pooled["count"] > 0
