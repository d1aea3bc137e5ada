"""Train one binary network per person and pool what they decide.

    python launch/one_vs_rest.py --workdir=/tmp/pooled --identities=20 \
      --config=configs/seed_binary.py:faces=faces.tar

Each run is one of launch/train.py, in WORKDIR/<identity>, evaluated at its last
step; the pooled counts, rates and intervals go to WORKDIR/pooled.json.
"""

import json
import pathlib
import sys
import time

import jax
from absl import flags, logging
from ml_collections import config_flags

from jaxface import assembly, atomic, cli, experiment, parallel
from jaxface.eval import binary

_CONFIG = config_flags.DEFINE_config_file("config", None, "A binary recipe.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Gets one run per person.")
_IDENTITIES = flags.DEFINE_integer("identities", 20, "How many people to enrol.")


def main() -> None:
    """Train, evaluate and pool."""
    cli.log_to_stderr(logging.WARNING)
    begun = time.monotonic()
    workdir = pathlib.Path(_WORKDIR.value)
    parallel.start(cpu_devices=_CONFIG.value.mesh.cpu_devices)
    # All people train with one program: compile it once.
    jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))
    runs = [one(identity, workdir) for identity in range(_IDENTITIES.value)]
    pooled = binary.pool(runs)
    atomic.write(workdir / "pooled.json", json.dumps(pooled, indent=1) + "\n")
    print(f"\npooled over {len(runs)} people, {time.monotonic() - begun:.0f} s")
    for name, value in pooled.items():
        print(f"  {name:<24} {value:.6g}")


def one(identity: int, workdir: pathlib.Path) -> dict[str, float]:
    """Train and evaluate one person's network; return its scalars."""
    config = _CONFIG.value.copy_and_resolve_references()
    for part, key in ((config.data, "source"), (config.eval.sets, "person")):
        part[key] = part[key].replace("identity=0", f"identity={identity}")
    run = assembly.build(config)
    state = experiment.train(run, workdir / str(identity))
    if state.step < run.total:
        sys.exit("stopped; run the same command again to go on")
    _, results = experiment.evaluate(run, workdir / str(identity), step="latest")
    found = results["person"].scalars
    print(
        f"person {identity}: accuracy {found['accuracy']:.3f}, precision"
        f" {found['precision']:.3f}, recall {found['recall']:.3f}, majority"
        f" {found['majority']:.3f}, {found['count']:.0f} images",
        flush=True,
    )
    return found


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    cli.run(main)
