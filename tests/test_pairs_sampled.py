import collections
import dataclasses

import numpy as np
import pytest

from jaxface.data.sources import pairs_sampled


@dataclasses.dataclass
class Labelled:
    """A source whose images are never to be read."""

    labels: np.ndarray
    color: str = "bgr"
    num_classes: int = 99

    def __len__(self):
        return len(self.labels)

    def read(self, i):
        return str(i).encode(), int(self.labels[i])

    def name(self, i):
        return f"image {i}"


@dataclasses.dataclass
class Locked(Labelled):
    def read(self, i):
        raise AssertionError("labels suffice")


def uneven():
    """Shuffled labels of 40 people with 1 to 40 images."""
    labels = np.repeat(np.arange(40) * 3, np.arange(40) + 1)
    return np.random.default_rng(0).permutation(labels)


@pytest.mark.parametrize(("count", "folds"), [(600, 10), (214, 4), (100, 1)])
def test_sampled_pairs_keep_their_laws(count, folds):
    labels = uneven()
    found = pairs_sampled.pairs(Locked(labels), count=count, folds=folds)
    ends = found.images.which[np.stack([found.left, found.right], 1)]
    assert len(found) == count
    assert found.same.sum() == count // 2
    np.testing.assert_array_equal(labels[ends], found.people)
    np.testing.assert_array_equal(found.people[:, 0] == found.people[:, 1], found.same)
    assert (ends[:, 0] != ends[:, 1]).all()
    assert len(np.unique(np.sort(ends, axis=1), axis=0)) == count
    where = [set(found.people[found.fold == k].flat) for k in range(folds)]
    assert len(set().union(*where)) == sum(len(w) for w in where)
    sizes = np.bincount(found.fold)
    assert sizes.max() - sizes.min() <= 2
    np.testing.assert_array_equal(np.unique(ends), found.images.which)


def test_sampled_images_are_the_sources():
    found = pairs_sampled.pairs(Labelled(uneven()), count=60, folds=3)
    at = int(found.images.which[5])
    assert found.images.read(5) == (str(at).encode(), found.images.images.labels[at])
    assert found.images.name(5) == f"image {at}"
    assert found.images.color == "bgr"


def test_a_draw_depends_on_the_seed_alone():
    def ends(seed):
        found = pairs_sampled.pairs(Labelled(uneven()), count=80, folds=2, seed=seed)
        return found.images.which[found.left].tolist()

    assert ends(1) == ends(1) != ends(2)


def test_every_pair_there_is_can_be_drawn():
    labels = np.repeat(np.arange(4), 3)  # 2 folds of 2 people: 6 genuine, 9 others
    found = pairs_sampled.pairs(Labelled(labels), count=24, folds=2)
    ends = np.stack([found.left, found.right], 1)[found.same]
    assert len({tuple(sorted(e)) for e in ends.tolist()}) == 12
    with pytest.raises(ValueError, match="fold 0: its 2 people have 6 genuine pairs"):
        pairs_sampled.pairs(Labelled(labels), count=26, folds=2)


def test_genuine_pairs_are_spread_over_people():
    labels = np.repeat(np.arange(10), [100] + [3] * 9)
    found = pairs_sampled.pairs(Labelled(labels), count=60, folds=1)
    drawn = collections.Counter(found.people[found.same][:, 0].tolist())
    assert sorted(drawn.values()) == [3] * 10


def test_impostor_pairs_are_uniform():
    labels = np.array([0, 0, 0, 1, 2, 2])
    drawn = collections.Counter()
    for seed in range(1100):
        found = pairs_sampled.pairs(Labelled(labels), count=2, folds=1, seed=seed)
        drawn[tuple(found.images.which[[found.left[1], found.right[1]]])] += 1
    assert len(drawn) == 11  # 3 * 1 + 3 * 2 + 1 * 2
    assert min(drawn.values()) > 60  # 4 standard deviations below 100


@pytest.mark.parametrize(
    ("sizes", "folds", "says"),
    [
        ([5], 1, "1 people, 1 of them"),
        ([1] * 30, 2, "30 people, 0 of them with two images"),
        ([4] * 10, 10, "10 folds need 20 and 10"),
    ],
)
def test_too_few_people_are_refused(sizes, folds, says):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    with pytest.raises(ValueError, match=says):
        pairs_sampled.pairs(Labelled(labels), count=20, folds=folds)


@pytest.mark.parametrize(("count", "folds"), [(21, 1), (4, 10), (0, 1), (20, 0)])
def test_counts_that_cannot_be_halved_are_refused(count, folds):
    with pytest.raises(ValueError, match="wanted an even count"):
        pairs_sampled.pairs(Labelled(uneven()), count=count, folds=folds)
