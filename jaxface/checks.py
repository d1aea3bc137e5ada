"""Which parts of a run fit each other; what does not is refused before any training.

The one law: a message names the setting, what was got, what was wanted and what to do.

    check_input(run)        # preprocessing and network
    check_mesh(run)         # batches, optimizer and devices
    check_training(run)     # loss, images, checkpoints, multipliers
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from absl import logging

from jaxface import config, spec, types
from jaxface.data import index
from jaxface.losses import joint, metric
from jaxface.train import multipliers

if TYPE_CHECKING:
    from jaxface.assembly import Run


def check_input(run: Run) -> None:
    """Refuse preprocessing that gives the network what it was not made for."""
    model = run.model
    for line in (run.pipeline, run.eval_pipeline):
        if line.color != model.color:
            raise ValueError(
                f"the preprocessing gives {line.color}, the model wants"
                f" {model.color}; {_cure(line, model.color)}"
            )
        if line.scale != (model.mean, model.std):
            raise ValueError(
                f"the preprocessing normalises by (mean, std) {line.scale}, the model"
                f" wants mean={model.mean}, std={model.std}; end the line with"
                f" normalize(mean={model.mean}, std={model.std})"
            )


def _cure(line: Any, color: str) -> str:
    if color == "bgr":
        return "put `bgr` before `normalize`, or decode(color='bgr') for such a source"
    return "drop `bgr`" if line.reads == "rgb" else "write decode(color='rgb')"


def check_mesh(run: Run) -> None:
    """Refuse batches and optimizers that the devices cannot share."""
    c, n = run.config, run.mesh.size
    for key in ("data.batch_size", "eval.batch_size"):
        if config.get(c, key) % n:
            raise ValueError(
                f"{key} is {config.get(c, key)}, which {n} devices cannot share"
                f" evenly; wanted a multiple of {n}, or --config.mesh.devices=1"
            )
    parts = c.train.microbatches
    if c.data.batch_size % (n * parts):
        raise ValueError(
            f"train.microbatches is {parts}, into which the {c.data.batch_size // n}"
            f" images of each device do not divide; wanted a data.batch_size that is"
            f" a multiple of {n * parts}"
        )
    split = run.layout.class_devices
    if 1024 % split:
        raise ValueError(
            f"{split} devices cannot share classes; wanted a divisor of 1024, for"
            " mesh.class_devices or all devices"
        )
    if c.mesh.how == "pmap" and split < n:
        raise ValueError(
            f"mesh.class_devices is {split} of {n} devices, and mesh.how='pmap' knows"
            " one mesh axis; set --config.mesh.how=jit, or class_devices=0"
        )
    if c.mesh.how == "pmap" and not _elementwise(run.make_tx.func):
        raise ValueError(
            f"mesh.how='pmap' needs an element-wise optimizer, got {c.optim.name!r},"
            " which looks at whole arrays; set --config.mesh.how=jit"
        )


def _elementwise(make_tx: Any) -> bool:
    """Whether an optimizer is known to be right on a part of an array."""
    return getattr(make_tx, "elementwise", False)


def check_training(run: Run) -> None:
    """Refuse what only training would trip over; this opens the training images."""
    c = run.config
    if c.loss.margin and not takes_margin(run.make_loss):
        raise ValueError(
            f"loss {c.loss.name!r} takes no margin, got {c.loss.margin!r};"
            ' set config.loss.margin = ""'
        )
    _ = run.loss, run.tx, run.order  # opens the images, binds what is left
    _check_sampling(run)
    _check_groups(run)
    if c.model.dtype == "float16" and not run.policy.growth:
        raise ValueError(
            f"model.dtype is 'float16', whose gradients vanish without a loss scale,"
            f" and train.nonfinite is {c.train.nonfinite!r}; set it to 'scaled()', or"
            " model.dtype to 'bfloat16'"
        )
    _check_mix(run)
    _check_pairs(run)
    _check_teacher(run)
    if run.rules:
        _check_rules(run)
    save, look = run.every(c.checkpoint.every), run.eval_every
    if c.checkpoint.best and save % look and look % save:
        raise ValueError(
            f"checkpoint.best needs checkpoints that were evaluated: checkpoint.every"
            f" is {save} steps, eval.every {look}; make one a multiple of the other"
        )
    name = c.checkpoint.best.removeprefix("-").partition("/")[0]
    if name in run.skipped:
        raise ValueError(
            f"checkpoint.best is of {name}, whose data is missing: {run.skipped[name]};"
            " bring it, or choose by another set"
        )
    if name and name not in run.evaluators:
        raise spec.unknown("checkpoint.best: evaluation set", name, run.evaluators)


def _check_sampling(run: Run) -> None:
    """Refuse what does not go with a loss that samples classes, or only with one."""
    c, n = run.config, run.layout.class_devices
    parts = joint.parts(run.loss)
    if len(parts) > 1 and any(isinstance(p, types.SampledLoss) for p in parts):
        raise ValueError(
            f"loss {c.loss.name!r} gives a gradient for the sampled rows alone, which"
            f" other losses would not find, got loss.also = {c.loss.also!r}; wanted"
            " '', or loss 'softmax'"
        )
    if not isinstance(run.loss, types.SampledLoss):
        if c.optim.head_clip:
            raise ValueError(
                f"optim.head_clip is {c.optim.head_clip}, a norm per class shard, and"
                f" loss {c.loss.name!r} has none; wanted 0, or a loss such as"
                " 'partial_fc(rate=1.0)', which is softmax in class shards"
            )
        return
    if run.loss.shards % n:
        raise ValueError(
            f"{n} devices cannot share {run.loss.shards} class shards evenly; wanted"
            f" partial_fc(shards=...) a multiple of {n}, or fewer devices"
        )
    if not _elementwise(run.make_tx.func):
        raise ValueError(
            f"partial_fc updates the sampled rows alone, so it needs an element-wise"
            f" optimizer, got {c.optim.name!r}, which looks at whole arrays; take"
            " another, or loss 'softmax'"
        )


def _check_groups(run: Run) -> None:
    """Refuse groups of devices for losses that each would go its own way with."""
    split, n, losses = run.layout.class_devices, run.mesh.size, joint.parts(run.loss)
    if split == n:
        return
    remedy = "wanted mesh.class_devices=0"
    if any(getattr(loss, "pairs", False) for loss in losses):
        raise ValueError(
            f"mesh.class_devices is {split} of {n}, and a loss over pairs would see"
            f" only those within a group of devices; {remedy}"
        )
    if "head" in jax.eval_shape(run.init).margin_state:
        raise ValueError(
            f"mesh.class_devices is {split} of {n}, and what the loss remembers of each"
            f" class would differ between the groups of devices; {remedy}"
        )
    if "teacher_head" in run.reads:
        raise ValueError(
            f"mesh.class_devices is {split} of {n}, and distill.logits wants the"
            f" teacher's head split over all devices; {remedy}"
        )


def _check_pairs(run: Run) -> None:
    """Refuse pairs cut apart; warn where few are of one person and need to be."""
    losses, parts = joint.parts(run.loss), run.config.train.microbatches
    if parts > 1 and any(getattr(loss, "pairs", False) for loss in losses):
        raise ValueError(
            f"train.microbatches is {parts}, and a loss over pairs would see only those"
            " within a part; wanted 1"
        )
    if not any(isinstance(loss, metric.Loss) for loss in losses):
        return
    order = run.order(index.positions(0, batch_size=run.config.data.batch_size))
    if not isinstance(run.source, types.Labelled):
        logging.warning("loss over pairs: whether a batch has any is not known")
        return
    labels = np.asarray(run.source.labels)[order]
    alone = float(np.mean(np.bincount(labels)[labels] == 1))
    if alone > 0.5:
        logging.warning(
            "in the first batch %.0f %% of the images have no other of their person,"
            " and a loss over pairs learns nothing from those; set"
            " config.data.sampler = 'pk(k=4)'",
            100 * alone,
        )


def class_sets(run: Run) -> tuple[int, ...]:
    """Return how many classes each set of the images has, for heads of their own.

    Raises:
        ValueError: a loss without such heads, images of no sets, or shared people.
    """
    c, source = run.config, run.source
    if "sets" not in inspect.signature(run.make_loss.func).parameters:
        raise ValueError(
            f"loss.heads is 'per_set', and loss {c.loss.name!r} has one head; wanted"
            " loss 'softmax' or 'partial_fc', or heads 'one'"
        )
    if not hasattr(source, "sets"):
        raise ValueError(
            "loss.heads is 'per_set', and data.source is of no sets; wanted"
            f" merged({{...}}) as its last part, got {c.data.source!r}"
        )
    if source.sets is None:
        raise ValueError(
            "loss.heads is 'per_set', and people of data.source are in several sets,"
            " so in several heads; wanted sets without shared people (leave out"
            " `shared=`), or heads 'one', for shared people are known to be the same"
        )
    return source.sets


def _check_mix(run: Run) -> None:
    """Refuse mixed images for losses that know one label of each."""
    c, losses = run.config, joint.parts(run.loss)
    if not c.data.mix:
        return
    if len(losses) > 1 or not getattr(losses[0], "mixes", False):
        also = f" and loss.also {c.loss.also!r}" if c.loss.also else ""
        raise ValueError(
            f"data.mix is {c.data.mix!r}, which gives an image two labels, and loss"
            f" {c.loss.name!r}{also} wants one person in each image; wanted 'softmax'"
            " or 'partial_fc' alone, or data.mix ''"
        )
    if c.data.batch_size < 2:
        raise ValueError("data.mix wants a data.batch_size of 2 or more, got 1")


def _check_teacher(run: Run) -> None:
    """Refuse a loss without its teacher, and a teacher without a loss."""
    c = run.config.distill
    if run.reads and not (c.workdir or c.cache):
        raise ValueError(
            "a loss of losses.distill learns from a teacher; set distill.workdir, or"
            " distill.cache to a file of embeddings"
        )
    if not run.reads and (c.workdir or c.cache):
        raise ValueError(
            f"a teacher is given ({c.workdir or c.cache}) and no loss learns from it;"
            ' set config.loss.also = "distill.cosine(weight=1.0)", or another'
        )
    if c.workdir and c.cache:
        raise ValueError("two teachers, distill.workdir and distill.cache; wanted one")
    if c.cache and "teacher_head" in run.reads:
        raise ValueError(
            "distill.logits wants the teacher's class weights, and distill.cache has"
            " embeddings only; set distill.workdir"
        )


def _check_rules(run: Run) -> None:
    """Refuse rules that match nothing, and a frozen network whose statistics move."""
    state = jax.eval_shape(run.init)
    multipliers.check(config.multipliers(run.config.optim.multipliers), state.trainable)
    paths = jax.tree_util.tree_leaves_with_path({"params": state.params})
    frozen = multipliers.frozen(run.rules)
    still = all(frozen(multipliers.name_of(path)) for path, _ in paths)
    if still and state.batch_stats and not run.config.model.frozen_stats:
        raise ValueError(
            "optim.multipliers freezes the whole network, but its running statistics"
            " would move; set --config.model.frozen_stats=True"
        )


def takes_margin(make_loss: Any) -> bool:
    """Tell whether a bound loss has a margin rule."""
    return "margin" in inspect.signature(make_loss.func).parameters
