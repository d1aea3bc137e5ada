import dataclasses

import numpy as np
import oracles_metrics as oracles
import pytest
from absl import logging
from sklearn.model_selection import KFold

from jaxface import types
from jaxface.eval import binary, curves, decisions, folds, verification


@dataclasses.dataclass
class Numbers:
    """A source of nothing but labels."""

    labels: np.ndarray
    color: str = "rgb"
    num_classes: int = 9

    def __len__(self):
        return len(self.labels)

    def read(self, i):
        return b"", int(self.labels[i])

    def name(self, i):
        return f"image {i}"


@dataclasses.dataclass
class Mute(Numbers):
    """The same without `labels`, which the contract does not promise."""

    def __post_init__(self):
        self.hidden = self.__dict__.pop("labels")

    def __len__(self):
        return len(self.hidden)

    def read(self, i):
        return b"", int(self.hidden[i])


def faces(seed=0, *, people=30, folds=5, noise=0.8):
    """Pairs over 4 images of each person, and embeddings [n, 8] of them."""
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(people), 4)
    left = rng.permutation(len(label))
    same = np.arange(len(label)) % 2 == 0
    right = np.where(same, left ^ 1, (left + 4 * rng.integers(1, people)) % len(label))
    embedding = rng.normal(size=(people, 8))[label]
    embedding = embedding + noise * rng.normal(size=embedding.shape)
    pairs = types.Pairs(
        images=Numbers(label),
        left=left,
        right=right,
        same=same,
        fold=np.arange(len(label)) // (len(label) // folds),
        people=label[np.stack([left, right], 1)],
    )
    return pairs, embedding.astype(np.float32)


def test_accuracy_is_insightfaces():
    pairs, embedding = faces()
    result = verification.Evaluator(pairs).run(lambda images: embedding)
    unit = embedding.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    splits = KFold(5).split(pairs.left)
    accuracy, threshold = oracles.kfold(
        unit[pairs.left], unit[pairs.right], pairs.same, splits
    )
    got = result.scalars
    assert (got["accuracy"], got["accuracy_std"]) == (accuracy.mean(), accuracy.std())
    np.testing.assert_allclose(got["threshold"], np.mean(1 - threshold / 2))
    assert 0.6 < got["accuracy"] < 1


def test_scores_are_cosines_and_length_is_nothing():
    pairs, embedding = faces()
    length = np.random.default_rng(1).uniform(0.1, 9, (len(embedding), 1))
    evaluator = verification.Evaluator(pairs)
    a = evaluator.run(lambda images: embedding)
    b = evaluator.run(lambda images: embedding * length)
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    cos = np.sum(unit[pairs.left] * unit[pairs.right], axis=1)
    np.testing.assert_allclose(a.artefacts["scores"], cos, atol=1e-6)
    np.testing.assert_allclose(b.artefacts["scores"], cos, atol=1e-6)


def test_scalars_agree_with_the_artefacts():
    pairs, embedding = faces()
    result = verification.Evaluator(pairs).run(lambda images: embedding)
    s, a = result.scalars, result.artefacts
    counts = decisions.confusion(a["accepted"], a["same"])
    assert (s["pairs"], s["folds"], s["people"]) == (120, 5, 30)
    assert s["genuine"] + s["impostors"] == s["pairs"]
    np.testing.assert_allclose(s["accuracy"], np.mean(a["correct"]))
    assert s["precision"] == counts.tp / np.sum(a["accepted"])
    assert s["recall"] == counts.tp / s["genuine"]
    np.testing.assert_allclose(s["auc"], curves.auc(a["scores"], a["same"]))
    lfw = folds.view2(a["scores"], a["same"], a["fold"])
    assert (s["view2"], s["view2_error"]) == (lfw.mean, lfw.standard_error)
    for rate in ("accuracy", "auc", "precision", "recall", "f1", "tar@far=1e-1"):
        assert s[f"{rate}_low"] < s[rate] < s[f"{rate}_high"]


def test_far_below_one_impostor_is_named_not_reported(monkeypatch):
    said = []
    monkeypatch.setattr(logging, "info", lambda text, *args: said.append(text % args))
    pairs, embedding = faces()
    evaluator = verification.Evaluator(pairs, far=(0.1, 0.025, 1e-3, 1e-4))
    scalars = evaluator.run(lambda images: embedding).scalars
    assert said == [
        "TAR at FAR 1e-3, 1e-4 is left out: 60 impostor pairs cannot show it"
    ]
    reported = [name for name in scalars if name.startswith("tar@")]
    assert reported[::3] == ["tar@far=1e-1", "tar@far=2.5e-2"]


