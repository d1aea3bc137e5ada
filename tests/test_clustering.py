"""Clusters against SciPy, scikit-learn and the textbook's example."""

import album
import numpy as np
import pytest
from scipy.cluster import hierarchy
from sklearn import metrics

from jaxface.eval import clustering, linkage


def unit(n, seed=0, dim=6):
    found = np.random.default_rng(seed).normal(size=(n, dim))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def together(ids):
    return ids[:, None] == ids[None, :]


def test_bcubed_by_hand():
    # {a a a b} {b b c}: recall of b is split, c stands among others
    cluster = np.array([0, 0, 0, 0, 1, 1, 1])
    label = np.array([5, 5, 5, 6, 6, 6, 7])
    precision, recall = clustering.bcubed(cluster, label)
    np.testing.assert_allclose(precision, np.array([9, 9, 9, 3, 8, 8, 4]) / 12)
    np.testing.assert_allclose(recall, np.array([3, 3, 3, 1, 2, 2, 3]) / 3)
    scalars = clustering.scored(cluster, label)
    p, r = 50 / 84, 17 / 21
    assert scalars["bcubed_precision"] == pytest.approx(p)
    assert scalars["bcubed_recall"] == pytest.approx(r)
    assert scalars["bcubed_f"] == pytest.approx(2 * p * r / (p + r))


@pytest.mark.parametrize("seed", range(20))
def test_bcubed_is_its_definition(seed):
    rng = np.random.default_rng(seed)
    cluster, label = rng.integers(0, rng.integers(1, 9, (2, 1)), (2, 25))
    own, theirs = together(cluster), together(label)
    precision, recall = clustering.bcubed(cluster, label)
    np.testing.assert_allclose(precision, (own & theirs).sum(1) / own.sum(1))
    np.testing.assert_allclose(recall, (own & theirs).sum(1) / theirs.sum(1))
    wanted = metrics.normalized_mutual_info_score(label, cluster)
    assert clustering.nmi(cluster, label) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(
    ("cluster", "label", "wanted"),
    [([0, 0, 0], [1, 1, 1], 1), ([0, 1, 2], [0, 0, 0], 0), ([0, 1, 2], [5, 3, 4], 1)],
)
def test_nmi_where_nothing_varies(cluster, label, wanted):
    assert clustering.nmi(np.array(cluster), np.array(label)) == pytest.approx(wanted)
    assert metrics.normalized_mutual_info_score(label, cluster) == pytest.approx(wanted)


@pytest.mark.parametrize("n", [2, 3, 40, 150])
def test_linkage_is_scipys(n):
    e = unit(n, seed=n)
    tree = linkage.average(e)
    wanted = hierarchy.linkage(e, "average", metric="cosine")
    np.testing.assert_allclose(np.sort(1 - tree.cos), wanted[:, 2], atol=1e-5)
    for distance in np.quantile(wanted[:, 2], [0.2, 0.5, 0.9]) + 1e-4:
        theirs = hierarchy.fcluster(wanted, distance, "distance")
        ours = linkage.cut(tree, threshold=1 - distance)
        np.testing.assert_array_equal(together(ours), together(theirs))
        assert set(ours) == set(range(ours.max() + 1))


def test_the_ends_of_a_cut():
    tree = linkage.average(unit(30))
    assert linkage.cut(tree, threshold=1.1).tolist() == list(range(30))
    assert not linkage.cut(tree, threshold=-1.1).any()


def test_a_half_is_cut_where_the_other_half_says():
    images, embed = album.album(), album.embedder(signal=1, noise=0.9)
    found = clustering.Evaluator(images).run(embed)
    e, cluster, who = (found.artefacts[k] for k in ("embedding", "cluster", "identity"))
    people = np.random.default_rng(0).permutation(30)
    halves = [np.flatnonzero(np.isin(who, people[k::2])) for k in range(2)]
    assert not set(cluster[halves[0]]) & set(cluster[halves[1]])
    given = []
    for half in halves:
        part = album.Album(images.number[half], images.labels[half])
        best = clustering._best(linkage.average(e[half]), who[half])
        alone = clustering.Evaluator(part, threshold=best).run(embed).scalars
        given.append((best, alone["bcubed_f"]))
    assert found.scalars["threshold"] == pytest.approx(np.mean([t for t, _ in given]))
    # what a half finds best for itself is no worse than what it was cut at
    assert found.scalars["bcubed_f"] <= max(f for _, f in given) + 1e-9


def test_intervals_of_perfect_heaps_still_know_how_few_people_there_were():
    label = np.repeat(np.arange(10), 50)
    scalars = clustering.scored(label, label)
    assert scalars["bcubed_f"] == scalars["bcubed_f_high"] == 1
    assert scalars["bcubed_f_low"] == pytest.approx(0.7225, abs=1e-3)  # Wilson, 10


def test_too_few_people_are_refused():
    with pytest.raises(ValueError, match="12 images of 3 people; wanted 4"):
        clustering.Evaluator(album.album(people=3))
    clustering.Evaluator(album.album(people=3), threshold=0.5)
