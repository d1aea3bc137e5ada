"""Two steps of a run that leave nothing behind: what it is, what it takes, if it works.

The law: the same state, batches and compiled step as in training; no file is written.

    found = rehearsal.take(assembly.build(config))
    print(rehearsal.text(found))
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import jax

from jaxface import experiment
from jaxface.assembly import Run

STEPS = 2


@dataclasses.dataclass(frozen=True)
class Found:
    """What two steps told.

    Attributes:
        images: of the training set.
        classes: how many.
        steps: of the whole run.
        devices: how many, and of which kind.
        parameters: numbers of the network that training moves or keeps.
        head: numbers of the head, padding included.
        compile_seconds: to build and compile the step.
        step_seconds: the second step, reading its batch included.
        memory: bytes per device of (state and batch, temporaries), as the compiler
            plans them; None under pmap, whose program cannot be asked.
        losses: of each step.
    """

    images: int
    classes: int
    steps: int
    devices: str
    parameters: int
    head: int
    compile_seconds: float
    step_seconds: float
    memory: tuple[int, int] | None
    losses: tuple[float, ...]


def take(run: Run) -> Found:
    """Build, compile and take two steps.

    Raises:
        FloatingPointError: a loss that is not finite.
        ValueError: whatever does not fit; see `assembly.build`.
    """
    state = experiment.first_state(run)
    parameters, head = _count(state.params), _count(state.head)
    loader = run.loader(0)
    losses, seconds = [], []
    try:
        batches = experiment.batches_of(run, loader)
        batch = next(batches)
        begun = time.monotonic()
        step, memory = _compiled(run, state, batch)
        compiled = time.monotonic() - begun
        for i in range(STEPS):
            begun = time.monotonic()
            state, metrics = step(state, batch if i == 0 else next(batches))
            losses.append(float(metrics["loss"]))
            seconds.append(time.monotonic() - begun)
    finally:
        loader.close()
    if not all(map(math.isfinite, losses)):
        raise FloatingPointError(
            f"losses of the first {STEPS} steps are {losses}; see docs/switching.md,"
            " 'My loss is NaN'"
        )
    device = run.mesh.devices.flat[0]
    return Found(
        images=len(run.source),
        classes=run.source.num_classes,
        steps=run.total,
        devices=f"{run.mesh.size} x {device.device_kind}",
        parameters=parameters,
        head=head,
        compile_seconds=compiled if memory else compiled + seconds[0],
        step_seconds=seconds[-1],
        memory=memory,
        losses=tuple(losses),
    )


def text(found: Found) -> str:
    """Lay out what was found, for people."""
    rows = [
        ("images, classes", f"{found.images:,}, {found.classes:,}"),
        ("steps of the run", f"{found.steps:,}"),
        ("devices", found.devices),
        ("parameters, network", f"{found.parameters:,}"),
        ("parameters, head", f"{found.head:,}"),
        ("compile", f"{found.compile_seconds:.1f} s"),
        ("second step", f"{found.step_seconds:.3f} s"),
    ]
    if found.memory is None:
        rows.append(("memory per device", "not told under pmap"))
    else:
        state, temporary = (n / 2**20 for n in found.memory)
        rows.append(("state and batch", f"{state:,.1f} MiB per device"))
        rows.append(("temporaries", f"{temporary:,.1f} MiB per device"))
    rows.append(("losses", ", ".join(f"{loss:.4f}" for loss in found.losses)))
    rows.append(("dry run", "ok, nothing was written"))
    return "\n".join(f"{name:<22}{value}" for name, value in rows)


def _compiled(run: Run, state: Any, batch: Any) -> tuple[Any, tuple[int, int] | None]:
    if run.config.mesh.how == "pmap":
        return run.step, None
    step: Any = run.step
    compiled = step.lower(state, batch).compile()
    plan = compiled.memory_analysis()
    return compiled, (plan.argument_size_in_bytes, plan.temp_size_in_bytes)


def _count(tree: Any) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
