"""Samplers: which example stands at each position of the endless stream.

A sampler makes an order, positions [B] -> examples [B]. The one law is that of
`index`: an order is a pure function of (seed, position), so a position is all that
resuming needs and hosts may slice a batch as they like.

    order = pk(source=faces, batch_size=128, seed=0, k=4)
    order(index.positions(7, batch_size=128))        # 32 people, 4 images of each
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence

import numpy as np
from absl import logging

from jaxface import types
from jaxface.data import identities, index

Order = Callable[[np.ndarray], np.ndarray]

_PEOPLE, _IMAGES, _SLOTS, _SETS, _GROWING = range(0x9E0, 0x9E5)  # salts


def uniform(*, source: types.Source, batch_size: int, seed: int) -> Order:
    """Show every image once an epoch, in an order of its own each epoch.

    Args:
        source: labelled images.
        batch_size: not used.
        seed: any integer.
    """
    return functools.partial(index.examples, n=len(source), seed=seed)


def balanced(*, source: types.Source, batch_size: int, seed: int) -> Order:
    """Show every person equally often, however many images there are of each.

    A round has everybody once, in an order of its own; a person's images take turns
    over the rounds. Durations in epochs go on counting images.

    Args:
        source: labelled images that tell their labels without being read.
        batch_size: not used.
        seed: any integer.

    Raises:
        ValueError: the source does not tell labels.
    """
    images, first, counts = _people(source, "balanced")

    def order(positions: np.ndarray) -> np.ndarray:
        rounds, place = np.divmod(np.asarray(positions, np.int64), len(counts))
        who = index.ordered(rounds, place, n=len(counts), seed=seed, salt=_PEOPLE)
        n = counts[who]
        turn, place = np.divmod(rounds, n)
        found = index.ordered(turn, place, n=n, seed=seed, salt=_IMAGES, which=who)
        return images[first[who] + found]

    return order


def mixed(
    *,
    source: types.Source,
    batch_size: int,
    seed: int,
    weights: Sequence[int],
) -> Order:
    """Draw from the sets of a `merged` source by weight: (3, 1) is three of four.

    In every sum(weights) positions each set has its weight's number of them, so shares
    are kept to within one such round, in every batch; each set has epochs of its own,
    in which every image of it comes once.

    Args:
        source: of `sources.merged`.
        batch_size: not used.
        seed: any integer.
        weights: a whole number for each set, 1 or more.

    Raises:
        ValueError: the source is of no sets, or weights that do not fit it.
    """
    starts = np.asarray(getattr(source, "starts", [0]), np.int64)
    sizes, w = np.diff(starts), np.asarray(weights)
    if not len(sizes):
        raise ValueError(
            "sampler mixed wants a source of several sets, as merged({...}), got"
            f" {type(source).__module__}"
        )
    if w.shape != sizes.shape or w.dtype.kind != "i" or (w < 1).any():
        raise ValueError(
            f"mixed(weights={weights}): wanted a whole number from 1 up for each of"
            f" {len(sizes)} sets"
        )
    ends = np.cumsum(w)

    def order(positions: np.ndarray) -> np.ndarray:
        rounds, place = np.divmod(np.asarray(positions, np.int64), ends[-1])
        slot = index.ordered(rounds, place, n=ends[-1], seed=seed, salt=_SLOTS)
        which = np.searchsorted(ends, slot, side="right")
        draw = rounds * w[which] + slot - (ends - w)[which]
        n = sizes[which]
        epoch, place = np.divmod(draw, n)
        found = index.ordered(epoch, place, n=n, seed=seed, salt=_SETS, which=which)
        return starts[which] + found

    return order


def curriculum(
    *,
    source: types.Source,
    batch_size: int,
    seed: int,
    path: str,
    first: float = 0.5,
    epochs: int = 5,
) -> Order:
    """Begin with the easiest images, and admit harder ones epoch by epoch.

    Epoch e shows each of the easiest first + (1 - first) e / epochs of all images once
    (rounded, at least one), in an order of its own, so early epochs are shorter; from
    `epochs` on all are shown.
    Durations in epochs go on counting all images.

    Args:
        source: images.
        batch_size: not used.
        seed: any integer.
        path: scores, one for each image in the source's order, higher is easier: `.npy`
            or text with a number a line.
        first: share of the images admitted at first, more than 0 and at most 1.
        epochs: how many are shortened, 1 or more.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, or arguments out of range.
    """
    if not 0 < first <= 1 or epochs < 1:
        raise ValueError(
            f"curriculum(first={first}, epochs={epochs}): wanted 0 < first <= 1 and"
            " 1 epoch or more"
        )
    easiest = np.argsort(-_scores(path, len(source)), kind="stable")
    share = first + (1 - first) * np.arange(epochs + 1) / epochs
    sizes = np.maximum(1, np.rint(share * len(source))).astype(np.int64)
    starts = np.cumsum(sizes) - sizes  # of epochs 0 .. epochs, the last a full one

    def order(positions: np.ndarray) -> np.ndarray:
        positions = np.asarray(positions, np.int64)
        epoch = np.searchsorted(starts, positions, side="right") - 1
        more, place = np.divmod(positions - starts[epoch], sizes[epoch])
        found = index.ordered(
            epoch + more, place, n=sizes[epoch], seed=seed, salt=_GROWING
        )
        return easiest[found]

    return order


def _scores(path: str | os.PathLike[str], count: int) -> np.ndarray:
    binary = os.fspath(path).endswith(".npy")
    try:
        if binary:
            found = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            found = np.loadtxt(path, dtype=np.float64, ndmin=1, max_rows=count + 1)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} holds no scores: {error}") from None
    if found.shape != (count,) or found.dtype.kind not in "fiu":
        raise ValueError(
            f"{path} holds {found.dtype} {found.shape}; wanted a number for each of the"
            f" {count} images, in their order"
        )
    if not np.isfinite(found).all():
        raise ValueError(f"{path} holds scores that are no finite numbers")
    return np.asarray(found, np.float64)


def pk(*, source: types.Source, batch_size: int, seed: int, k: int = 4) -> Order:
    """Fill every batch with P people and k images of each, as metric losses want it.

    People take turns: each comes up once in ceil(people / P) batches, an epoch of
    people, in an order of its own each time; where P does not divide the people, the
    last batch is filled with some that were already there. A person's images take
    turns likewise, k each time. Those of people with fewer than k repeat in a batch,
    which is counted and said. An unreadable image is replaced by any other, with that
    one's label. Durations in epochs go on counting images.

    Args:
        source: labelled images that tell their labels without being read.
        batch_size: P k, over all hosts.
        seed: any integer.
        k: images of each person, 2 or more.

    Raises:
        ValueError: the source does not tell labels, k is below 2 or does not divide
            the batch, or there are fewer than P people.
    """
    if k < 2 or batch_size % k:
        raise ValueError(
            f"pk(k={k}) of a batch of {batch_size}; wanted k from 2 up that divides it"
        )
    images, first, counts = _people(source, "pk")
    P = batch_size // k
    if len(counts) < P:
        raise ValueError(
            f"pk(k={k}) wants {P} people in a batch of {batch_size}, the source has"
            f" {len(counts)}; wanted a smaller data.batch_size or a larger k"
        )
    few = int((counts < k).sum())
    if few:
        logging.warning(
            "pk: %d of %d people have fewer than k=%d images; theirs repeat in a batch",
            few,
            len(counts),
            k,
        )

    def order(positions: np.ndarray) -> np.ndarray:
        group, place = np.divmod(np.asarray(positions, np.int64), k)
        batch, slot = np.divmod(group, P)
        epoch, slot = _turn(batch, slot, size=P, n=len(counts))
        who = index.ordered(epoch, slot, n=len(counts), seed=seed, salt=_PEOPLE)
        n = counts[who]
        turn, place = _turn(epoch, place, size=k, n=n)
        found = index.ordered(turn, place, n=n, seed=seed, salt=_IMAGES, which=who)
        return images[first[who] + found]

    return order


def _people(
    source: types.Source, sampler: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (images of one person after the other [n], their firsts, their counts).

    People without images are left out. Costs 8 bytes for each image of the set.
    """
    labels = identities.labels_of(
        source, f"sampler {sampler}", instead="; set data.sampler = 'uniform'"
    )
    counts = np.bincount(labels)
    counts = counts[counts > 0]
    return np.argsort(labels, kind="stable"), np.cumsum(counts) - counts, counts


def _turn(
    draw: np.ndarray, place: np.ndarray, *, size: int, n: int | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (round, place in 0 .. n - 1) of a place in a draw of `size` things.

    A round is as many draws as it takes to have all n; its last draw goes on with
    those its first began with, so that no draw has one twice if n >= size.
    """
    rounds, part = np.divmod(draw, -(-n // size))
    return rounds, (part * size + place) % n
