"""Batches that other machines make are those of this one, in their order."""

import contextlib
import itertools
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import served
import tiny
from test_experiment import ROOT

from jaxface import assembly, config
from jaxface.data import host, service


def free():
    """An address that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as line:
        return f"127.0.0.1:{line.getsockname()[1]}"


@pytest.fixture(scope="module")
def dispatcher():
    """With two workers, each in a process: in this one they cannot be stopped."""
    address = free()
    with contextlib.ExitStack() as running:
        workers = []
        for number in "12":
            line = [sys.executable, "tests/served.py", address, number]
            worker = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True)
            workers.append(running.enter_context(worker))
            running.callback(worker.kill)
        assert [each.stdout.readline() for each in workers] == ["ready\n"] * 2
        yield address


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


def here(count, *, kind="mixed", start=0, **slices):
    return taken(host.Loader(served.part(kind, **slices), start_step=start), count)


def coming(dispatcher, *, kind="mixed", start=0, wait="", **slices):
    about = served.about(records=kind, wait=wait)
    given = {"start_step": start, **slices}
    return service.Loader(served.part("mixed", **slices), dispatcher, about, **given)


@pytest.mark.parametrize(("k", "n", "start"), [(0, 1, 0), (0, 2, 5), (1, 2, 5)])
def test_every_process_gets_its_batches(dispatcher, k, n, start):
    given = {"host": k, "hosts": n, "start": start}
    same(taken(coming(dispatcher, **given)), here(9, **given))


def test_batches_that_come_in_any_order_are_put_in_theirs(dispatcher, monkeypatch):
    order = []

    def seen(self, found, step):
        number, batch = unseen(self, found, step)
        order.append(number)
        return number, batch

    unseen = service.Loader._next
    monkeypatch.setattr(service.Loader, "_next", seen)
    same(taken(coming(dispatcher, wait="some"), 40), here(40))
    assert order != sorted(order)


def test_a_batch_that_does_not_come_is_made_here(dispatcher, tmp_path, caplog):
    """As when its worker is lost; where it comes late, it is not taken twice."""
    loader = coming(dispatcher, wait=f"3 3 {tmp_path / 'late'}")
    batches = iter(loader)
    found = list(itertools.islice(batches, 4))
    assert "step 3 did not come; made here" in caplog.text
    (tmp_path / "late").touch()
    found += itertools.islice(batches, 60)
    loader.close()
    same(found, here(64))


def test_unreadable_images_are_replaced_alike_and_told(dispatcher):
    loader = coming(dispatcher, kind="some bad")
    same(taken(loader, 12), here(12, kind="some bad"))
    assert loader.bad.keys() == {"image-10", "image-11"}


@pytest.mark.parametrize(
    ("kind", "words"), [("voices", "no voices here"), ("most bad", "are unreadable")]
)
def test_what_a_worker_refuses_is_raised_here(dispatcher, kind, words):
    loader = coming(dispatcher, kind=kind)
    with pytest.raises(ValueError, match=rf"a worker of {dispatcher}.*{words}"):
        taken(loader, 50)
    loader.close()


def test_workers_that_fall_silent_are_an_error(dispatcher, monkeypatch, tmp_path):
    loader = coming(dispatcher, wait=f"2 {10**9} {tmp_path / 'on'}")
    batches = iter(loader)
    same(list(itertools.islice(batches, 2)), here(2))
    monkeypatch.setattr(service, "SILENCE", 0.2)
    with pytest.raises(OSError, match=r"lost at step 2 \(no batch for 0.2 s.*resumes"):
        next(batches)
    loader.close()
    (tmp_path / "on").touch()


def test_a_loader_that_is_closed_ends_its_thread(dispatcher):
    before = threading.active_count()
    loader = coming(dispatcher)
    taken(loader, 3)
    for _ in range(100):
        if threading.active_count() <= before:
            return
        time.sleep(0.05)
    raise AssertionError([t.name for t in threading.enumerate()])


def test_no_dispatcher_is_an_error():
    with pytest.raises(OSError, match=r"127.0.0.1:\d+ does not answer .*serve.py"):
        service.Loader(served.part("mixed"), free(), "faces")


def test_a_port_that_is_taken_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as line:
        port = line.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} cannot be had: .*try another"):
            service.dispatch(f"127.0.0.1:{port}")


@pytest.mark.parametrize("address", ["a", ":1", "a:b", "a:70000"])
def test_a_wrong_address_is_refused(address):
    c = tiny.recipe()
    c.data.service = address
    with pytest.raises(ValueError, match=r"wanted host:port, as in 'a:7070'"):
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


@contextlib.contextmanager
def serving(dispatcher, *more):
    """A worker in a process of its own; what is given waits until it works."""
    address = free()
    line = [sys.executable, "launch/serve.py", f"--config={ROOT}/tests/tiny.py"]
    line += [f"--config.data.service={dispatcher}", f"--address={address}", *more]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True) as worker:

        def ready():
            told = f"24 images for {dispatcher} at {address}\n"
            assert worker.stdout.readline() == told

        yield ready
        worker.kill()


@pytest.mark.slow
def test_workers_come_and_go():
    """A second one comes and is killed; batches are the same."""
    c = tiny.recipe()
    plain = taken(assembly.build(c).loader(3), 150)
    c.data.service = free()
    with serving(c.data.service, "--dispatch") as first:
        first()
        with serving(c.data.service) as second:
            loader = assembly.build(c).loader(3)
            batches = iter(loader)
            found = list(itertools.islice(batches, 50))
            second()
            found += itertools.islice(batches, 50)
        found += itertools.islice(batches, 50)
        loader.close()
        same(found, plain)
        c.data.batch_size = 32
        with pytest.raises(ValueError, match="start both with the same recipe"):
            next(iter(assembly.build(c).loader(3)))
