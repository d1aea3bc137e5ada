"""Devices wait neither for what is told of a step nor for the batch of the next."""

import numpy as np
import test_loop
import tiny

from jaxface import assembly, experiment, parallel


def test_between_logged_steps_nothing_is_fetched(tmp_path):
    # On the CPU, where arrays are not copied, jax.transfer_guard refuses nothing.
    done = []

    class Number:
        """What a device holds: it can be fetched, and do nothing else."""

        def __init__(self, value):
            self.value = value

        def __array__(self, dtype=None, copy=None):
            done.append("fetched")
            return np.array(self.value, np.float32)

    every = {"log": 3, "look": 8, "save": 5}
    test_loop.run(
        tmp_path, losses=[1.0] * 8, number=Number, on_step=done.append, **every
    )
    blocks = ([1, 2, 3], [4, 5], [6], [7, 8])  # logged; saved; logged; the last
    assert done == [x for b in blocks for x in (*b, *["fetched"] * len(b))]


def test_a_batch_is_placed_before_the_one_ahead_of_it_is_trained(monkeypatch):
    done, put = [], parallel.put_batch

    def placed(batch, **where):
        done.append("placed")
        return put(batch, **where)

    monkeypatch.setattr(parallel, "put_batch", placed)
    run = assembly.build(tiny.recipe())
    loader = run.loader(0)
    for t, _ in zip(range(3), experiment.batches_of(run, loader), strict=False):
        done.append(t)
    loader.close()
    assert done == ["placed", "placed", 0, "placed", 1, "placed", 2]
