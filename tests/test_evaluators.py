"""What every evaluator keeps; a new one is found by listing and needs a case."""

import importlib
import json
import math

import album
import numpy as np
import pytest

from jaxface import eval as protocols
from jaxface import spec, types
from jaxface.eval import templates, verification

NAMES = [
    name
    for name in spec.modules(protocols)
    if "Evaluator" in spec.public(importlib.import_module(f"jaxface.eval.{name}"))
]


def logits(source):
    return album.embedder(signal=1, noise=0)(source)[:, 1:2] - 1


def guesses(source):
    return album.embedder(signal=0, noise=1)(source)[:, :1]


# what it is fed, its arguments; of a perfect embedder what must be 1, of one that knows
# nothing what must lie between
CASES = {
    "binary": (
        lambda: album.album(2, 60), {}, ("accuracy", "f1"), {"accuracy": (0.35, 0.65)}
    ),
    "clustering": (
        album.album, {}, ("bcubed_f", "nmi"), {"bcubed_f": (0, 0.6)}
    ),
    "distractors": (
        album.hidden, {}, ("rank1", "rank10"), {"rank1": (0, 0.15)}
    ),
    "fairness": (
        album.groups, {"far": 0.1}, ("accuracy:young", "tar:old", "discrepancy"),
        {"accuracy:old": (0.3, 0.7), "tar:old": (0, 0.3)},
    ),
    "identification": (
        album.search, {}, ("rank1", "tpir@fpir=1e-1"),
        {"rank1": (0, 0.3), "tpir@fpir=1e-1": (0, 0.25)},
    ),
    "quality": (
        album.pairs, {"far": 0.1, "methods": ("norm",)}, (), {"fnmr": (0.7, 1)}
    ),
    "robustness": (
        album.pairs, {"kinds": ("blur",)}, ("accuracy", "accuracy@blur=2"),
        {"accuracy@blur=1": (0.35, 0.65)},
    ),
    "templates": (
        album.template_pairs, {}, ("tar@far=1e-1", "tar@far=1e-3", "auc"),
        {"tar@far=1e-1": (0, 0.3), "auc": (0.35, 0.65)},
    ),
    "verification": (
        album.pairs, {}, ("accuracy", "auc", "tar@far=1e-1"), {"accuracy": (0.35, 0.65)}
    ),
}  # fmt: skip


def run(name, embed=None, *, order=None):
    feed, given, *_ = CASES[name]
    module = importlib.import_module(f"jaxface.eval.{name}")
    fed = feed() if order is None else album.moved(feed(), order)
    embed = embed or good(name)
    looked = album.Network(embed) if name == "robustness" else embed
    return module.Evaluator(fed, **given).run(looked)


def good(name):
    return logits if name == "binary" else album.embedder(signal=1, noise=0.7)


def test_every_evaluator_has_a_case():
    assert set(NAMES) == set(CASES)


@pytest.mark.parametrize("name", NAMES)
def test_a_perfect_embedder_is_perfect(name):
    perfect = logits if name == "binary" else album.embedder(signal=1, noise=0)
    scalars = run(name, perfect).scalars
    assert {key: scalars[key] for key in CASES[name][2]} == pytest.approx(
        dict.fromkeys(CASES[name][2], 1.0)
    )


@pytest.mark.parametrize("name", NAMES)
def test_an_embedder_that_knows_nothing_guesses(name):
    blind = guesses if name == "binary" else album.embedder(signal=0, noise=1)
    scalars = run(name, blind).scalars
    for key, (low, high) in CASES[name][3].items():
        assert low <= scalars[key] <= high, key


@pytest.mark.parametrize("name", NAMES)
def test_work_is_how_many_images_it_has_embedded(name):
    seen = []

    def embed(source):
        seen.append(len(source))
        return good(name)(source)

    module = importlib.import_module(f"jaxface.eval.{name}")
    evaluator = module.Evaluator(CASES[name][0](), **CASES[name][1])
    run(name, embed)
    assert evaluator.work == sum(seen)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_images_is_nothing(name):
    order = np.random.default_rng(1).permutation(120)
    assert run(name).scalars == pytest.approx(run(name, order=order).scalars, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_scalars_are_finite_and_rates_lie_in_their_intervals(name):
    scalars = run(name).scalars
    assert all(type(x) is float and math.isfinite(x) for x in scalars.values())
    rates = [key for key in scalars if f"{key}_low" in scalars]
    assert next(iter(scalars)) in rates  # the headline has its interval
    for key in rates:
        assert scalars[f"{key}_low"] <= scalars[key] <= scalars[f"{key}_high"], key


@pytest.mark.parametrize("name", NAMES)
def test_two_runs_write_the_same(name):
    first, second = run(name), run(name)
    assert json.dumps(first.scalars) == json.dumps(second.scalars)
    assert first.artefacts.keys() == second.artefacts.keys()
    for key, found in first.artefacts.items():
        assert isinstance(found, np.ndarray), key
        np.testing.assert_array_equal(found, second.artefacts[key])


@pytest.mark.parametrize("name", NAMES)
def test_embeddings_of_other_images_are_refused(name):
    with pytest.raises(ValueError, match=r"\(119, \d+\)"):
        run(name, lambda source: good(name)(source)[1:])


@pytest.mark.parametrize("name", NAMES)
def test_embeddings_that_are_no_numbers_are_refused(name):
    def embed(source):
        found = good(name)(source)
        found[5] = np.nan
        return found

    with pytest.raises(ValueError, match=r"NaN|not finite"):
        run(name, embed)


def test_templates_of_one_image_are_verified_as_images_are():
    found = album.pairs()
    n = np.arange(len(found.images))
    alone = types.Templates(
        found.images, n, n, n, np.ones(len(n), np.float32), found.images.labels
    )
    pairs = types.TemplatePairs(alone, found.left, found.right, found.same)
    embed, far = album.embedder(signal=1, noise=2), (1e-1, 2e-1)
    ours = templates.Evaluator(pairs, far=far).run(embed).scalars
    theirs = verification.Evaluator(found, far=far).run(embed).scalars
    for name in ("auc", "eer", "tar@far=1e-1", "tar@far=2e-1"):
        for end in ("", "_low", "_high"):
            assert ours[name + end] == pytest.approx(theirs[name + end], abs=1e-6)
        assert ours[name + "_low"] < ours[name] < ours[name + "_high"]
