"""Fairness: does one threshold treat groups of people alike?

One law: the threshold is common, set on the pairs of all groups together, and every
difference between groups carries the interval that the groups' own intervals allow,
widened so that all of them hold at once (Bonferroni).

    rfw(path='RFW/test')|fairness                        four groups of RFW
    folder(path='x')|pairs_sampled|by_attribute(path='sex.csv')|fairness(far=1e-2)

Two errors are told apart, as NIST does: false rejects of a group's genuine pairs, and
false accepts between people of one group.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from absl import logging

from jaxface import types
from jaxface.eval import bootstrap, curves, dyads, folds, intervals, verification

_RATES = ("group_tar", "group_far")


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Verification of groups at one threshold.

    Attributes:
        groups: the pairs and their groups; pairs across groups help to set the
            threshold, and are counted apart.
        far: false accept rate over all pairs that sets the threshold.

    Raises:
        ValueError: with fewer than two groups, a group without genuine or impostor
            pairs, or too few impostor pairs for that rate.
    """

    groups: types.Groups
    _: dataclasses.KW_ONLY
    far: float = 1e-2

    def __post_init__(self) -> None:
        same, group, names = (
            self.groups.pairs.same,
            self.groups.group,
            self.groups.names,
        )
        if len(names) < 2 or group.shape != same.shape:
            raise ValueError(
                f"groups {list(names)[:5]}, group {group.shape} for {same.shape} pairs;"
                " wanted two groups or more, and one for every pair"
            )
        counts = [
            np.bincount(group[(group >= 0) & kind], minlength=len(names))
            for kind in (same, ~same)
        ]
        for name, genuine, impostors in zip(names, *counts, strict=True):
            if not genuine or not impostors:
                raise ValueError(
                    f"group {name!r} has {genuine} genuine and {impostors} impostor"
                    " pairs; wanted some of both, so leave it out or add pairs"
                )
        impostors = int(np.sum(~same))
        if not 1 / impostors <= self.far < 1:
            raise ValueError(
                f"far={self.far:g} with {impostors} impostor pairs; wanted at"
                " least one false accept to allow"
            )

    @property
    def work(self) -> int:
        """Images that one run puts through the network."""
        return len(self.groups.pairs.images)

    def run(self, embed: types.Embed) -> types.Result:
        """Embed the images once and compare the groups.

        Args:
            embed: gives [n, D] float for the n images, of any length but zero.

        Returns:
            Scalars: tar_gap (largest less smallest TAR), far_gap, equalised_odds (the
            larger of both, Hardt et al. 2016), each with an interval; far_ratio
            (largest by smallest) with one and far_inequity (largest by geometric mean,
            Grother 2022) where every group has a false accept; discrepancy
            (`_discrepancy`); accuracy_gap and error_ratio (RFW's skewed error ratio,
            where every group has an error) of k-fold accuracy, with intervals;
            `tar:NAME`, `far:NAME`, `accuracy:NAME` with intervals, `pairs:NAME`;
            pairs, across, groups, threshold. Artefacts: group [G] names, group_tar,
            group_far, each with _low and _high, group_pairs; scores, same, people,
            group_of.

        Raises:
            ValueError: on embeddings that are not finite, are zero, or not [n, D].
        """
        pairs, group = self.groups.pairs, self.groups.group
        unit = verification.unit_length(embed(pairs.images), pairs.images)
        scores = np.clip(np.sum(unit[pairs.left] * unit[pairs.right], axis=1), -1, 1)
        same, G = np.asarray(pairs.same, bool), len(self.groups.names)
        _, threshold = curves.tar_at_far(scores, same, far=self.far)
        tables = dict[str, np.ndarray]()
        for name, kind in zip(_RATES, (same, ~same), strict=True):
            tables[name] = self._table(scores >= threshold, kind)
        exact = self._exact(scores)
        scalars = _differences(tables, exact)
        for g, name in enumerate(self.groups.names):
            for rate, table in tables.items():
                scalars |= _rate(table[g, :3]).named(f"{rate[6:]}:{name}")
            scalars |= _rate(exact[g, :3]).named(f"accuracy:{name}")
            scalars[f"pairs:{name}"] = int(np.sum(group == g))
        scalars |= {
            "pairs": len(pairs),
            "across": int(np.sum(group < 0)),
            "groups": G,
            "threshold": min(threshold, 2.0),
        }
        return types.Result(
            scalars={name: float(value) for name, value in scalars.items()},
            artefacts={"group": np.array(self.groups.names)}
            | {
                f"{rate}{end}": table[:, column]
                for rate, table in tables.items()
                for column, end in enumerate(("", "_low", "_high"))
            }
            | {
                "group_pairs": np.bincount(group[group >= 0], minlength=G),
                "group_of": group,
                "scores": scores,
                "same": same,
                "people": np.asarray(pairs.people),
            },
        )

    def _table(self, accepted: np.ndarray, kind: np.ndarray) -> np.ndarray:
        """Return [G, 5]: rate, its 95 % interval, and the one that holds jointly."""
        people, G = self.groups.pairs.people, len(self.groups.names)
        rows = []
        for g in range(G):
            own = kind & (self.groups.group == g)
            who = dyads.Dyads(people[own])
            ends = [
                bootstrap.people_interval(accepted[own], who, level=level)
                for level in (0.95, 1 - 0.05 / G)
            ]
            rows.append([accepted[own].mean(), *ends[0], *ends[1]])
        return np.array(rows)

    def _exact(self, scores: np.ndarray) -> np.ndarray:
        """Return `_table`'s [G, 5] of the k-fold accuracy, by which RFW judges."""
        pairs, G = self.groups.pairs, len(self.groups.names)
        correct, mean = np.zeros(len(pairs), bool), np.zeros(G)
        for g in range(G):
            own = self.groups.group == g
            _, fold = np.unique(pairs.fold[own], return_inverse=True)
            found = folds.kfold_accuracy(scores[own], np.asarray(pairs.same[own]), fold)
            correct[own], mean[g] = found.correct, found.mean
        table = self._table(correct, np.ones(len(pairs), bool))
        return np.column_stack([mean, table[:, 1:]])


