"""What is sent over a socket comes back whole; what nobody sent is refused."""

import socket
import struct
import threading

import numpy as np
import pytest

from jaxface.data import messages

BATCH = {
    "image": np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3),
    "label": np.array([5, 6], np.int32),
    "none": np.zeros((0, 3), np.float32),
    "scalar": np.uint32(7),
}


def received(raw):
    """What a message of these bytes is, after which the sender hangs up."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(raw)
        theirs.shutdown(socket.SHUT_WR)
        return messages.receive(ours)


def raw(told, arrays=None):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        messages.send(theirs, told, arrays)
        return ours.recv(1 << 16)


def test_a_message_comes_back_one_after_another():
    ours, theirs = socket.socketpair()
    large = {"image": np.random.default_rng(0).integers(0, 256, (40, 112, 112, 3))}
    large["image"] = large["image"].astype(np.uint8)[:, ::-1]  # more than a buffer
    with ours, theirs:
        sent = [({"step": 7, "bad": {"x": "cut"}}, BATCH), ({}, large), ({}, {})]
        thread = threading.Thread(
            target=lambda: [messages.send(theirs, *each) for each in sent]
        )
        thread.start()
        for told, arrays in sent:
            found, back = messages.receive(ours)
            assert found == told
            assert back.keys() == arrays.keys()
            for name, x in arrays.items():
                assert back[name].dtype == x.dtype
                np.testing.assert_array_equal(back[name], x)
        thread.join()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b"[1, {}]",
        b"[{}, {}",
        b"\xff" * 9,
        b"[" * 100_000,
        b'[{}, {"x": 3}]',
        b'[{}, {"x": ["object", [2]]}]',
        b'[{}, {"x": ["uint8", [-1]]}]',
        b'[{}, {"x": ["uint8", [true]]}]',
        b'[{}, {"x": ["uint8", [1e9]]}]',
        b'[{}, {"x": ["uint8", [3000000000]]}]',
        b'[{}, {"x": ["uint8", [9999999999, 9999999999]]}]',
        b'[{}, {"x": [["uint8"], [2]]}]',
        b'[{}, {"x": ["uint8", 2]}]',
        b'[{}, {"x": ["uint8", {}]}]',
        b'[{}, {"x": ["uint8", [1, 1, 1, 1, 1, 1, 1, 1, 1]]}]',
    ],
    ids=range(18),
)
def test_what_nobody_sent_is_refused(text):
    with pytest.raises(ValueError, match="a message that cannot be read"):
        received(struct.pack("<I", len(text)) + text)


def test_a_message_is_bounded_before_it_is_read():
    with pytest.raises(ValueError, match=r"a message of 4294967295 bytes; wanted at"):
        received(b"\xff" * 4)


def test_a_message_cut_short_is_an_end():
    whole = raw({"step": 1}, BATCH)
    received(whole)
    for end in range(len(whole)):
        with pytest.raises(EOFError, match="has hung up"):
            received(whole[:end])


def test_any_damage_is_an_error_or_another_message():
    whole, rng = raw({"step": 1}, BATCH), np.random.default_rng(0)
    outcomes = set()
    for _ in range(2000):
        damaged = bytearray(whole)
        for at in rng.integers(len(whole), size=rng.integers(1, 4)):
            damaged[at] = rng.integers(256)
        try:
            received(bytes(damaged))
            outcomes.add("taken")
        except (ValueError, EOFError) as error:
            outcomes.add(type(error).__name__)
    assert outcomes == {"taken", "ValueError", "EOFError"}
