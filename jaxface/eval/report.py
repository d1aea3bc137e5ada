"""One self-contained HTML page of what a run found.

One law: the same results give the same bytes. Nothing is fetched when the page is
read, no clock is asked when it is written, and it is there whole or not at all.

    write("report.html", title="faces", results={"lfw": result},
          images={"lfw": lambda i: decode(pairs.images, i)},
          history=rows, config=config.to_dict(), environment={"device": "cpu"})
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np

from jaxface import page as html
from jaxface import types
from jaxface.eval import curves

_WORST = 8  # pairs shown of each kind of error


def write(
    path: str | os.PathLike[str],
    *,
    title: str,
    results: Mapping[str, types.Result],
    images: Mapping[str, Callable[[int], np.ndarray]] | None = None,
    history: Sequence[Mapping[str, float]] = (),
    config: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
) -> None:
    """Write the report.

    Args:
        path: the HTML file; replaced in one move.
        title: of the page.
        results: by the name of the evaluation set. A ROC and a histogram are drawn
            where the artefacts hold scores [N] and same [N]; the worst errors are
            listed where they hold correct, left and right, too.
        images: name of the set -> function of an index in left or right, giving its
            picture, uint8 [H, W, 3] RGB. Sets not named show no pictures.
        history: rows with "step", and "loss", "accuracy" or "NAME/accuracy"
            (and its `_low`, `_high`) where they were measured.
        config: settings, may be nested.
        environment: versions, device, command.
    """
    images = images or {}
    with matplotlib.rc_context(html.STYLE):
        curves = list(_curves(history))
        curves += _roc(results)
        sets = [
            {
                "name": name,
                "headline": _headline(result.scalars),
                "figure": _histogram(name, result),
                "rows": list(_table(result.scalars)),
                "worst": _worst(result, images[name]) if name in images else [],
            }
            for name, result in results.items()
        ]
    text = html.render(
        _PAGE,
        title=title,
        sets=sets,
        curves=curves,
        details={
            "Configuration": dict(_flat(config or {})),
            "Environment": dict(_flat(environment or {})),
        },
    )
    final = pathlib.Path(path)
    partial = final.with_name(f".{final.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, final)
    finally:
        partial.unlink(missing_ok=True)


def _headline(s: Mapping[str, float]) -> dict[str, str]:
    """Return the number to remember and what it is of."""
    if "accuracy" not in s:
        return {"value": "", "text": ""}
    text = f"[{s['accuracy_low']:.3f}, {s['accuracy_high']:.3f}]"
    if "pairs" in s:
        text += f" on {s['pairs']:,.0f} pairs, chance 0.5"
        kind = "verification accuracy"
    else:
        text += f" on {s['count']:,.0f} images, majority class {s['majority']:.3f}"
        kind = "accuracy"
    return {"kind": kind, "value": f"{s['accuracy']:.3f}", "text": text}


def _table(scalars: Mapping[str, float]) -> Iterator[tuple[str, str, str]]:
    """Yield (name, value, interval), an interval on its own rate's row."""
    ends = ("_low", "_high")
    for name, value in scalars.items():
        if name.endswith(ends) and name.rsplit("_", 1)[0] in scalars:
            continue
        interval = [scalars[name + end] for end in ends if name + end in scalars]
        whole = float(value).is_integer() and not interval
        yield (
            name.replace("_", " "),
            f"{value:,.0f}" if whole else f"{value:.4f}",
            ", ".join(f"{end:.4f}" for end in interval),
        )


