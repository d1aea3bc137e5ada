"""Files that are there whole or not at all.

The law: a name stands for what was written to the end. Until then the bytes are in a
hidden neighbour of another name, which is removed when writing fails.

    with atomic.file("faces.bin") as part:
        part.write_bytes(...)                 # takes the name when the block ends well
"""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator


@contextlib.contextmanager
def file(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yield where to write; it replaces `path` when the block ends without an error.

    The suffix stays, for there are libraries that go by it.
    """
    final = pathlib.Path(path)
    part = final.with_name(f".{final.stem}.{os.getpid()}{final.suffix}")
    try:
        yield part
        os.replace(part, final)
    finally:
        part.unlink(missing_ok=True)


def write(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write text, as UTF-8, or bytes."""
    with file(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
