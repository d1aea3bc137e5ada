"""Rules on people that every labelled set shares: parts, and fewest images.

The law: which part an identity belongs to depends on its name and the seed alone, so
adding people moves nobody, and no one is in two parts.

    names = of_part(["anna", "bo"], "train", holdout=0.1, seed=0)
    check_counts("faces", {"anna": 1}, fewest=2)     # ValueError
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping

import numpy as np

from jaxface import types

PARTS = ("all", "train", "validation")


def of_part(names: list[str], part: str, *, holdout: float, seed: int) -> list[str]:
    """Return the names that belong to a part, in order.

    Args:
        names: of all identities.
        part: one of PARTS.
        holdout: share of them that "validation" gets, on average.
        seed: of the split.

    Raises:
        ValueError: another part, or one that would be empty.
    """
    if part not in PARTS:
        raise ValueError(f"part {part!r}: wanted 'all', 'train' or 'validation'")
    if part == "all":
        return names
    held = {name for name in names if _share(name, seed) < holdout}
    if not 0 < len(held) < len(names):
        raise ValueError(
            f"holdout={holdout} with seed={seed} puts {len(held)} of {len(names)}"
            " identities into validation, which leaves a part empty; take another"
            " holdout or seed, or more identities"
        )
    return [name for name in names if (name in held) == (part == "validation")]


def _share(name: str, seed: int) -> float:
    """Return a number in [0, 1) that depends on the name and the seed alone."""
    text = f"{seed}/{name}".encode("utf-8", "surrogateescape")
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def check_counts(
    path: str | os.PathLike[str], counts: Mapping[str, int], *, fewest: int
) -> None:
    """Refuse a set in which somebody has too few images.

    Args:
        path: of the set, for the message.
        counts: images by name.
        fewest: that everybody has to have.

    Raises:
        ValueError: with the first few names.
    """
    short = [name for name, count in counts.items() if count < fewest]
    if short:
        raise ValueError(
            f"{path}: {len(short)} identities have fewer than {fewest} images:"
            f" {', '.join(short[:5])}{', ...' if len(short) > 5 else ''}; add images,"
            f" remove them, or accept them with min_images=1"
        )


def labels_of(source: types.Source, who: str, *, instead: str = "") -> np.ndarray:
    """Return the labels [n] that a source tells without being read.

    Args:
        source: the images.
        who: what needs them, for the message.
        instead: what else the user may do.

    Raises:
        ValueError: the source does not tell them.
    """
    if not isinstance(source, types.Labelled):
        raise ValueError(
            f"{who} needs the label of every image beforehand, and"
            f" {type(source).__module__} has no `labels`{instead}"
        )
    return np.asarray(source.labels)
