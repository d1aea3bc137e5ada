"""Metric losses: equal to loops, the same on any mesh, finite where papers divide."""

import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles_metric as oracles
import pytest
from jax.sharding import PartitionSpec as P

from jaxface import parallel, spec
from jaxface.losses import center, joint, metric, softmax

B, C, D = 16, 6, 5

# every loss of the module; no value is the default
CASES = {
    "triplet(mining='all', m=0.3)": {"mining": "all", "m": 0.3},
    "triplet(mining='active', m=0.5)": {"mining": "active", "m": 0.5},
    "triplet(mining='hard', squared=False)": {"mining": "hard", "squared": False},
    "triplet(mining='semi', m=0.7)": {"mining": "semi", "m": 0.7},
    "contrastive(m=1.5)": {"m": 1.5},
    "supervised_contrastive(temperature=0.2)": {"temperature": 0.2},
    "n_pair(l2=0.1)": {"l2": 0.1},
    "multi_similarity(base=0.5, epsilon=0.3)": {"base": 0.5, "epsilon": 0.3},
    "circle(m=0.4, gamma=80.0)": {"m": 0.4, "gamma": 80.0},
}
every_loss = pytest.mark.parametrize("line", CASES)


@functools.cache
def make(line):
    call = spec.parse_one(line)
    return spec.bind(spec.member(metric, call, kind="loss"), call)(num_classes=C)


