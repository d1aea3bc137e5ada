"""Which example stands where, and what takes the place of an unreadable one.

The law: a batch is a pure function of (source, line, seed, step) and of which
examples are unreadable, never of timing, threads or the number of hosts. `Stream`
is that function; the loaders of `host` and `tfdata` only carry it out.

    stream = Stream(source, ops.parse("decode|resize(112)|flip|normalize"),
                    batch_size=128, seed=0)
    positions, examples, numbers = stream.plan(step=500)
"""

from __future__ import annotations

import copy
import functools
import math
import threading
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from absl import logging

from jaxface import types
from jaxface.data import decode, index, samplers
from jaxface.data import pipeline as pipelines

_PLANNED = 2048  # examples planned at once, in a tenth of the time of 128 each
_SHARE = 32  # examples of a thread's task; a task for each would cost more

T = TypeVar("T")
Memory = Callable[[Sequence[int], npt.DTypeLike], np.ndarray]  # (shape, type) -> empty


class Stream:
    """What both loaders agree on: which example stands where, and which are bad.

    Attributes:
        pipeline: the preprocessing that loaders carry out.
        local: examples of a step on this host.
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
        order: samplers.Order | None = None,
        split: bool = False,
    ):
        """Check that the parts fit.

        Args:
            source: labelled images.
            pipeline: their preprocessing, from `ops.parse`.
            batch_size: examples of a step over all hosts.
            seed: of order and augmentation.
            host: this host, 0 .. hosts - 1.
            hosts: how many hosts share a batch.
            max_bad: largest share of unreadable images, 0 .. 1.
            order: of a sampler; every image once an epoch where it is None.
            split: leave what `pipeline.split` gives second to whoever has the batch.

        Raises:
            ValueError: hosts that cannot share a batch, an empty source, or colours
                that do not agree.
        """
        if not len(source):
            raise ValueError("the source is empty; wanted at least one image")
        check_color(source, pipeline)
        index.positions(0, batch_size=batch_size, host=host, hosts=hosts)  # or raise
        if not 0 <= max_bad <= 1:
            raise ValueError(f"max_bad is {max_bad}; wanted a share, 0 .. 1")
        self.pipeline = pipeline.split()[0] if split else pipeline
        self.local = batch_size // hosts
        self.bad: dict[str, str] = {}
        self._source, self._seed = source, seed
        self._slice: Callable[[int], np.ndarray] = functools.partial(
            index.positions, batch_size=batch_size, host=host, hosts=hosts
        )
        self._order = order or samplers.uniform(
            source=source, batch_size=batch_size, seed=seed
        )
        self._plans = functools.lru_cache(4)(self._plan)
        self._max_bad = max_bad
        self._known: set[int] = set()
        self._memory: Memory = aligned
        self._lock = threading.Lock()

    def strided(self, first: int, every: int, memory: Memory) -> Stream:
        """Return the stream whose step k is our step first + k * every.

        Args:
            first: our step that is its first, 0 or later.
            every: 1 or more.
            memory: gives what its images are written to.
        """
        if first < 0 or every < 1:
            raise ValueError(f"every {every} steps from {first}; wanted 1 or more")
        other, ours = copy.copy(self), self._slice
        other._memory = memory
        other._slice = lambda step: ours(first + step * every)
        other._plans = functools.lru_cache(4)(other._plan)
        return other

    def plan(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return a step's positions [b], examples [b] and numbers [b, m]."""
        together = max(1, _PLANNED // self.local)
        first, which = divmod(step, together)
        rows = slice(which * self.local, (which + 1) * self.local)
        positions, examples, numbers = self._plans(first * together, together)
        return positions[rows], examples[rows], numbers[rows]

    def _plan(
        self, first: int, count: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        steps = range(first, first + count)
        positions = np.concatenate([self._slice(step) for step in steps])
        numbers = self.pipeline.numbers(positions, seed=self._seed)
        return positions, self._order(positions), numbers

    def begin(
        self, step: int, pool: futures.Executor | None = None
    ) -> Callable[[], types.Batch]:
        """Begin to make a batch in a pool's threads; what is returned waits for it.

        Without a pool that makes it.
        """
        positions, examples, numbers = self.plan(step)
        b = len(positions)
        images = _Images(b, self._memory)
        labels, found = [0] * b, [0] * b
        wanted = list(zip(positions.tolist(), examples.tolist(), numbers, strict=True))

        def make(rows: range) -> None:
            prepare = self.pipeline.numpy
            for i in rows:
                into = images.row(i)
                position, example, z = wanted[i]
                image, labels[i], found[i] = self.read(
                    position, example, prepare, z, into
                )
                if image is not into:
                    images.put(i, image)

        shares = [range(i, min(i + _SHARE, b)) for i in range(0, b, _SHARE)]
        tasks = [pool.submit(make, rows) for rows in shares] if pool else []

        def finish() -> types.Batch:
            if pool is None:
                make(range(b))
            for task in tasks:
                task.result()
            facts = self.facts(positions, labels, found)
            return {"image": images.array, **facts}

        return finish

    @property
    def mostly_decodes(self) -> bool:
        """Whether images are at most mirrored besides, going by the source's first."""
        try:
            return self.pipeline.only_decodes(self._source.read(0)[0])
        except (OSError, ValueError):  # told when its turn comes
            return False

    def facts(
        self,
        positions: np.ndarray,
        labels: Sequence[int],
        examples: Sequence[int],
    ) -> types.Batch:
        """Return what a batch [b] holds besides its images."""
        return {
            "label": np.array(labels, np.int32),
            "example": np.array(examples, np.uint32),
            "position": positions.astype(np.uint32),  # modulo 2**32: a key
        }

    def read(
        self,
        position: int,
        example: int,
        prepare: Callable[..., T],
        *how: Any,
    ) -> tuple[T, int, int]:
        """Return (prepared record, label, example) of one, or of what replaces it.

        Args:
            position: where in the stream.
            example: what stands there.
            prepare: makes of a record what is wanted, or raises `UnreadableError`.
            *how: what it is handed besides.

        Raises:
            ValueError: when more than the stated share of examples is unreadable.
        """
        attempt = 0
        while True:
            if example not in self._known:
                try:
                    record, label = self._source.read(example)
                    return prepare(record, *how), label, example
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


class _Images:
    """A batch of images [b, H, W, 3], of the size and type of its first one."""

    def __init__(self, b: int, memory: Memory):
        self._b, self._memory, self._lock = b, memory, threading.Lock()
        self.array = np.empty((0, 0, 0, 3), np.uint8)

    def row(self, i: int) -> np.ndarray | None:
        """Return where image i is to go, once that is known."""
        return self.array[i] if self.array.size else None

    def put(self, i: int, image: np.ndarray) -> None:
        """Keep image i."""
        with self._lock:
            if not self.array.size:
                self.array = self._memory((self._b, *image.shape), image.dtype)
        if image.shape != self.array.shape[1:]:
            raise ValueError(
                f"images of several sizes in a batch: {image.shape[:2]} and"
                f" {self.array.shape[1:3]}; add a resize or a crop to the line"
            )
        self.array[i] = image


def aligned(shape: Sequence[int], dtype: npt.DTypeLike) -> np.ndarray:
    """Return empty memory that JAX and TensorFlow on a CPU take without copying."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + 64, np.uint8)
    first = -memory.ctypes.data % 64
    return memory[first : first + size].view(dtype).reshape(shape)


def check_color(source: types.Source, pipeline: pipelines.Pipeline) -> None:
    """Refuse a source whose channel order is not the one the line declares."""
    if source.color != pipeline.reads:
        raise ValueError(
            f"the source gives {source.color}, the preprocessing declares"
            f" {pipeline.reads}; write decode(color={source.color!r}), and `bgr` before"
            " `normalize` for a model that wants it swapped"
        )
