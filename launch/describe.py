"""Print what a network costs, layer by layer, or what a run would take elsewhere.

    python launch/describe.py --model=iresnet.r50
    python launch/describe.py --model="mobilefacenet(scale=2)" --size=128 --nomemory
    python launch/describe.py --config=configs/quickstart.py --topology=v5e:2x4
    python launch/describe.py --config=... --topology=h100:8,h100:64 --table

Nothing is trained or loaded; `--nomemory` does not even compile. See jaxface/describe
for networks, jaxface/plan for runs.
"""

import dataclasses
import json
import os

import jax
from absl import flags, logging
from ml_collections import config_flags

from jaxface import cli, describe, models, parallel, plan, spec

_MODEL = flags.DEFINE_string("model", None, "As in config.model.name.")
_SIZE = flags.DEFINE_list(
    "size", [], "Pixels per side, or height,width; the network's own if empty."
)
_BATCH = flags.DEFINE_integer(
    "batch", 1, "Images at a time, for memory.", lower_bound=1
)
_DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16", "float16"], "What it computes in."
)
_MEMORY = flags.DEFINE_bool("memory", True, "Compile, to tell the memory it takes.")
_CONFIG = config_flags.DEFINE_config_file("config", None, "A recipe: plan its step.")
_TOPOLOGY = flags.DEFINE_list(
    "topology", [], "Devices to plan it for, as v5e:8x8, h100:64 or cpu:8."
)
_PER_DEVICE = flags.DEFINE_integer(
    "per_device", 0, "Images of each device in a plan; 0: data.batch_size of all."
)
_TABLE = flags.DEFINE_bool("table", False, "Print plans as rows of one table.")
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object instead.")


def main() -> None:
    """Trace, ask XLA, print."""
    cli.log_to_stderr(logging.WARNING)
    if _CONFIG.value is None:
        network()
    else:
        step()


def step() -> None:
    """Plan a config's step for each topology."""
    jax.config.update("jax_platforms", "cpu")  # libtpu, where it is, seeks no chips
    # programs for absent devices cannot be loaded from it
    jax.config.update("jax_enable_compilation_cache", False)
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # and no metadata server
    parallel.start(cpu_devices=max(map(plan.cpu_devices, _TOPOLOGY.value)))
    if _TABLE.value:
        print(plan.HEAD)
    for name in _TOPOLOGY.value:
        where, c = plan.topology(name), _CONFIG.value
        if _PER_DEVICE.value:
            c.data.batch_size = _PER_DEVICE.value * len(where.devices)
            c.eval.batch_size = c.data.batch_size
        found = plan.make(c, where)
        print(plan.row(found) if _TABLE.value else plan.text(found), flush=True)


def network() -> None:
    """Describe a network, layer by layer."""
    call = spec.parse_one(_MODEL.value)
    make = spec.module(models, call, kind="model", default="Model")
    model = spec.bind(make, call, {"dtype": _DTYPE.value})()
    size = pixels(_SIZE.value) if _SIZE.value else model.size
    size = (size, size) if isinstance(size, int) else tuple(size)
    rows = describe.layers(model, size)
    cost = describe.cost(model, size, batch=_BATCH.value, memory=_MEMORY.value)
    totals = {
        "parameters": sum(row.parameters for row in rows),
        "macs": sum(row.macs for row in rows),
        **dataclasses.asdict(cost),
    }
    if _JSON.value:
        asked = {"model": str(call), "size": size, "batch": _BATCH.value}
        asked |= {"dtype": _DTYPE.value, "device": jax.devices()[0].device_kind}
        table = [dataclasses.asdict(row) for row in rows]
        print(json.dumps({**asked, **totals, "layers": table}, indent=1))
        return
    print("\n".join(lines(rows)))
    print(f"\n{call}, {size[0]}x{size[1]} pixels, {_DTYPE.value}; of one image:")
    for name, value, unit in summary(totals):
        print(f"  {name:<28}{value:>12,.2f} {unit}")


def pixels(given: list[str]) -> tuple[int, int]:
    """Return (height, width).

    Raises:
        ValueError: anything but one or two positive numbers.
    """
    if len(given) > 2 or not all(side.isdecimal() and int(side) for side in given):
        raise ValueError(
            f"--size={','.join(given)}; wanted pixels per side, as 112, or"
            " height,width, as 112,96"
        )
    return int(given[0]), int(given[-1])


def lines(rows: list[describe.Layer]) -> list[str]:
    """Lay out the table of layers, names to the left and numbers to the right."""
    table = [("layer", "kind", "output", "parameters", "multiply-adds")]
    for row in rows:
        shape = "x".join(map(str, row.shape))
        numbers = f"{row.parameters:,}", f"{row.macs:,}"
        table.append((row.path or ".", row.kind, shape, *numbers))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            f"{cell:{'<' if i < 2 else '>'}{width}}"
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    ]


def summary(totals: dict) -> list[tuple[str, float, str]]:
    """Return (name, value, unit) of the totals that were asked for."""
    kind = jax.devices()[0].device_kind
    known = [
        ("parameters", "parameters", 1e6, "M"),
        ("macs", "multiply-adds", 1e6, "M"),
        ("forward_flops", "FLOPs, forward", 1e6, "M"),
        ("train_flops", "FLOPs, with the gradient", 1e6, "M"),
        ("forward_bytes", "memory, forward", 2**20, f"MiB on {kind}"),
        ("train_bytes", "memory, with the gradient", 2**20, f"MiB on {kind}"),
    ]
    return [
        (name, totals[key] / scale, unit)
        for key, name, scale, unit in known
        if totals[key] is not None
    ]


def check(values: dict) -> bool:
    """Tell whether one of the two questions is asked."""
    return bool(values["model"]) != bool(values["config"] and values["topology"])


if __name__ == "__main__":
    flags.register_multi_flags_validator(
        ["model", "config", "topology"],
        check,
        "wanted --model=..., or --config=... with --topology=...",
    )
    cli.run(main)
