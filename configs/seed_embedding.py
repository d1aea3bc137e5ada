"""The seed's network as an embedding: its 128-d layer under a softmax over people.

    python launch/train.py --workdir=/tmp/seed --config=configs/seed_embedding.py
    python launch/evaluate.py --workdir=/tmp/seed

The seed's layers at 64 pixels instead of 224, on rendered identities, with the
seed's optimizer; unseen identities are verified.
"""

import ml_collections

from jaxface import config


def get_config() -> ml_collections.ConfigDict:
    """Return the recipe."""
    c = config.base()
    c.data.source = "synthetic(identities=1000, per_identity=100, size=64)"
    c.data.ops = "decode|flip|normalize(mean=0, std=255)"
    c.data.eval_ops = "decode|normalize(mean=0, std=255)"
    c.data.batch_size = 32

    c.model.name = "seed_cnn.embedding"
    c.loss.name = "softmax(scale=16.0)"
    c.loss.margin = "normface"

    c.optim.name = "keras_adam"
    c.optim.schedule = "constant"
    c.optim.lr = 1e-3
    c.optim.clip = 0.0
    c.train.length = "2000 steps"

    unseen = "synthetic(identities=200, per_identity=12, size=64, start=100000)"
    c.eval.sets = {"unseen": f"{unseen}|pairs_sampled(count=2000)|verification"}
    c.eval.every = "500 steps"
    c.checkpoint.every = "500 steps"
    c.checkpoint.best = "unseen/accuracy"
    return c
