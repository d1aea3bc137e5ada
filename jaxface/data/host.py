"""Batches without TensorFlow: threads that read, decode and augment ahead.

The law: a batch is a pure function of (source, line, seed, step) and of which
examples are unreadable, never of timing, threads or the number of hosts. `Stream`
is that function; `tfdata` reads the same one.

    loader = Loader(source, ops.parse("decode|resize(112)|flip|normalize"),
                    batch_size=128, seed=0, start_step=500)
    for batch in loader:                       # endless
        batch["image"], batch["label"], batch["position"]
    loader.close()
"""

from __future__ import annotations

import collections
import functools
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any, TypeVar

import numpy as np
from absl import logging

from jaxface import types
from jaxface.data import decode, index
from jaxface.data import pipeline as pipelines

T = TypeVar("T")


class Stream:
    """What both loaders agree on: which example stands where, and which are bad.

    Attributes:
        bad: name -> reason, of the unreadable examples met so far.
    """

    def __init__(
        self,
        source: types.Source,
        pipeline: pipelines.Pipeline,
        *,
        batch_size: int,
        seed: int,
        host: int = 0,
        hosts: int = 1,
        max_bad: float = 0.01,
    ):
        if not len(source):
            raise ValueError("the source is empty; wanted at least one image")
        _check_color(source, pipeline)
        index.positions(0, batch_size=batch_size, host=host, hosts=hosts)  # or raise
        if not 0 <= max_bad <= 1:
            raise ValueError(f"max_bad is {max_bad}; wanted a share, 0 .. 1")
        self.bad: dict[str, str] = {}
        self._source, self._pipeline, self._seed = source, pipeline, seed
        self._slice = functools.partial(
            index.positions, batch_size=batch_size, host=host, hosts=hosts
        )
        self._max_bad = max_bad
        self._known: set[int] = set()
        self._lock = threading.Lock()

    def plan(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return a step's positions [b], examples [b] and numbers [b, m]."""
        positions = self._slice(step)
        examples = index.examples(positions, n=len(self._source), seed=self._seed)
        return positions, examples, self._pipeline.numbers(positions, seed=self._seed)

    def read(
        self,
        position: int,
        example: int,
        prepare: Callable[[bytes | np.ndarray], T],
    ) -> tuple[T, int]:
        """Return (prepared record, label) of an example or of its first substitute.

        Args:
            position: where in the stream.
            example: what stands there.
            prepare: makes of a record what is wanted, or raises `UnreadableError`.

        Raises:
            ValueError: when more than the stated share of examples is unreadable.
        """
        attempt = 0
        while True:
            if example not in self._known:
                try:
                    record, label = self._source.read(example)
                    return prepare(record), label
                except (OSError, decode.UnreadableError) as error:
                    self._mark(example, error)
            self._check_share()
            attempt += 1
            example = index.substitute(
                position, attempt, n=len(self._source), seed=self._seed
            )

    def _mark(self, example: int, error: Exception) -> None:
        with self._lock:
            if example not in self._known:
                name = self._source.name(example)
                logging.warning("replaced unreadable image %s: %s", name, error)
                self._known.add(example)
                self.bad[name] = str(error)

    def _check_share(self) -> None:
        count, n = len(self._known), len(self._source)
        if count > self._max_bad * n or count == n:  # or nothing is left to draw
            with self._lock:
                first = ", ".join(f"{k} ({v})" for k, v in list(self.bad.items())[:5])
            raise ValueError(
                f"{count} of {n} images ({count / n:.2%}) are unreadable, more than"
                f" max_bad={self._max_bad:.2%} allows: {first}; repair or remove them,"
                " or raise max_bad"
            )


class Loader:
    """Endless training batches, read ahead by threads, in order.

    Each iteration begins at `start_step`. Errors of the threads are raised where
    their batch would have come.
    """

    def __init__(
        self,
        source: types.Source,
        pipeline: pipelines.Pipeline,
        *,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        host: int = 0,
        hosts: int = 1,
        workers: int = 2,
        prefetch: int = 2,
        max_bad: float = 0.01,
    ):
        """Start the threads.

        Args:
            source: labelled images.
            pipeline: their preprocessing, from `ops.parse`.
            batch_size: examples of a step over all hosts.
            seed: of order and augmentation.
            start_step: the first step; all that resuming needs.
            host: this host, 0 .. hosts - 1.
            hosts: how many hosts share a batch.
            workers: threads.
            prefetch: batches made ahead of the one in use.
            max_bad: largest share of unreadable images, 0 .. 1.

        Raises:
            ValueError: hosts that cannot share a batch, an empty source, or colours
                that do not agree.
        """
        self._stream = Stream(
            source,
            pipeline,
            batch_size=batch_size,
            seed=seed,
            host=host,
            hosts=hosts,
            max_bad=max_bad,
        )
        self.bad = self._stream.bad
        self._pipeline, self._start, self._prefetch = pipeline, start_step, prefetch
        self._pool = futures.ThreadPoolExecutor(workers, "jaxface-loader")

    def __iter__(self) -> Iterator[types.Batch]:
        steps = map(self._submit, itertools.count(self._start))
        for positions, examples in _ahead(steps, count=self._prefetch):
            images, labels = zip(*(e.result() for e in examples), strict=True)
            yield {
                "image": _stack(images),
                "label": np.array(labels, np.int32),
                "position": positions.astype(np.uint32),  # modulo 2**32: a key
            }

    def close(self) -> None:
        """End the threads; iterating afterwards is an error."""
        self._pool.shutdown(cancel_futures=True)

    def _submit(self, step: int) -> tuple[np.ndarray, list[futures.Future[Any]]]:
        positions, examples, numbers = self._stream.plan(step)
        return positions, [
            self._pool.submit(
                self._stream.read,
                int(p),
                int(e),
                functools.partial(self._pipeline.numpy, numbers=z),
            )
            for p, e, z in zip(positions, examples, numbers, strict=True)
        ]


def batches_once(
    source: types.Source,
    pipeline: pipelines.Pipeline,
    *,
    batch_size: int,
    workers: int = 2,
) -> Iterator[types.Batch]:
    """Yield every image once, in order, in full batches.

    Args:
        source: images.
        pipeline: a line that draws no random numbers.
        batch_size: images per batch.
        workers: threads.

    Yields:
        image [batch_size, H, W, 3], label [batch_size] int32 and mask [batch_size]
        bool: False for the black images that fill up the last batch.

    Raises:
        ValueError: if the line is random, colours do not agree, or an image cannot
            be read; it is named, for an evaluation must not leave any out.
    """
    _check_color(source, pipeline)
    if pipeline.draws:
        raise ValueError("evaluation wants a line without random ops")
    numbers = pipeline.numbers(np.zeros(1, np.int64), seed=0)[0]

    def read(i: int) -> tuple[np.ndarray, int]:
        try:
            record, label = source.read(i)
            return pipeline.numpy(record, numbers), label
        except (OSError, decode.UnreadableError) as error:
            raise ValueError(
                f"{source.name(i)} cannot be read: {error}; repair or remove it"
            ) from error

    n = len(source)
    chunks = (range(i, min(i + batch_size, n)) for i in range(0, n, batch_size))
    with futures.ThreadPoolExecutor(workers, "jaxface-once") as pool:
        for found in _ahead((pool.map(read, chunk) for chunk in chunks), count=1):
            images, labels = zip(*found, strict=True)
            empty = batch_size - len(images)
            yield {
                "image": _stack(images + (np.zeros_like(images[0]),) * empty),
                "label": np.array(labels + (0,) * empty, np.int32),
                "mask": np.arange(batch_size) < len(images),
            }


def _ahead(items: Iterable[T], *, count: int) -> Iterator[T]:
    """Yield items in order, `count` of them begun before they are wanted."""
    begun: collections.deque[T] = collections.deque()
    for item in items:
        begun.append(item)
        if len(begun) > count:
            yield begun.popleft()
    yield from begun


def _check_color(source: types.Source, pipeline: pipelines.Pipeline) -> None:
    """Refuse a source whose channel order is not the one the line declares."""
    if source.color != pipeline.color:
        raise ValueError(
            f"the source gives {source.color}, the preprocessing declares"
            f" {pipeline.color}; write decode(color={source.color!r}) if the model"
            " expects that too"
        )


def _stack(images: tuple[np.ndarray, ...]) -> np.ndarray:
    """Stack images of one size: [B, H, W, 3]."""
    sizes = {image.shape[:2] for image in images}
    if len(sizes) > 1:
        raise ValueError(
            f"images of several sizes in a batch: {sorted(sizes)[:5]}; add a resize or"
            " a crop to the line"
        )
    return np.stack(images)
