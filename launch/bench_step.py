"""How fast a network trains and embeds on this machine, and how much of it it uses.

Law: the images are on the devices already and no step waits for the host; who is
compared takes turns (`harness`), and the peak that speeds are a share of is a matrix
product raced in the same rounds.

    rows = step(["vit.t"], batch=16, size=112, classes=1000, vs="torch")
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import bench_torch
import harness
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxface import embed, models, parallel, spec, types
from jaxface.losses import softmax
from jaxface.models import forms
from jaxface.train import optim
from jaxface.train import step as steps

AXIS = "data"
MODELS = (
    "iresnet(stages=(1, 1, 1, 1), widths=(32, 64, 128, 256), stem_stride=2, dim=128)",
    "mobilefacenet.paper",
)
MARGIN, SCALE, RATE = 0.2, 24.0, 1e-3
SIDES = {"cpu": 1024}  # of the matrices that show the peak, one on each device
SIDE = 8192  # of those of accelerators, which need much to do

Program = Callable[..., Any]


def step(
    lines: Sequence[str],
    *,
    batch: int,
    size: int,
    classes: int,
    dtype: str = "float32",
    vs: str = "",
    repeats: int = 7,
) -> list[harness.Row]:
    """Images a second of training and of evaluation, on all devices.

    Args:
        lines: models, such as "mobilefacenet.paper".
        batch: images over all devices, and there already: no input is read.
        size: height and width of an image in pixels.
        classes: C of the head.
        dtype: what the networks compute in; parameters stay float32.
        vs: also race "torch", PyTorch's step of the same networks, the best way it has
            here, or "native", ours in XLA's own forms only.
        repeats: rounds timed.

    Returns:
        For every model the seconds to compile its train step and its forward pass and
        the memory of a step, then the speeds of both, the share of a matrix product's
        rate that the compiler's count of operations in a forward pass, three times that
        in a step, amounts to, and ours / the other's.

    Raises:
        KeyError: an unknown model.
        ValueError: a batch that the devices cannot share evenly, no twin, or a race
            with PyTorch on another device or dtype than its own.
    """
    mesh = parallel.make_mesh(axis=AXIS)
    if batch % mesh.size:
        raise ValueError(f"{mesh.size} devices cannot share {batch} images evenly")
    kind = mesh.devices.flat[0].platform
    if vs == "torch" and (kind, dtype) != ("cpu", "float32"):
        raise ValueError(
            f"PyTorch's step is raced on CPUs in float32; this is {dtype} on {kind}:"
            " leave --vs out"
        )
    given = batch_of(batch, size, classes)
    data = parallel.put_batch(given, mesh=mesh, axis=AXIS)
    images = data["image"]
    rows: list[harness.Row] = []
    flops: dict[str, float] = {}
    candidates = {"matmul": _matmul(mesh, dtype)}
    rivals: dict[str, str] = {}  # the other's -> ours
    for line in lines:
        call = spec.parse_one(line)
        make = spec.module(models, call, kind="model", default="Model")
        model = spec.bind(make, call)(dtype=jnp.dtype(dtype))
        begin = functools.partial(
            train_step, model, mesh=mesh, data=data, classes=classes
        )
        train, state = begin()
        forward = embed.compile_forward(model.apply, mesh=mesh, axis=AXIS)
        variables = jax.tree.map(jnp.copy, state.variables)  # training donates its own
        train, train_rows = _compiled(f"train {line}", train, state, data)
        forward, forward_rows = _compiled(f"forward {line}", forward, variables, images)
        rows += train_rows + forward_rows[:1]
        once = forward.cost_analysis()["flops"] * mesh.size / batch
        # Each gradient as much again, whatever way it takes on this device.
        flops |= {f"train {line}": 3 * once, f"forward {line}": once}
        passing = functools.partial(forward, variables, images)
        candidates[f"train {line}"] = harness.Candidate(
            training(train, state, data), batch
        )
        candidates[f"forward {line}"] = harness.Candidate(passing, batch)
        if vs == "torch":
            name, best = _best_torch(line, given, classes)
            candidates[name] = harness.Candidate(best, batch)
            rivals[name] = f"train {line}"
        elif vs == "native":
            name = f"native: train {line}"
            train, state = begin()
            with forms.native():
                train, more = _compiled(name, train, state, data)
            rows += more
            candidates[name] = harness.Candidate(training(train, state, data), batch)
            rivals[name] = f"train {line}"
    raced = harness.race(candidates, unit="images/s", repeats=repeats)
    value = {row.name: row.value for row in raced}
    peak = value.pop("matmul")  # operations a second
    rows.append(_one("matmul", "GFLOP/s", peak / 1e9))
    rows += [row for row in raced if row.name != "matmul"]
    rows += [_one(k, "of matmul", value[k] * flops[k] / peak) for k in flops]
    return rows + [
        _one(f"{ours} / {name}", "times", value[ours] / value[name])
        for name, ours in rivals.items()
    ]


def _one(name: str, unit: str, value: float) -> harness.Row:
    return harness.Row(name, unit, value, value, value, 1)


def _best_torch(
    line: str, data: types.Batch, classes: int
) -> tuple[str, Callable[[], float]]:
    """Return PyTorch's fastest way to do a step and its name, after trying them.

    First on how many threads, then whether compiled, which takes long to try.
    """
    make = functools.partial(
        bench_torch.steps, line, data, classes=classes, m=MARGIN, scale=SCALE, lr=RATE
    )
    few, many = (
        make(compiled=False, threads=n) for n in (1, len(os.sched_getaffinity(0)))
    )
    threads = 1 if _fastest(few | many) in few else len(os.sched_getaffinity(0))
    ways = (few if threads == 1 else many) | make(compiled=True, threads=threads)
    name = _fastest(ways)
    return f"{name}: train {line}", ways[name]


def _fastest(ways: dict[str, Callable[[], float]]) -> str:
    candidates = {name: harness.Candidate(run, 1) for name, run in ways.items()}
    rows = harness.race(candidates, unit="steps/s", warmup=1, repeats=2)
    return max(rows, key=lambda row: row.value).name


def _matmul(mesh: Mesh, dtype: str) -> harness.Candidate:
    """Return a product of square matrices on each device, items its operations."""
    n, where = mesh.size, NamedSharding(mesh, P(AXIS))
    side = SIDES.get(mesh.devices.flat[0].platform, SIDE)
    a, b = (
        jax.device_put(
            np.random.default_rng(i).normal(size=(n, side, side)).astype(dtype), where
        )
        for i in range(2)
    )
    product = jax.jit(jnp.matmul, in_shardings=where, out_shardings=where)
    return harness.Candidate(functools.partial(product, a, b), n * 2 * side**3)


# --- the train step -------------------------------------------------------------------


def train_step(
    model: Any, *, mesh: Mesh, data: types.Batch, classes: int
) -> tuple[parallel.Step, steps.TrainState]:
    """Return (the jitted step, its first state on the mesh)."""
    loss = softmax.Loss(num_classes=classes, margin=f"cosface(m={MARGIN})", scale=SCALE)
    tx = optim.sgd(lr=lambda _: RATE)
    shape = data["image"].shape[1:]
    init = functools.partial(
        steps.init_state, model, loss, tx, seed=0, shape=shape, num_classes=classes
    )
    specs = parallel.state_specs(jax.eval_shape(init), axis=AXIS)
    state = jax.jit(init, out_shardings=parallel.shardings(specs, mesh))()
    jitted = parallel.compile_step(
        steps.make_grads(model, loss, axis=AXIS),
        steps.make_update(tx),
        specs=specs,
        grad_specs={"params": P(), "head": P(AXIS), "margin": P()},
        mesh=mesh,
        axis=AXIS,
    )
    return jitted, state


def batch_of(batch: int, size: int, classes: int) -> types.Batch:
    """Make a batch of noise: image [B, size, size, 3], label, position."""
    rng = np.random.default_rng(0)
    return {
        "image": rng.uniform(-1, 1, (batch, size, size, 3)).astype(np.float32),
        "label": rng.integers(classes, size=batch, dtype=np.int32),
        "position": np.arange(batch, dtype=np.uint32),
    }


def _compiled(name: str, jitted: Any, *args: Any) -> tuple[Program, list[harness.Row]]:
    """Return (the program for these arguments, seconds to compile it, its memory)."""
    begun = time.perf_counter()
    program = jitted.lower(*args).compile()
    seconds = time.perf_counter() - begun
    memory = program.memory_analysis()
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return program, [
        _one(f"compile {name}", "s", seconds),
        _one(f"memory of a device, {name}", "MB", held / 1e6),
    ]


def training(program: Program, state: Any, data: types.Batch) -> Program:
    """Return a call that does the next step; each consumes the state before it."""

    def run() -> steps.TrainState:
        nonlocal state
        state, _ = program(state, data)
        return state

    return run
