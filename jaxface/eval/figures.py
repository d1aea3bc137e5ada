"""Drawings of what evaluators found, several runs in one.

One law: a drawing shows the artefacts and nothing it made up; runs and kinds differ
in dash or marker as well as in colour, and the caption says in words what is seen.

    with page.drawn():
        for drawing in drawings({"before": result, "after": other}):
            drawing.kind, drawing.figure, drawing.says      # "roc", ..., "AUC 0.9994"
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import figure, ticker

from jaxface import page, types
from jaxface.eval import bootstrap, curves, dyads, intervals, robustness

Results = Mapping[str, types.Result]
_POINTS = 400  # of a curve at most: what a page can show and a browser bears
_BANDED = 32  # of them with an interval over people, which is interpolated between


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A drawing, still to be written into the page.

    Attributes:
        kind: what it is, of lower-case letters and hyphens; once in a set.
        figure: of matplotlib.
        says: the caption, which those read who do not see the drawing.
    """

    kind: str
    figure: figure.Figure
    says: str


def drawings(results: Results) -> Iterator[Drawing]:
    """Draw all that the artefacts of one set allow.

    Args:
        results: of the set, by the name of the run.
    """
    for needed, draw in _DRAWN.items():
        having = {run: r for run, r in results.items() if needed in r.artefacts}
        if having:
            yield draw(having)
    for k, (run, result) in enumerate(results.items()):
        if "same" in result.artefacts:
            yield histogram(result, run if len(results) > 1 else "", kind=f"scores-{k}")
    for kind in _kinds(results, "curve"):
        having = {
            run: r for run, r in results.items() if f"curve:{kind}:x" in r.artefacts
        }
        yield curve(having, kind)
    if _kinds(results, "reject"):
        yield reject(results)


def roc(results: Results) -> Drawing:
    """Draw true against false accepts, down to the rarest the impostors can show."""
    drawing, axes = page.axes_of("ROC", x="false accept rate", y="true accept rate")
    lines = {}
    for run, result in results.items():
        far, tar, low, high = _operating(result.artefacts)
        # between two false accept rates nothing can be asked for: steps
        lines[run] = axes.step(far, tar, where="post", lw=1.6)[0]
        _band(axes, lines[run], far, low, high, step="post")
    axes.set(xscale="log", ylim=(None, 1.002))
    _plain(axes.xaxis)
    _legend(axes, lines, "lower right")
    said = {run: f"AUC {_measured(r, 'auc', curves.auc)}" for run, r in results.items()}
    return Drawing(
        "roc", drawing, f"{_each(said)}; {_pairs(results)}.{_band_of(results)}"
    )


def det(results: Results) -> Drawing:
    """Draw misses against false accepts, both axes logarithmic."""
    drawing, axes = page.axes_of("DET", x="false accept rate", y="miss rate (1 - TAR)")
    lines, floor = {}, 1.0
    for run, result in results.items():
        far, tar, low, high = _operating(result.artefacts)
        least = 0.3 / np.sum(result.artefacts["same"])
        floor = min(floor, least)
        miss = np.where(tar < 1, 1 - tar, np.nan)  # none is not on this axis
        lines[run] = axes.step(far, miss, where="post", lw=1.6)[0]
        below, above = np.maximum(1 - high, least), np.maximum(1 - low, least)
        _band(axes, lines[run], far, below, above, step="post")
    axes.set(xscale="log", yscale="log")
    right = axes.get_xlim()[1]
    axes.plot([floor, 1], [floor, 1], color=page.SOFT, lw=0.8, ls=":", scalex=False)
    axes.set(ylim=(floor, 1), xlim=(None, right))
    _plain(axes.xaxis, axes.yaxis)
    _legend(axes, lines, "upper right")
    said = {run: f"EER {_measured(r, 'eer', curves.eer)}" for run, r in results.items()}
    text = f"{_each(said)}, on the dotted diagonal; {_pairs(results)}."
    return Drawing("det", drawing, text + _band_of(results))


def histogram(result: types.Result, run: str, *, kind: str) -> Drawing:
    """Draw the scores of genuine and impostor pairs and the threshold."""
    a = result.artefacts
    title = f"Scores, {page.label(run)}" if run else "Scores"
    drawing, axes = page.axes_of(title, x="score", y="share of its kind")
    scores, same = np.asarray(a["scores"]), np.asarray(a["same"], bool)
    bins = np.histogram_bin_edges(scores, 50)
    handles, said = {}, {}
    for name, of, dash in (("genuine", same, "-"), ("impostor", ~same, "--")):
        share = np.histogram(scores[of], bins)[0] / max(1, np.sum(of))
        patch = axes.stairs(share, bins, fill=True, alpha=0.3, lw=0)
        color = patch.get_facecolor()
        handles[name] = axes.stairs(share, bins, color=color[:3], ls=dash, lw=1.4)
        if of.any():
            said[name] = f"median {np.median(scores[of]):.3f} of {np.sum(of):,}"
    text = _each(said, always=True)
    if "threshold" in result.scalars:
        threshold = result.scalars["threshold"]
        text += f"; threshold {threshold:.3f}"
        drawn = axes.axvline(threshold, color=page.INK, lw=1.2, ls=":")
        handles["threshold"] = drawn
    _legend(axes, handles, "best")
    return Drawing(kind, drawing, f"{text}.")


