"""Identification: whose face among many is this, and is it anybody's at all?

One law: comparison is exact and its memory bounded, one block of cosines at a time; and
what a network cannot tell apart it has not found: strangers as near as the mate, within
`TIE`, rank before it.

    found = search_all(probe, gallery, probe_id, gallery_id)
    rate, low, high = cmc(found, ranks=20)                     # each [20]
    point = open_set(found, fpir=(1e-2, 1e-1))                 # tpir, threshold, ...
    score, row = nearest(probe, gallery, k=5)                  # each [Q, 5]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxface.eval import bootstrap, intervals

TIE = 1e-6  # what float32 rounding leaves uncertain of a cosine
_PROBES, _GALLERY = 512, 4096  # a block of cosines: 8 MiB


@dataclasses.dataclass(frozen=True)
class Searches:
    """What Q searches of a gallery found.

    Attributes:
        rank: [Q] int64, the place of the probe's mate among all identities' best
            scores, 1 the first; 0 where the gallery has no mate.
        mate: [Q] float32, cosine of the best mate; -inf where there is none.
        stranger: [Q] float32, highest cosine of another identity; -inf where the
            gallery has nobody else.
    """

    rank: np.ndarray
    mate: np.ndarray
    stranger: np.ndarray


class Curve(NamedTuple):
    """Rates [K] and the ends of their 95 % intervals."""

    rate: np.ndarray
    low: np.ndarray
    high: np.ndarray


class OpenSet(NamedTuple):
    """Open-set rates at M thresholds.

    Attributes:
        fpir: [M] false positive identification rate measured at the threshold.
        fpir_low, fpir_high: [M] its 95 % interval.
        tpir: [M] true positive identification rate; FNIR is 1 - tpir.
        tpir_low, tpir_high: [M] its 95 % interval.
        threshold: [M] lowest cosine that keeps FPIR within its target.
        mated, unmated: searches that the two rates are measured on.
    """

    fpir: np.ndarray
    fpir_low: np.ndarray
    fpir_high: np.ndarray
    tpir: np.ndarray
    tpir_low: np.ndarray
    tpir_high: np.ndarray
    threshold: np.ndarray
    mated: int
    unmated: int


def cmc(found: Searches, *, ranks: int, people: np.ndarray | None = None) -> Curve:
    """Compute the cumulative match characteristic of the mated searches.

    Args:
        found: of `search_all`; searches without a mate are not counted.
        ranks: K.
        people: [Q] int, whose each probe is; None takes searches as independent.

    Returns:
        Rates [K] of a mate among the first 1 .. K identities, with Wilson's interval,
        or, where people are told, one over people, for several probes of a person
        succeed and fail together.

    Raises:
        ValueError: if ranks < 1, people are not [Q], or no search has a mate.
    """
    rank = _mated(found.rank)
    if ranks < 1:
        raise ValueError(f"ranks={ranks}; wanted at least 1")
    hits = np.cumsum(np.bincount(rank, minlength=ranks + 1)[1 : ranks + 1])
    if people is None:
        return Curve(hits / len(rank), *intervals.wilson(hits, len(rank)))
    if np.shape(people) != found.rank.shape:
        raise ValueError(f"people {np.shape(people)} for {len(found.rank)} searches")
    who = np.repeat(people[found.rank > 0][:, None], 2, axis=1)
    ends = [bootstrap.people_interval(rank <= k, who) for k in range(1, ranks + 1)]
    return Curve(hits / len(rank), *np.array(ends).T)


def open_set(found: Searches, *, fpir: Sequence[float], rank: int = 1) -> OpenSet:
    """Compute the true positive identification rate at false positive ones.

    A search without a mate is a false positive where any score reaches the threshold;
    one with a mate is a true positive where the mate's does and its rank is good
    enough.

    Args:
        found: of `search_all`.
        fpir: [M] target rates in (0, 1).
        rank: the worst rank that identifies.

    Raises:
        ValueError: without searches of both kinds, or at a rate below 1/unmated, where
            no false positive could be allowed.

    FNIR(N, R, T) and FPIR(N, T) of NIST's FRVT 1:N, Grother et al. 2019, section 3.
    """
    mated = _mated(found.rank)
    alarm = np.sort(found.stranger[found.rank == 0])[::-1]  # [U], the highest first
    U, target = len(alarm), np.asarray(fpir, np.float64)
    if not U:
        raise ValueError(f"all {len(mated)} searches have a mate; wanted some without")
    if not np.all((target > 0) & (target < 1)):
        raise ValueError(f"fpir={fpir} are not rates in (0, 1)")
    if target.min() < 1 / U:
        raise ValueError(
            f"fpir={target.min():g} needs at least {int(np.ceil(1 / target.min()))}"
            f" searches without a mate, got {U}"
        )
    # The threshold is just above the first alarm that must not pass.
    allowed = np.searchsorted(np.arange(1, U + 1) / U, target, side="right")
    threshold = np.nextafter(alarm[allowed], np.float32(np.inf))
    alarms = np.sum(alarm[None, :] >= threshold[:, None], axis=1)
    mate = found.mate[(found.rank > 0) & (found.rank <= rank)]
    hits = np.sum(mate[None, :] >= threshold[:, None], axis=1)
    return OpenSet(
        alarms / U,
        *intervals.wilson(alarms, U),
        hits / len(mated),
        *intervals.wilson(hits, len(mated)),
        threshold,
        len(mated),
        U,
    )


def _mated(rank: np.ndarray) -> np.ndarray:
    mated = rank[rank > 0]
    if not len(mated):
        raise ValueError(f"none of {len(rank)} searches has a mate in the gallery")
    return mated


def search_all(
    probe: np.ndarray,
    gallery: np.ndarray,
    probe_id: np.ndarray,
    gallery_id: np.ndarray,
) -> Searches:
    """Search every probe in the whole gallery.

    Args:
        probe: [Q, D] unit float32.
        gallery: [G, D] unit float32, one row or more an identity.
        probe_id: [Q] int identities; those that the gallery lacks are searches
            without a mate.
        gallery_id: [G] int identities.

    Returns:
        `Searches`: ranks count gallery rows of other identities, which are identities
        where each has one row.

    Raises:
        ValueError: on shapes that do not fit or rows that are not finite.
    """
    probe, gallery = _rows(probe), _rows(gallery)
    probe_id, gallery_id = np.asarray(probe_id), np.asarray(gallery_id)
    for name, ids, of in (
        ("probe_id", probe_id, probe),
        ("gallery_id", gallery_id, gallery),
    ):
        if ids.shape != (len(of),):
            raise ValueError(f"{name} {ids.shape} for {len(of)} rows")
    where, row = _mates(probe_id, gallery_id)  # all (probe, gallery row) of one person
    mate = np.full(len(probe), -np.inf, np.float32)
    for i in range(0, len(row), _GALLERY):
        q, g = where[i : i + _GALLERY], row[i : i + _GALLERY]
        np.maximum.at(mate, q, np.einsum("pd,pd->p", probe[q], gallery[g]))
    before = np.zeros(len(probe), np.int64)
    stranger = np.full(len(probe), -np.inf, np.float32)
    bar = (mate - np.float32(TIE))[:, None]
    for rows, columns, cos in _blocks(probe, gallery):
        own = slice(*np.searchsorted(where, (rows.start, rows.stop)))
        q, g = where[own] - rows.start, row[own] - columns.start
        here = (g >= 0) & (g < cos.shape[1])
        cos[q[here], g[here]] = -np.inf
        before[rows] += np.count_nonzero(cos >= bar[rows], axis=1)
        stranger[rows] = np.maximum(stranger[rows], cos.max(axis=1))
    return Searches(np.where(np.isfinite(mate), before + 1, 0), mate, stranger)


def nearest(
    probe: np.ndarray, gallery: np.ndarray, *, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find the k nearest gallery rows of every probe.

    Args:
        probe: [Q, D] unit float32.
        gallery: [G, D] unit float32.
        k: at most G.

    Returns:
        (cosine [Q, k] float32, row [Q, k] int64), the nearest first; among equals the
        lower row.

    Raises:
        ValueError: on shapes that do not fit, rows that are not finite, or k beyond G.
    """
    probe, gallery = _rows(probe), _rows(gallery)
    if not 1 <= k <= len(gallery):
        raise ValueError(f"k={k} of {len(gallery)} gallery rows; wanted 1 to all")
    score = np.full((len(probe), k), -np.inf, np.float32)
    found = np.full((len(probe), k), len(gallery), np.int64)
    for rows, columns, cos in _blocks(probe, gallery):
        # Only what beats the k-th so far can enter: soon that is next to nothing.
        bar = score[rows, -1:]
        if not columns.start:  # everything does, but the block's own k-th cuts it off
            most = min(k, cos.shape[1])
            bar = np.nextafter(np.partition(cos, -most, axis=1)[:, [-most]], bar)
        q, g = divmod(np.flatnonzero(cos > bar), cos.shape[1])
        old = len(cos)
        who = np.concatenate([np.repeat(np.arange(old), k), q])
        value = np.concatenate([score[rows].ravel(), cos[q, g]])
        place = np.concatenate([found[rows].ravel(), g + columns.start])
        order = np.lexsort((place, -value, who))
        starts = np.searchsorted(who[order], np.arange(old))
        best = order[starts[:, None] + np.arange(k)]
        score[rows], found[rows] = value[best], place[best]
    return score, found


def _mates(probe_id: np.ndarray, gallery_id: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return all (probe, gallery row) with one identity, sorted by probe."""
    order = np.argsort(gallery_id, kind="stable")
    ids = gallery_id[order]
    first, last = (np.searchsorted(ids, probe_id, side) for side in ("left", "right"))
    count = last - first
    where = np.repeat(np.arange(len(probe_id)), count)
    step = np.arange(len(where)) - np.repeat(np.cumsum(count) - count, count)
    return where, order[np.repeat(first, count) + step]


def _rows(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float32)
    if x.ndim != 2 or not len(x) or not np.isfinite(x).all():
        raise ValueError(f"embeddings {x.shape}; wanted [n, D] finite, n at least 1")
    return x


def _blocks(
    probe: np.ndarray, gallery: np.ndarray
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Yield (probes, gallery rows, their cosines): all of one probe block in turn."""
    for i in range(0, len(probe), _PROBES):
        rows = slice(i, i + _PROBES)
        for j in range(0, len(gallery), _GALLERY):
            columns = slice(j, j + _GALLERY)
            yield rows, columns, probe[rows] @ gallery[columns].T
