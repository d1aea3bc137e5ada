import numpy as np
import oracles_metrics as oracles
import pytest
import samples

from jaxface.eval import pooling, ranking


def unit(rng, n, D=8):
    e = rng.normal(size=(n, D))
    return (e / np.linalg.norm(e, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(ranking, "_PROBES", 7)
    monkeypatch.setattr(ranking, "_GALLERY", 5)


def searches(seed=0, Q=40, G=33, people=25, strangers=10):
    rng = np.random.default_rng(seed)
    ids = np.concatenate([np.arange(people), rng.integers(people, size=G - people)])
    gallery_id = rng.permutation(ids)
    probe_id = rng.integers(people + strangers, size=Q)
    centre = unit(rng, people + strangers)
    gallery, probe = (
        unit(rng, len(of)) + 1.5 * centre[of] for of in (gallery_id, probe_id)
    )
    gallery, probe = (
        (e / np.linalg.norm(e, axis=1, keepdims=True)).astype(np.float32)
        for e in (gallery, probe)
    )
    return probe, gallery, probe_id, gallery_id


@pytest.mark.usefixtures("small_blocks")
def test_searches_are_the_obvious_loops():
    given = searches()
    found = ranking.search_all(*given)
    for name, want in zip(
        ("rank", "mate", "stranger"), oracles.searches(*given), strict=True
    ):
        np.testing.assert_allclose(getattr(found, name), want, atol=1e-6, err_msg=name)
    assert (found.rank == 0).any()


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("k", [1, 4, 33])
def test_nearest_is_a_whole_sort(k):
    probe, gallery, *_ = searches()
    score, row = ranking.nearest(probe, gallery, k=k)
    cos = probe @ gallery.T
    np.testing.assert_array_equal(row, np.argsort(-cos, axis=1, kind="stable")[:, :k])
    np.testing.assert_allclose(score, np.take_along_axis(cos, row, 1), atol=1e-6)


@pytest.mark.usefixtures("small_blocks")
def test_equals_are_found_in_the_order_of_their_rows():
    same = np.ones((12, 4), np.float32) / 2
    score, row = ranking.nearest(same[:3], same, k=7)
    np.testing.assert_array_equal(row, np.tile(np.arange(7), (3, 1)))
    np.testing.assert_array_equal(score, 1)


def test_a_collapsed_network_finds_nobody():
    same = np.ones((12, 4), np.float32) / 2
    found = ranking.search_all(same, same, np.arange(12), np.arange(12))
    np.testing.assert_array_equal(found.rank, 12)
    assert ranking.cmc(found, ranks=1).rate == 0


def by_hand():
    """Six searches: four mated with ranks 1, 1, 2, 4, and two strangers."""
    return ranking.Searches(
        rank=np.array([1, 1, 2, 4, 0, 0]),
        mate=np.array([0.9, 0.4, 0.6, 0.2, -np.inf, -np.inf], np.float32),
        stranger=np.array([0.1, 0.3, 0.7, 0.5, 0.35, 0.5], np.float32),
    )


def test_cmc_by_hand():
    curve = ranking.cmc(by_hand(), ranks=5)
    np.testing.assert_array_equal(curve.rate, [0.5, 0.75, 0.75, 1, 1])
    assert ((curve.low <= curve.rate) & (curve.rate <= curve.high)).all()


def hard(rng, P, each, effect):
    """Searches of which some people's are hard: rank 1 or 2; and the true rank-1."""
    people = np.repeat(np.arange(P), each)
    score = 1.2 + effect * rng.normal(size=P)[people] + rng.normal(size=P * each)
    none = np.full(len(people), np.nan, np.float32)
    truth = samples.CDF(1.2 / np.sqrt(1 + effect**2))
    return ranking.Searches(np.where(score > 0, 1, 2), none, none), people, truth


@pytest.mark.slow
@pytest.mark.parametrize(("P", "each", "effect"), [(200, 1, 0.0), (40, 10, 0.7)])
def test_intervals_of_a_cmc_over_people_cover(P, each, effect):
    rng, held, alone = np.random.default_rng(0), 0, 0
    for _ in range(4000):
        found, people, truth = hard(rng, P, each, effect)
        over, plain = (ranking.cmc(found, ranks=1, people=p) for p in (people, None))
        held += over.low[0] <= truth <= over.high[0]
        alone += plain.low[0] <= truth <= plain.high[0]
    assert 0.93 <= held / 4000 <= 0.97
    assert (alone / 4000 < 0.8) == (each > 1)


def test_a_cmc_over_people_is_that_of_searches_with_wider_intervals():
    found, people, _ = hard(np.random.default_rng(1), 60, 10, 0.7)
    over, plain = (ranking.cmc(found, ranks=3, people=p) for p in (people, None))
    np.testing.assert_array_equal(over.rate, plain.rate)
    assert over.low[0] < plain.low[0] < plain.high[0] < over.high[0]
    assert (over.rate[1:] == over.high[1:]).all()
    with pytest.raises(ValueError, match=r"people \(3,\) for 600 searches"):
        ranking.cmc(found, ranks=1, people=people[:3])


def test_open_set_by_hand():
    # One of two strangers may pass: the threshold is just above 0.35, where the mate
    # of 0.9 and that of 0.4 are found at rank 1, and that of 0.6 at rank 2.
    for rank, tpir in ((1, 0.5), (2, 0.75)):
        point = ranking.open_set(by_hand(), fpir=[0.5], rank=rank)
        assert (point.fpir[0], point.tpir[0]) == (0.5, tpir)
        assert 0.35 < point.threshold[0] < 0.350001
        assert (point.mated, point.unmated) == (4, 2)


@pytest.mark.parametrize("fpir", [0.05, 0.1, 0.34, 0.5, 0.9])
def test_open_set_is_the_obvious_search(fpir):
    found = ranking.search_all(*searches(1, Q=200))
    point = ranking.open_set(found, fpir=[fpir], rank=2)
    want = oracles.open_set(found.rank, found.mate, found.stranger, fpir, rank=2)
    assert (point.fpir[0], point.tpir[0]) == want


def test_searches_of_one_kind_are_refused():
    found = by_hand()
    mated, rest = (
        ranking.Searches(found.rank[of], found.mate[of], found.stranger[of])
        for of in (slice(4), slice(4, 6))
    )
    with pytest.raises(ValueError, match="all 4 searches have a mate"):
        ranking.open_set(mated, fpir=[0.1])
    with pytest.raises(ValueError, match="none of 2 searches has a mate"):
        ranking.cmc(rest, ranks=1)
    with pytest.raises(ValueError, match="at least 4 searches without a mate, got 2"):
        ranking.open_set(found, fpir=[0.25])


def images(seed=0, n=60, T=7, D=5):
    rng = np.random.default_rng(seed)
    template = rng.permutation(np.arange(n) % T)
    return 3 * rng.normal(size=(n, D)), template, rng.integers(4, size=n), rng.random(n)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_pooling_is_the_obvious_loop(monkeypatch, normalise, weighted):
    e, template, media, weight = images()
    weight = weight if weighted else None
    want = oracles.pool(e, template, media, weight, normalise)
    for rows in (1, 20, 8192):
        monkeypatch.setattr(pooling, "_IMAGES", rows)
        got = pooling.pool(e, template, media, weight=weight, normalise=normalise)
        np.testing.assert_allclose(got, want, atol=1e-6)


def test_pooling_by_hand():
    # one photo (3, 4) and a video of (0, 2), (0, 4): sum (3, 7)
    e = np.array([[0, 2], [3, 4], [0, 4], [5, 0]])
    template, media = np.array([0, 0, 0, 1]), np.array([9, 2, 9, 9])
    got = pooling.pool(e, template, media, weight=None, normalise=False)
    np.testing.assert_allclose(got, [np.array([3, 7]) / np.sqrt(58), [1, 0]], 1e-6)
    # at unit length: (0.6, 0.8) and twice (0, 1), which are one medium
    got = pooling.pool(e, template, media, weight=None, normalise=True)
    np.testing.assert_allclose(got[0], np.array([0.6, 1.8]) / np.sqrt(3.6), 1e-6)


def test_repeating_the_frames_of_a_video_changes_nothing():
    e, template, media, _ = images()
    twice = [np.concatenate([x, x]) for x in (e, template, media)]
    a, b = (
        pooling.pool(*x, weight=None, normalise=False)
        for x in ((e, template, media), twice)
    )
    np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("dense", [0, 10**9])
def test_scores_are_cosines_on_either_route(monkeypatch, dense):
    monkeypatch.setattr(pooling, "_DENSE", dense)
    monkeypatch.setattr(pooling, "_ROWS", 16)
    rng = np.random.default_rng(0)
    t, (left, right) = unit(rng, 50), rng.integers(1, 49, (2, 300))
    got = pooling.scores(t, left, right)
    np.testing.assert_allclose(got, (t[left] * t[right]).sum(1), atol=1e-6)
    assert got.dtype == np.float32


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"template": [0, 2, 2]}, "1 of 3 templates have no image, the first is 1"),
        ({"e": [[0, 0], [1, 0], [0, 1]]}, "image 0"),
        ({"e": [[1, 0], [-1, 0], [0, 1]], "normalise": False}, "template 0"),
        ({"weight": [1, -1, 1]}, "finite >= 0"),
        ({"media": [0, 1]}, r"media \(2,\)"),
    ],
)
def test_templates_without_a_direction_are_refused(change, words):
    given = {"e": [[1, 0], [1, 1], [0, 1]], "template": [0, 0, 1], "media": [0, 1, 0]}
    given |= {"weight": None, "normalise": True} | change
    e, template, media = (given.pop(k) for k in ("e", "template", "media"))
    with pytest.raises(ValueError, match=words):
        pooling.pool(e, template, media, **given)


def test_pairs_of_templates_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="templates 0 to 3 of 3"):
        pooling.scores(np.eye(3), np.array([0]), np.array([3]))
