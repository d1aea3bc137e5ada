"""A name stands for what was written to the end."""

import numpy as np
import pytest

from jaxface import atomic


def test_what_was_written_to_the_end_replaces_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    for text in ("before", "größer"):
        atomic.write(path, text)
        assert path.read_text("utf-8") == text
    atomic.write(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.arange(3))

    def fail():
        with atomic.file(path) as part:
            np.save(part, np.arange(9))  # adds no suffix of its own
            assert part.exists()
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    np.testing.assert_array_equal(np.load(path), np.arange(3))
    assert list(tmp_path.iterdir()) == [path]