def _curves(history: Sequence[Mapping[str, float]]) -> Iterator[str]:
    """Yield the loss curve and the accuracy curves, where there are any."""
    names = sorted({key for row in history for key in row})
    measured = [n for n in names if n.endswith("/accuracy")]
    for title, keys in (
        ("Training loss", [n for n in names if n == "loss"]),
        ("Accuracy", [n for n in names if n == "accuracy"] + measured),
    ):
        if not keys:
            continue
        page, axes = html.axes_of(title, x="step", y="")
        for key in keys:
            step, value = _series(history, key)
            label = key.split("/")[0] if "/" in key else "training"
            dots = "o" if len(step) <= 40 else ""
            (line,) = axes.plot(step, value, marker=dots, ms=3.5, lw=1.4, label=label)
            low, high = (_series(history, key + end)[1] for end in ("_low", "_high"))
            if len(low) == len(high) == len(step):
                axes.fill_between(
                    step, low, high, color=line.get_color(), alpha=0.15, lw=0
                )
        if title == "Accuracy":
            axes.legend(loc="lower right")
        yield html.svg(page)


def _series(
    history: Sequence[Mapping[str, float]], key: str
) -> tuple[list[float], list[float]]:
    rows = [row for row in history if key in row]
    return [row["step"] for row in rows], [row[key] for row in rows]


def _roc(results: Mapping[str, types.Result]) -> list[str]:
    """Draw every set's ROC down to the smallest FAR its impostors can show."""
    shown = {k: r.artefacts for k, r in results.items() if "same" in r.artefacts}
    if not shown:
        return []
    page, axes = html.axes_of("ROC", x="false accept rate", y="true accept rate")
    for name, a in shown.items():
        far, tar, _ = curves.roc(a["scores"], a["same"])
        # the best of each FAR; between two of them nothing can be asked for: steps
        best = np.flatnonzero(np.append(np.diff(far) > 0, True) & (far > 0))
        label = f"{name}, AUC {curves.auc(a['scores'], a['same']):.4f}"
        axes.step(far[best], tar[best], where="post", lw=1.6, label=label)
    axes.set(xscale="log", ylim=(0, 1.02))
    axes.legend(loc="lower right")
    return [html.svg(page)]


def _histogram(name: str, result: types.Result) -> str:
    """Draw the scores of genuine and impostor pairs and the threshold."""
    a = result.artefacts
    if "same" not in a:
        return ""
    page, axes = html.axes_of(f"Scores, {name}", x="score", y="share of its kind")
    scores, same = np.asarray(a["scores"]), np.asarray(a["same"], bool)
    bins = np.histogram_bin_edges(scores, 50)
    for label, of in (("genuine", same), ("impostor", ~same)):
        weights = np.full(of.sum(), 1 / max(1, of.sum()))
        axes.hist(
            scores[of], bins, weights=weights, alpha=0.55, label=label,
            histtype="stepfilled", ec="white", lw=0.4,
        )  # fmt: skip
    if "threshold" in result.scalars:
        threshold = result.scalars["threshold"]
        axes.axvline(threshold, color="#333", lw=1.2, ls="--", label="threshold")
    axes.legend(loc="best")
    return html.svg(page)


def _worst(
    result: types.Result, image: Callable[[int], np.ndarray]
) -> list[dict[str, Any]]:
    """Return the errors furthest on the wrong side, as pictures with scores."""
    a = result.artefacts
    scores, same = a["scores"], np.asarray(a["same"], bool)
    wrong = ~np.asarray(a["correct"], bool)
    kinds = []
    for title, of, sign in (
        ("False accepts", wrong & ~same, -1),
        ("False rejects", wrong & same, 1),
    ):
        found = np.flatnonzero(of)
        worst = found[np.argsort(sign * scores[found], kind="stable")][:_WORST]
        kinds.append(
            {
                "title": title,
                "count": len(found),
                "pairs": [
                    {
                        "left": html.jpeg(image(int(a["left"][i])), quality=90),
                        "right": html.jpeg(image(int(a["right"][i])), quality=90),
                        "score": f"{scores[i]:.3f}",
                    }
                    for i in worst
                ],
            }
        )
    return kinds


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark;
  --ink: #1b1f24; --soft: #5c6570; --page: #f5f6f8; --card: #fff; --line: #e1e4e8;
  --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root {
  --ink: #e6e8eb; --soft: #9aa4b0; --page: #14171b; --card: #1d2126; --line: #31373e;
  --accent: #62b8ee; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.5rem; margin: 0 0 1.25rem; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: .95rem; margin: 1.25rem 0 .5rem; }
h3 small, .hero p { color: var(--soft); font-weight: normal; margin: 0; }
.hero { border-left: 4px solid var(--accent); padding: .1rem 0 .1rem 1rem;
  margin-bottom: 1rem; }
.hero strong { font-size: 2.75rem; line-height: 1.1; letter-spacing: -.02em;
  font-variant-numeric: tabular-nums; margin-right: .6rem; }
.hero span { font-variant-numeric: tabular-nums; }
.grid { display: grid; gap: 1rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); }
.figure { background: #fff; border: 1px solid var(--line); border-radius: .6rem;
  padding: .6rem; break-inside: avoid; }
