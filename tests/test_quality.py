"""Quality: what loops find, the worse image counts, and it says how it was measured."""

import itertools

import numpy as np
import pytest
import test_embed as nets
import test_robustness as few
import test_verification as lists

from jaxface.eval import learned, quality

STILL = "iresnet(stages=(1,), widths=(4,), dim=8, dropout=0.0)"


def blurry(seed=0, people=60):
    """Pairs, and embeddings of which the short ones are the noisy ones."""
    pairs, e = lists.faces(seed, people=people, noise=0.2)
    rng = np.random.default_rng(seed)
    bad = 0.9 * rng.uniform(size=len(e)) ** 4  # few of them
    e = e / np.linalg.norm(e, axis=1, keepdims=True)
    e = e + bad[:, None] * rng.normal(size=e.shape)
    return pairs, e / np.linalg.norm(e, axis=1, keepdims=True) * (2 - bad[:, None])


def loops(scores, same, quality_of_pair, far):
    """Error against reject, level by level: [(share, error, left)]."""
    impostors = sorted(scores[~same], reverse=True)
    threshold = min(
        t
        for t in [*scores, np.inf]
        if sum(s >= t for s in impostors) <= far * len(impostors)
    )
    genuine = [
        (q, s)
        for q, s, g in zip(quality_of_pair, scores, same, strict=True)
        if g
    ]  # fmt: skip
    points = []
    for level in sorted({q for q, _ in genuine}):
        left = [s for q, s in genuine if q >= level]
        error = sum(s < threshold for s in left) / len(left)
        points.append((1 - len(left) / len(genuine), error, len(left)))
    return points


def test_curve_points_and_area_are_what_loops_find():
    pairs, e = blurry()
    evaluator = quality.Evaluator(pairs, methods=("norm",), far=0.05, shares=(0.25,))
    result = evaluator.run(lambda images: e)
    unit = e / np.linalg.norm(e, axis=1, keepdims=True)
    scores = np.sum(unit[pairs.left] * unit[pairs.right], axis=1)
    length = np.linalg.norm(e, axis=1)
    worse = [
        min(length[i], length[j]) for i, j in zip(pairs.left, pairs.right, strict=True)
    ]
    want = loops(scores, pairs.same, worse, 0.05)
    x, y = (result.artefacts[f"reject:norm:{k}"] for k in "xy")
    np.testing.assert_allclose(np.stack([x, y], 1), [p[:2] for p in want], atol=1e-12)
    s = result.scalars
    assert s["fnmr"] == want[0][1]
    first = next(p for p in want if p[0] >= 0.25 - 1e-9)
    assert (s["fnmr@norm=0.25"], s["fnmr@norm=0.25_genuine"]) == pytest.approx(
        first[1:]
    )
    grid = np.linspace(0, 0.3, 30001)[:-1]
    stair = [[p[1] for p in want if p[0] <= at][-1] for at in grid[::10]]
    assert s["area@norm"] == pytest.approx(np.mean(stair), abs=2e-3)


def test_length_that_tells_noise_lowers_the_error_and_chance_does_not():
    pairs, e = blurry(people=200)
    evaluator = quality.Evaluator(pairs, methods=("norm",), far=0.1)
    told = evaluator.run(lambda images: e).scalars
    order = np.random.default_rng(1).permutation(len(e))
    length = np.linalg.norm(e, axis=1, keepdims=True)
    mixed = evaluator.run(lambda images: e / length * length[order]).scalars
    assert told["fnmr"] == mixed["fnmr"]
    assert told["area@norm"] < 0.9 * mixed["area@norm"]
    assert told["fnmr@norm=0.2"] < told["fnmr"]
    for name in ("fnmr", "fnmr@norm=0.1"):
        assert told[f"{name}_low"] < told[name] < told[f"{name}_high"]


def test_the_learned_quality_is_that_of_people_who_were_not_judged():
    pairs, e = blurry(people=60)
    evaluator = quality.Evaluator(pairs, methods=("norm", "learned"), far=0.1)
    result = evaluator.run(lambda images: e)
    want = learned.cross_fitted(e, pairs.owners)
    np.testing.assert_array_equal(result.artefacts["quality:learned"], want)
    assert {"area@learned", "fnmr@learned=0.1"} <= result.scalars.keys()
    assert result.scalars["area@learned"] < result.scalars["fnmr"]


def test_a_quality_that_tells_nothing_rejects_nothing():
    pairs, e = lists.faces()
    e = np.sign(e)  # of length sqrt(8), all of them
    result = quality.Evaluator(pairs, methods=("norm",), far=0.1).run(lambda i: e)
    assert result.artefacts["reject:norm:x"].tolist() == [0]
    assert result.artefacts["reject:norm:y"].tolist() == [result.scalars["fnmr"]]
    assert result.scalars["area@norm"] == result.scalars["fnmr"]
    # no level rejects a tenth: all pairs are left, and their number says so
    assert result.scalars["fnmr@norm=0.1_genuine"] == result.scalars["genuine"]


def test_steadiness_is_equation_one_of_ser_fiq():
    rows = np.random.default_rng(0).normal(size=(5, 3, 4))
    got = quality.steadiness(rows)
    for i in range(3):
        unit = [row / np.linalg.norm(row) for row in rows[:, i]]
        total = sum(np.linalg.norm(a - b) for a, b in itertools.combinations(unit, 2))
        assert got[i] == pytest.approx(2 / (1 + np.exp(2 / 5**2 * total)))
    np.testing.assert_array_equal(quality.steadiness(rows[[0, 0, 0]]), 1)


@pytest.mark.parametrize(("model", "how"), [("", "dropout"), (STILL, "noise")])
def test_stability_says_what_moved_the_network(model, how):
    net = nets.network(how="output", model=model)[0]
    evaluator = quality.Evaluator(few.pairs(), far=0.1, passes=3)
    a, b = evaluator.run(net), evaluator.run(net)
    assert a.scalars == b.scalars
    assert {f"area@{how}", "area@norm"} <= a.scalars.keys()
    values = a.artefacts[f"quality:{how}"]
    assert len(values) == len(few.pairs().images)
    assert (values > 0).all()
    assert (values < 1).all()


def test_more_noise_is_less_steady():
    net = nets.network(how="output", model=STILL)[0]
    images = few.pairs().images
    values = [
        quality.stability(net, images, passes=3, noise=noise)[1]
        for noise in (0.5, 4.0, 32.0)
    ]
    assert (values[0] > values[1]).all()
    assert (values[1] > values[2]).all()


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"methods": ("norms",)}, KeyError, "did you mean 'norm'"),
        ({"passes": 1}, ValueError, "2 passes or more"),
        ({"shares": (1.5,)}, ValueError, r"shares in \(0, 1\)"),
        ({"noise": 0.0}, ValueError, "noise above 0"),
    ],
)
def test_impossible_settings_are_refused(given, error, says):
    with pytest.raises(error, match=says):
        quality.Evaluator(lists.faces()[0], **given)


def test_stability_of_a_plain_function_is_refused_and_its_length_is_not():
    pairs, e = lists.faces()
    with pytest.raises(TypeError, match=r"methods=\('norm',\)"):
        quality.Evaluator(pairs, far=0.1).run(lambda images: e)
    with pytest.raises(ValueError, match="needs at least 1000 impostor pairs, got 60"):
        quality.Evaluator(pairs, far=1e-3).run(lambda images: e)
