"""Distillation: equal to loops, the same on any mesh, nothing to learn from oneself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles_metric as oracles
import pytest
from jax.sharding import PartitionSpec as P

from jaxface import parallel, spec
from jaxface.losses import distill

B, C, D, T = 16, 6, 5, 7
ROWS = 1024

CASES = {
    "cosine": {},
    "l2": {},
    "l2(unit=True)": {"unit_rows": True},
    "relational": {},
    "relational(distance=3.0, angle=0.0)": {"distance": 3.0, "angle": 0.0},
    "relational(distance=0.0, unit=True)": {"distance": 0.0, "unit_rows": True},
    "logits": {},
    "logits(temperature=2.0, scale=16.0)": {"temperature": 2.0, "scale": 16.0},
}
every_loss = pytest.mark.parametrize("line", CASES)


@functools.cache
def make(line):
    call = spec.parse_one(line)
    return spec.bind(spec.member(distill, call, kind="loss"), call)(num_classes=C)


def drawn(line, seed=0):
    """Embeddings, head and batch; the teacher has its own size where it may."""
    rng = np.random.default_rng(seed)
    theirs = D if line.startswith(("cosine", "l2")) else T
    head, there = np.zeros((ROWS, D)), np.ones((ROWS, theirs))
    head[:C], there[:C] = rng.normal(size=(C, D)), rng.normal(size=(C, theirs))
    batch = {
        "label": rng.integers(0, C, B).astype(np.int32),
        "teacher": rng.normal(size=(B, theirs)),
        "teacher_head": there,
    }
    return rng.normal(size=(B, D)), {"kernel": head}, batch


def value_and_grad(loss, e, head, batch, axis):
    def value(e, head):
        key = jax.random.key(0)
        share, _, metrics = loss.share(head, ({}, {}), e, batch, key=key, axis=axis)
        return share, metrics

    f = jax.value_and_grad(value, (0, 1), has_aux=True)
    (share, metrics), (g, g_head) = f(e, head)
    return parallel.psum(share, axis), g, g_head, metrics


@functools.partial(jax.jit, static_argnums=0)
def dense(loss, e, head, batch):
    return value_and_grad(loss, e, head, batch, None)


def on_mesh(loss, e, head, batch, how):
    def body(e, head, batch):
        return value_and_grad(loss, e, head, batch, "data")

    if how == "jit":
        return jax.jit(
            jax.shard_map(
                body,
                mesh=parallel.make_mesh(axis="data"),
                in_specs=P("data"),
                out_specs=(P(), P("data"), P("data"), P()),
                check_vma=False,
            )
        )(e, head, batch)
    split = functools.partial(jax.tree.map, lambda x: x.reshape(8, -1, *x.shape[1:]))
    out = jax.pmap(body, axis_name="data", out_axes=(None, 0, 0, None))(
        split(e), split(head), split(batch)
    )
    join = functools.partial(jax.tree.map, lambda x: x.reshape(-1, *x.shape[2:]))
    return out[0], join(out[1]), join(out[2]), out[3]


def test_every_loss_of_the_module_is_tested():
    names = {spec.parse_one(c).name for c in CASES}
    assert names == {*spec.public(distill)} - {"Loss"}


@every_loss
def test_equals_the_papers_loops(line):
    name = spec.parse_one(line).name
    with jax.enable_x64():
        for seed in range(2):
            e, head, batch = drawn(line, seed)
            given = [e.tolist(), batch["teacher"].tolist()]
            if name == "logits":
                weights = head["kernel"], batch["teacher_head"]
                given += [w[:C].tolist() for w in weights]
            want = getattr(oracles, name)(*given, **CASES[line])
            assert want > 0
            found = float(dense(make(line), e, head, batch)[0])
            assert found == pytest.approx(want, rel=1e-10)


@every_loss
@pytest.mark.parametrize("how", ["jit", "pmap"])
def test_dense_is_jit_is_pmap(line, how):
    with jax.enable_x64():
        given = drawn(line, 5)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-10),
            on_mesh(make(line), *given, how),
            dense(make(line), *given),
        )


@every_loss
def test_gradients_are_the_formulas(line):
    with jax.enable_x64():
        e, head, batch = drawn(line, 3)
        w, loss = head["kernel"], make(line)
        _, g, g_head, _ = dense(loss, e, head, batch)
        way, turn = np.random.default_rng(1).normal(size=e.shape), np.sin(9 * w)
        ends = [
            dense(loss, e + h * way, {"kernel": w + h * turn}, batch)[0]
            for h in (1e-6, -1e-6)
        ]
        slope = (g * way).sum() + (g_head["kernel"] * turn).sum()
        assert float(slope) == pytest.approx(float(ends[0] - ends[1]) / 2e-6, rel=1e-5)


@every_loss
def test_a_network_that_is_its_teacher_has_nothing_to_learn(line):
    with jax.enable_x64():
        e, head, batch = drawn(line)
        batch |= {"teacher": e, "teacher_head": head["kernel"]}
        loss, g, g_head, metrics = dense(make(line), e, head, batch)
        assert abs(loss) < 1e-12
        assert max(abs(g).max(), abs(g_head["kernel"]).max()) < 1e-7
        told = metrics.get("agreement", metrics.get("teacher_cosine"))
        assert float(told) == pytest.approx(1)


@pytest.mark.parametrize("line", [c for c in CASES if c.startswith("relational")])
def test_relations_do_not_change_where_all_is_turned_and_stretched(line):
    with jax.enable_x64():
        e, head, batch = drawn(line)
        turn = np.linalg.qr(np.random.default_rng(2).normal(size=(D, D)))[0]
        moved = 3.7 * e @ turn + (0.0 if "unit" in line else 0.4)
        want = dense(make(line), e, head, batch)[0]
        got = dense(make(line), moved, head, batch)[0]
        assert float(got) == pytest.approx(float(want), rel=1e-12)
        # and a teacher that is this network, turned, in a larger space
        same = {**batch, "teacher": np.pad(moved, ((0, 0), (0, 2)))}
        assert abs(dense(make(line), e, head, same)[0]) < 1e-12


def test_three_images_by_hand():
    # distances 3 4 5 and 1 1 sqrt 2, means 4 and (2 + sqrt 2) / 3; a right angle each
    e = np.array([[0.0, 0], [3, 0], [0, 4]])
    teacher = np.array([[0.0, 0], [1, 0], [0, 1]])
    batch, mu = {"label": np.zeros(3, np.int32), "teacher": teacher}, (2 + 2**0.5) / 3
    gaps = np.array([3 / 4 - 1 / mu, 4 / 4 - 1 / mu, 5 / 4 - 2**0.5 / mu])
    turns = np.array([0, 3 / 5 - 0.5**0.5, 4 / 5 - 0.5**0.5])
    with jax.enable_x64():
        *_, metrics = dense(make("relational"), e, {}, batch)
    np.testing.assert_allclose(metrics["distance"], (gaps**2 / 2).mean())
    np.testing.assert_allclose(metrics["angle"], 2 * (turns**2 / 2).mean())


@every_loss
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_coinciding_rows_stay_finite(line, dtype):
    e, head, batch = drawn(line)
    head, batch = jax.tree.map(
        lambda x: x.astype(np.float32) if x.dtype == float else x, (head, batch)
    )
    for rows in (np.ones_like(e), np.zeros_like(e)):
        found = dense(make(line), jnp.asarray(rows, dtype), head, batch)
        for x in jax.tree.leaves(found):
            assert np.isfinite(x.astype(float)).all()


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: distill.Loss(C), "is a family; wanted one of it"),
        (lambda: make("relational(angle=-1.0)"), "wanted weights from 0"),
        (lambda: make("logits(temperature=0.0)"), "wanted both positive"),
        (
            lambda: dense(make("cosine"), *drawn("relational")),
            "7 numbers for an image, the network 5; wanted a network with dim=7",
        ),
        (
            lambda: dense(make("logits"), drawn("logits")[0], {}, drawn("logits")[2]),
            "got 0 rows here and 1024 of the teacher",
        ),
    ],
)
def test_what_does_not_fit_is_refused(build, words):
    with jax.enable_x64(), pytest.raises(ValueError, match=words):
        build()
