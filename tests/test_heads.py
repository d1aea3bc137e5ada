"""A head for each set: the same as separate losses, on any mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
import tiny
from jax.sharding import PartitionSpec as P

from jaxface import assembly, parallel
from jaxface.data.sources import merged
from jaxface.losses import partial_fc, softmax
from jaxface.losses.rule import facts

B, D, SETS = 16, 4, (300, 701)
C = sum(SETS)
KEY = jax.random.key(3)
RULES = {k: v for k, v in softmax.rules().items() if not facts(v).undivided}
# Statistics of the batch stay as they are, so that heads apart have the same.
STILL = {"adaface": "adaface(decay=1.0)", "curricularface": "curricularface(decay=1.0)"}


def data():
    rng = np.random.default_rng(0)
    e, w = rng.normal(size=(B, D)) * 20, rng.normal(size=(1024, D))
    y = np.r_[rng.integers(0, 300, 9), rng.integers(300, 1000, 6), 1000]
    batch = {"label": rng.permutation(y).astype(np.int32)}
    return e, w, batch | {"position": np.arange(B, dtype=np.uint32)}


def body(loss, e, w, batch, margin, axis=None):
    """(value, gradients of embeddings and weights, statistics)."""

    def share(e, w):
        head = {"kernel": w}
        out, state, _ = loss.share(head, margin, e, batch, key=KEY, axis=axis)
        return out, state

    (value, state), grads = jax.value_and_grad(share, (0, 1), has_aux=True)(e, w)
    return parallel.psum(value, axis), grads, state


run = jax.jit(body, static_argnums=0)


def apart(loss, margin):
    """The oracle: a softmax of its own for each set, over its images and rows."""
    e, w, batch = data()
    value, de, dw = 0.0, np.zeros_like(e), np.zeros_like(w)
    for first, count in zip(np.cumsum(SETS) - SETS, SETS, strict=True):
        own = (batch["label"] >= first) & (batch["label"] < first + count)
        rows = np.zeros((1024, D))
        rows[:count] = w[first : first + count]
        few = {"label": batch["label"][own] - first, "position": batch["position"][own]}
        alone = softmax.Loss(count, loss.margin, loss.scale, smoothing=loss.smoothing)
        part, (ge, gw), _ = run(alone, e[own], rows, few, margin)
        share = own.sum() / B
        value += share * part
        de[own] += share * ge
        dw[first : first + count] += share * gw[:count]
    return value, (de, dw)


QUICK = ("softmax", "arcface", "adaface", "curricularface", "mv_softmax")


@pytest.mark.parametrize(
    "rule",
    [k if k in QUICK else pytest.param(k, marks=pytest.mark.slow) for k in RULES],
)
def test_it_is_a_loss_for_each_set(rule):
    with jax.enable_x64(True):
        line = STILL.get(rule, rule)
        loss = softmax.Loss(C, line, 8.0, smoothing=0.1, sets=SETS)
        margin = loss.init_margin(dim=D)
        value, grads, _ = run(loss, *data(), margin)
        small.close((value, grads), apart(loss, margin))


@pytest.mark.parametrize("rule", ["adaface", "curricularface"])
def test_statistics_are_of_all_sets_together(rule):
    with jax.enable_x64(True):
        for_each = softmax.Loss(C, rule, 8.0, sets=SETS)
        margin = for_each.init_margin(dim=D)
        got, want = (
            run(x, *data(), margin)[2] for x in (for_each, softmax.Loss(C, rule))
        )
        small.close(got, want)


@pytest.mark.parametrize("rule", ["softmax", "adaface", "mv_softmax"])
def test_it_never_sees_the_mesh(rule):
    with jax.enable_x64(True):
        loss = softmax.Loss(C, rule, 8.0, smoothing=0.1, sets=SETS)
        margin, rows = loss.init_margin(dim=D), P("data")
        sharded = jax.shard_map(
            functools.partial(body, loss, axis="data"),
            mesh=parallel.make_mesh(),
            in_specs=(rows, rows, rows, P()),
            out_specs=(P(), (rows, rows), P()),
            check_vma=False,
        )
        small.close(jax.jit(sharded)(*data(), margin), run(loss, *data(), margin))


def test_partial_fc_of_all_rows_is_the_full_head():
    with jax.enable_x64(True):
        e, w, batch = data()
        full = softmax.Loss(C, "cosface", 8.0, sets=SETS)
        few = partial_fc.Loss(C, "cosface", 8.0, sets=SETS, rate=1.0)
        margin = full.init_margin(dim=D)
        small.close(run(few, e, w, batch, margin), run(full, e, w, batch, margin))


@pytest.mark.parametrize("how", ["jit", "pmap"])
def test_partial_fc_with_sets_is_the_same_on_any_mesh(how):
    with jax.enable_x64(True):
        loss, tx = small.loss_of(0.05, sets=(1000, 1500)), small.make_tx()
        small.close(small.train(loss, tx, 2, how=how), small.train(loss, tx, 2))


def test_sampled_classes_of_other_sets_stay_where_they_are():
    loss = partial_fc.Loss(C, "cosface", 8.0, sets=SETS, rate=0.5)
    e, w, batch = data()
    batch["label"] = np.zeros(B, np.int32)  # of the first set, all of them
    _, (_, dw), _ = run(loss, jnp.asarray(e), jnp.asarray(w), batch, ({}, {}))
    moved = np.asarray(dw).any(1)
    assert moved[:300].sum() > 50
    assert not moved[300:].any()


def recipe(**shared):
    few = "synthetic(identities=3, per_identity=4, size=16, start={})"
    sets = {"a": few.format(0), "b": few.format(3)}
    c = tiny.recipe()
    c.data.source = f"merged(sets={sets!r})"
    c.loss.heads = "per_set"
    return c


def test_one_line_of_a_config_makes_heads_of_merged_sets():
    built = assembly.build(recipe())
    assert isinstance(built.source, merged.Source)
    assert built.loss.sets == (3, 3)
    state, batch = built.first_state(), next(built.batches(built.loader(0)))
    _, metrics = built.step(state, batch)
    assert np.isfinite(metrics["loss"])


def test_what_cannot_have_them_is_refused_with_the_reason(tmp_path):
    c = recipe()
    c.loss.margin = "adacos"
    with pytest.raises(ValueError, match="it has one scale, made of the number"):
        assembly.build(c)
    c.loss.margin, c.loss.name = "", "binary.uniface()"
    with pytest.raises(ValueError, match="has one head; wanted loss 'softmax'"):
        assembly.build(c)
    c = recipe()
    c.data.source = "synthetic(identities=6, per_identity=4, size=16)"
    with pytest.raises(ValueError, match=r"data\.source is of no sets"):
        assembly.build(c)
    with pytest.raises(ValueError, match="wanted the number of classes of each set"):
        softmax.Loss(5, sets=(2, 2))


def test_a_person_of_two_sets_has_no_head_of_one(tmp_path):
    c = recipe()
    path = tmp_path / "shared.json"
    path.write_text('[["a/0", "b/2"]]')
    c.data.source = c.data.source[:-1] + f", shared={str(path)!r})"
    with pytest.raises(ValueError, match=r"people of data\.source are in several"):
        assembly.build(c)
