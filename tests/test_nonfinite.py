"""Steps that are not finite: left out bit for bit, counted, gone back from."""

import dataclasses
import functools
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
import tiny
from jax.sharding import PartitionSpec as P

from jaxface import assembly, checkpoint, experiment, parallel
from jaxface.losses import softmax
from jaxface.train import guard, loop, nonfinite, sampled
from jaxface.train import step as steps

SKIP = nonfinite.skip(after=3)
TX = small.make_tx("adamw()")
LOSSES = {
    "whole": softmax.Loss(num_classes=small.C, margin="adaface", scale=8.0),
    "sampled": small.loss_of(rule="adaface"),
}


def make(name, how, policy=SKIP):
    """A state with average and statistics, and its step on eight devices or none."""
    loss, axis = LOSSES[name], small.MESHES[how]
    given = {"seed": 0, "shape": (2, 2, 3), "num_classes": small.C, "ema": 0.9}
    init = functools.partial(steps.init_state, small.Net(), loss, TX, policy=policy)
    state = jax.jit(lambda: init(**given))()
    grads_of = functools.partial(
        steps.make_grads, small.Net(), axis=axis, policy=policy, clip=1.0
    )
    update = steps.make_update(TX, ema=0.9, policy=policy)
    if name == "sampled":
        body = sampled.make_body(loss, make_grads=grads_of, update=update, axis=axis)
    else:

        def body(state, batch):
            g, state, metrics = grads_of(loss)(state, batch)
            return update(g, state), metrics

    if how == "dense":
        return state, jax.jit(body)
    mesh = parallel.make_mesh()
    specs = parallel.state_specs(state, axis=axis)
    state = jax.device_put(state, parallel.shardings(specs, mesh))
    return state, parallel.compile_body(
        body, specs=specs, mesh=mesh, axis=axis, how=how
    )


def batches(bad=()):
    """Batches of float32; in bad ones a single example of the last device is NaN."""
    for t, batch in enumerate(small.batches(6)):
        image = batch["image"].astype(np.float32)
        if t in bad:
            image[-1, 0, 0, 0] = np.nan
        yield batch | {"image": image}


@pytest.mark.parametrize(
    ("name", "how"),
    [("whole", "dense"), ("whole", "jit"), ("sampled", "jit"), ("sampled", "pmap")],
)
def test_a_step_left_out_changes_no_bit_but_the_step_and_the_counts(name, how):
    state, step = make(name, how)
    seen = []
    for t, batch in enumerate(batches(bad=(1, 2, 4))):
        before = jax.device_get(state)
        state, metrics = step(state, batch)
        after = jax.device_get(state)
        seen.append((int(metrics["skipped"]), int(metrics["in_row"])))
        same = after.replace(step=before.step, faults=before.faults)
        equal = jax.tree.map(np.array_equal, before, same)
        assert all(jax.tree.leaves(equal)) == (t in (1, 2, 4))
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(after))
    assert seen == [(0, 0), (1, 1), (2, 2), (2, 0), (3, 1), (3, 0)]
    assert int(after.step) == 6


def test_a_run_without_faults_is_the_run_that_knows_none():
    ends = []
    for policy in (nonfinite.stop(), SKIP, nonfinite.rollback()):
        state, step = make("whole", "dense", policy)
        for batch in batches():
            state, metrics = step(state, batch)
        assert ("skipped" in metrics) == policy.skips
        ends.append(jax.device_get((state.params, state.head, state.opt_state)))
    for end in ends[1:]:
        small.close(end, ends[0], 1e-5)


def test_one_device_with_a_bad_row_makes_all_of_them_leave_out():
    fields = dataclasses.fields(steps.TrainState)
    state = steps.TrainState(**{f.name: {} for f in fields})
    state = state.replace(faults=jax.tree.map(jnp.asarray, guard.first(SKIP)))

    def judge(rows):
        g = {"head": rows, "params": jnp.ones(1), "margin": {}}
        told = {"loss": jnp.float32(1), "norm": jnp.float32(1), "policy": SKIP}
        return guard.judged(state, state, g=g, axis="data", **told)[1]["in_row"][None]

    split = {"in_specs": P("data"), "out_specs": P("data"), "check_vma": False}
    every = jax.jit(jax.shard_map(judge, mesh=parallel.make_mesh(), **split))
    for value in (np.nan, np.inf, -np.inf, 1e30, 1.0):
        rows = np.ones((8, 3), np.float32)
        rows[5, 1] = value
        assert every(rows).tolist() == [int(value != 1.0)] * 8


def test_a_rollback_lowers_the_rate_of_every_update():
    policy = nonfinite.rollback(factor=0.25)
    moved = []
    for rollbacks in (0, 1, 2):
        state, step = make("whole", "dense", policy)
        before = jax.device_get(state.head["kernel"])
        counts = state.faults | {"rollbacks": jnp.int32(rollbacks)}
        state, metrics = step(state.replace(faults=counts), next(batches()))
        assert float(metrics["lr_factor"]) == 0.25**rollbacks
        moved.append(jax.device_get(state.head["kernel"]) - before)
    for n in (1, 2):
        np.testing.assert_allclose(moved[n], moved[0] * 0.25**n, atol=1e-7)


@pytest.mark.parametrize(
    ("line", "error", "words"),
    [
        ("skp", KeyError, "policy 'skp' unknown; did you mean 'skip'"),
        ("skip(after=0)", ValueError, "after is 0; wanted 1 or more"),
        ("rollback(factor=2)", ValueError, "factor is 2; wanted above 0, up to 1"),
        ("rollback(k=2)", ValueError, r"rollback takes \(after, factor, times\)"),
    ],
)
def test_an_unknown_policy_is_refused(line, error, words):
    c = tiny.recipe()
    c.train.nonfinite = line
    with pytest.raises(error, match=words):
        assembly.build(c)


