"""Optimizers against their formulas, and by listing against the laws of all."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxface import spec
from jaxface.train import multipliers, optim

RNG = np.random.default_rng(0)
W = RNG.normal(size=(4, 3))
GRADS = RNG.normal(size=(3, 4, 3))
ALL = spec.public(optim)
DECAYING = [
    n for n, f in ALL.items() if "weight_decay" in inspect.signature(f).parameters
]


def rate(step):
    """A schedule that moves, so that a wrong step count shows."""
    return 0.1 / (1 + step)


def run(tx, w, grads, name="params/kernel"):
    """Apply updates in float64 to one parameter, named so that decay reaches it."""

    def tree(x):
        for part in reversed(name.split("/")):
            x = {part: x}
        return jax.tree.map(jnp.asarray, x)

    with jax.enable_x64(True):
        params = tree(w)
        state = tx.init(params)
        for g in grads:
            updates, state = tx.update(tree(g), state, params)
            params = optax.apply_updates(params, updates)
        return np.asarray(jax.tree.leaves(params)[0])


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


def test_adagrad_divides_by_the_root_of_all_squares():
    w, s = W, np.zeros_like(W)
    for t, grad in enumerate(GRADS):
        g = grad + 0.03 * w
        s = s + g**2
        w = w - rate(t) * g / np.sqrt(s)
    got = run(optim.adagrad(lr=rate, weight_decay=0.03), W, GRADS)
    np.testing.assert_allclose(got, w, rtol=1e-12)


def test_adagrad_moves_nothing_without_a_gradient():
    got = run(optim.adagrad(lr=rate, weight_decay=0.0), W, 0 * GRADS)
    np.testing.assert_array_equal(got, W)


def test_lion_steps_by_the_sign():
    w, m = W, np.zeros_like(W)
    for t, g in enumerate(GRADS):
        w = w - rate(t) * (np.sign(0.9 * m + 0.1 * g) + 0.3 * w)
        m = 0.8 * m + 0.2 * g
    got = run(optim.lion(lr=rate, b2=0.8, weight_decay=0.3), W, GRADS)
    np.testing.assert_allclose(got, w, rtol=1e-12)


def test_lamb_worked_by_hand():
    # m and v corrected are g and g^2, so u = sign(g) + 0.5 w = (2.5, -1); |w| = 5
    w, g = np.array([[3.0], [-4.0]]), np.array([[0.2], [1.0]])
    got = run(optim.lamb(lr=lambda t: 0.1, eps=0.0, weight_decay=0.5), w, [g])
    np.testing.assert_allclose(got, w - 0.5 / 7.25**0.5 * np.array([[2.5], [-1.0]]))


@pytest.mark.parametrize("bias", [False, True])
def test_lamb_is_algorithm_2_and_a_bias_takes_adams_step(bias):
    w, m, v = W, np.zeros_like(W), np.zeros_like(W)
    for t, g in enumerate(GRADS, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        u = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-6)
        u = u if bias else u + 0.2 * w
        ratio = 1.0 if bias else np.linalg.norm(w) / np.linalg.norm(u)
        w = w - rate(t - 1) * ratio * u
    name = "params/fc/bias" if bias else "head/kernel"
    got = run(optim.lamb(lr=rate, weight_decay=0.2), W, GRADS, name)
    np.testing.assert_allclose(got, w, rtol=1e-9)


def newton_schulz(x, steps):
    """Jordan's quintic iteration on a matrix with no more rows than columns."""
    x = x / np.linalg.norm(x)
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
    return x


def test_muon_takes_orthonormal_steps_of_one_size():
    w, m = W.T, np.zeros_like(W.T)
    for t, g in enumerate(np.swapaxes(GRADS, 1, 2), 1):
        m = 0.95 * m + 0.05 * g
        # Nesterov, both terms corrected for their start from zero
        ahead = 0.95 * m / (1 - 0.95 ** (t + 1)) + 0.05 * g / (1 - 0.95**t)
        u = 0.2 * 4**0.5 * newton_schulz(ahead, 5)
        w = w - rate(t - 1) * (u + 0.1 * w)
    got = run(optim.muon(lr=rate, weight_decay=0.1), W, GRADS)
    np.testing.assert_allclose(got, w.T, rtol=1e-6)


def test_muons_first_step_is_near_the_orthonormal_factor():
    u, s, v = np.linalg.svd(GRADS[0], full_matrices=False)
    assert s.max() / s.min() < 10
    tx = optim.muon(lr=lambda t: 1.0, weight_decay=0.0)
    step = (W - run(tx, W, GRADS[:1])) / (0.2 * 4**0.5)
    inside = u.T @ step @ v.T
    np.testing.assert_allclose(inside, np.diag(np.diag(inside)), atol=1e-9)
    assert np.all((np.diag(inside) > 0.6) & (np.diag(inside) < 1.3))
    np.testing.assert_allclose(u @ inside @ v, step, atol=1e-9)


