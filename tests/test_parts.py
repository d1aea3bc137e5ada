"""Moments and weights in parts: the same state, in less memory of each device."""

import jax
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P
from laid import batch_of, compiled, distance, first, lay, loss_of, run, tx_of

from jaxface import parts
from jaxface.losses import partial_fc
from jaxface.train import optim


@pytest.fixture(scope="module")
def whole():
    with jax.enable_x64():
        return run(loss_of(), tx_of(), lay(devices=1))


@pytest.mark.parametrize("how", ["jit", "pmap"])
@pytest.mark.parametrize("shard", ["optimizer", "parameters"])
def test_a_run_in_parts_is_the_plain_run(whole, shard, how):
    with jax.enable_x64():
        got = run(loss_of(), tx_of(), lay(shard, how=how))
    assert whole[0].params["Dense_0"]["kernel"].dtype == np.float64
    assert distance(got, whole) < 1e-10


def test_what_lies_in_parts_is_told_by_its_path_and_its_shape():
    state = first(loss_of(), tx_of(), lay(devices=1))
    specs = {s: lay(s).specs(state) for s in parts.TABLE}
    cut, whole = P(None, "data"), P()
    for shard, wanted in {
        "none": (whole, whole, whole),
        "optimizer": (whole, cut, cut),
        "parameters": (cut, cut, cut),
    }.items():
        spec = specs[shard]
        moments = spec.opt_state[0].mu
        seen = (spec.params, moments["params"], spec.ema)
        assert tuple(s["Dense_0"]["kernel"] for s in seen) == wanted
        assert moments["head"]["kernel"] == spec.head["kernel"] == P("data")
        assert spec.params["head"]["kernel"] == whole  # [32, 8] is small
    assert specs["parameters"].params["Dense_1"]["kernel"] == P("data")  # [64, 32]


@pytest.mark.parametrize("shard", ["optimizer", "parameters"])
def test_sampled_rows_and_a_network_in_parts(shard):
    with jax.enable_x64():
        loss = loss_of(make=partial_fc.Loss, rate=0.1, shards=8)
        want = run(loss, tx_of(), lay(devices=1), head_clip=0.1)
        assert distance(run(loss, tx_of(), lay(shard), head_clip=0.1), want) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["optimizer", "parameters"])
def test_what_looks_at_all_numbers_sees_them(shard):
    # norms (clip, SAM, LAMB), matrices (Muon), and parts of a batch
    with jax.enable_x64():
        for make, options in (
            (optim.lamb, {"sam": 0.1, "clip": 0.1}),
            (optim.muon, {"frozen": lambda path: "Dense_1" in path}),
        ):
            want = run(loss_of(), tx_of(make), lay(devices=1), **options)
            assert (
                distance(run(loss_of(), tx_of(make), lay(shard), **options), want)
                < 1e-10
            )


class Deep(nn.Module):
    """Eight layers, of which a step needs one at a time."""

    @nn.compact
    def __call__(self, x, train=False, keys=None):
        x = nn.Dense(256)(x.reshape(len(x), -1))
        for _ in range(8):
            x = nn.relu(nn.Dense(256, use_bias=False)(x))
        return nn.Dense(8)(x)


def test_each_kind_needs_less_memory_than_the_one_before():
    weights = 8 * 256 * 256 * 4
    state, temporary, gathers = {}, {}, {}
    for shard in parts.TABLE:
        loss, tx, layout = loss_of(), tx_of(), lay(shard)
        begun = first(loss, tx, layout, Deep())
        batch = jax.device_put(batch_of(0), layout.split)
        step = compiled(loss, tx, layout, begun, Deep())
        lowered = step.lower(begun, batch)
        gathers[shard] = lowered.as_text().count("stablehlo.all_gather")
        plan = lowered.compile().memory_analysis()
        state[shard] = plan.argument_size_in_bytes / weights
        temporary[shard] = plan.temp_size_in_bytes / weights
    assert state["optimizer"] < 1.6 < 4 < state["none"]  # moments, weights, average
    assert state["parameters"] < 0.6
    # ten arrays, and in the backward pass all but the first layer's, and embeddings
    assert gathers["parameters"] - gathers["none"] == 10 + 9 + 1
    assert temporary["optimizer"] < 0.5 < 2 < temporary["none"]
