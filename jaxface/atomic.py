"""Files that are there whole or not at all.

The law: a name stands for what was written to the end. Until then the bytes are in a
hidden neighbour of another name, which is removed when writing fails; those for a
bucket are on this machine, and sent as one object.

    with atomic.file("faces.bin") as part:
        part.write_bytes(...)                 # takes the name when the block ends well
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator

from jaxface import places


@contextlib.contextmanager
def file(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yield where to write; it replaces `path` when the block ends without an error.

    The suffix stays, for there are libraries that go by it.
    """
    if places.in_bucket(path):
        with _sent(path) as part:
            yield part
        return
    final = pathlib.Path(path)
    part = final.with_name(f".{final.stem}.{os.getpid()}{final.suffix}")
    try:
        yield part
        os.replace(part, final)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def _sent(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    final = places.at(path)
    with tempfile.TemporaryDirectory() as folder:
        part = pathlib.Path(folder) / final.name
        yield part
        final.write_bytes(part.read_bytes())


def write(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write text, as UTF-8, or bytes."""
    with file(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
