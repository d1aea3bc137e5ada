"""A run goes on with more or fewer processes, and of other sizes, as if it had not."""

import chaos
import numpy as np
import pytest
import small
import tiny
from test_exit_codes import train

from jaxface import assembly, checkpoint, experiment

PARTS = (  # processes, devices of each, the step after which it is told to stop
    (2, 2, 6),
    (1, 4, 13),
    (2, 1, 0),
)


@pytest.mark.slow
def test_processes_come_and_go(tmp_path):
    c, moved = tiny.recipe(), tmp_path / "moved"
    c.mesh.devices, c.optim.ema = 1, 0.9
    run = assembly.build(c)
    whole = experiment.train(run, tmp_path / "whole")
    for processes, devices, stop in PARTS:
        flags = (f"--config.mesh.cpu_devices={devices}", "--config.optim.ema=0.9")
        fault = "signal" if stop else "none"
        code, said = train(moved, fault, stop, *flags, processes=processes)
        assert code == (75 if stop else 0), said[-3000:]
    want, got = chaos.losses(tmp_path / "whole"), chaos.losses(moved)
    assert got[:, 0].tolist() == list(range(1, 21))  # no row twice, none missing
    np.testing.assert_allclose(got, want, rtol=1e-5)
    with checkpoint.open_manager(moved / "checkpoints", create=False) as manager:
        small.close(checkpoint.restore(manager, 20, like=run.abstract), whole, 1e-4)
