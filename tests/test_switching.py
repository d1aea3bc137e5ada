"""The page for those who switch: its config builds, its keys and lines exist."""

import math
import re

import jax
import pytest
import tiny
from conftest import ROOT

from jaxface import assembly, config, losses, models, spec
from jaxface.losses import adaptive, margin
from jaxface.losses import softmax as losses_softmax

PAGE = (ROOT / "docs" / "switching.md").read_text()


def recipe():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    room = {}
    exec(code, room)
    return room["get_config"]()


def test_its_config_builds_and_says_what_it_means():
    c = recipe()
    assert set(c.eval.sets) == {"lfw", "cfp_fp", "agedb_30"}
    c.data.source = "synthetic(identities=9, per_identity=1024)"
    c.eval.sets = {"lfw": tiny.recipe().eval.sets.unseen}
    run = assembly.build(c)
    assert run.total == 20 * 9
    assert run.schedule(0) == pytest.approx(0.1)
    assert run.schedule(run.total) == 0.0
    # Everything decays, as there, BatchNorm's scales too.
    ones = {"bn": {"scale": jax.numpy.ones(3)}}
    still = jax.tree.map(jax.numpy.zeros_like, ones)
    changes, _ = run.tx.update(still, run.tx.init(ones), ones)
    assert float(changes["bn"]["scale"][0]) == pytest.approx(-0.1 * 5e-4)


def test_a_loss_starts_where_the_page_says():
    D, s, C = 512, 64.0, 100_000
    loss = losses_softmax.Loss(num_classes=2048, margin="arcface(m=0.5)", scale=s)
    keys = jax.random.split(jax.random.key(0), 2)
    head = loss.init(keys[0], num_classes=2048, dim=D)
    e = jax.random.normal(keys[1], (256, D))
    label = jax.numpy.arange(256)
    batch = {"label": label, "position": label.astype("uint32")}
    made = loss.init_margin(dim=D)
    total, _, _ = loss.share(head, made, e, batch, key=keys[0], axis=None)
    told = math.log(2048) + s**2 / 2 / D + s * math.sin(0.5)
    assert float(total) == pytest.approx(told, rel=0.03)
    assert round(told - math.log(2048) + math.log(C)) == 46


def test_the_keys_it_names_are_ours():
    c = config.base()
    named = re.findall(
        r"`((?:data|model|loss|optim|train|eval|checkpoint|log)\.\w+)", PAGE
    )
    assert len(set(named)) > 15
    for key in set(named):
        config.get(c, key)


@pytest.mark.parametrize(
    "line",
    sorted(
        set(re.findall(r"`((?:iresnet|mobilefacenet|vit)\.\w+(?:\([^`]*\))?)`", PAGE))
    ),
)
def test_the_networks_it_names_exist(line):
    call = spec.parse_one(line)
    spec.bind(spec.module(models, call, kind="model", default="Model"), call)()


@pytest.mark.parametrize(
    "name", ["arcface", "cosface", "combined", "adacos", "normface"]
)
def test_the_margins_it_names_exist(name):
    assert name in PAGE
    assert callable(getattr(margin, name, None) or getattr(adaptive, name))


@pytest.mark.parametrize("line", ["softmax(filter=0.4)", "partial_fc(rate=0.1)"])
def test_the_losses_it_names_exist(line):
    assert line in PAGE
    call = spec.parse_one(line)
    spec.bind(spec.module(losses, call, kind="loss", default="Loss"), call)
