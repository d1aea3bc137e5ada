"""Readers of other projects' weight files.

One law: whatever the file, `read` gives tensors by dotted name in PyTorch's layout
and naming, in order, and runs nothing that the file brings along.

    foreign.read("backbone.pth")             # {"conv1.weight": [O, I, kh, kw], ...}

Conv is [O, I / groups, kh, kw], linear [out, in], norm `.weight .bias .running_mean
.running_var`, PReLU's slope `.weight` [C].
"""

from __future__ import annotations

import difflib
import os

import numpy as np

from jaxface.foreign import archive, keras_file, onnx_graph, pytorch, safetensor

READERS = {
    ".pth": pytorch.read,
    ".pt": pytorch.read,
    ".ckpt": pytorch.read,
    ".pth.tar": pytorch.read,
    ".bin": pytorch.read,
    ".safetensors": safetensor.read,
    ".onnx": onnx_graph.read,
    ".h5": keras_file.read,
    ".hdf5": keras_file.read,
    ".keras": keras_file.read,
}


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read a weight file by its suffix, or by its content where that tells better.

    Args:
        path: the file; its suffix is one of `READERS`.

    Returns:
        Tensors by dotted name, in PyTorch's layout; float16 and bfloat16 as float32.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the suffix is unknown or the file is not of any known kind.
    """
    return READERS[kind_of(path)](os.fspath(path))


def kind_of(path: str | os.PathLike[str]) -> str:
    """Return the suffix in `READERS` that fits a file; `read` raises the same."""
    path = os.fspath(path)
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such file of weights")
    if not os.path.isfile(path):
        raise ValueError(f"{path}: not a file; wanted one of {list(READERS)}")
    known = [suffix for suffix in READERS if path.lower().endswith(suffix)]
    if not known:
        given = os.path.splitext(path)[1]
        close = difflib.get_close_matches(given, READERS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise ValueError(
            f"{path}: suffix {given!r} unknown{hint} Known: {', '.join(READERS)}"
        )
    return sniff(path) or known[0]


def flattens_rows(path: str | os.PathLike[str]) -> bool:
    """Whether dense layers read pixels row by row, as Keras has it and we do."""
    return READERS[kind_of(path)] is keras_file.read


def sniff(path: str) -> str | None:
    """Return a suffix that a file's content would bear, or None if it does not tell.

    Raises:
        ValueError: if it is a zip archive that holds no weights.
    """
    with open(path, "rb") as file:
        head = file.read(9)
        size = os.fstat(file.fileno()).st_size
    if head[:4] == b"PK\x03\x04":
        return _zipped(path)
    if head[:8] == b"\x89HDF\r\n\x1a\n":
        return ".h5"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return ".pth"
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return ".safetensors"
    # protobuf has no magic: the IR version first, then a text or the graph
    if (
        len(head) > 2
        and head[0] == 0x08
        and head[1] < 32
        and head[2] in b"\x12\x3a\x42"
    ):
        return ".onnx"
    return None


def _zipped(path: str) -> str:
    try:
        with archive.opened(path) as members:
            names = members.namelist()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if "model.weights.h5" in names:
        return ".keras"
    if any(name.endswith("/data.pkl") for name in names):
        return ".pth"
    raise ValueError(
        f"{path}: a zip archive without weights of PyTorch or Keras: {names[:5]}"
    )
