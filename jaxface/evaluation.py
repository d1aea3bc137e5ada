"""Evaluation of a run: its protocols built, handed the network, and how often.

The one law: every evaluator of every network gets the images in the same order, with
the same draws; so two networks differ in a number by their weights alone.

    found, skipped = evaluators(config.eval.sets, assembly.flow)
    evaluate(run, variables)["lfw"].scalars["accuracy"]
    embedder(run, variables)(source)          # [n, D]
    every(run)                                # steps between evaluations in training
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging

from jaxface import embed, spec, types
from jaxface.data import host, ops
from jaxface.eval import clustering, overlap, strangers

if TYPE_CHECKING:
    from jaxface.assembly import Run

_SEED = 0  # of what degradations draw: the same for every network that is evaluated
# What a forward pass costs of a training step's part for one image; iresnet.r50: 11.7 G
# of 35.2 G FLOPs (launch/describe.py). The head's part of the step is left out.
_FORWARD = 1 / 3


def evaluators(
    sets: Mapping[str, str], flow: Callable[[str], types.Evaluator]
) -> tuple[dict[str, types.Evaluator], dict[str, str]]:
    """Build the evaluators; name those with `optional=True` whose data is missing.

    It is said in the first part: `pairs_bin(path='lfw.bin', optional=True)|...`.

    Args:
        sets: name -> line.
        flow: builds what a line says.

    Returns:
        (evaluators, why those that are skipped are missing), by name.
    """
    found, skipped = dict[str, types.Evaluator](), dict[str, str]()
    for name, line in sets.items():
        first, *rest = spec.parse(line)
        given = dict(first.kwargs)
        optional = given.pop("optional", False)
        if not isinstance(optional, bool):
            raise ValueError(f"eval.sets.{name}: optional={optional!r}; wanted a bool")
        first = dataclasses.replace(first, kwargs=tuple(given.items()))
        try:
            found[name] = flow("|".join(map(str, (first, *rest))))
        except FileNotFoundError as error:
            if not optional:
                raise
            skipped[name] = str(error)
            logging.warning("%s is skipped, for it is optional: %s", name, error)
    return found, skipped


def every(run: Run) -> int:
    """Return the steps between evaluations in training; the last step has one too.

    "auto" is the least multiple of `checkpoint.every` at which all evaluations of the
    run together stay within `eval.share` of its work, or once, at the end, where even
    that is more. Work is counted in images through the network, see `_FORWARD`, the
    same on every machine; of a network that is partly frozen, training is less.
    """
    c = run.config
    if c.eval.every != "auto":
        return run.every(c.eval.every)
    save, total = run.every(c.checkpoint.every), run.total
    once = _FORWARD * sum(e.work for e in run.evaluators.values())
    once *= (1 + (c.eval.embed == "flip_sum")) / c.data.batch_size  # in steps
    allowed = max(1, c.eval.share * total / once) if once else math.inf

    def times(apart: int) -> int:
        return math.ceil(total / (save * apart))

    apart = next(m for m in itertools.count(1) if times(m) <= allowed)
    if once:
        share = times(apart) * once / total
        log = logging.info if share <= c.eval.share else logging.warning
        log(
            "evaluation with every %d. checkpoint, every %d steps, costs %.2g %% of the"
            " work of training (eval.share is %.2g %%)",
            *(apart, save * apart, 100 * share, 100 * c.eval.share),
        )
    return save * apart


def evaluate(run: Run, variables: Any) -> dict[str, types.Result]:
    """Run every evaluator on the network with these variables."""
    network = embedder(run, variables)
    return {name: e.run(network) for name, e in run.evaluators.items()}


def embedder(run: Run, variables: Any) -> embed.Network:
    """Make the function from a source to its embeddings, in order."""
    if run.layout.shard != "none":
        variables = run.gather(variables)

    def in_order(source: types.Source, line: str) -> Iterator[types.Batch]:
        how = run.eval_pipeline
        if line:
            how = how.inserted(ops.parse(f"decode|{line}"))
        return host.batches_once(
            source,
            how,
            batch_size=run.config.eval.batch_size,
            workers=run.workers,
            seed=_SEED if line else None,
        )

    return embed.Network(
        run.passes,
        variables,
        run.mesh,
        run.layout.axis,
        in_order,
        run.eval_pipeline.span,
    )


def leaks(run: Run, variables: Any) -> dict[str, overlap.Leak]:
    """Look for the people of the evaluation sets among those trained on.

    Every training image is embedded once more, by the network that is evaluated; a
    person whom it does not recognise is not found.

    Args:
        run: whose training images are needed.
        variables: of the network.

    Returns:
        What was found, by the name of the set; sets that do not tell whose their
        images are, such as the binary task's, are left out.
    """
    sets = {name: _people(e) for name, e in run.evaluators.items()}
    known = {name: people for name, people in sets.items() if people is not None}
    if not known:
        return {}
    network = embedder(run, variables)
    e, label = embed.whole(network.rows(run.source))
    centres = strangers.class_centres(e, label, classes=run.source.num_classes)
    found = {}
    for name, (images, owners) in known.items():
        shown = owners >= 0
        found[name] = overlap.leak(
            (centres, e, label), network(images)[shown], owners[shown]
        )
    return found


def _people(evaluator: Any) -> tuple[types.Source, np.ndarray] | None:
    """Return (images, whose each is [n], -1 unknown) of a protocol, if it tells."""
    fed = getattr(evaluator, dataclasses.fields(evaluator)[0].name)
    if isinstance(fed, types.Groups):
        fed = fed.pairs
    if isinstance(fed, types.TemplatePairs | types.Search):
        fed = fed.templates
    if isinstance(fed, types.Pairs | types.Templates):
        return fed.images, fed.owners
    if isinstance(evaluator, clustering.Evaluator):
        told = isinstance(fed, types.Labelled)
        read = fed.labels if told else [fed.read(i)[1] for i in range(len(fed))]
        return fed, np.asarray(read)
    return None