def drawn(seed=0, labels=None):
    """A batch in which some are alone and some are together."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, C, B) if labels is None else np.asarray(labels)
    e = rng.normal(size=(B, D)) + rng.normal(size=(B, D))[labels]
    return e, {"label": labels.astype(np.int32)}


def value_and_grad(loss, e, batch, state, axis):
    def value(e):
        key = jax.random.key(0)
        share, state_, metrics = loss.share(
            {}, ({}, state), e, batch, key=key, axis=axis
        )
        return share, (state_, metrics)

    (share, out), g = jax.value_and_grad(value, has_aux=True)(e)
    return parallel.psum(share, axis), g, *out


@functools.partial(jax.jit, static_argnums=0)
def dense(loss, e, batch, state=None):
    """Return (loss, gradient, statistics, metrics) on one device."""
    return value_and_grad(loss, e, batch, state or {}, None)


def on_mesh(loss, e, batch, state, how):
    """Return the same of 8 devices: shares summed, slices joined."""

    def body(e, batch, state):
        return value_and_grad(loss, e, batch, state, "data")

    if how == "jit":
        specs = parallel.state_specs({"margin_state": state}, axis="data")
        places = specs["margin_state"]
        return jax.jit(
            jax.shard_map(
                body,
                mesh=parallel.make_mesh(axis="data"),
                in_specs=(P("data"), P("data"), places),
                out_specs=(P(), P("data"), places, P()),
                check_vma=False,
            )
        )(e, batch, state)
    split = functools.partial(jax.tree.map, lambda x: x.reshape(8, -1, *x.shape[1:]))
    out = jax.pmap(body, axis_name="data", out_axes=(None, 0, 0, None))(
        split(e), split(batch), split(state)
    )
    join = functools.partial(jax.tree.map, lambda x: x.reshape(-1, *x.shape[2:]))
    return out[0], join(out[1]), join(out[2]), out[3]


def same(a, b, atol=1e-10):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=atol), a, b)


def test_every_loss_of_the_module_is_tested():
    assert {spec.parse_one(c).name for c in CASES} == {*spec.public(metric)} - {"Loss"}


@pytest.mark.parametrize("name", sorted({*spec.public(metric)} - {"Loss"}))
def test_defaults_are_those_of_the_papers(name):
    ours = inspect.signature(getattr(metric, name)).parameters
    theirs = inspect.signature(getattr(oracles, name)).parameters
    for key, parameter in [*ours.items()][1:]:
        assert parameter.default == theirs[key].default


@every_loss
def test_equals_the_papers_loops(line):
    oracle = getattr(oracles, spec.parse_one(line).name)
    with jax.enable_x64():
        for seed in range(5):
            e, batch = drawn(seed)
            want = oracle(e.tolist(), batch["label"].tolist(), **CASES[line])
            assert want > 0
            assert float(dense(make(line), e, batch)[0]) == pytest.approx(
                want, rel=1e-10
            )


@every_loss
@pytest.mark.parametrize("how", ["jit", pytest.param("pmap", marks=pytest.mark.slow)])
def test_dense_is_jit_is_pmap(line, how):
    with jax.enable_x64():
        e, batch = drawn(7)
        same(on_mesh(make(line), e, batch, {}, how), dense(make(line), e, batch))


# the weights of circle have no gradient, by definition, eq. (5)
@pytest.mark.parametrize("line", [c for c in CASES if "circle" not in c])
def test_gradients_are_the_formulas(line):
    with jax.enable_x64():
        e, batch = drawn(3)
        _, g, *_ = dense(make(line), e, batch)
        way = np.random.default_rng(1).normal(size=e.shape)
        ends = [dense(make(line), e + h * way, batch)[0] for h in (1e-6, -1e-6)]
        assert float((g * way).sum()) == pytest.approx(
            float(ends[0] - ends[1]) / 2e-6, rel=1e-5
        )


ONE, ALONE, MIXED = [0] * B, list(range(B)), [0] * 8 + [1] * 7 + [2]


@every_loss
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_odd_batches_and_coinciding_rows_stay_finite(line, dtype):
    for labels in (ONE, ALONE, MIXED):
        e, batch = drawn(0, labels)
        for rows in (e, np.ones_like(e), np.zeros_like(e)):
            found = dense(make(line), jnp.asarray(rows, dtype), batch)
            assert found[1].dtype == dtype
            assert all(
                np.isfinite(x.astype(float)).all() for x in jax.tree.leaves(found)
            )


# lengths, and people apart, are losses of images alone
WITHOUT_ALONE = [c for c in CASES if not c.startswith(("n_pair", "contrastive"))]


@pytest.mark.parametrize("line", WITHOUT_ALONE)
def test_pairs_that_are_not_there_add_nothing(line):
    with jax.enable_x64():
        for labels in (ONE, ALONE):
            share, g, _, metrics = dense(make(line), *drawn(0, labels))
            assert metrics["anchors"] == 0
            # eq. (2) of supervised contrastive has positives below the line too
            if labels is ALONE or not line.startswith("supervised"):
                assert share == abs(g).max() == 0


@every_loss
def test_people_and_places_have_no_names(line):
    with jax.enable_x64():
        e, batch = drawn(4)
        order = np.random.default_rng(0).permutation(B)
        renamed = {"label": C - 1 - batch["label"][order]}
        want, g, _, metrics = dense(make(line), e, batch)
        same(dense(make(line), e[order], renamed), (want, g[order], {}, metrics))


# Three images in the plane: a and p of one person at 0 and 90 degrees, n at 180.
HAND = np.array([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
E, S = math.exp, math.log
BY_HAND = {
    # squares: ap 2, an 4, pn 2. anchor a: 2 - 4 + .5 < 0; anchor p: 2 - 2 + .5
    "triplet(mining='all', m=0.5)": 0.5 / 2,
    "triplet(mining='active', m=0.5)": 0.5,
    "triplet(mining='hard', m=2.5)": (0.5 + 2.5) / 2,
    # anchor a: nearest beyond 2 is 4; anchor p: none lies beyond 2
    "triplet(mining='semi', m=2.5)": 0.5,
    # same: 2 / 2; others: d 2 and sqrt 2, twice each, against 1.5
    "contrastive(m=1.5)": 1 + (1.5 - math.sqrt(2)) ** 2 / 2 / 2,
    # a: log(1 + e^-1) ; p: log 2 ; n has no positive
    "supervised_contrastive(temperature=1.0)": (S(1 + E(-1)) + S(2)) / 2,
    # inner products: ap 0, an -3, pn 0; no penalty
    "n_pair(l2=0.0)": (S(1 + E(-3)) + S(2)) / 2,
    # with epsilon 1.5 a keeps (p, n = -1), p keeps (a, n = 0); n has no positive, so
    # none of its negatives is kept
    "multi_similarity(alpha=1.0, beta=1.0, base=0.0, epsilon=1.5)": (
        S(2) + S(1 + E(-1)) + S(2) + S(2)
    )
    / 3,
    # alpha_p 1.25, border .75; a: alpha_n [-1 + .25]+ = 0; p: .25, border .25
    "circle(m=0.25, gamma=1.0)": (S(1 + E(0.9375)) + S(1 + E(0.9375) * E(-0.0625))) / 2,
}


@pytest.mark.parametrize("line", BY_HAND)
def test_three_images_by_hand(line):
    with jax.enable_x64():
        batch = {"label": np.array([0, 0, 1], np.int32)}
        found, _, _, metrics = dense(make(line), HAND, batch)
        assert float(found) == pytest.approx(BY_HAND[line], rel=1e-12)
        # the friend of a is nearer than the stranger, p's friend is as far as that
        assert metrics["accuracy"] == 1 / 2
        assert metrics["anchors"] == 2 / 3
        assert metrics["cosine"] == pytest.approx(0, abs=1e-12)
        assert metrics["cosine_others"] == pytest.approx(-1 / 2)


def test_violated_counts_triplets_inside_the_margin():
    batch = {"label": np.array([0, 0, 1], np.int32)}
    with jax.enable_x64():
        *_, metrics = dense(make("triplet(mining='all', m=0.5)"), HAND, batch)
        assert float(metrics["violated"]) == 1 / 2


def test_centres_move_by_the_papers_rule_on_any_mesh():
    with jax.enable_x64():
        loss, start = center.Loss(C, alpha=0.3), np.zeros((1024, D))
        e, batch = drawn(2)
        start[:C] = np.random.default_rng(5).normal(size=(C, D))
        value_, moved = oracles.center(
            e.tolist(), batch["label"].tolist(), start[:C].tolist(), alpha=0.3
        )
        state = {"head": {"centers": start}}
        want = dense(loss, e, batch, state)
        assert float(want[0]) == pytest.approx(value_, rel=1e-10)
        np.testing.assert_allclose(want[2]["head"]["centers"][:C], moved, atol=1e-12)
        np.testing.assert_allclose(want[1], (e - start[batch["label"]]) / B)
        assert not want[2]["head"]["centers"][C:].any()
        for how in ("jit", "pmap"):
            same(on_mesh(loss, e, batch, state, how), want)


def test_a_centre_reaches_the_middle_of_its_images():
    # one class at 1 and 3: c += alpha * sum(x - c) / (1 + 2)
    e, batch = np.array([[1.0], [3.0]], np.float32), {"label": np.zeros(2, np.int32)}
    state = center.Loss(1).init_margin(dim=1)[1]
    share, _, state, _ = dense(center.Loss(1), e, batch, state)
    assert share == (1 + 9) / 4
    assert state["head"]["centers"][0, 0] == pytest.approx(0.5 * 4 / 3)
    for _ in range(30):
        _, _, state, metrics = dense(center.Loss(1), e, batch, state)
    assert state["head"]["centers"][0, 0] == pytest.approx(2, abs=1e-4)
    assert metrics["distance"] == pytest.approx(1, abs=1e-4)


def test_a_joint_loss_is_the_weighted_sum_of_its_parts():
    main = softmax.Loss(C, margin="arcface", scale=16.0)
    parts = main, center.Loss(C), make("circle")
    names, weights = ("softmax", "center", "circle"), (1.0, 0.3, 0.1)
    both = joint.Joint(tuple(zip(names, weights, parts, strict=True)))
    key, (e, batch) = jax.random.key(3), drawn(1)
    e = e.astype(np.float32)
    batch["position"] = np.arange(B, dtype=np.uint32)
    head = both.init(key, num_classes=C, dim=D)
    np.testing.assert_array_equal(
        head["kernel"], parts[0].init(key, num_classes=C, dim=D)["kernel"]
    )
    margin = both.init_margin(dim=D)
    given = {"key": key, "axis": None}

    @jax.jit
    def shares(e):
        return [p.share(head, margin, e, batch, **given) for p in (both, *parts)]

    (found, state, metrics), *alone = shares(e)
    want = alone[0][0] + 0.3 * alone[1][0] + 0.1 * alone[2][0]
    np.testing.assert_allclose(found, want, rtol=1e-6)
    np.testing.assert_array_equal(
        state["head"]["centers"], alone[1][1]["head"]["centers"]
    )
    assert metrics["accuracy"] == alone[0][2]["accuracy"]
    assert metrics["circle/accuracy"] == alone[2][2]["accuracy"]
    np.testing.assert_allclose(metrics["center/loss"], alone[1][0], rtol=1e-6)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: metric.Loss(C), "is a family; wanted one of it"),
        (lambda: make("triplet(mining='hrad')"), "wanted one of all, active, hard"),
        (lambda: make("circle(gamma=0.0)"), "gamma=0.0; wanted a positive"),
        (lambda: make("n_pair(l2=-1.0)"), "wanted 0 or more"),
        (lambda: center.Loss(C, alpha=2.0), "wanted 0 to 1"),
        (lambda: joint.Joint((("a", -1.0, None),)), "wanted a positive number"),
        (lambda: joint.Joint((("a", 1.0, None),) * 2), "there twice"),
    ],
)
def test_wrong_arguments_are_refused(build, words):
    with pytest.raises(ValueError, match=words):
        build()
