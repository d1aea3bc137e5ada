"""The data card of a set: one page that says what is in it and what was left out.

One law: the same set gives the same bytes; nothing is fetched when the page is read.

    pictures = sheet(source, images, labels, people=12)      # faces: personal data
    html = page("faces", {"images": 5794, "identities": 261, ...}, pictures)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

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
    with html.drawn():
        figures = list(_figures(facts))
    shown = {"images_per_identity", "dropped", "warnings", "licence"}
    if len(figures) > 1:  # as many sizes as there are photos make no table
        shown.add("sizes")
    return html.render(
        "card.html",
        title=title,
        facts=facts,
        figures=figures,
        per=facts["images_per_identity"],
        rows=dict(_flat({k: v for k, v in facts.items() if k not in shown})),
        sheet=None if pictures is None else html.jpeg(pictures, quality=85),
    )


def _figures(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield the drawings of people's images and the images' sizes."""
    histogram = facts["images_per_identity"]["histogram"]
    per = np.array([int(k) for k in histogram])
    weight = np.array(list(histogram.values()), float)
    drawing, axes = _axes("Images per person", x="images", y="people")
    bins = np.arange(per.min(), per.max() + 2) - 0.5
    if len(bins) > 61:
        bins = np.linspace(per.min() - 0.5, per.max() + 0.5, 61)
    axes.hist(per, bins, weights=weight, color=html.COLORS[0], ec=html.CARD, lw=0.4)
    yield html.svg(drawing, name="per-person", what="images per person")
    side = np.array([max(map(int, k.split("x"))) for k in facts["sizes"]])
    if not np.ptp(side):
        return  # the facts say it
    drawing, axes = _axes("Size of the images", x="longer side in pixels", y="images")
    weight = np.array(list(facts["sizes"].values()), float)
    edges = np.linspace(side.min() - 0.5, side.max() + 0.5, min(41, np.ptp(side) + 2))
    axes.hist(side, edges, weights=weight, color=html.COLORS[2], ec=html.CARD, lw=0.4)
    yield html.svg(drawing, name="sizes", what="sizes of the images")


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
