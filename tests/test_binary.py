"""One question per class: UniFace and SphereFace2, and their shared bias."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from test_margins import KEY, C, body, data, near, run_loss

from jaxface import losses, spec
from jaxface.losses import binary

MAKE = {"uniface": binary.uniface, "sphereface2": binary.sphereface2}


def run(name, how="dense", **changed):
    return run_loss(MAKE[name](num_classes=C), how, **changed)


@pytest.mark.parametrize("name", MAKE)
def test_loss_is_its_oracle(name):
    with jax.enable_x64(True):
        e, w, batch = data()
        cos = oracles.best_cosine(e.tolist(), w[:C].tolist(), 1)
        b = -3.7
        sign = -1 if name == "uniface" else 1
        want = getattr(oracles, name)(cos, batch["label"].tolist(), sign * b)
        near(run(name, margin=({"b": jnp.asarray(b)}, {}))[0], want)


@pytest.mark.parametrize("name", MAKE)
def test_dense_is_sharded_is_pmap(name):
    with jax.enable_x64(True):
        want = run(name)
        for how in ("sharded", "pmap"):
            near(run(name, how), want)


@pytest.mark.parametrize("name", MAKE)
def test_gradient_is_the_slope(name):
    with jax.enable_x64(True):
        e, w, _ = data()
        b = MAKE[name](num_classes=C).init_margin(dim=8)[0]["b"]
        rng, h = np.random.default_rng(1), 1e-6
        de, dw, db = rng.normal(size=e.shape), rng.normal(size=w.shape), 0.7

        def at(h):
            moved = ({"b": b + h * db}, {})
            return run(name, e=e + h * de, w=w + h * dw, margin=moved)[0]

        ge, gw, gb = run(name)[1]
        slope = np.sum(ge * de) + np.sum(gw * dw) + gb["b"] * db
        near(slope, (at(h) - at(-h)) / (2 * h), 1e-6)


@pytest.mark.parametrize("name", MAKE)
def test_order_of_classes_does_not_matter(name):
    with jax.enable_x64(True):
        _, w, batch = data()
        order = np.random.default_rng(2).permutation(C)
        order = np.concatenate([order, np.arange(C, len(w))])
        moved = batch | {"label": np.argsort(order)[batch["label"]].astype(np.int32)}
        value, (de, dw, db), state = run(name)
        got = run(name, w=w[order], batch=moved)
        near(got, (value, (de, dw[order], db), state))


def value_on_rows(loss, given):
    return jax.jit(lambda *given: loss.on_rows(*given, axis=None)[0])(*given)


def at_zero(loss, b):
    """Gradient of the bias where every cosine is 0."""
    w = jnp.eye(loss.num_classes, loss.num_classes + 1)
    e = 3.0 * jnp.eye(1, loss.num_classes + 1, k=loss.num_classes)
    gathered = (e, jnp.array([1]), jax.random.split(KEY, 1))
    ids = jnp.arange(loss.num_classes)

    def value(b):
        return loss.on_rows(w, ids, gathered, ({"b": b}, {}), axis=None)[0]

    return jax.jit(jax.grad(value))(b)


def test_bias_starts_in_balance_in_closed_form():
    with jax.enable_x64(True):
        for loss in (binary.sphereface2(num_classes=9), binary.OneVsAll(num_classes=5)):
            b = loss.init_margin(dim=8)[0]["b"]
            assert abs(at_zero(loss, b)) < 1e-12
            assert abs(at_zero(loss, b + 0.1)) > 1e-4


def test_uniface_starts_as_its_paper_says():
    b = binary.uniface(num_classes=100).init_margin(dim=8)[0]["b"]
    near(b, -math.log(10 * 100), 1e-6)


def test_numbers_by_hand():
    """s = 1, cosines 0.6 to the true class and 0, 0; softplus(0) = log 2."""
    w = jnp.array([[0.6, 0.8], [0.0, 1.0], [0.0, -1.0]])
    gathered = (jnp.array([[5.0, 0.0]]), jnp.array([0]), jax.random.split(KEY, 1))
    given = (w, jnp.arange(3), gathered, ({"b": jnp.zeros(())}, {}))
    got = value_on_rows(binary.uniface(num_classes=3, scale=1.0, m=0.6), given)
    near(got, 3 * math.log(2), 1e-6)
    # g(0.6) = 2 * 0.8^2 - 1 = 0.28, g(0) = -0.5; margins 0.28 and 0.5
    loss = binary.sphereface2(num_classes=3, scale=1.0, t=2.0, m=0.28, m_other=0.5)
    got = value_on_rows(loss, given)
    near(got, 1.25 * (0.7 + 2 * 0.3) * math.log(2), 1e-6)


@pytest.mark.parametrize("name", MAKE)
def test_finite_at_the_edges_and_in_bfloat16(name):
    w = jnp.eye(4, 6)
    e = jnp.stack([w[0], -w[0], 0.0 * w[0], 30.0 * w[2] + w[3]])
    loss = MAKE[name](num_classes=4)
    batch = {"label": jnp.array([0, 0, 1, 2]), "position": jnp.arange(4)}
    for dtype in (jnp.float32, jnp.bfloat16):
        out = jax.jit(body(loss, None))(
            e.astype(dtype), w.astype(dtype), batch, loss.init_margin(dim=8)
        )
        assert out[0].dtype == jnp.float32
        assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(out))


def test_config_lines_name_them():
    for name, make in MAKE.items():
        call = spec.parse_one(f"binary.{name}(m=0.3)")
        found = spec.module(losses, call, kind="loss", default="Loss")
        assert spec.bind(found, call)(num_classes=7) == make(num_classes=7, m=0.3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_classes": 1}, "got 1 classes; wanted 2 or more"),
        ({"scale": 0.0}, "scale is 0.0; wanted a positive number"),
        ({"odds": -1.0}, "odds is -1.0; wanted 0 or a positive number"),
    ],
)
def test_wrong_arguments_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        binary.OneVsAll(**({"num_classes": 3} | options))
