"""From a config to a `Run`: every name resolved, every part checked against others.

The one law: a config is read here and in `experiment`, nowhere below; all that can
be wrong with it is said before any training.

    run = build(config)
    state = run.first_state()
    state, metrics = run.step(state, next(run.batches(run.loader(0))))
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from jaxface import (
    checks,
    config,
    embed,
    evaluation,
    lora,
    losses,
    models,
    parallel,
    spec,
)
from jaxface import eval as protocols
from jaxface.data import host, ops, pipeline, processes, samplers, sources, stream
from jaxface.losses import joint, mixing
from jaxface.train import guard, multipliers, nonfinite, optim, schedules
from jaxface.train import layout as layouts
from jaxface.train import step as steps
from jaxface.types import (
    Batch,
    Batches,
    Evaluator,
    Loss,
    Named,
    Source,
)


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything a config names, resolved and bound.

    What only training needs (the training images first of all) is made when it is
    asked for, so that a checkpoint can be evaluated where they are not.

    Attributes:
        config: what it was built from.
        pipeline: preprocessing in training.
        eval_pipeline: preprocessing in evaluation.
        evaluators: by the name of the set.
        skipped: sets that say `optional=True` and whose data is missing: why.
        layout: where arrays lie.
        make_model: backbone, still without dtype and axis.
        make_loss: head and loss, still without classes.
        make_order: sampler, still without the images.
        also: (name, weight, loss still without classes) of what is added to it.
        mix: how images of a batch are mixed, or None.
        connect: to other machines that make the batches, or None.
        make_tx: optimizer, still without a schedule.
        make_schedule: schedule, still without lengths.
        policy: what becomes of steps that are not finite.
    """

    config: ml_collections.ConfigDict
    pipeline: pipeline.Pipeline
    eval_pipeline: pipeline.Pipeline
    evaluators: Mapping[str, Evaluator]
    skipped: Mapping[str, str]
    layout: layouts.Layout
    make_model: Callable[..., Any]
    make_order: Callable[..., samplers.Order]
    make_loss: Callable[..., Any]
    also: tuple[tuple[str, float, Callable[..., Any]], ...]
    mix: mixing.Mix | None
    make_tx: Callable[..., Any]
    make_schedule: Callable[..., Any]
    policy: guard.Policy

    @property
    def mesh(self) -> Mesh:
        """The devices."""
        return self.layout.mesh

    @functools.cached_property
    def source(self) -> Source:
        """The training images."""
        return flow(self.config.data.source)

    @property
    def class_names(self) -> list[str] | None:
        """Who the classes are, in order, where the training images tell."""
        source = self.source
        return list(source.classes) if isinstance(source, Named) else None

    def steps(self, duration: str, *, total: int | None = None) -> int:
        """Return a duration of the config in steps; percent are of `total`."""
        return config.steps(
            duration,
            batch_size=self.config.data.batch_size,
            examples=len(self.source),
            total=total,
        )

    @functools.cached_property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.steps(self.config.train.length)

    def every(self, duration: str) -> int:
        """Return a period of the config in steps."""
        return self.steps(duration, total=self.total)

    @functools.cached_property
    def eval_every(self) -> int:
        """Steps between evaluations."""
        return evaluation.every(self)

    @functools.cached_property
    def schedule(self) -> Callable[[Any], Any]:
        """Updates done -> learning rate."""
        c = self.config.optim
        return self.make_schedule(
            peak=c.lr, warmup_steps=self.every(c.warmup), total_steps=self.total
        )

    @functools.cached_property
    def tx(self) -> Any:
        """The optimizer, which leaves alone what is frozen."""
        return multipliers.scaled(self.make_tx(lr=self.schedule), self.rules)

    @property
    def rules(self) -> tuple[tuple[str, float], ...]:
        """(regex, factor of the learning rate): the config's, then LoRA's own."""
        rules = config.multipliers(self.config.optim.multipliers)
        return (*rules, (lora.FROZEN, 0.0)) if self.config.model.lora else rules

    @functools.cached_property
    def order(self) -> samplers.Order:
        """Which image stands where."""
        c = self.config
        return self.make_order(
            source=self.source, batch_size=c.data.batch_size, seed=c.seed
        )

    @functools.cached_property
    def loss(self) -> Loss:
        """The head and its loss."""
        given: dict[str, Any] = {"num_classes": self.source.num_classes}
        if checks.takes_margin(self.make_loss):
            given["margin"] = self.config.loss.margin
        if self.config.loss.heads == "per_set":
            given["sets"] = checks.class_sets(self)
        main = self.make_loss(**given)
        if not self.also:
            return main
        added = (
            (n, w, m(num_classes=self.source.num_classes)) for n, w, m in self.also
        )
        name = spec.parse_one(self.config.loss.name).name
        return joint.Joint(((name, 1.0, main), *added))

    @property
    def reads(self) -> set[str]:
        """What the losses want of a teacher, as keys of the batch."""
        return {
            k for part in joint.parts(self.loss) for k in getattr(part, "reads", ())
        }

    @functools.cached_property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, 3) of what the network sees."""
        if self.pipeline.size:
            return (*self.pipeline.size, 3)
        one = host.batches_once(self.source, self.eval_pipeline, batch_size=1)
        with contextlib.closing(one) as batches:
            return next(batches)["image"].shape[1:]

    @functools.cached_property
    def model(self) -> Any:
        """The backbone, its BatchNorm synced over the mesh or local."""
        return self.adapted(self.config.model.lora)

    def adapted(self, line: str) -> Any:
        """Return the backbone with the adapters of a `model.lora` line, "" for none."""
        c = self.config.model
        axis = self.layout.axis if c.sync_bn else None
        base = self.make_model(dtype=c.dtype, axis=axis)
        if not line:
            return base
        call = spec.parse_one(line)
        if call.name != "lora":
            raise spec.unknown("adapter", call.name, ["lora"])
        return spec.bind(lora.Model, call, {"base": base})()

    @functools.cached_property
    def init(self) -> Callable[[], steps.TrainState]:
        """Function of nothing that builds the first state."""
        return functools.partial(
            steps.init_state,
            self.model,
            self.loss,
            self.tx,
            seed=self.config.seed,
            shape=self.shape,
            num_classes=self.source.num_classes,
            ema=self.config.optim.ema,
            policy=self.policy,
        )

    @functools.cached_property
    def abstract(self) -> Any:
        """The state's shapes with shardings: what `restore` needs."""
        shapes = jax.eval_shape(self.init)
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            shapes,
            self.layout.shardings(shapes),
        )

    @property
    def shardings(self) -> Any:
        """Where every array of the state belongs."""
        return jax.tree.map(lambda x: x.sharding, self.abstract)

    def first_state(self) -> steps.TrainState:
        """Draw the first state, every array where it belongs."""
        return jax.jit(self.init, out_shardings=self.shardings)()

    @functools.cached_property
    def step(self) -> parallel.Step:
        """The compiled train step."""
        c = self.config
        grads_of = functools.partial(
            steps.make_grads,
            self.model,
            clip=c.optim.clip,
            frozen=multipliers.frozen(self.rules),
            frozen_stats=c.model.frozen_stats,
            microbatches=c.train.microbatches,
            sam=c.optim.sam,
            policy=self.policy,
        )
        update = steps.make_update(self.tx, ema=c.optim.ema, policy=self.policy)
        return layouts.compile_step(
            self.layout,
            self.loss,
            grads_of,
            update,
            like=self.abstract,
            head_clip=c.optim.head_clip,
        )

    def loader(self, start: int) -> Batches:
        """Return this process's batches from a step on."""
        here = {"host": jax.process_index(), "hosts": jax.process_count()}
        about, c = config.batches(self.config), self.config.data
        if c.service:
            part = self._stream(**here)
            return _service().Loader(part, c.service, about, start_step=start, **here)
        if c.processes:
            alone = 0 if c.loader == "host" else 1  # the process itself, or its thread
            made = functools.partial(
                _made, about, loader=c.loader, workers=c.workers or alone, **here
            )
            return processes.Loader(made, count=c.processes, start_step=start)
        return self._loader(self._stream(**here), start, workers=self.workers)

    def maker(self) -> Callable[..., tuple[Batch, dict[str, str]]]:
        """Return what makes any process's batch of any step, see `service.Make`."""
        ours = config.batches(self.config)
        of = functools.cache(lambda k, n: self._stream(host=k, hosts=n))
        pool = futures.ThreadPoolExecutor(self.workers, "jaxface-maker")

        def make(
            about: str, step: int, host: int, hosts: int
        ) -> tuple[Batch, dict[str, str]]:
            if about != ours:
                raise ValueError(
                    f"the trainer wants batches of {about}, this worker makes those of"
                    f" {ours}; start both with the same recipe"
                )
            part = of(host, hosts)
            return part.begin(step, pool)(), dict(part.bad)

        return make

    def _stream(self, *, host: int, hosts: int) -> stream.Stream:
        c = self.config.data
        return stream.Stream(
            self.source,
            self.pipeline,
            batch_size=c.batch_size,
            seed=self.config.seed,
            host=host,
            hosts=hosts,
            max_bad=c.max_bad,
            order=self.order,
            split=True,
        )

    def _loader(self, order: stream.Stream, start: int, *, workers: int) -> Batches:
        module = _tfdata() if self.config.data.loader == "tfdata" else host
        return module.Loader(order, start_step=start, workers=workers)

    @property
    def workers(self) -> int:
        """Threads that read and decode."""
        return self.config.data.workers or os.cpu_count() or 1

    @functools.cached_property
    def finish(self) -> Callable[[Batch], Batch]:
        """What a line of preprocessing leaves to be done on the devices, compiled."""
        _, rest = self.pipeline.split()

        def finished(batch: Batch) -> Batch:
            done = {**batch, "image": rest.batch(jnp, batch["image"])}
            if self.mix is None:
                return done
            return mixing.mixed(done, mix=self.mix, seed=self.config.seed)

        return jax.jit(finished, out_shardings=self.layout.split)

    def batches(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """Yield global device batches, one placed ahead of the one in use."""
        placed = (
            self.finish(parallel.put_batch(b, mesh=self.mesh, axis=self.layout.axis))
            for b in loader
        )
        ahead = list(itertools.islice(placed, 1))
        for batch in placed:
            ahead.append(batch)
            yield ahead.pop(0)

    @functools.cached_property
    def passes(self) -> embed.Passes:
        """The ways of evaluation through the network, each compiled once."""
        flip = self.config.eval.embed == "flip_sum"
        return embed.make_passes(
            self.model, mesh=self.mesh, axis=self.layout.axis, flip=flip
        )

    def abstract_variables(
        self, shape: tuple[int, int, int], *, model: Any = None
    ) -> Any:
        """A network's shapes, by default ours, with shardings; images [H, W, 3]."""
        init = (model or self.model).init
        images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
        shapes = jax.eval_shape(init, jax.random.key(0), images)
        whole = self.layout.whole
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), shapes
        )

    @functools.cached_property
    def gather(self) -> Callable[[Any], Any]:
        """What lays arrays whole on every device, compiled."""
        return jax.jit(lambda x: x, out_shardings=self.layout.whole)


