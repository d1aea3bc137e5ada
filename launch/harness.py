"""What every benchmark needs: rows of figures, opponents that take turns, a table.

Law: opponents run in turn, one after another in every repeat, so that whatever the
machine does meanwhile it does to all of them.

    rows = race({"a": Candidate(f, items=32), "b": Candidate(g, items=32)}, unit="x/s")
    print(table(rows))
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence

import jax


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table: a figure, its span or interval, and of how many."""

    name: str
    unit: str
    value: float
    low: float
    high: float
    count: int


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A call that does a known number of items; arrays it returns are waited for.

    Attributes:
        run: what is timed.
        items: how many it does.
        before: what is done each time before, outside the clock.
    """

    run: Callable[[], object]
    items: int
    before: Callable[[], object] = lambda: None


def race(
    candidates: dict[str, Candidate],
    *,
    unit: str,
    warmup: int = 2,
    repeats: int = 7,
    rest: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Row]:
    """Time candidates in turn, round after round.

    Args:
        candidates: name -> what to run.
        unit: what an item a second is called, such as "images/s".
        warmup: rounds not counted.
        repeats: rounds counted.
        rest: seconds before each turn, in which those who work ahead fill their
            store; else they would do so in the next one's time.
        clock: seconds.

    Returns:
        For every candidate its items per second: the median, and the span.
    """
    rates: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(warmup + repeats):
        for name, candidate in candidates.items():
            time.sleep(rest)
            candidate.before()
            start = clock()
            jax.block_until_ready(candidate.run())
            seconds = clock() - start
            if turn >= warmup:
                rates[name].append(candidate.items / seconds)
    return [
        Row(name, unit, statistics.median(r), min(r), max(r), len(r))
        for name, r in rates.items()
    ]


def table(rows: Sequence[Row]) -> str:
    """Lay rows out for people; names come last, for a model's may be long."""
    wide = max(len(r.unit) for r in rows)
    spans = [f"[{r.low:.4g}, {r.high:.4g}] of {r.count}" for r in rows]
    return "\n".join(
        f"{r.value:>9.4g} {r.unit:<{wide}}  {span:<{max(map(len, spans))}}  {r.name}"
        for r, span in zip(rows, spans, strict=True)
    )
