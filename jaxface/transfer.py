"""A first state from another run's weights, with a new head or the old one grown.

The law: what is taken over is taken bit for bit (the averaged parameters where that
run averaged, adapters merged in), and all else is drawn as for a run from scratch.
Rows of a grown head go by the people's names where both runs know them.

    given = Given(workdir="old", config=old_config, manager=reader, step=100)
    state = first_state(run, given)
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging
from etils import epath

from jaxface import checkpoint, spec
from jaxface.assembly import Run
from jaxface.train import step as steps

CLASSES = "classes.json"  # in a workdir: the name of every class, in order


@dataclasses.dataclass(frozen=True)
class Given:
    """A checkpoint to start from.

    Attributes:
        workdir: where it is.
        config: what it was trained with.
        manager: of its checkpoints.
        step: which of them.
    """

    workdir: epath.Path
    config: ml_collections.ConfigDict
    manager: Any
    step: int


def first_state(run: Run, given: Given) -> steps.TrainState:
    """Build a run's first state from a checkpoint, every array where it belongs.

    Raises:
        ValueError: the checkpoint is of another network, is not for training, or has
            no head that can be grown.
    """
    about = checkpoint.about(given.manager, given.step)
    if not about.get("trainable", True):
        why = about.get("why", "its checkpoint says so")
        raise ValueError(f"init.workdir {given.workdir} cannot be trained on: {why}")
    taken = _network(run, given)
    if run.config.init.head == "grow":
        taken |= _margin(run, given) | _head(run, given, about.get("num_classes"))
    logging.info("starting from %s, step %d", given.workdir, given.step)

    def fill(taken: Any) -> steps.TrainState:
        state = run.init()  # the compiler leaves out draws that nobody uses
        kept = dict(taken)
        if run.config.model.lora:
            kept["params"] = {**state.params, "base": kept["params"]}
        if run.config.optim.ema > 0:
            kept["ema"] = kept["params"]
        if "head" in kept:
            known = kept.pop("known")
            kept["head"] = jax.tree.map(
                lambda old, new: jnp.where(_column(known, new), old, new),
                kept["head"],
                state.head,
            )
        state = state.replace(**kept)
        return state.replace(opt_state=run.tx.init(state.trainable))

    return jax.jit(fill, out_shardings=run.shardings)(taken)


def match(
    old: Sequence[str] | None, new: Sequence[str] | None, *, counts: tuple[int, int]
) -> np.ndarray:
    """Find every class's row in the old head.

    Args:
        old: names of the old classes, or None.
        new: names of the new classes, or None.
        counts: how many old and new classes there are.

    Returns:
        [C] int64, C new classes: the old row, by name where both have names and else
        by label; -1 for a person the old head does not know.

    Raises:
        ValueError: no name in common, or no names and fewer classes than before.
    """
    if old is None or new is None:
        if counts[1] < counts[0]:
            raise ValueError(
                f"init.head='grow' from {counts[0]} to {counts[1]} classes: without"
                " names on both sides rows go by label, and none may be missing"
            )
        logging.warning("growing by label: class k is taken to be who class k was")
        return np.where(np.arange(counts[1]) < counts[0], np.arange(counts[1]), -1)
    row = {name: i for i, name in enumerate(old)}
    rows = np.array([row.get(name, -1) for name in new], np.int64)
    known = int((rows >= 0).sum())
    if not known:
        raise ValueError(
            f"init.head='grow': none of {len(new)} people, such as {new[0]!r}, is among"
            f" the {len(old)} before, such as {old[0]!r}; set init.head='new'"
        )
    logging.info(
        "growing by name: %d people kept, %d dropped, %d new",
        known,
        len(old) - known,
        len(new) - known,
    )
    return rows


def class_names(workdir: epath.Path) -> list[str] | None:
    """Read a workdir's class names, or None where its source had none."""
    path = workdir / CLASSES
    return json.loads(path.read_text()) if path.exists() else None


