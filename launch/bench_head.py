"""What a head costs as its classes grow: whole, sharded over devices, or sampled.

Law: the step is the one that trains, compiled the same way; only the network before
the head is left out, being a single dense layer. Sizes run one after another, each
freed before the next; what needs more memory than allowed is compiled and not run.

    rows = head([(10_000, 512), (1_000_000, 128)], batch=32, sampled=65536, ...)
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Iterable
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from jaxface import parallel, spec, types
from jaxface.losses import partial_fc, softmax
from jaxface.train import optim, sampled
from jaxface.train import step as steps

AXIS = "data"
KINDS = ("full", "sharded", "partial_fc")
MARGIN, SCALE = "arcface(m=0.5)", 64.0


class Net(nn.Module):
    """One dense layer over one pixel: as good as nothing before the head."""

    dim: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, keys: Any = None) -> Any:
        """Map images [B, 1, 1, 3] to embeddings [B, dim]."""
        return nn.Dense(self.dim)(x.reshape(len(x), -1))


def head(
    sizes: Iterable[tuple[int, int]],
    *,
    kinds: Iterable[str] = KINDS,
    batch: int,
    sampled_rows: int,
    optimizer: str,
    memory: float,
    repeats: int = 7,
) -> list[harness.Row]:
    """Time and memory of a train step by the number of classes.

    Args:
        sizes: (classes, dimension) of each head.
        kinds: of "full" on one device, "sharded" over all, "partial_fc" over all.
        batch: images over all devices.
        sampled_rows: classes that partial_fc samples, however many there are.
        optimizer: a line of `train.optim`.
        memory: GB a step may take, over all devices; more is not run.
        repeats: steps timed, after two that are not.

    Returns:
        For every head its memory as the compiler plans it (arguments, results and
        temporaries, those in place once) and its time, then for every kind the power
        of the classes by which the time grows, least squares and span.

    Raises:
        KeyError: an unknown kind or optimizer.
        ValueError: a batch that the devices cannot share evenly.
    """
    found: list[harness.Row] = []
    times: dict[tuple[str, int], dict[int, float]] = {}
    for (classes, dim), kind in itertools.product(sizes, kinds):
        count = 1 if kind == "full" else len(jax.devices())
        if batch % count:
            raise ValueError(f"{count} devices cannot share {batch} images evenly")
        mesh = parallel.make_mesh(axis=AXIS, devices=jax.devices()[:count])
        loss = make_loss(kind, classes, sampled_rows)
        step, state = _program(loss, dim, optimizer, mesh)
        data = parallel.put_batch(_batch(batch, classes), mesh=mesh, axis=AXIS)
        program = step.lower(state, data).compile()
        needs = needed(program) * count / 1e9
        name = f"{kind} {classes:,} x {dim}"
        if needs > memory:
            note = f"{name}, not run: more than {memory:g} GB"
            found.append(harness.Row(note, "GB", needs, needs, needs, 1))
            continue
        found.append(harness.Row(name, "GB", needs, needs, needs, 1))
        row = _timed(name, program, state, data, repeats)
        times.setdefault((kind, dim), {})[classes] = row.value
        found.append(row)
    return found + [
        _growth(f"{kind} x {dim}", seconds)
        for (kind, dim), seconds in times.items()
        if len(seconds) > 1
    ]


def sizes(texts: Iterable[str]) -> list[tuple[int, int]]:
    """Read "1e6x128" as (1000000, 128).

    Raises:
        ValueError: not of that form.
    """
    found = []
    for text in texts:
        match = re.fullmatch(r"(\d+(?:e\d+)?)x(\d+)", text)
        if not match:
            raise ValueError(f"head {text!r}; wanted classes x dimension, as 1e6x128")
        found.append((int(float(match[1])), int(match[2])))
    return found


def make_loss(kind: str, classes: int, sampled_rows: int) -> Any:
    """Return the loss of a kind of head.

    Raises:
        KeyError: an unknown kind.
    """
    if kind not in KINDS:
        raise spec.unknown("head", kind, KINDS)
    if kind == "partial_fc":
        rate = min(1.0, sampled_rows / classes)
        return partial_fc.Loss(
            num_classes=classes, margin=MARGIN, scale=SCALE, rate=rate
        )
    return softmax.Loss(num_classes=classes, margin=MARGIN, scale=SCALE)


def needed(program: Any) -> int:
    """Return the bytes a compiled program takes on one device."""
    m = program.memory_analysis()
    results = m.output_size_in_bytes - m.alias_size_in_bytes
    return m.argument_size_in_bytes + results + m.temp_size_in_bytes


def _program(loss: Any, dim: int, optimizer: str, mesh: Any) -> tuple[Any, Any]:
    """Return (the jitted step, its state as shapes with places)."""
    call = spec.parse_one(optimizer)
    make = spec.member(optim, call, kind="optimizer")
    tx = spec.bind(make, call)(lr=lambda _: 1e-3)
    init = functools.partial(
        steps.init_state,
        Net(dim),
        loss,
        tx,
        seed=0,
        shape=(1, 1, 3),
        num_classes=loss.num_classes,
    )
    shapes = jax.eval_shape(init)
    specs = parallel.state_specs(shapes, axis=AXIS)
    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        parallel.shardings(specs, mesh),
    )
    grads_of = functools.partial(steps.make_grads, Net(dim), axis=AXIS)
    update = steps.make_update(tx)
    if isinstance(loss, types.SampledLoss):
        body = sampled.make_body(loss, make_grads=grads_of, update=update, axis=AXIS)
        return parallel.compile_body(body, specs=specs, mesh=mesh, axis=AXIS), state
    step = parallel.compile_step(
        grads_of(loss),
        update,
        specs=specs,
        grad_specs={"params": P(), "head": P(AXIS), "margin": P()},
        mesh=mesh,
        axis=AXIS,
    )
    return step, state


def _batch(batch: int, classes: int) -> types.Batch:
    rng = np.random.default_rng(0)
    return {
        "image": rng.normal(size=(batch, 1, 1, 3)).astype(np.float32),
        "label": rng.integers(classes, size=batch, dtype=np.int32),
        "position": np.arange(batch, dtype=np.uint32),
    }


def _timed(name: str, program: Any, like: Any, data: Any, repeats: int) -> harness.Row:
    # Drawing weights takes twice their memory, and a step's time is not in them.
    state = jax.jit(
        lambda: jax.tree.map(lambda x: jnp.full(x.shape, 0.01, x.dtype), like),
        out_shardings=jax.tree.map(lambda x: x.sharding, like),
    )()

    def run() -> Any:
        nonlocal state
        state, metrics = program(state, data)
        return metrics

    (rate,) = harness.race(
        {name: harness.Candidate(run, 1)}, unit="steps/s", repeats=repeats
    )
    return harness.Row(
        name, "s", 1 / rate.value, 1 / rate.high, 1 / rate.low, rate.count
    )


def _growth(name: str, seconds: dict[int, float]) -> harness.Row:
    points = sorted((math.log(c), math.log(t)) for c, t in seconds.items())
    x, y = np.array(points).T
    slope = float(np.polyfit(x, y, 1)[0])
    between = np.diff(y) / np.diff(x)
    low, high = float(between.min()), float(between.max())
    return harness.Row(f"growth {name}", "power", slope, low, high, len(points))
