"""Benchmarks: one harness, one function per benchmark, a table and JSON.

Law: opponents run in turn, one after another in every repeat, so that whatever the
machine does meanwhile it does to all of them; a speed is the median over repeats, an
accuracy the mean over folds, and the span stands beside it.

    python launch/bench.py --what=render
    python launch/bench.py --what=render,baselines --out=bench.json

A benchmark is a function without arguments that gives rows; `WHAT` lists them.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
from absl import app, flags

from jaxface.data.sources import synthetic

# Images uint8 [N, H, W, 3] -> embeddings float [N, D].
Embedding = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table: a figure and the span of what it sums up."""

    name: str
    unit: str
    value: float
    low: float
    high: float
    count: int


@dataclasses.dataclass(frozen=True)
class Candidate:
    """What runs against others: a call that does a known number of items."""

    run: Callable[[], object]
    items: int


def race(
    candidates: dict[str, Candidate],
    *,
    unit: str,
    warmup: int = 2,
    repeats: int = 7,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Row]:
    """Time candidates in turn, round after round.

    Args:
        candidates: name -> what to run.
        unit: what an item a second is called, such as "images/s".
        warmup: rounds not counted.
        repeats: rounds counted.
        clock: seconds.

    Returns:
        For every candidate its items per second: the median, and the span.
    """
    rates: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(warmup + repeats):
        for name, candidate in candidates.items():
            start = clock()
            candidate.run()
            seconds = clock() - start
            if turn >= warmup:
                rates[name].append(candidate.items / seconds)
    return [
        Row(name, unit, statistics.median(r), min(r), max(r), len(r))
        for name, r in rates.items()
    ]


# --- benchmarks -----------------------------------------------------------------------


def render() -> list[Row]:
    """Images a second of the rendered identities, on one thread."""
    return race(
        {
            f"render {size} px": Candidate(_renders(size, count), count)
            for size, count in ((56, 200), (112, 200), (224, 50))
        },
        unit="images/s",
    )


def _renders(size: int, count: int) -> Callable[[], object]:
    source = synthetic.Source(identities=count, per_identity=1, size=size)
    return lambda: [source.read(i) for i in range(count)]


def baselines() -> list[Row]:
    """Verification accuracy of what needs no training net, on unseen people."""
    train = synthetic.Source(identities=300, per_identity=5, size=56)
    test = synthetic.Source(identities=400, per_identity=5, size=56, start=10**6)
    return verify(simple_embeddings(train), test)


# --- verification of simple embeddings ------------------------------------------------


def simple_embeddings(train: synthetic.Source) -> dict[str, Embedding]:
    """Return the baselines by name; what has to be fitted is fitted on `train`."""
    images = _images(train)
    mean = images.mean(0)
    principal = pca(hog(images), keep=128)
    return {
        "mean colour": lambda x: x.mean((1, 2)) - 127.5,
        "mean-centred pixels": lambda x: (x - mean).reshape(len(x), -1),
        "HOG + PCA": lambda x: principal(hog(x)),
    }


def verify(
    embeddings: dict[str, Embedding],
    test: synthetic.Source,
    *,
    pairs: int = 2000,
    folds: int = 10,
    seed: int = 0,
) -> list[Row]:
    """Score balanced pairs by cosine and give the accuracy over folds.

    Args:
        embeddings: name -> function of images.
        test: people no embedding was fitted on.
        pairs: how many, half of them genuine.
        folds: they share no person.
        seed: which pairs.
    """
    left, right, same, fold = _pairs(test, pairs=pairs, folds=folds, seed=seed)
    images = _images(test)
    rows = []
    for name, embed in embeddings.items():
        e = embed(images)
        e = e / np.linalg.norm(e, axis=1, keepdims=True)
        scores = np.sum(e[left] * e[right], axis=1)
        a = _fold_accuracies(scores, same, fold)
        row = Row(name, "accuracy", statistics.mean(a), min(a), max(a), len(a))
        rows.append(row)
    return rows


def _images(source: synthetic.Source) -> np.ndarray:
    return np.stack([source.read(i)[0] for i in range(len(source))])


