"""Overlap: planted people are found, strangers counted, and blocks change nothing."""

import itertools
import tracemalloc

import numpy as np
import pytest

from jaxface import types
from jaxface.eval import overlap, strangers


def faces(rng, people, *, images, D=32, noise=0.5):
    """[n, D] images around each person's direction, of several lengths; who [n]."""
    who = np.repeat(np.arange(len(people)), images)
    e = people[who] + noise * rng.normal(size=(len(who), D)) / np.sqrt(D)
    return e * rng.uniform(1, 9, (len(who), 1)), who


def directions(rng, count, D=32):
    x = rng.normal(size=(count, D))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def cosine(a, b):
    return float(np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b)))


@pytest.fixture(params=[4096, 7])
def block(request, monkeypatch):
    """One block for all, or many with ragged ends."""
    monkeypatch.setattr(strangers, "_BLOCK", request.param)


def test_planted_people_are_found_and_nobody_else(block):
    rng = np.random.default_rng(0)
    train, test = directions(rng, 40), directions(rng, 20)
    test[[3, 11]] = train[[25, 6]]
    e, label = faces(rng, train, images=5)
    probes, people = faces(rng, test, images=2)
    middle = strangers.class_centres(e, label, classes=40)
    found = strangers.calibrate(middle, e, label, comparisons=40 * 40, alarms=0.1)
    assert found.strangers == 200 * 39
    assert found.above == 0  # 7,800 strangers, of whom 0.1 in 1,600 may pass
    matches = overlap.find(middle, probes, people, threshold=found.threshold)
    assert {(m.label, m.person) for m in matches} == {(25, 3), (6, 11)}
    assert [m.count for m in matches] == [2, 2]
    for m in matches:
        own = [i for i in range(40) if people[i] == m.person]
        best = max(own, key=lambda i: cosine(middle[m.label], probes[i]))
        assert m.image == best
        assert m.similarity == pytest.approx(cosine(middle[m.label], probes[best]))
    assert matches[0].similarity >= matches[1].similarity


def test_search_and_calibration_are_what_loops_find(block):
    rng = np.random.default_rng(1)
    middle, e = directions(rng, 23, 6), directions(rng, 31, 6)
    label = rng.integers(0, 23, 31)
    middle[4] = 0.0  # a class without images
    apart = [
        cosine(x, w) for x, own in zip(e, label, strict=True)
        for c, w in enumerate(middle) if c not in (own, 4)
    ]  # fmt: skip
    for alarms in (0.5, 1, 7):
        found = strangers.calibrate(middle, e, label, comparisons=100, alarms=alarms)
        allowed = int(alarms * len(apart) / 100)
        assert found.strangers == len(apart)
        edge = found.threshold + 1e-6  # the first refused is a rounding below it
        assert found.above == sum(s >= edge for s in apart) == allowed
        assert found.expected(100) <= alarms < found.bound(100) + 1
    got = strangers.measure(middle, e, label, threshold=0.4)
    assert got.above == sum(s >= 0.4 for s in apart)
    rows, columns, scores = overlap.above(e, middle, threshold=0.4)
    pairs = itertools.product(range(31), [c for c in range(23) if c != 4])
    wanted = {(i, j) for i, j in pairs if cosine(e[i], middle[j]) >= 0.4}
    assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == wanted
    for i, j, s in zip(rows, columns, scores, strict=True):
        assert s == pytest.approx(cosine(e[i], middle[j]), abs=1e-6)


def test_wrong_labels_are_doubted_and_move_no_threshold(block):
    rng = np.random.default_rng(4)
    e, label = faces(rng, directions(rng, 60), images=6)
    wrong = np.zeros(360, bool)
    wrong[[8, 77, 200]] = True
    told = np.where(wrong, (label + 7) % 60, label)
    middle = strangers.class_centres(e, told, classes=60)
    found = strangers.doubtful(middle, e, told)
    np.testing.assert_array_equal(found, wrong)
    given = {"comparisons": 60 * 100, "alarms": 0.1}
    clean = strangers.class_centres(e, label, classes=60)
    wanted = strangers.calibrate(clean, e, label, **given).threshold
    got = strangers.calibrate(middle, e[~found], told[~found], **given).threshold
    fooled = strangers.calibrate(middle, e, told, **given).threshold
    assert abs(got - wanted) < 0.05 < fooled - wanted


