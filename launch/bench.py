"""Benchmarks: one harness, one function per benchmark, a table and JSON.

Law: opponents take turns (`harness`). A speed is the median over repeats with their
span, an accuracy the mean over folds with its interval over people.

    python launch/bench.py --what=render
    python launch/bench.py --what=step --size=112 --cpu_devices=2 --out=bench.json
    python launch/bench.py --what=step --model=vit.t --size=112 --batch=16 --vs=torch
    python launch/bench.py --what=start --model=iresnet.r50 --size=112 --batch=8
    python launch/bench.py --what=baselines --workdir=quickstart-run
    python launch/bench.py --what=head --cpu_devices=2 --heads=1e5x512,1e6x512
    python launch/bench.py --what=records --records=5000000
    python launch/bench.py --what=input --source="folder(path='faces.tar')"
    python launch/bench.py --what=eval --galleries=3500,1000000

A benchmark is a function that gives rows; `WHAT` lists them.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import platform
import runpy
from collections.abc import Callable, Sequence
from typing import Any

import bench_eval
import bench_head
import bench_input
import bench_records
import bench_start
import bench_step
import harness
import jax
import ml_collections
import numpy as np
from absl import flags, logging

from jaxface import assembly, atomic, cli, evaluation, experiment, parallel, spec, types
from jaxface.data import host, pipeline
from jaxface.data.sources import synthetic

AXIS = "data"
QUICKSTART = pathlib.Path(__file__).parent.parent / "configs" / "quickstart.py"

# Images uint8 [N, H, W, 3] -> embeddings float [N, D].
Embedding = Callable[[np.ndarray], np.ndarray]
Program = Callable[..., Any]


# --- benchmarks -----------------------------------------------------------------------


def render() -> list[harness.Row]:
    """Images a second of the rendered identities, on one thread."""
    return harness.race(
        {
            f"render {size} px": harness.Candidate(_renders(size, count), count)
            for size, count in ((56, 200), (112, 200), (224, 50))
        },
        unit="images/s",
    )


def _renders(size: int, count: int) -> Callable[[], object]:
    source = synthetic.Source(identities=count, per_identity=1, size=size)
    return lambda: [source.read(i) for i in range(count)]


def baselines(
    config: ml_collections.ConfigDict, *, workdir: str = ""
) -> list[harness.Row]:
    """Verification accuracy of simple embeddings and nets on a config's sets.

    Args:
        config: names the pairs, the net, and the training images that simple
            embeddings are fitted on.
        workdir: of a run trained with that config; its best checkpoint joins in.

    Raises:
        ValueError: a config without sets.
        FileNotFoundError: no checkpoint in workdir.
    """
    run = assembly.build(config)
    if not run.evaluators:
        raise ValueError("nothing to verify: the config has no eval.sets")

    def verify(embedding: Embedding) -> dict[str, types.Result]:
        def embed_all(source: types.Source) -> np.ndarray:
            return embedding(_pixels(run, source))

        return {name: e.run(embed_all) for name, e in run.evaluators.items()}

    few = np.unique(np.linspace(0, len(run.source) - 1, 1500).astype(int))
    train = _pixels(run, types.Picked(run.source, few))
    found = {name: verify(e) for name, e in simple_embeddings(train).items()}
    found["untrained net"] = evaluation.evaluate(run, run.first_state().variables)
    if workdir:
        _, found["trained net"] = experiment.evaluate(run, workdir, step="best")
    return [
        _accuracy(name, place, result.scalars)
        for name, results in found.items()
        for place, result in results.items()
    ]


# --- simple embeddings ----------------------------------------------------------------


def simple_embeddings(train: np.ndarray) -> dict[str, Embedding]:
    """Return the baselines by name, fitted on images [N, H, W, 3] uint8."""
    mean = train.mean(0)
    principal = pca(hog(train), keep=128)
    return {
        "mean colour": lambda x: x.mean((1, 2)) - 127.5,
        "mean-centred pixels": lambda x: (x - mean).reshape(len(x), -1),
        "HOG + PCA": lambda x: principal(hog(x)),
    }


def _pixels(run: assembly.Run, source: types.Source) -> np.ndarray:
    """Return all images as the net sees them but for its scale, uint8."""
    unscaled = pipeline.Pipeline(run.eval_pipeline.ops[:-1])  # the last normalises
    size = run.config.eval.batch_size
    batches = host.batches_once(source, unscaled, batch_size=size)
    return np.concatenate([b["image"][b["mask"]] for b in batches])


def _accuracy(name: str, place: str, scalars: dict[str, float]) -> harness.Row:
    value, low, high = (scalars[f"accuracy{end}"] for end in ("", "_low", "_high"))
    return harness.Row(
        name, f"accuracy on {place}", value, low, high, int(scalars["pairs"])
    )


def hog(images: np.ndarray, *, cell: int = 8, bins: int = 9) -> np.ndarray:
    """Histograms of oriented gradients, Dalal & Triggs 2005.

    Args:
        images: [N, H, W, 3] uint8; H and W are multiples of `cell`.
        cell: side of a cell in pixels.
        bins: unsigned directions, with linear votes; blocks are 2 x 2 cells.

    Returns:
        [N, D] float32, each block of unit length.
    """
    grey = images.astype(np.float32).mean(-1)
    dy, dx = np.gradient(grey, axis=(1, 2))
    size = np.hypot(dx, dy)
    at = np.arctan2(dy, dx) / np.pi % 1 * bins
    N, H, W = grey.shape
    cells = np.empty((N, H // cell, W // cell, bins), np.float32)
    for k in range(bins):
        off = np.abs((at - k - 0.5 + bins / 2) % bins - bins / 2)  # bins go round
        votes = size * np.maximum(1 - off, 0)
        patches = votes.reshape(N, H // cell, cell, W // cell, cell)
        cells[..., k] = patches.sum((2, 4))
    top, bottom = cells[:, :-1], cells[:, 1:]
    corners = (top[:, :, :-1], top[:, :, 1:], bottom[:, :, :-1], bottom[:, :, 1:])
    blocks = np.concatenate(corners, axis=-1)
    blocks /= np.linalg.norm(blocks, axis=-1, keepdims=True) + 1e-3
    return blocks.reshape(N, -1)


def pca(features: np.ndarray, *, keep: int) -> Callable[[np.ndarray], np.ndarray]:
    """Fit the first whitened principal components on [N, D]; return the projection."""
    mean = features.mean(0)
    _, spread, axes = np.linalg.svd(features - mean, full_matrices=False)
    whiten = (axes[:keep] / spread[:keep, None]).T
    return lambda x: (x - mean) @ whiten


# --- the program ----------------------------------------------------------------------

_WHAT = flags.DEFINE_list(
    "what",
    None,
    "render, step, start, baselines, head, input, records, eval.",
    required=True,
)
_OUT = flags.DEFINE_string("out", None, "Write the figures to this JSON file as well.")
_CPU_DEVICES = flags.DEFINE_integer("cpu_devices", 0, "Split the CPU; 0: whole.")
_MODEL = flags.DEFINE_multi_string(
    "model", list(bench_step.MODELS), "step: the networks."
)
_BATCH = flags.DEFINE_integer("batch", 32, "step, head, input: images.", lower_bound=1)
_SIZE = flags.DEFINE_integer("size", 56, "step: pixels a side.", lower_bound=1)
_CLASSES = flags.DEFINE_integer("classes", 1000, "step: of the head.", lower_bound=1)
_DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "step: what the networks compute in."
)
_VS = flags.DEFINE_enum(
    "vs",
    "",
    ["", "torch", "native"],
    "step: race PyTorch's, or XLA's own forms of ours.",
)
_WORKDIR = flags.DEFINE_string(
    "workdir", "", "baselines: a trained run; without one, the untrained quickstart."
)
_HEADS = flags.DEFINE_list(
    "heads",
    "1e4x512,1e5x512,1e6x512,2e6x512,1e6x128,1e7x128",
    "head: classes x dimension.",
)
_KINDS = flags.DEFINE_list("kinds", list(bench_head.KINDS), "head: of these.")
_SAMPLED = flags.DEFINE_integer("sampled", 65536, "head: classes partial_fc samples.")
_OPTIMIZER = flags.DEFINE_string("optimizer", "sgd(momentum=0.9)", "head: its line.")
_MEMORY = flags.DEFINE_float("memory", 8.0, "head: GB a step may take, to be run.")
_RECORDS = flags.DEFINE_integer("records", 5_000_000, "records: of the set.")
_SOURCE = flags.DEFINE_string("source", "", "input: a line; empty: rendered faces.")
_CORES = flags.DEFINE_list("cores", ["1", "2"], "input: how many, each in its turn.")
_LINES = flags.DEFINE_multi_string("line", list(bench_input.LINES), "input: its ops.")
_IMAGES = flags.DEFINE_integer("images", 4096, "input: of a round.", lower_bound=1)
_REPEATS = flags.DEFINE_integer(
    "repeats", 7, "step, input: rounds timed.", lower_bound=1
)
_FACES = flags.DEFINE_integer("faces", 470_000, "eval: images of all templates.")
_TEMPLATES = flags.DEFINE_integer(
    "templates", 23_000, "eval: pooled from them; 0: galleries only."
)
_PAIRS = flags.DEFINE_integer("pairs", 15_700_000, "eval: of templates.")
_PROBES = flags.DEFINE_integer("probes", 20_000, "eval: searched in each gallery.")
_GALLERIES = flags.DEFINE_list("galleries", ["3500"], "eval: rows of each gallery.")


WHAT: dict[str, Callable[[], list[harness.Row]]] = {
    "render": render,
    "step": lambda: bench_step.step(
        _MODEL.value,
        batch=_BATCH.value,
        size=_SIZE.value,
        classes=_CLASSES.value,
        dtype=_DTYPE.value,
        vs=_VS.value,
        repeats=_REPEATS.value,
    ),
    "start": lambda: [
        row
        for line in _MODEL.value
        for row in bench_start.start(
            line,
            batch=_BATCH.value,
            size=_SIZE.value,
            classes=_CLASSES.value,
            cpu_devices=_CPU_DEVICES.value,
        )
    ],
    "baselines": lambda: baselines(
        experiment.saved_config(_WORKDIR.value)
        if _WORKDIR.value
        else runpy.run_path(str(QUICKSTART))["get_config"](),
        workdir=_WORKDIR.value,
    ),
    "head": lambda: bench_head.head(
        bench_head.sizes(_HEADS.value),
        kinds=_KINDS.value,
        batch=_BATCH.value,
        sampled_rows=_SAMPLED.value,
        optimizer=_OPTIMIZER.value,
        memory=_MEMORY.value,
    ),
    "eval": lambda: [
        *(
            bench_eval.templates(
                images=_FACES.value, count=_TEMPLATES.value, pairs=_PAIRS.value
            )
            if _TEMPLATES.value
            else []
        ),
        *bench_eval.galleries([int(G) for G in _GALLERIES.value], probes=_PROBES.value),
    ],
    "records": lambda: bench_records.opening(_RECORDS.value),
    "input": lambda: bench_input.feed(
        _SOURCE.value,
        lines=_LINES.value,
        cores=[int(n) for n in _CORES.value],
        batch=_BATCH.value,
        repeats=_REPEATS.value,
        count=_IMAGES.value,
    ),
}


def choose(names: Sequence[str]) -> dict[str, Callable[[], list[harness.Row]]]:
    """Return benchmarks by name.

    Raises:
        KeyError: for a name nobody knows, with the choices.
    """
    for name in names:
        if name not in WHAT:
            raise spec.unknown("benchmark", name, WHAT)
    return {name: WHAT[name] for name in names}


def report(found: dict[str, list[harness.Row]]) -> dict[str, object]:
    """Return what goes to JSON: the rows of every benchmark, and the machine."""
    devices = jax.devices()
    return {
        "machine": platform.platform(),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "jax": jax.__version__,
        "benchmarks": {
            name: [dataclasses.asdict(r) for r in rows] for name, rows in found.items()
        },
    }


def main() -> None:
    """Run what was asked for and print it."""
    cli.log_to_stderr(logging.WARNING)
    parallel.start(cpu_devices=_CPU_DEVICES.value)
    found = {}
    for name, benchmark in choose(_WHAT.value).items():
        found[name] = benchmark()
        print(f"{name}\n{harness.table(found[name])}\n", flush=True)
    if _OUT.value:
        text = json.dumps(report(found), indent=2) + "\n"
        atomic.write(pathlib.Path(_OUT.value), text)


if __name__ == "__main__":
    cli.run(main)
