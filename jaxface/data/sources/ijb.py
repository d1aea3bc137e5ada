"""IJB-B and IJB-C as template pairs, each face aligned when it is read.

One law: a face goes through the one map of `align`, from the landmarks of the list.

    found = pairs("IJBC")                        # meta/ and loose_crop/ of insightface
    found.images.read(0)                         # uint8 [112, 112, 3]

    ijb(path='IJBC')|templates                   as a line
"""

from __future__ import annotations

import dataclasses
import os
import pathlib

import numpy as np

from jaxface import align, types
from jaxface.data import decode
from jaxface.data.sources import pairs_bin, templates


@dataclasses.dataclass(frozen=True)
class Faces:
    """Photos with landmarks, as a `types.Source` of aligned faces."""

    paths: tuple[str, ...]
    matrices: np.ndarray  # [n, 2, 3], photo -> face
    labels: np.ndarray
    num_classes: int
    size: int
    color: str = "rgb"

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, i: int) -> tuple[np.ndarray, int]:
        """Return (uint8 [size, size, 3], label) of face i."""
        photo = decode.pixels(pathlib.Path(self.paths[i]).read_bytes())
        return align.warp(photo, self.matrices[i], self.size), int(self.labels[i])

    def name(self, i: int) -> str:
        """Return the path of image i."""
        return self.paths[i]


def pairs(
    path: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] = "",
    prefix: str = "",
    size: int = 112,
) -> types.TemplatePairs:
    """Read the lists of 1:1 verification.

    Args:
        path: the folder with `meta`, such as `IJBC`.
        root: the images' folder; "" for `PATH/loose_crop`.
        prefix: of the lists' names; "" for the folder's in lower case.
        size: of the aligned faces, pixels.

    Returns:
        The pairs. People are told by the genuine pairs: templates that these connect
        are of one person.

    Raises:
        FileNotFoundError: a list or images are missing.
        ValueError: on a malformed list.
    """
    found = templates.templates(path, root=root, prefix=prefix)
    known, row = np.unique(found.template, return_inverse=True)
    left, right = (np.searchsorted(known, side) for side in (found.left, found.right))
    genuine = np.stack([left[found.same], right[found.same]], axis=1)
    person = pairs_bin.joined(len(known), genuine)
    return types.TemplatePairs(
        grouped(found, np.arange(len(row)), row, person, size=size),
        left,
        right,
        found.same,
    )


def grouped(
    found: templates.Templates,
    rows: np.ndarray,
    template: np.ndarray,
    person: np.ndarray,
    *,
    size: int,
) -> types.Templates:
    """Return some rows [m] of the lists as templates [m] of people [T].

    Raises:
        FileNotFoundError: images are missing, naming the first few.
    """
    paths = tuple(os.path.join(found.root, found.names[i]) for i in rows)
    missing = [p for p in paths if not os.path.isfile(p)]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(paths)} images are missing, among them"
            f" {', '.join(missing[:3])}; give their folder as root="
        )
    matrices = align.similarity(found.landmarks[rows], align.template(size))
    return types.Templates(
        images=Faces(paths, matrices, person[template], int(person.max()) + 1, size),
        image=np.arange(len(rows)),
        template=template,
        media=found.media[rows],
        weight=found.score[rows],
        person=person,
    )
