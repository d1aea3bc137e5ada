"""tf.data service: other machines make the batches of a run.

The law: a batch is a function of its step, so it is the same whoever makes it. The
service hands steps to workers as these come free, and batches come in any order: each
once or, with a worker that is lost, never. Here they are put in order, and one that
does not come is made here. So workers may come and go.

    handing_out = dispatch("a:7070")                        # on one machine
    working = Worker(make, dispatcher="a:7070", address="b:7071")     # on each of them
    stream = Stream(source, line, batch_size=128, seed=0, split=True)
    loader = Loader(stream, "a:7070", about, start_step=500)

The readers are Python, of which a graph has but a name. TensorFlow looks it up in the
process where the graph runs, and a worker's process has them.

TensorFlow keeps no secret and does what it is sent: let nobody but the machines of a
run reach these ports.
"""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from absl import logging

from jaxface import types
from jaxface.data import stream as streams
from jaxface.data.tfdata import hide_accelerators, tf

FIRST = "pyfunc_0"  # TensorFlow's name of the first function of a process
ASKED = 16  # batches on their way here
EARLY = 32  # batches that came before one that is then made here
SILENCE = 600.0  # seconds without a batch after which all workers are lost
_GREETING = 10.0  # seconds for a dispatcher to answer
_KINDS = (tf.int64, tf.string, tf.uint8, tf.int32, tf.uint32, tf.uint32)

# (about, step, host, hosts) -> (that process's batch, name -> why it is unreadable)
Make = Callable[[str, int, int, int], tuple[types.Batch, dict[str, str]]]


class Loader:
    """Endless training batches from a service; as `host.Loader`, `bad` included."""

    def __init__(
        self,
        stream: streams.Stream,
        dispatcher: str,
        about: str,
        *,
        start_step: int = 0,
        host: int = 0,
        hosts: int = 1,
    ):
        """Look whether there is a dispatcher.

        Args:
            stream: of this process; it makes what does not come.
            dispatcher: its host:port.
            about: all that decides what is in a batch; the workers' must equal.
            start_step: the first step; all that resuming needs.
            host: this process, 0 .. hosts - 1.
            hosts: how many processes share a batch.

        Raises:
            OSError: there is none.
        """
        try:
            socket.create_connection(place(dispatcher), _GREETING).close()
        except OSError as error:
            raise OSError(
                f"the dispatcher {dispatcher} does not answer ({error}); start it with"
                " launch/serve.py --dispatch, or leave out config.data.service"
            ) from None
        hide_accelerators()
        self.bad = stream.bad
        self._stream, self._start, self._dispatcher = stream, start_step, dispatcher
        self._given = [tf.constant(x) for x in (about, host, hosts)]
        self._found: queue.Queue[Any] = queue.Queue(1)
        self._closed = threading.Event()

    def __iter__(self) -> Iterator[types.Batch]:
        found = self._found = queue.Queue(1)
        # not of a pool, for whose threads Python waits when it ends
        threading.Thread(target=self._fetch, args=[found], daemon=True).start()
        early: dict[int, types.Batch] = {}
        step = self._start
        while True:
            while step not in early and len(early) < EARLY:
                number, batch = self._next(found, step)
                if number >= step:  # else it was made here meanwhile
                    early[number] = batch
            if step in early:
                yield early.pop(step)
            else:
                logging.warning("step %d did not come; made here", step)
                yield self._stream.begin(step)()
            step += 1

    def close(self) -> None:
        """End the threads; iterating afterwards is an error."""
        self._closed.set()
        with contextlib.suppress(queue.Empty):
            self._found.get_nowait()  # a thread may wait for the place

    def _fetch(self, found: queue.Queue[Any]) -> None:
        """Hand on what comes until closed; last an error, if there is one."""
        try:
            for each in self._dataset():
                found.put(each)
                if self._closed.is_set():
                    return
        except tf.errors.OpError as error:
            found.put(error)

    def _dataset(self) -> tf.data.Dataset:
        about, host, hosts = self._given

        def make(step: tf.Tensor) -> Any:
            asked = [about, step, host, hosts]
            return tf.raw_ops.PyFunc(input=asked, token=FIRST, Tout=_KINDS)

        service = tf.data.experimental.service
        distributed = service.distribute(
            service.ShardingPolicy.DYNAMIC,
            f"grpc://{self._dispatcher}",
            max_outstanding_requests=ASKED,
            compression=None,
        )
        steps = tf.data.Dataset.range(self._start, np.iinfo(np.int64).max)
        # two at once: one may wait for files while the other's are decoded
        return steps.map(make, num_parallel_calls=2).apply(distributed)

    def _next(self, found: queue.Queue[Any], step: int) -> tuple[int, types.Batch]:
        try:
            each = found.get(timeout=SILENCE)
        except queue.Empty:
            each = f"no batch for {SILENCE:g} seconds"
        if not isinstance(each, tuple):
            raise OSError(
                f"the workers of {self._dispatcher} were lost at step {step} ({each});"
                " start again, and the run resumes"
            )
        number, told, image, *others = (np.asarray(x) for x in each)  # no copies
        facts = json.loads(told.item())
        if "error" in facts:
            raise ValueError(f"a worker of {self._dispatcher}: {facts['error']}")
        self.bad |= facts["bad"]
        rest = dict(zip(("label", "example", "position"), others, strict=True))
        return int(number), {"image": image.view(facts["kind"]), **rest}


