"""Every loss over classes learns people: right on other pictures of the same ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxface import spec
from jaxface.data.sources import synthetic
from jaxface.losses import binary, memory, softmax

PEOPLE, PICTURES, UNSEEN, BATCH, STEPS = 12, 120, 20, 64, 150

# Scales and margins for a dozen people; s = 64 is for ten thousand.
LINES = {
    "softmax": 1.0,
    "normface": 16.0,
    "arcface(m=0.2)": 16.0,
    "cosface(m=0.2)": 16.0,
    "combined(m1=1.0, m2=0.1, m3=0.1)": 16.0,
    "sphereface(m=1.2)": 16.0,
    "sphereface_r(m=1.2)": 16.0,
    "sphereface_r(m=1.2, version=2)": 16.0,
    "circle(m=0.25)": 32.0,
    "qamface(m=0.2)": 3.0,
    "elastic_arc(m=0.2, std=0.02)": 16.0,
    "elastic_arc(m=0.2, std=0.02, plus=True)": 16.0,
    "elastic_cos(m=0.2, std=0.02)": 16.0,
    "elastic_cos(m=0.2, std=0.02, plus=True)": 16.0,
    "magface(l_a=2.0, u_a=12.0, l_m=0.1, u_m=0.3, lambda_g=2.0)": 16.0,
    "magface(l_a=2.0, u_a=12.0, l_m=0.1, u_m=0.3, lambda_g=2.0, cosine=True)": 16.0,
    "adaface(m=0.2)": 16.0,
    "curricularface(m=0.2)": 16.0,
    "mv_softmax(m=0.1)": 16.0,
    "mv_softmax(m=0.1, angle=True, fixed=True)": 16.0,
    "arcnegface(m=0.2)": 16.0,
    "adacos": 16.0,
    "adacos(dynamic=False)": 16.0,
}
LOSSES = {
    line: softmax.Loss(num_classes=PEOPLE, margin=line, scale=s)
    for line, s in LINES.items()
} | {
    "detached": softmax.Loss(PEOPLE, "arcface(m=0.2)", 16.0, gradient="detached"),
    "centers": softmax.Loss(PEOPLE, "arcface(m=0.2)", 16.0, centers=3, smoothing=0.1),
    "memory": memory.Loss(PEOPLE, "arcface(m=0.2)", 16.0, start=50, span=2),
    "uniface": binary.uniface(num_classes=PEOPLE, scale=16.0, m=0.2),
    "sphereface2": binary.sphereface2(num_classes=PEOPLE, scale=20.0, m=0.2),
}


@functools.cache
def pictures():
    """(images, labels) to train on, and the same people in other pictures."""
    source = synthetic.Source(identities=PEOPLE, per_identity=PICTURES, size=28)
    images, labels = zip(*map(source.read, range(len(source))), strict=True)
    images = (np.stack(images).astype(np.float32) - 127.5) / 127.5
    unseen = np.arange(len(source)) % PICTURES < UNSEEN
    labels = np.array(labels, np.int32)
    return [(images[chosen], labels[chosen]) for chosen in (~unseen, unseen)]


class Net(nn.Module):
    """Two strided convolutions and a dense layer, each with BatchNorm."""

    @nn.compact
    def __call__(self, x, train=False):
        norm = functools.partial(nn.BatchNorm, not train, momentum=0.8)
        for width in (16, 32):
            x = nn.relu(norm()(nn.Conv(width, (3, 3), (2, 2))(x)))
        return norm()(nn.Dense(32)(x.reshape(len(x), -1)))


@functools.cache
def network():
    """The first variables, and forward, backward and update, compiled once for all."""
    model, tx = Net(), optax.adam(3e-3)
    variables = model.init(jax.random.key(0), jnp.zeros((2, 28, 28, 3)))

    @jax.jit
    def forward(params, stats, images):
        def apply(params):
            given = {"params": params, "batch_stats": stats}
            return model.apply(given, images, train=True, mutable=["batch_stats"])

        return jax.vjp(apply, params, has_aux=True)

    @jax.jit
    def update(params, opt, back, de):
        changes, opt = tx.update(back(de)[0], opt)
        return optax.apply_updates(params, changes), opt

    return model, variables, tx, forward, update


def learn(loss):
    """Train; return the accuracy on pictures of the same people never seen."""
    model, variables, tx, forward, update = network()
    (images, labels), (new_images, new_labels) = pictures()
    head = loss.init(jax.random.key(1), num_classes=PEOPLE, dim=32)
    margin, state = loss.init_margin(dim=32)
    params, stats = variables["params"], variables["batch_stats"]
    opt, head_opt = tx.init(params), tx.init((head, margin))

    def share(e, trained, state, y, key):
        batch = {"label": y, "position": jnp.arange(len(y))}
        value, state, metrics = loss.share(
            trained[0], (trained[1], state), e, batch, key=key, axis=None
        )
        return value, (state, metrics)

    @jax.jit
    def step(e, trained, state, opt, y, key):
        grad = jax.value_and_grad(share, argnums=(0, 1), has_aux=True)
        (value, (state, _)), (de, g) = grad(e, trained, state, y, key)
        changes, opt = tx.update(g, opt)
        return value, de, optax.apply_updates(trained, changes), state, opt

    trained, rng = (head, margin), np.random.default_rng(0)
    for t in range(STEPS):
        chosen = rng.choice(len(labels), BATCH, replace=False)
        x, y = images[chosen], labels[chosen]
        e, back, changed = forward(params, stats, x)
        key = jax.random.key(t)
        _, de, trained, state, head_opt = step(e, trained, state, head_opt, y, key)
        params, opt = update(params, opt, back, de)
        stats = changed["batch_stats"]
    e = model.apply({"params": params, "batch_stats": stats}, new_images)
    _, (_, metrics) = share(e, trained, state, new_labels, jax.random.key(0))
    return float(metrics["accuracy"])


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_it_learns_people(name):
    assert learn(LOSSES[name]) > 0.85


def test_every_rule_is_asked_to_learn():
    assert {spec.parse_one(line).name for line in LINES} == set(softmax.rules())
