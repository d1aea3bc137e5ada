"""Folders and files on a disk or in a bucket: "run", "/data/run", "gs://bucket/run".

The law: a place in a bucket is written whole or not at all, and never grows; so what
grows does so in `local`, or in memory, and is sent as one object.

    place = at("gs://bucket/run") / "config.json"     # used as a pathlib.Path
    place.read_text()

Buckets are reached by etils: through TensorFlow where it is installed, else by gcsfs.
"""

from __future__ import annotations

import os
import pathlib
import tempfile

from etils import epath


def at(path: epath.PathLike) -> epath.Path:
    """Return a place by its name; on a disk, from its root.

    Raises:
        ValueError: a URL of any other kind.
    """
    place = epath.Path(path)
    return place if in_bucket(path) else place.absolute()


def in_bucket(path: epath.PathLike) -> bool:
    """Tell whether a place is in a bucket, else it is on a disk.

    Raises:
        ValueError: it is neither.
    """
    name = os.fspath(path)
    if "://" in name and not name.startswith("gs://"):
        raise ValueError(f"{name}: wanted a folder, or gs://bucket/folder")
    return name.startswith("gs://")


def local(path: epath.PathLike) -> pathlib.Path:
    """Return the place itself, or what stands for it on this machine's disk."""
    if not in_bucket(path):
        return pathlib.Path(path)
    name = os.fspath(path).replace("://", "/")
    return pathlib.Path(tempfile.gettempdir()) / "jaxface" / name
