"""Packs: read back by our own reader, by pickle as insightface does, by hand."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from jaxface.data import decode, packs
from jaxface.data.sources import pairs_bin, pairs_sampled


def pixels(i, side=6):
    return np.full((side, side, 3), (i, 99, 200), np.uint8)


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


class Faces:
    """Twelve people with three pictures each, no two alike."""

    num_classes, labels = 12, np.repeat(np.arange(12, dtype=np.int32), 3)

    def __init__(self, *, color="rgb", make=lambda i: png(pixels(i))):
        self.color, self.make = color, make

    def __len__(self):
        return len(self.labels)

    def read(self, i):
        return self.make(i), int(self.labels[i])

    def name(self, i):
        return f"face {i}"


def sampled(source, count=24, folds=4):
    return pairs_sampled.pairs(source, count=count, folds=folds, seed=3)


def test_a_pack_reads_back_as_the_pairs_it_was_made_of(tmp_path):
    pairs = sampled(Faces())
    assert packs.write(pairs, tmp_path / "x.bin") == (6, 6)
    found = pairs_bin.pairs(tmp_path / "x.bin", folds=4)
    assert found.same.tolist() == pairs.same.tolist()
    assert found.fold.tolist() == pairs.fold.tolist()
    for side in ("left", "right"):
        ours = [pairs.images.read(i)[0] for i in getattr(pairs, side)]
        theirs = [found.images.read(i)[0] for i in getattr(found, side)]
        assert ours == theirs


def test_insightface_would_read_it(tmp_path):
    # as recognition/arcface_torch/eval/verification.py loads a pack
    pairs = sampled(Faces())
    packs.write(pairs, tmp_path / "x.bin")
    with open(tmp_path / "x.bin", "rb") as file:
        images, same = pickle.load(file, encoding="bytes")
    assert same == pairs.same.tolist()
    ends = np.stack([pairs.left, pairs.right], 1).ravel()
    assert images == [pairs.images.read(i)[0] for i in ends]


def test_no_person_is_in_two_folds(tmp_path):
    packs.write(sampled(Faces()), tmp_path / "x.bin")
    found = pairs_bin.pairs(tmp_path / "x.bin", folds=4)
    people = [set() for _ in range(4)]
    for fold, left, right in zip(found.fold, found.left, found.right, strict=True):
        for i in (left, right):
            face = decode.pixels(found.images.read(i)[0])[0, 0, 0]
            people[fold].add(int(face) // 3)
    assert sum(map(len, people)) == len(set.union(*people))


@pytest.mark.parametrize(("color", "step"), [("rgb", 1), ("bgr", -1)])
@pytest.mark.parametrize("make", [pixels, lambda i: png(pixels(i))])
def test_decoded_pixels_are_rgb(tmp_path, color, step, make):
    packs.write(sampled(Faces(color=color, make=make)), tmp_path / "x.bin")
    images = pairs_bin.pairs(tmp_path / "x.bin", folds=4).images
    for i in range(len(images)):
        face = decode.pixels(images.read(i)[0])[0, 0, ::step]
        assert face[1:].tolist() == [99, 200]


def test_what_cannot_be_a_pack_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="make count a multiple of 8"):
        packs.write(sampled(Faces(), count=26), tmp_path / "x.bin")
    sides = Faces(make=lambda i: pixels(i, side=6 + (i == 9)))
    with pytest.raises(ValueError, match="a pack has one size"):
        packs.write(sampled(sides, count=64), tmp_path / "x.bin")
    torn = Faces(make=lambda i: png(pixels(i))[: 40 if i == 9 else None])
    with pytest.raises(ValueError, match="face 9 cannot be decoded"):
        packs.write(sampled(torn, count=64), tmp_path / "x.bin")
    assert list(tmp_path.iterdir()) == []
