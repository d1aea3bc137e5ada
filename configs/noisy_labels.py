"""A small network on rendered people of whom a share of the pictures is mislabelled.

    python launch/compare.py --workdir=/tmp/noise --config=configs/noisy_labels.py \
      --arguments=loss=arcface --arguments=loss=filter --arguments=loss=centers \
      --seeds=0,1,2,3,4 --metric=unseen/accuracy

trains plain ArcFace, ArcFace that filters negatives (cosine above 0.4) and ArcFace with
three sub-centres, five times each, and prints every paired difference. `seed` draws the
wrong labels as well as the network. README "Results" has what came out.
"""

import ml_collections

from jaxface import config

LOSSES = {
    "arcface": "softmax(scale=24.0)",
    "filter": "softmax(scale=24.0, filter=0.4)",
    "centers": "softmax(scale=24.0, centers=3)",
}


def get_config(given: str = "") -> ml_collections.ConfigDict:
    """Return the recipe; `given` is "loss=arcface|filter|centers,share=S,seed=N"."""
    named = config.arguments(given, {"loss": "arcface", "share": "0.2", "seed": "0"})
    if named["loss"] not in LOSSES:
        raise ValueError(f"loss is {named['loss']!r}; wanted one of {sorted(LOSSES)}")
    c = config.base()
    c.seed = int(named["seed"])
    c.data.source = (
        "synthetic(identities=200, per_identity=40, size=28)"
        f"|mislabelled(share={named['share']}, seed={c.seed})"
    )
    c.data.ops = "decode|flip|normalize"
    c.data.eval_ops = "decode|normalize"
    c.data.loader = "host"
    c.data.batch_size = 64

    c.model.name = (
        "iresnet(stages=(1, 1, 1), widths=(32, 64, 128), stem_stride=2, dim=64)"
    )
    c.model.sync_bn = False
    c.loss.name = LOSSES[named["loss"]]
    c.loss.margin = "arcface(m=0.2)"

    c.optim.name = "sgd(momentum=0.9, weight_decay=5e-4)"
    c.optim.schedule = "one_cycle"
    c.optim.warmup = "20 percent"
    c.train.length = "8 epochs"

    c.eval.sets = {
        "unseen": "synthetic(size=28, per_identity=12, identities=200, start=100000)"
        "|pairs_sampled(count=2000)|verification",
    }
    c.eval.every = c.checkpoint.every = "8 epochs"
    c.mesh.cpu_devices = 2
    return c
