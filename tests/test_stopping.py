"""Where a run stops: one step for all processes, none of which waits for ever."""

import threading
from concurrent import futures

import jax
import pytest

from jaxface.train import stopping


class Store:
    """The keys that processes share, as a client of their service has them."""

    def __init__(self):
        self.keys = {}
        self.changed = threading.Condition()

    def key_value_set(self, key, value):
        with self.changed:
            assert key not in self.keys
            self.keys[key] = value
            self.changed.notify_all()

    def key_value_dir_get(self, folder):
        with self.changed:
            return [x for x in self.keys.items() if x[0].startswith(f"{folder}/")]

    def await_keys(self, count):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.keys) >= count, 60)


class Device:
    """Steps with a collective: each ends when all processes have begun it."""

    def __init__(self, processes):
        self.begun = [0] * processes
        self.changed = threading.Condition()

    def step(self, process, *, ahead=0):
        """Begin a step and wait for an earlier one; return how many are begun."""
        with self.changed:
            self.begun[process] += 1
            self.changed.notify_all()
            count = self.begun[process]
            assert self.changed.wait_for(lambda: min(self.begun) >= count - ahead, 60)
        return count


def together(*mains):
    """Run the main threads of processes, each main(process, asked, stop)."""
    store = Store()

    def one(process):
        asked = threading.Event()
        given = {"client": store, "process": process, "processes": len(mains)}
        with stopping.agreed(asked, **given) as stop:
            return mains[process](store, asked, stop)

    with futures.ThreadPoolExecutor(len(mains)) as pool:
        return list(pool.map(one, range(len(mains)), timeout=120))


@pytest.mark.parametrize("who", [0, 1, 2])
def test_all_stop_after_the_same_step(who):
    device = Device(3)

    def main(process, ahead):
        def steps(store, asked, stop):
            while True:
                count = device.step(process, ahead=ahead)
                if count == 7 and process == who:
                    asked.set()
                if stop():
                    return count

        return steps

    found = together(main(0, 0), main(1, 5), main(2, 2))
    assert found == [found[0]] * 3
    assert found[0] >= 7


def test_who_waits_in_a_collective_is_not_waited_for():
    device, ready = Device(2), threading.Event()

    def waits(store, asked, stop):
        assert (device.step(0), stop()) == (1, False)
        ready.set()
        return device.step(0), stop()  # for a step that the other may not begin yet

    def asks(store, asked, stop):
        device.step(1)
        assert ready.wait(60)
        asked.set()
        store.await_keys(1)  # from here on it is being agreed
        assert not stop()
        return device.step(1), stop()

    assert together(waits, asks) == [(2, True), (2, True)]


def test_a_step_that_comes_back_after_the_stop_stops_too():
    def main(store, asked, stop):
        asked.set()
        store.await_keys(1)
        return [stop() for _ in range(3)]

    assert together(main) == [[True] * 3]


def test_who_leaves_waits_for_nobody():
    asked, store = threading.Event(), Store()
    with stopping.agreed(asked, client=store, process=0, processes=2):
        asked.set()
        store.await_keys(1)
    assert "stop" not in {thread.name for thread in threading.enumerate()}


def test_a_lost_service_is_told_and_no_step_lost(caplog):
    class Lost(Store):
        def key_value_dir_get(self, folder):
            raise jax.errors.JaxRuntimeError("UNAVAILABLE: connection refused")

    given = {"client": Lost(), "process": 0, "processes": 2}
    with stopping.agreed(threading.Event(), **given) as stop:
        assert not stop()
    assert "not heard: UNAVAILABLE" in caplog.text
