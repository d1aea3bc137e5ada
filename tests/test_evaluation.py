"""Evaluation in training: compiled once, the same on any mesh, the same to the byte."""

import functools
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_finetune as runs
import tiny

from jaxface import assembly, experiment, types
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
    return run.evaluate(drawn(run, seed))


@pytest.mark.slow
def test_the_second_evaluation_compiles_nothing(caplog):
    first = evaluated(8, 0)
    variables = drawn(built(8), 1)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        second = built(8).evaluate(variables)
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
    found = experiment.leaks(run, workdir, step="latest")
    assert found.keys() == {"known", "unseen", "album"}
    _, variables = experiment.restore(run, workdir, step="latest")
    e, label = run.embedder(variables)(run.source), np.repeat(np.arange(6), 4)
    centres = strangers.class_centres(e, label, classes=6)
    pairs = run.evaluators["known"].pairs
    of = pairs.owners
    probes = run.embedder(variables)(pairs.images)
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
