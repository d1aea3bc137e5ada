"""What every HTML page we write is made of: one style of drawing, pictures within.

One law: the same content gives the same bytes, and a page fetches nothing.

    with matplotlib.rc_context(STYLE):
        drawing, axes = axes_of("ROC", x="false accepts", y="true accepts")
    html = render("<img src='{{ roc }}'>", roc=svg(drawing))
"""

from __future__ import annotations

import base64
import io
from typing import Any

import jinja2
import numpy as np
from matplotlib import figure, rcsetup
from PIL import Image

# Okabe, Ito 2008: told apart by the colour-blind as well
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#8a8f98",
    "axes.grid": True,
    "axes.prop_cycle": rcsetup.cycler(color=COLORS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "font.size": 9.5,
    "grid.color": "#e6e8eb",
    "legend.edgecolor": "white",
    "svg.hashsalt": "jaxface",  # else element ids are random
}


def axes_of(
    title: str, *, x: str, y: str, height: float = 3.2
) -> tuple[figure.Figure, Any]:
    """Return a drawing 4.8 inches wide, and its axes."""
    size = (4.8, height)
    drawing = figure.Figure(figsize=size, layout="constrained", facecolor="white")
    axes = drawing.subplots(subplot_kw={"title": title, "xlabel": x, "ylabel": y})
    return drawing, axes


def svg(drawing: figure.Figure) -> str:
    """Return a drawing as a `data:` address."""
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _data("image/svg+xml", buffer.getvalue())


def jpeg(image: np.ndarray, *, quality: int) -> str:
    """Return uint8 [H, W, 3] RGB as a `data:` address."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return _data("image/jpeg", buffer.getvalue())


def render(template: str, **values: Any) -> str:
    """Fill a Jinja template; what comes from outside is escaped, a gap is an error."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.from_string(template).render(**values)


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
