"""How fast images come in: read, decoded, augmented and batched, on few cores.

Law: everybody decodes the same bytes on the same cores, in turn (`harness`). The bound
is a loop that does nothing but decode them, from memory, by the fastest decoder there
is as anybody calls it. A process for each number of cores keeps itself to those.

    rows = feed("folder(path='faces.tar')", lines=LINES, cores=[1, 2], batch=128, ...)

A row "placed" ends with float32 images on the device, which on a machine without an
accelerator takes of the same cores; a row "loaded" ends where a device would begin.
"""

from __future__ import annotations

import functools
import io
import itertools
import multiprocessing
import os
import resource
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import simplejpeg
from PIL import Image

from jaxface import assembly, parallel, types
from jaxface.data import decode, host, index, ops, processes, samplers, stream
from jaxface.data.sources import synthetic

LINES = ("decode|flip|normalize",)
KINDS = ("tfdata", "host", "processes")  # threads of TensorFlow's, of ours, processes
REST = 0.3  # seconds, in which any loader's threads come to wait
HELD = 8192  # images that the bound and torch hold in memory
OURS = "decode.pixels"
DRAWS, AT_ONCE = 1_000_000, 8_000
MEAN = STD = 127.5


class Rendered:
    """Rendered faces as JPEG of quality 90 in memory, for who has no others."""

    color = "rgb"

    def __init__(self, *, identities: int = 64, per_identity: int = 4, size: int = 112):
        faces = synthetic.Source(
            identities=identities, per_identity=per_identity, size=size
        )
        self.num_classes, self.labels = identities, faces.labels
        self._files = [_jpeg(faces.read(i)[0]) for i in range(len(faces))]

    def __len__(self) -> int:
        return len(self._files)

    def read(self, i: int) -> tuple[bytes, int]:
        """Return (JPEG, label)."""
        return self._files[i], int(self.labels[i])

    def name(self, i: int) -> str:
        """Return its number."""
        return f"rendered/{i}"


def feed(
    source: str,
    *,
    lines: Sequence[str],
    cores: Iterable[int],
    batch: int,
    repeats: int = 7,
    count: int = 4096,
) -> list[harness.Row]:
    """Images a second of our loaders, of PyTorch's, and of decoding alone.

    Args:
        source: line of a source of JPEG files; empty for rendered faces.
        lines: preprocessing, each from `decode` to `normalize`.
        cores: numbers of processor cores.
        batch: images of a batch.
        repeats: rounds timed, after one that is not.
        count: images of a round, about.

    Returns:
        For each number of cores the speeds, the share of the fastest bound that each
        line reaches, its share of a loop over our own `decode.pixels`, which is faster,
        its ratio to the best DataLoader, and growth of memory in MB.

    Raises:
        ValueError: more cores than there are.
    """
    found = []
    for n in cores:
        if not 1 <= n <= len(os.sched_getaffinity(0)):
            raise ValueError(
                f"{n} cores wanted, this process may use {len(os.sched_getaffinity(0))}"
            )
        context = multiprocessing.get_context("spawn")
        with futures.ProcessPoolExecutor(1, context) as pool:
            found += pool.submit(
                measure,
                source,
                lines=tuple(lines),
                cores=n,
                batch=batch,
                repeats=repeats,
                count=count,
            ).result()
    return found


