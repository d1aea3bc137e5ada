"""Batches that processes of this machine make are those of one, in their order."""

import itertools
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import tiny
from test_experiment import ROOT
from test_loaders import mixed
from test_service import same, taken

from jaxface import assembly


def pictures(folder, records):
    """A recipe over two people's pictures."""
    for i, record in enumerate(records):
        person = folder / f"{i % 2}"
        person.mkdir(exist_ok=True)
        (person / f"{i}.jpg").write_bytes(record)
    c = tiny.recipe()
    c.data.source, c.data.max_bad = f"folder(path='{folder}')", 0.5
    c.data.ops, c.data.batch_size = "decode|resize(16)|flip|normalize", 8
    return c


def several(c, count, start=0):
    c = c.copy_and_resolve_references()
    c.data.processes = count
    return assembly.build(c).loader(start)


def test_three_processes_give_the_batches_of_one_machine():
    c = tiny.recipe()
    same(taken(several(c, 3, start=4)), taken(several(c, 0, start=4)))


def test_unreadable_images_are_replaced_alike_and_told(tmp_path):
    c = pictures(tmp_path, [*mixed()[:9], b"no image"])
    plain, two = several(c, 0), several(c, 2)
    same(taken(two, 12), taken(plain, 12))
    assert two.bad.keys() == plain.bad.keys()
    assert len(two.bad) == 1


def test_what_ends_a_process_is_raised_at_its_step(tmp_path):
    loader = several(pictures(tmp_path, [b"no image"] * 9 + mixed()[:1]), 2)
    with pytest.raises(ValueError, match=r"step \d+: .* are unreadable"):
        taken(loader, 50)
    loader.close()


def ids(loader):
    return [process.pid for process in loader._processes]


def gone(pid):
    """Whether a process ends within seconds; one that nobody waits for is a zombie."""
    for _ in range(200):
        try:
            state = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1].split()
        except FileNotFoundError:
            return True
        if state[0] == "Z":
            return True
        time.sleep(0.1)
    return False


def test_processes_of_this_machine_give_its_batches_until_one_is_lost():
    c = tiny.recipe()
    plain = taken(assembly.build(c).loader(3), 4)
    c.data.processes = 2
    loader = assembly.build(c).loader(3)
    found = iter(loader)
    for pid in ids(loader):  # what a scheduler sends to all; the trainer still saves
        os.kill(pid, signal.SIGTERM)
    first = next(found)
    for pid in ids(loader):
        os.kill(pid, signal.SIGINT)
    same([first, *itertools.islice(found, 3)], plain)
    os.kill(ids(loader)[0], signal.SIGKILL)
    with pytest.raises(OSError, match=r"process \d+, .* was lost at step .* resumes"):
        for _ in found:
            pass
    loader.close()
    assert all(gone(pid) for pid in ids(loader))


LEFT = """
import itertools, os, sys
sys.path.insert(0, "tests")
import tiny
from jaxface import assembly
if __name__ == "__main__":
    c = tiny.recipe()
    c.data.processes = 2
    loader = assembly.build(c).loader(0)
    next(iter(loader))
    print(*[p.pid for p in loader._processes], flush=True)
    if sys.argv[1] == "killed":
        os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [("killed", -9), ("unclosed", 0)])
def test_processes_go_with_their_trainer(tmp_path, how, code):
    (tmp_path / "left.py").write_text(LEFT)
    line = [sys.executable, str(tmp_path / "left.py"), how]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = {"cwd": ROOT, "env": env, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(line, **run) as trainer:
        words = trainer.stdout.readline().split()
        assert trainer.wait(60) == code
    assert len(words) == 2
    assert all(gone(int(pid)) for pid in words)
