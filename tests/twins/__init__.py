"""Twins of other projects' networks in PyTorch, found by `tests/test_twins.py`.

A twin is written from the paper and the original's list of layers, with the module
names of the original; `keys/` holds those names and shapes as read in its source.
"""

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Twin:
    """A network of ours and the same of another project.

    Attributes:
        line: a small model of ours, without dropout.
        small: makes its twin.
        full_line: the model of published size.
        full: makes its twin (called on torch's meta device).
        keys: file in keys/, of the published size.
        tolerance: of float32 embeddings, relative to the largest value.
        gradients: False where another twin of the same layers is trained already.
    """

    line: str
    small: Callable[[], Any]
    full_line: str
    full: Callable[[], Any]
    keys: str
    tolerance: float = 1e-4
    gradients: bool = True
