"""Partial FC's sample: who is in, how likely, and what the loss over it is."""

import functools
import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from jaxface.losses import partial_fc, softmax

# --- the law of the sample ----------------------------------------------------


def chosen(sequence, quota, none=8):
    slots = max(quota, 1)
    out = partial_fc.first_distinct(
        jnp.asarray(sequence), quota, none=none, slots=slots
    )
    return tuple(int(x) for x in out if x < none)


def test_first_distinct_by_hand():
    assert chosen([5, 8, 2, 5, 5, 2, 0, 7, 1], 4) == (0, 2, 5, 7)
    assert chosen([5, 8, 5], 3) == (5,)
    assert chosen([8, 8], 2) == ()
    assert chosen([3, 1, 2], 0) == ()


@pytest.mark.parametrize(("classes", "positives", "k"), [(5, (3, 1, 3), 4), (4, (), 2)])
def test_all_sequences_of_draws_give_every_set_as_often(classes, positives, k):
    # Every sequence of 5 uniform draws is as likely as any other: count them all.
    draws = np.array(list(itertools.product(range(classes), repeat=5)), np.int32)
    given = np.broadcast_to(np.array(positives, np.int32), (len(draws), len(positives)))
    sequences = jnp.asarray(np.concatenate([given, draws], 1))
    pick = functools.partial(partial_fc.first_distinct, none=classes, slots=k)
    sets = jax.jit(jax.vmap(lambda s: pick(s, k)))(sequences)
    full = Counter(tuple(s) for s in np.asarray(sets).tolist() if max(s) < classes)
    others = set(range(classes)) - set(positives)
    m = k - len(set(positives))
    want = {tuple(sorted({*positives, *s})) for s in itertools.combinations(others, m)}
    assert set(full) == want
    assert len(set(full.values())) == 1  # as often; the rest draw on, by symmetry too


@pytest.mark.parametrize("quota", [3, 6])  # by draws, and by a permutation
def test_sets_are_as_likely_over_keys(quota):
    size, positives, keys = 8, (2, 5), 20_000
    pick = functools.partial(
        partial_fc.sample_shard,
        positives=jnp.array([5, 8, 2], jnp.int32),
        real=jnp.asarray(7),
        quota=jnp.asarray(quota),
        size=size,
        slots=quota,
    )
    sets = jax.jit(jax.vmap(pick))(jax.random.split(jax.random.key(0), keys))
    counts = Counter(tuple(s) for s in np.asarray(sets).tolist())
    others = set(range(7)) - set(positives)
    want = list(itertools.combinations(others, quota - 2))
    assert {tuple(sorted({*positives, *s})) for s in want} == set(counts)
    expected = keys / len(want)
    chi = sum((n - expected) ** 2 / expected for n in counts.values())
    # 99.99 % of chi-square with 4 degrees of freedom (both quotas have 5 sets)
    assert len(want) == 5
    assert chi < 23.5


def test_each_negative_is_in_with_its_probability():
    keys, k, real = 4000, 12, 37
    pick = functools.partial(
        partial_fc.sample_shard,
        positives=jnp.array([0, 3, 3], jnp.int32),
        real=jnp.asarray(real),
        quota=jnp.asarray(k),
        size=40,
        slots=k,
    )
    sets = np.asarray(jax.vmap(pick)(jax.random.split(jax.random.key(1), keys)))
    share = np.bincount(sets.ravel(), minlength=41) / keys
    assert share[[0, 3]].tolist() == [1, 1]
    assert not share[real:].any()  # padding
    p = (k - 2) / (real - 2)
    deviation = np.sqrt(p * (1 - p) / keys)
    others = np.delete(share[:real], [0, 3])
    assert np.abs(others - p).max() < 4.5 * deviation


def test_the_mean_over_samples_is_the_mean_of_subset_gradients():
    classes, k, label = 6, 4, [2, 5, 2]
    rng = np.random.default_rng(0)
    w, e = rng.normal(size=(classes, small.D)), rng.normal(size=(3, small.D))
    loss = partial_fc.Loss(num_classes=classes, margin="softmax")

    def gradient(ids):  # of the rows, put back where they belong
        def share(w, e):
            keys = jax.random.split(jax.random.key(0), 3)
            given = (e, jnp.asarray(label), keys)
            return loss.full.on_rows(w[ids], ids, given, ({}, {}), axis=None)[0]

        return jax.grad(share, argnums=(0, 1))(jnp.asarray(w), jnp.asarray(e))

    def oracle(subset):
        gw, ge = np.zeros_like(w), np.zeros_like(e)
        for x, y, g in zip(e, label, ge, strict=True):
            p = np.exp([w[c] @ x for c in subset])
            for c, share in zip(subset, p / p.sum(), strict=True):
                gw[c] += (share - (c == y)) * x / len(e)
                g += (share - (c == y)) * w[c] / len(e)
        return gw, ge

    with jax.enable_x64(True):
        orders = np.array(list(itertools.permutations(range(classes))), np.int32)
        given = np.concatenate([np.tile(label, (len(orders), 1)), orders], 1)
        pick = functools.partial(partial_fc.first_distinct, none=classes, slots=k)
        sets = jax.vmap(lambda s: pick(s, k))(jnp.asarray(given, jnp.int32))
        ours = jax.tree.map(lambda g: g.mean(0), jax.vmap(gradient)(sets))
        subsets = [(2, 5, *s) for s in itertools.combinations((0, 1, 3, 4), k - 2)]
        want = [np.mean(g, 0) for g in zip(*map(oracle, subsets), strict=True)]
        small.close(list(ours), want)


