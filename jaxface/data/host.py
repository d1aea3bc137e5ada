"""Batches without TensorFlow: threads that read, decode and augment ahead.

line = ops.parse("decode|resize(112)|flip|normalize")
stream = Stream(source, line, batch_size=128, seed=0)
loader = Loader(stream, start_step=500)
for batch in loader:                       # endless
    batch["image"], batch["label"], batch["position"], batch["example"]
loader.close()
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterable, Iterator
from concurrent import futures
from typing import TypeVar

import numpy as np

from jaxface import types
from jaxface.data import decode
from jaxface.data import pipeline as pipelines
from jaxface.data import stream as streams

T = TypeVar("T")


class Loader:
    """Endless training batches, read ahead by threads, in order.

    Each iteration begins at `start_step`. Errors of the threads are raised where
    their batch would have come.
    """

    def __init__(
        self,
        stream: streams.Stream,
        *,
        start_step: int = 0,
        workers: int = 2,
        prefetch: int = 2,
    ):
        """Start the threads.

        Args:
            stream: what stands where.
            start_step: the first step; all that resuming needs.
            workers: threads; 0: a batch is made by whoever takes it, none ahead.
            prefetch: batches made ahead of the one in use.
        """
        self.bad = stream.bad
        self._stream, self._start, self._prefetch = stream, start_step, prefetch
        self._pool = None
        if workers:
            self._pool = futures.ThreadPoolExecutor(workers, "jaxface-loader")

    def __iter__(self) -> Iterator[types.Batch]:
        steps = itertools.count(self._start)
        begun = (self._stream.begin(step, self._pool) for step in steps)
        for finish in _ahead(begun, count=self._prefetch):
            yield finish()

    def close(self) -> None:
        """End the threads; iterating afterwards is an error."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)


def batches_once(
    source: types.Source,
    pipeline: pipelines.Pipeline,
    *,
    batch_size: int,
    workers: int = 2,
    seed: int | None = None,
) -> Iterator[types.Batch]:
    """Yield every image once, in order, in full batches.

    Args:
        source: images.
        pipeline: a line that draws no random numbers, or is given a seed.
        batch_size: images per batch.
        workers: threads.
        seed: of what the line draws; an image's place in the source is its position.

    Yields:
        image [batch_size, H, W, 3], label [batch_size] int32 and mask [batch_size]
        bool: False for the black images that fill up the last batch.

    Raises:
        ValueError: if the line is random, colours do not agree, or an image cannot
            be read; it is named, for an evaluation must not leave any out.
    """
    streams.check_color(source, pipeline)
    if pipeline.draws and seed is None:
        raise ValueError("evaluation wants a line without random ops")

    def read(i: int, z: np.ndarray) -> tuple[np.ndarray, int]:
        try:
            record, label = source.read(i)
            return pipeline.numpy(record, z), label
        except (OSError, decode.UnreadableError) as error:
            raise ValueError(
                f"{source.name(i)} cannot be read: {error}; repair or remove it"
            ) from error

    def chunks(pool: futures.Executor) -> Iterator[Iterator[tuple[np.ndarray, int]]]:
        for i in range(0, len(source), batch_size):
            places = np.arange(i, min(i + batch_size, len(source)))
            numbers = pipeline.numbers(places, seed=seed or 0)
            yield pool.map(read, places.tolist(), numbers)

    with futures.ThreadPoolExecutor(workers, "jaxface-once") as pool:
        for found in _ahead(chunks(pool), count=1):
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


def _stack(images: tuple[np.ndarray, ...]) -> np.ndarray:
    """Stack images of one size: [B, H, W, 3]."""
    sizes = {image.shape[:2] for image in images}
    if len(sizes) > 1:
        raise ValueError(
            f"images of several sizes in a batch: {sorted(sizes)[:5]}; add a resize or"
            " a crop to the line"
        )
    return np.stack(images)
