"""How long a run takes to its first step, with and without programs kept on disk.

Law: measured from outside, in processes of their own, from the start of Python to the
end of the first step, less a steady step: what a restart costs. The second process
finds what the first one compiled.

    rows = start("iresnet.r50", batch=8, size=112, classes=1000, cpu_devices=2)
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import bench_step
import harness
import jax

from jaxface import models, parallel, spec

STEPS = 3  # steady ones


def start(
    line: str, *, batch: int, size: int, classes: int, cpu_devices: int
) -> list[harness.Row]:
    """Seconds from the start of Python to the end of the first step, less a step.

    Args:
        line: a model, such as "iresnet.r50".
        batch: images over all devices, and made, not read.
        size: height and width of an image in pixels.
        classes: C of the head.
        cpu_devices: as of `parallel.start`.

    Returns:
        "cold", where all is compiled, "warm", where it was, and a steady step.

    Raises:
        RuntimeError: a process failed; its last words are told.
    """
    told = json.dumps([line, batch, size, classes, cpu_devices])
    rows = []
    with tempfile.TemporaryDirectory() as kept:
        given = {
            "JAX_COMPILATION_CACHE_DIR": kept,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        for name in ("cold", "warm"):
            begun = time.time()
            run = subprocess.run(
                [sys.executable, __file__, told],
                env=os.environ | given,
                capture_output=True,
                text=True,
                check=False,
            )
            if run.returncode:
                raise RuntimeError(f"{line} did not start: {run.stderr[-500:]}")
            first, steady = map(float, run.stdout.split()[-2:])
            took = first - begun - steady
            rows.append(harness.Row(f"{name} start {line}", "s", took, took, took, 1))
    rows.append(harness.Row(f"step {line}", "s", steady, steady, steady, STEPS))
    return rows


def _child(line: str, batch: int, size: int, classes: int, cpu_devices: int) -> None:
    """Print when the first step ended, and how many seconds a later one takes."""
    parallel.start(cpu_devices=cpu_devices)
    mesh = parallel.make_mesh(axis=bench_step.AXIS)
    given = bench_step.batch_of(batch, size, classes)
    data = parallel.put_batch(given, mesh=mesh, axis=bench_step.AXIS)
    call = spec.parse_one(line)
    make = spec.module(models, call, kind="model", default="Model")
    train, state = bench_step.train_step(
        spec.bind(make, call)(), mesh=mesh, data=data, classes=classes
    )
    run = bench_step.training(train, state, data)
    ends = []
    for _ in range(1 + STEPS):
        jax.block_until_ready(run())
        ends.append(time.time())
    steps = [b - a for a, b in itertools.pairwise(ends)]
    print(ends[0], statistics.median(steps))


if __name__ == "__main__":
    _child(*json.loads(sys.argv[1]))