@pytest.mark.parametrize("rate", [0.0, 0.001])
def test_positives_are_in_however_low_the_rate(rate):
    loss = small.loss_of(rate)
    label = jnp.asarray([7, 7, 300, 301, 302, 303, 304, 2499])  # 4 of 384 asked for
    ids = small.sampled_ids(loss, label, jax.random.key(0))
    assert set(np.unique(label)) <= set(ids.ravel())
    counts = (ids < small.C).sum(1)
    # No negatives at 0; else each shard has as many rows as the batch has images.
    assert counts.tolist() == ([6, 0, 0, 0, 0, 0, 1, 0] if rate == 0 else [8] * 7 + [0])


def test_the_sample_changes_with_step_and_seed_only():
    def of(seed, step, label):
        key = jax.random.fold_in(jax.random.key(seed), step)
        ids = small.sampled_ids(small.loss_of(0.1), jnp.asarray(label), key)
        return set(ids[ids < small.C].tolist())

    one = of(0, 0, [1, 2])
    assert one == of(0, 0, [2, 1])
    assert len(one & of(0, 1, [1, 2])) < len(one) / 3
    assert len(one & of(1, 0, [1, 2])) < len(one) / 3
    assert len(one) == sum(small.loss_of(0.1).quota(c, 2) for c in [384] * 6 + [196])


class _Cut(softmax.Loss):
    """A head of few classes whose rule is told that there are 40."""

    def _ctx(self, *args):
        return super()._ctx(*args)._replace(classes=40)


QUICK = ("softmax", "arcface", "adacos", "curricularface")  # each another reduction
MORE = {"centers": 3, "smoothing": 0.1, "filter": 0.3}


@pytest.mark.parametrize(
    ("rule", "more"),
    [
        *((rule, MORE) for rule in QUICK),
        *((rule, {}) for rule in QUICK),
        *(
            pytest.param(rule, {}, marks=pytest.mark.slow)
            for rule in softmax.rules()
            if rule not in QUICK
        ),
    ],
)
def test_every_rule_over_a_sample_is_a_head_of_those_classes_alone(rule, more):
    if rule == "softmax":
        more = {k: v for k, v in more.items() if k != "filter"}  # refused with it
    k = more.get("centers", 1)
    with jax.enable_x64(True):
        given = {"margin": rule, "scale": 8.0, **more}
        loss = partial_fc.Loss(num_classes=40, rate=0.5, shards=1, **given)
        rng = np.random.default_rng(0)
        label = rng.integers(0, 40, small.B).astype(np.int32)
        batch = next(small.batches(1)) | {"label": label}
        key, e = jax.random.key(0), jnp.asarray(rng.normal(size=(small.B, small.D)))
        head = {"kernel": jnp.asarray(rng.normal(size=(1024 * k, small.D)))}
        ids = small.sampled_ids(loss, jnp.asarray(label), key)
        ids = np.sort(ids[ids < 40])  # all in one shard
        assert len(ids) == 20
        rows = (ids[:, None] * k + np.arange(k)).ravel()
        few = batch | {"label": np.searchsorted(ids, label)}
        cut = {"kernel": head["kernel"][rows]}
        got, g = _value_and_grads(loss, head, e, batch, key)
        want, h = _value_and_grads(_Cut(num_classes=20, **given), cut, e, few, key)
        small.close((got, g[1:]), (want, h[1:]))
        small.close(g[0]["kernel"][rows], h[0]["kernel"])
        assert not np.delete(np.asarray(g[0]["kernel"]), rows, 0).any()


def _value_and_grads(loss, head, e, batch, key):
    params, state = small.exact(loss.init_margin(dim=8))

    @jax.jit
    def both(head, e, params):
        def share(head, e, params):
            out = loss.share(head, (params, state), e, batch, key=key, axis=None)
            return out[0], out[1:]

        return jax.value_and_grad(share, argnums=(0, 1, 2), has_aux=True)(
            head, e, params
        )

    return jax.device_get(both(head, e, params))