.figure img { display: block; width: 100%; }
.card { background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; padding: .5rem 1rem; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; }
th, td { text-align: left; padding: .28rem .5rem .28rem 0; vertical-align: top;
  border-bottom: 1px solid var(--line); font-weight: normal; }
tr:last-child > * { border-bottom: 0; }
th { color: var(--soft); white-space: nowrap; padding-right: 1.25rem; }
td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.scalars td, .scalars th + th { text-align: right; white-space: nowrap;
  padding-right: 0; }
.scalars td + td { color: var(--soft); }
.pairs { display: grid; gap: .75rem;
  grid-template-columns: repeat(auto-fill, minmax(min(13rem, 45%), 1fr)); }
.pair { margin: 0; background: var(--card); border: 1px solid var(--line);
  border-radius: .5rem; overflow: hidden; break-inside: avoid; }
.pair img { width: 50%; aspect-ratio: 1; object-fit: cover; float: left; }
.pair figcaption { clear: both; text-align: center; font-size: .8rem;
  color: var(--soft); padding: .15rem; font-variant-numeric: tabular-nums; }
.none { color: var(--soft); margin: 0; font-size: .9rem; }
.wide th { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: .8rem; }
@media print { body { background: #fff; } main { padding: 0; max-width: none; } }
</style>
</head>
<body>
<main>
<h1>{{ title }}</h1>
{% for set in sets if set.headline.value %}
<div class="hero"><p>{{ set.name }}: {{ set.headline.kind }}</p>
<strong>{{ set.headline.value }}</strong><span>{{ set.headline.text }}</span></div>
{% endfor %}
{% if curves %}
<div class="grid">
{% for curve in curves %}
<div class="figure"><img alt="curve" src="{{ curve }}"></div>
{% endfor %}
</div>
{% endif %}
{% for set in sets %}
<h2>{{ set.name }}</h2>
<div class="grid">
{% if set.figure %}
<div class="figure"><img alt="score histogram" src="{{ set.figure }}"></div>
{% endif %}
<div class="card"><table class="scalars">
<tr><th></th><th scope="col">value</th><th scope="col">95 % interval</th></tr>
{% for name, value, interval in set.rows %}
<tr><th scope="row">{{ name }}</th><td>{{ value }}</td><td>{{ interval }}</td></tr>
{% endfor %}
</table></div>
</div>
{% for kind in set.worst %}
<h3>{{ kind.title }} <small>{{ kind.count }} in all
{%- if kind.pairs %}, the worst by score{% endif %}</small></h3>
<div class="pairs">
{% for pair in kind.pairs %}
<figure class="pair"><img alt="left" src="{{ pair.left }}"
><img alt="right" src="{{ pair.right }}">
<figcaption>{{ pair.score }}</figcaption></figure>
{% else %}
<p class="none">There is none.</p>
{% endfor %}
</div>
{% endfor %}
{% endfor %}
{% for heading, rows in details.items() if rows %}
<h2>{{ heading }}</h2>
<div class="card"><table class="wide">
{% for key, value in rows.items() %}
<tr><th scope="row">{{ key }}</th><td>{{ value }}</td></tr>
{% endfor %}
</table></div>
{% endfor %}
</main>
</body>
</html>
"""
