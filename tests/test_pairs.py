import io
import os
import pathlib
import pickle
import pickletools

import numpy as np
import pytest
from PIL import Image
from sklearn.model_selection import KFold

from jaxface.data.sources import pairs_bin, pairs_txt
from jaxface.eval import verification

# byte-identical images 0 and 4, 1 and 7: two genuine pairs, then two others
IMAGES = [
    b"\xff\xd8a",
    b"b\x00",
    b"c",
    b"d\xfe",
    b"\xff\xd8a",
    b"c",
    b"d\xfe",
    b"b\x00",
]
SAME = [True, True, False, False]


def write(path, content, *, protocol=4):
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def sides(found):
    ends = np.stack([found.left, found.right], axis=1)
    return [found.images.read(i)[0] for i in ends.flat]


ARRAYS = [np.frombuffer(i, np.uint8).copy() for i in IMAGES]
FLAGS = {
    "bools": SAME,
    "numpy bools": [np.bool_(s) for s in SAME],
    "array": np.array(SAME),
    "ints": [int(s) for s in SAME],
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("images", [IMAGES, ARRAYS], ids=["bytes", "arrays"])
def test_a_pack_round_trips(tmp_path, protocol, flags, images):
    path = write(tmp_path / "x.bin", (images, FLAGS[flags]), protocol=protocol)
    found = pairs_bin.pairs(path, folds=2)
    assert sides(found) == IMAGES
    assert found.same.tolist() == SAME
    assert found.fold.tolist() == [0, 0, 1, 1]
    assert len(found.images) == 4  # each distinct image once


def test_a_pack_of_python_2_round_trips(tmp_path):
    def text(b):  # SHORT_BINSTRING: what Python 2 wrote for its byte strings
        return b"U" + bytes([len(b)]) + b

    opcodes = (
        b"\x80\x02](" + b"".join(text(i) for i in IMAGES) + b"e](\x88\x88\x89\x89e"
    )
    path = tmp_path / "x.bin"
    path.write_bytes(opcodes + b"\x86.")
    assert sides(pairs_bin.pairs(path, folds=1)) == IMAGES


def test_people_are_joined_by_bytes_and_by_genuine_pairs(tmp_path):
    found = pairs_bin.pairs(write(tmp_path / "x.bin", (IMAGES, SAME)), folds=1)
    # a = b, c = d; a|c and d|b are two people each
    first, second = found.people[0, 0], found.people[1, 0]
    assert first != second
    wanted = [[first] * 2, [second] * 2, [first, second], [second, first]]
    assert found.people.tolist() == wanted


@pytest.mark.parametrize("n", [10, 13])
def test_folds_have_the_sizes_of_sklearn(tmp_path, n):
    images = [bytes([i]) for i in range(2 * n)]
    path = write(tmp_path / "x.bin", (images, [i % 2 == 0 for i in range(n)]))
    fold = pairs_bin.pairs(path, folds=4).fold
    for k, (_, test) in enumerate(KFold(4).split(fold)):
        np.testing.assert_array_equal(np.flatnonzero(fold == k), test)


class Evil:
    """Pickles into a call of `os.mkdir`."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("where", ["whole", "image", "flag"])
def test_a_malicious_pack_runs_nothing(tmp_path, protocol, where):
    evil = Evil(tmp_path / "canary")
    packs = {
        "whole": evil,
        "image": ([evil, *IMAGES[1:]], SAME),
        "flag": (IMAGES, [evil, *SAME[1:]]),
    }
    path = write(tmp_path / "x.bin", packs[where], protocol=protocol)
    with pytest.raises(ValueError, match=r"x.bin: not a pack .* byte \d+: .*mkdir"):
        pairs_bin.pairs(path)
    assert not evil.path.exists()
    with open(path, "rb") as file:  # the canary is alive: pickle does run it
        pickle.load(file)
    assert evil.path.is_dir()


HOSTILE = {
    "length past the end": (b"\x8e" + b"\xff" * 7 + b"\x7f.", "only 1 remain"),
    "frame alone": (b"\x95" + b"\xff" * 8 + b".", "not enough values"),
    "stack underflow": (b"\x86.", "pop from empty list"),
    "mark underflow": (b"e.", "pop from empty list"),
    "nothing memorised": (b"h\x07.", "nothing is stored as 7"),
    "deep nesting": (b")" + b"\x85" * 100_000 + b".", "not enough values"),
    "no list": (b")K\x01a.", "no list"),
    "instance": (b"(i__builtin__\nlist\n.", "opcode INST has no place"),
    "persistent id": (b"Pabc\n.", "opcode PERSID has no place"),
    "extension registry": (b"\x82\x01.", "opcode EXT1 has no place"),
    "state of a list": (b"]K\x01b.", "wanted plain values"),
    "self-containing list": (b"]q\x00h\x00a.", "not enough values"),
    # written out in a message, lists within lists could fill the memory
    "name made of lists": (b"]]\x93.", "expected str instance, list found"),
    "one text encoded often": (
        b"c_codecs\nencode\nq\x00X\xe8\x03\x00\x00" + b"a" * 1000
        + b"q\x01X\x06\x00\x00\x00latin1q\x02("
        + b"h\x00h\x01h\x02\x86R" * 1000 + b"l.",
        "more bytes encoded than the file holds",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("opcodes", "says"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_opcodes_are_refused(tmp_path, opcodes, says):
    path = tmp_path / "x.bin"
    path.write_bytes(b"\x80\x04" + opcodes)
    with pytest.raises(ValueError, match=rf"x\.bin: not a pack .*{says}"):
        pairs_bin.pairs(path)


def test_more_opcodes_than_a_pack_needs_are_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "x.bin", (IMAGES, SAME))
    count = len(list(pickletools.genops(path.read_bytes())))
    monkeypatch.setattr(pairs_bin, "MAX_OPCODES", count)
    pairs_bin.pairs(path, folds=1)
    monkeypatch.setattr(pairs_bin, "MAX_OPCODES", count - 1)
    with pytest.raises(ValueError, match="more than"):
        pairs_bin.pairs(path, folds=1)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pack_cut_anywhere_is_refused(tmp_path, protocol):
    path = write(tmp_path / "x.bin", (IMAGES, SAME), protocol=protocol)
    content = path.read_bytes()
    for end in range(len(content)):
        path.write_bytes(content[:end])
        with pytest.raises(ValueError, match=r"x\.bin: "):
            pairs_bin.pairs(path, folds=1)


def test_a_damaged_pack_opens_or_says_why(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "x.bin"
    refused = 0
    for k in range(500):
        content = bytearray(pickle.dumps((IMAGES, FLAGS["array"]), protocol=k % 6))
        for at in rng.integers(len(content), size=2):
            content[at] = rng.integers(256)
        path.write_bytes(content)
        try:
            pairs_bin.pairs(path, folds=1)
        except ValueError:  # and no other exception
            refused += 1
    assert refused > 200


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ((IMAGES[:7], SAME), "7 images for 4 pairs"),
        ((IMAGES, SAME[:3]), "8 images for 3 pairs"),
        (([], []), "0 images for 0 pairs"),
        ((IMAGES, [*SAME[:3], 2]), "not of True and False"),
        (([*IMAGES[:7], "text"], SAME), "not of encoded images"),
        (IMAGES, "not a pack of pairs"),
        (None, "not a pack of pairs"),
        ((IMAGES[:2], SAME[:1]), "1 pairs cannot be split into 2 folds"),
    ],
)
def test_a_pickle_that_is_no_pack_is_refused(tmp_path, content, says):
    with pytest.raises(ValueError, match=says):
        pairs_bin.pairs(write(tmp_path / "x.bin", content), folds=2)


LIST = "2\t1\nann 1 2\nann 1 bob 1\ncy 1 3\ncy 3 dee 1\n"


def test_names_tell_the_people_of_a_pack(tmp_path):
    (tmp_path / "pairs.txt").write_text(LIST)
    path = write(tmp_path / "x.bin", (IMAGES, [True, False, True, False]))
    found = pairs_bin.pairs(path, folds=2, names=tmp_path / "pairs.txt")
    assert found.people.tolist() == [[0, 0], [0, 1], [2, 2], [2, 3]]
    shorter = write(tmp_path / "y.bin", (IMAGES[:4], [True, False]))
    first = pairs_bin.pairs(shorter, folds=1, names=tmp_path / "pairs.txt")
    assert first.people.tolist() == [[0, 0], [0, 1]]


def test_names_of_another_pack_are_refused(tmp_path):
    (tmp_path / "pairs.txt").write_text(LIST)
    path = write(tmp_path / "x.bin", (IMAGES, SAME))
    with pytest.raises(ValueError, match="4 pairs for the pack's 4, 2 of another kind"):
        pairs_bin.pairs(path, folds=2, names=tmp_path / "pairs.txt")
    path = write(tmp_path / "x.bin", (IMAGES, [True, False, True, False]))
    with pytest.raises(ValueError, match="puts these 4 pairs into 2 folds"):
        pairs_bin.pairs(path, folds=4, names=tmp_path / "pairs.txt")


def lfw(root):
    """Write the images of LIST, each of its own content, and LIST itself."""
    for name in ("ann", "bob", "cy", "dee"):
        (root / name).mkdir()
        for i in (1, 2, 3):
            (root / name / f"{name}_000{i}.jpg").write_bytes(f"{name}{i}".encode())
    (root / "pairs.txt").write_text(LIST)
    return root / "pairs.txt"


def test_a_list_finds_its_images(tmp_path):
    found = pairs_txt.pairs(lfw(tmp_path), root=tmp_path)
    assert sides(found) == [b"ann1", b"ann2", b"ann1", b"bob1", b"cy1", b"cy3", b"cy3",
                            b"dee1"]  # fmt: skip
    assert found.same.tolist() == [True, False, True, False]
    assert found.fold.tolist() == [0, 0, 1, 1]
    labels = [[found.images.read(i)[1] for i in (a, b)]
              for a, b in zip(found.left, found.right, strict=True)]  # fmt: skip
    assert found.people.tolist() == labels
    assert len(found.images) == 6


def test_missing_images_are_named(tmp_path):
    path = lfw(tmp_path)
    (tmp_path / "bob" / "bob_0001.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 6 images .*bob_0001.jpg"):
        pairs_txt.pairs(path, root=tmp_path)
    with pytest.raises(FileNotFoundError, match="6 of 6"):
        pairs_txt.pairs(path, root=tmp_path, extension=".png")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", ":1: wanted `FOLDS PAIRS`"),
        ("ten 300\n", ":1: wanted `FOLDS PAIRS`"),
        ("1 1\nann 1 2\nann 1 bob\n", r":3: wanted `name i j`"),
        ("1 1\nann 1 2\n\n", r":3: wanted `name i j`"),
        ("1 1\nann 1 bob 1\nann 1 2\n", ":2: wanted the same person"),
        ("1 1\nann 1 2\nann 1 ann 2\n", ":3: wanted different people"),
        ("2 1\nann 1 2\nann 1 bob 2\n", "2 pairs; the first line promises 2 folds"),
    ],
)
def test_malformed_lists_name_the_line(tmp_path, text, says):
    (tmp_path / "pairs.txt").write_text(text)
    with pytest.raises(ValueError, match=says):
        pairs_txt.parse(tmp_path / "pairs.txt")


def raw_pixels(source):
    """Grey 28x28 pixels minus their mean, summed with their mirror image."""
    rows = []
    for i in range(len(source)):
        image = Image.open(io.BytesIO(source.read(i)[0])).convert("L").resize((28, 28))
        grey = np.asarray(image, np.float32)
        rows.append(np.ravel(grey + grey[:, ::-1]))
    return np.stack(rows) - np.mean(rows, axis=1, keepdims=True)


@pytest.mark.real_data
def test_the_real_pack_and_its_raw_pixel_baseline(real_data: pathlib.Path):
    found = pairs_bin.pairs(
        real_data / "lfw_dev_folds1-4.bin", folds=4, names=real_data / "pairs.txt"
    )
    assert np.bincount(found.fold).tolist() == [600] * 4
    assert found.same.sum() == 1200
    np.testing.assert_array_equal(found.people[:, 0] == found.people[:, 1], found.same)
    where = [set(found.people[found.fold == k].flat) for k in range(4)]
    assert len(set().union(*where)) == sum(len(w) for w in where)
    scalars = verification.Evaluator(found).run(raw_pixels).scalars
    assert 0.58 <= scalars["accuracy"] <= 0.68
