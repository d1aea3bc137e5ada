"""Searches 1:N, among distractors, and template pairs, by hand and by loops."""

import dataclasses
import tarfile

import album
import numpy as np
import pytest
from absl import logging
from sklearn import neighbors

from jaxface import types
from jaxface.data import decode
from jaxface.data.sources import folder, gallery
from jaxface.eval import bootstrap, distractors, identification, templates


def angles(degrees):
    """An embedder that gives image i the direction of degrees[i]."""
    radians = np.deg2rad(np.asarray(degrees, np.float64))
    points = np.stack([np.cos(radians), np.sin(radians)], axis=1)

    def embed(source):
        return points[[int(source.read(i)[0]) for i in range(len(source))]]

    return embed


def photos(person):
    """One photo per template, of these people."""
    n, person = np.arange(len(person)), np.array(person)
    images = album.Album(n, person)
    return types.Templates(images, n, n, n, np.ones(len(n), np.float32), person)


# enrolled at 0, 40 and 80 degrees; probes of these three, then two strangers
SEARCH = types.Search(
    photos([0, 1, 2, 0, 1, 2, 3, 4]), ((np.arange(3), np.arange(3, 8)),)
)
EMBED = angles([0, 40, 80, 5, 10, 50, 45, 120])


def test_searches_by_hand():
    # nearest of the probe at 5: 0 its own, at 10: 0 before its 40, at 50: 40 before
    # its 80; the strangers come as near as 5 and 40 degrees
    found = identification.Evaluator(SEARCH, ranks=(1, 2, 3), fpir=(0.5,)).run(EMBED)
    s, a = found.scalars, found.artefacts
    assert a["rank"].tolist() == [1, 2, 2, 0, 0]
    assert [s[f"rank{k}"] for k in (1, 2, 3)] == [1 / 3, 1.0, 1.0]
    np.testing.assert_allclose(a["cmc"], [1 / 3, 1, 1])
    # one stranger of two may pass: the bar is just above 40 degrees
    np.testing.assert_allclose(
        s["threshold@fpir=5e-1"], np.cos(np.deg2rad(40)), atol=1e-6
    )
    assert s["tpir@fpir=5e-1"] == 1 / 3
    counts = [s[k] for k in ("searches", "mated", "strangers", "gallery", "trials")]
    assert counts == [5, 3, 2, 3, 1]


def test_two_galleries_have_thresholds_of_their_own_and_common_counts():
    probes = np.arange(3, 8)
    both = dataclasses.replace(
        SEARCH, trials=((np.array([0]), probes), (np.array([1, 2]), probes))
    )
    s = identification.Evaluator(both, ranks=(1,), fpir=(0.4,)).run(EMBED).scalars
    # gallery 1: probe 0 is 5 from its mate, strangers are 10, 45, 50 and 120 away.
    # gallery 2: the mates of 1 and 2 are 30 away, but 2 is nearer to 1's; strangers
    # are 5, 35 and 40 away. One of either's may pass.
    assert s["rank1"] == pytest.approx(2 / 3)
    assert s["rank1_std"] == pytest.approx(0.25)  # of 1 and 1/2
    assert (s["mated"], s["strangers"], s["trials"]) == (3, 7, 2)
    bars = np.cos(np.deg2rad([45, 35]))  # the second alarms
    np.testing.assert_allclose(s["threshold@fpir=4e-1"], bars.mean(), atol=1e-6)
    assert s["tpir@fpir=4e-1"] == pytest.approx(2 / 3)


def test_rates_that_strangers_cannot_show_are_named(monkeypatch):
    said = []
    monkeypatch.setattr(logging, "info", lambda text, *args: said.append(text % args))
    scalars = identification.Evaluator(SEARCH, fpir=(0.5, 0.1)).run(EMBED).scalars
    assert said == ["TPIR at FPIR 1e-1 is left out: 2 strangers cannot show it"]
    assert not [k for k in scalars if "1e-1" in k]
    closed = dataclasses.replace(SEARCH, trials=((np.arange(3), np.arange(3, 6)),))
    found = identification.Evaluator(closed).run(EMBED)
    assert found.scalars["strangers"] == 0
    assert "fpir" not in found.artefacts


