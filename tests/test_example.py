"""Our parser of tf.train.Example against TensorFlow's own."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxface.data import example

LISTS = {
    "bytes_list": (tf.train.BytesList, st.binary(max_size=20)),
    "float_list": (tf.train.FloatList, st.floats(width=32, allow_nan=False)),
    "int64_list": (tf.train.Int64List, st.integers(-(2**63), 2**63 - 1)),
}


def feature(kind, values):
    return tf.train.Feature(**{kind: LISTS[kind][0](value=values)})


def message(features):
    return tf.train.Example(
        features=tf.train.Features(feature={k: feature(*v) for k, v in features})
    ).SerializeToString()


def plain(found):
    return {k: v if isinstance(v, list) else v.tolist() for k, v in found.items()}


def theirs(data):
    """What protobuf itself makes of the bytes."""
    features = tf.train.Example.FromString(data).features.feature
    kinds = {k: f.WhichOneof("kind") for k, f in features.items()}
    return {
        k: list(getattr(f, kinds[k]).value) if kinds[k] else []
        for k, f in features.items()
    }


KINDS = st.sampled_from(sorted(LISTS)).flatmap(
    lambda kind: st.tuples(st.just(kind), st.lists(LISTS[kind][1], max_size=5))
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.dictionaries(st.text(max_size=9), KINDS, max_size=4))
def test_an_example_is_parsed_as_protobuf_parses_it(features):
    data = message(features.items())
    assert plain(example.parse(memoryview(data))) == theirs(data)


def test_types_are_float32_and_int64():
    for floats, integers in (([0.1], [-1]), ([], [])):
        kinds = [("f", ("float_list", floats)), ("i", ("int64_list", integers))]
        found = example.parse(message(kinds))
        assert (found["f"].dtype, found["i"].dtype) == (np.float32, np.int64)
        np.testing.assert_array_equal(found["f"], np.array(floats, np.float32))
        np.testing.assert_array_equal(found["i"], np.array(integers, np.int64))


def field(number, wire, content):
    tag = bytes([number << 3 | wire])
    return tag + (bytes([len(content)]) + content if wire == 2 else content)


def entry(name, *parts):
    value = field(2, 2, b"".join(parts))
    return field(1, 2, field(1, 2, field(1, 2, name) + value))


UNUSUAL = {
    "unpacked integers": entry(b"a", field(3, 2, b"\x08\x01\x08\xac\x02")),
    "packed and unpacked": entry(b"a", field(3, 2, b"\x0a\x02\x05\x06\x08\x07")),
    "unpacked floats": entry(b"a", field(2, 2, b"\x0d\x00\x00\x80\x3f")),
    "lists of one kind": entry(
        b"a", field(3, 2, b"\x08\x01"), field(3, 2, b"\x08\x02")
    ),
    "lists of two kinds": entry(
        b"a", field(3, 2, b"\x08\x01"), field(1, 2, b"\x0a\x01x")
    ),
    "equal names": entry(b"a", field(3, 2, b"\x08\x01"))
    + entry(b"a", field(3, 2, b"\x08\x02")),
    "unknown fields": field(9, 2, b"xyz")
    + field(8, 0, b"\x96\x01")
    + field(7, 5, b"1234")
    + field(6, 1, b"12345678")
    + entry(b"a", field(5, 2, b"?"), field(3, 2, b"\x08\x01")),
    "no value": entry(b"a"),
    "no name": field(1, 2, field(1, 2, b"")),
    "nothing": b"",
    "a feature in two parts": field(
        1, 2, field(1, 2, field(1, 2, b"a")
        + field(2, 2, field(3, 2, b"\x08\x01")) + field(2, 2, field(3, 2, b"\x08\x02")))
    ),
}  # fmt: skip


@pytest.mark.parametrize("data", UNUSUAL.values(), ids=UNUSUAL)
def test_unusual_messages_mean_what_protobuf_says(data):
    assert plain(example.parse(data)) == theirs(data)


BROKEN = {
    "length past the end": (b"\x0a\x7f", "byte 0: a field of 127 bytes; 0 are left"),
    "length of 2^63": (b"\x0a" + b"\xff" * 8 + b"\x7f", "; 0 are left"),
    "endless integer": (b"\xff" * 11, "byte 0: an integer of more than 10 bytes"),
    "cut integer": (b"\x0a\xff", "byte 1: an integer is cut short"),
    "field zero": (b"\x02\x00", "a field of number 0"),
    "group": (b"\x0b\x0c", "a field of wire type 3"),
    "inner length past its message": (b"\x0a\x02\x0a\x05" + b"x" * 5, "0 are left"),
    "name": (entry(b"\xff"), "a name that is not UTF-8"),
    "floats": (entry(b"a", field(2, 2, b"\x0a\x03abc")), "multiple of 4"),
    "packed cut": (entry(b"a", field(3, 2, b"\x0a\x01\x80")), "is cut short"),
    "packed long": (
        entry(b"a", field(3, 2, b"\x0a\x0c" + b"\x80" * 11 + b"\x00")),
        "more than 10",
    ),
}


@pytest.mark.parametrize(("data", "says"), BROKEN.values(), ids=BROKEN)
def test_broken_messages_are_refused_at_their_byte(data, says):
    with pytest.raises(ValueError, match=rf"byte \d+: .*|{says}") as caught:
        example.parse(data)
    assert says in str(caught.value)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(max_size=60))
def test_any_bytes_are_parsed_or_refused(data):
    try:
        found = plain(example.parse(data))
    except ValueError:
        return
    assert len(repr(found)) < 100 * (len(data) + 1)