def cmc(results: Results) -> Drawing:
    """Draw how often the right person is among the first k."""
    drawing, axes = page.axes_of("CMC", x="rank", y="found within the rank")
    lines, said = {}, {}
    for (run, result), mark in zip(results.items(), _marks(), strict=False):
        a = result.artefacts
        rank = np.arange(1, len(a["cmc"]) + 1)
        dots = mark if len(rank) <= 40 else ""
        lines[run] = axes.plot(rank, a["cmc"], marker=dots, ms=3.5, lw=1.5)[0]
        _band(axes, lines[run], rank, a["cmc_low"], a["cmc_high"])
        said[run] = f"{a['cmc'][0]:.4f} at rank 1, {a['cmc'][-1]:.4f} at {rank[-1]}"
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, min_n_ticks=1))
    _legend(axes, lines, "lower right")
    return Drawing("cmc", drawing, f"{_each(said)}.{_BAND}")


def open_set(results: Results) -> Drawing:
    """Draw identification of the enrolled against false alarms of the others."""
    drawing, axes = page.axes_of(
        "Open set", x="false positive identification rate", y="TPIR (1 - FNIR)"
    )
    lines, said, band = {}, {}, ""
    for (run, result), mark in zip(results.items(), _marks(), strict=False):
        a = result.artefacts
        x, y = np.asarray(a["fpir"], float), np.asarray(a["tpir"], float)
        shown = x > 0
        dots = mark if len(x) <= 40 else ""
        lines[run] = axes.plot(x[shown], y[shown], marker=dots, ms=3.5, lw=1.5)[0]
        if "tpir_low" in a:
            low, high = a["tpir_low"][shown], a["tpir_high"][shown]
            _band(axes, lines[run], x[shown], low, high)
            band = _BAND
        first, last = (f"{y[i]:.4f} at FPIR {x[i]:.3g}" for i in (0, -1))
        said[run] = first if len(x) == 1 else f"{first}, {last}"
    axes.set(xscale="log", ylim=(None, 1.005))
    _plain(axes.xaxis)
    _legend(axes, lines, "lower right")
    return Drawing("open-set", drawing, f"{_each(said)}.{band}")


def groups(results: Results) -> Drawing:
    """Draw each group's two error rates as bars from nought, with intervals."""
    names = list(dict.fromkeys(str(g) for r in results.values() for g in _groups(r)))
    R = len(results)
    size = (4.8, 1.1 + 0.2 * len(names) * (R + 0.5))
    drawing = figure.Figure(figsize=size, layout="constrained")
    panels = drawing.subplots(1, 2, sharey=True)
    handles: dict[str, Any] = {}
    for k, (run, result) in enumerate(results.items()):
        a = result.artefacts
        at = np.array([names.index(str(g)) for g in _groups(result)]) + k / (R + 0.5)
        told = {"height": 0.9 / (R + 0.5), "color": page.COLORS[k % 6], "alpha": 0.5}
        told |= {"hatch": ("", "//", "..", "xx", "\\\\", "++")[k % 6]}
        told |= {"ecolor": page.INK, "capsize": 2}
        for axes, of in zip(panels, ("tar", "far"), strict=True):
            y, low, high = (np.asarray(a[f"group_{of}{e}"]) for e in _ENDS)
            if of == "tar":  # so that a longer bar is worse on both sides
                y, low, high = 1 - y, 1 - high, 1 - low
            whisker = np.maximum(0, np.stack([y - low, high - y]))
            handles[run] = axes.barh(at, y, xerr=whisker, **told)
    middle = np.arange(len(names)) + (R - 1) / 2 / (R + 0.5)
    panels[0].set_yticks(middle, [page.label(name, longest=16) for name in names])
    panels[0].invert_yaxis()
    for axes, x in zip(
        panels, ("misses (1 - TAR)", "false accepts (FAR)"), strict=True
    ):
        axes.set(xlabel=x, xlim=(0, None))
        axes.grid(axis="y", visible=False)
    panels[0].set_title("Groups")
    if R > 1:
        runs = [page.label(run) for run in handles]
        drawing.legend(list(handles.values()), runs, loc="outside lower center")
    said = {run: _worst_group(result) for run, result in results.items()}
    return Drawing("groups", drawing, f"{_each(said)}. Whiskers: 95 % intervals.")


