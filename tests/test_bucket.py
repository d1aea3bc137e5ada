"""A run whose workdir is in a bucket, interrupted, against one on a disk."""

import hashlib
import os
import pathlib
import signal
import subprocess
import sys

import bucket
import pytest
from test_array_record import crops, dataset

from jaxface import places, processes
from jaxface.data.sources import array_record

ROOT = pathlib.Path(__file__).parent.parent
RUN = (
    "--config=tests/tiny.py",
    "--config.train.length=60 steps",
    "--config.checkpoint.every=20 steps",
    "--config.eval.every=20 steps",
)


def start(script, workdir, *words, env):
    command = [sys.executable, f"launch/{script}.py", f"--workdir={workdir}", *words]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def said(process, code=0):
    out, wrong = process.communicate(timeout=300)
    assert process.returncode == code, wrong
    return out


def content(place, env):
    code = f"from etils import epath; print(epath.Path({place!r}).read_text(), end='')"
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=os.environ | env, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def test_places_on_a_disk_are_whole_and_in_a_bucket_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert places.at("run") == places.at(tmp_path / "run")
    assert os.fspath(places.at("gs://faces/run") / "x") == "gs://faces/run/x"
    assert places.local("run") == pathlib.Path("run")
    assert places.local("gs://faces/run").parts[-3:] == ("gs", "faces", "run")


@pytest.mark.slow  # four processes
def test_a_run_in_a_bucket_is_one_on_a_disk(tmp_path):
    with bucket.served("faces") as env:
        place = "gs://faces/runs/a"
        first = start("train", place, *RUN, env=env)
        while (line := first.stderr.readline()) and "step 5:" not in line:
            pass
        first.send_signal(signal.SIGTERM)
        said(first, processes.AGAIN)
        said(start("train", place, *RUN, env=env))
        shown = said(start("evaluate", place, "--step=latest", env=env))
        rows = content(f"{place}/metrics.jsonl", env)
    said(start("train", tmp_path / "run", *RUN, env={}))
    want = said(start("evaluate", tmp_path / "run", "--step=latest", env={}))
    assert rows == (tmp_path / "run" / "metrics.jsonl").read_text()
    assert shown == want


DAMAGE = """
import sys
from etils import epath
def files(folder):
    for path in folder.iterdir():
        yield from files(path) if path.is_dir() else [path]
largest = max(files(epath.Path(sys.argv[1])), key=lambda path: path.stat().length)
content = bytearray(largest.read_bytes())
content[len(content) // 2] ^= 255
largest.write_bytes(bytes(content))
"""


@pytest.mark.slow  # six processes
def test_two_processes_in_a_bucket_set_a_damaged_checkpoint_aside(tmp_path):
    def trained(workdir, env):
        command = [sys.executable, "launch/local.py", "-n", "2", "--grace=20", "--"]
        command += ["launch/train.py", f"--workdir={workdir}", *RUN[:1], *RUN[2:]]
        command += ["--config.train.length=40 steps"]
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stderr

    with bucket.served("faces") as env:
        place = "gs://faces/runs/two"
        trained(place, env)
        command = [sys.executable, "-c", DAMAGE, f"{place}/checkpoints/40"]
        subprocess.run(command, check=True, env=os.environ | env)
        told = trained(place, env)
        assert f"{place}/checkpoints/40 is now {place}/checkpoints/damaged-40-1" in told
        rows = content(f"{place}/metrics.jsonl", env)
    trained(tmp_path / "run", {})
    assert rows == (tmp_path / "run" / "metrics.jsonl").read_text()


READ = """
import pathlib, sys
sys.path.insert(0, "tests")
from etils import epath
from jaxface.data.sources import array_record
from test_bucket import digest
here, there = pathlib.Path(sys.argv[1]), epath.Path("gs://faces/sets")
for path in here.rglob("*"):
    if path.is_file():
        (there / str(path.relative_to(here))).write_bytes(path.read_bytes())
for name in ("faces", "crops.array_record-*"):
    print(digest(array_record.Source(there / name)))
"""


def digest(source):
    found = hashlib.sha256(repr([source.labels.tolist(), source.color]).encode())
    for i in range(len(source)):
        found.update(repr(source.read(i)).encode())
    return len(source), found.hexdigest()


@pytest.mark.slow  # a process that imports everything
def test_a_set_in_a_bucket_is_one_on_a_disk(tmp_path):
    dataset(tmp_path / "faces")
    pattern = crops(tmp_path)
    with bucket.served("faces") as env:
        command = [sys.executable, "-c", READ, str(tmp_path)]
        out = subprocess.check_output(command, cwd=ROOT, env=os.environ | env)
    want = [digest(array_record.Source(x)) for x in (tmp_path / "faces", pattern)]
    assert out.decode().splitlines() == list(map(str, want))
    assert [count for count, _ in want] == [9, 12]
