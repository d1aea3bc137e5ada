"""The loss scale: a power of two changes no bit, and float16 learns by it alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import linen as nn
from laid import lay, loss_of, run, tx_of

from jaxface import assembly, config, experiment
from jaxface.losses import softmax
from jaxface.train import guard, nonfinite
from jaxface.train import step as steps


def test_a_loss_scale_changes_no_bit_in_float32():
    ends = []
    for policy in (nonfinite.skip(), *(nonfinite.scaled(start=k) for k in (0, 12))):
        state, seen = run(loss_of(), tx_of(), lay("optimizer"), 2, policy=policy)
        told = [{k: m[k] for k in ("loss", "grad_norm")} for m in seen]
        ends.append((state.replace(faults={}), told))
        assert seen[-1].get("loss_scale", 1) == 2.0**policy.scale
    for end in ends[1:]:
        jax.tree.map(np.testing.assert_array_equal, end, ends[0])


def test_it_halves_where_a_step_overflows_and_doubles_where_none_does():
    policy = nonfinite.scaled(start=1, growth=2)
    state = steps.TrainState(
        **{f.name: {} for f in dataclasses.fields(steps.TrainState)}
    )
    state = state.replace(faults=jax.tree.map(jnp.asarray, guard.first(policy)))
    told = {"g": {"head": {}, "margin": {}}, "policy": policy, "axis": None}
    scales = []
    for norm in (1, 1, 1, np.inf, np.nan, np.nan, np.nan, 1, 1, 1, 1):
        one = {"loss": jnp.float32(1), "norm": jnp.float32(norm)}
        state, metrics = guard.judged(state, state, **one, **told)
        scales.append(int(metrics["loss_scale"]))
    assert scales == [2, 2, 4, 4, 2, 1, 1, 1, 1, 2, 2]
    assert int(metrics["skipped"]) == 4


class Half(nn.Module):
    """One layer, computed in a given precision."""

    dtype: str

    @nn.compact
    def __call__(self, x, train=False, keys=None):
        x = nn.Dense(8, dtype=self.dtype)(x.reshape(len(x), -1))
        return x.astype("float32")


@dataclasses.dataclass(frozen=True)
class Faint(softmax.Loss):
    """A loss whose gradient float16 does not hold: its least number is 6e-8."""

    def share(self, *args, **kwargs):
        share, state, metrics = super().share(*args, **kwargs)
        return 1e-9 * share, state, metrics


def test_float16_learns_a_faint_loss_by_its_scale_alone():
    def moved(dtype, start):
        policy = nonfinite.scaled(start=start)
        options = {"net": Half(dtype), "policy": policy, "clip": 0.0, "ema": 0.0}
        _, seen = run(loss_of(make=Faint), tx_of(), lay(devices=2), 1, **options)
        return seen[0]["grad_norm"]

    assert moved("float16", 0) == 0.0
    np.testing.assert_allclose(moved("float16", 22), moved("float32", 0), rtol=0.02)


def test_float16_without_a_scale_is_refused():
    c = tiny.recipe()
    c.model.dtype = "float16"
    with pytest.raises(ValueError, match=r"set it to 'scaled\(\)', or model.dtype to"):
        assembly.build(c)
    c.train.nonfinite = "scaled(start=30)"
    with pytest.raises(ValueError, match="start is 30; wanted 0 to 24, the exponent"):
        assembly.build(c)


@pytest.mark.slow
def test_a_run_that_had_no_scale_goes_on_with_the_first(tmp_path):
    for line in ("skip", "scaled(start=5)"):
        c = tiny.recipe()
        c.mesh.devices, c.train.nonfinite = 1, line
        c.train.length = c.eval.every = c.checkpoint.every = "2 steps"
        if line != "skip":  # a longer run of the same config otherwise
            c.train.length, c.optim.schedule = "4 steps", "constant"
        run = assembly.build(c)
        (tmp_path / "config.json").write_text(config.dumps(c))
        state = experiment.train(run, tmp_path)
    assert {k: int(v) for k, v in state.faults.items()} == {
        **{"skipped": 0, "in_row": 0},
        **{"scale": 5, "clean": 2},
    }
