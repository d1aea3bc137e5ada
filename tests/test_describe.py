"""Multiply-adds against nets worked by hand, and rows that add up to the totals."""

import importlib
import json
import math
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax import lax

from jaxface import describe, models, spec
from jaxface.models import common, depthwise, iresnet

ROOT = pathlib.Path(__file__).parent.parent


def net(body):
    """A network of one function of (module, images)."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, *, train=False, keys=None):
            return body(self, x)

    return Net()


def macs(body, size=8):
    return describe.macs(net(body), size)


def flat(x):
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def weight(module, *shape, name="w"):
    return module.param(name, nn.initializers.normal(), shape)


def test_dense_rows_by_hand():
    model = net(lambda _, x: nn.Dense(5, name="b")(nn.relu(nn.Dense(7, name="a")(x))))
    assert describe.layers(model, 4) == [
        describe.Layer("a", "Dense", (4, 4, 7), 3 * 7 + 7, 16 * 3 * 7),
        describe.Layer("b", "Dense", (4, 4, 5), 7 * 5 + 5, 16 * 7 * 5),
    ]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, 8 * 8 * 6 * 9 * 3),
        ({"strides": 2, "padding": 1}, 4 * 4 * 6 * 9 * 3),
        ({"strides": 2, "padding": "VALID"}, 3 * 3 * 6 * 9 * 3),
        ({"kernel_dilation": 2, "padding": "VALID"}, 4 * 4 * 6 * 9 * 3),
        ({"feature_group_count": 3}, 8 * 8 * 6 * 9 * 1),
    ],
)
def test_convolution_by_hand(given, wanted):
    assert macs(lambda _, x: nn.Conv(6, (3, 3), **given)(x)) == wanted


@pytest.mark.parametrize(
    ("shape", "given", "wanted"),
    [
        ((3, 3, 1, 3), {"padding": 1}, 8 * 8 * 3 * 9),
        ((3, 3, 1, 3), {"stride": 2}, 3 * 3 * 3 * 9),
        ((3, 3, 3, 3), {"padding": 1}, 8 * 8 * 3 * 9 * 3),
        ((8, 8, 1, 3), {}, 8 * 8 * 3),  # written as a product and a sum
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_depthwise_by_hand(shape, given, wanted, dtype):
    def body(module, x):
        kernel = weight(module, *shape).astype(dtype)
        return depthwise.depthwise(x.astype(dtype), kernel, **given)

    assert macs(body) == wanted


def test_weighted_sum_is_found_in_a_recomputed_block():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            return depthwise.depthwise(x, weight(self, 8, 8, 1, 3))

    model = net(lambda _, x: nn.remat(Block)(name="block")(x))
    (row,) = describe.layers(model, 8)
    assert (row.path, row.macs) == ("block", 8 * 8 * 3)


def test_attention_by_hand():
    def body(_, x):
        x = x.reshape(x.shape[0], 64, 3)  # [B, N, 3]
        return nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=8)(x)

    N, C, D = 64, 3, 8
    rows = {r.path: r.macs for r in describe.layers(net(body), 8)}
    name = "MultiHeadDotProductAttention_0"
    assert rows.pop(name) == 2 * N * N * D  # q k, and the weights times v
    assert rows.pop(f"{name}/out") == N * D * C
    assert rows == {f"{name}/{part}": N * C * D for part in ("query", "key", "value")}


def test_loops_count_every_turn():
    def loop(module, x):
        w = weight(module, 5, 3, 3)  # a stack of five
        return lax.scan(lambda x, w: (x @ w, None), x, w)[0]

    def step(module, x, _):
        return module(x), None

    def layers(_, x):
        stack = nn.scan(
            step, variable_axes={"params": 0}, split_rngs={"params": True}, length=5
        )
        return stack(nn.Dense(3, name="dense"), x, None)[0]

    assert macs(loop) == 5 * 64 * 9
    (row,) = describe.layers(net(layers), 8)
    assert (row.path, row.parameters, row.macs) == ("dense", 5 * 12, 5 * 64 * 9)


def test_a_loop_without_length_is_refused():
    def body(module, x):
        w = weight(module, 3, 3)
        return lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ w, x)

    with pytest.raises(ValueError, match="inside 'while' cannot be counted"):
        macs(body)


def test_of_a_branch_the_dearest_counts():
    def body(module, x):
        w = weight(module, 3, 3)
        return lax.cond(x.sum() > 0, lambda x: x @ w, lambda x: x @ w @ w, x)

    assert macs(body) == 2 * 64 * 9


def test_a_layer_used_twice_has_one_row():
    def body(_, x):
        dense = nn.Dense(3, name="dense")
        return dense(dense(x))

    (row,) = describe.layers(net(body), 8)
    assert (row.parameters, row.macs) == (12, 2 * 64 * 9)


def test_norms_activations_and_sums_are_free():
    def body(module, x):
        x = common.activate(nn.LayerNorm()(x), "prelu")
        w = weight(module, 1, 1, 1, 3)
        x = common.batch_norm(train=False)(x) * (w / jnp.sqrt((w * w).sum()))
        return (x * x).sum((1, 2))

    assert macs(body) == 0


def families():
    for name in spec.modules(models):
        module = importlib.import_module(f"jaxface.models.{name}")
        if hasattr(module, "tiny"):
            yield pytest.param(module.tiny, id=name)


@pytest.mark.parametrize("make", list(families()))
def test_rows_add_up_to_what_the_network_holds(make):
    model = make(axis="data")
    rows = describe.layers(model)
    assert sum(r.macs for r in rows) == describe.macs(model) > 0
    assert sum(r.parameters for r in rows) == describe.parameters(model)
    assert len({r.path for r in rows}) == len(rows)
    assert all(r.kind and r.shape for r in rows)


def iresnet_macs(stages, dim=512):
    """The layer list on paper, for 112 pixels."""
    total, side, c = 112 * 112 * 64 * 3 * 9, 112, 64
    for blocks, w in zip(stages, (64, 128, 256, 512), strict=True):
        total += (side // 2) ** 2 * c * w  # the projection
        for i in range(blocks):
            total += side**2 * w * c * 9
            side = side // 2 if i == 0 else side
            total += side**2 * w * w * 9
            c = w
    return total + 7 * 7 * 512 * dim


def test_iresnet_is_the_list_on_paper():
    assert describe.macs(iresnet.r18(), 112) == iresnet_macs((2, 2, 2, 2))


def test_a_network_that_fits_in_no_machine_is_counted():
    model = net(lambda _, x: nn.Dense(10**13, use_bias=False)(flat(x)))
    assert describe.macs(model, 8) == describe.parameters(model, 8) == 192 * 10**13


def test_xla_finds_two_flops_per_multiply_add():
    def body(_, x):
        x = nn.Conv(64, (3, 3), padding="VALID")(x)
        x = nn.Conv(64, (3, 3), padding="VALID")(nn.relu(x))
        return nn.Dense(32)(flat(x))

    model = net(body)
    cost = describe.cost(model, 12, batch=2)
    total = describe.macs(model, 12)
    assert cost.forward_flops == pytest.approx(2 * total, rel=0.02)
    images = 2 * 10 * 10 * 64 * 3 * 9  # the gradient of the images is not needed
    assert cost.train_flops == pytest.approx(6 * total - images, rel=0.03)
    assert 0 < cost.forward_bytes < cost.train_bytes


def test_xla_sees_through_the_cpu_form_of_depthwise():
    model = net(lambda _, x: flat(depthwise.Depthwise(kernel=3)(nn.Dense(64)(x))))
    cost = describe.cost(model, 32, memory=False)
    dense, shift = 32 * 32 * 3 * 64, 32 * 32 * 64 * 9
    assert cost.forward_flops == pytest.approx(2 * (dense + shift), rel=0.1)
    assert cost.train_flops == pytest.approx(4 * dense + 6 * shift, rel=0.15)
    assert cost.forward_bytes is cost.train_bytes is None


def script(*flags):
    command = [sys.executable, "launch/describe.py", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_command_prints_rows_and_totals():
    small = "--model=seed_cnn.tiny"
    done = script(small, "--nomemory")
    assert done.returncode == 0, done.stderr
    first, *_ = done.stdout.splitlines()
    assert first.split() == ["layer", "kind", "output", "parameters", "multiply-adds"]
    told = json.loads(script(small, "--size=26,24", "--batch=2", "--json").stdout)
    module = importlib.import_module("jaxface.models.seed_cnn")
    assert told["macs"] == describe.macs(module.tiny(), (26, 24))
    assert told["parameters"] == sum(row["parameters"] for row in told["layers"])
    assert told["train_bytes"] > 0
    millions = describe.macs(module.tiny()) / 1e6
    (line,) = [x for x in done.stdout.splitlines() if x.startswith("  multiply-adds")]
    assert line.split() == ["multiply-adds", f"{millions:.2f}", "M"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model=iresnet.r5"], "did you mean 'iresnet.r50'"),
        (["--model=iresnet.r50", "--size=0"], "wanted pixels per side"),
    ],
)
def test_the_command_says_what_is_wrong(flags, words):
    done = script(*flags)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
