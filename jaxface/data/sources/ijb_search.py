"""The 1:N searches of IJB-B and IJB-C: mixed probes in two galleries.

One law: a line is read as it stands or refused with its number; nothing is skipped.

    meta/ijbc_1N_gallery_G1.csv       TEMPLATE_ID,SUBJECT_ID,...    and G2
    meta/ijbc_1N_probe_mixed.csv      the same; a line for each template or image

    ijb_search(path='IJBC')|identification

No person is in both galleries, so each one's probes are strangers to the other.
"""

from __future__ import annotations

import os
import pathlib

import numpy as np

from jaxface import types
from jaxface.data.sources import ijb, pairs_txt, templates

_GALLERIES, _PROBES = ("gallery_G1", "gallery_G2"), "probe_mixed"


def search(
    path: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] = "",
    prefix: str = "",
    size: int = 112,
) -> types.Search:
    """Read the lists.

    Args:
        path: the folder with `meta`, such as `IJBC`.
        root: the images' folder; "" for `PATH/loose_crop`.
        prefix: of the lists' names; "" for the folder's in lower case.
        size: of the aligned faces, pixels.

    Raises:
        FileNotFoundError: a list or images are missing.
        ValueError: on a malformed list, a template of two people or without images,
            or a person twice in a gallery.
    """
    found = templates.templates(path, root=root, prefix=prefix)
    folder = pathlib.Path(path)
    stem = folder / "meta" / f"{prefix or folder.resolve().name.lower()}_1N_"
    who: dict[int, int] = {}
    names = [f"{stem}{name}.csv" for name in (*_GALLERIES, _PROBES)]
    lists = [_read(name, who) for name in names]
    known = np.array(sorted(who))
    rows = np.flatnonzero(np.isin(found.template, known))
    lost = np.setdiff1d(known, found.template[rows])
    if len(lost):
        where = next(n for n, ids in zip(names, lists, strict=True) if lost[0] in ids)
        raise ValueError(
            f"{where}: {len(lost)} templates have no image in the media list, such as"
            f" {lost[0]}"
        )
    _, person = np.unique([who[t] for t in known.tolist()], return_inverse=True)
    *galleries, probes = (np.searchsorted(known, ids) for ids in lists)
    for name, gallery in zip(_GALLERIES, galleries, strict=True):
        if len(np.unique(person[gallery])) < len(gallery):
            raise ValueError(f"{stem}{name}.csv: a person has several templates")
    template = np.searchsorted(known, found.template[rows])
    return types.Search(
        ijb.grouped(found, rows, template, person, size=size),
        tuple((gallery, probes) for gallery in galleries),
    )


def _read(path: str, who: dict[int, int]) -> np.ndarray:
    """Return the templates of a list, each once; adds to template -> subject."""
    ids = dict[int, None]()
    rows = pairs_txt.text(path).splitlines()
    for number, row in enumerate(rows[1:], start=2):
        cells = row.split(",")[:2]
        if len(cells) < 2 or not all(c.strip().isascii() and c.strip().isdigit()
                                     and len(c) < 10 for c in cells):  # fmt: skip
            raise ValueError(
                f"{path}:{number}: wanted `TEMPLATE_ID,SUBJECT_ID,...`; got"
                f" {row[:200]!r}"
            )
        template, subject = (int(c) for c in cells)
        if who.setdefault(template, subject) != subject:
            raise ValueError(
                f"{path}:{number}: template {template} is of {subject} here and of"
                f" {who[template]} before"
            )
        ids[template] = None
    if not ids:
        raise ValueError(f"{path}: no templates; wanted a header and a line or more")
    return np.array(list(ids))
