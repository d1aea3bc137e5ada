"""Checkpoints by Orbax: state, data position, config and metrics, atomically.

The one law: a step's folder exists only when it is complete, hashes of all its files
included, so a run killed at any moment finds its last whole checkpoint. Arrays are
saved by name and shape, not by device, and restore onto any mesh.

    manager = open_manager("run/checkpoints", keep=2, best="lfw/accuracy")
    save(manager, 100, state, config_text=text, metrics={"lfw/accuracy": 0.9})
    state = restore(manager, 100, like=shapes_with_shardings)
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from jaxface import config as configs
from jaxface import manifest, places

_HALF = ".orbax-checkpoint-tmp"  # how Orbax ends the name of an unfinished folder


class SaveError(OSError):
    """A step could not be saved; `step` is which."""

    def __init__(self, step: int, directory: Any, error: BaseException) -> None:
        reason = " ".join(str(error).split()) or type(error).__name__
        super().__init__(f"step {step} was not saved in {directory}: {reason}")
        self.step = step


def open_manager(
    directory: epath.PathLike, *, keep: int = 2, best: str = "", create: bool = True
) -> ocp.CheckpointManager:
    """Open a folder of checkpoints.

    Args:
        directory: where the steps are.
        keep: how many of the latest stay.
        best: a metric's name: the step where it is highest stays too; with a
            leading "-", where it is lowest.
        create: False to read only.

    Raises:
        FileNotFoundError: nothing there, and `create` is False.
    """
    path = places.at(directory)
    if not create and not path.is_dir():
        raise FileNotFoundError(f"no checkpoints at {path}; train there first")
    if create and jax.process_index() == 0:
        for half in _halves(path):
            logging.warning(
                "HALF A CHECKPOINT, removed: %s; its save was cut off", half
            )
    keepers: list[Any] = [policies.LatestN(keep)]
    best_fn = None
    if best:
        sign = -1.0 if best.startswith("-") else 1.0
        name = best.removeprefix("-")

        def best_fn(metrics: dict[str, float]) -> float:
            return sign * metrics.get(name, -sign * math.inf)

        keepers.append(
            policies.BestN(
                get_metric_fn=best_fn, n=1, keep_checkpoints_without_metrics=False
            )
        )
    options = ocp.CheckpointManagerOptions(
        best_fn=best_fn,
        preservation_policy=policies.AnyPreservationPolicy(keepers),
        create=create,
        read_only=not create,
        cleanup_tmp_directories=create,
        async_options=ocp.AsyncOptions(post_finalization_callback=lambda: _seal(path)),
    )
    handlers = {
        "state": ocp.PyTreeCheckpointHandler(),
        "about": ocp.JsonCheckpointHandler(),
    }
    return _Manager(path, options=options, item_handlers=handlers)


class _Manager(ocp.CheckpointManager):
    """Orbax's, which else could not even be opened where one file is damaged.

    And with several processes it would tell of a failure only when the others have
    waited twenty minutes for this one.
    """

    _failure: BaseException | None = None

    def _wait_for_checkpointers(self) -> None:  # in the thread that ends a save
        try:
            super()._wait_for_checkpointers()
        except BaseException as error:
            self._failure = error
            raise

    def wait_until_finished(self) -> None:
        """Wait for the save under way, of all processes as long as none fails here."""
        while jax.process_count() > 1 and self.is_saving_in_progress():
            if self._failure is not None:
                raise self._failure
            time.sleep(0.01)
        super().wait_until_finished()

    def metrics(self, step: int) -> Any:
        """Return what a step was judged by, None where that cannot be read."""
        try:
            found = super().metrics(step)
        except (OSError, ValueError) as error:
            logging.error("metrics of %s/%d: %s", self.directory, step, error)
            return None
        return found if isinstance(found, dict) else None


def save(
    manager: ocp.CheckpointManager,
    step: int,
    state: Any,
    *,
    position: int,
    shape: tuple[int, int, int],
    config_text: str,
    metrics: dict[str, float] | None = None,
    notes: dict[str, Any] | None = None,
) -> None:
    """Start saving a step; the state may be donated when this returns.

    Args:
        manager: from `open_manager`.
        step: updates done.
        state: tree of arrays.
        position: examples drawn from the stream, the whole state of the data.
        shape: (H, W, 3) of the images the network was made for.
        config_text: what `config.dumps` gave.
        metrics: what "best" is chosen by.
        notes: JSON to come back from `about` too, such as "trainable": False with
            the reason as "why".

    Raises:
        SaveError: it, or the save before it, could not be written. The half that was
            is removed, and the same step may be tried again.
    """
    about = (notes or {}) | {
        "format": configs.FORMAT,
        "manifest": manifest.NAME,
        "position": position,
        "shape": list(shape),
        "config": config_text,
    }
    settle(manager)
    if step in manager.all_steps():
        raise ValueError(f"step {step} is in {manager.directory} already")
    with _told(manager, step):
        manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(state), about=ocp.args.JsonSave(about)
            ),
            metrics=metrics,
            force=True,
        )


def settle(manager: ocp.CheckpointManager) -> None:
    """Wait until what is being saved is on disk.

    Raises:
        SaveError: it could not be written, of which the half is removed.
    """
    latest = manager.latest_step()
    with _told(manager, -1 if latest is None else latest):
        manager.wait_until_finished()


@contextlib.contextmanager
def _told(manager: ocp.CheckpointManager, step: int) -> Iterator[None]:
    """Turn what Orbax and TensorStore raise into one error."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        if jax.process_count() == 1:
            # A full disk stays full while half a checkpoint lies on it.
            for half in _halves(manager.directory):
                with contextlib.suppress(OSError):
                    half.rmtree()
        # What Orbax thought of as removed for this step's sake is still there.
        with contextlib.suppress(OSError):
            manager.reload()
        raise SaveError(step, manager.directory, error) from error