def test_order_within_folds_is_nothing():
    pairs, embedding = faces()
    order = np.random.default_rng(2).permutation(len(pairs))
    fields = ("left", "right", "same", "fold", "people")
    moved = {name: getattr(pairs, name)[order] for name in fields}
    a, b = (
        verification.Evaluator(p).run(lambda images: embedding).scalars
        for p in (pairs, dataclasses.replace(pairs, **moved))
    )
    assert a == pytest.approx(b, rel=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_an_embedding_without_direction_is_refused(value):
    pairs, embedding = faces()
    embedding[7] = value
    with pytest.raises(ValueError, match=r"1 of 120 .* the first of image 7"):
        verification.Evaluator(pairs).run(lambda images: embedding)


def test_embeddings_for_other_images_are_refused():
    pairs, embedding = faces()
    with pytest.raises(ValueError, match=r"\(119, 8\) for 120 images"):
        verification.Evaluator(pairs).run(lambda images: embedding[1:])


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("left", np.full(120, 120), "images .* to 120 of 120"),
        ("fold", np.zeros(3, int), r"pairs.fold is \(3,\); wanted \(120,\)"),
        ("same", np.ones(120, bool), "120 genuine of 120"),
    ],
)
def test_lists_that_are_none_are_refused(field, value, says):
    pairs, _ = faces()
    with pytest.raises(ValueError, match=says):
        verification.Evaluator(dataclasses.replace(pairs, **{field: value}))


def enrolled(seed, n=50):
    """Images of which a fifth are the enrolled person, and logits [n, 1]."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) % 5 == 0).astype(np.int64)
    return labels, (2 * labels - 1 + rng.normal(size=n))[:, None]


@pytest.mark.parametrize("source", [Numbers, Mute])
def test_binary_counts_what_lies_above_one_half(source):
    labels, logits = enrolled(0)
    result = binary.Evaluator(source(labels)).run(lambda images: logits)
    s = result.scalars
    above = 1 / (1 + np.exp(-logits[:, 0])) > 0.5
    assert s["tp"] == np.sum(above & (labels == 1))
    assert s["fp"] == np.sum(above & (labels == 0))
    assert s["tp"] + s["fp"] + s["tn"] + s["fn"] == s["count"] == 50
    assert (s["positives"], s["majority"]) == (10, 0.8)
    assert s["accuracy"] == np.mean(above == (labels == 1))
    np.testing.assert_allclose(
        result.artefacts["scores"], 1 / (1 + np.exp(-logits[:, 0]))
    )


def test_pooled_runs_are_one_run_over_all_images():
    runs = [enrolled(seed) for seed in range(3)]
    found = [binary.Evaluator(Numbers(y)).run(lambda _, z=z: z) for y, z in runs]
    labels, logits = (np.concatenate(part) for part in zip(*runs, strict=True))
    whole = binary.Evaluator(Numbers(labels)).run(lambda images: logits)
    assert binary.pool([r.scalars for r in found]) == whole.scalars


def test_pooling_is_associative_and_each_run_keeps_its_majority():
    few = binary.Evaluator(Numbers(np.array([1, 0, 0, 0])))
    many = binary.Evaluator(Numbers(np.array([1, 1, 1, 0])))
    a, b = (e.run(lambda images: np.ones((4, 1))).scalars for e in (few, many))
    assert binary.pool([a, b])["majority"] == 0.75
    assert binary.pool([binary.pool([a, b]), a]) == binary.pool([a, b, a])


def test_binary_refuses_other_labels_and_logits():
    with pytest.raises(ValueError, match="wanted 0 and 1"):
        binary.Evaluator(Numbers(np.array([0, 1, 2])))
    evaluator = binary.Evaluator(Numbers(np.array([0, 1])))
    with pytest.raises(ValueError, match=r"wanted \[2, 1\]"):
        evaluator.run(lambda images: np.zeros((2, 3)))
    with pytest.raises(ValueError, match="1 of them NaN"):
        evaluator.run(lambda images: np.array([[0.0], [np.nan]]))
    with pytest.raises(ValueError, match="no runs"):
        binary.pool([])