def build(
    c: ml_collections.ConfigDict,
    *,
    for_training: bool = True,
    devices: Sequence[jax.Device] | None = None,
) -> Run:
    """Resolve and check a whole config; the first device work is the mesh.

    Args:
        c: the config.
        for_training: False leaves out all that needs the training images.
        devices: what to choose from, `jax.devices()` by default; to compile for such
            as are not here, see `plan`.

    Raises:
        KeyError: an unknown model, loss, margin, op, source, ... with the nearest.
        ValueError: a value out of range, or parts that do not fit each other.
        FileNotFoundError: missing data.
    """
    config.validate(c)
    found, skipped = evaluation.evaluators(c.eval.sets, flow)
    run = Run(
        config=c,
        pipeline=ops.parse(c.data.ops),
        eval_pipeline=ops.parse(c.data.eval_ops),
        evaluators=found,
        skipped=skipped,
        layout=_laid_out(c, jax.devices() if devices is None else devices),
        make_model=_bound(models, c.model.name, kind="model", default="Model"),
        make_order=_member(samplers, c.data.sampler, kind="sampler"),
        make_loss=_bound(losses, c.loss.name, kind="loss", default="Loss"),
        also=_also(c.loss.also),
        mix=_mix(c.data.mix),
        make_tx=_member(optim, c.optim.name, kind="optimizer"),
        make_schedule=_member(schedules, c.optim.schedule, kind="schedule"),
        policy=_member(nonfinite, c.train.nonfinite, kind="policy")(),
    )
    if c.data.service:
        _service().place(c.data.service)  # or raise
    checks.check_input(run)
    checks.check_mesh(run)
    if for_training:
        checks.check_training(run)
    return run