def test_searches_equal_loops():
    feed = album.search()
    embed = album.embedder(signal=0.3, noise=1)
    s = identification.Evaluator(feed, norm=False, detector=False).run(embed).scalars
    e = embed(feed.templates.images).astype(np.float64)
    e /= np.linalg.norm(e, axis=1, keepdims=True)
    t = e.reshape(60, 2, -1).sum(axis=1)  # the video's mean has the sum's direction
    t /= np.linalg.norm(t, axis=1, keepdims=True)
    hits = [
        max((g for g in gallery), key=lambda g, q=q: t[q] @ t[g]) // 2 == q // 2
        for gallery, probes in feed.trials
        for q in probes
        if q // 2 in gallery // 2
    ]
    assert s["rank1"] == np.mean(hits)
    assert 0.2 < s["rank1"] < 1


def test_a_distractor_as_near_as_the_mate_hides_it():
    # 0 at 0 and 20, 1 at 100 and 130; distractors at 15 and 115
    feed = types.Search(
        photos([0, 1, 8, 9, 0, 1]), ((np.array([0, 1, 2, 3]), np.array([4, 5])),)
    )
    embed = angles([0, 100, 15, 115, 20, 130])
    s = distractors.Evaluator(feed, ranks=(1, 2)).run(embed).scalars
    # all four searches meet a distractor within 5 to 15 degrees, the mate is 20 or 30
    # away; no other distractor comes before
    assert (s["rank1"], s["rank2"]) == (0, 1)
    assert (s["searches"], s["people"], s["distractors"]) == (4, 2, 2)
    tied = distractors.Evaluator(feed, ranks=(1,)).run(angles([0, 0, 0, 90, 0, 0]))
    assert tied.scalars["rank1"] == 0


def test_distractors_equal_loops():
    feed, embed = album.hidden(), album.embedder(signal=0.4, noise=1)
    s = distractors.Evaluator(feed, ranks=(1, 5), detector=False).run(embed).scalars
    t = templates.pooled(feed.templates, embed, norm=True, detector=False)
    gallery, probes = feed.trials[0]
    strangers = gallery[gallery >= 20]
    for k in (1, 5):
        hits = [
            np.sum(t[strangers] @ t[q] >= t[g] @ t[q] - 1e-6) < k
            for p in probes
            for g, q in ((p, p - 1), (p - 1, p))
        ]
        assert s[f"rank{k}"] == np.mean(hits)
    assert 0 < s["rank1"] < s["rank5"] < 1


def test_the_switches_of_ijb_by_hand():
    # template 0: a video of two frames and a photo, the photo longer and surer
    e = np.array([[1, 0], [0, 1], [0, 6], [1, 0], [0, 1], [-1, 0]], np.float32)
    feed = types.TemplatePairs(
        types.Templates(
            album.Album(np.arange(6), np.array([0, 0, 0, 0, 1, 2])),
            np.arange(6), np.array([0, 0, 0, 1, 2, 3]), np.array([7, 7, 9, 7, 7, 7]),
            np.array([1, 1, 0.5, 1, 1, 1], np.float32), np.array([0, 0, 1, 2]),
        ),
        np.array([0, 0, 1, 2]), np.array([1, 2, 2, 2]),
        np.array([True, False, False, True]),
    )  # fmt: skip
    wanted = {  # of template 0: half of (1, 1) of the video, and the photo
        (True, True): [0.5, 0.5 + 3],
        (True, False): [0.5, 0.5 + 6],
        (False, True): [0.5, 0.5 + 0.5],
        (False, False): [0.5, 0.5 + 1],
    }
    for (norm, detector), t in wanted.items():
        evaluator = templates.Evaluator(feed, far=(0.5,), norm=norm, detector=detector)
        found = evaluator.run(lambda source: e).artefacts["scores"]
        cos = np.array(t) / np.linalg.norm(t)
        np.testing.assert_allclose(found, [*cos, 0, 1], atol=1e-6)


