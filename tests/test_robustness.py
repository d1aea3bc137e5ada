"""Robustness: nothing done is plain verification, and what is done is what is said."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_embed as nets
import test_verification as lists

from jaxface import assembly, types
from jaxface.data import ops
from jaxface.eval import folds, robustness, verification

PEOPLE = "synthetic(identities=8, per_identity=4, size=16, start=100)"


@functools.cache
def pairs():
    return assembly.flow(f"{PEOPLE}|pairs_sampled(count=60, folds=3)")


@functools.cache
def measured(kinds=("blur", "brightness", "pgd"), attack=(4.0, 16.0)):
    net = nets.network()[0]
    return robustness.Evaluator(pairs(), kinds=kinds, attack=attack).run(net), net


def test_strength_zero_is_plain_verification_to_the_bit():
    result, net = measured()
    plain = verification.Evaluator(pairs()).run(net).scalars
    wanted = [plain[f"accuracy{end}"] for end in ("", "_low", "_high")]
    for kind in ("blur", "brightness", "pgd"):
        curve = [result.artefacts[f"curve:{kind}:{k}"] for k in ("x", "y", "low")]
        high = result.artefacts[f"curve:{kind}:high"]
        (at,) = np.flatnonzero(curve[0] == 0)
        assert [curve[1][at], curve[2][at], high[at]] == wanted
    assert next(iter(result.scalars)) == "accuracy"
    assert result.scalars["accuracy"] == plain["accuracy"]


def test_curves_are_the_scalars_in_ascending_order():
    result, _ = measured()
    for kind, strengths in {**robustness.CURVES, "pgd": (4.0, 16.0)}.items():
        if f"curve:{kind}:x" not in result.artefacts:
            continue
        x = result.artefacts[f"curve:{kind}:x"]
        np.testing.assert_array_equal(x, sorted([0, *strengths]))
        for end in ("y", "low", "high"):
            name = f"accuracy@{kind}=%g" + ("" if end == "y" else f"_{end}")
            got = [result.scalars[name % at] for at in x if at]
            want = result.artefacts[f"curve:{kind}:{end}"]
            np.testing.assert_array_equal(got, want[x != 0])


def test_ops_that_do_nothing_cost_nothing():
    more = {"nothing": {1: "rotate(0)", 2: "brightness(1)", 3: "cutout(5, p=0.0)"}}
    evaluator = robustness.Evaluator(pairs(), kinds=("nothing",), more=more)
    curve = evaluator.run(nets.network()[0]).artefacts["curve:nothing:y"]
    assert len(set(curve)) == 1


def test_a_point_is_what_loops_find_with_the_clean_pairs_threshold():
    result, net = measured()
    p = pairs()
    line = ops.parse("decode|blur(2, 2)|normalize")
    z = line.numbers(np.zeros(1), seed=0)[0]
    blurred = np.stack([line.numpy(p.images.read(i)[0], z) for i in p.right])
    left = net(p.images)[p.left]
    right = np.asarray(nets.asked(net.features, blurred))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (left, right)]
    scores = np.sum(unit[0] * unit[1], axis=1)
    clean = verification.Evaluator(p).run(net).artefacts["scores"]
    threshold = folds.kfold_accuracy(clean, p.same, p.fold).threshold
    right_ones = [
        np.mean([(scores[i] > threshold[k]) == p.same[i] for i in where])
        for k in range(3)
        for where in [np.flatnonzero(p.fold == k)]
    ]
    assert result.scalars["accuracy@blur=2"] == pytest.approx(np.mean(right_ones))


def test_an_attack_stays_in_its_box_and_turns_the_cosines():
    net, p = nets.network()[0], pairs()
    source = types.Picked(p.images, p.right)
    images, mask = next(net.inputs(source))
    left = net(p.images)[p.left[: len(mask)]]
    way = np.where(p.same[: len(mask)], -1.0, 1.0).astype(np.float32)
    low, high = net.span
    reach = 8 * (high - low) / 255
    changed = robustness.perturb(
        net.features, images, left, way, reach=reach, ends=(low, high),
        steps=np.int32(10), key=jax.random.key(0),
    )  # fmt: skip
    # on all devices, each its part
    assert len(images.sharding.device_set) == 8
    assert changed.sharding.is_equivalent_to(images.sharding, 4)
    moved = np.abs(np.asarray(changed) - np.asarray(images))
    assert moved.max() <= reach[0] + 1e-6
    assert moved.max() >= 0.9 * reach[0]
    assert np.asarray(changed).min() >= low[0]
    assert np.asarray(changed).max() <= high[0]
    before, after = (cosines(left, net.vectors(x)) for x in (images, changed))
    assert (way * (after - before) > 0).all()


def test_what_is_rounded_is_a_picture_of_8_bits_within_the_box():
    rng = np.random.default_rng(0)
    low, high = (np.array(end, np.float32) for end in ([-2, -1, -2.1], [2.2, 1, 2.6]))
    grey = rng.integers(0, 256, (4, 6, 6, 3)).astype(np.float32)
    grey[2:] = (grey[2:] + rng.uniform(size=grey[2:].shape)).clip(0, 255)  # resized
    moved = (grey + rng.uniform(-2, 2, grey.shape)).clip(0, 255)
    eaten = [np.float32(low + x * (high - low) / 255) for x in (moved, grey)]
    got = robustness.rounded(*eaten, levels=2.0, ends=(low, high))
    got = 255 * (np.asarray(got) - low) / (high - low)
    np.testing.assert_allclose(got, np.round(got), atol=1e-3)
    assert np.abs(got - grey).max() <= 2 + 1e-3
    assert got.min() > -1e-3
    assert got.max() < 255 + 1e-3
    np.testing.assert_allclose(got[:2], np.round(moved[:2]), atol=1e-3)


def test_rounding_weakens_an_attack_and_does_not_end_it():
    net, p = nets.network()[0], pairs()
    left = net(p.images)[p.left]
    way = np.where(p.same, -1, 1)
    before = way * cosines(left, net(p.images)[p.right])
    free, whole = (
        way * cosines(left, robustness.attack(net, p, left, levels=1, steps=5, whole=w))
        for w in (False, True)
    )
    assert before.mean() < whole.mean() < free.mean()


def cosines(a, b):
    return np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_against_a_line_the_attack_finds_the_corner_of_the_box():
    """Of (w x, 1) against (1, 0) the cosine grows with w x: the best is known."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(4, 4, 3)).astype(np.float32)
    images = rng.uniform(-0.8, 0.8, (3, 4, 4, 3)).astype(np.float32)

    def features(x):
        return jnp.stack([jnp.einsum("bhwc,hwc->b", x, w), jnp.ones(len(x))], axis=1)

    way = np.array([1, -1, 0], np.float32)
    reach, one = np.array([0.1, 0.2, 0.3], np.float32), np.ones(3, np.float32)
    changed = robustness.perturb(
        jax.tree_util.Partial(features), images, np.eye(2, dtype=np.float32)[[0, 0, 0]],
        way, reach=reach, ends=(-one, one), steps=np.int32(6), key=jax.random.key(1),
    )  # fmt: skip
    corner = images + way[:, None, None, None] * (np.sign(w) * reach)[None]
    np.testing.assert_allclose(changed, np.clip(corner, -1, 1), atol=1e-6)


def test_a_stronger_attack_lowers_accuracy_further():
    y = measured()[0].artefacts["curve:pgd:y"]
    assert y[0] > y[1] >= y[2]
    assert y[2] < 0.2


def test_one_image_per_pair_is_embedded_in_its_place():
    """Images that are left here and right there keep both embeddings."""
    p, e = lists.faces()
    judge = robustness._Judge(p, e)
    assert judge(e[p.right]).value == judge.clean.value
    everybody = np.broadcast_to(e[:1], e[p.right].shape)
    scores = cosines(e[p.left].astype(float), everybody)
    plain = verification.Evaluator(p).run(lambda images: e).artefacts["scores"]
    threshold = folds.kfold_accuracy(plain, p.same, p.fold).threshold[p.fold]
    assert judge(everybody).value == np.mean((scores > threshold) == p.same)


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"kinds": ("blurr",)}, KeyError, "did you mean 'blur'"),
        ({"kinds": ("x",), "more": {"x": {}}}, ValueError, "wanted one or more"),
        ({"kinds": ("x",), "more": {"x": {0: "flip"}}}, ValueError, "not 0"),
        ({"attack": (-1.0,)}, ValueError, "wanted all above 0"),
        ({"steps": 0}, ValueError, "wanted all above 0"),
        ({"attack": (0.5,)}, ValueError, "8 bits hold whole grey levels"),
    ],
)
def test_impossible_strengths_are_refused(given, error, says):
    with pytest.raises(error, match=says):
        robustness.Evaluator(lists.faces()[0], **given)


def test_a_function_that_cannot_be_looked_into_is_refused():
    p, e = lists.faces()
    with pytest.raises(TypeError, match=r"wants a types\.Network"):
        robustness.Evaluator(p).run(lambda images: e)


@pytest.mark.slow
def test_every_curve_can_be_made_and_names_its_unit():
    assert robustness.UNITS.keys() == {*robustness.CURVES, "pgd"}
    two = dataclasses.replace(pairs(), fold=pairs().fold % 2)
    result = robustness.Evaluator(two, attack=(1.0,)).run(nets.network()[0])
    for kind in robustness.UNITS:
        y, low, high = (
            result.artefacts[f"curve:{kind}:{k}"] for k in ["y", "low", "high"]
        )
        assert (low <= y).all()
        assert (y <= high).all()
