"""Batches that other processes make are those of this one, in their order."""

import itertools
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest
import tiny
from test_experiment import ROOT
from test_loaders import LINE, Memory, mixed

from jaxface import assembly, config
from jaxface.data import host, messages, ops, service, stream, tfdata

SECRET = b"0123456789abcdef"


def stream_of(records, host=0, hosts=1):
    line = ops.parse(LINE)
    given = {"batch_size": 4, "seed": 3, "host": host, "hosts": hosts, "max_bad": 0.5}
    return stream.Stream(Memory(records), line, split=True, **given)


def started(count, module=host, records=None, clients=1):
    """Addresses of workers that run in threads of their own."""
    records = mixed() if records is None else records

    def open_loader(ask, memory):
        if ask.about != "faces":
            raise ValueError(f"no {ask.about} here")
        whole = stream_of(records, ask.host, ask.hosts)
        return module.Loader(whole.strided(ask.first, ask.every, memory))

    addresses = []
    for _ in range(count):
        listener = service.listen("127.0.0.1:0")
        addresses.append(listener.address)

        def run(listener=listener):
            with listener:
                service.serve(listener, SECRET, open_loader, clients=clients)

        threading.Thread(target=run, daemon=True).start()
    return addresses


def same(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        assert a.keys() == b.keys()
        for name in b:
            assert a[name].dtype == b[name].dtype
            np.testing.assert_array_equal(a[name], b[name])


def taken(loader, count=9):
    out = list(itertools.islice(loader, count))
    loader.close()
    return out


@pytest.mark.parametrize("module", [host, tfdata], ids=["host", "tfdata"])
@pytest.mark.parametrize(("workers", "start"), [(1, 0), (2, 0), (2, 5), (3, 4)])
def test_workers_give_the_batches_of_one_machine(module, workers, start):
    plain = taken(module.Loader(stream_of(mixed()), start_step=start))
    loader = service.connected(
        started(workers, module), SECRET, "faces", start_step=start
    )
    same(taken(loader), plain)


def test_every_process_gets_its_slice():
    for k in range(2):
        plain = taken(host.Loader(stream_of(mixed(), host=k, hosts=2)))
        loader = service.connected(started(2), SECRET, "faces", host=k, hosts=2)
        same(taken(loader), plain)


def test_unreadable_images_are_replaced_alike_and_told():
    records = [*mixed(), OSError("gone"), b"no image"]
    plain = host.Loader(stream_of(records))
    wanted = taken(plain, 12)
    loader = service.connected(started(2, records=records), SECRET, "faces")
    same(taken(loader, 12), wanted)
    assert loader.bad.keys() == plain.bad.keys() == {"image-10", "image-11"}


def test_what_a_worker_refuses_is_raised_here():
    loader = service.connected(started(1), SECRET, "voices")
    with pytest.raises(ValueError, match=r"worker 127.*no voices here"):
        next(iter(loader))
    loader.close()
    few = [OSError("gone")] * 9 + mixed()[:1]
    loader = service.connected(started(1, records=few), SECRET, "faces")
    with pytest.raises(ValueError, match="are unreadable"):
        taken(loader, 50)
    loader.close()


def test_a_stranger_gets_nothing():
    (address,) = started(1, clients=2)
    with pytest.raises(OSError, match="has another secret"):
        service.connected([address], b"another secret..", "faces")
    taken(service.connected([address], SECRET, "faces"))  # the worker goes on
    with service.listen("127.0.0.1:0") as free:
        nobody = free.address
    with pytest.raises(OSError, match="does not answer"):
        service.connected([nobody], SECRET, "faces")


def test_a_silent_worker_is_an_error(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as mute, monkeypatch.context() as m:
        m.setattr(service, "_GREETING", 0.2)
        with pytest.raises(OSError, match=r"does not answer \(silent for too long"):
            service.connected([mute.getsockname()], SECRET, "faces")
    module = types.SimpleNamespace(Loader=Stuck)
    loader = service.connected(started(1, module), SECRET, "faces", silence=1.0)
    found = iter(loader)
    next(found)
    with pytest.raises(OSError, match=r"was lost at step 1 \(silent for too long"):
        next(found)
    loader.close()
    Stuck.on.set()


def test_a_silent_client_does_not_stop_a_worker():
    (address,) = started(1, clients=2)
    with socket.create_connection(address):
        taken(service.connected([address], SECRET, "faces"))
    with pytest.raises(ValueError, match="wanted seconds, more than 0"):
        service.connected([address], SECRET, "faces", silence=0)


class Stuck(host.Loader):
    """Makes one batch, and waits."""

    on = threading.Event()

    def __iter__(self):
        yield next(super().__iter__())
        self.on.wait()


class Dying(host.Loader):
    """Gone after three batches."""

    def __iter__(self):
        yield from itertools.islice(super().__iter__(), 3)


def test_a_lost_worker_stops_the_run_at_its_step():
    module = types.SimpleNamespace(Loader=Dying)
    loader = service.connected(started(2, module), SECRET, "faces", start_step=4)
    found = iter(loader)
    for _ in range(6):
        next(found)
    with pytest.raises(OSError, match=r"was lost at step 10.*and the run resumes"):
        next(found)
    loader.close()


def test_a_batch_of_another_step_is_refused():
    for told, words in (
        ({"step": 8, "bad": {}}, "no batch of step 7, but .'step': 8"),
        ({"step": 7}, "no batch of step 7"),
        ({"step": 7, "bad": 3}, "no batch of step 7"),
        ({"error": "no voices"}, "a: no voices"),
    ):
        ours, theirs = socket.socketpair()
        with theirs:
            messages.send(theirs, told, {"label": np.zeros(2, np.int32)})
            loader = service.Loader({"a": ours}, start_step=7)
            with pytest.raises(ValueError, match=words):
                next(iter(loader))
            loader.close()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("workers((), key='k')", "wanted .'host:port'"),
        ("workers(('a',), key='k')", "wanted host:port"),
        ("workers(('a:1',), key='k')", "secret of 5 bytes; wanted 16"),
    ],
)
def test_a_wrong_line_is_refused(tmp_path, monkeypatch, line, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "k").write_text("short")
    c = tiny.recipe()
    c.data.service = line
    with pytest.raises(ValueError, match=words):
        assembly.build(c)


