r"""Clean a training set with the sub-centres it was trained with; keep one centre each.

    python launch/subcenters.py --workdir=/tmp/k3 --out=/tmp/k1 --degrees=75
    python launch/train.py --workdir=/tmp/clean --config=... \
        --config.data.source="folder(path='faces')|without(path='/tmp/k1/far.json')" \
        --config.init.workdir=/tmp/k1 --config.init.step=latest --config.init.head=grow

OUT is a workdir with the network and each class's dominant centre, and far.json names
the images farther than --degrees from it, the farthest first. Without config.init the
second command trains from scratch, as Sub-center ArcFace (Deng et al. 2020) does.
"""

import json
import pathlib
import shutil
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import flags, logging

from jaxface import (
    assembly,
    atomic,
    checkpoint,
    cli,
    config,
    embed,
    evaluation,
    experiment,
    parallel,
    spec,
    subcenters,
    transfer,
)

_WORKDIR = flags.DEFINE_string("workdir", None, "Of a run with centers > 1.")
_STEP = flags.DEFINE_string("step", "latest", "best, latest or a step's number.")
_OUT = flags.DEFINE_string("out", None, "A new workdir.")
_DEGREES = flags.DEFINE_float("degrees", 75.0, "Farther than this is left out.")


def main() -> None:
    """Embed the training images, clean, write."""
    cli.log_to_stderr()
    workdir = pathlib.Path(_WORKDIR.value)
    out = pathlib.Path(_OUT.value).absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out={out} is there already; name a new folder")
    c = experiment.saved_config(workdir)
    parallel.start(cpu_devices=c.mesh.cpu_devices)
    run = assembly.build(c)
    centers = getattr(run.loss, "centers", 1)
    if centers == 1:
        raise ValueError(f"{workdir} has one centre per class; wanted centers > 1")
    step, variables = experiment.restore(run, workdir, step=_STEP.value)
    e, label = embed.whole(evaluation.embedder(run, variables).rows(run.source))
    kernel = head(workdir, c, step)
    C = run.source.num_classes
    found = subcenters.clean(e, label, kernel[: C * centers], centers=centers)
    out.mkdir(parents=True, exist_ok=True)
    far = listed(run, found, label)
    atomic.write(out / "far.json", json.dumps(far, indent=1))
    kept = np.zeros((len(kernel) // centers, kernel.shape[1]), kernel.dtype)
    kept[:C] = found.kernel
    write(run, out, {**variables, "head": {"kernel": kept}})
    if (workdir / transfer.CLASSES).exists():
        shutil.copy(workdir / transfer.CLASSES, out / transfer.CLASSES)
    strays = found.counts.sum() - found.counts.max(axis=1).sum()
    logging.info("%d of %d images are nearest to a dropped centre", strays, len(e))
    logging.info("%d are beyond %g degrees: far.json", len(far), _DEGREES.value)


def head(workdir: pathlib.Path, c: ml_collections.ConfigDict, step: int) -> np.ndarray:
    """Read the class weights [padded C * K, D] of a checkpoint."""
    with checkpoint.open_manager(
        workdir.absolute() / "checkpoints",
        keep=c.checkpoint.keep,
        best=c.checkpoint.best,
        create=False,
    ) as manager:
        saved = checkpoint.arrays(manager, step)["head"]
        like = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), saved)
        got = checkpoint.restore(manager, step, like={"head": like}, part=True)
    return np.asarray(got["head"]["kernel"])


def listed(
    run: assembly.Run, found: subcenters.Clean, label: np.ndarray
) -> list[dict[str, Any]]:
    """Return what is too far from its class's centre, the farthest first."""
    order = np.argsort(-found.degrees, kind="stable")
    return [
        {
            "name": run.source.name(int(i)),
            "label": int(label[i]),
            "degrees": round(float(found.degrees[i]), 2),
        }
        for i in order
        if found.degrees[i] > _DEGREES.value
    ]


def write(run: assembly.Run, out: pathlib.Path, state: Any) -> None:
    """Write a workdir of the network and the head with one centre per class."""
    c = run.config.copy_and_resolve_references()
    call = spec.parse_one(c.loss.name)
    kwargs = tuple((k, v) for k, v in call.kwargs if k != "centers")
    c.loss.name = str(spec.Call(call.name, call.args, kwargs))
    c.optim.ema = 0.0  # where there was an average, it is the network now
    c.checkpoint.best = ""
    with checkpoint.open_manager(out / "checkpoints") as manager:
        checkpoint.save(
            manager,
            0,
            state,
            position=0,
            shape=run.shape,
            config_text=config.dumps(c),
            notes={"num_classes": run.source.num_classes},
        )
        manager.wait_until_finished()
    atomic.write(out / "config.json", config.dumps(c))


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir", "out"])
    cli.run(main)
