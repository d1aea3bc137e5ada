"""A whole run in miniature, for tests of the wiring."""

from jaxface import config


def recipe():
    """Six rendered people of 16 pixels, dropout and augmentation on."""
    c = config.base()
    c.data.source = "synthetic(identities=6, per_identity=4, size=16)"
    c.data.ops = "decode|random_shift(2)|flip|normalize"
    c.data.eval_ops = "decode|normalize"
    c.data.loader = "host"
    c.data.workers = 2
    c.data.batch_size = 16
    c.model.name = "iresnet(stages=(1,), widths=(4,), dim=8, dropout=0.2)"
    c.loss.name = "softmax(scale=16.0)"
    c.loss.margin = "cosface(m=0.1)"
    c.optim.lr = 0.002
    c.train.length = "20 steps"
    unseen = "synthetic(identities=8, per_identity=4, size=16, start=100)"
    c.eval.sets = {"unseen": f"{unseen}|pairs_sampled(count=40, folds=2)|verification"}
    c.eval.every = "5 steps"
    c.eval.batch_size = 16
    c.checkpoint.every = "5 steps"
    c.checkpoint.best = "unseen/accuracy"
    c.log.every = "1 steps"
    c.log.tensorboard = False
    return c


def get_config():
    """The agreed name, so that launch/train.py can read this file too."""
    return recipe()
