"""Scores and outcomes of pairs, made up: what the metrics are tested on."""

import statistics

import numpy as np

CDF = statistics.NormalDist().cdf


def draw(seed, n=200, *, decimals=6):
    """Cosines of n pairs, genuine ones higher; few decimals make ties."""
    rng = np.random.default_rng(seed)
    same = rng.random(n) < 0.5
    scores = np.clip(rng.normal(0.1 + 0.3 * same, 0.2), -1, 1)
    return np.round(scores, decimals), same


def pairs(rng, P, N):
    """N pairs of one person and N of two, among P people, [2 N, 2]."""
    a, b = rng.integers(P, size=(2, N))
    other = (b + rng.integers(1, P, N)) % P
    return np.concatenate([np.stack([a, a], 1), np.stack([b, other], 1)])


def shares(rng, people, effect):
    """What people, some harder than others, add to their pairs' scores [N]."""
    hard = effect * rng.normal(size=people.max() + 1)
    two = people[:, 0] != people[:, 1]
    return np.where(two, hard[people].sum(axis=1) / np.sqrt(2), hard[people[:, 0]])


def outcomes(rng, *, P, N, effect):
    """Return (correct, people, true rate) of 2 N pairs: probit with person effects."""
    people = pairs(rng, P, N)
    right = 1.2 + shares(rng, people, effect) + rng.normal(size=2 * N) > 0
    return right, people, CDF(1.2 / np.sqrt(1 + effect**2))


def scored(rng, *, P, N, effect):
    """Return (scores, same, people, true AUC) of 2 N pairs: binormal.

    The true equal error rate is that of one normal below -1 / sqrt(1 + effect^2).
    """
    people = pairs(rng, P, N)
    same = people[:, 0] == people[:, 1]
    moved = np.where(same, 1, -1) * shares(rng, people, effect)
    scores = 2.0 * same + moved + rng.normal(size=2 * N)
    return scores, same, people, CDF(2 / np.sqrt(2 * (1 + effect**2)))


def crossed(rng, *, P, N, effect):
    """The same with the true equal error rate."""
    *given, _ = scored(rng, P=P, N=N, effect=effect)
    return *given, CDF(-1 / np.sqrt(1 + effect**2))


def accepted(rng, *, P, N, effect, far):
    """The same with the true accept rate at a false accept rate."""
    *given, _ = scored(rng, P=P, N=N, effect=effect)
    wide = np.sqrt(1 + effect**2)
    bar = wide * statistics.NormalDist().inv_cdf(1 - far)
    return *given, CDF((2 - bar) / wide)


def decided(rng, *, P, N, effect):
    """Return (accepted at 1, same, people, true [precision, recall, F1]) of them."""
    scores, same, people, _ = scored(rng, P=P, N=N, effect=effect)
    recall = CDF(1 / np.sqrt(1 + effect**2))  # as many impostors are rejected
    return scores >= 1, same, people, np.full(3, recall)


def two_models(rng, *, P, N, effect):
    """Return (correct of a, of b, people, true difference); both find much alike."""
    people = pairs(rng, P, N)
    common = 0.7 * (shares(rng, people, effect) + rng.normal(size=2 * N))

    def right(base):
        own = shares(rng, people, effect) + rng.normal(size=2 * N)
        return base + common + np.sqrt(1 - 0.7**2) * own > 0

    wide = np.sqrt(1 + effect**2)
    return right(1.2), right(1.0), people, CDF(1.2 / wide) - CDF(1.0 / wide)
