"""Restore a checkpoint and evaluate it; the saved config rebuilds the model.

    python launch/evaluate.py --workdir=/tmp/run
    python launch/evaluate.py --workdir=/tmp/run --step=latest --pack=lfw.bin --leaks
    python launch/evaluate.py --workdir=/tmp/run --line="a=folder(path='x')|clustering"

Prints a table, writes WORKDIR/eval/<step>/<set>.json and, with --report, one
self-contained page.
"""

import json
import pathlib
import platform
import sys
from collections.abc import Callable

import jax
import numpy as np
from absl import flags

from jaxface import assembly, cli, experiment, parallel, spec, types
from jaxface.data import decode
from jaxface.eval import report, verification

_WORKDIR = flags.DEFINE_string("workdir", None, "Of the training run.")
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
_COUNTS = ("pairs", "mated", "searches", "images", "count")  # what a headline is of
_REPORT = flags.DEFINE_string("report", None, "Where to write an HTML report.")
_LEAKS = flags.DEFINE_bool(
    "leaks", False, "Also look for people of the sets among those trained on."
)


def main() -> None:
    """Restore, evaluate, print, write."""
    cli.log_to_stderr()
    config = experiment.saved_config(_WORKDIR.value)
    parallel.start(cpu_devices=config.mesh.cpu_devices)
    if _PACKS.value or _LINES.value:
        packs = {pathlib.Path(p).stem: line(p) for p in _PACKS.value}
        with config.unlocked():
            config.eval.sets = packs | dict(map(named, _LINES.value))
    for name in _SETS.value:
        if name not in config.eval.sets:
            raise spec.unknown("--sets: evaluation set", name, config.eval.sets)
    if _SETS.value:
        with config.unlocked():
            config.eval.sets = {name: config.eval.sets[name] for name in _SETS.value}
    run = assembly.build(config, for_training=False)
    if not run.evaluators and not run.skipped:
        raise ValueError("nothing to evaluate: the config has no sets; give --pack")
    step, results = experiment.evaluate(run, _WORKDIR.value, step=_STEP.value)
    if _LEAKS.value:
        add_leaks(run, results)

    directory = pathlib.Path(_WORKDIR.value) / "eval" / str(step)
    directory.mkdir(parents=True, exist_ok=True)
    for name, result in results.items():
        print(f"\n{name}, step {step}")
        for key, value in result.scalars.items():
            print(f"  {key:<24} {value:.6g}")
        text = json.dumps(result.scalars, indent=1) + "\n"
        experiment.write_text(directory / f"{name}.json", text)
    if _REPORT.value:
        write_report(run, results)
        print(f"\nreport: {_REPORT.value}")
    print()
    for name, result in results.items():
        print(headline(name, result.scalars))
    for name, why in run.skipped.items():
        print(f"{name} skipped: {why}")


def write_report(run: assembly.Run, results: dict[str, types.Result]) -> None:
    """Write the page of a run: curves, ROC, histograms, hardest pairs, settings."""
    log = pathlib.Path(_WORKDIR.value) / "metrics.jsonl"

    def pictures(images: types.Source) -> Callable[[int], np.ndarray]:
        return lambda i: decode.pixels(images.read(i)[0])

    report.write(
        _REPORT.value,
        title=pathlib.Path(_WORKDIR.value).name,
        results=results,
        images={
            name: pictures(evaluator.pairs.images)
            for name, evaluator in run.evaluators.items()
            if isinstance(evaluator, verification.Evaluator)
        },
        history=[json.loads(row) for row in log.read_text().splitlines()],
        config=run.config.to_dict(),
        environment={
            "command": " ".join(sys.argv),
            "devices": f"{run.mesh.size} x {run.mesh.devices.flat[0].device_kind}",
            "jax": jax.__version__,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
        },
    )


def add_leaks(run: assembly.Run, results: dict[str, types.Result]) -> None:
    """Put beside each score how many of its people were trained on; print who."""
    found = experiment.leaks(run, _WORKDIR.value, step=_STEP.value)
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


def line(path: str) -> str:
    """Return the evaluation set a pack is."""
    return (
        f"pairs_bin(path={path!r}, folds={_FOLDS.value}, names={_NAMES.value!r})"
        "|verification"
    )


def named(text: str) -> tuple[str, str]:
    """Return (name, line) of `--line`."""
    name, equals, of = text.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(
            f"--line={text!r}: wanted NAME=LINE, as in"
            " album=folder(path='album')|clustering"
        )
    return name, of


def headline(name: str, scalars: dict[str, float]) -> str:
    """Return the one line to remember: the first scalar, and of how many."""
    first, value = next(iter(scalars.items()))
    text = f"{name}: {first} {value:.3f}"
    if f"{first}_low" in scalars:
        text += f" [{scalars[f'{first}_low']:.3f}, {scalars[f'{first}_high']:.3f}]"
    of = next((n for n in _COUNTS if n in scalars), None)
    return f"{text} on {scalars[of]:.0f} {of}" if of else text


if __name__ == "__main__":
    flags.mark_flag_as_required("workdir")
    cli.run(main)
