"""Variants of a recipe times seeds: their configs, and differences paired by seed.

Law: variants are compared seed by seed, so what a seed does to all of them cancels.

    configs = plan("configs/noisy_labels.py", variants=["loss=arcface", "loss=filter"],
                   seeds=["0", "1"])
    rows = compare({"loss=arcface": [0.92, 0.93], "loss=filter": [0.91, 0.94]})
    print(table(rows, seeds=["0", "1"]))
"""

from __future__ import annotations

import runpy
import statistics
from collections.abc import Mapping, Sequence

import ml_collections

from jaxface.eval import significance


def plan(
    recipe: str, *, variants: Sequence[str], seeds: Sequence[str]
) -> dict[tuple[str, str], ml_collections.ConfigDict]:
    """Return the config of every (variant, seed), seed after seed.

    Raises:
        ValueError: a single variant, more seeds than a test has signs for, or
            arguments that the recipe does not take.
        FileNotFoundError: no such recipe.
    """
    if len(seeds) > significance.MOST:
        raise ValueError(f"{len(seeds)} seeds; wanted at most {significance.MOST}")
    if len(variants) < 2:
        raise ValueError("one variant has nothing to differ from; name two or more")
    get_config = runpy.run_path(recipe)["get_config"]
    return {
        (variant, seed): get_config(f"{variant},seed={seed}")
        for seed in seeds
        for variant in variants
    }


def compare(found: Mapping[str, list[float]]) -> dict[str, dict[str, object]]:
    """Set variants side by side.

    Args:
        found: variant -> its metric for every seed; the first is compared with.

    Returns:
        variant -> values, their mean, and for the later ones the differences from
        the first by seed, their mean, its standard error, and the exact p of no
        difference, which K seeds can bring down to 2^(1 - K).
    """
    base = next(iter(found.values()))
    rows: dict[str, dict[str, object]] = {}
    for variant, values in found.items():
        rows[variant] = {"values": values, "mean": statistics.fmean(values)}
        if values is base:
            continue
        d = [v - b for v, b in zip(values, base, strict=True)]
        error = statistics.stdev(d) / len(d) ** 0.5 if len(d) > 1 else float("nan")
        rows[variant] |= {
            "differences": d,
            "difference": statistics.fmean(d),
            "standard_error": error,
            "p": significance.sign_flip(d),
        }
    return rows


def table(rows: Mapping[str, Mapping[str, object]], *, seeds: Sequence[str]) -> str:
    """Lay the comparison out for people."""
    lines = [f"{'seed':<28}" + "".join(f"{s:>9}" for s in seeds) + f"{'mean':>9}"]
    for variant, row in rows.items():
        cells = [*row["values"], row["mean"]]
        lines.append(f"{variant:<28}" + "".join(f"{x:9.4f}" for x in cells))
    for variant, row in rows.items():
        if "differences" in row:
            cells = [*row["differences"], row["difference"]]
            text = "".join(f"{x:+9.4f}" for x in cells)
            lines.append(f"{variant + ' minus first':<28}{text}")
            lines[-1] += f" +- {row['standard_error']:.4f}, p {row['p']:.3g}"
    return "\n".join(lines)
