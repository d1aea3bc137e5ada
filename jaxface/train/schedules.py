"""Learning-rate schedules: updates done -> rate, warmed up from zero.

The config names one (`step(at=(0.5, 0.8))`) and the program supplies the peak and
the two lengths. The law: the rate rises in a straight line from 0 to `peak` over
`warmup_steps` updates and ends the run where the schedule says, at `total_steps`.

    lr = cosine(peak=0.1, warmup_steps=100, total_steps=2000)
    lr(100)    # 0.1
    tx = optim.sgd(lr=lr)
"""

from __future__ import annotations

import itertools
import math

import optax


def constant(*, peak: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Stay at the peak."""
    return _warmed(optax.constant_schedule(peak), peak, warmup_steps, total_steps)


def cosine(
    *,
    cycles: int = 1,
    growth: float = 1.0,
    floor: float = 0.0,
    peak: float,
    warmup_steps: int,
    total_steps: int,
) -> optax.Schedule:
    """Fall along half a cosine, and again after each restart (SGDR eq. (5)).

    Args:
        cycles: falls; each but the first restarts from the peak.
        growth: T_mult, the length of a cycle in lengths of the one before.
        floor: where a fall ends, as a fraction of the peak.
        peak: rate at the start of a cycle.
        warmup_steps: updates of the rise, before the first cycle.
        total_steps: updates of the run; the last cycle ends there.

    Raises:
        ValueError: no cycle, cycles of less than one update, growth <= 0, or a floor
            outside [0, 1].

    Loshchilov and Hutter, ICLR 2017.
    """
    _check(warmup_steps, total_steps)
    if cycles < 1 or not 0 < growth < math.inf or not 0 <= floor <= 1:
        raise ValueError(
            f"cosine(cycles={cycles}, growth={growth}, floor={floor}); wanted 1 cycle"
            " or more, a growth above 0, a floor from 0 to 1"
        )
    ends = list(itertools.accumulate(growth**i for i in range(cycles)))
    edges = [round((total_steps - warmup_steps) * end / ends[-1]) for end in ends]
    lengths = [b - a for a, b in itertools.pairwise([0, *edges])]
    if min(lengths) < 1:
        raise ValueError(
            f"cosine(cycles={cycles}, growth={growth}) cuts {edges[-1]} updates into"
            f" cycles of {lengths}; wanted fewer, or a growth nearer to 1"
        )
    falls = [optax.cosine_decay_schedule(peak, n, alpha=floor) for n in lengths]
    return _warmed(
        optax.join_schedules(falls, edges[:-1]), peak, warmup_steps, total_steps
    )


def polynomial(
    *, power: float = 1.0, peak: float, warmup_steps: int, total_steps: int
) -> optax.Schedule:
    """Fall to 0 as (1 - progress)^power; 1 is a straight line."""
    _check(warmup_steps, total_steps)
    fall = optax.polynomial_schedule(peak, 0.0, power, total_steps - warmup_steps)
    return _warmed(fall, peak, warmup_steps, total_steps)


def step(
    *,
    at: tuple[float, ...] = (0.5, 0.75),
    factor: float = 0.1,
    peak: float,
    warmup_steps: int,
    total_steps: int,
) -> optax.Schedule:
    """Multiply by `factor` at each of these fractions of the run.

    Args:
        at: fractions of `total_steps`, warm-up included, rising, within (0, 1).
        factor: of each drop.
        peak: rate before the first drop.
        warmup_steps: updates of the rise.
        total_steps: updates of the run.

    Raises:
        ValueError: fractions that do not rise, leave (0, 1) or meet the warm-up.
    """
    edges = [round(fraction * total_steps) for fraction in at]
    places = [warmup_steps, *edges, total_steps]
    if any(a >= b for a, b in itertools.pairwise(places)):
        raise ValueError(
            f"step(at={at}) drops at updates {edges} of {total_steps}, warm-up"
            f" {warmup_steps}; wanted rising fractions after the warm-up, below 1"
        )
    drops = optax.piecewise_constant_schedule(
        peak, {edge - warmup_steps: factor for edge in edges}
    )
    return _warmed(drops, peak, warmup_steps, total_steps)


def one_cycle(*, peak: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Rise from peak / 25 and fall to peak / 250,000, along half cosines.

    The rise takes the warm-up, so there must be one (Smith and Topin, 2018,
    recommend 30 % of the run).
    """
    _check(warmup_steps, total_steps)
    if warmup_steps == 0:
        raise ValueError("one_cycle rises during the warm-up; set one, such as 30 %")
    return optax.cosine_onecycle_schedule(
        total_steps, peak, pct_start=warmup_steps / total_steps
    )


def _warmed(
    schedule: optax.Schedule, peak: float, warmup_steps: int, total_steps: int
) -> optax.Schedule:
    _check(warmup_steps, total_steps)
    if warmup_steps == 0:
        return schedule
    rise = optax.linear_schedule(0.0, peak, warmup_steps)
    return optax.join_schedules([rise, schedule], [warmup_steps])


def _check(warmup_steps: int, total_steps: int) -> None:
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"warm-up of {warmup_steps} updates in a run of {total_steps}; wanted"
            " 0 <= warm-up < run"
        )