def run_of(line, length=12):
    c = tiny.recipe()
    c.train.nonfinite, c.mesh.devices = line, 1
    c.train.length = f"{length} steps"
    return assembly.build(c)


def rows(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()

    def refused(name):
        raise AssertionError(f"{name} is no JSON")

    return [json.loads(line, parse_constant=refused) for line in lines]


@pytest.fixture
def spoilt(monkeypatch):
    """Make the images of given steps NaN; a function of them: until how many times."""
    real = loop.run

    def spoil(at, *, times=10**9):
        left = {step: times for step in at}

        def run(state, *, batches, start, **kwargs):
            def worse():
                for t, batch in enumerate(batches, start + 1):
                    if left.get(t, 0) > 0:
                        left[t] -= 1
                        batch = batch | {"image": batch["image"] * jnp.nan}
                    yield batch

            return real(state, batches=worse(), start=start, **kwargs)

        monkeypatch.setattr(loop, "run", run)

    return spoil


def test_skipped_steps_are_counted_in_rows_and_told(tmp_path, spoilt, caplog):
    spoilt((3, 8, 9))
    with caplog.at_level(logging.WARNING):
        state = experiment.train(run_of("skip"), tmp_path)
    found = [r for r in rows(tmp_path) if "skipped" in r]
    assert [r["skipped"] for r in found] == [0, 0, 1, 1, 1, 1, 1, 2, 3, 3, 3, 3]
    assert ["loss" in r for r in found] == [t not in (3, 8, 9) for t in range(1, 13)]
    assert int(state.faults["skipped"]) == 3
    rates = [float(run_of("skip").schedule(t)) for t in range(9)]  # of the updates done
    assert [r["lr"] for r in found if "loss" in r] == pytest.approx(rates)
    assert "step 9 was left out: loss nan, gradient's norm nan; 3 in all" in caplog.text


def test_too_many_in_a_row_end_the_run(tmp_path, spoilt):
    spoilt((7, 8, 9))
    words = r"loss is nan at step 8.*2 steps in a row were left out.*step 5 in .*checkp"
    with pytest.raises(FloatingPointError, match=words):
        experiment.train(run_of("skip(after=2)"), tmp_path)
    assert max(r["step"] for r in rows(tmp_path)) == 7


def test_a_run_rolls_back_to_the_last_good_step_and_goes_on(tmp_path, spoilt, caplog):
    spoilt((7, 8), times=1)
    with caplog.at_level(logging.ERROR):
        state = experiment.train(run_of("rollback(after=2)"), tmp_path)
    words = "ROLLED BACK to step 5, 1 of 5 times, learning rate times 0.5: loss is nan"
    assert words in caplog.text
    found = [r for r in rows(tmp_path) if "loss" in r]
    assert [r["step"] for r in found] == list(
        range(1, 13)
    )  # no row twice, none missing
    assert [r["lr_factor"] for r in found] == [1.0] * 5 + [0.5] * 7
    whole = [float(run_of("skip").schedule(t)) for t in range(12)]
    halved = [rate * f for rate, f in zip(whole, [1] * 5 + [0.5] * 7, strict=True)]
    assert [r["lr"] for r in found] == pytest.approx(halved)
    assert int(state.faults["rollbacks"]) == 1
    assert not int(state.faults["skipped"])


def test_rolling_back_has_an_end_and_starts_anew_where_nothing_was_saved(
    tmp_path, spoilt, caplog
):
    spoilt((2,))
    with pytest.raises(FloatingPointError, match=r"at step 2.*Last good.*none yet"):
        experiment.train(run_of("rollback(after=1, times=2)"), tmp_path)
    assert caplog.text.count("ROLLED BACK to step 0") == 2


def test_a_checkpoint_among_steps_left_out_is_not_gone_back_to(tmp_path, spoilt):
    spoilt((9, 10, 11), times=1)
    state = experiment.train(run_of("rollback(after=3)", 15), tmp_path)
    found = [r for r in rows(tmp_path) if "loss" in r]
    assert [r["lr_factor"] for r in found] == [1.0] * 5 + [0.5] * 10
    assert int(state.faults["rollbacks"]) == 1


def test_a_run_that_stopped_goes_on_with_another_policy(tmp_path, spoilt):
    spoilt((7,))
    with pytest.raises(FloatingPointError, match="at step 7"):
        experiment.train(run_of("stop"), tmp_path)
    state = experiment.train(run_of("skip"), tmp_path)
    assert int(state.step) == 12
    assert int(state.faults["skipped"]) == 1
    with checkpoint.open_manager(tmp_path / "checkpoints", create=False) as manager:
        assert checkpoint.about(manager, 12)["faults"] == {"skipped": 1, "in_row": 0}


def test_a_run_of_an_earlier_version_goes_on(tmp_path):
    run = run_of("stop", 2)
    first = run.first_state()
    names = {f.name for f in dataclasses.fields(first)} - {"faults"}
    tree = {name: getattr(first, name) for name in names}
    facts = {"position": 0, "shape": run.shape, "config_text": "{}"}
    with checkpoint.open_manager(tmp_path / "checkpoints") as manager:
        checkpoint.save(manager, 0, tree, **facts)
        checkpoint.settle(manager)
    assert experiment.train(run, tmp_path).step == 2
