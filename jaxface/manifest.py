"""What a folder of files held when it was finished: sizes and SHA-256 of them all.

The one law: the manifest is written last and whole, so a folder whose files agree
with it is the one that was written, whatever became of disk or copy since.

    write("run/checkpoints/100")
    differences("run/checkpoints/100")   # [] or ["state/d/0a: 3 bytes, was 9"]
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from etils import epath

from jaxface import atomic

NAME = "manifest.json"
# What Orbax writes after all else: a mark, and the hour of it. It restores without.
DONE = "commit_success.txt"
_LATER = (DONE, "_CHECKPOINT_METADATA")


def write(folder: epath.PathLike) -> None:
    """Write the manifest of a folder into it, replacing one that is there."""
    folder = epath.Path(folder)
    facts = {name: _facts(path) for name, path in sorted(_files(folder).items())}
    atomic.write(folder / NAME, json.dumps({"sha256": facts}, indent=1))


def exists(folder: epath.PathLike) -> bool:
    """Tell whether a folder has a manifest."""
    return (epath.Path(folder) / NAME).exists()


def differences(folder: epath.PathLike) -> list[str]:
    """List the files that are not what the manifest says, each with what differs.

    Files the manifest does not name are none of its business. It is not believed
    either: it names files that are looked for in the folder, and opens no other.

    Args:
        folder: which has a manifest.
    """
    folder = epath.Path(folder)
    try:
        told = json.loads((folder / NAME).read_text())["sha256"]
        wanted = {str(name): (int(f[0]), str(f[1])) for name, f in told.items()}
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as e:
        return [f"{NAME}: cannot be read ({type(e).__name__}: {e})"]
    found = _files(folder)
    wrong = [f"{name}: missing" for name in wanted if name not in found]
    for name, (size, digest) in wanted.items():
        if name not in found:
            continue
        try:
            length, content = _facts(found[name], size=size)
        except OSError as error:
            wrong.append(f"{name}: cannot be read ({error})")
            continue
        if length != size:
            wrong.append(f"{name}: {length} bytes, was {size}")
        elif content != digest:
            wrong.append(f"{name}: same size, other content")
    return wrong


def _files(folder: epath.Path) -> dict[str, epath.Path]:
    """Return all files to be hashed by their path in the folder."""
    files: dict[str, epath.Path] = {}
    rooms = [folder]
    while rooms:
        for path in rooms.pop().iterdir():
            if path.is_dir():
                rooms.append(path)
            elif path.name not in (NAME, *_LATER):
                files[path.relative_to(folder).as_posix()] = path
    return files


def _facts(path: epath.Path, *, size: int | None = None) -> tuple[int, str]:
    """Return (bytes, SHA-256 in hex); one of another size is not read."""
    length = path.stat().length
    if size is not None and length != size:
        return length, ""
    digest: Any = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return length, digest.hexdigest()
