"""Traces of some steps: those steps, whole, and the same training."""

import gzip
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxface import assembly, experiment
from jaxface.train import tracing


def step(state, batch):
    return state + 1, {"loss": state}


def take(folder, steps, count):
    with tracing.window(jax.jit(step), steps=steps, folder=folder) as traced:
        state = jnp.zeros(())
        for _ in range(count):
            state, _ = traced(state, {})
    return state


def steps_in(folder):
    """Numbers of the steps a trace tells of, by the file Perfetto reads."""
    (path,) = folder.glob("plugins/profile/*/*.trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    numbers = {e.get("args", {}).get("step_num") for e in events}
    return sorted(int(n) for n in numbers - {None})


def test_the_window_holds_its_steps_and_no_other(tmp_path):
    assert take(tmp_path, (3, 5), 7) == 7
    assert steps_in(tmp_path) == [3, 4, 5]
    assert list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))


@pytest.mark.parametrize(("count", "found"), [(4, [3, 4]), (2, None)])
def test_a_run_that_ends_in_its_window_says_so(tmp_path, caplog, count, found):
    with caplog.at_level(logging.WARNING):
        take(tmp_path, (3, 5), count)
    assert f"of steps 3 to 5, and there were {count} of them" in caplog.text
    assert (steps_in(tmp_path) if found else None) == found


@pytest.mark.parametrize("steps", [(0, 5), (5, 3)])
def test_no_window_is_refused(tmp_path, steps):
    with pytest.raises(ValueError, match=r"profile: steps . to .; wanted first,last"):
        take(tmp_path, steps, 1)


@pytest.mark.slow
def test_tracing_changes_no_bit_of_a_run(tmp_path):
    c = tiny.recipe()
    c.mesh.devices, c.train.length = 1, "6 steps"
    c.eval.sets, c.checkpoint.best = {}, ""
    runs = [
        experiment.train(assembly.build(c), tmp_path / name, profile=profile)
        for name, profile in (("plain", None), ("traced", (2, 3)))
    ]
    jax.tree.map(np.testing.assert_array_equal, *runs)
    assert steps_in(tmp_path / "traced/profile/process-0") == [2, 3]
    assert not (tmp_path / "plain/profile").exists()
