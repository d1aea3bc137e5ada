"""The data card of a set: one page that says what is in it and what was left out.

One law: the same set gives the same bytes; nothing is fetched when the page is read.

    pictures = sheet(source, images, labels, people=12)      # faces: personal data
    html = page("faces", {"images": 5794, "identities": 261, ...}, pictures)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib import figure, ticker
from PIL import Image

from jaxface import page as html
from jaxface import types
from jaxface.data import decode

_TILE, _ROW = 84, 8  # pixels of a picture on the sheet, pictures of a person


def sheet(
    source: types.Source,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    people: int,
    seed: int = 0,
) -> np.ndarray | None:
    """Draw some people, a row each, with at most eight pictures.

    Args:
        source: where the pictures are.
        images: [m] indices into it.
        labels: [m] whose they are.
        people: rows, drawn at random; 0 for no sheet.
        seed: of the draw.

    Returns:
        uint8 [H, W, 3], white where there is no picture, or None.
    """
    if people < 1:
        return None
    rng = np.random.default_rng(seed)
    known = np.unique(labels)
    rows = np.sort(rng.permutation(known)[:people])
    drawn = np.full((len(rows) * _TILE, _ROW * _TILE, 3), 255, np.uint8)
    for r, label in enumerate(rows):
        own = images[labels == label]
        for k, i in enumerate(np.sort(rng.permutation(own)[:_ROW]).tolist()):
            pixels = decode.pixels(source.read(i)[0])
            if source.color == "bgr":
                pixels = pixels[..., ::-1]
            drawn[r * _TILE : (r + 1) * _TILE, k * _TILE : (k + 1) * _TILE] = _tile(
                pixels
            )
    return drawn


def page(title: str, facts: Mapping[str, Any], pictures: np.ndarray | None) -> str:
    """Return the card as one HTML page.

    Args:
        title: the set's name.
        facts: "images", "identities", "images_per_identity" with its "histogram",
            "sizes", "dropped", "warnings", and whatever else is to be listed.
        pictures: the sheet, uint8 [H, W, 3], or None.
    """
    with matplotlib.rc_context(html.STYLE):
        figures = list(_figures(facts))
    shown = {"images_per_identity", "dropped", "warnings", "licence"}
    if len(figures) > 1:  # as many sizes as there are photos make no table
        shown.add("sizes")
    return html.render(
        _PAGE,
        title=title,
        facts=facts,
        figures=figures,
        per=facts["images_per_identity"],
        rows=dict(_flat({k: v for k, v in facts.items() if k not in shown})),
        sheet=None if pictures is None else html.jpeg(pictures, quality=85),
    )


def _figures(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (what it shows, picture) for people's images and the images' sizes."""
    histogram = facts["images_per_identity"]["histogram"]
    per = np.array([int(k) for k in histogram])
    weight = np.array(list(histogram.values()), float)
    drawing, axes = _axes("Images per person", x="images", y="people")
    bins = np.arange(per.min(), per.max() + 2) - 0.5
    if len(bins) > 61:
        bins = np.linspace(per.min() - 0.5, per.max() + 0.5, 61)
    axes.hist(per, bins, weights=weight, color="#0072b2", ec="white", lw=0.4)
    yield "images per person", html.svg(drawing)
    side = np.array([max(map(int, k.split("x"))) for k in facts["sizes"]])
    if not np.ptp(side):
        return  # the facts say it
    drawing, axes = _axes("Size of the images", x="longer side in pixels", y="images")
    weight = np.array(list(facts["sizes"].values()), float)
    edges = np.linspace(side.min() - 0.5, side.max() + 0.5, min(41, np.ptp(side) + 2))
    axes.hist(side, edges, weights=weight, color="#009e73", ec="white", lw=0.4)
    yield "sizes of the images", html.svg(drawing)


def _axes(title: str, *, x: str, y: str) -> tuple[figure.Figure, Any]:
    drawing, axes = html.axes_of(title, x=x, y=y, height=2.8)
    for axis in (axes.xaxis, axes.yaxis):  # all are counts
        axis.set_major_locator(ticker.MaxNLocator(integer=True))
    return drawing, axes


