"""Intervals for pairs that share people: people are resampled, not pairs.

Pairs that share a person are not independent: one hard face spoils all of its pairs.
What a person adds to the deviation of a mean is t_p, the sum of the weighted residuals
of the pairs that touch p; resampling people adds up redrawn t_p.

One law: the spread of these sums is that of the dyadic cluster-robust variance, made
right for few people (`dyads`), and never below that of independent pairs.

    low, high = people_interval(correct, people)
    found = people_rate(accepted[same], people[same])   # Rate
    found = people_tar(scores, same, people, far=1e-2)  # Rate
    found = people_auc(scores, same, people)            # Rate
    found = people_eer(scores, same, people)            # Rate
    found = people_difference(ours, theirs, people)     # value, low, high, p
"""

from __future__ import annotations

import math

import numpy as np

from jaxface.eval import curves, decisions, delong, dyads, intervals

_DRAWN = 1 << 22  # redrawn people held at a time


def people_interval(
    correct: np.ndarray,
    people: np.ndarray | dyads.Dyads,
    *,
    level: float = 0.95,
    replicates: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return an interval of a mean over pairs that share people.

    Args:
        correct: [N] bool (or 0/1), the outcome of each pair.
        people: [N, 2] person ids; equal ids make a pair of one person; or their
            `dyads.Dyads`, of one group.
        level: confidence in (0, 1).
        replicates: bootstrap draws.
        seed: of the draws.

    Returns:
        (low, high) in [0, 1], by the logit scale, so that neither end leaves it; and
        never narrower than Wilson's at either end, since pairs that share people tell
        no more than independent ones. Meant for 30 people and more; with 20 the 95 %
        interval holds the truth in 93 to 94 % of simulated samples.

    Raises:
        ValueError: on shapes that do not match, or fewer than two people.
    """
    correct = np.asarray(correct, bool)
    who = _known(people, len(correct))
    rate = intervals.rate(int(correct.sum()), len(correct), level=level)
    spread = who.spread(lambda part: correct[part] - rate.value)
    found = _widened(rate, spread, level=level, replicates=replicates, seed=seed)
    return found.low, found.high


def people_rate(
    hits: np.ndarray,
    people: np.ndarray,
    *,
    distinct: int | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> intervals.Rate:
    """Compute the share of hits among pairs of one kind, with an interval over people.

    Of one person's pairs nothing tells how people differ, and the interval is Wilson's;
    of no pairs it is [0, 1], and the rate 0.

    Args:
        hits: [N] bool.
        people: [N] whose, or [N, 2] of both sides.
        distinct: how many different things were tried, where trials try them again:
            the interval is not narrower than Wilson's of these.
        replicates: bootstrap draws.
        seed: of the draws.
    """
    hits, people = np.asarray(hits, bool), np.asarray(people)
    if people.ndim == 1:
        people = np.stack([people, people], axis=1)
    if len(np.unique(people)) < 2:
        return intervals.rate(int(hits.sum()), len(hits))
    share, n = float(hits.mean()), distinct or len(hits)
    low, high = people_interval(hits, people, replicates=replicates, seed=seed)
    below, above = int(np.floor(share * n)), int(np.ceil(share * n))
    low = min(low, float(intervals.wilson(below, n)[0]))
    return intervals.Rate(share, low, max(high, float(intervals.wilson(above, n)[1])))


def people_precision_recall_f1(
    accepted: np.ndarray,
    same: np.ndarray,
    people: np.ndarray | dyads.Dyads,
    *,
    level: float = 0.95,
    replicates: int = 1000,
    seed: int = 0,
) -> tuple[intervals.Rate, intervals.Rate, intervals.Rate]:
    """Compute the rates of `decisions.precision_recall_f1` with intervals over people.

    How many pairs are genuine is the list's doing and fixed, so all three are functions
    of recall and of the share of impostors accepted, and vary as these do.

    Arguments are those of `people_auc`, with accepted [N] bool for the scores.
    """
    accepted, same = np.asarray(accepted, bool), np.asarray(same, bool)
    counts = decisions.confusion(accepted, same)
    tp, fp, tn, fn = counts
    who = _known(people, len(accepted), same)
    genuine, found = tp + fn, max(tp + fp, 1)
    either = tp + fp + genuine
    slopes = (  # by the share of impostors accepted, and by recall
        (-tp * (fp + tn) / found**2, genuine * fp / found**2),
        (0.0, 1.0),
        (-2 * tp * (fp + tn) / either**2, 2 * genuine * (fp + genuine) / either**2),
    )
    rates = decisions.precision_recall_f1(counts, level=level)
    first, second, third = (
        _of_shares(
            rate,
            np.array(slope),
            *(accepted, who),
            level=level,
            replicates=replicates,
            seed=seed,
        )
        for rate, slope in zip(rates, slopes, strict=True)
    )
    return first, second, third


def people_tar(
    scores: np.ndarray,
    same: np.ndarray,
    people: np.ndarray | dyads.Dyads,
    *,
    far: float,
    curve: curves.Points | None = None,
    level: float = 0.95,
    replicates: int = 1000,
    seed: int = 0,
) -> intervals.Rate:
    """Compute the true accept rate at a false accept rate with an interval over people.

    The threshold is an estimate too: where FAR is found too high by d, TAR is too low
    by d times the ROC's slope, which is read off between the FAR that lie two standard
    errors apart.

    Arguments are those of `people_eer` and `curves.tar_at_far`.
    """
    scores, same = curves.checked(scores, same)
    who = _known(people, len(scores), same)
    impostors, genuine = map(int, np.bincount(same))
    curves.check_far(far, impostors)
    curve = curve or curves.roc(scores, same)
    tar, threshold = curves.at(curve, far)
    reach = 2 * math.sqrt(far * (1 - far) / impostors)
    near = np.clip([far - reach, far + reach], 0, 1)
    slope = np.ptp(np.interp(near, *curve[:2])) / np.ptp(near)
    return _of_shares(
        intervals.rate(round(tar * genuine), genuine, level=level),
        np.array([-slope, 1.0]),
        *(scores >= threshold, who),
        level=level,
        replicates=replicates,
        seed=seed,
    )


def people_auc(
    scores: np.ndarray,
    same: np.ndarray,
    people: np.ndarray | dyads.Dyads,
    *,
    level: float = 0.95,
    replicates: int = 1000,
    seed: int = 0,
) -> intervals.Rate:
    """Compute the area under the ROC with an interval over people.

    Arguments are those of `people_interval`, with scores [N] and same [N] bool for the
    outcomes; people [N, 2] may also be the `dyads.Dyads` of people and same. The
    interval is never narrower than DeLong's of independent pairs.

    The parts of the pairs are those of `delong.influence`.
    """
    scores, same = curves.checked(scores, same)
    who = _known(people, len(scores), same)
    value, parts = delong.influence(scores, same)
    rate = delong.interval(value, parts, same, level=level)
    spread = who.spread(parts.__getitem__)
    return _widened(rate, spread, level=level, replicates=replicates, seed=seed)


def people_eer(
    scores: np.ndarray,
    same: np.ndarray,
    people: np.ndarray | dyads.Dyads,
    *,
    curve: curves.Points | None = None,
    level: float = 0.95,
    replicates: int = 1000,
    seed: int = 0,
) -> intervals.Rate:
    """Compute the equal error rate with an interval over people.

    Where FNMR rises by g while FMR falls by i, an FNMR too high by d moves their
    meeting point up by d i / (g + i), and an FMR by d g / (g + i). g and i are read off
    the threshold's own uncertainty: between the scores at which the two rates differ by
    two standard errors. So an error of a genuine pair weighs i / (g + i), of an
    impostor pair the rest, and the sum varies as people do.

    Arguments are those of `people_auc`, and the ROC where it is known. The interval is
    never narrower than Wilson's of as many independent trials as would vary as much as
    independent pairs do here; where nothing is wrong, it is that of the rarer kind.
    """
    scores, same = curves.checked(scores, same)
    who = _known(people, len(scores), same)
    far, tar, threshold = curve or curves.roc(scores, same)
    value, n = curves.equal_error(far, tar), who.n
    least = intervals.wilson(value * n.min(), n.min(), level=level)
    weight = _steepness(far, tar, 2 * math.sqrt(value * (1 - value) * np.sum(1 / n)))
    bar = threshold[np.argmin(np.abs(1 - tar - far))]
    return _of_shares(
        intervals.Rate(value, *map(float, least)),
        weight,
        *((scores < bar) == same, who),
        level=level,
        replicates=replicates,
        seed=seed,
    )


def _of_shares(
    rate: intervals.Rate,
    weight: np.ndarray,
    outcome: np.ndarray,
    who: dyads.Dyads,
    *,
    level: float,
    replicates: int,
    seed: int,
) -> intervals.Rate:
    """Give a rate that depends on two shares an interval over people.

    Never narrower than Wilson's of as many independent trials as would vary as much as
    independent pairs do here.

    Args:
        rate: its value, and the interval where it is 0 or 1 or nothing varies.
        weight: [2] its slopes by the share of outcomes among impostors and among
            genuine pairs.
        outcome: [N] bool.
        who: the people of the pairs, of impostors and of genuine ones.
        level: confidence in (0, 1).
        replicates: bootstrap draws.
        seed: of the draws.
    """
    value, n, same = rate.value, who.n, who.group
    share = np.bincount(same, outcome, 2) / n
    alone = float(np.sum(weight**2 * share * (1 - share) / n))
    if not 0 < value < 1 or not alone:
        return rate
    trials = value * (1 - value) / alone
    low, high = map(float, intervals.wilson(value * trials, trials, level=level))
    least = intervals.Rate(value, low, high)

    def residual(part: slice) -> np.ndarray:
        kind = same[part].astype(np.int8)
        return (outcome[part] - share[kind]) * weight[kind]

    spread = who.spread(residual)
    return _widened(least, spread, level=level, replicates=replicates, seed=seed)


def _widened(
    rate: intervals.Rate,
    spread: dyads.Spread,
    *,
    level: float,
    replicates: int,
    seed: int,
) -> intervals.Rate:
    """Widen the interval of a rate, where need be, to that over people."""
    value, low, high = rate
    if spread.variance <= 0 or not 0 < value < 1:
        return rate
    deviation = _deviations(spread, replicates=replicates, seed=seed)
    below, above = _on_logit(value, deviation, level)
    return intervals.Rate(value, min(low, below), max(high, above))


def _steepness(far: np.ndarray, tar: np.ndarray, within: float) -> np.ndarray:
    """Return [g, i] / (g + i) of a ROC where its FNMR and FMR are that near."""
    apart = np.abs(1 - tar - far)
    near = np.flatnonzero(apart <= max(within, np.sort(apart)[1]))
    rise = np.array([np.ptp(tar[near]), np.ptp(far[near])])
    return rise / rise.sum()


def people_difference(
    a: np.ndarray,
    b: np.ndarray,
    people: np.ndarray,
    *,
    level: float = 0.95,
    replicates: int = 4000,
    seed: int = 0,
) -> intervals.Difference:
    """Compare how often two models are right on the same pairs, over people.

    Args:
        a: [N] bool, where one model is right.
        b: [N] bool, where the other is.
        people: [N, 2] person ids.
        level: confidence in (0, 1).
        replicates: bootstrap draws; p is at least 1 / (replicates + 1).
        seed: of the draws.

    Returns:
        The mean of a less that of b, its interval, and the two-sided p of no
        difference. Their variance is never below that of independent pairs after
        Agresti, Min 2005 (half a pair is added to each of the four outcomes).

    Raises:
        ValueError: on shapes that do not match, or fewer than two people.
    """
    a, b = np.asarray(a, bool), np.asarray(b, bool)
    if a.shape != b.shape:
        raise ValueError(f"outcomes {a.shape} and {b.shape}; wanted [N] and [N]")
    who = _known(people, len(a))
    each, N = a.astype(np.float64) - b, len(a)
    value = float(each.mean())
    spread = who.spread(lambda part: each[part] - value)
    moved, wins = np.abs(each).sum() + 1, each.sum()
    least = float(moved - wins**2 / (N + 2)) / (N + 2) ** 2
    spread = spread._replace(variance=max(spread.variance, least))
    deviation = _deviations(spread, replicates=replicates, seed=seed)
    high, low = value - np.quantile(deviation, [(1 - level) / 2, (1 + level) / 2])
    beyond = int(np.sum(np.abs(deviation) >= abs(value)))
    p = (1 + beyond) / (1 + replicates)
    return intervals.Difference(value, max(-1.0, float(low)), min(1.0, float(high)), p)


def _known(
    people: np.ndarray | dyads.Dyads, N: int, group: np.ndarray | None = None
) -> dyads.Dyads:
    if not isinstance(people, dyads.Dyads):
        people = dyads.Dyads(people, np.zeros(N, int) if group is None else group)
    if len(people) != N:
        raise ValueError(f"people of {len(people)} pairs for {N}; wanted as many")
    return people


def _deviations(spread: dyads.Spread, *, replicates: int, seed: int) -> np.ndarray:
    """Draw deviations of a mean [replicates]: redrawn people, Student's tails.

    The variance is itself estimated, from few people: each draw is divided by one of
    sqrt(chi2 / freedom), which turns normal tails into Student's.
    """
    rng = np.random.default_rng(seed)
    t, P = spread.t - spread.t.mean(), len(spread.t)
    shape = math.sqrt(t @ t)
    if shape <= 1e-12 * math.sqrt(spread.variance):
        drawn = rng.standard_normal(replicates)
    else:
        t, rows = t / shape, max(1, _DRAWN // P)
        sizes = (min(rows, replicates - i) for i in range(0, replicates, rows))
        who = (rng.integers(P, size=(size, P), dtype=np.int32) for size in sizes)
        drawn = np.concatenate([t[redrawn].sum(axis=1) for redrawn in who])
    tails = np.sqrt(rng.chisquare(spread.freedom, replicates) / spread.freedom)
    return drawn * math.sqrt(spread.variance) / tails


def _on_logit(value: float, deviation: np.ndarray, level: float) -> tuple[float, float]:
    """Return the ends of an interval by the delta method on the logit scale."""
    logit = math.log(value / (1 - value)) + deviation / (value * (1 - value))
    tails = np.quantile(logit, [(1 - level) / 2, (1 + level) / 2])
    low, high = 0.5 + 0.5 * np.tanh(tails / 2)
    return float(low), float(high)
