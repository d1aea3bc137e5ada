"""Train and evaluate what `assembly` built, in a workdir.

"Evaluate a checkpoint" is the wiring of training with no steps, so it cannot rot.

    run = assembly.build(config)
    train(run, workdir)                  # resumes where a checkpoint is
    step, results = evaluate(run, workdir, step="best")
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging
from etils import epath

from jaxface import (
    atomic,
    checkpoint,
    config,
    evaluation,
    places,
    spec,
    teacher,
    transfer,
)
from jaxface.assembly import Run
from jaxface.train import guard, loop, monitor, stopping, tracing, writers
from jaxface.train import saver as savers
from jaxface.train import step as steps
from jaxface.types import Batch, Batches, Result


def train(
    run: Run,
    workdir: epath.PathLike,
    *,
    beat: Callable[[], None] = lambda: None,
    profile: tuple[int, int] | None = None,
) -> steps.TrainState:
    """Train to the end of the config, or until a signal ends it earlier.

    A run starts from its own last whole checkpoint; if it has none, from the weights
    at `init.workdir`; if that is not set, from drawn ones.

    Args:
        run: from `assembly.build`.
        workdir: gets config.json, classes.json, metrics.jsonl, events and
            checkpoints; a folder, or one in a bucket, "gs://bucket/run".
        beat: called before every step, as a sign of life.
        profile: steps to trace, first and last, counted from where this start begins;
            into workdir/profile/process-I.

    Returns:
        The last state, which is saved: its step is below `run.total` after a signal.

    Raises:
        ValueError: workdir holds a run of another config or other people, or what to
            start from does not fit, or is damaged.
        FileNotFoundError: nothing to start from at `init.workdir`.
        FloatingPointError: the loss is not finite, more often than
            `train.nonfinite` bears, with the step, the positions of its batch and
            the last good checkpoint.
        OSError: workdir cannot be written, or the last save failed.
    """
    c, workdir = run.config, places.at(workdir)
    _claim(workdir, run)
    manager = checkpoint.open_manager(
        workdir / "checkpoints", keep=c.checkpoint.keep, best=c.checkpoint.best
    )
    saver = savers.Saver(manager, home=workdir / "config.json")
    begun = time.monotonic()
    start, state = _start(run, manager)
    traces = places.local(workdir) / "profile" / f"process-{jax.process_index()}"
    with (
        stopping.on_signals() as stop,
        tracing.window(run.step, steps=profile, folder=traces) as traced,
    ):

        def step(state: Any, batch: Batch) -> Any:
            beat()
            return traced(state, batch)

        while True:
            try:
                state = _train_on(run, workdir, saver, start, state, stop, step)
                break
            except monitor.NonFiniteLossError as error:
                if error.rollbacks >= run.policy.times:
                    raise FloatingPointError(_lost(error, c, manager)) from None
                start, state = _rolled_back(run, manager, error)
    manager.close()
    seconds = time.monotonic() - begun
    logging.info("trained to step %d, which is saved, in %.0f s", state.step, seconds)
    return state


def _train_on(
    run: Run,
    workdir: epath.Path,
    saver: savers.Saver,
    start: int,
    state: steps.TrainState,
    stop: Callable[[], bool],
    step: tracing.Step,
) -> steps.TrainState:
    """Train from a step to the end, a signal or a loss that is lost."""
    c = run.config
    loader = run.loader(start)
    batches = batches_of(run, loader)
    text = config.dumps(c)

    def save(done: int, state: Any, scalars: dict[str, float] | None) -> None:
        notes = {name: int(count) for name, count in state.faults.items()}
        saver.save(
            done,
            state,
            position=done * c.data.batch_size,
            shape=run.shape,
            config_text=text,
            metrics=scalars,
            notes={"num_classes": run.source.num_classes, "faults": notes},
        )

    def evaluate(state: Any) -> dict[str, float]:
        return _with_best(
            scalars_of(evaluation.evaluate(run, state.variables)),
            best=c.checkpoint.best,
        )

    try:
        with monitor.Monitor(
            workdir,
            start=start,
            total=run.total,
            batch_size=c.data.batch_size,
            schedule=run.schedule,
            every=run.every(c.log.every),
            table=c.log.csv,
            boards=_boards(c, workdir, start) if jax.process_index() == 0 else (),
            after=run.policy.after,
        ) as log:
            state = loop.run(
                state,
                step=step,
                batches=batches,
                start=start,
                total=run.total,
                monitor=log,
                evaluate=evaluate,
                save=save,
                log_every=run.every(c.log.every),
                eval_every=run.eval_every,
                save_every=run.every(c.checkpoint.every),
                stop=stop,
            )
            saver.finish()  # in here: its error is the one to end with
            return state
    finally:
        loader.close()
        saver.settle()
        _write_bad(workdir, loader.bad)


def evaluate(
    run: Run, workdir: epath.PathLike, *, step: str = "best"
) -> tuple[int, dict[str, Result]]:
    """Restore a checkpoint and run the config's evaluators on it.

    Args:
        run: built from what `saved_config` returns; no training images are needed.
        workdir: of the training run.
        step: "latest", "best" or a number.

    Returns:
        (step, results by the name of the set).
    """
    found, variables = restore(run, workdir, step=step)
    return found, evaluation.evaluate(run, variables)


def restore(
    run: Run, workdir: epath.PathLike, *, step: str = "best"
) -> tuple[int, dict[str, Any]]:
    """Return (step, what the network is applied with) of a checkpoint.

    Args:
        run: built from what `saved_config` returns.
        workdir: of the training run.
        step: "latest", "best" or a number.
    """
    with _reader(workdir, run.config) as manager:
        found = checkpoint.find(manager, step)
        shape = tuple(checkpoint.about(manager, found)["shape"])
        # An average of the parameters is what was evaluated in training too.
        variables = checkpoint.restore_variables(
            manager,
            found,
            like=run.abstract_variables(shape),
            ema=run.config.optim.ema > 0,
        )
    return found, variables


def saved_config(workdir: epath.PathLike) -> ml_collections.ConfigDict:
    """Return the config a run was trained with; no device is touched.

    Raises:
        FileNotFoundError: no run in workdir.
    """
    path = places.at(workdir) / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"no run in {workdir}: config.json is missing")
    return config.loads(path.read_text())


def scalars_of(results: Mapping[str, Result]) -> dict[str, float]:
    """Return all scalars as "<set>/<name>"."""
    return {
        f"{name}/{key}": value
        for name, result in results.items()
        for key, value in result.scalars.items()
    }


def _with_best(scalars: dict[str, float], *, best: str) -> dict[str, float]:
    """Return the scalars, which the number that checkpoints are kept by is among."""
    name = best.removeprefix("-")
    if name and name not in scalars:
        raise spec.unknown("checkpoint.best: number", name, scalars)
    return scalars


def _claim(workdir: epath.Path, run: Run) -> None:
    """Write config and class names into a new workdir, or check those it has."""
    path, c = workdir / "config.json", run.config
    if path.exists():
        wrong = config.differences(config.loads(path.read_text()), c)
        if wrong:
            raise ValueError(
                f"{workdir} holds a run of another config; take a new --workdir, or"
                f" the old settings: {'; '.join(wrong)}"
            )
    names, before = run.class_names, transfer.class_names(workdir)
    if before and before != names:
        raise ValueError(
            f"{workdir} was trained on {len(before)} people, data.source now has"
            f" {run.source.num_classes}, or others; take a new --workdir"
        )
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        atomic.write(path, config.dumps(c))
        if names:
            atomic.write(workdir / transfer.CLASSES, json.dumps(names, indent=0))


def _start(run: Run, manager: Any) -> tuple[int, steps.TrainState]:
    """Return (updates done, state): resumed, from given weights, or drawn."""
    latest = _newest(manager)
    if latest is None:
        return 0, first_state(run)
    start = checkpoint.about(manager, latest)["position"] // run.config.data.batch_size
    logging.info("resuming at step %d", start)
    return start, _resumed(run, manager, latest)


def _newest(manager: Any) -> int | None:
    """Return the newest whole step, having set aside those past it."""
    latest = checkpoint.newest(manager)
    for step in manager.all_steps():
        if latest is not None and step > latest:
            checkpoint.set_aside(manager, step)
    return latest


def first_state(run: Run) -> steps.TrainState:
    """Return the state before any step: from `init.workdir`, or drawn."""
    if not run.config.init.workdir:
        return run.first_state()
    with _given(run.config.init) as given:
        return transfer.first_state(run, given)


def _resumed(run: Run, manager: Any, step: int) -> steps.TrainState:
    """Restore a state; what this run's policy counts and that run's did not begins."""
    saved = checkpoint.about(manager, step).get("faults")  # None: an earlier version
    like = run.abstract
    if saved is not None and saved.keys() == like.faults.keys():
        return checkpoint.restore(manager, step, like=like)
    fields = {f.name: getattr(like, f.name) for f in dataclasses.fields(like)}
    faults = fields.pop("faults")
    kept = checkpoint.restore(manager, step, like=fields, part=True)
    counts = guard.first(run.policy) | (saved or {})
    return steps.TrainState(**kept, faults=_counts(faults, counts))


def _rolled_back(
    run: Run, manager: Any, error: monitor.NonFiniteLossError
) -> tuple[int, steps.TrainState]:
    """Return (updates done, state) of the last good checkpoint, at a lower rate."""
    while (good := _newest(manager)) is not None:
        # One saved among steps left out may be the one that makes them so.
        if not checkpoint.about(manager, good).get("faults", {}).get("in_row"):
            break
        manager.delete(good)
    start = good or 0
    state = first_state(run) if good is None else _resumed(run, manager, good)
    counts = {k: int(v) for k, v in state.faults.items()}
    counts |= {"rollbacks": error.rollbacks + 1}
    logging.error(
        "ROLLED BACK to step %d, %d of %d times, learning rate times %g: %s",
        *(start, error.rollbacks + 1, run.policy.times),
        *(run.policy.factor ** (error.rollbacks + 1), error),
    )
    return start, state.replace(faults=_counts(run.abstract.faults, counts))


def _counts(like: Any, counts: Mapping[str, int]) -> dict[str, jax.Array]:
    """Place counts on the devices, those not given as zero."""
    return {
        name: jax.device_put(np.int32(counts.get(name, 0)), where.sharding)
        for name, where in like.items()
    }


def _boards(
    c: ml_collections.ConfigDict, workdir: epath.Path, start: int
) -> list[writers.Writer]:
    boards: list[writers.Writer] = []
    if c.log.tensorboard:
        boards.append(writers.TensorBoard(workdir / "tensorboard", start=start))
    if c.log.wandb:
        boards.append(
            writers.Wandb(
                workdir,
                project=c.log.wandb,
                mode=c.log.wandb_mode,
                settings=c.to_dict(),
            )
        )
    return boards


def batches_of(run: Run, loader: Batches) -> Iterator[Batch]:
    """Yield global batches from a loader, with what a teacher says of them."""
    if run.config.distill.cache:
        return run.batches(teacher.recited(run, loader))
    if not run.config.distill.workdir:
        return run.batches(loader)
    with _given(run.config.distill) as given:
        return map(teacher.beside(run, given), run.batches(loader))


@contextlib.contextmanager
def _given(c: ml_collections.ConfigDict) -> Iterator[transfer.Given]:
    """Open the checkpoint that a `workdir` and a `step` name."""
    workdir = places.at(c.workdir)
    theirs = saved_config(workdir)
    with _reader(workdir, theirs) as reader:
        yield transfer.Given(workdir, theirs, reader, checkpoint.find(reader, c.step))


def _reader(workdir: epath.PathLike, c: ml_collections.ConfigDict) -> Any:
    return checkpoint.open_manager(
        places.at(workdir) / "checkpoints",
        keep=c.checkpoint.keep,
        best=c.checkpoint.best,
        create=False,
    )


def _lost(error: monitor.NonFiniteLossError, c: Any, manager: Any) -> str:
    last = manager.latest_step()
    good = "none yet" if last is None else f"step {last} in {manager.directory}"
    first = (error.step - 1) * c.data.batch_size
    return (
        f"{error}: its batch has positions {first} to"
        f" {first + c.data.batch_size - 1} of the stream. Last good checkpoint:"
        f" {good}. Try a lower config.optim.lr, a longer config.optim.warmup, or a"
        " smaller margin"
    )


def _write_bad(workdir: epath.Path, bad: Mapping[str, str]) -> None:
    if not bad:
        return
    path = workdir / f"bad_images.{jax.process_index()}.json"
    atomic.write(path, json.dumps(dict(sorted(bad.items())), indent=1))
    logging.warning("%d unreadable images were replaced; see %s", len(bad), path)
