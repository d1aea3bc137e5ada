"""Verification lists of the field: npz packs, CALFW and its like, CFP, RFW, IJB."""

import io
import zipfile

import numpy as np
import pytest

from jaxface import assembly
from jaxface.data.sources import (
    pairs_cfp,
    pairs_lines,
    pairs_npz,
    pairs_txt,
    templates,
)

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 6, 5, 3), np.uint8)
PIXELS[4] = PIXELS[0]
SAME = np.array([True, True, False, False])


def sides(found):
    ends = np.stack([found.left, found.right], axis=1)
    return [found.images.read(i)[0] for i in ends.flat]


def files(root, *names):
    """Write image files whose content is their name."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


LAYOUTS = {
    "last": PIXELS,
    "first": PIXELS.transpose(0, 3, 1, 2),
    "pairs": PIXELS.reshape(4, 2, 6, 5, 3),
    "fortran": np.asfortranarray(PIXELS),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_pack_of_pixels_round_trips(tmp_path, layout, save):
    path = tmp_path / "x.npz"
    save(path, images=LAYOUTS[layout], issame=SAME.astype(np.int64))
    found = pairs_npz.pairs(path, folds=2, color="bgr")
    np.testing.assert_array_equal(sides(found), PIXELS)
    assert found.same.tolist() == SAME.tolist()
    assert (len(found.images), found.images.color) == (7, "bgr")
    assert found.fold.tolist() == [0, 0, 1, 1]
    genuine = found.people[:, 0] == found.people[:, 1]
    assert genuine.tolist() == [True, True, False, False]


def npz(path, **members):
    """Write a zip of members as they are."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in members.items():
            out.writestr(f"{name}.npy", data)
    return path


def npy(array, **changes):
    """Return an array in NumPy's format, its header changed."""
    out = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(out, header | changes)
    return out.getvalue() + array.tobytes()


FLAGS = npy(SAME)
HOSTILE = {
    "pickle": (npy(np.array([None])), FLAGS, "Python objects, which are not unpick"),
    "huge": (npy(PIXELS, shape=(2**40, 6, 5, 3)), FLAGS, "says uint8 .*720 bytes foll"),
    "overflow": (npy(PIXELS, shape=(2**62, 4)), FLAGS, "says uint8 .*720 bytes foll"),
    "negative": (npy(PIXELS, shape=(-8, -90)), FLAGS, "says uint8"),
    "bomb": (bytes(1 << 26), FLAGS, "'images' at byte 0 swells from"),
    "code": (npy(PIXELS)[:20] + b"__import__('os')", FLAGS, "x.npz: "),
    "floats": (npy(PIXELS / 255.0), FLAGS, r"float64 \[8, 6, 5, 3\]; wanted uint8"),
    "grey": (npy(PIXELS[..., 0]), FLAGS, r"uint8 \[8, 6, 5\]; wanted uint8"),
    "odd": (npy(PIXELS[:7]), FLAGS, "7 images for 4 pairs"),
    "flags": (npy(PIXELS), npy(np.arange(4)), "int64 .*; wanted .* True and False"),
    "magic": (b"abc", FLAGS, "x.npz: "),
}


@pytest.mark.parametrize(("images", "issame", "says"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_packs_of_pixels_are_refused(tmp_path, images, issame, says):
    path = npz(tmp_path / "x.npz", images=images, issame=issame)
    with pytest.raises(ValueError, match=says):
        pairs_npz.pairs(path, folds=2)


def test_a_damaged_pack_of_pixels_opens_or_says_why(tmp_path):
    path, rng, refused = tmp_path / "x.npz", np.random.default_rng(0), 0
    np.savez(path, images=PIXELS, issame=SAME)
    data = path.read_bytes()
    for k in range(400):
        changed = bytearray(data)
        for at in rng.integers(len(data), size=1 + k % 3):
            changed[at] = int(rng.integers(256))
        path.write_bytes(changed if k % 4 else data[: int(rng.integers(len(data)))])
        try:
            pairs_npz.pairs(path, folds=2)
        except ValueError as error:  # and no other
            refused += str(path) in str(error)
    assert refused > 200


FORMS = {
    "two": "Ann_1.jpg 2\nAnn_2.jpg 2\nAnn_1.jpg 0\nBob_1.jpg 0\n",
    "last": "Ann_1.jpg Ann_2.jpg 1\nAnn_1.jpg Bob_1.jpg -1\n",
    "first": "1 Ann_1.jpg Ann_2.jpg\n0 Ann_1.jpg Bob_1.jpg\n",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("person", [{}, {"person": ""}, {"person": "(...)"}])
def test_lists_of_files_are_read_in_every_form(tmp_path, form, person):
    files(tmp_path, "Ann_1.jpg", "Ann_2.jpg", "Bob_1.jpg")
    (tmp_path / "list.txt").write_text(FORMS[form])
    found = pairs_lines.pairs(tmp_path / "list.txt", root=tmp_path, folds=1, **person)
    assert sides(found) == [b"Ann_1.jpg", b"Ann_2.jpg", b"Ann_1.jpg", b"Bob_1.jpg"]
    assert found.same.tolist() == [True, False]
    genuine = found.people[:, 0] == found.people[:, 1]
    assert genuine.tolist() == [True, False]
    assert found.images.num_classes == 2


def test_folds_are_dealt_by_kind_in_either_order():
    mixed = np.array([1, 1, 0, 0, 1, 1, 0, 0], bool)
    assert pairs_txt.dealt(mixed, 2, "x").tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    sorted_ = np.array([1, 1, 1, 1, 0, 0, 0, 0], bool)
    assert pairs_txt.dealt(sorted_, 2, "x").tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    with pytest.raises(ValueError, match="x: 4 genuine pairs cannot be dealt to 3"):
        pairs_txt.dealt(mixed, 3, "x")


LINES = {
    "empty": ("", "got 0 lines, the first an empty file"),
    "three": (FORMS["two"] + "Bob_1.jpg 0\n", "got 5 lines"),
    "form": (FORMS["last"] + "Ann_1.jpg 1\n", r"x\.txt:3: unlike the first line"),
    "unlike": ("A_1.jpg 1\nA_2.jpg 0\n", "x.txt:2: label 0, and 1 on the line before"),
    "people": (
        "A_1.jpg B_2.jpg 1\nA_1.jpg B_1.jpg 0",
        "pair 1, A_1.jpg and B_2.jpg, .* one person",
    ),
    "nobody": ("A.jpg B.jpg 1\nA.jpg C.jpg 0", r"no person in 'A.jpg' by"),
    "out": ("../A_1.jpg A_2.jpg 1\nA_1.jpg /etc/B_1.jpg 0\n", "is outside"),
}


@pytest.mark.parametrize(("text", "says"), LINES.values(), ids=LINES)
def test_malformed_lists_of_files_name_the_line(tmp_path, text, says):
    (tmp_path / "x.txt").write_text(text)
    with pytest.raises(ValueError, match=says):
        pairs_lines.pairs(tmp_path / "x.txt", root=tmp_path, folds=1)


def test_rfw_has_lfws_lines_without_the_first(tmp_path):
    rows = ["m.1\t1\t2", "m.2\t1\t2", "m.1\t1\tm.2\t1", "m.2\t2\tm.1\t2"]
    (tmp_path / "African_pairs.txt").write_text("\n".join(rows))
    names = [f"m.{k}/m.{k}_000{i}.jpg" for k in (1, 2) for i in (1, 2)]
    files(tmp_path, *names)
    found = pairs_txt.pairs(tmp_path / "African_pairs.txt", root=tmp_path, folds=2)
    assert found.same.tolist() == [True, True, False, False]
    assert found.fold.tolist() == [0, 1, 0, 1]
    wanted = [names[i].encode() for i in (0, 1, 2, 3, 0, 2, 3, 1)]
    assert sides(found) == wanted
    with pytest.raises(ValueError, match="a list without it needs folds=10"):
        pairs_txt.pairs(tmp_path / "African_pairs.txt", root=tmp_path)


def cfp(root):
    """Write two folds of one genuine and one impostor pair, frontal and profile."""
    protocol = root / "Protocol"
    for kind, pose in (("F", "frontal"), ("P", "profile")):
        names = [f"Data/Images/00{p}/{pose}/0{i}.jpg" for p in (1, 2) for i in (1, 2)]
        files(root, *names)
        rows = [f"{k} ../{name}\n" for k, name in enumerate(names, start=1)]
        (protocol).mkdir(exist_ok=True)
        (protocol / f"Pair_list_{kind}.txt").write_text("".join(rows))
    for kind in ("FF", "FP"):
        for fold, same, diff in (("01", "1,2", "1,3"), ("02", "3,4", "4,2")):
            folder = protocol / "Split" / kind / fold
            folder.mkdir(parents=True)
            (folder / "same.txt").write_text(f"{same}\n")
            (folder / "diff.txt").write_text(f"{diff}\n")
    return protocol


@pytest.mark.parametrize(("kind", "pose"), [("FF", "frontal"), ("FP", "profile")])
def test_cfp_compares_frontal_faces_with_either_kind(tmp_path, kind, pose):
    cfp(tmp_path)
    found = pairs_cfp.pairs(tmp_path, kind=kind)
    ends = [(1, 1, 1, 2), (1, 1, 2, 1), (2, 1, 2, 2), (2, 2, 1, 2)]
    wanted = [
        f"Data/Images/00{who}/{how}/0{i}.jpg".encode()
        for p, i, q, j in ends
        for who, how, i in ((p, "frontal", i), (q, pose, j))
    ]
    assert sides(found) == wanted
    assert found.same.tolist() == [True, False, True, False]
    assert found.fold.tolist() == [0, 0, 1, 1]
    assert found.people.tolist() == [[0, 0], [0, 1], [1, 1], [1, 0]]


def test_malformed_cfp_lists_name_the_line(tmp_path):
    protocol = cfp(tmp_path)
    with pytest.raises(ValueError, match="kind 'PP'; wanted 'FP' or 'FF'"):
        pairs_cfp.pairs(tmp_path, kind="PP")
    with pytest.raises(FileNotFoundError, match=r"6 of 6 images are missing"):
        pairs_cfp.pairs(tmp_path, images=tmp_path / "aligned")
    for text, says in (("1,9", "same.txt:1: wanted two numbers"),
                       ("1,3", "are of two people"), ("", "no pairs")):  # fmt: skip
        (protocol / "Split" / "FP" / "02" / "same.txt").write_text(text)
        with pytest.raises(ValueError, match=says):
            pairs_cfp.pairs(tmp_path)
    (protocol / "Pair_list_P.txt").write_text("1 a.jpg\n1 b.jpg\n")
    with pytest.raises(ValueError, match=r"Pair_list_P.txt:2: wanted `NUMBER FILE`"):
        pairs_cfp.pairs(tmp_path)


def test_a_list_is_one_line_of_the_language(tmp_path):
    cfp(tmp_path)
    flow = assembly.flow(f"pairs_cfp(path={str(tmp_path)!r}, kind='FF')|verification")
    rng = np.random.default_rng(0)
    found = flow.run(lambda source: rng.normal(size=(len(source), 4)))
    assert 0 <= found.scalars["accuracy"] <= 1


MEDIA = "a.jpg 7 70\nb.jpg 7 71\nc.jpg 9 90\n"
POINTS = [[k * 10 + j for j in range(10)] + [k / 4] for k in range(3)]


def ijb(root, *, media=MEDIA, pairs="7 9 0\n9 9 1\n", order=(2, 0, 1), extra=""):
    meta = root / "IJBC" / "meta"
    meta.mkdir(parents=True, exist_ok=True)
    (meta / "ijbc_face_tid_mid.txt").write_text(media)
    (meta / "ijbc_template_pair_label.txt").write_text(pairs)
    rows = [" ".join([f"{'abc'[k]}.jpg", *map(str, POINTS[k])]) for k in order]
    (meta / "ijbc_name_5pts_score.txt").write_text("\n".join(rows) + extra)
    return root / "IJBC"


def test_the_lists_of_ijb_are_joined_by_name(tmp_path):
    found = templates.templates(ijb(tmp_path))
    assert found.names == ("a.jpg", "b.jpg", "c.jpg")
    assert found.root == str(tmp_path / "IJBC" / "loose_crop")
    assert found.template.tolist() == [7, 7, 9]
    assert found.media.tolist() == [70, 71, 90]
    assert found.landmarks.shape == (3, 5, 2)
    np.testing.assert_array_equal(found.landmarks[1, 2], [14, 15])
    np.testing.assert_array_equal(found.score, np.float32([0, 0.25, 0.5]))
    assert (found.left.tolist(), found.right.tolist()) == ([7, 9], [9, 9])
    assert found.same.tolist() == [False, True]


@pytest.mark.parametrize("block", [11, 64, 1 << 23])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_pairs_are_read_alike_whatever_the_block(tmp_path, monkeypatch, block, end):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 10 ** rng.integers(1, 10, (500, 3)))
    rows[:, 2] %= 2
    path = tmp_path / "x.txt"
    path.write_text(end.join(" ".join(map(str, r)) for r in rows), newline="")
    monkeypatch.setattr(templates, "_BLOCK", block)
    if block == 11:  # shorter than a line
        with pytest.raises(ValueError, match=r"x.txt:\d+: a line of over 11 bytes"):
            templates.read_pairs(path)
        return
    left, right, same = templates.read_pairs(path)
    np.testing.assert_array_equal(np.stack([left, right, same], 1), rows)


WRONG = {
    "cells": ({"pairs": "7 9 0\n7 9\n"}, r"label.txt:2: wanted .*; got '7 9'"),
    "more": ({"pairs": "7 9 0 1\n9 9\n"}, r"label.txt:1: wanted"),
    "blank": ({"pairs": "7 9 0\n\n9 9 1\n"}, r"label.txt:2: wanted"),
    "sign": ({"pairs": "7 9 0\n7 -9 1\n"}, r"label.txt:2: wanted"),
    "digits": ({"pairs": "7 9 0\n7 9999999999 1\n"}, r"label.txt:2: wanted"),
    "label": ({"pairs": "7 9 0\n7 9 2\n"}, r"label.txt:2: label 2; wanted 0 or 1"),
    "template": ({"pairs": "7 9 0\n7 8 1\n"}, r"label.txt:2: template 8 has no image"),
    "none": ({"pairs": ""}, "no pairs"),
    "media": ({"media": "a.jpg 7\n"}, r"mid.txt:1: wanted `file template medium`"),
    "image": ({"order": (0, 1)}, r"without 1 of the media list's \['c.jpg'\]"),
    "twice": ({"order": (0, 1, 2, 2)}, "4 lines of 3 images"),
    "points": ({"extra": "\nd.jpg 1 2 3"}, r"score.txt:4: wanted `file x1"),
    "nan": ({"extra": "\nd.jpg" + " nan" * 11}, r"score.txt:4: wanted `file x1"),
}


@pytest.mark.parametrize(("lists", "says"), WRONG.values(), ids=WRONG)
def test_malformed_lists_of_ijb_name_the_line(tmp_path, lists, says):
    with pytest.raises(ValueError, match=says):
        templates.templates(ijb(tmp_path, **lists))