def test_doubt_is_about_the_rest_of_the_class(block):
    rng = np.random.default_rng(5)
    e, label = directions(rng, 30, 3), np.append(rng.integers(0, 6, 29), 6)
    middle = strangers.class_centres(e, label, classes=8)
    for i, found in enumerate(strangers.doubtful(middle, e, label)):
        rest = (label == label[i]) & (np.arange(30) != i)
        own = cosine(e[i], e[rest].sum(0)) if rest.any() else 1.0
        others = [cosine(e[i], middle[c]) for c in range(7) if c != label[i]]
        assert found == (own < max(others))


def test_the_rate_of_strangers_holds_for_other_strangers():
    rng = np.random.default_rng(2)
    e, label = faces(rng, directions(rng, 200), images=5)
    middle = strangers.class_centres(e, label, classes=200)
    probes = directions(rng, 1000)
    given = {"comparisons": 200 * 1000, "alarms": 40.0}
    found = strangers.calibrate(middle, e, label, **given)
    alarms = len(overlap.above(middle, probes, threshold=found.threshold)[0])
    assert 15 <= alarms <= 80  # 40 expected; they share centres, so more than sqrt(40)


def test_numbers_by_hand():
    e = np.array([[2.0, 0], [0, 5], [0, -1], [3, 4]])
    middle = strangers.class_centres(e, np.array([0, 0, 2, 2]), classes=4)
    wanted = [[1, 1], [0, 0], [0.6, -0.2], [0, 0]]
    wanted = [w / np.maximum(np.linalg.norm(w), 1e-9) for w in np.array(wanted)]
    np.testing.assert_allclose(middle, wanted, atol=1e-6)
    found = strangers.Calibration(threshold=0.5, strangers=1000, above=2)
    assert found.expected(5000) == 10.0
    assert 30 < found.bound(5000) < 40  # Wilson's 95 %: 0.0073
    none = strangers.Calibration(threshold=0.5, strangers=1000, above=0)
    assert none.expected(5000) == 0.0
    assert none.bound(5000) == pytest.approx(5000 * 3.8415 / 1003.8415, rel=1e-4)


def test_memory_is_that_of_a_block(monkeypatch):
    monkeypatch.setattr(strangers, "_BLOCK", 256)
    rng = np.random.default_rng(3)
    a, b = (directions(rng, 3000, 8).astype(np.float32) for _ in range(2))
    label = np.arange(3000)
    tracemalloc.start()
    overlap.above(a, b, threshold=0.999)
    strangers.calibrate(a, b, label, comparisons=10**6)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6  # all similarities are 36 MB


def test_names_match_without_case_accents_and_marks():
    train = ["Abdel_Madi Shabneh", "17", "José-Núñez", "Ann", "Straße", "王菲"]
    test = ["ann ", "abdel-madi_shabneh", "17", "Jose Nunez", "STRASSE", "anna", "王菲"]
    assert overlap.by_name(train, test) == [(0, 1), (2, 3), (3, 0), (4, 4), (5, 6)]
    assert overlap.by_name(["ann"], ["Ann", "ANN"]) == [(0, 0), (0, 1)]


def at(*degrees):
    """[N, 2] unit vectors in these directions."""
    return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1)


def test_mutual_nearest_are_joined_and_the_rest_listed(block):
    # set 0 at 0, 90, 180; set 1 at 5, 12, 95; set 2 at 97
    middle, home = at(0, 90, 180, 5, 12, 95, 97), np.array([0, 0, 0, 1, 1, 1, 2])
    found = overlap.shared(middle, home, threshold=float(np.cos(np.radians(20))))
    assert found.people.tolist() == [0, 1, 2, 0, 3, 1, 1]
    pairs = [(p.left, p.right) for p in found.joined]
    assert pairs == [(5, 6), (0, 3), (1, 5), (1, 6)]
    # 12 degrees is like 0 too, which has a nearer one in that set
    assert [(p.left, p.right) for p in found.conflicts] == [(0, 4)]
    assert found.conflicts[0].similarity == pytest.approx(np.cos(np.radians(12)))


