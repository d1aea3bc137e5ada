"""One self-contained HTML page of what one run, or several side by side, found.

One law: the same results give the same bytes. Nothing is fetched when the page is
read, no clock is asked when it is written, and it is there whole or not at all.

    run = Run({"lfw": result}, images={"lfw": lambda i: decode(pairs.images, i)},
              history=rows, config=config.to_dict(), environment={"device": "cpu"})
    write("report.html", title="faces", runs={"faces": run})
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np

from jaxface import atomic, types
from jaxface import page as html
from jaxface.eval import comparison, figures, project, rows

_WORST = 8  # pairs shown of each kind of error
_BESIDE = "not measured"
_COUNTS = ("pairs", "mated", "searches", "images", "count")  # what a headline is of


@dataclasses.dataclass(frozen=True)
class Run:
    """What the page shows of one run.

    Attributes:
        results: by the name of the evaluation set; drawn is what their artefacts
            allow, see `figures.drawings`. The worst errors are shown where they hold
            correct, left and right.
        images: name of the set -> function of an index in left or right, giving its
            picture, uint8 [H, W, 3] RGB. Sets not named show no pictures.
        saliency: name of the set -> function of two such indices, giving a picture of
            what of the first drives its match with the second, such as `heated` makes.
        history: rows with "step", and "loss", "accuracy" or "NAME/accuracy"
            (and its `_low`, `_high`) where they were measured.
        config: settings, may be nested.
        environment: versions, device, command.
    """

    results: Mapping[str, types.Result]
    _: dataclasses.KW_ONLY
    images: Mapping[str, Callable[[int], np.ndarray]] = dataclasses.field(
        default_factory=dict
    )
    saliency: Mapping[str, Callable[[int, int], np.ndarray]] = dataclasses.field(
        default_factory=dict
    )
    history: Sequence[Mapping[str, float]] = ()
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def write(
    path: str | os.PathLike[str],
    *,
    title: str,
    runs: Mapping[str, Run],
    projections: Sequence[str] = ("pca",),
) -> None:
    """Write the report.

    Args:
        path: the HTML file; replaced in one move.
        title: of the page.
        runs: by their names, in the order of the page.
        projections: of `project.PROJECTIONS`, for results that hold embeddings.

    Raises:
        ValueError: no runs, an unknown projection, artefacts that do not fit, or
            runs whose pairs are not the same.
        ImportError: a projection whose library is not installed.
    """
    unknown = sorted(set(projections) - set(project.PROJECTIONS))
    if unknown or not runs:
        raise ValueError(
            f"{len(runs)} runs, projections {list(projections)}; wanted a run or more,"
            f" and of {list(project.PROJECTIONS)}"
        )
    names = list(dict.fromkeys(name for run in runs.values() for name in run.results))
    compared = comparison.compare({name: run.results for name, run in runs.items()})
    with html.drawn():
        sets = [
            _set(f"set{k}", name, runs, projections) for k, name in enumerate(names)
        ]
        histories = {name: run.history for name, run in runs.items() if run.history}
        learned = list(_written(figures.learning(histories), "training"))
    text = html.render(
        "report.html",
        title=title,
        runs=list(runs),
        compared=compared,
        sets=sets,
        learned=learned,
        details=[
            _details("Configuration", {n: run.config for n, run in runs.items()}),
            _details("Environment", {n: run.environment for n, run in runs.items()}),
        ],
    )
    atomic.write(path, text)


def headline(scalars: Mapping[str, float]) -> tuple[str, str, str]:
    """Return (what, value, interval and count) of the number to remember.

    Three empty texts where there is none.
    """
    name, value, low, high = rows.headline(scalars)
    if not name:
        return "", "", ""
    said = [] if low is None or high is None else [f"[{low:.3f}, {high:.3f}]"]
    count = next((n for n in _COUNTS if n in scalars), None)
    said += [f"on {scalars[count]:,.0f} {count}"] if count else []
    said += [f"majority {scalars['majority']:.3f}"] if "majority" in scalars else []
    return name.replace("_", " "), f"{value:.3f}", " ".join(said)


def _set(
    key: str, name: str, runs: Mapping[str, Run], projections: Sequence[str]
) -> dict[str, Any]:
    """Return what the page says of one evaluation set."""
    results = {n: run.results[name] for n, run in runs.items() if name in run.results}
    drawings = [*figures.drawings(results), *_projected(results, projections)]
    worst = [
        kind | {"run": n if len(runs) > 1 else ""}
        for n, run in runs.items()
        if name in run.images and n in results
        for kind in _worst(results[n], run.images[name], run.saliency.get(name))
    ]
    return {
        "key": key,
        "name": name,
        "headlines": {n: headline(r.scalars) for n, r in results.items()},
        "drawings": list(_written(drawings, key)),
        "table": _table({n: r.scalars for n, r in results.items()}),
        "runs": list(results),
        "worst": worst,
    }


def _written(
    drawings: Iterable[figures.Drawing], key: str
) -> Iterator[tuple[str, str, str]]:
    """Yield (id, drawing as text, caption)."""
    for drawing in drawings:
        name = f"{key}-{drawing.kind}"
        title = drawing.figure.axes[0].get_title(loc="left")
        text = html.svg(drawing.figure, name=name, what=f"{title}. {drawing.says}")
        yield name, text, drawing.says


def _projected(
    results: figures.Results, projections: Sequence[str]
) -> Iterator[figures.Drawing]:
    for k, (run, result) in enumerate(results.items()):
        a = result.artefacts
        if "embedding" not in a or min(np.shape(a["embedding"])) < 2:
            continue
        identity = np.asarray(a["identity"])
        some = project.chosen(identity)  # few enough for a page and for t-SNE
        for name in projections:
            title = project.TITLES[name]
            title += f", {html.label(run)}" if len(results) > 1 else ""
            xy = project.PROJECTIONS[name](a["embedding"][some])
            kind = f"{name}-{k}"
            yield figures.scatter(xy, identity[some], kind=kind, title=title)


def _table(
    scalars: Mapping[str, Mapping[str, float]],
) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return (name, (value, interval) of each run), an interval on its rate's row."""
    ends = ("_low", "_high")
    names = dict.fromkeys(name for s in scalars.values() for name in s)
    found = []
    for name in names:
        if name.endswith(ends) and name.rsplit("_", 1)[0] in names:
            continue
        cells = []
        for s in scalars.values():
            interval = [s[name + end] for end in ends if name + end in s]
            if name not in s:
                cells.append((_BESIDE, ""))
                continue
            whole = float(s[name]).is_integer() and not interval
            cells.append(
                (
                    f"{s[name]:,.0f}" if whole else f"{s[name]:.4f}",
                    ", ".join(f"{end:.4f}" for end in interval),
                )
            )
        found.append((name.replace("_", " "), cells))
    return found


