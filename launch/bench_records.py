"""What opening a RecordIO set of millions costs, and the first batch of it.

Law: the set is opened in a process of its own, which has imported what it needs
before the clock starts; its peak of memory counts everything since it was started.

    rows = opening(5_000_000, batch=128)

The file is sparse: only what the first batch and the header need is written, at the
bytes where it would lie if every image had `LENGTH` bytes.
"""

from __future__ import annotations

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING

import numpy as np

from jaxface.data import ops, records, stream
from jaxface.data.sources import recordio

if TYPE_CHECKING:
    import harness

LENGTH = 7000  # of a record: an aligned face of 112 pixels in JPEG
PER_CLASS = 50
LINE = "decode|resize(112)|flip|normalize"


def generate(folder: pathlib.Path, *, count: int, batch: int) -> None:
    """Write a set in insightface's layout with an index of `count` images.

    Args:
        folder: where to; it exists.
        count: images, at most 2^24.
        batch: images that really are there: those of the first batch.
    """
    C, n = -(-count // PER_CLASS), count
    offsets = np.arange(n + 1 + C, dtype=np.int64) * (LENGTH + 36)
    with open(folder / "train.idx", "w") as index:
        for start in range(0, len(offsets), 100_000):
            keys = range(start, min(start + 100_000, len(offsets)))
            index.write("".join(f"{k}\t{offsets[k]}\n" for k in keys))
    (folder / "property").write_text(f"{C},112,112")
    with open(folder / "train.rec", "wb") as rec:

        def put(key: int, label: float | tuple[float, ...], image: bytes) -> None:
            rec.seek(int(offsets[key]))
            rec.write(records.frame(records.pack(label, image, key=key)))

        put(0, (n + 1, n + 1 + C), b"")
        for i in first(n, batch):
            put(int(i) + 1, float(i // PER_CLASS), b"\xff" * LENGTH)
        put(n + C, (n + 1 - PER_CLASS, n + 1), b"")


def first(n: int, batch: int) -> np.ndarray:
    """Return which images the first batch has, without a source."""
    order = stream.Stream(_Blank(n), ops.parse(LINE), batch_size=batch, seed=0)
    return order.plan(0)[1]


class _Blank:
    """So many images; none can be read."""

    color, num_classes = "rgb", 1

    def __init__(self, n: int):
        self._n = n

    def __len__(self) -> int:
        return self._n

    def read(self, i: int) -> tuple[bytes, int]:
        raise OSError(f"image {i} is not there")

    def name(self, i: int) -> str:
        return str(i)


def first_batch(folder: str, batch: int) -> dict[str, float]:
    """Open a set, draw a batch, and tell what that took."""
    start, cpu = time.perf_counter(), time.process_time()
    source = recordio.Source(folder)
    order = stream.Stream(source, ops.parse(LINE), batch_size=batch, seed=0)
    drawn = 0
    for position, example, _ in zip(*order.plan(0), strict=True):
        drawn += len(order.read(int(position), int(example), bytes)[0])
    if drawn != LENGTH * batch:
        raise ValueError(f"read {drawn} bytes; wanted {LENGTH * batch}")
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    # not ru_maxrss, which a process has from the one that started it
    status = pathlib.Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    return {"first batch": seconds, "of a core": cpu, "memory": peak}


def opening(count: int, *, batch: int = 128, repeats: int = 5) -> list[harness.Row]:
    """Return the cost of `first_batch` for `count` images: medians and spans."""
    import harness  # and JAX, of which the timed process knows nothing

    with tempfile.TemporaryDirectory() as folder:
        generate(pathlib.Path(folder), count=count, batch=batch)
        command = [sys.executable, __file__, folder, str(batch)]
        found = [
            json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            for _ in range(repeats)
        ]
    rows = []
    for name, unit in (("first batch", "s"), ("of a core", "s"), ("memory", "MB")):
        values = [one[name] for one in found]
        middle = statistics.median(values)
        row = (f"{name} of {count:,}", unit, middle, min(values), max(values))
        rows.append(harness.Row(*row, count=repeats))
    return rows


if __name__ == "__main__":
    print(json.dumps(first_batch(sys.argv[1], int(sys.argv[2]))))
