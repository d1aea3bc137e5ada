"""From any source to a prepared set: nothing lost, everything counted, resumable."""

import csv
import dataclasses
import functools
import json
import pathlib
import re

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from test_report import Tags

from jaxface import align, card, curate, detect, examine, prepare
from jaxface.data import decode, prepared
from jaxface.data.sources import array_record, folder

ROOT = pathlib.Path(__file__).parent.parent


def picture(seed, side=64):
    """A smooth reddish picture, unlike that of any other seed."""
    noise = np.random.default_rng(seed).uniform(0, 1, (side, side, 3))
    smooth = ndimage.gaussian_filter(noise, (4, 4, 0))
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    return np.uint8(255 * smooth * (0.9, 0.7, 0.6))


def people(root, **images):
    """Write a folder: a person for each name, a PNG for each seed."""
    for name, seeds in images.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for k, seed in enumerate(seeds):
            Image.fromarray(picture(seed)).save(root / name / f"{k}.png")
    return root


def write_tfds(source, out, **kept):
    return prepared.write(source, out.parent, name=out.name, **kept)


def write_plain(source, out, *, images, labels, classes, progress):
    """The quick form of these tests: a folder of people."""
    for i, label in zip(images.tolist(), labels.tolist(), strict=True):
        path = out / "plain" / classes[label] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.read(i)[0])


def prepare_set(source, out, *, write=write_plain, **given):
    policy = curate.Policy(**given.pop("policy", {}))
    return prepare.prepare(source, out, write=write, policy=policy, **given)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_image_is_kept_or_dropped_once_with_its_reason(tmp_path):
    root = people(tmp_path / "raw", ann=[1, 2, 3], bob=[4, 4, 5, 6], cy=[7, 1], di=[8])
    (root / "ann" / "3.png").write_bytes(b"\x89PNG no more")
    (root / "bob" / "4.png").write_bytes(b"")
    source = folder.Source(root, min_images=1)
    policy = {"drop_duplicates": True, "drop_conflicts": True}
    done = prepare_set(source, tmp_path / "set", policy=policy)
    dropped = [r["reason"] for r in rows(tmp_path / "set/dropped.csv")]
    named = {
        r["path"].removeprefix(f"{root}/") for r in rows(tmp_path / "set/dropped.csv")
    }
    assert named == {
        "ann/0.png", "ann/3.png", "bob/1.png", "bob/4.png", "cy/0.png", "cy/1.png",
        "di/0.png",
    }  # fmt: skip
    wanted = {curate.CONFLICT: 2, curate.DUPLICATE: 1, curate.FEW: 2, "unreadable": 2}
    assert {r: dropped.count(r) for r in dropped} == done.facts["dropped"] == wanted
    assert done.facts["images"] + len(dropped) == len(source)


def test_the_set_holds_what_was_kept_and_labels_are_contiguous(tmp_path):
    root = people(tmp_path / "raw", ann=[1], bob=[2, 3], cy=[4, 5, 6])
    source = folder.Source(root, min_images=1)
    back = functools.partial(array_record.Source, tmp_path / "set")
    done = prepare_set(source, tmp_path / "set", write=write_tfds, back=back)
    found = array_record.Source(tmp_path / "set")
    assert list(found.classes) == ["bob", "cy"]
    assert found.labels.tolist() == [0, 0, 1, 1, 1]
    assert [found.read(k)[0] for k in range(5)] == [
        source.read(i)[0] for i in range(1, 6)
    ]
    assert done.facts["verified"] is True
    assert not list((tmp_path / "set").glob("*incomplete*"))


def test_without_a_policy_duplicates_are_listed_and_kept(tmp_path):
    root = people(tmp_path / "raw", ann=[1, 2, 1], bob=[3, 4, 2])
    Image.fromarray(picture(4)).save(root / "bob" / "near.jpg", quality=90)
    done = prepare_set(folder.Source(root), tmp_path / "set")
    told = [
        (r["group"], r["kind"], r["fate"])
        for r in rows(tmp_path / "set/duplicates.csv")
    ]
    assert told == [
        ("0", "redundant", "kept"), ("0", "redundant", "kept"),
        ("1", "conflict", "kept"), ("1", "conflict", "kept"),
        ("2", "redundant", "kept"), ("2", "redundant", "kept"),
    ]  # fmt: skip
    assert done.facts["redundant_images"] == {"equal": 1, "nearly_equal": 1}
    assert done.facts["pictures_under_several_people"] == 1
    assert done.facts["dropped"] == {}


def test_no_two_kept_pictures_of_a_person_are_alike(tmp_path):
    root = people(tmp_path / "raw", ann=[1, 1, 2, 1], bob=[1, 3, 3, 1])
    policy = {"drop_duplicates": True}
    done = prepare_set(folder.Source(root), tmp_path / "set", policy=policy)
    names = [done.seen.images.name(i) for i in done.choice.images]
    ends = [name.removeprefix(f"{root}/") for name in names]
    assert ends == ["ann/0.png", "ann/2.png", "bob/0.png", "bob/1.png"]


