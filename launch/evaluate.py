"""Restore a checkpoint and evaluate it; the saved config rebuilds the model.

    python launch/evaluate.py --workdir=/tmp/run
    python launch/evaluate.py --workdir=/tmp/run --step=latest --pack=lfw.bin --leaks
    python launch/evaluate.py --workdir=/tmp/a --workdir=/tmp/b --report=both.html
    python launch/evaluate.py --workdir=/tmp/run --line="a=folder(path='x')|clustering"

Prints a table, writes WORKDIR/eval/<step>/<set>.json and, with --report, one
self-contained page. Several workdirs are compared pair by pair, on the same pairs.
"""

import hashlib
import json
import pathlib
import platform
import sys
from collections.abc import Callable, Mapping

import jax
import ml_collections
import numpy as np
from absl import flags
from etils import epath

from jaxface import (
    assembly,
    atomic,
    cli,
    evaluation,
    experiment,
    parallel,
    places,
    spec,
    types,
)
from jaxface.data import decode
from jaxface.eval import comparison, project, report, rows, saliency, verification

_WORKDIRS = flags.DEFINE_multi_string(
    "workdir", None, "Of a training run; given twice or more, the runs are compared."
)
_STEP = flags.DEFINE_string("step", "best", "best, latest or a step's number.")
_SETS = flags.DEFINE_list("sets", [], "Only these sets of the config; all if empty.")
_PACKS = flags.DEFINE_multi_string(
    "pack", [], "Evaluate this insightface .bin pack instead of the config's sets."
)
_LINES = flags.DEFINE_multi_string(
    "line", [], "Evaluate this set, NAME=LINE, instead of the config's sets."
)
_FOLDS = flags.DEFINE_integer("folds", 10, "Folds of the packs.")
_NAMES = flags.DEFINE_string("names", None, "LFW pairs.txt: who is in the packs.")
_REPORT = flags.DEFINE_string("report", None, "Where to write an HTML report.")
_PROJECTIONS = flags.DEFINE_multi_enum(
    "projection",
    ["pca"],
    list(project.PROJECTIONS),
    "Of embeddings in the report; tsne needs jaxface[report], umap jaxface[umap].",
)
_SALIENCY = flags.DEFINE_enum(
    "saliency",
    "gradient",
    ["gradient", "occlusion", "none"],
    "How the report shows what of a face drives its worst errors.",
)
_ROW = flags.DEFINE_enum("row", None, rows.KINDS, "Print rows for a paper's table.")
_COLUMNS = flags.DEFINE_list(
    "columns", [], "Of --row: SET/NUMBER; each set's headline if empty."
)
_LEAKS = flags.DEFINE_bool(
    "leaks", False, "Also look for people of the sets among those trained on."
)


def main() -> None:
    """Restore, evaluate, print, write."""
    cli.log_to_stderr()
    workdirs = named(_WORKDIRS.value)
    configs = {n: chosen(experiment.saved_config(w)) for n, w in workdirs.items()}
    parallel.start(cpu_devices=max(c.mesh.cpu_devices for c in configs.values()))
    runs = {n: assembly.build(c, for_training=False) for n, c in configs.items()}
    check_pictures(runs)
    found = {}
    for name, run in runs.items():
        step, found[name] = experiment.evaluate(run, workdirs[name], step=_STEP.value)
        if _LEAKS.value:
            add_leaks(run, found[name], workdirs[name])
        tell(found[name], workdirs[name], step=step, run=name if len(runs) > 1 else "")
    if _REPORT.value:
        report.write(
            _REPORT.value,
            title=", ".join(runs),
            runs={n: page_of(run, found[n], workdirs[n]) for n, run in runs.items()},
            projections=list(dict.fromkeys(_PROJECTIONS.value)),
        )
        print(f"\nreport: {_REPORT.value}")
    scalars = {
        name: {key: result.scalars for key, result in results.items()}
        for name, results in found.items()
    }
    if _ROW.value:
        print(
            "\n" + rows.table(scalars, kind=_ROW.value, columns=_COLUMNS.value), end=""
        )
    print()
    for paired in comparison.compare(found):
        print(gained(paired))
    for run, sets in scalars.items():
        before = f"{run}, " if len(runs) > 1 else ""
        for name, numbers in sets.items():
            print(f"{before}{name}: {' '.join(filter(None, report.headline(numbers)))}")
        for name, why in runs[run].skipped.items():
            print(f"{before}{name} skipped: {why}")


def named(workdirs: list[str]) -> dict[str, epath.Path]:
    """Return the workdirs by what they are called: the last part, if that tells."""
    paths = [places.at(workdir) for workdir in workdirs]
    if len(set(paths)) < len(paths):
        raise ValueError(f"--workdir names a run twice: {workdirs}")
    short = [path.name for path in paths]
    keys = short if len(set(short)) == len(short) else workdirs
    return dict(zip(keys, paths, strict=True))