def _differences(tables: dict[str, np.ndarray], exact: np.ndarray) -> dict[str, float]:
    """Return gaps and ratios of groups, the last of their accuracy by folds."""
    gaps = [_gap(tables[rate]) for rate in _RATES]
    scalars = gaps[0].named("tar_gap") | gaps[1].named("far_gap")
    scalars |= _rate(np.max(gaps, axis=0)).named("equalised_odds")
    scalars |= _ratios(tables["group_far"])
    scalars["discrepancy"] = _discrepancy(tables)
    scalars |= _gap(exact).named("accuracy_gap")
    errors = 1 - exact[:, [0, 2, 1, 4, 3]]  # what bounds accuracy above, these below
    if errors[:, 0].all():
        scalars |= _ratio(errors).named("error_ratio")
    return scalars


def _gap(table: np.ndarray) -> intervals.Rate:
    """Return the largest less the smallest rate, and its joint interval."""
    rate, low, high = table[:, 0], table[:, 3], table[:, 4]
    return intervals.Rate(
        float(np.ptp(rate)),
        float(max(0.0, low.max() - high.min())),
        float(high.max() - low.min()),
    )


def _ratios(table: np.ndarray) -> dict[str, float]:
    """Return ratios of false accept rates, none where a group has no false accept."""
    rate = table[:, 0]
    if not rate.all():
        logging.info(
            "ratios of FAR are left out: %d of %d groups have no false accept",
            int(np.sum(rate == 0)),
            len(rate),
        )
        return {}
    # Grother, NISTIR 8429 (2022): the largest by the geometric mean
    inequity = rate.max() / np.exp(np.log(rate).mean())
    return _ratio(table).named("far_ratio") | {"far_inequity": inequity}


def _ratio(table: np.ndarray) -> intervals.Rate:
    """Return the largest by the smallest rate, and its joint interval."""
    rate, low, high = table[:, 0], table[:, 3], table[:, 4]
    ratio, least = rate.max() / rate.min(), low.max() / high.min()
    return intervals.Rate(
        float(ratio), float(max(1.0, least)), float(high.max() / low.min())
    )


def _discrepancy(tables: dict[str, np.ndarray]) -> float:
    """Return the fairness discrepancy rate: 1 where groups are alike, 0 at worst.

    De Freitas Pereira, Marcel 2021, eqs. (3)-(5), with alpha = 0.5; FNMR = 1 - TAR.
    """
    return float(1 - 0.5 * sum(np.ptp(table[:, 0]) for table in tables.values()))


def _rate(row: np.ndarray) -> intervals.Rate:
    return intervals.Rate(*(float(x) for x in row))
