"""What every HTML page we write is made of: one style of drawing, pictures within.

Two laws: the same content gives the same bytes, and a page fetches nothing. Drawings
stand in the page itself, so their colours are the page's: light, dark or on paper.

    with drawn():
        drawing, axes = axes_of("ROC", x="false accepts", y="true accepts")
        text = svg(drawing, name="roc", what="ROC of one set")
    html = render("report.html", roc=text)        # a template of jaxface/pages
"""

from __future__ import annotations

import base64
import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import jinja2
import markupsafe
import matplotlib
import numpy as np
from matplotlib import figure, rcsetup
from PIL import Image

# Okabe, Ito 2008: told apart by the colour-blind as well
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (3, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P")
INK, SOFT, LINE, CARD = "#1b1f24", "#5c6570", "#e1e4e8", "#ffffff"
# what a colour of a drawing is called in pages/base.html, which knows its dark twin
_CALLED = {INK: "ink", SOFT: "soft", LINE: "line", CARD: "card"} | {
    color: f"c{k}" for k, color in enumerate(COLORS)
}
_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": SOFT,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.prop_cycle": rcsetup.cycler(color=COLORS) + rcsetup.cycler(linestyle=DASHES),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.facecolor": "none",
    "font.size": 9.5,
    "grid.color": LINE,
    "legend.edgecolor": LINE,
    "legend.facecolor": CARD,
    "legend.labelcolor": INK,
    "svg.fonttype": "none",  # text stays text, in whatever script it is
    "svg.hashsalt": "jaxface",  # else element ids are random
    "text.color": INK,
    "text.parse_math": False,  # a name with $ in it is a name
    "xtick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.color": SOFT,
    "ytick.labelcolor": INK,
}


@contextlib.contextmanager
def drawn() -> Iterator[None]:
    """Draw in our style; both making and writing a drawing belong inside."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # the reader's browser has the glyphs that matplotlib's own font lacks
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def axes_of(
    title: str, *, x: str, y: str, height: float = 3.2
) -> tuple[figure.Figure, Any]:
    """Return a drawing 4.8 inches wide, and its axes."""
    drawing = figure.Figure(figsize=(4.8, height), layout="constrained")
    axes = drawing.subplots(subplot_kw={"title": title, "xlabel": x, "ylabel": y})
    return drawing, axes


def label(name: str, *, longest: int = 28) -> str:
    """Return a name as it may stand in a drawing: one line, not too long."""
    seen = "".join(c if c.isprintable() else "\ufffd" for c in name)
    return seen if len(seen) <= longest else f"{seen[: longest - 1]}…"


def svg(drawing: figure.Figure, *, name: str, what: str) -> markupsafe.Markup:
    """Return a drawing as an `<svg>` that belongs into a page.

    Args:
        drawing: made and written within `drawn`.
        name: of letters, digits and hyphens; starts the ids, so once in a page.
        what: the text in its place for those who do not see it.
    """
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for node in root.iter():
        node.tag = node.tag.rpartition("}")[2]
        node.attrib = {k.rpartition("}")[2]: v for k, v in node.attrib.items()}
        if "style" in node.attrib:
            node.set("style", re.sub("#[0-9a-f]{6}", _variable, node.attrib["style"]))
    for parent in list(root.iter()):
        for child in [c for c in parent if c.tag in ("metadata", "style")]:
            parent.remove(child)
    _rename(root, name)
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-label": what,
    }
    return markupsafe.Markup(ElementTree.tostring(root, encoding="unicode"))


def jpeg(image: np.ndarray, *, quality: int) -> str:
    """Return uint8 [H, W, 3] RGB as a `data:` address."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def render(template: str, **values: Any) -> str:
    """Fill a template of jaxface/pages.

    What comes from outside is escaped, a gap is an error, and what no file can hold
    (half of a surrogate pair, from a file name of unknown coding) is spelt out.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxface", "pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(template).render(**values)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _variable(color: re.Match[str]) -> str:
    """Return the page's variable for a colour of ours."""
    called = _CALLED.get(color[0])
    return f"var(--{called})" if called else color[0]


def _rename(root: ElementTree.Element, name: str) -> None:
    """Keep the ids that are referred to, and start them with the drawing's name."""
    used = set()

    def own(found: re.Match[str]) -> str:
        used.add(found[2])
        return f"{found[1]}{name}-{found[2]}"

    for node in root.iter():
        for key in {"href", "clip-path", "style"} & set(node.attrib):
            node.set(key, re.sub(r"(^#|url\(#)([^)]+)", own, node.attrib[key]))
    for node in root.iter():
        mark = node.attrib.pop("id", None)
        if mark in used:
            node.set("id", f"{name}-{mark}")