def _network(run: Run, given: Given) -> dict[str, Any]:
    """Return the plain network's {"params", "batch_stats"}, on the mesh."""
    theirs = given.config.model
    model = run.adapted(theirs.lora)
    like = run.abstract_variables(run.shape, model=model)
    try:
        kept = checkpoint.restore_variables(
            given.manager, given.step, like=like, ema=given.config.optim.ema > 0
        )
    except ValueError as error:
        raise ValueError(
            f"init.workdir {given.workdir} has model {theirs.name!r}, this run"
            f" {run.config.model.name!r}: {error}"
        ) from None
    if theirs.lora:
        kept["params"] = jax.jit(model.merge)(kept["params"])
    return kept


def _head(run: Run, given: Given, count: int | None) -> dict[str, Any]:
    """Return {"head", "known"}: old rows in their new places, and which those are."""
    saved = checkpoint.arrays(given.manager, given.step).get("head", {})
    wanted = run.abstract.head
    rows_there, rows_here = (
        {name: shape[1:] for name, shape in _shapes(head).items()}
        for head in (saved, wanted)
    )
    if not saved or rows_there != rows_here:
        raise ValueError(
            f"init.head='grow': one class takes {rows_here or 'nothing'} here and"
            f" {rows_there or 'nothing'} in {given.workdir}; set init.head='new'"
        )
    centers = _centers(run.config)
    if _centers(given.config) != centers:
        raise ValueError(
            f"init.head='grow': a class has {centers} centres here and"
            f" {_centers(given.config)} in {given.workdir}; launch/subcenters.py makes"
            " one of them, or set init.head='new'"
        )
    names = class_names(given.workdir)
    count = len(names) if names else count
    if count is None:
        raise ValueError(
            f"{given.workdir} does not say how many classes its head has, being older;"
            " run its training command once more, which notes the names, or set"
            " init.head='new'"
        )
    new = run.class_names
    rows = match(names, new, counts=(count, run.source.num_classes))
    # A class's centres are neighbours.
    known_rows = np.repeat(rows >= 0, centers)
    rows = (rows[:, None] * centers + np.arange(centers)).reshape(-1)
    rows[~known_rows] = -1
    # Whole on every host: growing happens once, and heads fit a host's memory.
    like = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), saved)
    old = checkpoint.restore(given.manager, given.step, like={"head": like}, part=True)

    def placed(old: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
        out = np.zeros(like.shape, like.dtype)
        out[: len(rows)][rows >= 0] = old[rows[rows >= 0]]
        return jax.device_put(out, like.sharding)

    size = jax.tree.leaves(wanted)[0].shape[0]
    known = np.zeros(size, bool)
    known[: len(rows)] = rows >= 0
    return {
        "head": jax.tree.map(placed, old["head"], wanted),
        "known": jax.device_put(known, run.layout.rows),
    }


def _margin(run: Run, given: Given) -> dict[str, Any]:
    """Return the margin rule's own arrays where both rules have the same ones."""
    fields = ("margin_params", "margin_state")
    like = {name: getattr(run.abstract, name) for name in fields}
    like = {name: tree for name, tree in like.items() if jax.tree.leaves(tree)}
    if "head" in run.abstract.margin_state:
        logging.warning("statistics of the classes are not grown; they start anew")
        return {}
    saved = checkpoint.arrays(given.manager, given.step)
    for name, tree in like.items():
        if _shapes(saved.get(name, {})) != _shapes(tree):
            logging.warning("the margin's own numbers differ, so they start anew")
            return {}
    if not like:
        return {}
    return checkpoint.restore(given.manager, given.step, like=like, part=True)


def _shapes(arrays: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(x.shape) for name, x in arrays.items()}


def _centers(c: ml_collections.ConfigDict) -> int:
    return dict(spec.parse_one(c.loss.name).kwargs).get("centers", 1)


def _column(known: jax.Array, like: jax.Array) -> jax.Array:
    return known.reshape(-1, *(1,) * (like.ndim - 1))
