"""Which settings of precision, memory and devices go together: docs/combinations.md.

python tests/combinations.py > docs/combinations.md
"""

import functools
import itertools

import tiny

# setting -> its values, as the table calls them, beside that of the plain run
SETTINGS = {
    "precision": ["bfloat16", "float16"],
    "accumulation": ["accumulated"],
    "remat": ["remat"],
    "shard": ["ZeRO", "FSDP"],
    "mesh": ["two axes"],
    "loss": ["Partial FC"],
    "average": ["EMA"],
    "compiler": ["pmap"],
}
NET = "iresnet(stages=(1,), widths=(4,), dim=8, dropout=0.2, remat={})"
# as the table calls it -> what it is in a config, beside the plain recipe
VALUES = {
    "bfloat16": {"model.dtype": "bfloat16"},
    "float16": {"model.dtype": "float16", "train.nonfinite": "scaled(start=8)"},
    "accumulated": {"train.microbatches": 2},
    "remat": {"model.name": NET.format(True)},
    "ZeRO": {"mesh.shard": "optimizer"},
    "FSDP": {"mesh.shard": "parameters"},
    "two axes": {"mesh.class_devices": 4},
    "Partial FC": {"loss.name": "partial_fc(scale=16.0, rate=0.1)"},
    "EMA": {"optim.ema": 0.9},
    "pmap": {"mesh.how": "pmap"},
}
# pairs that are refused: what the error says
REFUSED = {
    frozenset(("two axes", "pmap")): (
        "mesh.class_devices is 4 of 8 devices, and mesh.how='pmap' knows one mesh axis"
    )
}
SETTING_OF = {value: name for name, found in SETTINGS.items() for value in found}


def recipe(chosen=()):
    """The tiny recipe, with the values of a combination set."""
    c = tiny.recipe()
    c.model.name, c.model.frozen_stats = NET.format(False), True
    c.optim.lr = 0.02
    for name in chosen:
        c.update_from_flattened_dict(VALUES[name])
    return c


def every():
    """All combinations, each a tuple of the values that differ from the plain run."""
    choices = [((), *((v,) for v in found)) for found in SETTINGS.values()]
    return [sum(chosen, ()) for chosen in itertools.product(*choices)]


def pairs(chosen):
    return {frozenset(p) for p in itertools.combinations(chosen, 2)}


def refusal(chosen):
    """Why a combination is refused; None where it works."""
    return next((REFUSED[p] for p in pairs(chosen) if p in REFUSED), None)


@functools.cache
def runs():
    """A few combinations in which every pair that works is once, found greedily.

    Those in float32 come first, for they can be held to the plain run closely.
    """
    working = [c for c in every() if not refusal(c)]
    met, out = set(), []
    for among in ([c for c in working if not rounded(c)], working):
        while left := set().union(*map(pairs, among)) - met:
            out.append(max(among, key=lambda c: len(pairs(c) & left)))
            met |= pairs(out[-1])
    return out


def rounded(chosen):
    """Whether a combination computes in less than float32."""
    return any(SETTING_OF[value] == "precision" for value in chosen)


def cell(a, b):
    """What the table says of two values."""
    pair = frozenset((a, b))
    if pair in REFUSED:
        return "refused"
    if SETTING_OF[a] == SETTING_OF[b]:
        return ""
    return ", ".join(str(i) for i, run in enumerate(runs()) if pair <= set(run))


def shown(setting):
    return ", ".join(f"`{k}={v!r}`" for k, v in setting.items())


TEXT = """# What goes together

Precision and memory, by config, each beside the plain run: float32, the whole batch at
once, nothing recomputed, the network whole on every device, one mesh axis, a softmax
over all classes, no average, `jit`. This page is printed by
`python tests/combinations.py`, and `tests/test_combinations.py` fails where it is not
what the code does.

| called here | in the config |
|---|---|
{settings}

`remat` takes a policy too, such as `remat='products_saveable'` (convolutions and dense
layers are kept, norms and activations computed again); every backbone with blocks has
it. `mesh.shard` cuts each array of {least} numbers or more along its largest dimension
that the devices divide; a checkpoint is the same in any layout and restores in all.

ViT-S with AdamW and 10,000 classes, 8 images on each of 8 devices, as the compiler
plans it with the `mesh.shard` of each row:

```bash
python launch/describe.py --config=configs/quickstart.py --config.model.name=vit.s \\
  --config.data.source="synthetic(identities=10000, per_identity=1)" \\
  --config.data.ops="decode|resize(112)|flip|normalize" \\
  --config.data.eval_ops="decode|resize(112)|normalize" --config.optim.name="adamw()" \\
  --config.loss.name="softmax(scale=64.0)" --per_device=8 --config.mesh.shard=none \\
  --topology=cpu:8 --table
```

| `mesh.shard` | state, GiB of each device | memory, GiB | sent, MB a step |
|---|---|---|---|
| `none` | 0.86 | 1.61 | 532.4 |
| `optimizer` | 0.36 | 1.11 | 532.4 |
| `parameters` | 0.11 | 0.90 | 532.4 |

The program gathers weights once more for the backward pass, so that none need be kept
whole (`test_each_kind_needs_less_memory_than_the_one_before` counts). XLA's CPU
compiler, a stand-in here, joins the second gathering to the first and keeps them, so
the bytes are equal. Several GPUs or TPUs were not at hand.

## Every pair

A number is a run, listed below, in which both are on. All {count} combinations of these
values are built by `test_all_combinations_are_built_or_refused`; one is refused where,
and only where, a pair of it is.

| | {head} |
|---|{line}
{rows}

## The runs

Each takes three steps on 8 devices, and its losses and weights are those of the plain
run (`test_a_combination_trains_as_the_plain_run`): to 1e-4 in float32, and in bfloat16
and float16 to 2 percent. Statistics are frozen in them, for BatchNorm normalises by one
part of an accumulated batch: the named exception.

| run | what is on |
|---|---|
{listed}

## Refused

{refused}

Beside these: LAMB and Muon look at whole arrays, so with `pmap` or Partial FC they are
refused; losses over pairs want a batch that is not accumulated, and one mesh axis, as
do losses that remember something of each class (`center`, `memory`) and
`distill.logits`; float16 without `train.nonfinite=scaled(...)` is refused, for its
gradients vanish; `pmap` runs in one process. Where a margin learns a statistic of the
batch (AdaFace, CurricularFace), with two axes it moves to the mean of what the groups
of devices give, as in microbatches.
"""


def text():
    from jaxface import parts

    names = list(VALUES)
    rows = [
        f"| **{a}** | "
        + " | ".join(cell(a, b) if i > j else "" for j, b in enumerate(names[:-1]))
        + " |"
        for i, a in enumerate(names)
        if i
    ]
    return TEXT.format(
        settings="\n".join(f"| {n} | {shown(v)} |" for n, v in VALUES.items()),
        least=f"{parts.LEAST:,}",
        count=len(every()),
        head=" | ".join(names[:-1]),
        line="---|" * (len(names) - 1),
        rows="\n".join(rows),
        listed="\n".join(f"| {i} | {', '.join(r)} |" for i, r in enumerate(runs())),
        refused="\n".join(
            f'- {" with ".join(sorted(p))}: "{why}".' for p, why in REFUSED.items()
        ),
    )


if __name__ == "__main__":
    print(text(), end="")
