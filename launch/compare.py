r"""Train variants of a recipe with several seeds, and print every paired difference.

    python launch/compare.py --workdir=/tmp/noise --config=configs/noisy_labels.py \
      --arguments=loss=arcface --arguments=loss=filter \
      --seeds=0,1,2,3,4 --metric=unseen/accuracy

The first variant is what the others are compared with, seed by seed. A recipe takes its
arguments after a colon elsewhere (`--config=recipe.py:loss=filter,seed=3`); `seed` must
be one of them. Runs stand in WORKDIR/<arguments>/<seed>; the same command goes on where
it was stopped. The figures go to WORKDIR/compare.json.
"""

import json
import pathlib
import sys

import jax
import ml_collections
import paired
from absl import flags, logging

from jaxface import assembly, atomic, cli, experiment, parallel

_CONFIG = flags.DEFINE_string("config", None, "A recipe whose arguments have a seed.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Gets one run per variant and seed.")
_ARGUMENTS = flags.DEFINE_multi_string("arguments", None, "A variant; two or more.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2", "3", "4"], "Chosen beforehand.")
_METRIC = flags.DEFINE_string("metric", None, "Such as unseen/accuracy.")


def main() -> None:
    """Train, evaluate, compare."""
    cli.log_to_stderr(logging.WARNING)
    workdir = pathlib.Path(_WORKDIR.value)
    configs = paired.plan(_CONFIG.value, variants=_ARGUMENTS.value, seeds=_SEEDS.value)
    first = next(iter(configs.values()))
    parallel.start(cpu_devices=first.mesh.cpu_devices)
    # Seeds of a variant train with one program: compile it once.
    jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))
    found: dict[str, list[float]] = {variant: [] for variant in _ARGUMENTS.value}
    for (variant, seed), config in configs.items():
        value = one(config, workdir / variant / seed)
        found[variant].append(value)
        print(f"{variant} seed {seed}: {_METRIC.value} {value:.4f}", flush=True)
    rows = paired.compare(found)
    print(paired.table(rows, seeds=_SEEDS.value))
    text = json.dumps(
        {"seeds": _SEEDS.value, "metric": _METRIC.value, **rows}, indent=1
    )
    atomic.write(workdir / "compare.json", text + "\n")


def one(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> float:
    """Train and evaluate one run; return its metric."""
    run = assembly.build(config)
    state = experiment.train(run, workdir)
    if state.step < run.total:
        sys.exit("stopped; run the same command again to go on")
    _, results = experiment.evaluate(run, workdir, step="latest")
    scalars = experiment.scalars_of(results)
    if _METRIC.value not in scalars:
        raise KeyError(f"metric {_METRIC.value!r} unknown; known: {sorted(scalars)}")
    return scalars[_METRIC.value]


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir", "arguments", "metric"])
    cli.run(main)
