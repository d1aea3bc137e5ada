"""Schedules at points worked out by hand, and against torch's."""

import math

import jax
import pytest

from jaxface import spec
from jaxface.train import schedules

# peak 2, warm-up 10, run 110: hand-worked (step, rate)
POINTS = {
    "constant": ({}, [(10, 2.0), (109, 2.0)]),
    "cosine": ({}, [(10, 2.0), (35, 1 + 0.5**0.5), (60, 1.0), (110, 0.0)]),
    "cosine of two cycles": (
        {"cycles": 2, "growth": 3.0, "floor": 0.1},  # of 25 and 75 updates
        [(10, 2.0), (34, 0.207096), (35, 2.0), (60, 1.55), (85, 0.65), (110, 0.2)],
    ),
    "polynomial": ({"power": 2.0}, [(10, 2.0), (60, 0.5), (85, 0.125), (110, 0.0)]),
    "step": (
        {"at": (0.5, 0.7), "factor": 0.1},
        [(10, 2.0), (54, 2.0), (55, 0.2), (76, 0.2), (77, 0.02), (109, 0.02)],
    ),
}


@pytest.mark.parametrize("name", POINTS)
def test_schedules_at_points_worked_by_hand(name):
    options, points = POINTS[name]
    make = spec.public(schedules)[name.split()[0]]
    lr = make(peak=2.0, warmup_steps=10, total_steps=110, **options)
    for at, want in [(0, 0.0), (5, 1.0), (9, 1.8), *points]:
        assert float(lr(at)) == pytest.approx(want, abs=1e-6), at
        assert float(jax.jit(lr)(at)) == pytest.approx(want, abs=1e-6), at


@pytest.mark.parametrize("name", POINTS)
def test_without_warm_up_the_first_update_has_the_peak(name):
    make, options = spec.public(schedules)[name.split()[0]], POINTS[name][0]
    lr = make(peak=2.0, warmup_steps=0, total_steps=100, **options)
    assert float(lr(0)) == pytest.approx(2.0)


def test_one_cycle_rises_and_falls_along_cosines():
    lr = schedules.one_cycle(peak=2.0, warmup_steps=30, total_steps=100)
    low, end = 2.0 / 25, 2.0 / 25 / 1e4
    points = [(0, low), (15, (low + 2) / 2), (30, 2.0), (65, (2 + end) / 2), (100, end)]
    for at, want in points:
        assert float(lr(at)) == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("name", spec.public(schedules))
@pytest.mark.parametrize("warmup", [-1, 100, 200])
def test_a_warm_up_longer_than_the_run_is_refused(name, warmup):
    with pytest.raises(ValueError, match="warm-up"):
        spec.public(schedules)[name](peak=1.0, warmup_steps=warmup, total_steps=100)


@pytest.mark.parametrize("at", [(0.7, 0.5), (0.05, 0.5), (0.5, 1.0)])
def test_steps_out_of_order_are_refused(at):
    with pytest.raises(ValueError, match="rising"):
        schedules.step(at=at, peak=1.0, warmup_steps=10, total_steps=100)


def test_one_cycle_without_warm_up_is_refused():
    with pytest.raises(ValueError, match="set one"):
        schedules.one_cycle(peak=1.0, warmup_steps=0, total_steps=100)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cycles": 0}, "wanted 1 cycle or more"),
        ({"growth": 0.0}, "a growth above 0"),
        ({"floor": 1.5}, "a floor from 0 to 1"),
        ({"cycles": 3, "growth": 100.0}, r"cycles of \[0, 1, 89\]; wanted fewer"),
        ({"cycles": 91}, "wanted fewer"),
    ],
)
def test_cycles_that_do_not_fit_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        schedules.cosine(peak=1.0, warmup_steps=10, total_steps=100, **options)


def test_one_cycle_of_cosine_is_the_plain_one():
    plain = schedules.cosine(peak=2.0, warmup_steps=10, total_steps=110)
    for at in range(10, 111):
        want = 1 + math.cos(math.pi * (at - 10) / 100)
        assert float(plain(at)) == pytest.approx(want, abs=1e-6)


# ours, and torch's, for a run of 100 updates from 2.0 without warm-up
PEERS = {
    "cosine": (
        {"cycles": 2, "growth": 4.0, "floor": 0.25},
        lambda o, tx: o.CosineAnnealingWarmRestarts(tx, 20, T_mult=4, eta_min=0.5),
    ),
    "polynomial": (
        {"power": 2.0},
        lambda o, tx: o.PolynomialLR(tx, total_iters=100, power=2.0),
    ),
    "step": (
        {"at": (0.3, 0.8), "factor": 0.2},
        lambda o, tx: o.MultiStepLR(tx, milestones=[30, 80], gamma=0.2),
    ),
}


@pytest.mark.parametrize("name", PEERS)
def test_torchs_schedules_are_the_same(name):
    torch = pytest.importorskip("torch", reason="pip install jaxface[peers]")
    options, make_theirs = PEERS[name]
    tx = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    theirs = make_theirs(torch.optim.lr_scheduler, tx)
    make = spec.public(schedules)[name]
    ours = make(peak=2.0, warmup_steps=0, total_steps=100, **options)
    for at in range(100):
        assert float(ours(at)) == pytest.approx(theirs.get_last_lr()[0], rel=1e-5), at
        tx.step()
        theirs.step()