def _made(
    about: str,
    first: int,
    every: int,
    memory: stream.Memory,
    *,
    loader: str,
    workers: int,
    host: int,
    hosts: int,
) -> Batches:
    """Make batches in one of `processes`."""
    jax.config.update("jax_platforms", "cpu")  # the accelerator is the trainer's
    c = config.of_batches(about)
    c.data.loader, c.mesh.devices = loader, 1
    run = build(c, for_training=False)
    order = run._stream(host=host, hosts=hosts).strided(first, every, memory)
    return run._loader(order, 0, workers=workers)


def flow(line: str) -> Any:
    """Build what a line of sources says, each part fed by the one before.

    `folder(path='x', part='train')` is a source; `...|pairs_sampled(count=600)` a
    list of pairs over it; `...|verification` an evaluator of those.

    Raises:
        KeyError: a part that neither jaxface.data.sources nor jaxface.eval has.
    """
    return spec.flow(
        line,
        (sources, protocols),
        kind="source or evaluator",
        names=("Source", "pairs", "search", "groups", "Evaluator"),
    )


def _tfdata() -> Any:
    return _tensorflow("tfdata", "loader='tfdata'", "set --config.data.loader=host")


def _service() -> Any:
    return _tensorflow("service", "service", "leave it out")


def _tensorflow(name: str, what: str, instead: str) -> Any:
    """Import a module of jaxface.data that takes 7 s and 700 MB, where asked for."""
    try:
        return importlib.import_module(f"jaxface.data.{name}")
    except ImportError as error:
        raise ImportError(
            f"config.data.{what} needs TensorFlow ({error}): pip install"
            f" tensorflow-cpu, or {instead}"
        ) from None


def _bound(package: Any, line: str, *, kind: str, default: str) -> Any:
    call = spec.parse_one(line)
    return spec.bind(spec.module(package, call, kind=kind, default=default), call)


def _also(line: str) -> tuple[tuple[str, float, Any], ...]:
    """Read `loss.also`: every part's own arguments, and its weight."""
    out = []
    for call in spec.parse(line) if line else ():
        own = dict(call.kwargs)
        if "weight" not in own:
            raise ValueError(f"loss.also: {call} has no weight, as in weight=0.003")
        weight = own.pop("weight")
        call = dataclasses.replace(call, kwargs=tuple(own.items()))
        make = spec.module(losses, call, kind="loss", default="Loss")
        out.append((call.name, weight, spec.bind(make, call)))
    return tuple(out)


def _mix(line: str) -> mixing.Mix | None:
    """Read `data.mix`; wrong hyper-parameters fail here."""
    if not line:
        return None
    call = spec.parse_one(line)
    known = {m.__name__: m for m in (mixing.mixup, mixing.cutmix)}
    if call.name not in known:
        raise spec.unknown("data.mix", call.name, known)
    mix = spec.bind(known[call.name], call)
    image = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    jax.eval_shape(
        mix, image, image, jax.eval_shape(jax.random.split, jax.random.key(0))
    )
    return mix


def _member(module: Any, line: str, *, kind: str) -> Any:
    call = spec.parse_one(line)
    return spec.bind(spec.member(module, call, kind=kind), call)


def _laid_out(
    c: ml_collections.ConfigDict, devices: Sequence[jax.Device]
) -> layouts.Layout:
    n = c.mesh.devices or len(devices)
    if n > len(devices):
        raise ValueError(f"mesh.devices is {n}; this machine has {len(devices)}")
    return layouts.make(
        devices[:n],
        class_devices=c.mesh.class_devices,
        shard=c.mesh.shard,
        how=c.mesh.how,
    )