def _halves(directory: epath.Path) -> list[epath.Path]:
    """Return the folders of unfinished saves.

    Orbax gives them another name, or, in a bucket, leaves out a mark.
    """
    if not directory.is_dir():
        return []
    folders = sorted(directory.iterdir())
    if places.in_bucket(directory):
        return [f for f in folders if f.is_dir() and not (f / manifest.DONE).exists()]
    return [f for f in folders if f.name.endswith(_HALF)]


def _seal(directory: epath.Path) -> None:
    """Write the manifest of the one folder that Orbax is about to call finished."""
    (half,) = _halves(directory)
    manifest.write(half)


def about(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """Read a step's format, position, image shape, config text and notes.

    Raises:
        ValueError: it was written by a newer version.
    """
    found = manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))
    facts = found["about"]
    if facts["format"] > configs.FORMAT:
        raise ValueError(
            f"checkpoint {manager.directory}/{step} has format {facts['format']};"
            f" this version reads up to {configs.FORMAT}: upgrade jaxface"
        )
    return facts


def restore(
    manager: ocp.CheckpointManager, step: int, *, like: Any, part: bool = False
) -> Any:
    """Restore a step's state.

    Args:
        manager: from `open_manager`.
        step: which.
        like: tree of `jax.ShapeDtypeStruct` with shardings, of any mesh.
        part: `like` is a dict of some of the state's fields; the others stay on disk.

    Raises:
        ValueError: the checkpoint's arrays are not those of `like`, listed.
    """
    saved = _shapes(manager.item_metadata(step)["state"])
    wanted = _shapes(like)
    if part:
        saved = {k: v for k, v in saved.items() if k.partition("/")[0] in like}
    wrong = [
        f"{name}: saved {saved.get(name)}, here {wanted.get(name)}"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
    ]
    if wrong:
        shown = "; ".join(wrong[:5])
        raise ValueError(
            f"checkpoint {manager.directory}/{step} is of another model,"
            f" {len(wrong)} arrays differ: {shown}"
        )
    args = ocp.args.PyTreeRestore(
        item=like,
        restore_args=ocp.checkpoint_utils.construct_restore_args(like),
        partial_restore=part,
    )
    return manager.restore(step, args=ocp.args.Composite(state=args))["state"]


