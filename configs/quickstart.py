"""A small IResNet on rendered identities: the whole system in a few minutes.

    bash launch/quickstart.sh

No download, no licence, no real person. Identities of the evaluation were never
seen in training.
"""

import ml_collections

from jaxface import config


def get_config() -> ml_collections.ConfigDict:
    """Return the recipe."""
    c = config.base()
    size = 48
    c.data.source = f"synthetic(identities=2000, per_identity=100, size={size})"
    c.data.ops = "decode|flip|normalize"
    c.data.eval_ops = "decode|normalize"
    c.data.loader = "host"
    c.data.batch_size = 64

    c.model.name = (
        "iresnet(stages=(1, 1, 1, 1), widths=(32, 64, 128, 256), stem_stride=2,"
        " dim=128)"
    )
    c.model.sync_bn = False  # each device its own: no waiting inside the network
    c.loss.name = "softmax(scale=24.0)"
    c.loss.margin = "cosface(m=0.2)"

    c.optim.name = "sgd(momentum=0.9, weight_decay=5e-4)"
    c.optim.schedule = "one_cycle"
    c.optim.warmup = "20 percent"
    c.train.length = "500 steps"

    people = f"synthetic(size={size}, per_identity=12, "
    c.eval.sets = {  # one chooses the checkpoint, the other is reported
        "validation": f"{people}identities=50, start=50000)"
        "|pairs_sampled(count=500, folds=5)|verification",
        "unseen": f"{people}identities=200, start=100000)"
        "|pairs_sampled(count=2000)|verification",
    }
    c.eval.every = "250 steps"
    c.checkpoint.every = "250 steps"
    c.checkpoint.best = "validation/accuracy"
    c.log.every = "10 steps"
    c.mesh.cpu_devices = 2  # one per core: faster than one device of two cores
    return c