def test_muon_sees_a_convolution_as_one_matrix():
    rng = np.random.default_rng(1)
    w, grads = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(3, 2, 3, 4, 5))
    got = run(optim.muon(lr=rate), w, grads)
    flat = run(optim.muon(lr=rate), w.reshape(24, 5), grads.reshape(3, 24, 5))
    np.testing.assert_allclose(got, flat.reshape(w.shape), rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("params/conv/bias", (4,)),
        ("params/bn/scale", (4,)),
        ("params/dw/kernel", (3, 3, 1, 4)),
        ("params/pos_embed", (4, 3)),
        ("head/kernel", (4, 3)),
        ("margin/b", ()),
    ],
)
def test_muon_leaves_the_rest_to_adamw(name, shape):
    rng = np.random.default_rng(2)
    w, grads = rng.normal(size=shape), rng.normal(size=(3, *shape))
    want = run(optim.adamw(lr=rate, weight_decay=0.1), w, grads, name)
    got = run(optim.muon(lr=rate, weight_decay=0.1), w, grads, name)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", ALL)
def test_all_lower_a_quadratic(name):
    goal = GRADS[0]
    params = {"params": {"kernel": jnp.asarray(W, jnp.float32)}}
    tx = ALL[name](lr=lambda step: 0.05)
    state = tx.init(params)

    def loss(params):
        return jnp.sum((params["params"]["kernel"] - goal) ** 2)

    losses = [float(loss(params))]
    for _ in range(20):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
        losses.append(float(loss(params)))
    assert losses[-1] < 0.85 * losses[0]


@pytest.mark.parametrize("name", DECAYING)
def test_decay_spares_norms_biases_slopes_and_margins(name):
    params = {
        "params": {
            "conv": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
            "bn": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
            "prelu": {"slope": jnp.ones(2)},
        },
        "head": {"weight": jnp.ones(2)},
        "margin": {"b": jnp.ones(2)},
    }
    tx = ALL[name](lr=lambda step: 0.1, weight_decay=0.5)
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


@pytest.mark.parametrize(
    "name", [n for n, f in ALL.items() if getattr(f, "elementwise", False)]
)
def test_elementwise_ones_give_a_shard_its_part_of_the_update(name):
    make = ALL[name]
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


def torch_run(make, w, grads):
    """What torch's optimizer of that name makes of the same gradients, in float64."""
    torch = pytest.importorskip("torch", reason="pip install jaxface[peers]")
    p = torch.nn.Parameter(torch.tensor(w))
    tx = make(torch.optim, [p])
    for t, g in enumerate(grads):
        for group in tx.param_groups:
            group["lr"] = rate(t)
        p.grad = torch.tensor(g)
        tx.step()
    return p.detach().numpy()


# ours, torch's, and how near they must come: torch's Muon computes in bfloat16
PEERS = {
    "sgd": (
        optim.sgd(lr=rate, weight_decay=0.03, nesterov=True),
        lambda o, p: o.SGD(p, momentum=0.9, weight_decay=0.03, nesterov=True),
        1e-12,
    ),
    "adamw": (
        optim.adamw(lr=rate, weight_decay=0.03),
        lambda o, p: o.AdamW(p, weight_decay=0.03),
        1e-6,
    ),
    "adagrad": (
        optim.adagrad(lr=rate, weight_decay=0.03),
        lambda o, p: o.Adagrad(p, weight_decay=0.03),
        1e-8,
    ),
    "muon": (
        optim.muon(lr=rate, weight_decay=0.03, beta=0.0),
        lambda o, p: o.Muon(
            p, weight_decay=0.03, momentum=0.0, adjust_lr_fn="match_rms_adamw"
        ),
        3e-3,
    ),
}


@pytest.mark.parametrize("name", PEERS)
def test_torchs_optimizers_go_the_same_way(name):
    ours, theirs, near = PEERS[name]
    want = torch_run(theirs, W, GRADS)
    np.testing.assert_allclose(run(ours, W, GRADS), want, rtol=0, atol=near)


def test_what_is_frozen_never_enters_an_array_wide_step():
    # LAMB and Muon look at whole arrays: one that is frozen must not be one of them
    rules = (("still", 0.0), ("slow", 0.5))
    names = ("still", "slow", "usual")
    params = {"params": {n: {"kernel": jnp.asarray(W, jnp.float32)} for n in names}}
    g = jax.tree.map(jnp.cos, params)
    for name in ("lamb", "muon"):
        tx = multipliers.scaled(ALL[name](lr=lambda t: 0.1), rules)
        state = tx.init(params)
        updates, _ = tx.update(g, state, params)
        still, slow, usual = (updates["params"][n]["kernel"] for n in names)
        assert not np.any(still)
        np.testing.assert_allclose(2 * slow, usual, rtol=1e-6)
        paths = jax.tree_util.tree_leaves_with_path(state)
        assert not any("still" in jax.tree_util.keystr(path) for path, _ in paths)
