"""Fine-tune a trained or converted network on your own people.

    python launch/train.py --workdir=/tmp/tuned \
      --config=configs/finetune.py:init=/tmp/real,faces=my_faces
    python launch/evaluate.py --workdir=/tmp/tuned --step=latest

`init` is the workdir to start from; network, preprocessing and embedding are read from
its config.json. `head=grow` keeps the classes it knows by name, for people who were
added. `faces`, `pack`, `folds` and `names` are those of configs/real_small.py.

The network learns at a tenth of the head's rate. Other ways, by flag:
  --config.optim.multipliers="{'^params/': 0}" --config.model.frozen_stats=True
  --config.model.lora="lora(rank=8)"
Rates and epochs are a start; nobody has tuned them yet.
"""

import ml_collections

from jaxface import config, experiment, spec

SHIFT = "random_shift(4)"
COLOR = "flip|color_jitter(0.2, 0.2, 0.2)"


def get_config(given: str = "") -> ml_collections.ConfigDict:
    """Return the recipe; `given` is "init=DIR,faces=PATH,head=grow,pack=PATH,..."."""
    named = config.arguments(
        given,
        {
            "init": "",
            "head": "new",
            "faces": "faces",
            "pack": "",
            "folds": "10",
            "names": "",
        },
    )
    if not named["init"]:
        raise ValueError(
            "finetune starts from a workdir: --config=configs/finetune.py:init=DIR,..."
        )
    before = experiment.saved_config(named["init"])
    c = config.base()
    c.init.workdir, c.init.head = named["init"], named["head"]
    faces = f"folder(path={named['faces']!r}"
    if named["pack"]:
        pack = f"pairs_bin(path={named['pack']!r}, folds={named['folds']}"
        c.data.source = f"{faces})"
        c.eval.sets = {
            "pack": f"{pack}, names={named['names'] or None!r})|verification"
        }
    else:  # hold a tenth of the people out and verify on them
        c.data.source = f"{faces}, part='train')"
        unseen = f"{faces}, part='validation')|pairs_sampled(count=1000, folds=5)"
        c.eval.sets = {"unseen": f"{unseen}|verification"}
    c.data.eval_ops = before.data.eval_ops
    c.data.ops = augmented(before.data.eval_ops)
    c.data.batch_size = 64

    c.model = before.model.copy_and_resolve_references()
    c.model.lora = ""  # adapters of `init` are merged into its weights
    c.eval.embed = before.eval.embed
    c.loss.name = "softmax(scale=16.0)"
    c.loss.margin = "cosface(m=0.15)"

    c.optim.lr = 0.05
    c.optim.multipliers = "{'^params/': 0.1}"
    c.optim.schedule = "cosine"
    c.optim.warmup = "10 percent"
    c.train.length = "8 epochs"
    return c


def augmented(line: str) -> str:
    """Return a preprocessing line with shifts, flips and colour changes put in.

    Whatever the line does about channel order and normalisation stays as it is; the
    ops put in do not mind the order.
    """
    first, *rest = map(str, spec.parse(line))
    last = [rest.pop()] if rest and rest[-1].startswith("normalize") else []
    return "|".join([first, SHIFT, *rest, COLOR, *last])
