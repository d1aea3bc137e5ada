"""What a run would take on devices that are not here: compiled for them, never run.

The law: the step is the run's own, lowered on shapes alone, so no weight is allocated
and no image read but one; what a stand-in says of another device is called so.

    where = plan.topology("v5e:8x8")             # needs jaxface[tpu], and no TPU
    found = plan.make(config, where)
    print(plan.text(found))
"""

from __future__ import annotations

import collections
import dataclasses
import math
import os
import re
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from jaxface import assembly, collectives, hardware

_TPUS = ("v4", "v5e", "v5p", "v6e")
_USED = re.compile(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm")
# A stand-in's machine code is never run, so none is polished.
_QUICK = {"xla_backend_optimization_level": 0}
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
        name: as it was asked for.
        kind: a key of `hardware.CHIPS`, or "cpu".
        devices: what JAX compiles for.
        stand_in: they are this machine's CPU, cut into as many devices.
    """

    name: str
    kind: str
    devices: tuple[Any, ...]
    stand_in: bool


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the compiler says of one step; all of it is of one device.

    Attributes:
        topology: compiled for.
        dtype: what the network computes in.
        batch: images a step, of all devices.
        classes: of the training set.
        state: bytes of the state; what is donated is not counted twice.
        memory: bytes of state, batch, temporaries and program.
        flops: of one step; None where it does not fit and was not compiled.
        moved: bytes read and written, by the compiler's count of its operations.
        met: collectives of a step.
        refused: what the compiler said of a program that does not fit.
    """

    topology: Topology
    dtype: str
    batch: int
    classes: int
    state: int
    memory: float
    flops: float | None = None
    moved: float | None = None
    met: tuple[collectives.Collective, ...] = ()
    refused: str = ""

    @property
    def sent(self) -> float:
        """Bytes sent in a step, by ring algorithms."""
        return sum(c.wire_bytes for c in self.met)

    @property
    def seconds(self) -> tuple[float, float, float] | None:
        """(Arithmetic, memory, communication) at peak rates; None where unknown."""
        chip = hardware.CHIPS.get(self.topology.kind)
        if chip is None or self.flops is None or self.moved is None:
            return None
        return hardware.seconds(
            chip, flops=self.flops, moved=self.moved, sent=self.sent, dtype=self.dtype
        )


def cpu_devices(name: str) -> int:
    """Return how many CPU devices stand in for a topology; 0 for a TPU's.

    They are made when JAX starts: hand it to `parallel.start` before `topology`.

    Raises:
        ValueError: not of a known kind, or no count.
    """
    kind, _, size = name.partition(":")
    if kind in _TPUS and re.fullmatch(r"\d+(x\d+){1,2}", size):
        return 0
    counted = [*(k for k in hardware.CHIPS if k not in _TPUS), "cpu"]
    if kind in counted and re.fullmatch(r"[1-9]\d*", size):
        return int(size)
    raise ValueError(
        f"topology {name!r}; wanted {', '.join(_TPUS)} with a shape, as in v5e:8x8, or"
        f" {', '.join(counted)} with a count, as in h100:64"
    )


def topology(name: str) -> Topology:
    """Describe devices that need not be here.

    Args:
        name: "v5e:8x8" and the like compile for that TPU; "h100:64" and "cpu:8" for
            this machine's CPU cut into as many devices, see `cpu_devices`.

    Raises:
        ValueError: an unknown name, a shape that the TPU has not, or too few devices.
        ImportError: no libtpu.
    """
    kind, wanted = name.partition(":")[0], cpu_devices(name)
    if wanted:
        devices = jax.devices("cpu")
        if wanted > len(devices):
            raise ValueError(f"{name} wants {wanted} CPU devices, got {len(devices)}")
        return Topology(name, kind, tuple(devices[:wanted]), stand_in=True)
    # it runs nothing, so another process may have the chips
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        import libtpu  # noqa: F401
    except ImportError:
        raise ImportError(
            f"compiling for {name} needs libtpu: pip install jaxface[tpu]"
        ) from None
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(name, "tpu").devices
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        raise ValueError(f"topology {name!r} is none of libtpu's: {error}") from None
    return Topology(name, kind, tuple(found), stand_in=False)


def make(c: ml_collections.ConfigDict, where: Topology) -> Plan:
    """Compile the train step of a config for a topology.

    Args:
        c: the config; `data.source` is opened for its classes.
        where: of `topology`.

    Raises:
        ValueError: the config does not fit these devices, or has a teacher, whose
            arrays are not known without it.
    """
    run = assembly.build(c, devices=where.devices)
    if run.reads:
        raise ValueError(
            "a step with a teacher cannot be planned; set distill.workdir and"
            ' distill.cache to "" and leave its losses out'
        )
    step: Any = run.step
    common: dict[str, Any] = {
        "topology": where,
        "dtype": c.model.dtype,
        "batch": c.data.batch_size,
        "classes": run.source.num_classes,
        "state": _bytes_of(run.abstract),
    }
    traced = step.trace(run.abstract, _batch(run))
    lowered = traced.lower()
    try:
        compiled = lowered.compile(_QUICK if where.stand_in else None)
    except jax.errors.JaxRuntimeError as error:
        used = _USED.search(str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) or not used:
            raise
        memory = float(used[1]) * _UNITS[used[2]]
        return Plan(**common, memory=memory, refused=used[0])
    plan, cost = compiled.memory_analysis(), compiled.cost_analysis()
    flops = cost["flops"]
    if where.stand_in:  # a CPU has gradients of fewer FLOPs: `models.winograd`
        flops = traced.lower(lowering_platforms=("cuda",)).cost_analysis()["flops"]
    return Plan(
        **common,
        memory=float(
            plan.argument_size_in_bytes
            + plan.output_size_in_bytes
            - plan.alias_size_in_bytes
            + plan.temp_size_in_bytes
            + plan.generated_code_size_in_bytes
        ),
        flops=flops,
        moved=cost["bytes accessed"],
        met=tuple(collectives.read(compiled.as_text())),
    )


def text(plan: Plan) -> str:
    """Lay one plan out, for people."""
    where = plan.topology
    rows = [
        ("devices", f"{len(where.devices)} of {where.name}"),
        ("images a step, classes", f"{plan.batch:,}, {plan.classes:,}"),
        ("state, per device", f"{plan.state / 2**30:.3f} GiB"),
        ("memory, per device", f"{plan.memory / 2**30:.3f} GiB"),
    ]
    if plan.refused:
        rows.append(("does not fit", plan.refused))
    chip = hardware.CHIPS.get(where.kind)
    if chip and not plan.refused and plan.memory > chip.memory:
        rows.append(
            ("does not fit", f"a {where.kind} has {chip.memory / 2**30:.0f} GiB")
        )
    if plan.flops is not None:
        rows.append(("FLOPs, per device", f"{plan.flops / 1e9:,.2f} G"))
        rows.append(("sent, per device", f"{plan.sent / 1e6:,.2f} MB a step, of which"))
        rows += [(f"  {kind}", line) for kind, line in _kinds(plan)]
    rows += _predicted(plan)
    return "\n".join(f"{name:<26}{value}" for name, value in rows)


def _kinds(plan: Plan) -> list[tuple[str, str]]:
    kinds = collections.defaultdict(list)
    for c in plan.met:
        kinds[c.kind].append(c)
    out = []
    for kind, found in sorted(kinds.items()):
        largest = max(found, key=lambda c: c.wire_bytes)
        shapes = f"{largest.shapes[0]}{', ...' if len(largest.shapes) > 1 else ''}"
        sent = sum(c.wire_bytes for c in found) / 1e6
        out.append(
            (
                kind,
                f"{sent:,.2f} MB in {sum(c.times for c in found)}, the largest"
                f" {shapes} over {largest.group}",
            )
        )
    return out


def _predicted(plan: Plan) -> list[tuple[str, str]]:
    rows, where = [], plan.topology
    if where.kind not in hardware.CHIPS:
        why = f"cannot be told: no peak rates of a {where.kind} are known"
        rows.append(("predicted step", why))
    if plan.seconds is not None:
        work, memory, sent = (1e3 * s for s in plan.seconds)
        total = max(work, memory) + sent
        rows = [
            ("predicted step", f"{total:.2f} ms = max({work:.2f} arithmetic,"),
            ("", f"{memory:.2f} memory) + {sent:.2f} communication, at peak rates"),
            ("images a second", f"{1e3 * plan.batch / total:,.0f} at best"),
            ("peak rates of", hardware.CHIPS[where.kind].source),
        ]
    if where.stand_in:
        rows.append(
            ("note", "CPU devices stood in: state, FLOPs and collectives are those of")
        )
        rows.append(("", "any device, temporaries and moved bytes this machine's"))
    return rows


def row(plan: Plan) -> str:
    """Lay one plan out as a row of a table in Markdown; see `HEAD`."""
    flops = "" if plan.flops is None else f"{plan.flops / 1e12:.2f}"
    sent = "" if plan.flops is None else f"{plan.sent / 1e6:,.1f}"
    fits = "does not fit" if plan.refused else ""
    if plan.seconds is not None:
        work, memory, wire = plan.seconds
        fits = f"{1e3 * (max(work, memory) + wire):.1f}"
    cells = (
        f"{plan.classes / 1e6:g} M",
        f"{plan.topology.name}",
        f"{plan.state / 2**30:.2f}",
        f"{plan.memory / 2**30:.2f}",
        flops,
        sent,
        fits,
    )
    return f"| {' | '.join(cells)} |"


_COLUMNS = (
    *("classes", "devices", "state, GiB", "memory, GiB"),
    *("TFLOPs", "sent, MB", "ms at best"),
)
HEAD = f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}"


def _batch(run: assembly.Run) -> dict[str, jax.ShapeDtypeStruct]:
    count = run.config.data.batch_size
    dtypes = {"label": jnp.int32, "example": jnp.uint32, "position": jnp.uint32}
    shapes: dict[str, tuple[tuple[int, ...], Any]]
    shapes = {name: ((count,), dtype) for name, dtype in dtypes.items()}
    shapes["image"] = ((count, *run.shape), jnp.float32)
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=run.layout.split)
        for name, (shape, dtype) in shapes.items()
    }


def _bytes_of(tree: Any) -> int:
    """Bytes on each device of arrays that are whole there, or split evenly."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )
