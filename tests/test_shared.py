"""What comes through shared memory is what was sent, for as long as it is kept."""

import contextlib
import gc
import itertools
import os
import socket
import threading

import jax
import numpy as np
import pytest

from jaxface.data import shared

SHAPE = (4, 16, 16, 3)


class Made:
    """A sender in a thread: message i holds images of i, and i as a label."""

    def __init__(self, size=lambda i: SHAPE):
        self.line, theirs = socket.socketpair()
        self.addresses, self.sender = [], shared.Sender(theirs)
        self.receiver = shared.Receiver(self.line)
        self.thread = threading.Thread(target=self._run, args=(theirs, size))
        self.thread.start()

    def _run(self, line, size):
        with line, contextlib.closing(self.sender):
            for i in itertools.count():
                images = self.sender.empty(size(i), np.uint8)
                self.addresses.append(images.ctypes.data)
                images[...] = i
                try:
                    self.sender.send(
                        {"step": i}, {"image": images, "label": np.int32([i])}
                    )
                except OSError:
                    return

    def take(self):
        told, arrays = self.receiver.receive()
        assert arrays["label"].tolist() == [told["step"]]
        return arrays["image"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.line.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.line.close()


def seen(images):
    return [np.unique(x).tolist() for x in images]


def test_memory_that_is_dropped_is_used_again():
    with Made() as made:
        for i in range(50):
            images = made.take()
            assert images.shape == SHAPE
            assert seen([images]) == [[i]]
            del images
    assert len(set(made.addresses)) <= 3


@pytest.mark.parametrize(
    "keep",
    [lambda x: x, lambda x: x[1:, ::2], lambda x: x.reshape(-1).view("u4"), memoryview],
    ids=["array", "view", "other view", "buffer"],
)
def test_what_is_kept_never_changes(keep):
    with Made() as made:
        kept = [keep(made.take()) for _ in range(9)]
        for _ in range(20):
            made.take()
        words = [i * 0x1010101 if np.asarray(kept[0]).itemsize == 4 else i
                 for i in range(9)]  # fmt: skip
        assert seen(kept) == [[word] for word in words]


def test_arrays_of_jax_keep_what_they_are_made_of():
    with Made() as made:
        kept = [jax.device_put(made.take()) for _ in range(5)]
        for _ in range(20):
            made.take()
        assert seen(kept) == [[i] for i in range(5)]


def test_a_block_is_taken_where_it_is_large_enough():
    with Made(lambda i: (1 + i % 3, 8, 8, 3)) as made:
        for i in range(30):
            images = made.take()
            assert len(images) == 1 + i % 3
            assert seen([images]) == [[i]]
            del images
    assert len(set(made.addresses)) < 12


def test_beyond_the_most_blocks_arrays_are_copied(monkeypatch):
    monkeypatch.setattr(shared, "_MOST", 3)
    with Made() as made:
        kept = [made.take() for _ in range(9)]
        assert seen(kept) == [[i] for i in range(9)]


def test_without_nameless_memory_a_nameless_file_does(monkeypatch):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    with Made() as made:
        kept = [made.take() for _ in range(5)]
        assert seen(kept) == [[i] for i in range(5)]


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded, use of fork")
@pytest.mark.filterwarnings("ignore:os.fork")
def test_a_forked_process_gives_nothing_back():
    with Made() as made:
        kept = [made.take() for _ in range(3)]
        process = os.fork()
        if not process:
            kept.clear()
            gc.collect()
            os._exit(0)
        assert os.waitpid(process, 0)[1] == 0
        for _ in range(20):
            made.take()
        assert seen(kept) == [[i] for i in range(3)]


def test_arrays_outlive_the_line_and_its_end_is_told():
    with Made() as made:
        kept = made.take()
    assert seen([kept]) == [[0]]
    with pytest.raises(OSError):
        made.take()