def test_what_decides_a_batch_is_compared():
    c, other = tiny.recipe(), tiny.recipe()
    other.data.workers, other.data.service, other.loss.margin = 7, "", "arcface"
    other.data.mix = "mixup"
    assert config.batches(c) == config.batches(other)
    for key, value in {
        "batch_size": 32,
        "sampler": "balanced",
        "ops": "decode",
    }.items():
        other = tiny.recipe()
        other.data[key] = value
        assert config.batches(c) != config.batches(other)


@pytest.mark.slow
def test_launch_serve_feeds_a_run(tmp_path):
    key = tmp_path / "key.txt"
    key.write_bytes(SECRET)
    with service.listen("127.0.0.1:0") as free:
        address = "{}:{}".format(*free.address)
    given = [f"--config={ROOT}/tests/tiny.py", f"--address={address}", f"--key={key}"]
    line = [sys.executable, "launch/serve.py", *given]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout.readline() == f"24 images at {address}\n"
        c = tiny.recipe()
        c.data.service = f"workers(({address!r},), key={str(key)!r})"
        loader = assembly.build(c).loader(3)
        plain = assembly.build(tiny.recipe()).loader(3)
        same(taken(loader, 4), taken(plain, 4))
        worker.terminate()


def ids(loader):
    return [int(name.split()[1]) for name in loader._names]


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
    print(*loader._names, flush=True)
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
    assert len(words) == 4
    assert all(gone(int(pid)) for pid in words[1::2])