class Worker:
    """Makes batches in threads of TensorFlow's, until its process is killed."""

    def __init__(self, make: Make, *, dispatcher: str, address: str):
        """Begin.

        Args:
            make: what makes a batch, or raises a ValueError for the trainer.
            dispatcher: its host:port.
            address: host:port of this worker for trainers; port 0: any free one.

        Raises:
            RuntimeError: TensorFlow knows a function of this process already.
            OSError: the port cannot be had.
        """
        hide_accelerators()
        self._graph, function = _named(make)
        if function != FIRST:
            raise RuntimeError(f"the function is {function}; wanted {FIRST}")
        name, port = place(address)
        service = tf.data.experimental.service
        logging.info("joining %s, or waiting for it", dispatcher)
        self._server = _started(
            service.WorkerServer,
            service.WorkerConfig(
                dispatcher_address=dispatcher,
                worker_address=f"{name}:%port%",
                port=port,
            ),
        )

    def join(self) -> None:
        """Work until killed."""
        self._server.join()


def dispatch(address: str) -> Any:
    """Return what hands steps to workers, at a port of this machine.

    Raises:
        OSError: the port cannot be had.
    """
    _, port = place(address)
    service = tf.data.experimental.service
    return _started(service.DispatchServer, service.DispatcherConfig(port=port))


def _started(server: Callable[[Any], Any], what: Any) -> Any:
    try:
        return server(what)
    except RuntimeError as error:
        raise OSError(f"port {what.port} cannot be had: {error}; try another") from None


def place(address: str) -> tuple[str, int]:
    """Read "host:port"."""
    name, _, port = address.rpartition(":")
    if not name or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"address {address!r}; wanted host:port, as in 'a:7070'")
    return name, int(port)


def _named(make: Make) -> tuple[tf.Graph, str]:
    """Return TensorFlow's name of a function, known as long as the graph is kept."""

    def call(about: bytes, step: int, host: int, hosts: int) -> tuple[Any, ...]:
        told: dict[str, Any]
        try:
            batch, bad = make(about.decode(), int(step), int(host), int(hosts))
            told = {"bad": bad, "kind": batch["image"].dtype.name}
        except (ValueError, OSError) as error:
            none = np.zeros(0, np.uint32)
            batch = dict.fromkeys(("image", "label", "example", "position"), none)
            told = {"error": str(error)}
        return (
            np.int64(step),
            json.dumps(told).encode(),
            batch["image"].view(np.uint8),
            batch["label"].astype(np.int32, copy=False),
            batch["example"],
            batch["position"],
        )

    with tf.Graph().as_default() as graph:
        asked = [tf.constant(x) for x in ("", np.int64(0), 0, 0)]
        made = tf.numpy_function(call, asked, _KINDS)
    return graph, made[0].op.get_attr("token").decode()
