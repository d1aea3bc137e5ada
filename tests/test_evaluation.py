"""Evaluation in training: compiled once, the same on any mesh, the same to the byte."""

import functools
import json
import logging
import types as types_of

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_finetune as runs
import tiny

from jaxface import assembly, config, evaluation, experiment, types
from jaxface.eval import overlap, strangers

PAIRS = (
    "synthetic(identities=8, per_identity=4, size=16, start=100)"
    "|pairs_sampled(count=40, folds=2)"
)
SETS = {
    "plain": f"{PAIRS}|verification",
    "bad": f"{PAIRS}|robustness(kinds=('blur', 'pgd'), steps=2)",
    "quality": f"{PAIRS}|quality(far=0.1, passes=2)",
}


def recipe(**sets):
    c = tiny.recipe()
    c.eval.sets = sets or SETS
    c.checkpoint.best = ""
    return c


def drawn(run, seed):
    """Weights of a network, where they belong."""
    whole = jax.sharding.NamedSharding(run.mesh, jax.sharding.PartitionSpec())
    init = jax.jit(run.model.init, out_shardings=whole)
    return init(jax.random.key(seed), jnp.zeros((8, 16, 16, 3)))


@functools.cache
def built(devices):
    c = recipe()
    c.mesh.devices = devices
    return assembly.build(c)


@functools.cache
def evaluated(devices, seed):
    run = built(devices)
    return evaluation.evaluate(run, drawn(run, seed))


@pytest.mark.slow
def test_the_second_evaluation_compiles_nothing(caplog):
    first = evaluated(8, 0)
    variables = drawn(built(8), 1)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        second = evaluation.evaluate(built(8), variables)
        said = [r.message for r in caplog.records if "Compiling" in r.message]
        assert said == []
        jax.jit(lambda x: x + 1)(np.ones(3))  # and the log is heard
        assert "Compiling" in caplog.text
    assert scalars(first) != scalars(second)


def scalars(results):
    return experiment.scalars_of(results)


@pytest.mark.slow
def test_one_device_and_eight_agree():
    a, b = evaluated(1, 0), evaluated(8, 0)
    assert scalars(a).keys() == scalars(b).keys()
    given = {"rtol": 0, "atol": 1e-5}
    np.testing.assert_allclose(*([*scalars(x).values()] for x in (a, b)), **given)
    for name in SETS:
        for key, array in a[name].artefacts.items():
            np.testing.assert_allclose(array, b[name].artefacts[key], **given)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    runs.written(path, recipe())
    return path


@pytest.mark.slow
def test_two_evaluations_of_a_checkpoint_are_the_same_bytes(workdir):
    texts = []
    again = assembly.build(experiment.saved_config(workdir), for_training=False)
    for run in (built(8), again):
        _, results = experiment.evaluate(run, workdir, step="latest")
        texts.append({k: json.dumps(r.scalars, indent=1) for k, r in results.items()})
        for k, r in results.items():
            texts[-1] |= {f"{k} {n}": a.tobytes() for n, a in r.artefacts.items()}
    assert texts[0] == texts[1]


def test_leaks_are_looked_for_wherever_people_are_known(workdir):
    c = experiment.saved_config(workdir)
    base = c.data.source
    c.eval.sets = {
        "known": f"{base}|pairs_sampled(count=20, folds=2)|verification",
        "unseen": SETS["plain"],
        "album": f"{base}|clustering",
        "owner": f"{base}|enrolled(identity=0, part='test', test_share=0.5)|binary",
    }
    run = assembly.build(c)
    found = evaluation.leaks(run, experiment.restore(run, workdir, step="latest")[1])
    assert found.keys() == {"known", "unseen", "album"}
    _, variables = experiment.restore(run, workdir, step="latest")
    e, label = (
        evaluation.embedder(run, variables)(run.source),
        np.repeat(np.arange(6), 4),
    )
    centres = strangers.class_centres(e, label, classes=6)
    pairs = run.evaluators["known"].pairs
    of = pairs.owners
    probes = evaluation.embedder(run, variables)(pairs.images)
    want = overlap.leak((centres, e, label), probes[of >= 0], of[of >= 0])
    assert found["known"].scalars == want.scalars
    assert found["known"].people == 6
    whole = overlap.leak((centres, e, label), e, label)
    assert found["album"].scalars == whole.scalars
    # what is known lies nearer to its own class than what is unseen lies to any
    assert found["known"].scalars["leaked"] > found["unseen"].scalars["leaked"]