def test_two_of_a_set_joined_through_a_third_are_a_conflict():
    # a1 = 0 and b1 = 9 are mutual, b1 and c1 = 16 too, c1 and a2 = 20
    middle, home = at(0, 20, 9, 16), np.array([0, 0, 1, 2])
    found = overlap.shared(middle, home, threshold=float(np.cos(np.radians(10))))
    assert found.people.tolist() == [0, 0, 0, 0]
    assert [(p.left, p.right) for p in found.conflicts] == [(0, 1)]


def test_within_one_set_a_person_under_two_labels_is_found():
    found = overlap.shared(at(0, 60, 3, 120, 8), threshold=0.99)
    assert found.people.tolist() == [0, 1, 0, 2, 3]
    assert [(p.left, p.right) for p in found.joined] == [(0, 2)]
    assert [(p.left, p.right) for p in found.conflicts] == [(2, 4), (0, 4)]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda e: overlap.above(e, e[:, :2], threshold=0.5), r"cannot compare \(4, 3"),
        (lambda e: overlap.above(e, e, threshold=0.0), "wanted a cosine above 0"),
        (lambda e: overlap.above(e, e * np.nan, threshold=0.5), "4 of 4 .* not finite"),
        (lambda e: strangers.class_centres(e, [0, 1, 2, 3], classes=3), "label 3 of 3"),
        (lambda e: strangers.class_centres(e, [0, 1], classes=3), r"wanted \[n\] >= 0"),
        (
            lambda e: strangers.calibrate(e[:1], e, [0] * 4, comparisons=9),
            "nobody to compare with",
        ),
        (
            lambda e: strangers.calibrate(e, e, range(4), comparisons=2, alarms=2),
            "a match for everybody",
        ),
        (lambda e: overlap.find(e, e, [0], threshold=0.5), r"people \(1,\) of 4"),
        (lambda e: overlap.shared(e, [0], threshold=0.5), r"origin \(1,\) of 4"),
    ],
)
def test_what_does_not_fit_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call(np.eye(4, 3) + 0.1)


def test_a_threshold_that_everybody_passes_is_refused(monkeypatch):
    monkeypatch.setattr(overlap, "_MOST", 10)
    with pytest.raises(ValueError, match=r"more than 10 pairs reach 0\.5; wanted a"):
        overlap.above(np.ones((4, 3)), np.ones((4, 3)), threshold=0.5)


def test_a_leak_is_what_the_search_finds_and_counts_its_people():
    rng = np.random.default_rng(7)
    train, test = directions(rng, 40), directions(rng, 20)
    test[[3, 11]] = train[[25, 6]]
    e, label = faces(rng, train, images=5)
    label[0] = 39  # a wrong label, which is no stranger
    probes, people = faces(rng, test, images=2)
    middle = strangers.class_centres(e, label, classes=40)
    found = overlap.leak((middle, e, label), probes, people, alarms=0.1)
    assert {(m.label, m.person) for m in found.matches} == {(25, 3), (6, 11)}
    assert (found.people, found.classes, found.comparisons) == (20, 40, 40 * 40)
    assert found.doubtful == 1
    s = found.scalars
    assert (s["leaked"], s["leaked_people"], s["leaked_of"]) == (0.1, 2, 20)
    assert s["leaked_low"] < 0.1 < s["leaked_high"]
    again = overlap.leak(
        (middle, e, label), probes, people, threshold=s["leaked_threshold"]
    )
    assert again == found


def test_images_in_no_pair_are_of_nobody():
    pairs = types.Pairs(
        images=range(5),
        left=np.array([0, 3]),
        right=np.array([1, 0]),
        same=np.array([True, False]),
        fold=np.zeros(2, int),
        people=np.array([[7, 7], [2, 7]]),
    )
    assert pairs.owners.tolist() == [7, 7, -1, 2, -1]
    image, template = np.array([4, 0, 1]), np.array([0, 1, 1])
    nothing, person = np.zeros(3), np.array([5, 8])
    templates = types.Templates(range(5), image, template, nothing, nothing, person)
    assert templates.owners.tolist() == [8, 8, -1, -1, 5]
