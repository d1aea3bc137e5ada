"""The same batches as `host`, by TensorFlow: the only tf.data graph.

The law: batch for batch equal to `host.Loader`, pixels to a grey level. Records are
read by one call into Python per batch and decoded and augmented in parallel C++. An
image that only C++ finds damaged stops the graph at its batch; that batch is made
again with Pillow as the judge, and the graph goes on from there.

    line = ops.parse("decode|resize(112)|flip|normalize")
    loader = Loader(Stream(source, line, batch_size=128, seed=0))
    batch = next(iter(loader))
    loader.close()
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent import futures

import numpy as np

# Its import prints otherwise. Decoding uses no oneDNN.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import tensorflow as tf

from jaxface import types
from jaxface.data import decode
from jaxface.data import stream as streams


class Loader:
    """Endless training batches; arguments and batches are those of `host.Loader`."""

    def __init__(
        self,
        stream: streams.Stream,
        *,
        start_step: int = 0,
        workers: int = 2,
        prefetch: int = 2,
    ):
        """Hide the accelerators from TensorFlow, for JAX wants them."""
        for kind in ("GPU", "TPU"):
            tf.config.set_visible_devices([], kind)
        self.bad = stream.bad
        self._stream, self._start, self._prefetch = stream, start_step, prefetch
        self._pool = futures.ThreadPoolExecutor(workers, "jaxface-reader")
        self._careful = -1  # the step whose records Pillow decodes
        self._raised: BaseException | None = None

    def __iter__(self) -> Iterator[types.Batch]:
        step = self._start
        batches = iter(self._dataset(step))
        while True:
            try:
                batch = next(batches)
            except tf.errors.OpError as error:
                if self._raised:
                    raise self._raised from None
                if step == self._careful:
                    raise ValueError(
                        f"step {step}: {error.message}; if images differ in size, add"
                        " a resize or a crop to the line"
                    ) from error
                self._careful = step
                batches = iter(self._dataset(step))
                continue
            yield {name: value.numpy() for name, value in batch.items()}
            step += 1

    def close(self) -> None:
        """End the threads; iterating afterwards is an error."""
        self._pool.shutdown(cancel_futures=True)

    def _dataset(self, start: int) -> tf.data.Dataset:
        def read(step):
            kinds = (tf.string, tf.float64, tf.int32, tf.uint32, tf.uint32)
            record, numbers, *facts = tf.numpy_function(self._read, [step], kinds)
            for vector in (record, *facts):
                vector.set_shape([self._stream.local])
            numbers.set_shape([self._stream.local, self._stream.pipeline.width + 1])
            return record, numbers, *facts

        def process(record, numbers, label, example, position):
            image = self._stream.pipeline.tensorflow(tf, record, numbers)
            facts = {"label": label, "example": example, "position": position}
            return {"image": image, **facts}

        steps = tf.data.Dataset.range(start, np.iinfo(np.int64).max)
        return (
            # two at once: one may wait for files while the other's are handed on
            steps.map(read, num_parallel_calls=2, deterministic=True)
            .unbatch()
            .map(process, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
            .batch(self._stream.local, drop_remainder=True)
            .prefetch(self._prefetch)
        )

    def _read(self, step: np.int64) -> tuple[np.ndarray, ...]:
        """Read a batch: records, numbers [b, m + 1], labels, examples, positions."""
        prepare = _pixels if step == self._careful else _record
        positions, examples, numbers = self._stream.plan(int(step))

        def read(position, example):
            return self._stream.read(int(position), int(example), prepare)

        try:
            records, labels, found = zip(
                *self._pool.map(read, positions, examples), strict=True
            )
        except BaseException as error:
            self._raised = error  # TensorFlow would make a text of it
            raise
        return (
            np.array(records, object),
            # A spare column: TensorFlow crashes on an empty array from Python.
            np.pad(numbers, ((0, 0), (0, 1))),
            np.array(labels, np.int32),
            np.array(found, np.uint32),
            positions.astype(np.uint32),
        )


def _record(record: bytes | np.ndarray) -> bytes:
    """Return what C++ decodes as Pillow does, as it is or by way of pixels."""
    if isinstance(record, bytes) and decode.is_plain(record):
        return record
    return _pixels(record)


def _pixels(record: bytes | np.ndarray) -> bytes:
    return decode.pack(decode.pixels(record))