def test_best_may_be_any_number_of_any_set_and_none_else():
    found = scalars({"lfw": types.Result({"accuracy": 0.9, "eer": 0.1}, {})})
    for best in ("", "lfw/accuracy", "-lfw/eer"):
        assert experiment._with_best(found, best=best) == found
    with pytest.raises(KeyError, match="did you mean 'lfw/eer'"):
        experiment._with_best(found, best="-lfw/err")


def planned(*, epoch, sets, epochs=20, **given):
    """A run of 128 images a step, as far as the interval of evaluation looks."""
    c = config.base()
    c.eval.update(given)
    total = epochs * epoch
    return types_of.SimpleNamespace(
        config=c,
        total=total,
        every=lambda duration: config.steps(
            duration, batch_size=128, examples=128 * epoch, total=total
        ),
        evaluators={
            str(k): types_of.SimpleNamespace(work=n) for k, n in enumerate(sets)
        },
    )


@pytest.mark.parametrize("embed", ["output", "flip_sum"])
@pytest.mark.parametrize("epoch", [1, 40, 500, 3829, 45_000, 300_000])
@pytest.mark.parametrize("sets", [(12_000,), (12_000, 14_000, 12_000), (470_000,)])
def test_evaluation_is_within_its_share_of_the_work_whatever_the_size(
    epoch, sets, embed
):
    run = planned(epoch=epoch, sets=sets, embed=embed)
    at = evaluation.every(run)
    images = sum(sets) * (2 if embed == "flip_sum" else 1) / 3

    def share(interval):
        looks = {*range(interval, run.total + 1, interval), run.total}
        return len(looks) * images / (128 * run.total)

    assert at % epoch == 0
    once = images / (128 * run.total)
    assert share(at) <= max(0.02, once)
    assert at == epoch or share(at - epoch) > max(0.02, once)


def test_three_packs_come_with_every_epoch_of_millions_and_every_third_of_half_one():
    packs = (12_000, 14_000, 12_000)
    assert evaluation.every(planned(epoch=45_471, sets=packs)) == 45_471
    assert evaluation.every(planned(epoch=3_831, sets=packs)) == 3 * 3_831
    given = planned(epoch=3_831, sets=packs, every="500 steps")
    assert evaluation.every(given) == 500


def test_what_evaluation_costs_is_told(caplog):
    with caplog.at_level(logging.INFO):
        evaluation.every(planned(epoch=3_831, sets=(12_000, 14_000, 12_000)))
        assert "every 3. checkpoint, every 11493 steps, costs 1.8 %" in caplog.text
        assert not [r for r in caplog.records if r.levelname == "WARNING"]
        evaluation.every(planned(epoch=40, sets=(12_000,)))
    (told,) = [r for r in caplog.records if r.levelname == "WARNING"]
    assert "costs 7.8 % of the work of training" in told.message


@pytest.mark.slow
def test_a_run_of_the_default_interval_evaluates_with_its_checkpoints(tmp_path):
    c = recipe(plain=SETS["plain"])
    c.eval.every, c.eval.share, c.train.length = "auto", 0.15, "20 steps"
    c.checkpoint.best = "plain/accuracy"
    run = assembly.build(c)
    # 30 images twice are as 20 in training, of 20 x 16: 0.0625 each time
    assert run.evaluators["plain"].work == 30
    assert run.eval_every == 10
    experiment.train(run, tmp_path)
    rows = [
        json.loads(r) for r in (tmp_path / "metrics.jsonl").read_text().split("\n") if r
    ]
    assert [r["step"] for r in rows if "plain/accuracy" in r] == [10, 20]
    assert experiment.evaluate(run, tmp_path, step="best")[0] in (10, 20)
