"""A folder of people, one directory each, or a `.tar` of the same, read in place.

`<path>/<identity>/<file>`; in a tar also `<root>/<identity>/<file>`. The law: which
part an identity belongs to depends on its name and the seed alone, so adding people
moves nobody, and no one is in two parts.

    train = Source("faces.tar", part="train", holdout=0.1)
    encoded, label = train.read(0)
    train.classes[label], train.name(0)      # "anna", "faces.tar/faces/anna/1.jpg"
"""

from __future__ import annotations

import os
import pathlib
import tarfile
import weakref
from collections.abc import Iterable

import numpy as np
from absl import logging

from jaxface.data import identities

SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)


class Source:
    """Images of any size and mode, labelled by the directory they lie in.

    Attributes:
        color: "rgb".
        num_classes: identities of the part.
        classes: their names, sorted; label k is classes[k].
        labels: [n] int32.
        ignored: files left out: hidden, of another kind, or at another depth.
        empty: identity directories without an image.
    """

    color = "rgb"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        part: str = "all",
        holdout: float = 0.1,
        seed: int = 0,
        min_images: int = 2,
    ):
        """List the images.

        Args:
            path: the folder, or an uncompressed `.tar`.
            part: "all", "train" or "validation".
            holdout: share of identities that "validation" gets, on average.
            seed: of the split.
            min_images: fewest images an identity may have.

        Raises:
            FileNotFoundError: if there is no such path.
            ValueError: if there are no images, an identity has too few, a part would
                be empty, or the tar is compressed or damaged.
        """
        path = pathlib.Path(path)
        if not path.exists():
            raise FileNotFoundError(f"no images at {path}: it does not exist")
        listed = _Folder(path) if path.is_dir() else _Tar(path)
        people, self.ignored = listed.people, listed.ignored
        found = {name: sorted(files) for name, files in people.items() if files}
        self.empty = len(people) - len(found)
        if not found:
            raise ValueError(
                f"{path} holds no images; wanted <identity>/<file> with one of"
                f" {', '.join(sorted(SUFFIXES))}"
            )
        self.classes = identities.of_part(
            sorted(found), part, holdout=holdout, seed=seed
        )
        counted = {name: len(found[name]) for name in self.classes}
        identities.check_counts(path, counted, fewest=min_images)
        if self.ignored or self.empty:
            logging.warning(
                "%s: %d files ignored, %d identities without images",
                path,
                self.ignored,
                self.empty,
            )
        self.num_classes = len(self.classes)
        labels = np.arange(self.num_classes, dtype=np.int32)
        self.labels = np.repeat(labels, list(counted.values()))
        self._files = [file for name in self.classes for file in found[name]]
        self._listed = listed

    def __len__(self) -> int:
        return len(self._files)

    def read(self, i: int) -> tuple[bytes, int]:
        """Return (encoded bytes, label) of image i.

        Raises:
            OSError: if it cannot be read.
        """
        label = int(self.labels[i])
        return self._listed.read(self.classes[label], self._files[i]), label

    def name(self, i: int) -> str:
        """Return the path of image i; in a tar, the tar's and the member's."""
        return self._listed.name(self.classes[self.labels[i]], self._files[i])


class _Folder:
    """identity -> file names, of a directory."""

    def __init__(self, path: pathlib.Path):
        self._path, self.ignored = path, 0
        self.people: dict[str, list[str]] = {}
        for entry in _entries(path):
            if not entry.is_dir() or entry.name.startswith("."):
                self.ignored += 1
                continue
            files = list(_entries(entry.path))
            images = [f.name for f in files if _is_image(f.name) and f.is_file()]
            self.people[entry.name] = images
            self.ignored += len(files) - len(images)

    def read(self, identity: str, file: str) -> bytes:
        return (self._path / identity / file).read_bytes()

    def name(self, identity: str, file: str) -> str:
        return str(self._path / identity / file)


class _Tar:
    """identity -> file names, of a tar; nothing is ever written or followed."""

    def __init__(self, path: pathlib.Path):
        self._path, self.ignored = path, 0
        # (root, identity, file) -> (offset, size); the last of equal names counts
        members: dict[tuple[str, ...], tuple[int, int]] = {}
        folders: set[tuple[str, ...]] = set()
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    key = tuple(p for p in member.name.split("/") if p not in ("", "."))
                    if member.isdir():
                        folders.add(key)
                    elif member.isreg() and not member.issparse() and _is_image(*key):
                        members[key] = (member.offset_data, member.size)
                    else:
                        self.ignored += 1
        except tarfile.TarError as error:
            raise ValueError(
                f"{path} is not a whole uncompressed tar ({error}); decompress it, or"
                " unpack it and give the folder"
            ) from None
        depth = 3 if any(len(key) == 3 for key in members) else 2
        kept = {key: at for key, at in members.items() if len(key) == depth}
        self.ignored += len(members) - len(kept)
        roots = {key[:-2] for key in kept}
        if len(roots) > 1:
            raise ValueError(
                f"{path}: wanted one folder of <identity>/<file>, found"
                f" {sorted('/'.join(r) for r in roots)[:5]}"
            )
        self._root = "/".join((str(path), *roots.pop())) if roots else str(path)
        self._at = {key[-2:]: at for key, at in kept.items()}
        self.people: dict[str, list[str]] = {
            key[-1]: [] for key in folders if len(key) == depth - 1
        }
        for identity, file in self._at:
            self.people.setdefault(identity, []).append(file)
        self._fd = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._fd)

    def read(self, identity: str, file: str) -> bytes:
        offset, size = self._at[identity, file]
        data = os.pread(self._fd, size, offset)  # no seek: threads share the file
        if len(data) != size:
            raise OSError(f"{self._path} ends within {identity}/{file}")
        return data

    def name(self, identity: str, file: str) -> str:
        return f"{self._root}/{identity}/{file}"


def _entries(path: str | os.PathLike[str]) -> Iterable[os.DirEntry[str]]:
    with os.scandir(path) as entries:
        yield from entries


def _is_image(*path: str) -> bool:
    suffix = pathlib.PurePath(*path).suffix.lower()
    return suffix in SUFFIXES and not any(part.startswith(".") for part in path)
