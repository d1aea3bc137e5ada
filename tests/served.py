"""A worker of tf.data service that does what the trainer's text says, for its tests.

python tests/served.py DISPATCHER              # prints a line, and goes on
Loader(stream, DISPATCHER, served.about(records="mixed", wait="some"))
"""

import json
import pathlib
import random
import sys
import time

from test_loaders import LINE, Memory, mixed

from jaxface.data import host, ops, service, stream


def about(*, records="mixed", wait=""):
    """What is wanted: which records, and for what a batch waits."""
    return json.dumps([records, wait])


def records(kind):
    """Records by name: good ones, some bad, most bad."""
    if kind == "mixed":
        return mixed()
    if kind == "some bad":
        return [*mixed(), OSError("gone"), b"no image"]
    if kind == "most bad":
        return [OSError("gone")] * 9 + mixed()[:1]
    raise ValueError(f"no {kind} here")


def part(kind, host=0, hosts=1):
    """The stream of one process."""
    line = ops.parse(LINE)
    given = {"batch_size": 4, "seed": 3, "host": host, "hosts": hosts, "max_bad": 0.5}
    return stream.Stream(Memory(records(kind)), line, split=True, **given)


def make(text, step, k, n):
    """Make a batch, after the wait that the text wants."""
    kind, wait = json.loads(text)
    loader = host.Loader(part(kind, k, n), start_step=step)
    try:
        batch = next(iter(loader))
    finally:
        loader.close()
    if wait == "some":
        time.sleep(0.05 * random.random())
    elif wait and step >= int(wait.split()[0]):
        last, path = int(wait.split()[1]), pathlib.Path(wait.split()[2])
        while step <= last and not path.exists():
            time.sleep(0.01)
    return batch, loader.bad


if __name__ == "__main__":
    dispatcher, number = sys.argv[1:]
    dispatching = service.dispatch(dispatcher) if number == "1" else None
    worker = service.Worker(make, dispatcher=dispatcher, address="127.0.0.1:0")
    print("ready", flush=True)
    worker.join()
