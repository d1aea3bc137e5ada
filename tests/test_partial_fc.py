"""Partial FC: who is sampled, how likely, what a step touches, and r = 1."""

import functools
import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxface import parallel, spec
from jaxface.losses import margin, partial_fc, softmax
from jaxface.train import optim, sampled, schedules
from jaxface.train import step as steps

B, C, D, SIZE = 8, 2500, 4, 3072  # SIZE: the head's rows, padded
MESHES = {"dense": None, "jit": "data", "pmap": "data"}


class Net(nn.Module):
    """One dense layer, as good as any backbone for the head's sake."""

    @nn.compact
    def __call__(self, x, train=False, keys=None):
        return nn.Dense(D)(x.reshape(len(x), -1))


def batches(count):
    for t in range(count):
        rng = np.random.default_rng(t)
        yield {
            "image": rng.normal(size=(B, 2, 2, 3)),
            "label": rng.integers(0, C, B).astype(np.int32),
            "position": np.arange(t * B, (t + 1) * B, dtype=np.uint32),
        }


def exact(state):
    """A state in float64."""
    return jax.tree.map(
        lambda x: x.astype(float) if x.dtype == jnp.float32 else x, state
    )


def start(loss, tx):
    init = functools.partial(
        steps.init_state, Net(), loss, tx, seed=0, shape=(2, 2, 3), num_classes=C
    )
    return jax.jit(lambda: exact(init()))()


def compiled(loss, tx, state, how="dense", devices=8, **kwargs):
    """The jitted step and the place of its state."""
    axis = MESHES[how]
    update = steps.make_update(tx)
    grads_of = functools.partial(steps.make_grads, Net(), axis=axis)
    if isinstance(loss, partial_fc.Loss):
        body = sampled.make_body(
            loss, make_grads=grads_of, update=update, axis=axis, **kwargs
        )
    else:

        def body(state, batch):
            g, state, metrics = grads_of(loss)(state, batch)
            return update(g, state), metrics

    if axis is None:
        return jax.jit(body), state
    mesh = parallel.make_mesh(axis=axis, devices=jax.devices()[:devices])
    specs = parallel.state_specs(state, axis=axis)
    state = jax.device_put(state, parallel.shardings(specs, mesh))
    step = parallel.compile_body(body, specs=specs, mesh=mesh, axis=axis, how=how)
    return step, state


def train(loss, tx, count=3, how="dense", state=None, skip=0, **kwargs):
    state = start(loss, tx) if state is None else state
    step, state = compiled(loss, tx, state, how, **kwargs)
    seen = []
    for batch in itertools.islice(batches(skip + count), skip, None):
        state, metrics = step(state, batch)
        seen.append(metrics)
    return jax.device_get((state, seen))


def make_tx(line="sgd(momentum=0.9, weight_decay=0.01)"):
    call = spec.parse_one(line)
    rate = schedules.polynomial(peak=0.5, warmup_steps=0, total_steps=9)
    return spec.bind(spec.member(optim, call, kind="optimizer"), call)(lr=rate)


def loss_of(rate=0.1, rule="cosface(m=0.2)", **kwargs):
    return partial_fc.Loss(num_classes=C, margin=rule, scale=8.0, rate=rate, **kwargs)


def close(a, b, tolerance=1e-12):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=tolerance), a, b
    )