def test_template_pairs_say_what_they_cannot_show(monkeypatch):
    said = []
    monkeypatch.setattr(logging, "info", lambda text, *args: said.append(text % args))
    evaluator = templates.Evaluator(album.template_pairs())
    assert len(said) == 3  # 1740 impostors: not 1e-4, 1e-5, 1e-6
    scalars = evaluator.run(album.embedder(signal=1, noise=0.5)).scalars
    assert [k for k in scalars if k.endswith("high")] == [
        *(f"tar@far=1e-{k}_high" for k in (1, 2, 3)),
        *("auc_high", "eer_high"),
    ]
    with pytest.raises(ValueError, match="resolve none of far"):
        templates.Evaluator(album.template_pairs(), far=(1e-4,))


def test_searches_that_are_none_are_refused():
    with pytest.raises(ValueError, match="no probe has a mate"):
        identification.Evaluator(
            dataclasses.replace(SEARCH, trials=((np.arange(3), np.array([6, 7])),))
        )
    with pytest.raises(ValueError, match="wanted at least one of both"):
        identification.Evaluator(SEARCH, ranks=(0,))
    bad = dataclasses.replace(SEARCH.templates, image=np.arange(1, 9))
    with pytest.raises(ValueError, match=r"templates.image: wanted \[8\] ids below 8"):
        identification.Evaluator(dataclasses.replace(SEARCH, templates=bad))
    with pytest.raises(ValueError, match="0 distractors, 10 people"):
        distractors.Evaluator(album.search())


def test_trials_of_the_same_probes_tell_no_more_than_one():
    feed, perfect = album.search(), album.embedder(signal=1, noise=0)
    trial = feed.trials[0]
    one, ten = (
        identification.Evaluator(dataclasses.replace(feed, trials=(trial,) * k))
        .run(perfect)
        .scalars
        for k in (1, 10)
    )
    assert (one["probes"], ten["probes"], ten["mated"]) == (10, 10, 100)
    assert one["rank1_low"] == ten["rank1_low"] == pytest.approx(0.7225, abs=1e-3)
    many = bootstrap.people_rate(np.arange(100) > 0, np.arange(100) // 10, distinct=10)
    assert (
        many.low < bootstrap.people_rate(np.arange(100) > 0, np.arange(100) // 10).low
    )


@pytest.mark.real_data
def test_real_faces_are_found_as_scikit_learn_finds_them(tmp_path, real_data):
    with tarfile.open(real_data / "orl_att_40x10.tar.xz") as tar:
        tar.extractall(tmp_path, filter="data")

    def pixels(source):
        faces = [
            decode.pixels(source.read(i)[0])[::4, ::4, 0] for i in range(len(source))
        ]
        return np.stack(faces).reshape(len(faces), -1).astype(np.float32) - 128

    feed = gallery.search(folder.Source(tmp_path / "orl"), enrol=1)
    scalars = identification.Evaluator(feed).run(pixels).scalars
    t, ((enrolled, probes),) = feed.templates, feed.trials
    e = pixels(t.images)[
        t.image[np.searchsorted(t.template, np.append(enrolled, probes))]
    ]
    who = t.person[np.append(enrolled, probes)]
    nearest = neighbors.NearestNeighbors(n_neighbors=1, metric="cosine").fit(e[:40])
    (found,) = nearest.kneighbors(e[40:], return_distance=False).T
    assert scalars["rank1"] == np.mean(who[found] == who[40:])
    assert (scalars["people"], scalars["probes"]) == (40, 360)
    assert 0.5 < scalars["rank1"] < 0.95
