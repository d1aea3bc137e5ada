"""Optimizers against their formulas, schedules at points worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxface import spec
from jaxface.train import optim, schedules

RNG = np.random.default_rng(0)
W = RNG.normal(size=(4, 3))
GRADS = RNG.normal(size=(3, 4, 3))


def rate(step):
    """A schedule that moves, so that a wrong step count shows."""
    return 0.1 / (1 + step)


def run(tx, w, grads):
    """Apply updates in float64 to one parameter, named so that decay reaches it."""
    with jax.enable_x64(True):
        params = {"kernel": jnp.asarray(w)}
        state = tx.init(params)
        for g in grads:
            updates, state = tx.update({"kernel": jnp.asarray(g)}, state, params)
            params = optax.apply_updates(params, updates)
        return np.asarray(params["kernel"])


def torch_sgd(w, grads, mu, wd, nesterov):
    """torch.optim.SGD's documented algorithm, dampening 0."""
    buffer = None
    for t, grad in enumerate(grads):
        g = grad + wd * w
        buffer = g if buffer is None else mu * buffer + g
        w = w - rate(t) * (g + mu * buffer if nesterov else buffer)
    return w


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_torchs(nesterov):
    tx = optim.sgd(lr=rate, momentum=0.8, weight_decay=0.03, nesterov=nesterov)
    want = torch_sgd(W, GRADS, 0.8, 0.03, nesterov)
    np.testing.assert_allclose(run(tx, W, GRADS), want, rtol=1e-12)


def adam_oracle(w, grads, *, hat, eps, wd=0.0, b1=0.9, b2=0.999):
    """Kingma and Ba: Algorithm 1, or (hat) the efficient form at section 2's end."""
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(grads, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        c1, c2 = 1 - b1**t, 1 - b2**t
        if hat:
            move = np.sqrt(c2) / c1 * m / (np.sqrt(v) + eps)
        else:
            move = (m / c1) / (np.sqrt(v / c2) + eps)
        w = w - rate(t - 1) * (move + wd * w)
    return w


def test_adam_follows_algorithm_1():
    want = adam_oracle(W, GRADS, hat=False, eps=1e-2)
    got = run(optim.adam(lr=rate, eps=1e-2), W, GRADS)
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_adamw_decays_apart_from_the_moments():
    want = adam_oracle(W, GRADS, hat=False, eps=1e-8, wd=0.2)
    got = run(optim.adamw(lr=rate, weight_decay=0.2), W, GRADS)
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_keras_adam_puts_epsilon_before_the_bias_correction():
    # an epsilon this large separates the two forms
    want = adam_oracle(W, GRADS, hat=True, eps=1e-2)
    other = adam_oracle(W, GRADS, hat=False, eps=1e-2)
    got = run(optim.keras_adam(lr=rate, eps=1e-2), W, GRADS)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    assert np.abs(want - other).max() > 1e-3


@pytest.mark.parametrize("make", [optim.sgd, optim.adamw])
def test_decay_spares_norms_biases_slopes_and_margins(make):
    params = {
        "params": {
            "conv": {"kernel": jnp.ones(2), "bias": jnp.ones(2)},
            "bn": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
            "prelu": {"slope": jnp.ones(2)},
        },
        "head": {"weight": jnp.ones(2)},
        "margin": {"b": jnp.ones(2)},
    }
    tx = make(lr=lambda step: 0.1, weight_decay=0.5)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    moved = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, u in jax.tree_util.tree_leaves_with_path(updates)
        if np.any(u)
    }
    assert moved == {"params/conv/kernel", "head/weight"}


def test_no_decay_is_an_argument():
    tx = optim.sgd(lr=lambda step: 0.1, weight_decay=0.5, no_decay="^a$")
    params = {"a": jnp.ones(2), "bias": jnp.ones(2)}
    updates, _ = tx.update(
        {"a": jnp.zeros(2), "bias": jnp.zeros(2)}, tx.init(params), params
    )
    np.testing.assert_allclose(updates["a"], 0)
    np.testing.assert_allclose(updates["bias"], -0.05)


@pytest.mark.parametrize("name", spec.public(optim))
def test_elementwise_ones_give_a_shard_its_part_of_the_update(name):
    make = spec.public(optim)[name]
    assert make.elementwise
    whole = run(make(lr=rate), W, GRADS)
    parts = [run(make(lr=rate), W[i : i + 2], GRADS[:, i : i + 2]) for i in (0, 2)]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-14)


def test_config_lines_bind():
    call = spec.parse_one("sgd(momentum=0.8, weight_decay=1e-4)")
    build = spec.bind(spec.member(optim, call, kind="optimizer"), call, {"lr": rate})
    assert isinstance(build(), optax.GradientTransformation)
    call = spec.parse_one("sgd(moment=0.8)")
    with pytest.raises(ValueError, match="moment"):
        spec.bind(optim.sgd, call, {"lr": rate})


# peak 2, warm-up 10, run 110: hand-worked (step, rate)
POINTS = {
    "constant": ({}, [(10, 2.0), (109, 2.0)]),
    "cosine": ({}, [(10, 2.0), (35, 1 + 0.5**0.5), (60, 1.0), (110, 0.0)]),
    "polynomial": ({"power": 2.0}, [(10, 2.0), (60, 0.5), (85, 0.125), (110, 0.0)]),
    "step": (
        {"at": (0.5, 0.7), "factor": 0.1},
        [(10, 2.0), (54, 2.0), (55, 0.2), (76, 0.2), (77, 0.02), (109, 0.02)],
    ),
}


@pytest.mark.parametrize("name", POINTS)
def test_schedules_at_points_worked_by_hand(name):
    options, points = POINTS[name]
    make = spec.public(schedules)[name]
    lr = make(peak=2.0, warmup_steps=10, total_steps=110, **options)
    for at, want in [(0, 0.0), (5, 1.0), (9, 1.8), *points]:
        assert float(lr(at)) == pytest.approx(want, abs=1e-6), at
        assert float(jax.jit(lr)(at)) == pytest.approx(want, abs=1e-6), at


@pytest.mark.parametrize("name", POINTS)
def test_without_warm_up_the_first_update_has_the_peak(name):
    lr = spec.public(schedules)[name](peak=2.0, warmup_steps=0, total_steps=100)
    assert float(lr(0)) == pytest.approx(2.0)


def test_one_cycle_rises_and_falls_along_cosines():
    lr = schedules.one_cycle(peak=2.0, warmup_steps=30, total_steps=100)
    low, end = 2.0 / 25, 2.0 / 25 / 1e4
    points = [(0, low), (15, (low + 2) / 2), (30, 2.0), (65, (2 + end) / 2), (100, end)]
    for at, want in points:
        assert float(lr(at)) == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("name", spec.public(schedules))
@pytest.mark.parametrize("warmup", [-1, 100, 200])
def test_a_warm_up_longer_than_the_run_is_refused(name, warmup):
    with pytest.raises(ValueError, match="warm-up"):
        spec.public(schedules)[name](peak=1.0, warmup_steps=warmup, total_steps=100)


@pytest.mark.parametrize("at", [(0.7, 0.5), (0.05, 0.5), (0.5, 1.0)])
def test_steps_out_of_order_are_refused(at):
    with pytest.raises(ValueError, match="rising"):
        schedules.step(at=at, peak=1.0, warmup_steps=10, total_steps=100)


def test_one_cycle_without_warm_up_is_refused():
    with pytest.raises(ValueError, match="set one"):
        schedules.one_cycle(peak=1.0, warmup_steps=0, total_steps=100)