def rows_of(tree):
    """The arrays with rows for classes, real ones only."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [x[:C] for path, x in leaves if parallel.of_classes(path, x)]


@functools.partial(jax.jit, static_argnums=0)
def _sample(loss, label, key):
    return loss.sample(label, key=key, axis=None).id


def sampled_ids(loss, label, key):
    return np.asarray(_sample(loss, label, key))


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
    w, e = rng.normal(size=(classes, D)), rng.normal(size=(3, D))
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
        close(list(ours), want)


# --- what a step does ---------------------------------------------------------

OPTIMIZERS = ["sgd(momentum=0.9, weight_decay=0.01)", "adamw(weight_decay=0.1)"]


@pytest.mark.parametrize("line", OPTIMIZERS)
def test_rate_one_is_the_full_head(line):
    with jax.enable_x64(True):
        rule, tx = "arcface(m=0.3)", make_tx(line)
        full = softmax.Loss(num_classes=C, margin=rule, scale=8.0)
        want, seen = train(full, tx, 4)
        assert want.head["kernel"].dtype == np.float64
        got, found = train(loss_of(1.0, rule), tx, 4)
        close(found, seen)
        close(got.params, want.params)
        close(rows_of(got), rows_of(want))  # padding decays there, and rests here


@pytest.mark.parametrize("line", [*OPTIMIZERS, "sgd(momentum=0.5, nesterov=True)"])
def test_rows_that_were_not_sampled_do_not_change_a_bit(line):
    with jax.enable_x64(True):
        loss, tx = loss_of(0.02), make_tx(line)
        first = start(loss, tx)
        first = first.replace(  # moments that decay would show in
            opt_state=jax.tree.map(lambda x: x + 1 if x.ndim else x, first.opt_state)
        )
        moved = np.zeros(SIZE, bool)
        for t, batch in enumerate(batches(3)):
            key = jax.random.split(steps.step_key(first.replace(step=t)))[1]
            ids = sampled_ids(loss, batch["label"], key)
            moved[ids[ids < SIZE]] = True
        end, _ = train(loss, tx, 3, state=first)
        pairs = zip(rows_of(jax.device_get(first)), rows_of(end), strict=True)
        assert 100 < moved.sum() < C / 5
        for before, after in pairs:
            np.testing.assert_array_equal((before != after).any(1), moved[:C])


@pytest.mark.parametrize("rate", [0.0, 0.02, 0.6])
def test_one_device_is_eight(rate):
    with jax.enable_x64(True):
        loss, tx = loss_of(rate), make_tx()
        want = train(loss, tx)
        for how, devices in (("jit", 8), ("jit", 2), ("pmap", 8)):
            close(train(loss, tx, how=how, devices=devices), want)


@pytest.mark.parametrize("rule", spec.public(margin))
def test_every_rule_over_a_sample_is_a_head_of_those_classes_alone(rule):
    with jax.enable_x64(True):
        loss = partial_fc.Loss(
            num_classes=40, margin=rule, scale=8.0, rate=0.5, shards=1
        )
        rng = np.random.default_rng(0)
        batch = next(batches(1)) | {"label": rng.integers(0, 40, B).astype(np.int32)}
        key, e = jax.random.key(0), jnp.asarray(rng.normal(size=(B, D)))
        head = {"kernel": jnp.asarray(rng.normal(size=(1024, D)))}
        ids = sampled_ids(loss, jnp.asarray(batch["label"]), key)
        ids = np.sort(ids[ids < 40])  # all in one shard
        assert len(ids) == 20
        few = batch | {"label": np.searchsorted(ids, batch["label"])}
        plain = softmax.Loss(num_classes=20, margin=rule, scale=8.0)
        cut = {"kernel": head["kernel"][ids]}
        got, g = _value_and_grads(loss, head, e, batch, key)
        want, h = _value_and_grads(plain, cut, e, few, key)
        close(got, want)
        close(g[1:], h[1:])
        close(g[0]["kernel"][ids], h[0]["kernel"])
        assert not np.delete(np.asarray(g[0]["kernel"]), ids, 0).any()


def _value_and_grads(loss, head, e, batch, key):
    params, state = exact(loss.init_margin())

    @jax.jit
    def both(head, e, params):
        def share(head, e, params):
            out = loss.share(head, (params, state), e, batch, key=key, axis=None)
            return out[0], out[1:]

        return jax.value_and_grad(share, argnums=(0, 1, 2), has_aux=True)(
            head, e, params
        )

    return jax.device_get(both(head, e, params))


def test_training_by_rows_is_training_by_zeros_elsewhere():
    # Handed the whole head, `share` samples too, and autodiff gives zeros elsewhere.
    with jax.enable_x64(True):
        loss, tx = loss_of(0.05), optax.sgd(0.5)
        got, _ = train(loss, tx, 2, how="jit")
        want, _ = train(_Dense(loss), tx, 2)
        close(got, want)


class _Dense:
    """Hides from the step that a loss can sample."""

    def __init__(self, loss):
        self.init, self.init_margin = loss.init, loss.init_margin
        self.share = loss.share


@pytest.mark.parametrize("rate", [0.0, 0.001])
def test_positives_are_in_however_low_the_rate(rate):
    loss = loss_of(rate)
    label = jnp.asarray([7, 7, 300, 301, 302, 303, 304, 2499])  # 4 of 384 asked for
    ids = sampled_ids(loss, label, jax.random.key(0))
    assert set(np.unique(label)) <= set(ids.ravel())
    counts = (ids < C).sum(1)
    # No negatives at 0; else each shard has as many rows as the batch has images.
    assert counts.tolist() == ([6, 0, 0, 0, 0, 0, 1, 0] if rate == 0 else [8] * 7 + [0])


def test_the_sample_changes_with_step_and_seed_only():
    def of(seed, step, label):
        key = jax.random.fold_in(jax.random.key(seed), step)
        ids = sampled_ids(loss_of(0.1), jnp.asarray(label), key)
        return set(ids[ids < C].tolist())

    one = of(0, 0, [1, 2])
    assert one == of(0, 0, [2, 1])
    assert len(one & of(0, 1, [1, 2])) < len(one) / 3
    assert len(one & of(1, 0, [1, 2])) < len(one) / 3
    assert len(one) == sum(loss_of(0.1).quota(c, 2) for c in [384] * 6 + [196])


def test_resumed_is_not_interrupted():
    loss, tx = loss_of(0.05), make_tx()
    whole, _ = train(loss, tx, 4)
    half, _ = train(loss, tx, 2)
    got, _ = train(loss, tx, 2, state=jax.tree.map(jnp.asarray, half), skip=2)
    jax.tree.map(np.testing.assert_array_equal, got, whole)


def test_wrong_arguments_are_refused():
    for rate in (-0.1, 1.1):
        with pytest.raises(ValueError, match=rf"rate is {rate}; wanted 0"):
            loss_of(rate)
    with pytest.raises(ValueError, match=r"shards is 3; wanted a divisor of 1024"):
        loss_of(shards=3)
    with pytest.raises(KeyError, match=r"margin 'arcfac' unknown"):
        loss_of(rule="arcfac")
    with pytest.raises(ValueError, match=r"8 devices cannot share 4 class shards"):
        train(loss_of(shards=4), make_tx(), 1, how="jit")
