"""The same batches as `host`, made by a tf.data graph.

The law: batch for batch equal to `host.Loader`, pixels to a grey level. Records are
read by one call into Python per batch and decoded and augmented in parallel C++; where
decoding is all there is to do, that call does it, which spares cutting the batch apart.
An image that only C++ finds damaged stops the graph at its batch; that batch is made
again with Pillow as the judge, and the graph goes on from there.

    line = ops.parse("decode|resize(112)|flip|normalize")
    loader = Loader(Stream(source, line, batch_size=128, seed=0))
    batch = next(iter(loader))
    loader.close()
"""

from __future__ import annotations

import itertools
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

Facts = dict[int, types.Batch]  # step -> its batch without the images
AHEAD = 64 << 20  # bytes of images that tf.data may keep made


class Loader:
    """Endless training batches; arguments and batches are those of `host.Loader`."""

    def __init__(
        self,
        stream: streams.Stream,
        *,
        start_step: int = 0,
        workers: int = 2,
        prefetch: int = tf.data.AUTOTUNE,
    ):
        """Say how much is made ahead; by default tf.data finds out, within `AHEAD`.

        Without a bound it keeps hundreds of batches as soon as one is waited for.
        """
        hide_accelerators()
        self.bad = stream.bad
        self._stream, self._start, self._prefetch = stream, start_step, prefetch
        self._workers = workers
        self._pool = futures.ThreadPoolExecutor(workers, "jaxface-reader")
        self._careful = -1  # the step whose records Pillow decodes
        self._raised: BaseException | None = None

    def __iter__(self) -> Iterator[types.Batch]:
        step = self._start
        images, facts = self._dataset(step)
        while True:
            try:
                image = np.asarray(next(images))  # no copy
            except tf.errors.OpError as error:
                if self._raised:
                    raise self._raised from None
                if step == self._careful:
                    raise ValueError(
                        f"step {step}: {error.message}; if images differ in size, add"
                        " a resize or a crop to the line"
                    ) from error
                self._careful = step
                images, facts = self._dataset(step)
                continue
            yield {"image": image, **facts.pop(step)}
            step += 1

    def close(self) -> None:
        """End the threads; iterating afterwards is an error."""
        self._pool.shutdown(cancel_futures=True)

    def _dataset(self, start: int) -> tuple[Iterator[tf.Tensor], Facts]:
        """Return (images [b, H, W, 3] of every step, what else is in its batch).

        TensorFlow is handed nothing but what makes images: every further number
        would be cut apart, carried along and joined again, image by image.
        """
        stream, facts = self._stream, Facts()
        plain = tf.autograph.experimental.do_not_convert  # there is nothing to convert

        def called(make, step, kinds):
            def call(step):
                try:
                    return make(int(step), facts)
                except BaseException as error:
                    self._raised = error  # TensorFlow would make a text of it
                    raise

            return tf.numpy_function(call, [step], kinds)

        @plain
        def whole(step):
            return called(self._whole, step, tf.uint8)

        @plain
        def read(step):
            record, numbers = called(self._read, step, (tf.string, tf.float64))
            record.set_shape([stream.local])
            numbers.set_shape([stream.local, stream.pipeline.width + 1])
            return record, numbers

        @plain
        def process(record, numbers):
            return stream.pipeline.tensorflow(tf, record, numbers)

        options = tf.data.Options()
        options.threading.max_intra_op_parallelism = 1  # images are parallel already
        options.autotune.ram_budget = AHEAD
        images = tf.data.Dataset.range(start, np.iinfo(np.int64).max)
        # two at once: one may wait for files while the other's are handed on
        if stream.mostly_decodes:
            images = images.map(whole, num_parallel_calls=2, deterministic=True)
        else:
            images = (
                images.map(read, num_parallel_calls=2, deterministic=True)
                .unbatch()
                .map(process, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
                .batch(stream.local, drop_remainder=True)
            )
        return iter(images.prefetch(self._prefetch).with_options(options)), facts

    def _whole(self, step: int, facts: Facts) -> np.ndarray:
        """Make a batch of decoded images [b, H, W, 3], for there is no more to do."""
        facts[step] = self._stream.begin(step, self._pool)()
        return facts[step].pop("image")

    def _read(self, step: int, facts: Facts) -> tuple[np.ndarray, np.ndarray]:
        """Read a batch: records [b], numbers [b, m + 1]."""
        prepare = _pixels if step == self._careful else _record
        positions, examples, numbers = self._stream.plan(step)
        share = -(-len(positions) // self._workers)  # a task for each would cost more

        def read(first: int) -> list[tuple[bytes, int, int]]:
            return [
                self._stream.read(int(position), int(example), prepare)
                for position, example in zip(
                    positions[first : first + share],
                    examples[first : first + share],
                    strict=True,
                )
            ]

        parts = self._pool.map(read, range(0, len(positions), share))
        records, labels, found = zip(*itertools.chain(*parts), strict=True)
        facts[step] = self._stream.facts(positions, labels, found)
        # A spare column: TensorFlow crashes on an empty array from Python.
        return np.array(records, object), np.pad(numbers, ((0, 0), (0, 1)))


def hide_accelerators() -> None:
    """Keep TensorFlow off them, for JAX wants them."""
    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)


def _record(record: bytes | np.ndarray) -> bytes:
    """Return what C++ decodes as Pillow does, as it is or by way of pixels."""
    if isinstance(record, bytes) and decode.is_plain(record):
        return record
    return _pixels(record)


def _pixels(record: bytes | np.ndarray) -> bytes:
    return decode.pack(decode.pixels(record))
