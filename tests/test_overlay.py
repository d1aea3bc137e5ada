"""Loss curves of every precision and every layout of memory lie on each other."""

import combinations
import numpy as np
import pytest
import tiny

from jaxface import assembly

STEPS = 25
# How far from the plain curve, in parts of its first loss: the rounding of float32, 24
# bits, grows over the steps; bfloat16 has 8 bits, float16 11; and BatchNorm normalises
# by half a batch where that is accumulated, the one run that is not the same run.
BOUNDS = {
    "remat": 1e-3,
    "ZeRO": 1e-3,
    "FSDP": 1e-3,
    "two axes": 1e-3,
    "float16": 0.01,
    "bfloat16": 0.03,
    "accumulated": 0.25,
}


def curve(*chosen):
    """The loss of each step, dropout, augmentation and BatchNorm on."""
    c = tiny.recipe()
    c.model.name = combinations.NET.format(False)
    c.data.batch_size, c.optim.lr = 64, 0.02
    c.train.length = f"{STEPS} steps"
    for name in chosen:
        c.update_from_flattened_dict(combinations.VALUES[name])
    run = assembly.build(c)
    state, losses, loader = run.first_state(), [], run.loader(0)
    for _, batch in zip(range(STEPS), run.batches(loader), strict=False):
        state, metrics = run.step(state, batch)
        losses.append(metrics["loss"])
    loader.close()
    return np.array(losses, np.float64)


@pytest.mark.slow
def test_loss_curves_overlay():
    plain = curve()
    assert plain[-5:].mean() < 0.7 * plain[:5].mean()  # there is something to overlay
    for name, bound in BOUNDS.items():
        apart = np.abs(curve(name) - plain).max() / plain[0]
        assert apart < bound, name
