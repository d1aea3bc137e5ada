"""What the arithmetic of a large evaluation costs, beside the usual code for it.

Law: both sides get the same embeddings and must agree to rounding; the
embeddings are generated, for no arithmetic looks at whose they are.

    rows = templates(images=470_000, count=23_000, pairs=15_700_000)
    rows = galleries([3_500, 1_000_000], probes=20_000)

The usual code looks for a template's images in the whole list, compares pairs one by
one in batches, reads TAR off scikit-learn's ROC at the nearest FAR, and sorts whole
rows of similarity to rank a gallery.
"""

from __future__ import annotations

import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import harness
import numpy as np

from jaxface.eval import bootstrap, curves, dyads, pooling, ranking

FAR = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
_SORTED = 50_000_000  # cosines that the usual code sorts in a round, at most


def templates(
    *, images: int, count: int, pairs: int, dim: int = 512
) -> list[harness.Row]:
    """Time pooling, scoring and TAR@FAR down to 1e-6 or what the pairs can show.

    Args:
        images: of all templates.
        count: templates, two of each person.
        pairs: all genuine ones, the rest drawn at random.
        dim: D.

    Returns:
        Seconds of the parts, of their sum, and of one core for that sum, for both
        sides; and the peak of memory before the usual code ran, embeddings included.
        Ours runs before and after it: the span tells what else the machine did
        meanwhile. Last it runs with AUC, EER and intervals, which have no usual code.
    """
    e, template, media, weight = _images(images, count, dim)
    left, right, same = _pairs(count, pairs)
    far = [f for f in FAR if f >= 1 / np.sum(~same)]

    def ours_pool() -> np.ndarray:
        return pooling.pool(e, template, media, weight=weight, normalise=False)

    def ours_scores(t: np.ndarray) -> np.ndarray:
        return pooling.scores(t, left, right)

    def ours_tar(s: np.ndarray) -> list[float]:
        return [curves.tar_at_far(s, same, far=f)[0] for f in far]

    sides: dict[str, Sequence[tuple[str, Callable[..., Any]]]] = {
        "ours": (
            ("pool", lambda _: ours_pool()),
            ("score", ours_scores),
            ("TAR@FAR", ours_tar),
        ),
        "usual": (
            ("pool", lambda _: usual_pool(e, template, media, weight)),
            ("score", lambda t: usual_scores(t, left, right)),
            ("TAR@FAR", lambda s: usual_tar(s, same, far)),
        ),
    }
    took: dict[str, list[float]] = {}
    _, found, _ = _through("ours", sides["ours"], took)
    peak = _peak()
    _, wanted, _ = _through("usual", sides["usual"], took)
    _agree(found, wanted)
    _through("ours", sides["ours"], took)
    begun = time.perf_counter()
    _intervals(ours_scores(ours_pool()), left, right, same, far)
    took["ours: with intervals over people"] = [time.perf_counter() - begun]
    rows = [_row(name, "s", values) for name, values in took.items()]
    return [*rows, harness.Row("peak of ours", "GB", peak, peak, peak, 1)]


