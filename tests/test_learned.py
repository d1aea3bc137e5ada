"""A learned quality: what an independent ridge finds, and nobody judged by himself."""

import jax
import numpy as np
import pytest
from sklearn import linear_model, pipeline, preprocessing

from jaxface import convert, foreign
from jaxface.convert import network
from jaxface.data import ops
from jaxface.data.sources import folder
from jaxface.eval import learned, rejection

SCALE = "normalize(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))"


def faces(seed=0, *, people=40, each=6, D=64):
    """Embeddings; bad images turn away from their person, to one place for all."""
    rng = np.random.default_rng(seed)
    person = np.repeat(np.arange(people), each)
    bad = rng.uniform(size=len(person))
    centre = rng.normal(size=(people, D))
    e = centre[person] + 0.3 * rng.normal(size=(len(person), D))
    e = e + 8 * bad[:, None] ** 2 * np.eye(D)[0]
    return e / np.linalg.norm(e, axis=1, keepdims=True), person, bad


def test_margin_is_what_loops_find():
    e, person, _ = faces(people=4, each=3)
    e, person = np.vstack([5 * e, e[:1]]), np.append(person, 9)
    unit = e / np.linalg.norm(e, axis=1, keepdims=True)
    for i, got in enumerate(learned.margin(e, person)):
        cos = unit @ unit[i]
        own = (person == person[i]) & (np.arange(len(e)) != i)
        want = cos[own].mean() - cos[person != person[i]].mean() if own.any() else None
        assert np.isnan(got) if want is None else got == pytest.approx(want)


@pytest.mark.parametrize("ridge", [1e-3, 300.0])
def test_the_head_is_scikit_learns_ridge(ridge):
    e, person, _ = faces()
    x, y = learned.features(e * 3), learned.margin(e, person)
    x = x[:, :-1]  # a length that does not vary is no matter of oracles
    told = linear_model.Ridge(alpha=ridge)
    want = pipeline.make_pipeline(preprocessing.StandardScaler(), told).fit(x, y)
    got = learned.fit(x, np.append(y[:-1], np.nan), ridge=ridge)
    assert np.abs(got(x) - want.predict(x)).max() < 0.05  # one row less
    got = learned.fit(x, y, ridge=ridge)
    np.testing.assert_allclose(got(x), want.predict(x), atol=1e-9)


def test_nobody_is_scored_by_a_head_that_saw_them():
    """The head of each part is fitted once more without it; and it is deaf to it."""
    e, person, _ = faces()
    rng = np.random.default_rng(1)
    e = e * rng.uniform(1, 2, (len(e), 1))
    found = learned.cross_fitted(e, person, parts=4)
    own = np.isin(person, np.arange(40)[1::4])
    head = learned.fit(learned.features(e[~own]), learned.margin(e[~own], person[~own]))
    np.testing.assert_allclose(found[own], head(learned.features(e[own])))
    spoilt = np.where((person == 5)[:, None], -e, e)
    again = learned.cross_fitted(spoilt, person, parts=4)
    np.testing.assert_array_equal(
        again[own & (person != 5)], found[own & (person != 5)]
    )
    assert (again[~own] != found[~own]).any()


def test_it_ranks_the_bad_below_the_good_where_length_tells_nothing():
    e, person, bad = faces(people=60)
    score = learned.cross_fitted(e, person)
    low, high = score[bad > 0.7], score[bad < 0.3]
    assert np.mean(low[:, None] < high) > 0.9
    margin = learned.margin(e, person)
    wrong = margin < np.quantile(margin, 0.1)
    chance = np.random.default_rng(0).normal(size=len(e))
    told, blind = (
        rejection.area_under(*rejection.error_against_reject(q, wrong), most=0.3)
        for q in (score, chance)
    )
    assert told < 0.6 * blind


def test_labels_dealt_at_random_teach_nothing():
    e, person, bad = faces(people=60)
    dealt = np.random.default_rng(0).permutation(person)
    told, blind = (learned.cross_fitted(e, who) for who in (person, dealt))
    assert np.corrcoef(told, bad)[0, 1] < -0.7
    assert abs(np.corrcoef(blind, bad)[0, 1]) < 0.3


@pytest.mark.slow
@pytest.mark.real_data
def test_blurred_faces_rank_below_their_originals(real_data):
    weights = foreign.read(real_data / "weights" / "foamliu_mobilefacenet.pt")
    found = convert.from_tensors("mobilefacenet.foamliu", weights)
    model = network.Network(found.line).model
    faces = folder.Source(str(real_data / "celeba_train_112.tar"))
    some = np.concatenate([np.flatnonzero(faces.labels == k)[:5] for k in range(40)])
    lines = [ops.parse(f"decode{blur}|{SCALE}") for blur in ("", "|blur(3, 3)")]
    z = [line.numbers(np.arange(len(some)), seed=0) for line in lines]
    odd = np.arange(len(some)) % 2
    images = np.stack([
        lines[k].numpy(faces.read(i)[0], z[k][n])
        for n, (i, k) in enumerate(zip(some, odd, strict=True))
    ])  # fmt: skip
    e = np.asarray(jax.jit(model.apply)(found.variables, images))
    score = learned.cross_fitted(e, faces.labels[some])
    learnt, length = (
        np.mean(of[odd == 1][:, None] < of[odd == 0])
        for of in (score, np.linalg.norm(e, axis=1))
    )
    assert learnt > 0.9
    assert learnt > length


def test_too_few_people_are_refused():
    e, person, _ = faces(people=19)
    with pytest.raises(ValueError, match="19 of 19 people have two images or more"):
        learned.cross_fitted(e, person)
    with pytest.raises(ValueError, match="1 rows to fit on"):
        learned.fit(e[:3], np.array([0.1, np.nan, np.nan]))
