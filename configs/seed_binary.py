"""The seed's network and task: is this image of the enrolled person, or not?

    python launch/train.py --workdir=/tmp/binary \
      --config=configs/seed_binary.py:faces=faces.tar,identity=0

As the seed trains it: 224 pixels, Adam, binary cross-entropy, batch 32, 10 epochs;
negatives are drawn four to one. `faces` is a folder or tar with one directory per
person, or empty for rendered people. For the pooled result over many people:

    python launch/one_vs_rest.py --workdir=/tmp/pooled --identities=20 \
      --config=configs/seed_binary.py:faces=faces.tar
"""

import ml_collections

from jaxface import config


def get_config(given: str = "") -> ml_collections.ConfigDict:
    """Return the recipe; `given` is "faces=PATH,identity=K"."""
    named = config.arguments(given, {"faces": "", "identity": "0"})
    c = config.base()
    people = "synthetic(identities=24, per_identity=24)"
    if named["faces"]:
        people = f"folder(path={named['faces']!r})"
    task = f"{people}|enrolled(identity={int(named['identity'])}, negatives=4"
    c.data.source = f"{task}, part='train')"
    c.data.ops = "decode|resize(224)|flip|normalize(mean=0, std=255)"
    c.data.eval_ops = "decode|resize(224)|normalize(mean=0, std=255)"
    c.data.loader = "host"
    c.data.batch_size = 32

    c.model.name = "seed_cnn"
    c.loss.name = "binary"
    c.loss.margin = ""

    c.optim.name = "keras_adam"
    c.optim.schedule = "constant"
    c.optim.lr = 1e-3
    c.optim.clip = 0.0
    c.train.length = "10 epochs"

    c.eval.sets = {"person": f"{task}, part='test')|binary"}
    c.eval.embed = "output"
    c.eval.every = "10 epochs"
    c.eval.batch_size = 32
    c.checkpoint.every = "10 epochs"
    c.log.every = "1 epochs"
    c.mesh.cpu_devices = 2  # one per core: twice as fast as one device of two cores
    return c