@pytest.mark.parametrize("workers", [1, 2])
def test_rows_are_the_same_in_any_number_of_processes(tmp_path, workers, monkeypatch):
    monkeypatch.setattr(examine, "_PLAIN_CHUNK", 2)
    source = folder.Source(people(tmp_path / "raw", ann=[1, 2, 3], bob=[4, 5]))
    seen = examine.examine(source, tmp_path / "spool", workers=workers)
    for i in range(5):
        image = decode.pixels(source.read(i)[0])
        assert seen.digest[i].tobytes() == examine.digest(source.read(i)[0])
        assert seen.size[i].tolist() == [64, 64]
        np.testing.assert_allclose(
            seen.color[i], image[16:48, 16:48].mean((0, 1)), rtol=1e-5
        )
    assert seen.label.tolist() == [0, 0, 0, 1, 1]


class Watched:
    """A source that counts reads and breaks down at one."""

    def __init__(self, source, *, dies_at=None):
        self.source, self.dies_at, self.reads = source, dies_at, []
        self.color, self.num_classes = source.color, source.num_classes

    def __len__(self):
        return len(self.source)

    def read(self, i):
        if i == self.dies_at:
            raise KeyboardInterrupt
        self.reads.append(i)
        return self.source.read(i)

    def name(self, i):
        return self.source.name(i)


def test_what_was_looked_at_is_not_looked_at_again(tmp_path, monkeypatch):
    monkeypatch.setattr(examine, "_PLAIN_CHUNK", 2)
    source = folder.Source(people(tmp_path / "raw", ann=[1, 2, 3], bob=[4, 5]))
    with pytest.raises(KeyboardInterrupt):
        prepare_set(Watched(source, dies_at=3), tmp_path / "cut")
    again = Watched(source)
    prepare_set(again, tmp_path / "cut")
    assert again.reads[:3] == [2, 3, 4]  # the first two were whole
    assert sorted(again.reads[3:8]) == [0, 1, 2, 3, 4]  # and all are written
    prepare_set(Watched(source), tmp_path / "whole")
    cut, whole = ((tmp_path / n / "card.json").read_text() for n in ("cut", "whole"))
    assert cut == whole


def test_a_spool_of_another_source_is_refused(tmp_path):
    one = folder.Source(people(tmp_path / "one", ann=[1, 2]))
    other = folder.Source(people(tmp_path / "other", ann=[1, 2]))
    examine.examine(one, tmp_path / "spool")
    with pytest.raises(ValueError, match="left of another source"):
        examine.examine(other, tmp_path / "spool")
    (path,) = (tmp_path / "spool").glob("*.npz")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"npz is damaged .*remove it"):
        examine.examine(one, tmp_path / "spool")


def test_a_set_that_reads_back_otherwise_is_an_error(tmp_path):
    source = folder.Source(people(tmp_path / "raw", ann=[1, 2], bob=[3, 4]))
    other = folder.Source(people(tmp_path / "other", ann=[1, 2], bob=[3, 9]))
    with pytest.raises(ValueError, match=r"bob/1.png, written from .*other pixels"):
        prepare_set(source, tmp_path / "set", back=lambda: other)
    assert not (tmp_path / "set" / "card.html").exists()


def test_nothing_left_says_why(tmp_path):
    source = folder.Source(people(tmp_path / "raw", ann=[1, 2]))
    with pytest.raises(ValueError, match=r"none of 2 images is left: \{'too few"):
        prepare_set(source, tmp_path / "set", policy={"min_images": 3})


def test_swapped_channels_are_noticed():
    skin = np.random.default_rng(0).normal((170, 130, 110), 20, (200, 3))
    assert prepare.color_doubt(skin) == ""
    assert "red exceeds blue in 1% of 200" in prepare.color_doubt(skin[:, ::-1])
    assert prepare.color_doubt(np.full((5, 3), 90.0)) == ""  # grey pictures


class Seer:
    """Finds one face at a given place, if the picture is wide enough."""

    def faces(self, image):
        count = int(image.shape[1] >= 150)
        return detect.Faces(
            boxes=np.array([[20.0, 10, 132, 122]])[:count],
            landmarks=(align.template() + np.array([20, 10]))[None][:count],
            scores=np.ones(count),
        )


def test_photos_become_faces_and_those_without_are_listed(tmp_path):
    for name, sides in {"ann": (150, 160, 120), "bob": (150, 170)}.items():
        (tmp_path / "raw" / name).mkdir(parents=True)
        for k, side in enumerate(sides):
            image = Image.fromarray(picture(side + k, side))
            image.save(tmp_path / "raw" / name / f"{k}.png")
    source = folder.Source(tmp_path / "raw")
    cut = examine.Cut(Seer(), encoding="png")
    prepare_set(source, tmp_path / "set", cut=cut)
    found = folder.Source(tmp_path / "set" / "plain")
    kept = [0, 1, 3, 4]
    for k, i in enumerate(kept):
        photo = decode.pixels(source.read(i)[0])
        face = decode.pixels(found.read(k)[0])
        np.testing.assert_array_equal(face, photo[10:122, 20:132])
    (lost,) = rows(tmp_path / "set" / "dropped.csv")
    assert (lost["path"], lost["reason"]) == (source.name(2), "no face")


@pytest.mark.parametrize("sheet", [0, 5])
def test_the_card_is_whole_honest_and_needs_nothing_else(tmp_path, sheet):
    evil = "<script>alert(1)</script>"
    source = folder.Source(people(tmp_path / "raw", ann=[1, 2], bob=[3, 4, 5]))
    prepare_set(source, tmp_path / "set", sheet=sheet, about={"licence": evil})
    text = (tmp_path / "set" / "card.html").read_text()
    tags = Tags(text).seen
    links = [a[key] for _, a in tags for key in ("src", "href") if key in a]
    outside = [link for link in links if not link.startswith("#")]
    assert len(outside) == bool(sheet)
    assert all(link.startswith("data:image/") for link in outside)
    assert text.count("<svg ") == 1  # one size needs no histogram
    assert not re.search(r"https?://|@import|url\((?!#)|<script", text)
    assert ("faces of real people" in text) == bool(sheet)
    facts = json.loads((tmp_path / "set" / "card.json").read_text())
    assert facts["images_per_identity"]["histogram"] == {"2": 1, "3": 1}
    assert facts["licence"] == evil
    assert "&lt;script&gt;" in text


def test_the_sheet_shows_people_of_the_set_in_rows(tmp_path):
    source = folder.Source(people(tmp_path / "raw", ann=[1, 2], bob=[3, 4, 5]))
    drawn = card.sheet(source, np.arange(5), source.labels, people=9)
    assert drawn.shape == (2 * 84, 8 * 84, 3)
    big = Image.fromarray(picture(4)).resize((84, 84), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(drawn[84:, 84:168], np.asarray(big))
    assert (drawn[:84, 168:] == 255).all()
    assert card.sheet(source, np.arange(5), source.labels, people=0) is None


def test_content_hash_tells_sets_apart_and_forms_alike(tmp_path):
    source = folder.Source(people(tmp_path / "raw", ann=[1, 2], bob=[3, 4]))
    hashes = [
        prepare_set(source, tmp_path / name, policy=policy).facts["content_hash"]
        for name, policy in (("a", {}), ("b", {"near": 0}))
    ]
    assert hashes[0] == hashes[1]
    Image.fromarray(picture(9)).save(tmp_path / "raw" / "bob" / "1.png")
    other = prepare_set(folder.Source(tmp_path / "raw"), tmp_path / "c")
    assert other.facts["content_hash"] != hashes[0]


def test_people_are_joined_and_left_out_whoever_found_them(tmp_path):
    root = people(tmp_path / "raw", ann=[1, 2], bob=[3, 4], cy=[5], di=[6, 7], ed=[8])
    (root / "bob" / "1.png").write_bytes(b"no image")
    seen_by_meet = []

    @dataclasses.dataclass
    class Met:
        out: dict
        same: np.ndarray
        said: str = "by eye"

    def meet(images):
        seen_by_meet.extend(images.read(i)[1] for i in range(len(images)))
        # bob and ed are one person, of the test set; cy is ann
        return Met({1: "seen there"}, np.array([0, 1, 0, 3, 1]))

    source = folder.Source(root, min_images=1)
    policy = {"min_images": 2}
    done = prepare_set(source, tmp_path / "set", policy=policy, meet=meet)
    assert seen_by_meet == [0, 0, 1, 2, 3, 3, 4]  # also who has few images
    assert done.choice.labels.tolist() == [0, 0, 0, 1, 1]  # cy has company now
    found = {
        (r["identity"], r["reason"], r["detail"])
        for r in rows(tmp_path / "set/dropped.csv")
    }
    assert found >= {(who, curate.OVERLAP, "seen there") for who in ("bob", "ed")}
    assert {reason for _, reason, _ in found} == {curate.OVERLAP, "unreadable"}
    assert done.facts["people"] == {"classes_joined": 2, "compared": "by eye"}
    assert done.facts["dropped"] == {curate.OVERLAP: 2, "unreadable": 1}


def test_a_picture_of_two_sets_joins_a_person_before_it_is_a_conflict(tmp_path):
    root = people(tmp_path / "raw", ann=[1], anna=[1], bob=[2])

    @dataclasses.dataclass
    class Met:
        same: np.ndarray
        out: dict = dataclasses.field(default_factory=dict)
        said: str = ""

    def meet(images):
        assert [images.read(i)[1] for i in range(len(images))] == [0, 1, 2]
        return Met(np.array([0, 0, 2]))

    source = folder.Source(root, min_images=1)
    policy = {"min_images": 1, "drop_duplicates": True, "drop_conflicts": True}
    done = prepare_set(source, tmp_path / "set", policy=policy, meet=meet)
    assert done.facts["dropped"] == {curate.DUPLICATE: 1}
    assert done.choice.labels.tolist() == [0, 1]
