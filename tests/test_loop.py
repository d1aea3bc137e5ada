"""The loop and what it tells: rows, cut-back, lost losses, signals."""

import json
import os
import signal

import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.train import loop, monitor, stopping, writers


def run(
    workdir,
    *,
    losses,
    norms=(),
    start=0,
    saved=None,
    stop=None,
    on_step=None,
    number=jnp.float32,
    **every,
):
    """Run a loop whose state is its step and whose loss is given."""
    saved = [] if saved is None else saved

    def step(state, batch):
        if on_step:
            on_step(state + 1)
        metrics = {"loss": number(losses[state])}
        if norms:
            metrics["grad_norm"] = jnp.float32(norms[state])
        return state + 1, metrics

    with monitor.Monitor(
        workdir, start=start, total=len(losses), batch_size=2, schedule=lambda t: 0.1
    ) as log:
        return loop.run(
            start,
            step=step,
            batches=iter(lambda: {}, None),
            start=start,
            total=len(losses),
            monitor=log,
            evaluate=lambda state: {"set/accuracy": state / 10},
            save=lambda done, state, scalars: saved.append((done, scalars)),
            log_every=every.get("log", 2),
            eval_every=every.get("look", 4),
            save_every=every.get("save", 3),
            stop=stop or (lambda: False),
        )


def rows(workdir):
    return [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_every_step_is_logged_and_the_last_is_evaluated_and_saved(tmp_path):
    saved = []
    assert run(tmp_path, losses=[1.0] * 7, saved=saved) == 7
    assert saved == [(3, None), (6, None), (7, {"set/accuracy": 0.7})]
    found = rows(tmp_path)
    assert [r["step"] for r in found if "loss" in r] == list(range(1, 8))
    assert [r["step"] for r in found if "set/accuracy" in r] == [4, 7]
    assert found[0] == {"step": 1, "loss": 1.0, "lr": 0.1}


def test_a_resumed_log_is_the_uninterrupted_one(tmp_path):
    losses = [1 / (1 + t) for t in range(9)]
    run(tmp_path, losses=losses)
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    for start in (0, 3, 8):
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 11, "loss"')  # the writer was killed here
        run(tmp_path, losses=losses, start=start)
        assert (tmp_path / "metrics.jsonl").read_bytes() == whole


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_lost_loss_stops_before_it_is_saved(tmp_path, bad):
    saved = []
    with pytest.raises(monitor.NonFiniteLossError, match="at step 5") as caught:
        run(tmp_path, losses=[1.0] * 4 + [bad] + [1.0] * 3, saved=saved)
    assert caught.value.step == 5
    assert saved == [(3, None)]
    assert max(r["step"] for r in rows(tmp_path)) == 4


def test_a_lost_gradient_stops_before_it_is_saved(tmp_path):
    saved, norms = [], [1.0] * 5 + [float("inf")] + [1.0] * 2
    with pytest.raises(monitor.NonFiniteLossError, match=r"loss is 1.0 .* norm inf"):
        run(tmp_path, losses=[1.0] * 8, norms=norms, saved=saved)
    assert saved == [(3, None)]  # not 6, whose weights are lost


def test_a_signal_saves_and_returns(tmp_path):
    saved = []
    with stopping.on_signals() as stop:
        state = run(
            tmp_path,
            losses=[1.0] * 9,
            saved=saved,
            stop=stop,
            on_step=lambda t: t == 5 and os.kill(os.getpid(), signal.SIGTERM),
        )
    assert state == 5
    assert saved[-1] == (5, None)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(
    ("waits", "seconds", "who"),
    [
        ([0.0, 0.3, 0.01], 1.0, 1),
        ([0.0, 0.3], 1.0, 1),
        ([0.0, 0.01, 0.0, 0.0], 1.0, None),  # a step is no longer for it
        ([0.3, 0.2, 0.2, 0.2], 1.0, None),  # all are slow
        ([0.2, 0.0, 0.0, 0.5], 1.0, 3),
        ([0.0, 0.0], 1.0, None),
    ],
)
def test_a_process_is_late_whose_data_the_others_wait_for(waits, seconds, who):
    assert monitor.late(np.array(waits), seconds=seconds) == who


def test_boards_are_told_how_long_data_was_waited_for(tmp_path):
    class Board:
        def write(self, step, row):
            told.append((step, row.get("data_seconds")))

        def close(self): ...

    told = []
    given = {"batch_size": 2, "schedule": lambda t: 0.5, "boards": [Board()]}
    with monitor.Monitor(tmp_path, start=0, total=2, **given) as log:
        log.push(1, {"loss": jnp.float32(3.0)}, waited=0.5)
        log.push(2, {"loss": jnp.float32(3.0)}, waited=1.5)
        log.flush()
    assert (2, 1.0) in told


def test_events_can_be_read_by_tensorboard(tmp_path):
    from tensorboard.backend.event_processing import event_accumulator

    board = writers.TensorBoard(tmp_path / "tensorboard", start=0)
    with monitor.Monitor(
        tmp_path,
        start=0,
        total=2,
        batch_size=2,
        schedule=lambda t: 0.5,
        boards=[board],
    ) as log:
        log.push(1, {"loss": jnp.float32(3.0)})
        log.flush()
    reader = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    reader.Reload()
    assert [(e.step, e.value) for e in reader.Scalars("loss")] == [(1, 3.0)]
