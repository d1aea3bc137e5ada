"""Samplers: which example stands at each position of the endless stream.

A sampler makes an order, positions [B] -> examples [B]. The one law is that of
`index`: an order is a pure function of (seed, position), so a position is all that
resuming needs and hosts may slice a batch as they like.

    order = pk(source=faces, batch_size=128, seed=0, k=4)
    order(index.positions(7, batch_size=128))        # 32 people, 4 images of each
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from absl import logging

from jaxface import types
from jaxface.data import index

Order = Callable[[np.ndarray], np.ndarray]

_PEOPLE, _IMAGES = 0x9E0, 0x9E1  # salts


def uniform(*, source: types.Source, batch_size: int, seed: int) -> Order:
    """Show every image once an epoch, in an order of its own each epoch.

    Args:
        source: labelled images.
        batch_size: not used.
        seed: any integer.
    """
    return functools.partial(index.examples, n=len(source), seed=seed)


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
    if not isinstance(source, types.Labelled):
        raise ValueError(
            f"sampler pk needs the label of every image beforehand, and"
            f" {type(source).__module__} has no `labels`; set data.sampler = 'uniform'"
        )
    if k < 2 or batch_size % k:
        raise ValueError(
            f"pk(k={k}) of a batch of {batch_size}; wanted k from 2 up that divides it"
        )
    labels = np.asarray(source.labels)
    counts = np.bincount(labels)
    counts, P = counts[counts > 0], batch_size // k
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
    # of one person after the other: 8 bytes for each image of the set
    images, first = np.argsort(labels, kind="stable"), np.cumsum(counts) - counts

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


def _turn(
    draw: np.ndarray, place: np.ndarray, *, size: int, n: int | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (round, place in 0 .. n - 1) of a place in a draw of `size` things.

    A round is as many draws as it takes to have all n; its last draw goes on with
    those its first began with, so that no draw has one twice if n >= size.
    """
    rounds, part = np.divmod(draw, -(-n // size))
    return rounds, (part * size + place) % n