def _tile(pixels: np.ndarray) -> np.ndarray:
    """Return a picture scaled to fit a tile, on white."""
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    scale = _TILE / max(picture.size)
    side = [max(1, round(length * scale)) for length in picture.size]
    tile = Image.new("RGB", (_TILE, _TILE), "white")
    fitted = picture.resize((side[0], side[1]), Image.Resampling.LANCZOS)
    tile.paste(fitted, ((_TILE - side[0]) // 2, (_TILE - side[1]) // 2))
    return np.asarray(tile)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, int) and not isinstance(value, bool):
            yield f"{prefix}{key}", f"{value:,}"
        else:
            yield f"{prefix}{key}", str(value)


_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Data card: {{ title }}</title>
<style>
:root { color-scheme: light dark;
  --ink: #1b1f24; --soft: #5c6570; --page: #f5f6f8; --card: #fff; --line: #e1e4e8;
  --warn: #b34700; }
@media (prefers-color-scheme: dark) { :root {
  --ink: #e6e8eb; --soft: #9aa4b0; --page: #14171b; --card: #1d2126; --line: #31373e;
  --warn: #ff9d5c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.5rem; margin: 0 0 1rem; }
h2 { font-size: 1.1rem; margin: 2.25rem 0 .75rem; }
.facts { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; margin: 0 0 1.5rem; }
.facts div { color: var(--soft); }
.facts strong { display: block; font-size: 2rem; line-height: 1.1; color: var(--ink);
  font-variant-numeric: tabular-nums; }
.warning { border-left: 4px solid var(--warn); padding-left: .75rem;
  color: var(--warn); }
.grid { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); }
.figure { background: #fff; border: 1px solid var(--line); border-radius: .6rem;
  padding: .6rem; }
.figure img, .sheet { display: block; width: 100%; }
.sheet { max-width: 42rem; border: 1px solid var(--line); border-radius: .6rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: .5rem 1rem; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; }
th, td { text-align: left; padding: .28rem .5rem .28rem 0; vertical-align: top;
  border-bottom: 1px solid var(--line); font-weight: normal; }
tr:last-child > * { border-bottom: 0; }
th { color: var(--soft); padding-right: 1.25rem; }
td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; margin: .5rem 0; font: .875rem/1.5 inherit; }
p { max-width: 46rem; }
</style>
</head>
<body>
<main>
<h1>Data card: {{ title }}</h1>
<div class="facts">
<div><strong>{{ "{:,}".format(facts.images) }}</strong>images</div>
<div><strong>{{ "{:,}".format(facts.identities) }}</strong>people</div>
<div><strong>{{ per.least }} / {{ "%g" % per.median }} / {{ per.most }}</strong>
least, median, most images of a person</div>
</div>
{% for warning in facts.warnings %}
<p class="warning">{{ warning }}</p>
{% endfor %}
<div class="grid">
{% for what, drawing in figures %}
<div class="figure"><img alt="{{ what }}" src="{{ drawing }}"></div>
{% endfor %}
</div>
{% if sheet %}
<h2>Some of the people</h2>
<p>These are faces of real people unless the set says otherwise: personal data. Do not
publish this card with them; <code>--sheet=0</code> writes it without.</p>
<img class="sheet" alt="random people, a row each" src="{{ sheet }}">
{% endif %}
<h2>Left out</h2>
<div class="card"><table>
{% for reason, count in facts.dropped.items() %}
<tr><th scope="row">{{ reason }}</th><td>{{ "{:,}".format(count) }}</td></tr>
{% else %}
<tr><td>Nothing was left out.</td></tr>
{% endfor %}
</table></div>
<h2>Licence</h2>
<div class="card"><pre>{{ facts.licence or "None was given." }}</pre></div>
<h2>Facts</h2>
<div class="card"><table>
{% for key, value in rows.items() %}
<tr><th scope="row">{{ key.replace("_", " ") }}</th><td>{{ value }}</td></tr>
{% endfor %}
</table></div>
</main>
</body>
</html>
"""
