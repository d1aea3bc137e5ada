"""The bench: opponents take turns, figures are summed up right, tables are whole."""

import importlib
import json
import pathlib

import numpy as np
import pytest

from jaxface.data.sources import synthetic

LAUNCH = pathlib.Path(__file__).parent.parent / "launch"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(LAUNCH)
    return importlib.import_module("bench")


def test_opponents_take_turns_and_the_median_is_given(bench):
    seen, now = [], [0.0]
    costs = {"a": iter([9, 9, 1, 2, 4]), "b": iter([9, 9, 5, 5, 5])}

    def runner(name):
        def run():
            seen.append(name)
            now[0] += next(costs[name])

        return run

    candidates = {name: bench.Candidate(runner(name), 20) for name in "ab"}
    a, b = bench.race(candidates, unit="x/s", warmup=2, repeats=3, clock=lambda: now[0])
    assert seen == ["a", "b"] * 5
    assert a == bench.Row("a", "x/s", 10, 5, 20, 3)  # 20 items in 1, 2 and 4 seconds
    assert b == bench.Row("b", "x/s", 4, 4, 4, 3)


def test_json_and_table_hold_every_row(bench):
    rows = [bench.Row(name, "images/s", 2.5, 2.0, 3.0, 7) for name in ("one", "two")]
    found = json.loads(json.dumps(bench.report({"render": rows})))
    assert found["benchmarks"]["render"][1] == {
        "name": "two",
        "unit": "images/s",
        "value": 2.5,
        "low": 2.0,
        "high": 3.0,
        "count": 7,
    }
    assert [line.split()[:3] for line in bench.table(rows).splitlines()] == [
        ["one", "2.5", "images/s"],
        ["two", "2.5", "images/s"],
    ]


def test_an_unknown_benchmark_lists_the_choices(bench):
    assert list(bench.choose(["baselines", "render"])) == ["baselines", "render"]
    with pytest.raises(KeyError, match=r"did you mean 'render'.*baselines"):
        bench.choose(["rendr"])


def test_folds_share_no_person_and_pairs_no_image(bench):
    source = synthetic.Source(identities=30, per_identity=3, size=16)
    left, right, same, fold = bench._pairs(source, pairs=600, folds=10, seed=0)
    np.testing.assert_array_equal(left // 3 == right // 3, same)
    assert same.mean() == 0.5
    assert np.all(left != right)
    for side in (left, right):
        np.testing.assert_array_equal(side // 3 // 3, fold)


def test_fold_accuracy_takes_its_threshold_from_the_others(bench):
    fold = np.repeat([0, 1], 4)
    same = np.tile([True, True, False, False], 2)
    clear = np.array([0.9, 0.8, 0.2, 0.1] * 2)
    assert bench._fold_accuracies(clear, same, fold) == [1, 1]
    # Each fold is separable, but not at the threshold of the other.
    moved = clear + np.repeat([0, 5], 4)
    assert bench._fold_accuracies(moved, same, fold) == [0.5, 0.5]


def test_verification_knows_the_perfect_and_the_blind(bench):
    test = synthetic.Source(identities=20, per_identity=3, size=16)
    labels = np.repeat(np.eye(20), 3, axis=0)
    noise = np.random.default_rng(0).normal(size=(60, 8))
    embeddings = {"perfect": lambda x: labels, "blind": lambda x: noise}
    perfect, blind = bench.verify(embeddings, test, pairs=800)
    assert perfect.value == 1
    assert 0.4 < blind.value < 0.6


def test_hog_sees_direction_and_not_brightness(bench):
    ramp = np.arange(32) * 4
    across = np.broadcast_to(ramp[None, :, None], (32, 32, 3)).astype(np.uint8)
    down = across.transpose(1, 0, 2)
    images = np.stack([across, across // 2 + 60, down])
    a, dim, b = bench.hog(images)
    np.testing.assert_allclose(a, dim, atol=1e-2)
    assert a @ b < 0.1 * (a @ a)


def test_pca_of_a_line_finds_the_line(bench):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 1)) @ rng.normal(size=(1, 6)) + 3
    found = bench.pca(x, keep=1)(x)[:, 0]
    assert abs(np.corrcoef(found, x[:, 0])[0, 1]) == pytest.approx(1)


@pytest.mark.slow
def test_simple_baselines_cannot_tell_rendered_people_apart(bench):
    # The law of the default data: hard for pixels, histograms and colours.
    train = synthetic.Source(identities=150, per_identity=4, size=56)
    test = synthetic.Source(identities=200, per_identity=4, size=56, start=5000)
    rows = bench.verify(bench.simple_embeddings(train), test, pairs=1000)
    assert [row.name for row in rows][1:] == ["mean-centred pixels", "HOG + PCA"]
    for row in rows:
        assert 0.45 < row.value < 0.75, row