def _worst(
    result: types.Result,
    image: Callable[[int], np.ndarray],
    saliency: Callable[[int, int], np.ndarray] | None,
) -> list[dict[str, Any]]:
    """Return the errors furthest on the wrong side, as pictures with scores."""
    a = result.artefacts
    if not {"scores", "same", "correct", "left", "right"} <= set(a):
        return []
    scores, same = a["scores"], np.asarray(a["same"], bool)
    wrong = ~np.asarray(a["correct"], bool)
    kinds = []
    for title, of, sign in (
        ("False accepts", wrong & ~same, -1),
        ("False rejects", wrong & same, 1),
    ):
        found = np.flatnonzero(of)
        worst = found[np.argsort(sign * scores[found], kind="stable")][:_WORST]
        pairs = []
        for i in worst:
            ends = int(a["left"][i]), int(a["right"][i])
            heat = []
            if saliency is not None:
                heat = [_jpeg(saliency(*of)) for of in (ends, ends[::-1])]
            pairs.append(
                {
                    "index": int(i),
                    "ends": ends,
                    "faces": [_jpeg(image(end)) for end in ends],
                    "heat": heat,
                    "score": f"{scores[i]:.3f}",
                }
            )
        kinds.append({"title": title, "count": len(found), "pairs": pairs})
    return kinds


def heated(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lay a map over the grey of a picture.

    Args:
        picture: uint8 [H, W, 3] RGB.
        heat: float [H, W], 0 and more; shown relative to its highest, and smoothed
            (sigma a fortieth of the longer side): single pixels are noise to the eye.

    Returns:
        uint8 [H, W, 3]; where the heat is 0, the grey picture.

    Raises:
        ValueError: on another shape, or heat below 0 or not finite.
    """
    heat = np.asarray(heat, np.float64)
    if heat.shape != picture.shape[:2] or not np.isfinite(heat).all() or heat.min() < 0:
        raise ValueError(
            f"saliency {heat.shape} of {heat.min():g} to {heat.max():g} for a picture"
            f" {picture.shape}; wanted {picture.shape[:2]}, finite, 0 and more"
        )
    sigma = max(heat.shape) / 40
    for axis, side in enumerate(heat.shape):
        at = np.arange(side)
        near = np.exp(-(((at[:, None] - at) / sigma) ** 2) / 2)  # [side, side]
        near /= near.sum(axis=1, keepdims=True)
        heat = np.moveaxis(np.tensordot(near, heat, (1, axis)), 0, axis)
    heat = heat / max(heat.max(), np.finfo(np.float64).tiny)
    color = matplotlib.colormaps["inferno"](heat)[..., :3] * 255  # [H, W, 3]
    grey = picture.mean(axis=-1, keepdims=True)
    share = 0.85 * heat[..., None]
    return np.round(grey * (1 - share) + color * share).astype(np.uint8)


def _jpeg(picture: np.ndarray) -> str:
    return html.jpeg(picture, quality=90)


def _details(heading: str, trees: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return settings as rows: (key, value in each run, whether the runs differ)."""
    flat = {name: dict(_flat(tree)) for name, tree in trees.items()}
    keys = dict.fromkeys(key for values in flat.values() for key in values)
    found = []
    for key in keys:
        values = [settings.get(key, "not set") for settings in flat.values()]
        found.append((key, values, len(set(values)) > 1))
    return {"heading": heading, "key": heading.lower(), "rows": found}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
