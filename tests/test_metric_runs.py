"""Losses over pairs, with companions, in whole runs: the same on any mesh."""

import json

import jax
import numpy as np
import pytest
import tiny

from jaxface import assembly, experiment


def recipe(how, n):
    c = tiny.recipe()
    c.data.sampler = "pk(k=4)"
    c.loss.also = "center(weight=0.1)|metric.triplet(mining='hard', weight=1.0)"
    c.train.length = c.eval.every = c.checkpoint.every = "4 steps"
    c.mesh.how, c.mesh.devices = how, n
    return c


@pytest.mark.slow
def test_pairs_and_centres_are_the_same_on_any_mesh(tmp_path):
    states, curves = [], []
    for how, n in (("jit", 1), ("jit", 8), ("pmap", 8)):
        workdir = tmp_path / f"{how}{n}"
        states.append(experiment.train(assembly.build(recipe(how, n)), workdir))
        rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
        curves.append([row["loss"] for row in rows if "loss" in row])
    centers = [jax.device_get(s.margin_state["head"]["centers"]) for s in states]
    assert np.abs(centers[0][:6]).min(axis=1).max() > 0
    assert not centers[0][6:].any()
    for curve, center in zip(curves[1:], centers[1:], strict=True):
        np.testing.assert_allclose(curve, curves[0], rtol=1e-4)
        np.testing.assert_allclose(center, centers[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("line", "error", "words"),
    [
        ("center", ValueError, "center has no weight"),
        ("centre(weight=1)", KeyError, "did you mean 'center'"),
        ("center(weight=0)", ValueError, "wanted a positive number"),
        ("metric.triplet(weight=1)|metric.triplet(weight=1)", ValueError, "twice"),
    ],
)
def test_wrong_companions_are_refused_before_training(line, error, words):
    c = recipe("jit", 1)
    c.loss.also = line
    with pytest.raises(error, match=words):
        assembly.build(c)
