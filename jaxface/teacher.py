"""The teacher of a distillation: a frozen network, or its embeddings read from a file.

The law: a teacher's arrays join the batch and nothing else. The network is compiled
beside the step, and its variables are an argument of that program: not a constant of
it, not in the state, not donated, not saved. So a step, a checkpoint and a resumed run
are those of the network that learns, whatever taught it.

    batches = map(beside(run, given), run.batches(loader))          # a checkpoint
    batches = run.batches(recited(run, loader))                     # a file
    next(batches)["teacher"]                                        # [B, T]
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from jaxface import assembly, checkpoint, transfer
from jaxface.assembly import Run
from jaxface.types import Batch


def beside(run: Run, given: transfer.Given) -> Callable[[Batch], Batch]:
    """Make the function that adds what a trained or converted network says.

    The teacher sees the same augmented images, in the colours and the value range
    that it was made for, and is applied as in evaluation, once and not mirrored.

    Args:
        run: the one that learns.
        given: the teacher's checkpoint.

    Raises:
        ValueError: the teacher was made for images of another size, or the loss
            compares class weights and it has none, or those of other people.
    """
    there = _run_of(run, given)
    about = checkpoint.about(given.manager, given.step)
    shape = tuple(about["shape"])
    if shape != run.shape:
        raise ValueError(
            f"the teacher in {given.workdir} is for images of {shape}, this run's are"
            f" {run.shape}; wanted the same size, or distill.cache with its embeddings"
        )
    variables = checkpoint.restore_variables(
        given.manager,
        given.step,
        like=there.abstract_variables(shape),
        ema=given.config.optim.ema > 0,
    )
    kept = {}
    if "teacher_head" in run.reads:
        kept["teacher_head"] = _head(run, given, about.get("num_classes"))
    adapt = _adapter(run, there)

    def forward(variables: Any, images: jax.Array) -> jax.Array:
        return there.model.apply(variables, adapt(images))

    whole, split = run.layout.whole, run.layout.split
    compiled = jax.jit(forward, in_shardings=(whole, split), out_shardings=split)
    logging.info("learning from %s, step %d", given.workdir, given.step)

    def add(batch: Batch) -> Batch:
        return {**batch, "teacher": compiled(variables, batch["image"]), **kept}

    return add


def recited(run: Run, loader: Iterable[Batch]) -> Iterator[Batch]:
    """Add embeddings of a file, by the number of the image, to a loader's batches.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it does not hold one array [len(data.source), T].
    """
    rows = _read(pathlib.Path(run.config.distill.cache), len(run.source))
    return (
        {**batch, "teacher": rows[batch["example"]].astype(np.float32)}
        for batch in loader
    )


def _read(path: pathlib.Path, count: int) -> np.ndarray:
    if not path.exists():
        raise FileNotFoundError(f"distill.cache: there is no {path}")
    found = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(found, np.ndarray):
        with found:
            if len(found.files) != 1 and "embedding" not in found.files:
                raise ValueError(
                    f"distill.cache {path}: {found.files}; wanted one array, or one"
                    " of them called 'embedding'"
                )
            one = len(found.files) == 1
            found = found[found.files[0] if one else "embedding"]
    if found.ndim != 2 or len(found) != count:
        raise ValueError(
            f"distill.cache {path} holds an array {found.shape}; wanted a row for each"
            f" of the {count} images of data.source, in their order"
        )
    return found


def _run_of(run: Run, given: transfer.Given) -> Run:
    """Build the teacher's own run, on our devices and without its protocols."""
    c = given.config.copy_and_resolve_references().unlock()
    c.eval.sets = {}
    c.mesh, c.eval.batch_size = run.config.mesh, run.config.eval.batch_size
    c.data.batch_size = run.config.data.batch_size
    return assembly.build(c.lock(), for_training=False)


def _adapter(run: Run, there: Run) -> Callable[[jax.Array], jax.Array]:
    """Make the function that turns our network's images into the teacher's."""
    ours, theirs = run.model, there.model
    swap = ours.color != theirs.color
    if (ours.mean, ours.std) == (theirs.mean, theirs.std) and not swap:
        return lambda images: images  # to the bit

    def row(x: Any) -> jax.Array:
        return jnp.asarray(x, jnp.float32).reshape(1, 1, 1, -1)

    def adapt(images: jax.Array) -> jax.Array:
        pixels = images * row(ours.std) + row(ours.mean)
        pixels = pixels[..., ::-1] if swap else pixels
        return (pixels - row(theirs.mean)) / row(theirs.std)

    return adapt


def _head(run: Run, given: transfer.Given, count: int | None) -> jax.Array:
    """Restore the teacher's class weights, split by class; they are of our people."""
    saved = checkpoint.arrays(given.manager, given.step).get("head", {})
    if set(saved) != {"kernel"}:
        raise ValueError(
            f"distill.logits: the teacher in {given.workdir} has no class weights, but"
            f" {sorted(saved)}; wanted one trained by softmax, or distill.cosine"
        )
    theirs, ours = transfer.class_names(given.workdir), run.class_names
    count = len(theirs) if theirs else count
    if count != run.source.num_classes or (theirs and ours and theirs != ours):
        raise ValueError(
            f"distill.logits: the teacher in {given.workdir} knows {count} people, and"
            f" this run's {run.source.num_classes} are others, or in another order;"
            " wanted a teacher of the same data.source, or distill.cosine"
        )
    shape = saved["kernel"]
    like = jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=run.layout.rows)
    head = {"head": {"kernel": like}}
    found = checkpoint.restore(given.manager, given.step, like=head, part=True)
    return found["head"]["kernel"]
