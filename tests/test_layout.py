"""Two mesh axes are one: the head split over some devices, copied over the others."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec as P
from laid import Net, batch_of, compiled, distance, first, lay, loss_of, run, tx_of

from jaxface import assembly, collectives, parallel
from jaxface.losses import binary, partial_fc
from jaxface.train import layout as layouts
from jaxface.train import nonfinite

LOSSES = {
    "softmax": loss_of(),
    "partial_fc": loss_of(make=partial_fc.Loss, rate=0.1),
    "uniface": binary.uniface(num_classes=40, scale=16.0),
}


@pytest.mark.parametrize("name", LOSSES)
def test_classes_over_some_devices_are_classes_over_all(name):
    with jax.enable_x64():
        want = run(LOSSES[name], tx_of(), lay(devices=1))
        got = run(LOSSES[name], tx_of(), lay(class_devices=4))
        assert distance(got, want) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["optimizer", "parameters"])
@pytest.mark.parametrize("name", ["softmax", "partial_fc"])
def test_so_they_are_with_all_else_at_once(name, shard):
    options = {"microbatches": 2, "policy": nonfinite.scaled(), "net": Net(None)}
    options |= {"sam": 0.05, "frozen": lambda path: "Dense_1" in path}
    options |= {"frozen_stats": True}
    with jax.enable_x64():
        want = run(LOSSES[name], tx_of(), lay(devices=1), **options)
        got = run(LOSSES[name], tx_of(), lay(shard, class_devices=2), **options)
        assert distance(got, want) < 1e-10


def test_the_head_may_be_split_along_both_axes():
    two = lay(class_devices=4)
    both = dataclasses.replace(two, classes=two.axis)
    assert both.specs({"head": {"kernel": np.zeros((8, 2))}})["head"]["kernel"] == P(
        ("data", "class")
    )
    with jax.enable_x64():
        got = run(loss_of("adaface"), tx_of(), both)
        assert distance(got, run(loss_of("adaface"), tx_of(), lay(devices=1))) < 1e-10


def test_a_statistic_of_groups_is_the_mean_of_theirs():
    # AdaFace's mean of norms: the groups' mean is that of all, as in microbatches
    with jax.enable_x64():
        want, _ = run(loss_of("adaface"), tx_of(), lay(devices=1), 1)
        got, _ = run(loss_of("adaface"), tx_of(), lay(class_devices=4), 1)
        assert distance(got.margin_state["mean"], want.margin_state["mean"]) < 1e-12


def test_a_group_gathers_the_embeddings_of_its_own():
    layout = lay(class_devices=2)
    state = first(loss_of(), tx_of(), layout)
    batch = jax.device_put(batch_of(0), layout.split)
    step = compiled(loss_of(), tx_of(), layout, state)
    text = step.lower(state, batch).compile().as_text()
    gathers = [c for c in collectives.read(text) if c.kind == "all-gather"]
    assert {c.group for c in gathers} == {2}


def test_axes_left_over():
    assert parallel.rest("data", "data") is None
    assert parallel.rest(("data", "class"), "class") == ("data",)
    assert parallel.rest(("data", "class"), ("data", "class")) is None
    assert parallel.rest(None, None) is None


def recipe(**changes):
    c = tiny.recipe()
    c.mesh.class_devices = 2
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return c


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mesh__class_devices": 3}, "class_devices is 3, into which 8 devices do not"),
        ({"mesh__how": "pmap"}, "class_devices is 2 of 8 devices, and mesh.how='pmap'"),
        ({"loss__also": "center(weight=0.1)"}, "remembers of each class would differ"),
        ({"loss__also": "metric.triplet(weight=1.0)"}, "only those within a group"),
        ({"mesh__shard": "all"}, "mesh.shard is 'all'; wanted one of none, optimizer"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        assembly.build(recipe(**changes))


def test_pieces_of_a_layout():
    layout = layouts.make(jax.devices(), class_devices=4)
    assert (layout.mesh.shape["data"], layout.mesh.shape["class"]) == (2, 4)
    assert layout.class_devices == 4
    assert layout.split.spec == P(("data", "class"))
    assert layout.rows.spec == P("class")
    assert layouts.make(jax.devices(), class_devices=8).classes == "data"