def chosen(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Return a config that evaluates what the flags ask for."""
    sets = dict(config.eval.sets)
    if _PACKS.value or _LINES.value:
        sets = {pathlib.Path(p).stem: line(p) for p in _PACKS.value}
        sets |= dict(map(given, _LINES.value))
    for name in _SETS.value:
        if name not in sets:
            raise spec.unknown("--sets: evaluation set", name, sets)
    if not sets:
        raise ValueError("nothing to evaluate: the config has no sets; give --pack")
    with config.unlocked():
        config.eval.sets = {name: sets[name] for name in _SETS.value or sets}
    return config


def check_pictures(runs: Mapping[str, assembly.Run]) -> None:
    """Raise where runs would be compared on different pictures of one set's name."""
    if len(runs) < 2:
        return
    first: dict[str, tuple[str, str]] = {}
    for run, built in runs.items():
        for name, evaluator in built.evaluators.items():
            if not isinstance(evaluator, verification.Evaluator):
                continue
            seen = digest(evaluator.pairs.images)
            who, wanted = first.setdefault(name, (run, seen))
            if seen != wanted:
                raise ValueError(
                    f"set {name!r} of {who!r} and of {run!r} holds other pictures;"
                    " compare on one set: give the same --pack"
                )


def digest(images: types.Source) -> str:
    """Return the SHA-256 of all pictures as they are stored, in order."""
    found = hashlib.sha256()
    for i in range(len(images)):
        stored, _ = images.read(i)
        if not isinstance(stored, bytes):
            found.update(repr(stored.shape).encode())
            stored = np.ascontiguousarray(stored).tobytes()
        found.update(len(stored).to_bytes(8, "big") + stored)
    return found.hexdigest()


def tell(
    results: Mapping[str, types.Result], workdir: epath.Path, *, step: int, run: str
) -> None:
    """Print all numbers, and write them beside the checkpoints."""
    directory = workdir / "eval" / str(step)
    directory.mkdir(parents=True, exist_ok=True)
    for name, result in results.items():
        print(f"\n{f'{run}: ' if run else ''}{name}, step {step}")
        for key, value in result.scalars.items():
            print(f"  {key:<24} {value:.6g}")
        text = json.dumps(result.scalars, indent=1) + "\n"
        atomic.write(directory / f"{name}.json", text)


def gained(row: comparison.Paired) -> str:
    """Return a paired test in one line."""
    gain, test = row.gain, row.test
    return (
        f"{row.set}: accuracy of {row.run} less that of {row.first}:"
        f" {gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}], p {gain.p:.2g} over"
        f" people; only {row.run} is right on {test.only_b}, only {row.first} on"
        f" {test.only_a} pairs, McNemar p {test.p:.2g}"
    )


def page_of(
    run: assembly.Run, results: Mapping[str, types.Result], workdir: epath.Path
) -> report.Run:
    """Return what the report shows of a run; a converted one has no history."""
    log = workdir / "metrics.jsonl"
    history = log.read_text().splitlines() if log.exists() else []
    shown = {
        name: evaluator.pairs.images
        for name, evaluator in run.evaluators.items()
        if isinstance(evaluator, verification.Evaluator)
    }
    drives = {}
    if _SALIENCY.value != "none" and shown:
        variables = experiment.restore(run, workdir, step=_STEP.value)[1]
        network = evaluation.embedder(run, variables)
        drives = {name: driving(network, images) for name, images in shown.items()}
    return report.Run(
        results,
        images={name: pictures(images) for name, images in shown.items()},
        saliency=drives,
        history=[json.loads(row) for row in history],
        config=run.config.to_dict(),
        environment={
            "command": " ".join(sys.argv),
            "devices": f"{run.mesh.size} x {run.mesh.devices.flat[0].device_kind}",
            "jax": jax.__version__,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            "workdir": str(workdir),
        },
    )


def pictures(images: types.Source) -> Callable[[int], np.ndarray]:
    """Make the function from an index to its picture, RGB."""
    order = -1 if images.color == "bgr" else 1
    return lambda i: decode.pixels(images.read(i)[0])[..., ::order]


def driving(
    network: types.Network, images: types.Source
) -> Callable[[int, int], np.ndarray]:
    """Make the function from two indices to the first as the network sees it, heated.

    Of what hiding shows, only what speaks for a match: its other parts are below 0.
    """
    low, high = (end.reshape(1, 1, 3) for end in network.span)

    def drives(i: int, j: int) -> np.ndarray:
        pair = types.Picked(images, np.array([i, j]))
        batch, _ = next(iter(network.inputs(pair)))
        left, right = np.asarray(batch[:2])
        if _SALIENCY.value == "occlusion":
            heat = saliency.occlusion(network.features, left, right)
        else:
            heat = saliency.gradient(network.features, left, right)
        seen = np.round(255 * (left - low) / (high - low)).clip(0, 255)
        return report.heated(seen.astype(np.uint8), np.maximum(heat, 0))

    return drives


def add_leaks(
    run: assembly.Run, results: Mapping[str, types.Result], workdir: epath.Path
) -> None:
    """Put beside each score how many of its people were trained on; print who."""
    found = evaluation.leaks(run, experiment.restore(run, workdir, step=_STEP.value)[1])
    for name, result in results.items():
        if name not in found:
            print(f"\n{name}: leaks not looked for: whose its images are is unknown")
            continue
        leak = found[name]
        result.scalars.update((k, float(v)) for k, v in leak.scalars.items())
        names = run.class_names
        print(
            f"\n{name}: {leak.scalars['leaked_people']} of {leak.people} people are"
            f" taken for some of the {leak.classes} trained on,"
            f" {leak.scalars['leaked_false_alarms']:.2g} by chance; the nearest:"
        )
        for m in leak.matches[:5]:
            who = names[m.label] if names else f"class {m.label}"
            print(f"  {m.similarity:.3f}  {who}")


def given(text: str) -> tuple[str, str]:
    """Return (name, line) of `--line`."""
    name, equals, of = text.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(
            f"--line={text!r}: wanted NAME=LINE, as in"
            " album=folder(path='album')|clustering"
        )
    return name, of


def line(path: str) -> str:
    """Return the evaluation set a pack is."""
    return (
        f"pairs_bin(path={path!r}, folds={_FOLDS.value}, names={_NAMES.value!r})"
        "|verification"
    )


if __name__ == "__main__":
    flags.mark_flag_as_required("workdir")
    cli.run(main)
