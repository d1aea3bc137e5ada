"""Embed every image of a source: rows for a teacher's cache, a search or a plot.

    python launch/embed.py --workdir=/tmp/mbf --source="folder(path='faces.tar')" \
        --out=faces.npz                      # embedding [N, D], label [N], name [N]
    python launch/train.py ... --config.distill.cache=faces.npz

As OUT.npy only the embeddings are written, batch by batch, so memory stays flat; it is
read without loading it. Rows are in the order of the source. A teacher in the step sees
an image once: for `distill.cache` give --how=output, unless a mirrored sum shall teach.
"""

import pathlib
from collections.abc import Iterable

import numpy as np
from absl import flags, logging

from jaxface import (
    assembly,
    atomic,
    cli,
    embed,
    evaluation,
    experiment,
    parallel,
    types,
)

_WORKDIR = flags.DEFINE_string("workdir", None, "Whose network embeds.")
_STEP = flags.DEFINE_string("step", "latest", "best, latest or a step's number.")
_SOURCE = flags.DEFINE_string("source", None, "The images, a line; or of pairs.")
_OUT = flags.DEFINE_string("out", None, "An .npz with labels and names, or an .npy.")
_HOW = flags.DEFINE_enum(
    "how", None, ["output", "flip_sum"], "The network's output, or as it is evaluated."
)


def main() -> None:
    """Embed, write."""
    cli.log_to_stderr()
    out = pathlib.Path(_OUT.value)
    if out.suffix not in (".npy", ".npz"):
        raise ValueError(f"--out={out}: wanted a name that ends in .npz or .npy")
    c = experiment.saved_config(_WORKDIR.value)
    parallel.start(cpu_devices=c.mesh.cpu_devices)
    with c.unlocked():
        c.eval.sets = {}
        c.eval.embed = _HOW.value or c.eval.embed
    run = assembly.build(c, for_training=False)
    source = assembly.flow(_SOURCE.value)
    source = source.images if isinstance(source, types.Pairs) else source
    _, variables = experiment.restore(run, _WORKDIR.value, step=_STEP.value)
    write = write_rows if out.suffix == ".npy" else write_all
    with atomic.file(out) as part:
        shape = write(part, source, evaluation.embedder(run, variables).rows(source))
    logging.info("%s: embeddings %s, %s", out, shape, c.eval.embed)


def write_rows(
    path: pathlib.Path, source: types.Source, rows: Iterable[embed.Rows]
) -> tuple[int, ...]:
    """Write the embeddings as they come; return their shape."""
    file: np.memmap | None = None
    done = 0
    for e, _ in rows:
        if file is None:
            shape = (len(source), e.shape[1])
            file = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        file[done : done + len(e)] = e
        done += len(e)
    assert file is not None
    assert done == len(source)
    file.flush()
    return file.shape


def write_all(
    path: pathlib.Path, source: types.Source, rows: Iterable[embed.Rows]
) -> tuple[int, ...]:
    """Write embeddings, labels and names; return the shape of the first."""
    e, label = embed.whole(rows)
    names = np.array([source.name(i) for i in range(len(source))])
    np.savez(path, embedding=e, label=label, name=names)
    return e.shape


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir", "source", "out"])
    cli.run(main)