def _pairs(
    source: synthetic.Source, *, pairs: int, folds: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return [N] left, right, same and fold; a fold's people are its own."""
    rng = np.random.default_rng(seed)
    same = np.arange(pairs) % 2 == 0
    fold = np.arange(pairs) * folds // pairs
    crowd = source.identities // folds
    a, b = (fold * crowd + rng.integers(crowd, size=(2, pairs))).reshape(2, pairs)
    b = np.where(same, a, np.where(a == b, fold * crowd + (b + 1) % crowd, b))
    n = source.per_identity
    i = rng.integers(n, size=pairs)
    j = (i + 1 + rng.integers(n - 1, size=pairs)) % n  # another picture
    return a * n + i, b * n + j, same, fold


def _fold_accuracies(
    scores: np.ndarray, same: np.ndarray, fold: np.ndarray
) -> list[float]:
    """Accuracy on every fold at the threshold that is best on all the others."""
    found = []
    for k in np.unique(fold):
        rest, held = fold != k, fold == k
        order = np.argsort(-scores[rest])
        gain = np.cumsum(np.where(same[rest][order], 1, -1))
        threshold = scores[rest][order][np.argmax(gain)]
        found.append(float(np.mean((scores[held] >= threshold) == same[held])))
    return found


def hog(images: np.ndarray, *, cell: int = 8, bins: int = 9) -> np.ndarray:
    """Histograms of oriented gradients, Dalal & Triggs 2005.

    Args:
        images: [N, H, W, 3] uint8; H and W are multiples of `cell`.
        cell: side of a cell in pixels.
        bins: unsigned directions, with linear votes; blocks are 2 x 2 cells.

    Returns:
        [N, D] float32, each block of unit length.
    """
    grey = images.astype(np.float32).mean(-1)
    dy, dx = np.gradient(grey, axis=(1, 2))
    size = np.hypot(dx, dy)
    at = np.arctan2(dy, dx) / np.pi % 1 * bins
    N, H, W = grey.shape
    cells = np.empty((N, H // cell, W // cell, bins), np.float32)
    for k in range(bins):
        off = np.abs((at - k - 0.5 + bins / 2) % bins - bins / 2)  # bins go round
        votes = size * np.maximum(1 - off, 0)
        patches = votes.reshape(N, H // cell, cell, W // cell, cell)
        cells[..., k] = patches.sum((2, 4))
    top, bottom = cells[:, :-1], cells[:, 1:]
    corners = (top[:, :, :-1], top[:, :, 1:], bottom[:, :, :-1], bottom[:, :, 1:])
    blocks = np.concatenate(corners, axis=-1)
    blocks /= np.linalg.norm(blocks, axis=-1, keepdims=True) + 1e-3
    return blocks.reshape(N, -1)


def pca(features: np.ndarray, *, keep: int) -> Callable[[np.ndarray], np.ndarray]:
    """Fit whitened principal components on [N, D]; return the projection."""
    mean = features.mean(0)
    _, spread, axes = np.linalg.svd(features - mean, full_matrices=False)
    whiten = (axes[:keep] / spread[:keep, None]).T
    return lambda x: (x - mean) @ whiten


# --- the program ----------------------------------------------------------------------

WHAT: dict[str, Callable[[], list[Row]]] = {"render": render, "baselines": baselines}


def choose(names: Sequence[str]) -> dict[str, Callable[[], list[Row]]]:
    """Return benchmarks by name.

    Raises:
        KeyError: for a name nobody knows, with the choices.
    """
    for name in names:
        if name not in WHAT:
            near = difflib.get_close_matches(name, WHAT, n=1)
            hint = f" did you mean {near[0]!r}?" if near else ""
            known = ", ".join(WHAT)
            raise KeyError(f"benchmark {name!r} unknown;{hint} known: {known}")
    return {name: WHAT[name] for name in names}


def table(rows: Sequence[Row]) -> str:
    """Lay rows out for people."""
    wide = max(len(r.name) for r in rows)
    return "\n".join(
        f"{r.name:<{wide}}  {r.value:>9.4g} {r.unit}"
        f"  [{r.low:.4g}, {r.high:.4g}] of {r.count}"
        for r in rows
    )


def report(found: dict[str, list[Row]]) -> dict[str, object]:
    """Return what goes to JSON: the rows of every benchmark, and the machine."""
    return {
        "machine": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "benchmarks": {
            name: [dataclasses.asdict(r) for r in rows] for name, rows in found.items()
        },
    }


_WHAT = flags.DEFINE_list("what", None, f"benchmarks: {', '.join(WHAT)}", required=True)
_OUT = flags.DEFINE_string("out", None, "write the figures to this JSON file as well")


def main(argv: Sequence[str]) -> None:
    """Run what was asked for and print it."""
    del argv
    found = {}
    for name, benchmark in choose(_WHAT.value).items():
        found[name] = benchmark()
        print(f"{name}\n{table(found[name])}\n", flush=True)
    if _OUT.value:
        text = json.dumps(report(found), indent=2)
        pathlib.Path(_OUT.value).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
