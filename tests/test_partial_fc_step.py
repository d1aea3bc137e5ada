"""Partial FC's step: rate 1 is the full head, and only sampled rows are touched."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small
import tiny

from jaxface import assembly, experiment, spec
from jaxface.losses import partial_fc, softmax
from jaxface.train import optim
from jaxface.train import step as steps

# --- what a step does ---------------------------------------------------------

# Every optimizer that may see a part of an array, by listing.
ELEMENTWISE = [
    name for name, make in spec.public(optim).items() if hasattr(make, "elementwise")
]


@pytest.mark.parametrize("line", ELEMENTWISE)
def test_rate_one_is_the_full_head(line):
    with jax.enable_x64(True):
        rule, tx = "arcface(m=0.3)", small.make_tx(line)
        full = softmax.Loss(num_classes=small.C, margin=rule, scale=8.0)
        want, seen = small.train(full, tx, 4)
        assert want.head["kernel"].dtype == np.float64
        got, found = small.train(small.loss_of(1.0, rule), tx, 4)
        small.close(found, seen)
        small.close(got.params, want.params)
        small.close(
            small.rows_of(got), small.rows_of(want)
        )  # padding decays there, and rests here


@pytest.mark.parametrize("line", [*ELEMENTWISE, "sgd(nesterov=True)"])
def test_rows_that_were_not_sampled_do_not_change_a_bit(line):
    with jax.enable_x64(True):
        loss, tx = small.loss_of(0.02), small.make_tx(line)
        first = small.start(loss, tx)
        first = first.replace(  # moments that decay would show in
            opt_state=jax.tree.map(lambda x: x + 1 if x.ndim else x, first.opt_state)
        )
        moved = np.zeros(small.SIZE, bool)
        for t, batch in enumerate(small.batches(3)):
            key = jax.random.split(steps.step_key(first.replace(step=t)))[1]
            ids = small.sampled_ids(loss, batch["label"], key)
            moved[ids[ids < small.SIZE]] = True
        end, _ = small.train(loss, tx, 3, state=first)
        pairs = zip(
            small.rows_of(jax.device_get(first)), small.rows_of(end), strict=True
        )
        assert 100 < moved.sum() < small.C / 5
        for before, after in pairs:
            np.testing.assert_array_equal((before != after).any(1), moved[: small.C])


MESHES_OF = [(0.02, "jit", 8), (0.02, "pmap", 8), (0.0, "jit", 8), (0.6, "jit", 2)]


@pytest.mark.parametrize(("rate", "how", "devices"), MESHES_OF)
def test_one_device_is_many(rate, how, devices):
    with jax.enable_x64(True):
        loss, tx = small.loss_of(rate), small.make_tx()
        got = small.train(loss, tx, how=how, devices=devices, clip=0.01)
        small.close(got, small.train(loss, tx, clip=0.01))


@pytest.mark.slow
def test_sub_centres_travel_with_their_class():
    with jax.enable_x64(True):
        loss, tx = small.loss_of(0.02, centers=3, smoothing=0.1), small.make_tx()
        want = small.train(_Dense(loss), optax.sgd(0.5), 2)
        small.close(small.train(loss, optax.sgd(0.5), 2), want)
        want = small.train(loss, tx)
        small.close(small.train(loss, tx, how="jit"), want)


@pytest.mark.slow
def test_bfloat16_products_train_float32_rows():
    ends = {}
    for dtype in ("float32", "bfloat16"):
        loss, tx = small.loss_of(0.1, dtype=dtype), small.make_tx()
        ends[dtype], _ = small.train(loss, tx, how="jit")
        assert {x.dtype for x in small.rows_of(ends[dtype])} == {np.dtype("float32")}
    first = small.rows_of(jax.device_get(small.start(loss, tx)))[0]
    moves = [small.rows_of(end)[0] - first for end in ends.values()]
    error = np.linalg.norm(moves[1] - moves[0]) / np.linalg.norm(moves[0])
    assert 1e-5 < error < 0.02  # rounded, by 2^-8 and less


@pytest.mark.slow
def test_parts_of_a_batch_share_one_sample():
    # Examples of a softmax rule do not meet, so the parts' mean is the whole's.
    with jax.enable_x64(True):
        loss, tx = small.loss_of(0.02), small.make_tx()
        want, _ = small.train(loss, tx)
        for how in ("dense", "jit"):
            got, _ = small.train(loss, tx, how=how, devices=2, microbatches=4)
            small.close(got, want)


def test_the_head_is_clipped_shard_by_shard():
    with jax.enable_x64(True):
        loss, tx, clip = small.loss_of(0.1), optax.sgd(1.0), 0.05
        first = jax.device_get(small.start(loss, tx))
        free, clipped = (small.train(loss, tx, 1, clip=c)[0] for c in (0.0, clip))
        shards = [
            (state.head["kernel"] - first.head["kernel"]).reshape(8, -1)
            for state in (free, clipped)
        ]
        norms = np.linalg.norm(shards[0], axis=1, keepdims=True)
        assert (norms > clip).any()
        assert (norms < clip).any()
        small.close(
            shards[1], shards[0] * np.minimum(1, clip / np.maximum(norms, 1e-9))
        )
        small.close(clipped.params, free.params)


@pytest.mark.slow
@pytest.mark.parametrize("line", ["sgd", "adamw"])
def test_no_second_copy_of_the_head_is_made(line):
    count = 100_000
    loss, tx = partial_fc.Loss(num_classes=count, rate=0.01), small.make_tx(line)
    init = functools.partial(
        steps.init_state,
        small.Net(),
        loss,
        tx,
        seed=0,
        shape=(2, 2, 3),
        num_classes=count,
    )
    step, state = small.compiled(loss, tx, jax.jit(init)(), "jit")
    batch = jax.tree.map(jnp.asarray, next(small.batches(1)))
    memory = step.lower(state, batch).compile().memory_analysis()
    head = state.head["kernel"].nbytes // 8
    assert memory.alias_size_in_bytes >= 2 * head  # weights and moments, in place
    assert memory.temp_size_in_bytes < head / 2


def test_training_by_rows_is_training_by_zeros_elsewhere():
    # Handed the whole head, `share` samples too, and autodiff gives zeros elsewhere.
    with jax.enable_x64(True):
        loss, tx = small.loss_of(0.05), optax.sgd(0.5)
        got, _ = small.train(loss, tx, 2, how="jit")
        want, _ = small.train(_Dense(loss), tx, 2)
        small.close(got, want)


class _Dense:
    """Hides from the step that a loss can sample."""

    def __init__(self, loss):
        self.init, self.init_margin = loss.init, loss.init_margin
        self.share = loss.share


def test_resumed_is_not_interrupted():
    loss, tx = small.loss_of(0.05), small.make_tx()
    whole, _ = small.train(loss, tx, 4)
    half, _ = small.train(loss, tx, 2)
    got, _ = small.train(loss, tx, 2, state=jax.tree.map(jnp.asarray, half), skip=2)
    jax.tree.map(np.testing.assert_array_equal, got, whole)


def test_wrong_arguments_are_refused():
    for rate in (-0.1, 1.1):
        with pytest.raises(ValueError, match=rf"rate is {rate}; wanted 0"):
            small.loss_of(rate)
    with pytest.raises(ValueError, match=r"shards is 3; wanted a divisor of 1024"):
        small.loss_of(shards=3)
    with pytest.raises(KeyError, match=r"margin 'arcfac' unknown"):
        small.loss_of(rule="arcfac")
    with pytest.raises(ValueError, match=r"8 devices cannot share 4 class shards"):
        small.train(small.loss_of(shards=4), small.make_tx(), 1, how="jit")


# --- in a whole run -----------------------------------------------------------


def recipe(**changes):
    c = tiny.recipe()
    c.train.length = c.eval.every = c.checkpoint.every = "6 steps"
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return c


@pytest.mark.slow
def test_a_run_is_softmax_where_the_batch_asks_for_all_classes(tmp_path):
    curves = []
    for name in ("softmax(scale=16.0)", "partial_fc(rate=0.1, scale=16.0)"):
        run = assembly.build(recipe(loss__name=name))
        experiment.train(run, tmp_path / name[:4])
        rows = (tmp_path / name[:4] / "metrics.jsonl").read_text().splitlines()
        curves.append([json.loads(r)["loss"] for r in rows if "loss" in json.loads(r)])
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss__name": "partial_fc(rate=2.0)"}, "rate is 2.0; wanted 0"),
        ({"loss__name": "partial_fc(shards=4)"}, "8 devices cannot share 4 class sh"),
        ({"loss__name": "softmax", "optim__head_clip": 1.0}, "head_clip is 1.0, a no"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        assembly.build(recipe(**changes))


def test_an_optimizer_over_whole_arrays_is_refused(monkeypatch):
    monkeypatch.setattr(optim.sgd, "elementwise", False)
    with pytest.raises(ValueError, match="partial_fc updates the sampled rows alone"):
        assembly.build(recipe(loss__name="partial_fc"))
