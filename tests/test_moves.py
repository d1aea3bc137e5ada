"""A run that moves between meshes trains as the one that stayed where it was."""

import json
import os
import signal

import jax
import numpy as np
import pytest
import tiny

from jaxface import assembly, experiment
from jaxface.train import loop

PLAIN = ({"devices": 8}, {"devices": 2}, {"devices": 4})
LAID_OUT = (
    {"devices": 8, "class_devices": 4, "shard": "optimizer"},
    {"devices": 2, "shard": "parameters"},
    {"devices": 4, "class_devices": 2},
)


@pytest.fixture
def stopped(monkeypatch):
    """Make runs end by a signal in the middle of a step; a function of which."""
    real = loop.run

    def at(last):
        def run(state, *, batches, start, **kwargs):
            def told():
                for t, batch in enumerate(batches, start + 1):
                    if t == last:
                        os.kill(os.getpid(), signal.SIGTERM)
                    yield batch

            return real(state, batches=told(), start=start, **kwargs)

        monkeypatch.setattr(loop, "run", run)

    return at


def recipe(loss, **mesh):
    c = tiny.recipe()
    c.optim.ema = 0.9
    c.eval.every, c.checkpoint.best, c.loss.name = "20 steps", "", loss
    c.mesh.update(mesh)
    return c


def losses(workdir):
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moves", "loss"),
    [
        (PLAIN, "softmax(scale=16.0)"),
        (LAID_OUT, "softmax(scale=16.0)"),
        (PLAIN, "partial_fc(rate=0.1, scale=16.0)"),
    ],
)
def test_from_eight_devices_to_two_to_four(tmp_path, stopped, moves, loss):
    stayed = experiment.train(assembly.build(recipe(loss, **moves[0])), tmp_path / "a")
    for last, mesh in zip((7, 13, 0), moves, strict=True):
        stopped(last)
        moved = experiment.train(assembly.build(recipe(loss, **mesh)), tmp_path / "b")
        assert moved.step == (last or 20)
    want, got = losses(tmp_path / "a"), losses(tmp_path / "b")
    assert list(got) == list(want) == list(range(1, 21))
    np.testing.assert_allclose(list(got.values()), list(want.values()), rtol=1e-5)
    for field in ("params", "head", "ema"):
        a, b = (jax.device_get(getattr(x, field)) for x in (stayed, moved))
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), a, b)
