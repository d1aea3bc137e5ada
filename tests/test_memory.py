"""VPL: what is remembered, for how long, and what it does to the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.sharding import PartitionSpec as P
from test_margins import KEY, near

from jaxface import parallel
from jaxface.losses import memory

C, D, B = 5, 3, 4
LOSS = memory.Loss(num_classes=C, margin="cosface(m=0.2)", scale=4.0, start=2, span=2)


def begin(loss, dtype=float):
    params, state = loss.init_margin(dim=D)
    rows = state["head"] | {"face": state["head"]["face"].astype(dtype)}
    return params, state | {"head": rows}


@jax.jit
def step(w, state, e, y):
    batch = {"label": y, "position": jnp.arange(B)}
    given = {"kernel": w}, ({}, state), e, batch
    return LOSS.share(*given, key=KEY, axis=None)


def test_each_step_is_its_oracle():
    """Labels that repeat in a batch, come back in time, and come back too late."""
    rng = np.random.default_rng(0)
    labels = [[0, 1, 0, 2], [1, 1, 1, 1], [0, 2, 3, 3], [3, 0, 4, 1], [2, 2, 4, 0]]
    with jax.enable_x64(True):
        w = rng.normal(size=(1024, D))
        _, state = begin(LOSS)
        faces = {}
        for done, y in enumerate(labels):
            e = rng.normal(size=(B, D))
            share, state, metrics = step(w, state, e, np.array(y))
            used = faces if done >= LOSS.start else {}
            rows = oracles.prototypes(w[:C].tolist(), used, done + 1, 0.15, 2)
            cos = oracles.best_cosine(e.tolist(), rows, 1)
            logits, _ = oracles.cosface(cos, y, None, 4.0, m=0.2)
            near(share, oracles.cross_entropy(logits, y))
            fresh = sum(done + 1 - seen <= 2 for seen, _ in used.values())
            near(metrics["remembered"], fresh / C)
            faces |= {c: (done + 1, x.tolist()) for c, x in zip(y, e, strict=True)}
        assert not state["head"]["seen"][C:].any()


def test_gradient_is_the_slope_and_leaves_memories_alone():
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        w, e = rng.normal(size=(1024, D)), rng.normal(size=(B, D))
        y = np.array([0, 1, 2, 3])
        _, state = begin(LOSS)
        for _ in range(2):
            _, state, _ = step(w, state, rng.normal(size=(B, D)), y)

        def value(w, e):
            return step(w, state, e, y)[0]

        gw, ge = jax.grad(value, argnums=(0, 1))(w, e)
        dw, de, h = rng.normal(size=w.shape), rng.normal(size=e.shape), 1e-6
        slope = value(w + h * dw, e + h * de) - value(w - h * dw, e - h * de)
        near(np.sum(gw * dw) + np.sum(ge * de), slope / (2 * h), 1e-7)


def test_memories_live_where_their_class_lives():
    state = {"margin_state": begin(LOSS)[1], "head": {"kernel": jnp.zeros((1024, D))}}
    specs = parallel.state_specs(state, axis="data")
    assert specs["margin_state"]["head"] == {"face": P("data"), "seen": P("data")}
    assert specs["margin_state"]["steps"] == P()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lam": 1.0}, "lam is 1.0; wanted 0 to below 1"),
        ({"span": 0}, "got start=8000 and span=0; wanted"),
        ({"margin": "softmax"}, "memory mixes directions, margin 'softmax' uses"),
    ],
)
def test_wrong_arguments_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        memory.Loss(**({"num_classes": 3} | options))