def restore_variables(
    manager: ocp.CheckpointManager, step: int, *, like: Any, ema: bool
) -> dict[str, Any]:
    """Restore what a network is applied with in evaluation.

    Args:
        manager: from `open_manager`.
        step: which.
        like: {"params", ...}: shapes with shardings, of any mesh.
        ema: take the average of the parameters in their place.

    Raises:
        ValueError: the checkpoint's arrays are not those of `like`, listed.
    """
    rest = {name: tree for name, tree in like.items() if name != "params"}
    name = "ema" if ema else "params"
    kept = restore(manager, step, like=rest | {name: like["params"]}, part=True)
    return {**{k: kept[k] for k in rest}, "params": kept[name]}


def arrays(manager: ocp.CheckpointManager, step: int) -> Any:
    """Return the tree of a step's arrays, by `shape` and `dtype`; none is read."""
    return manager.item_metadata(step)["state"].tree


def find(manager: ocp.CheckpointManager, which: str) -> int:
    """Return the step that "latest", "best" or a number names; its files are whole.

    Raises:
        FileNotFoundError: there is none, with the steps there are.
        ValueError: it is damaged, with what differs; "latest" is the newest that is
            not, so all are.
    """
    have = sorted(manager.all_steps())
    if which == "latest":
        step = newest(manager)
        if step is not None:
            return step
    if not have:
        raise FileNotFoundError(f"no checkpoint in {manager.directory}; train first")
    if which == "best":
        step = manager.best_step()
        if step is None:
            raise FileNotFoundError(
                f"no checkpoint in {manager.directory} was evaluated; use latest"
            )
    elif which.isdigit() and int(which) in have:
        step = int(which)
    else:
        raise FileNotFoundError(
            f"no checkpoint {which!r} in {manager.directory};"
            f" there are latest, best, {', '.join(map(str, have))}"
        )
    if wrong := damage(manager, step):
        raise ValueError(
            f"checkpoint {manager.directory}/{step} is damaged: {_shown(wrong)};"
            " take another step, or its copy"
        )
    return step


def newest(manager: ocp.CheckpointManager) -> int | None:
    """Return the newest step whose files are whole, None where there are no steps.

    Damaged ones are passed over, with an error in the log. Several processes agree.

    Raises:
        ValueError: all are damaged, with what differs.
    """
    none, spoilt = -1, -2
    found, lines = none, []
    if jax.process_index() == 0:
        for step in sorted(manager.all_steps(), reverse=True):
            if not (wrong := damage(manager, step)):
                found = step
                break
            found = spoilt
            lines.append(f"{manager.directory}/{step}: {_shown(wrong)}")
            logging.error("DAMAGED CHECKPOINT, passed over: %s", lines[-1])
    found = _from_first_process(found)
    if found == spoilt:
        raise ValueError(
            f"every checkpoint is damaged: {' | '.join(lines) or 'see process 0'};"
            " put back a copy, or train in a new --workdir"
        )
    return None if found == none else found


def damage(manager: ocp.CheckpointManager, step: int) -> list[str]:
    """List what differs from what was saved, by file; nothing when it is whole.

    One that an earlier version saved has no manifest: a warning says that it is taken
    as it is.
    """
    folder = manager.directory / str(step)
    if manifest.exists(folder):
        return manifest.differences(folder)
    try:
        if "manifest" in about(manager, step):
            return [f"{manifest.NAME}: missing"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{manifest.NAME}: missing, and about: {' '.join(str(error).split())}"]
    logging.warning("%s has no manifest and is taken unchecked", folder)
    return []


def set_aside(manager: ocp.CheckpointManager, step: int) -> None:
    """Rename a damaged step, so that it can be saved anew and still be looked at."""
    folder = manager.directory / str(step)
    if jax.process_index() == 0:
        n = 1
        while (aside := folder.with_name(f"damaged-{step}-{n}")).exists():
            n += 1
        folder.rename(aside)
        logging.error("%s is now %s; remove it when you have looked", folder, aside)
    _from_first_process(0)  # all wait
    manager.reload()


def _from_first_process(value: int) -> int:
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def _shown(wrong: list[str]) -> str:
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return "; ".join(wrong[:3]) + more


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }
