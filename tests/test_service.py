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
import tiny
from test_experiment import ROOT
from test_loaders import LINE, Memory, mixed

from jaxface import assembly, config
from jaxface.data import host, ops, service, stream


def free():
    """An address that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as line:
        return f"127.0.0.1:{line.getsockname()[1]}"


@pytest.fixture(scope="module")
def dispatcher():
    address = free()
    dispatching = service.dispatch(address)
    yield address
    del dispatching


def stream_of(records, host=0, hosts=1):
    line = ops.parse(LINE)
    given = {"batch_size": 4, "seed": 3, "host": host, "hosts": hosts, "max_bad": 0.5}
    return stream.Stream(Memory(records), line, split=True, **given)


class Served:
    """A worker in threads of this process, and loaders of what it makes."""

    def __init__(self, dispatcher, records=None, wait=lambda step: None):
        self.records = mixed() if records is None else records
        self.dispatcher, self.wait, self.made = dispatcher, wait, []
        self.worker = service.Worker(
            self.make, dispatcher=dispatcher, address="127.0.0.1:0"
        )

    def make(self, about, step, k, n):
        if about != "faces":
            raise ValueError(f"no {about} here")
        self.wait(step)
        self.made.append(step)
        part = stream_of(self.records, k, n)
        loader = host.Loader(part, start_step=step)
        return taken(loader, 1)[0], loader.bad

    def loader(self, about="faces", k=0, n=1, start_step=0):
        return service.Loader(
            stream_of(self.records, k, n),
            self.dispatcher,
            about,
            start_step=start_step,
            host=k,
            hosts=n,
            function=self.worker.function,
        )


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


def test_a_service_gives_every_process_its_batches(dispatcher):
    served = Served(dispatcher)
    for k, n, start in ((0, 1, 0), (0, 2, 5), (1, 2, 5)):
        plain = host.Loader(stream_of(mixed(), k, n), start_step=start)
        same(taken(served.loader(k=k, n=n, start_step=start)), taken(plain))


def test_batches_that_come_in_any_order_are_put_in_theirs(dispatcher):
    rng = np.random.default_rng(0)
    served = Served(dispatcher, wait=lambda step: time.sleep(0.05 * rng.random()))
    found = taken(served.loader(), 40)
    same(found, taken(host.Loader(stream_of(mixed())), 40))
    assert served.made != sorted(served.made)


def test_a_batch_that_does_not_come_is_made_here(dispatcher):
    """As when its worker is lost; where it comes late, it is not taken twice."""
    late = threading.Event()
    served = Served(dispatcher, wait=lambda step: step == 3 and late.wait(60))
    batches = iter(served.loader())
    found = list(itertools.islice(batches, 4))
    assert 3 not in served.made
    late.set()
    found += itertools.islice(batches, 60)
    same(found, taken(host.Loader(stream_of(mixed())), 64))
    assert 3 in served.made


def test_unreadable_images_are_replaced_alike_and_told(dispatcher):
    records = [*mixed(), OSError("gone"), b"no image"]
    plain = host.Loader(stream_of(records))
    loader = Served(dispatcher, records).loader()
    same(taken(loader, 12), taken(plain, 12))
    assert loader.bad.keys() == plain.bad.keys() == {"image-10", "image-11"}


def test_what_a_worker_refuses_is_raised_here(dispatcher):
    served = Served(dispatcher)
    loader = served.loader("voices")
    with pytest.raises(ValueError, match=r"a worker of 127.*no voices here"):
        next(iter(loader))
    loader.close()
    loader = Served(dispatcher, [OSError("gone")] * 9 + mixed()[:1]).loader()
    with pytest.raises(ValueError, match="are unreadable"):
        taken(loader, 50)
    loader.close()


def test_workers_that_fall_silent_are_an_error(dispatcher, monkeypatch):
    on = threading.Event()
    served = Served(dispatcher, wait=lambda step: step < 2 or on.wait(60))
    loader = served.loader()
    batches = iter(loader)
    same(list(itertools.islice(batches, 2)), taken(host.Loader(stream_of(mixed())), 2))
    monkeypatch.setattr(service, "SILENCE", 0.2)
    with pytest.raises(
        OSError, match=r"lost at step 2 \(no batch for 0.2 sec.*resumes"
    ):
        next(batches)
    loader.close()
    on.set()


def test_no_dispatcher_is_an_error():
    with pytest.raises(OSError, match=r"127.0.0.1:\d+ does not answer .*serve.py"):
        service.Loader(stream_of(mixed()), free(), "faces")


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
    """A worker in a process of its own."""
    address = free()
    line = [sys.executable, "launch/serve.py", f"--config={ROOT}/tests/tiny.py"]
    line += [f"--config.data.service={dispatcher}", f"--address={address}", *more]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True) as worker:
        told = f"24 images for {dispatcher} at {address}\n"
        assert worker.stdout.readline() == told
        yield
        worker.kill()


@pytest.mark.slow
def test_workers_come_and_go():
    """The second is killed, and a third comes; batches are the same."""
    c = tiny.recipe()
    plain = taken(assembly.build(c).loader(3), 300)
    c.data.service = free()
    with serving(c.data.service, "--dispatch"):
        loader = assembly.build(c).loader(3)
        batches = iter(loader)
        with serving(c.data.service):
            found = list(itertools.islice(batches, 100))
        found += itertools.islice(batches, 100)
        with serving(c.data.service):
            found += itertools.islice(batches, 100)
        loader.close()
        same(found, plain)
        c.data.batch_size = 32
        with pytest.raises(ValueError, match="start both with the same recipe"):
            next(iter(assembly.build(c).loader(3)))
