"""A small IResNet from scratch on a few thousand real faces, on a laptop's CPU.

    python launch/train.py --workdir=/tmp/real \
      --config=configs/real_small.py:faces=faces.tar,pack=lfw.bin
    python launch/evaluate.py --workdir=/tmp/real --step=latest

`faces` is a folder or tar with one directory per person, of aligned 112-pixel faces;
`pack` an insightface .bin; without one, a tenth of the people is held out and
verified. With few people a small scale and margin train; s = 64 does not.
"""

import ml_collections

from jaxface import config


def get_config(given: str = "") -> ml_collections.ConfigDict:
    """Return the recipe; `given` is "faces=PATH,pack=PATH,folds=K,names=PATH"."""
    named = config.arguments(
        given, {"faces": "faces.tar", "pack": "", "folds": "10", "names": ""}
    )
    c = config.base()
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
    c.data.ops = (
        "decode|random_shift(5)|resize(80)|flip|color_jitter(0.3, 0.3, 0.3)"
        "|random_gray(0.1)|normalize"
    )
    c.data.eval_ops = "decode|resize(80)|normalize"
    c.data.batch_size = 64

    c.model.name = (
        "iresnet(stages=(1, 1, 1), widths=(32, 96, 192), stem_stride=2, dim=256,"
        " dropout=0.4)"
    )
    c.model.sync_bn = False
    c.loss.name = "softmax(scale=16.0)"
    c.loss.margin = "cosface(m=0.15)"

    c.optim.name = "muon(weight_decay=0.05)"  # learns in 12 epochs as sgd does in 24
    c.optim.lr = 0.004
    c.optim.schedule = "one_cycle"
    c.optim.warmup = "5 percent"
    c.train.length = "28 epochs"

    c.eval.every = "28 epochs"
    c.checkpoint.every = "5 epochs"
    c.mesh.cpu_devices = 2  # one per core: faster than one device of two cores
    return c