def curve(results: Results, kind: str) -> Drawing:
    """Draw accuracy against the strength of one degradation."""
    drawing, axes = page.axes_of(
        page.label(kind).replace("_", " "),
        x=robustness.UNITS.get(kind, "strength"),
        y="accuracy",
        height=2.6,
    )
    lines, said = {}, {}
    for (run, result), mark in zip(results.items(), _marks(), strict=False):
        x, y, low, high = (
            np.asarray(result.artefacts[f"curve:{kind}:{part}"])
            for part in ("x", "y", "low", "high")
        )
        lines[run] = axes.plot(x, y, marker=mark, ms=3.5, lw=1.5)[0]
        _band(axes, lines[run], x, low, high)
        worst = int(np.argmin(y))
        said[run] = f"lowest {y[worst]:.3f} at {x[worst]:g}, highest {np.max(y):.3f}"
    axes.set(ylim=(0, 1.02))  # of all kinds, so that one look compares them
    _legend(axes, lines, "best")
    place = _kinds(results, "curve").index(kind)  # a name may hold what no id may
    return Drawing(f"curve-{place}", drawing, f"{_each(said)}.{_BAND}")


def reject(results: Results) -> Drawing:
    """Draw the misses that remain when the images of least quality are rejected."""
    drawing, axes = page.axes_of(
        "Error against reject", x="share rejected", y="miss rate (FNMR)"
    )
    lines, said = {}, {}
    for run, result in results.items():
        for method in _kinds({run: result}, "reject"):
            x, y = (np.asarray(result.artefacts[f"reject:{method}:{c}"]) for c in "xy")
            name = f"{method}, {run}" if len(results) > 1 else method
            lines[name] = axes.plot(x, y, lw=1.5)[0]
            fifth = min(int(np.searchsorted(x, 0.2)), len(x) - 1)
            said[name] = f"{y[0]:.4f} of all, {y[fifth]:.4f} with {x[fifth]:.0%} gone"
    axes.set(ylim=(0, None))
    axes.xaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=0))
    _legend(axes, lines, "best", always=True)
    return Drawing("reject", drawing, f"{_each(said, always=True)}.")


def learning(
    histories: Mapping[str, Sequence[Mapping[str, float]]],
) -> Iterator[Drawing]:
    """Draw the loss and the accuracies of training, where they were logged.

    Args:
        histories: rows with "step", by the name of the run.
    """
    names = {key for rows in histories.values() for row in rows for key in row}
    measured = sorted(n for n in names if n.endswith("/accuracy"))
    for kind, title, keys in (
        ("loss", "Training loss", ["loss"]),
        ("accuracy", "Accuracy", ["accuracy", *measured]),
    ):
        if not names & set(keys):
            continue
        drawing, axes = page.axes_of(title, x="step", y="")
        lines: dict[str, Any] = {}
        said = {}
        for run, rows in histories.items():
            for key in keys:
                step, value = _series(rows, key)
                if not len(step):
                    continue
                name = key.rpartition("/")[0] or "training"
                name = f"{name}, {run}" if len(histories) > 1 else name
                mark = page.MARKERS[len(lines) % 6] if len(step) <= 40 else ""
                lines[name] = axes.plot(step, value, marker=mark, ms=3.5, lw=1.4)[0]
                low, high = (_series(rows, key + end)[1] for end in _ENDS[1:])
                if len(low) == len(high) == len(step):
                    _band(axes, lines[name], step, low, high)
                said[name] = f"{value[-1]:.4g} at step {step[-1]:g}"
        _legend(axes, lines, "best", always=kind == "accuracy")
        yield Drawing(kind, drawing, f"{_each(said)}.")


