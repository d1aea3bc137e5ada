"""Searches, groups and chosen pairs, from lists and folders that the test writes."""

import dataclasses
import io

import album
import numpy as np
import pytest
import tiny
from absl import logging
from PIL import Image

from jaxface import align, assembly, config, evaluation
from jaxface.data import attributes, host, ops
from jaxface.data.sources import (
    by_attribute,
    gallery,
    grouped,
    ijb,
    ijb_search,
    pairs_all,
    pairs_where,
    rfw,
    tinyface,
)


def png(seed, *, size=40):
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue(), pixels


def put(root, *names):
    for k, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(k, size=8)[0])


@pytest.mark.parametrize("enrol", [1, 2])
def test_a_gallery_knows_no_stranger_and_no_probe(enrol):
    faces = album.album(people=9, each=4)
    found = gallery.search(faces, enrol=enrol, strangers=0.3, trials=3)
    t, people = found.templates, []
    assert len(found.trials) == 3
    for enrolled, probes in found.trials:
        known = t.person[enrolled]
        assert sorted(set(known)) == sorted(known)
        assert len(known) == 6
        used = t.image[np.isin(t.template, enrolled)]
        assert len(used) == 6 * enrol
        assert not set(used) & set(t.image[np.isin(t.template, probes)])
        assert len(used) + len(probes) == 36
        people.append(tuple(known))
    np.testing.assert_array_equal(faces.labels[t.image], t.person[t.template])
    assert len(set(people)) > 1
    again = gallery.search(faces, enrol=enrol, strangers=0.3, trials=3)
    np.testing.assert_array_equal(again.trials[2][0], found.trials[2][0])


def test_who_has_too_few_images_is_a_stranger():
    faces = album.Album(np.arange(7), np.array([0, 0, 0, 1, 2, 2, 3]))
    ((enrolled, probes),) = gallery.search(faces, enrol=2).trials
    assert len(enrolled) == 1
    assert len(probes) == 5
    with pytest.raises(ValueError, match="0 of 4 people have more than enrol=3"):
        gallery.search(faces, enrol=3)
    with pytest.raises(ValueError, match=r"a share in \[0, 1\)"):
        gallery.search(faces, strangers=1.0)


def test_distractors_are_enrolled_and_nobody(tmp_path):
    put(tmp_path, *(f"{who}/{i}.png" for who in "xyz" for i in range(2)))
    line = f"folder(path={str(tmp_path)!r})"
    faces = album.album(people=3, each=2)
    found = gallery.search(faces, distractors=line)
    ((enrolled, probes),) = found.trials
    t = found.templates
    nobody = ~np.isin(t.person[enrolled], t.person[probes])
    assert (len(enrolled), nobody.sum(), len(probes)) == (9, 6, 3)
    assert len(set(t.person[enrolled])) == 9
    images = found.templates.images
    assert images.name(6) == f"distractors:{tmp_path / 'x' / '0.png'}"
    assert images.read(11)[1] == 3 + 2
    assert (len(images), images.num_classes) == (12, 6)
    blue = dataclasses.replace(faces, color="bgr")
    with pytest.raises(ValueError, match="colours"):
        gallery.search(blue, distractors=line)


def test_all_pairs_are_there_once():
    found = pairs_all.pairs(album.album(people=4, each=3))
    ends = {tuple(sorted(p)) for p in zip(found.left, found.right, strict=True)}
    assert len(found) == len(ends) == 12 * 11 // 2
    assert found.same.sum() == 4 * 3
    np.testing.assert_array_equal(found.people[:, 0] == found.people[:, 1], found.same)
    dealt = pairs_all.pairs(album.album(people=4, each=3), folds=2)
    assert len(dealt) == 2 * 15
    of = [set(dealt.people[dealt.fold == k].ravel()) for k in range(2)]
    assert not of[0] & of[1]
    with pytest.raises(ValueError, match="folds=3 of 4 people"):
        pairs_all.pairs(album.album(people=4), folds=3)


def test_too_many_pairs_are_refused(monkeypatch):
    monkeypatch.setattr(pairs_all, "_MOST", 100)
    with pytest.raises(ValueError, match="120 pairs; wanted at most 100"):
        pairs_all.pairs(album.album(people=4, each=4))


def test_tinyface_tells_people_by_file_names(tmp_path):
    names = ["Gallery_Match/12_1.jpg", "Gallery_Match/7_3.jpg", "Probe/7_1.jpg",
             "Gallery_Distractor/b.jpg", "Gallery_Distractor/a.jpg"]  # fmt: skip
    put(tmp_path, *(f"Testing_Set/{name}" for name in names))
    found = tinyface.search(tmp_path)
    ((enrolled, probes),) = found.trials
    person, images = found.templates.person, found.templates.images
    assert [images.name(i).rsplit("/", 1)[1] for i in enrolled] == [
        "12_1.jpg", "7_3.jpg", "a.jpg", "b.jpg"
    ]  # fmt: skip
    assert (person[enrolled] == person[probes]).tolist() == [False, True, False, False]
    assert len(set(person)) == 4
    put(tmp_path, "Testing_Set/Probe/x.jpg")
    with pytest.raises(ValueError, match=r"x.jpg: wanted a name such as 12_3.jpg"):
        tinyface.search(tmp_path)
    with pytest.raises(FileNotFoundError, match="no images in"):
        tinyface.search(tmp_path / "gone")


def test_groups_are_lists_with_people_of_their_own():
    a, b = album.pairs(), album.pairs(folds=3, seed=1)
    found = grouped.groups({"a": a, "b": b})
    pairs = found.pairs
    assert (found.names, len(pairs)) == (("a", "b"), 360)
    np.testing.assert_array_equal(found.group, np.repeat([0, 1], 180))
    np.testing.assert_array_equal(pairs.left[180:], b.left + 120)
    np.testing.assert_array_equal(pairs.people[180:], b.people + 30)
    np.testing.assert_array_equal(pairs.fold, np.append(a.fold, b.fold))
    assert pairs.images.read(120)[0] == b.images.read(0)[0]
    with pytest.raises(ValueError, match=r"grouped got \{\}"):
        grouped.groups({})


def test_rfw_is_four_lists(tmp_path):
    rows = ["m.1\t1\t2", "m.1\t1\tm.2\t1"]
    for name in rfw.NAMES:
        put(tmp_path / "data" / name, *(f"m.{k}/m.{k}_000{i}.jpg" for k in (1, 2)
                                        for i in (1, 2)))  # fmt: skip
        (tmp_path / "txts" / name).mkdir(parents=True)
        (tmp_path / "txts" / name / f"{name}_pairs.txt").write_text("\n".join(rows))
    found = rfw.groups(tmp_path, folds=1)
    assert found.names == rfw.NAMES
    assert found.pairs.same.tolist() == [True, False] * 4
    assert len(np.unique(found.pairs.people)) == 8
    assert "Asian" in found.pairs.images.name(int(found.pairs.left[2]))


def listed(tmp_path, rows):
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "list.csv"


def test_values_come_from_the_longest_end_then_from_the_folder(tmp_path):
    faces = album.album(people=3, each=2)
    rows = ["person0,f", "person1,m", "person1/3.jpg,f", "4.jpg,x", "5.jpg,y"]
    told = attributes.read(listed(tmp_path, rows))
    assert attributes.of(faces, told, "l").tolist() == ["f", "f", "m", "f", "x", "y"]
    with pytest.raises(ValueError, match=r"nothing of 2 of 6 images.*person0/0.jpg"):
        attributes.of(faces, {k: v for k, v in told.items() if k != "person0"}, "l")


def test_pairs_are_grouped_where_both_sides_agree(tmp_path):
    pairs = album.pairs()
    rows = [f"person{k},{'old' if k % 2 else 'young'}" for k in range(30)]
    found = by_attribute.groups(pairs, path=listed(tmp_path, rows))
    assert found.names == ("old", "young")
    odd = pairs.people % 2
    wanted = np.where(odd[:, 0] == odd[:, 1], 1 - odd[:, 0], -1)
    np.testing.assert_array_equal(found.group, wanted)


def test_pairs_are_picked_by_values(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(logging, "info", lambda text, *args: said.append(text % args))
    pairs = album.pairs(folds=1)
    path = listed(tmp_path, [f"{i}.jpg,{i}" for i in range(120)])
    found = pairs_where.pairs(pairs, path=path, apart=3)
    keep = np.abs(pairs.left - pairs.right) >= 3
    assert said == [f"pairs_where: {np.sum(~keep)} of 180 pairs left out"]
    number = found.images.images.number[found.images.which]
    np.testing.assert_array_equal(number[found.left], pairs.left[keep])
    np.testing.assert_array_equal(number[found.right], pairs.right[keep])
    np.testing.assert_array_equal(found.people, pairs.people[keep])
    worn = listed(tmp_path, [f"{i}.jpg,{'worn' if i % 4 > 1 else '-'}"
                             for i in range(120)])  # fmt: skip
    has = np.arange(120) % 4 > 1
    one = pairs_where.pairs(pairs, path=worn, one="worn")
    assert len(one) == np.sum(has[pairs.left] != has[pairs.right])
    with pytest.raises(ValueError, match="0 of 180 pairs are left"):
        pairs_where.pairs(pairs, path=worn, both="worn")
    with pytest.raises(ValueError, match="exactly one of them"):
        pairs_where.pairs(pairs, path=worn, one="worn", apart=1)
    with pytest.raises(ValueError, match="'-' is no number"):
        pairs_where.pairs(pairs, path=worn, apart=1)


LISTS = {
    "1N_gallery_G1.csv": "TEMPLATE_ID,SUBJECT_ID,FILENAME\n5,50,a\n5,50,b\n",
    "1N_gallery_G2.csv": "TEMPLATE_ID,SUBJECT_ID,FILENAME\n6,60,c\n",
    "1N_probe_mixed.csv": "TEMPLATE_ID,SUBJECT_ID,FILENAME\n8,60,d\n9,50,e\n",
}


def ijbc(root, **lists):
    """Two people in two galleries; template 7 is in no list of searches."""
    meta = root / "IJBC" / "meta"
    meta.mkdir(parents=True, exist_ok=True)
    media = [f"{k}.png {t} {k}" for k, t in enumerate([5, 5, 6, 7, 8, 9])]
    for k in range(6):
        (meta.parent / "loose_crop").mkdir(exist_ok=True)
        (meta.parent / "loose_crop" / f"{k}.png").write_bytes(png(k)[0])
    points = align.template(112) / 4 + 3
    row = " ".join(f"{x:.3f}" for x in points.ravel())
    texts = {
        "face_tid_mid.txt": "\n".join(media),
        "name_5pts_score.txt": "\n".join(f"{k}.png {row} 0.{k + 1}" for k in range(6)),
        "template_pair_label.txt": "5 9 1\n5 6 0\n6 8 1\n7 9 0\n",
    } | LISTS | lists  # fmt: skip
    for name, text in texts.items():
        (meta / f"ijbc_{name}").write_text(text)
    return root / "IJBC", points


def test_ijb_is_aligned_and_its_templates_numbered(tmp_path):
    path, points = ijbc(tmp_path)
    found = ijb.pairs(path)
    t = found.templates
    assert t.template.tolist() == [0, 0, 1, 2, 3, 4]
    assert (found.left.tolist(), found.right.tolist()) == ([0, 0, 1, 2], [4, 1, 3, 4])
    assert t.person[0] == t.person[4] != t.person[1] == t.person[3] != t.person[2]
    np.testing.assert_allclose(t.weight, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    face, label = t.images.read(2)
    matrix = align.similarity(points, align.template(112))
    wanted = align.warp(png(2)[1], matrix, 112)
    assert np.abs(face.astype(int) - wanted).max() <= 1
    assert label == t.person[1]
    line = ops.parse("decode|normalize(mean=0, std=1)")
    (batch,) = host.batches_once(t.images, line, batch_size=8)
    np.testing.assert_array_equal(batch["image"][2], face)
    (path / "loose_crop" / "4.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 6 images are missing.*4.png"):
        ijb.pairs(path)


def test_ijb_searches_two_galleries_with_the_same_probes(tmp_path):
    path, _ = ijbc(tmp_path)
    found = ijb_search.search(path)
    t = found.templates
    assert t.template.tolist() == [0, 0, 1, 2, 3]  # of 5 5 6 8 9
    assert t.images.name(3).endswith("4.png")
    assert [(g.tolist(), q.tolist()) for g, q in found.trials] == [
        ([0], [2, 3]),
        ([1], [2, 3]),
    ]
    assert t.person[0] == t.person[3] != t.person[1] == t.person[2]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("gallery_G1", "h\n5;50\n", r"G1.csv:2: wanted `TEMPLATE_ID,SUBJECT_ID"),
        ("gallery_G1", "h\n5,-50\n", r"G1.csv:2: wanted"),
        ("gallery_G1", "h\n", "no templates"),
        ("gallery_G2", "h\n5,60\n", "template 5 is of 60 here and of 50 before"),
        ("gallery_G2", "h\n6,60\n8,60\n", "G2.csv: a person has several templates"),
        ("probe_mixed", "h\n4,50\n", "1 templates have no image.* such as 4"),
    ],
)
def test_malformed_searches_name_the_line(tmp_path, name, text, says):
    path, _ = ijbc(tmp_path, **{f"1N_{name}.csv": text})
    with pytest.raises(ValueError, match=says):
        ijb_search.search(path)


def test_protocols_are_lines_of_the_language(tmp_path):
    path, _ = ijbc(tmp_path)
    put(tmp_path / "f", *(f"{who}/{i}.png" for who in range(8) for i in range(4)))
    rows = [f"{k},{'x' if k % 2 else 'y'}" for k in range(8)]
    faces, csv = f"folder(path={str(tmp_path / 'f')!r})", str(listed(tmp_path, rows))
    for line in (
        f"ijb(path={str(path)!r})|templates(far=(0.5,))",
        f"ijb_search(path={str(path)!r})|identification(ranks=(1,))",
        f"{faces}|gallery(strangers=0.5, trials=2)|identification(fpir=(0.5,))",
        f"{faces}|gallery(distractors={faces!r})|distractors",
        f"{faces}|pairs_all|by_attribute(path={csv!r})|fairness(far=0.1)",
        f"{faces}|pairs_all|pairs_where(path={csv!r}, both='x')|verification",
        f"{faces}|clustering",
    ):
        evaluator = assembly.flow(line)
        rng = np.random.default_rng(0)
        scalars = evaluator.run(lambda s, rng=rng: rng.normal(size=(len(s), 4))).scalars
        assert 0 <= next(iter(scalars.values())) <= 1, line


def test_missing_data_is_an_error_unless_it_is_optional(tmp_path):
    c = config.base()
    gone = str(tmp_path / "gone.bin")
    there = "synthetic(identities=4, per_identity=2)|pairs_all"
    c.eval.sets = {
        "lfw": f"pairs_bin(path={gone!r}, optional=True)|verification",
        "own": f"{there}|verification",
    }
    found, skipped = evaluation.evaluators(c.eval.sets, assembly.flow)
    assert (list(found), list(skipped)) == (["own"], ["lfw"])
    assert gone in skipped["lfw"]
    with pytest.raises(FileNotFoundError, match=r"gone.bin"):
        evaluation.evaluators(
            {"lfw": f"pairs_bin(path={gone!r})|verification"}, assembly.flow
        )
    with pytest.raises(ValueError, match="optional=1; wanted a bool"):
        evaluation.evaluators(
            {"lfw": f"pairs_bin(path={gone!r}, optional=1)|x"}, assembly.flow
        )


def test_the_best_is_not_chosen_by_a_set_that_is_missing(tmp_path):
    c = tiny.get_config()
    gone = f"pairs_bin(path={str(tmp_path / 'gone.bin')!r}, optional=True)"
    c.eval.sets = {"lfw": f"{gone}|verification"}
    c.checkpoint.best = "lfw/accuracy"
    with pytest.raises(
        ValueError, match=r"best is of lfw, whose data is missing.*gone"
    ):
        assembly.build(c)
    c.checkpoint.best = ""
    run = assembly.build(c)
    assert not run.evaluators
    assert list(run.skipped) == ["lfw"]