def measure(
    source: str,
    *,
    lines: Sequence[str],
    cores: int,
    batch: int,
    repeats: int,
    count: int,
) -> list[harness.Row]:
    """Do what `feed` does for one number of cores, in a process of its own."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    parallel.keep_freed()  # as runs on a CPU do, for all opponents alike
    images = opened(source)
    records = [images.read(i)[0] for i in range(min(len(images), HELD))]
    steps = -(-count // batch)
    race = functools.partial(harness.race, unit="images/s", rest=REST)

    # before there are threads, for this forks; one after the other, for each holds
    # two batches for every process of its
    found = opponents(records, cores, batch)
    tried = [
        race({name: _drawing(iter(each), steps, batch)}, warmup=0, repeats=1)[0]
        for name, each in found.items()
    ]
    tried.sort(key=lambda row: -row.value)
    rivals = {
        row.name: _drawing(iter(found[row.name]), steps, batch) for row in tried[:3]
    }
    bounds = {
        f"bound: {name}": harness.Candidate(
            _decoding(decoder, records, cores, count), count
        )
        for name, decoder in decoders().items()
    }
    alone = harness.Candidate(_decoding(decode.pixels, records, cores, count), count)
    loaders, ours = [], {OURS: alone}
    for line, kind in itertools.product(lines, KINDS):
        loader = make_loader(kind, source, line, batch, cores)
        loaders.append(loader)
        batches = iter(loader)
        ours[f"{kind} loaded: {line}"] = _drawing(batches, steps, batch)
        placed = map(finisher(line), batches)
        ours[f"{kind} placed: {line}"] = _drawing(placed, steps, batch)
    rows = race({**bounds, **rivals, **ours}, warmup=1, repeats=repeats)
    best = max((r for r in rows if r.name in rivals), key=lambda row: row.value).name
    rows += _ratios(rows, best) + memory(images, lines[0], batch, loaders[0])
    for loader in loaders:
        loader.close()
    return [_renamed(row, f"{cores} cores, {row.name}") for row in rows]


# --- the bound ------------------------------------------------------------------------


def decoders() -> dict[str, Callable[[bytes], Any]]:
    """Return the JPEG decoders there are, by name: bytes to RGB."""
    found: dict[str, Callable[[bytes], Any]] = {"Pillow": _pillow}
    try:
        import cv2
    except ImportError:
        return found  # its absence shows in the table
    cv2.setNumThreads(1)
    return {"OpenCV": _opencv, "simplejpeg": simplejpeg.decode_jpeg, **found}


def _pillow(record: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(record)).convert("RGB"))


def _opencv(record: bytes) -> np.ndarray:
    import cv2

    return cv2.imdecode(np.frombuffer(record, np.uint8), cv2.IMREAD_COLOR_RGB)


def _decoding(
    decode: Callable[[bytes], Any], records: Sequence[bytes], cores: int, count: int
) -> Callable[[], object]:
    pool = futures.ThreadPoolExecutor(cores)

    def some(first: int) -> None:
        for i in range(first, count, cores):
            decode(records[i % len(records)])

    return lambda: list(pool.map(some, range(cores)))


# --- PyTorch --------------------------------------------------------------------------


class Dataset:
    """What a PyTorch user would write: decode, flip, and normalise or leave that."""

    def __init__(self, records: Sequence[bytes], decoder: str, *, whole: bool):
        """Hold the files in memory, which spares this opponent the reading."""
        self.records, self.whole = records, whole
        self.decode = decoders()[decoder]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        import torch

        image = self.decode(self.records[i])
        if torch.rand(()) < 0.5:
            image = image[:, ::-1]
        tensor = torch.from_numpy(np.require(image, requirements=["C", "W"]))
        if self.whole:
            tensor = tensor.permute(2, 0, 1).float().sub_(MEAN).div_(STD)
        return tensor, i


def opponents(
    records: Sequence[bytes], cores: int, batch: int
) -> dict[str, Iterable[Any]]:
    """Return DataLoaders by their settings, endless; none without PyTorch.

    Tried are the decoder, no process, one, one or two for each core, and images
    normalised one by one where they are decoded, or a batch at a time in the main
    process, by one thread or as many as cores.
    """
    try:
        import torch
    except ImportError:
        raise ImportError(
            "bench.py --what=input compares with PyTorch: pip install jaxface[peers]"
        ) from None
    found: dict[str, Iterable[Any]] = {}
    counts, threads = sorted({0, 1, cores, 2 * cores}), sorted({1, cores})
    for decoder, count, by in itertools.product(decoders(), counts, (0, *threads)):
        loader = torch.utils.data.DataLoader(
            Dataset(records, decoder, whole=not by),
            batch_sampler=Endless(len(records), batch),
            num_workers=count,
        )
        how = f"batches normalised by {by} threads" if by else "each normalised"
        name = f"DataLoader: {decoder}, {count} processes, {how}"
        found[name] = _Normalised(loader, by) if by else loader
    return found


class Endless:
    """Batches of places, another order each epoch, without end."""

    def __init__(self, n: int, batch: int):
        self.n, self.batch = n, batch

    def __iter__(self) -> Iterator[list[int]]:
        for step in itertools.count():
            places = index.positions(step, batch_size=self.batch)
            yield index.examples(places, n=self.n, seed=0).tolist()


class _Normalised:
    def __init__(self, loader: Iterable[Any], threads: int):
        self.loader, self.threads = loader, threads

    def __iter__(self) -> Iterator[Any]:
        import torch

        for image, label in self.loader:
            torch.set_num_threads(self.threads)
            yield image.float().sub_(MEAN).div_(STD), label


# --- ours -----------------------------------------------------------------------------


@functools.cache
def opened(source: str) -> types.Source:
    """Return the images of a line; rendered faces of an empty one."""
    return assembly.flow(source) if source else Rendered()


def make_loader(
    kind: str, source: str, line: str, batch: int, cores: int
) -> types.Batches:
    """Return our loader, set as a run sets it."""
    if kind == "processes":
        made = functools.partial(_made, source=source, line=line, batch=batch)
        return processes.Loader(made, count=cores)
    order = _order(source, line, batch)
    if kind == "host":
        return host.Loader(order, workers=cores)
    from jaxface.data import tfdata

    return tfdata.Loader(order, workers=cores)


def _order(source: str, line: str, batch: int) -> stream.Stream:
    parsed = ops.parse(line)
    return stream.Stream(
        opened(source), parsed, batch_size=batch, seed=0, max_bad=0.0, split=True
    )


def _made(
    first: int, every: int, memory: stream.Memory, *, source: str, line: str, batch: int
) -> types.Batches:
    order = _order(source, line, batch).strided(first, every, memory)
    return host.Loader(order, workers=0)


def finisher(line: str) -> Callable[[types.Batch], jax.Array]:
    """Return what `Run.batches` does to a batch: place it, and end the line there."""
    _, rest = ops.parse(line).split()
    compiled = jax.jit(lambda images: rest.batch(jnp, images))

    def finish(batch: types.Batch) -> jax.Array:
        return compiled(jax.device_put(batch["image"])).block_until_ready()

    return finish


def memory(
    source: types.Source, line: str, batch: int, loader: types.Batches
) -> list[harness.Row]:
    """Return how far memory grows over a million draws, and over some batches."""
    order = samplers.uniform(source=source, batch_size=batch, seed=0)
    pipeline = ops.parse(line)

    def draw(step: int) -> None:
        places = index.positions(step, batch_size=AT_ONCE)
        order(places)
        pipeline.numbers(places, seed=0)

    batches = iter(loader)
    found = []
    for name, once, count in (
        (f"{DRAWS:,} draws", draw, DRAWS // AT_ONCE),
        (f"{40 * batch:,} images", lambda _: next(batches), 40),
    ):
        for step in range(8):  # what is only made once
            once(step)
        before = _resident()
        for step in range(count):
            once(step)
        grown = (_resident() - before) / 1e6
        found.append(
            harness.Row(f"memory grown by {name}", "MB", grown, grown, grown, 1)
        )
    return found


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


# --- figures --------------------------------------------------------------------------


def _drawing(batches: Iterator[Any], steps: int, batch: int) -> harness.Candidate:
    """Time some batches, after as many as may have been made ahead meanwhile."""

    def draw(count: int) -> None:
        for _ in range(count):
            next(batches)

    return harness.Candidate(lambda: draw(steps), steps * batch, lambda: draw(16))


def _ratios(rows: Sequence[harness.Row], torch: str) -> list[harness.Row]:
    value = {row.name: row.value for row in rows}
    bound = max(v for name, v in value.items() if name.startswith("bound"))
    found = []
    for name in value:
        if name.startswith(KINDS):
            for words, other in (
                ("of the bound", bound),
                ("of our decoding", value[OURS]),
                ("DataLoaders", value[torch]),
            ):
                ratio = value[name] / other
                found.append(harness.Row(name, words, ratio, ratio, ratio, 1))
    return found


def _renamed(row: harness.Row, name: str) -> harness.Row:
    return harness.Row(name, row.unit, row.value, row.low, row.high, row.count)


def _jpeg(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=90)
    return out.getvalue()