def _intervals(
    scores: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    same: np.ndarray,
    far: Sequence[float],
) -> None:
    """Do what `eval.templates` does beyond TAR: AUC, EER, all with intervals."""
    who = dyads.Dyads(np.stack([left // 2, right // 2], axis=1), same)
    curve = curves.roc(scores, same)
    bootstrap.people_auc(scores, same, who)
    bootstrap.people_eer(scores, same, who, curve=curve)
    for f in far:
        bootstrap.people_tar(scores, same, who, far=f, curve=curve)


def galleries(
    sizes: Sequence[int], *, probes: int, dim: int = 512, k: int = 20, repeats: int = 3
) -> list[harness.Row]:
    """Time 1:N searches: ranks for CMC and open set, and the k nearest.

    Args:
        sizes: G of each gallery, one row an identity.
        probes: Q, half of them with a mate.
        dim: D.
        k: candidates.
        repeats: rounds; a gallery of more than 100,000 gets one.

    Returns:
        Probes a second; the usual code has as many as sort in reasonable time.
    """
    rows = []
    for G in sizes:
        few = max(1, min(probes, _SORTED // G))
        candidates = _searches(G, probes=probes, few=few, dim=dim, k=k)
        once = repeats if G <= 100_000 else 1
        rows += harness.race(candidates, unit="probes/s", warmup=0, repeats=once)
    return rows


def _searches(
    G: int, *, probes: int, few: int, dim: int, k: int
) -> dict[str, harness.Candidate]:
    """Return the searches of one gallery, the usual one for `few` probes."""
    rng, ids = np.random.default_rng(0), np.arange(G)
    gallery = _unit(rng.standard_normal((G, dim), np.float32))
    who = rng.integers(2 * G, size=probes)
    probe = rng.standard_normal((probes, dim), np.float32)
    probe *= np.float32(1.5 / dim**0.5)
    probe[who < G] += gallery[who[who < G]]
    probe = _unit(probe)
    some, mine = probe[:few], who[:few]
    found = ranking.search_all(some, gallery, mine, ids)
    _agree(found.rank, usual_ranks(some, gallery, mine))
    return {
        f"ranks in {G:,}": harness.Candidate(
            lambda: ranking.search_all(probe, gallery, who, ids).rank, probes
        ),
        f"{k} nearest in {G:,}": harness.Candidate(
            lambda: ranking.nearest(probe, gallery, k=k)[0], probes
        ),
        f"usual: ranks in {G:,}": harness.Candidate(
            lambda: usual_ranks(some, gallery, mine), few
        ),
    }


# --- the usual code -------------------------------------------------------------------


def usual_pool(
    e: np.ndarray, template: np.ndarray, media: np.ndarray, weight: np.ndarray
) -> np.ndarray:
    """Pool template by template and medium by medium."""
    e = e * weight[:, None].astype(e.dtype)
    out = np.zeros((template.max() + 1, e.shape[1]), e.dtype)
    for t in np.unique(template):
        (rows,) = np.where(template == t)
        faces, of = e[rows], media[rows]
        for m in np.unique(of):
            out[t] += faces[of == m].mean(axis=0)
    return out / np.linalg.norm(out, axis=1, keepdims=True)


def usual_scores(t: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Compare pairs in batches of 100,000."""
    batches = np.array_split(np.arange(len(left)), max(1, len(left) // 100_000))
    return np.concatenate([np.sum(t[left[b]] * t[right[b]], -1) for b in batches])


def usual_tar(s: np.ndarray, same: np.ndarray, far: Sequence[float]) -> list[float]:
    """Read a whole ROC at the nearest FAR."""
    try:
        from sklearn import metrics
    except ImportError as error:
        raise ImportError(
            "the usual code needs scikit-learn: pip install jaxface[test]"
        ) from error

    fpr, tpr, _ = metrics.roc_curve(same, s)
    return [float(tpr[np.argmin(np.abs(fpr - f))]) for f in far]


def usual_ranks(probe: np.ndarray, gallery: np.ndarray, who: np.ndarray) -> np.ndarray:
    """Sort the whole gallery for each probe and look where its mate is; 0 for none."""
    ranks = []
    for i in range(0, len(probe), 256):
        order = np.argsort(-(probe[i : i + 256] @ gallery.T), axis=1)
        hit = order == who[i : i + 256, None]
        ranks.append(np.where(hit.any(axis=1), hit.argmax(axis=1) + 1, 0))
    return np.concatenate(ranks)


# --- what both get --------------------------------------------------------------------


def _images(n: int, T: int, dim: int) -> tuple[np.ndarray, ...]:
    """Return (e [n, D], template, media, weight), in the order of templates."""
    rng = np.random.default_rng(0)
    template = np.sort(np.append(np.arange(T), rng.integers(T, size=n - T)))
    centre = rng.standard_normal((-(-T // 2), dim), np.float32)
    e = rng.standard_normal((n, dim), np.float32)
    e *= 9  # so that TAR is neither 0 nor 1
    for i in range(0, n, 10_000):
        e[i : i + 10_000] += centre[template[i : i + 10_000] // 2]
    return e, template, rng.integers(8, size=n), rng.uniform(0.5, 1, n)


def _pairs(T: int, P: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (left, right, same) [P]: genuine pairs first, then whoever comes."""
    rng = np.random.default_rng(1)
    first = np.arange(0, T - 1, 2)
    a, b = rng.integers(T, size=(2, P - len(first)))
    left, right = np.append(first, a), np.append(first + 1, b)
    return left, right, left // 2 == right // 2


def _agree(ours: np.ndarray, usual: np.ndarray) -> None:
    worst = float(np.max(np.abs(ours - usual)))
    if not worst <= 1e-5:
        raise ValueError(f"ours and the usual code differ by {worst:g}; wanted 1e-5")


def _unit(x: np.ndarray) -> np.ndarray:
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x


# --- the clock ------------------------------------------------------------------------


def _through(
    side: str,
    steps: Sequence[tuple[str, Callable[..., Any]]],
    took: dict[str, list[float]],
) -> list[Any]:
    """Run steps, each on what the one before gave; note seconds, return all."""
    given, spent, cpu = [None], 0.0, time.process_time()
    for name, step in steps:
        begun = time.perf_counter()
        given.append(step(given[-1]))
        seconds = time.perf_counter() - begun
        took.setdefault(f"{side}: {name}", []).append(seconds)
        spent += seconds
    took.setdefault(f"{side}: in all", []).append(spent)
    cpu = time.process_time() - cpu  # what other programs cannot make longer
    took.setdefault(f"{side}: of one core", []).append(cpu)
    return given[1:]


def _row(name: str, unit: str, values: Sequence[float]) -> harness.Row:
    middle = statistics.median(values)
    return harness.Row(name, unit, middle, min(values), max(values), len(values))


def _peak() -> float:
    """Return the most memory this process has held, in GB."""
    # not ru_maxrss, which a process has from the one that started it
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1e6