def scatter(xy: np.ndarray, identity: np.ndarray, *, kind: str, title: str) -> Drawing:
    """Draw points [n, 2], each person's in one colour and one shape.

    Args:
        xy: [n, 2].
        identity: [n] ids; 36 people differ, later ones look like the first again.
        kind: of the drawing.
        title: of the drawing.
    """
    drawing, axes = page.axes_of(title, x="", y="", height=3.6)
    known, who = np.unique(identity, return_inverse=True)
    for k in range(len(known)):
        color, marker = page.COLORS[k % 6], page.MARKERS[(k // 6) % 6]
        x, y = xy[who == k].T
        axes.scatter(x, y, s=22, color=color, marker=marker, alpha=0.8, lw=0)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    text = f"{len(xy):,} images of {len(known):,} people; a colour and a shape each."
    if len(known) > 36:
        text += f" Of {len(known)} people some look alike: there are 36 looks."
    return Drawing(kind, drawing, text)


_ENDS = ("", "_low", "_high")
_BAND = " Band: 95 % interval, point by point."
_DRAWN: dict[str, Callable[[Results], Drawing]] = {
    "same": roc,
    "scores": det,
    "cmc": cmc,
    "fpir": open_set,
    "group": groups,
}


def _operating(a: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """Return (far, tar, low, high), the best TAR of each FAR above nought."""
    curve = curves.roc(a["scores"], a["same"])
    far, tar, _ = curve
    best = np.flatnonzero(np.append(np.diff(far) > 0, True) & (far > 0))
    best = _thinned(far, best, _POINTS)
    few = _thinned(far, best[far[best] < 1], _BANDED)
    if "people" in a and len(few):
        who = dyads.Dyads(a["people"], a["same"])
        ends = [
            bootstrap.people_tar(a["scores"], a["same"], who, far=x, curve=curve)
            for x in far[few].tolist()
        ]
        at, known = np.log(far[best]), np.log(far[few])
        low = np.minimum(np.interp(at, known, [r.low for r in ends]), tar[best])
        high = np.maximum(np.interp(at, known, [r.high for r in ends]), tar[best])
    else:
        n = int(np.sum(a["same"]))
        low, high = intervals.wilson(np.rint(tar[best] * n).astype(np.int64), n)
    return far[best], tar[best], low, high


def _thinned(far: np.ndarray, at: np.ndarray, count: int) -> np.ndarray:
    """Return at most `count` of some places of a curve, evenly on a log scale."""
    if len(at) <= count:
        return at
    wanted = np.geomspace(far[at[0]], far[at[-1]], count)
    return at[np.unique(np.searchsorted(far[at], wanted * (1 - 1e-12)))]


def _band_of(results: Results) -> str:
    """Say what the bands of `_operating` are."""
    if all("people" in r.artefacts for r in results.values()):
        return _BAND
    return " Band: 95 % interval of independent pairs, point by point."


def _measured(result: types.Result, name: str, measure: Callable[..., float]) -> str:
    """Return what a curve comes to, with its interval where the scalars have one."""
    a, of = result.artefacts, result.scalars
    text = f"{measure(a['scores'], a['same']):.4f}"
    if f"{name}_low" in of:
        text += f" [{of[f'{name}_low']:.4f}, {of[f'{name}_high']:.4f}]"
    return text


def _series(
    history: Sequence[Mapping[str, float]], key: str
) -> tuple[list[float], list[float]]:
    rows = [row for row in history if key in row]
    return [row["step"] for row in rows], [row[key] for row in rows]


def _kinds(results: Results, family: str) -> list[str]:
    """Return the KINDs of artefacts called `family:KIND:x`, in their order."""
    names = [name for result in results.values() for name in result.artefacts]
    found = [n for n in names if n.startswith(f"{family}:") and n.endswith(":x")]
    return list(dict.fromkeys(n[len(family) + 1 : -2] for n in found))


def _groups(result: types.Result) -> np.ndarray:
    return np.asarray(result.artefacts["group"])


def _worst_group(result: types.Result) -> str:
    a = result.artefacts
    low, high = int(np.argmin(a["group_tar"])), int(np.argmax(a["group_far"]))
    return (
        f"lowest TAR {a['group_tar'][low]:.4f} of {a['group'][low]}, highest FAR"
        f" {a['group_far'][high]:.2g} of {a['group'][high]}, {len(a['group'])} groups"
    )


def _marks() -> Iterator[str]:
    while True:
        yield from page.MARKERS


def _band(axes: Any, line: Any, x: Any, low: Any, high: Any, **told: Any) -> None:
    axes.fill_between(x, low, high, color=line.get_color(), alpha=0.16, lw=0, **told)


def _legend(
    axes: Any, handles: Mapping[str, Any], loc: str, *, always: bool = False
) -> None:
    if len(handles) > 1 or always:
        names = [page.label(name) for name in handles]
        axes.legend(list(handles.values()), names, loc=loc, handlelength=2.8)


def _plain(*axes: Any) -> None:
    """Write the ticks of logarithmic axes as numbers."""
    for axis in axes:
        axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(ticker.NullFormatter())


def _each(said: Mapping[str, str], *, always: bool = False) -> str:
    """Return what is said of each run; a single one needs no name."""
    if len(said) == 1 and not always:
        return next(iter(said.values()))
    return "; ".join(f"{name}: {text}" for name, text in said.items())


def _pairs(results: Results) -> str:
    same = np.asarray(next(iter(results.values())).artefacts["same"], bool)
    return f"{np.sum(same):,} genuine, {np.sum(~same):,} impostor pairs"
