"""Checkpoints by Orbax: state, data position, config and metrics, atomically.

The one law: a step's folder exists only when it is complete, so a run killed at any
moment finds its last whole checkpoint. Arrays are saved by name and shape, not by
device, and restore onto any mesh.

    manager = open_manager("run/checkpoints", keep=2, best="lfw/accuracy")
    save(manager, 100, state, config_text=text, metrics={"lfw/accuracy": 0.9})
    state = restore(manager, 100, like=shapes_with_shardings)
"""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from jaxface import config as configs


def open_manager(
    directory: str | pathlib.Path, *, keep: int = 2, best: str = "", create: bool = True
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
    path = pathlib.Path(directory).absolute()
    if not create and not path.is_dir():
        raise FileNotFoundError(f"no checkpoints at {path}; train there first")
    keepers: list[Any] = [policies.LatestN(keep)]
    best_fn = None
    if best:
        sign = -1.0 if best.startswith("-") else 1.0
        name = best.removeprefix("-")

        def best_fn(metrics: dict[str, float]) -> float:
            return sign * metrics[name]

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
    )
    handlers = {
        "state": ocp.PyTreeCheckpointHandler(),
        "about": ocp.JsonCheckpointHandler(),
    }
    return ocp.CheckpointManager(path, options=options, item_handlers=handlers)


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
    """
    about = (notes or {}) | {
        "format": configs.FORMAT,
        "position": position,
        "shape": list(shape),
        "config": config_text,
    }
    manager.save(
        step,
        args=ocp.args.Composite(
            state=ocp.args.PyTreeSave(state), about=ocp.args.JsonSave(about)
        ),
        metrics=metrics,
        force=True,
    )


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
    """Return the step that "latest", "best" or a number names.

    Raises:
        FileNotFoundError: there is none, with the steps there are.
    """
    have = sorted(manager.all_steps())
    if not have:
        raise FileNotFoundError(f"no checkpoint in {manager.directory}; train first")
    if which == "latest":
        return have[-1]
    if which == "best":
        step = manager.best_step()
        if step is None:
            raise FileNotFoundError(
                f"no checkpoint in {manager.directory} was evaluated; use latest"
            )
        return step
    if not which.isdigit() or int(which) not in have:
        raise FileNotFoundError(
            f"no checkpoint {which!r} in {manager.directory};"
            f" there are latest, best, {', '.join(map(str, have))}"
        )
    return int(which)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }
