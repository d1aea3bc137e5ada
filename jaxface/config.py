"""Every setting once, with its unit. Recipes call `base()` and set what differs.

The one law: only `assembly` and `experiment` read it; all below takes plain values.
A duration is a number and a unit, "20 epochs", "500 steps", "64000 examples" or
"5 percent" of the run, and is turned into steps in one place.

    config = base()
    config.data.source = "folder(path='faces', part='train')"
    config.model.name = "iresnet.r50"
    config.train.length = "20 epochs"
    validate(config)
"""

from __future__ import annotations

import ast
import json
import math
import re
from typing import Any

import ml_collections

FORMAT = 1  # of a saved config and checkpoint; a reader refuses a newer one

# What may change between two runs in one workdir: it does not touch the result.
FREE = (
    *("checkpoint", "eval", "log", "mesh", "train.nonfinite"),
    *("data.loader", "data.workers", "data.processes", "data.service"),
)

_UNITS = ("steps", "epochs", "examples", "percent")


def base() -> ml_collections.ConfigDict:
    """Return the defaults, locked: a key that is not here is an error."""
    c = ml_collections.ConfigDict()
    c.seed = 0  # of weights, order, augmentation and dropout

    c.data = ml_collections.ConfigDict()
    c.data.source = "synthetic(identities=100, per_identity=20)"  # what to train on
    c.data.ops = "decode|resize(112)|flip|normalize"  # preprocessing in training
    c.data.eval_ops = "decode|resize(112)|normalize"  # and in evaluation
    # Which images meet in a batch, of data.samplers: "uniform"; "pk(k=4)": k images of
    # each of batch_size / k people; "balanced": all people equally often;
    # "mixed(weights=(3, 1))": the sets of a `merged` source by weight;
    # "curriculum(path='scores.npy')": the easiest images first.
    c.data.sampler = "uniform"
    # Images mixed on the devices, of losses.mixing: "mixup(alpha=0.2)" or
    # "cutmix(alpha=1.0, p=0.5)", for losses softmax and partial_fc. "": none.
    c.data.mix = ""
    c.data.loader = "tfdata"  # or "host", which needs no TensorFlow
    c.data.workers = 0  # threads that read and decode; 0: one per core
    # Processes that make the batches, with a thread each if `workers` is 0, for lines
    # whose Python keeps threads waiting for each other; 0: this one.
    c.data.processes = 0
    # "host:port" of the dispatcher of other machines that make the batches, see
    # launch/serve.py; "": this one.
    c.data.service = ""
    c.data.batch_size = 128  # images per step, over all devices
    c.data.max_bad = 0.01  # largest share of unreadable images before stopping

    c.model = ml_collections.ConfigDict()
    c.model.name = "iresnet.r50"  # a module of jaxface.models, or a variant in it
    c.model.dtype = "float32"  # of the computation; parameters are float32
    c.model.sync_bn = True  # BatchNorm over all devices, or each its own
    # BatchNorm by its running statistics in training too, which then stay as they
    # are; dropout is off as well: the network trains as it is evaluated.
    c.model.frozen_stats = False
    c.model.lora = ""  # adapters, such as "lora(rank=8, alpha=16.0)"; "": none

    # What a run starts from while it has no checkpoint of its own.
    c.init = ml_collections.ConfigDict()
    c.init.workdir = ""  # of a trained or converted network; "": drawn weights
    c.init.step = "best"  # of its checkpoints; or "latest", or a number
    c.init.head = "new"  # or "grow": keep the rows of people known there

    c.loss = ml_collections.ConfigDict()
    c.loss.name = "softmax(scale=64.0)"  # a module of jaxface.losses
    c.loss.margin = "arcface(m=0.5)"  # a rule of losses.margin; "" where none is
    # "one" head for everybody, or "per_set": people of different sets of a `merged`
    # source are not each other's negatives. For losses softmax and partial_fc.
    c.loss.heads = "one"
    # Losses added to it, each times its weight, as in "center(weight=0.003)"; joined
    # by "|". "" is none.
    c.loss.also = ""

    # Who teaches the losses of losses.distill: a workdir, trained or converted, whose
    # network runs beside each step, or a file (.npy, .npz) of its embeddings [N, T],
    # a row for each image of data.source. "": nobody.
    c.distill = ml_collections.ConfigDict()
    c.distill.workdir = ""
    c.distill.step = "best"  # of its checkpoints; or "latest", or a number
    c.distill.cache = ""

    c.optim = ml_collections.ConfigDict()
    c.optim.name = "sgd(momentum=0.9, weight_decay=5e-4)"  # of train.optim
    c.optim.lr = 0.1  # peak learning rate
    c.optim.schedule = "polynomial(power=1.0)"  # of train.schedules
    c.optim.warmup = "0 steps"
    c.optim.clip = 5.0  # largest norm of the backbone's gradient; 0: off
    # Largest norm of the head's gradient in each class shard of partial_fc; 0: off
    c.optim.head_clip = 0.0
    # Factors of the learning rate, regex over the parameter's path -> factor: the
    # first that matches wins, 0 freezes, no match is 1. As in
    # "{'^params/conv1/': 0, '^params/': 0.1}"; paths are params/..., head/kernel.
    c.optim.multipliers = ""
    c.optim.ema = 0.0  # decay of averaged weights, used in evaluation; 0: off
    c.optim.sam = 0.0  # rho of sharpness-aware minimisation, such as 0.05; 0: off

    c.train = ml_collections.ConfigDict()
    c.train.length = "20 epochs"
    # Parts of each device's batch, done one after another in the memory of one (of
    # all on CPU); the gradient is their mean.
    c.train.microbatches = 1
    # What to do about a step that is not finite: "stop"; "skip(after=100)": leave it
    # out, stop after so many in a row; "rollback(after=3, factor=0.5, times=5)": leave
    # it out, after so many in a row go back to the last good checkpoint with the
    # learning rate times `factor`; "scaled(start=16, growth=2000)", for float16: leave
    # it out, with a loss scale of 2^start at first, which halves then and doubles after
    # `growth` steps without.
    c.train.nonfinite = "stop"

    c.mesh = ml_collections.ConfigDict()
    c.mesh.how = "jit"  # or "pmap", in one process
    c.mesh.devices = 0  # how many to use; 0: all
    # Split the classes over so many neighbours, of which the others have copies; 0:
    # over all devices.
    c.mesh.class_devices = 0
    # What of the network lies in parts, one on each device: "none"; "optimizer": its
    # moments and averages (ZeRO-1); "parameters": its weights too (FSDP).
    c.mesh.shard = "none"
    c.mesh.cpu_devices = 0  # split the CPU into so many devices; 0: leave it

    c.eval = ml_collections.ConfigDict()
    # A duration; or "auto": with a checkpoint, as often as keeps evaluation within
    # eval.share of the work, and at the end.
    c.eval.every = "auto"
    c.eval.share = 0.02
    c.eval.embed = "flip_sum"  # f(x) + f(flipped x); or "output"
    c.eval.batch_size = 64
    # Name -> a module of jaxface.eval and what it is handed, such as
    # "pairs_bin(path='lfw.bin', folds=10)|verification".
    c.eval.sets = ml_collections.ConfigDict()

    c.checkpoint = ml_collections.ConfigDict()
    c.checkpoint.every = "1 epochs"
    c.checkpoint.keep = 2  # how many of the latest
    c.checkpoint.best = ""  # such as "lfw/accuracy": keep the highest of it too

    c.log = ml_collections.ConfigDict()
    c.log.every = "50 steps"
    c.log.csv = False  # metrics.csv beside metrics.jsonl: step,name,value
    c.log.tensorboard = True
    c.log.wandb = ""  # a project of Weights & Biases; "": none
    c.log.wandb_mode = "offline"  # nothing is sent until `wandb sync`; or "online"
    return c.lock()


def tiny(c: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Return a copy of a recipe cut to two steps of eight images, for smoke runs."""
    c = c.copy_and_resolve_references()
    c.data.batch_size = 8
    c.train.length = "2 steps"
    c.train.microbatches = 1
    c.optim.warmup = "1 steps"
    for part in (c.eval, c.checkpoint, c.log):
        part.every = "2 steps"
    return c.lock()


def steps(
    duration: str, *, batch_size: int, examples: int, total: int | None = None
) -> int:
    """Convert a duration to whole steps, rounding up.

    Args:
        duration: "<number> <unit>" with a unit of steps, epochs, examples, percent.
        batch_size: images per step.
        examples: images per epoch.
        total: steps of the whole run, which "percent" needs.

    Raises:
        ValueError: not of that form, negative, or percent without a total.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?) (\w+)", duration)
    if not found or found.group(2) not in _UNITS:
        raise ValueError(
            f"duration {duration!r}; wanted a number and one of"
            f" {', '.join(_UNITS)}, as in '20 epochs'"
        )
    number, unit = float(found.group(1)), found.group(2)
    if unit == "percent":
        if total is None:
            raise ValueError(f"duration {duration!r}: the run itself is no percentage")
        return math.ceil(number * total / 100)
    per = {"steps": 1.0, "epochs": examples / batch_size, "examples": 1 / batch_size}
    return math.ceil(round(number * per[unit], 6))


def validate(c: ml_collections.ConfigDict) -> None:
    """Check what can be checked without looking at data or devices.

    Raises:
        ValueError: naming the key, what it holds and what it may hold.
    """
    _choice(c, "data.loader", ("tfdata", "host"))
    _choice(c, "mesh.how", ("jit", "pmap"))
    _choice(c, "mesh.shard", ("none", "optimizer", "parameters"))
    _choice(c, "eval.embed", ("flip_sum", "output"))
    _choice(c, "log.wandb_mode", ("offline", "online"))
    _choice(c, "init.head", ("new", "grow"))
    _choice(c, "loss.heads", ("one", "per_set"))
    _choice(c, "model.dtype", ("float32", "bfloat16", "float16", "float64"))
    for key in (
        "data.batch_size",
        "eval.batch_size",
        "checkpoint.keep",
        "train.microbatches",
    ):
        _range(c, key, 1, math.inf)
    _range(c, "data.max_bad", 0, 1)
    _range(c, "data.workers", 0, math.inf)
    _range(c, "data.processes", 0, math.inf)
    _range(c, "mesh.class_devices", 0, math.inf)
    _range(c, "optim.ema", 0, 0.999999)
    _range(c, "optim.clip", 0, math.inf)
    _range(c, "optim.head_clip", 0, math.inf)
    _range(c, "optim.sam", 0, math.inf)
    _range(c, "optim.lr", 0, math.inf)
    _range(c, "eval.share", 1e-6, 1)
    multipliers(c.optim.multipliers)
    if c.data.processes and c.data.service:
        raise ValueError(
            f"data.processes={c.data.processes} and data.service={c.data.service!r}"
            " both make the batches; wanted one of them"
        )
    if c.init.head == "grow" and not c.init.workdir:
        raise ValueError("init.head='grow' has no head to grow; set init.workdir")
    for key in (
        "train.length",
        "optim.warmup",
        "eval.every",
        "checkpoint.every",
        "log.every",
    ):
        if key == "eval.every" and c.eval.every == "auto":
            continue
        total = None if key == "train.length" else 100
        count = steps(get(c, key), batch_size=1, examples=1, total=total)
        if key != "optim.warmup" and count < 1:
            raise ValueError(f"{key} is {get(c, key)!r}; wanted more than nothing")


def multipliers(text: str) -> tuple[tuple[str, float], ...]:
    """Read `optim.multipliers`: (regex, factor) in order, none for "".

    Raises:
        ValueError: not a dict of regexes and factors >= 0, or a regex twice.
    """
    if not text:
        return ()
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        if not isinstance(tree, ast.Dict):
            raise ValueError("it is not a dict")
        rules = ast.literal_eval(tree)
        if len(rules) < len(tree.keys):
            raise ValueError("it has a regex twice")
        for pattern, factor in rules.items():
            re.compile(pattern)
            if isinstance(factor, bool) or not 0 <= factor < math.inf:
                raise ValueError(f"the factor of {pattern!r} is {factor!r}")
    except (SyntaxError, TypeError, ValueError, re.error) as error:
        raise ValueError(
            f"optim.multipliers is {text!r}; wanted a dict of path regexes and factors"
            f" from 0 up, as in {{'^params/': 0.1}}: {error}"
        ) from None
    return tuple((pattern, float(factor)) for pattern, factor in rules.items())


def arguments(given: str, defaults: dict[str, str]) -> dict[str, str]:
    """Read what follows the colon in `--config=recipe.py:faces=a.tar,pack=b.bin`.

    Args:
        given: that text, empty for none.
        defaults: the names a recipe takes, with their values.

    Raises:
        ValueError: a name the recipe does not take, or a part without "=".
    """
    out = dict(defaults)
    for part in filter(None, given.split(",")):
        name, equals, value = part.partition("=")
        if not equals or name not in defaults:
            raise ValueError(
                f"recipe argument {part!r}; wanted name=value with names"
                f" {', '.join(defaults)}"
            )
        out[name] = value
    return out


def get(c: Any, key: str) -> Any:
    """Return the value at a dotted key."""
    for part in key.split("."):
        c = c[part]
    return c


def dumps(c: ml_collections.ConfigDict) -> str:
    """Return a config as JSON text, the same for equal configs."""
    return json.dumps(c.to_dict(), indent=1, sort_keys=True)


def loads(text: str) -> ml_collections.ConfigDict:
    """Read what `dumps` wrote; keys that later versions added get their default.

    Raises:
        ValueError: not a saved config, or one with keys this version lacks.
    """
    try:
        saved = json.loads(text)
        config = base()
        with config.eval.sets.unlocked():
            config.eval.sets.update(saved["eval"].pop("sets"))
        config.update(saved)
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"not a config this version can read: {error}") from None
    return config


def batches(c: ml_collections.ConfigDict) -> str:
    """Return as text all that decides what is in a batch before it is mixed."""
    free = {f.removeprefix("data.") for f in FREE} | {"mix"}
    data = {k: v for k, v in c.data.to_dict().items() if k not in free}
    return json.dumps({"seed": c.seed} | data, sort_keys=True)


def of_batches(text: str) -> ml_collections.ConfigDict:
    """Return the defaults with what `batches` told, which make the same ones."""
    told, c = json.loads(text), base()
    c.seed = told.pop("seed")
    c.data.update(told)
    return c


def differences(
    a: ml_collections.ConfigDict, b: ml_collections.ConfigDict
) -> list[str]:
    """List where two configs differ in what decides the result."""
    left, right = _flat(a.to_dict()), _flat(b.to_dict())
    return [
        f"{key}: {left.get(key)!r} there, {right.get(key)!r} here"
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
        and not any(key == f or key.startswith(f + ".") for f in FREE)
    ]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            out |= _flat(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value
    return out


def _choice(c: Any, key: str, known: tuple[str, ...]) -> None:
    if get(c, key) not in known:
        raise ValueError(f"{key} is {get(c, key)!r}; wanted one of {', '.join(known)}")


def _range(c: Any, key: str, low: float, high: float) -> None:
    if not low <= get(c, key) <= high:
        raise ValueError(f"{key} is {get(c, key)}; wanted {low} to {high}")
