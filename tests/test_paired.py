"""Variants side by side: differences belong to one seed, wrong input is said early."""

import importlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
RECIPE = ROOT / "configs" / "noisy_labels.py"


@pytest.fixture
def paired(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "launch")
    return importlib.import_module("paired")


def test_differences_are_paired_by_seed(paired):
    rows = paired.compare({"a": [0.5, 0.7, 0.9], "b": [0.6, 0.7, 1.2]})
    assert rows["b"]["differences"] == pytest.approx([0.1, 0.0, 0.3])
    assert rows["b"]["difference"] == pytest.approx(0.4 / 3)
    # deviations -1/30, -4/30, 5/30: variance 42/900/2, of a mean of three
    assert rows["b"]["standard_error"] == pytest.approx((42 / 900 / 2 / 3) ** 0.5)
    assert rows["b"]["p"] == 4 / 8  # of all signs, those of 0.1 and 0.3 alike
    assert rows["a"] == {"values": [0.5, 0.7, 0.9], "mean": pytest.approx(0.7)}
    lines = paired.table(rows, seeds=["0", "1", "2"]).splitlines()
    assert len(lines) == 4
    told = "+0.1000  +0.0000  +0.3000  +0.1333 +- 0.0882, p 0.5"
    assert lines[-1].endswith(told)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["loss=arcface"], "nothing to differ from"),
        (["loss=arcface", "loss=arcfce"], "wanted one of"),
        (["loss=arcface", "shard=1"], "wanted name=value with names loss, share, seed"),
    ],
)
def test_wrong_variants_are_said_before_training(paired, given, words):
    with pytest.raises(ValueError, match=words):
        paired.plan(str(RECIPE), variants=given, seeds=["0"])


def test_more_seeds_than_signs_can_test_are_refused(paired):
    seeds = [str(i) for i in range(21)]
    with pytest.raises(ValueError, match="21 seeds; wanted at most 20"):
        paired.plan(str(RECIPE), variants=["loss=arcface"] * 2, seeds=seeds)


def test_a_variant_and_a_seed_make_a_config(paired):
    variants = ["loss=arcface", "loss=centers,share=0.3"]
    found = paired.plan(str(RECIPE), variants=variants, seeds=["3", "4"])
    assert [c.seed for c in found.values()] == [3, 3, 4, 4]
    noisy = found["loss=centers,share=0.3", "4"]
    assert noisy.data.source.endswith("|mislabelled(share=0.3, seed=4)")
    assert noisy.loss.name == "softmax(scale=24.0, centers=3)"
