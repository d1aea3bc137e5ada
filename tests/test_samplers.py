"""The P x K stream: its batches, its turns, and that a position is all there is."""

import contextlib
import dataclasses
import logging

import numpy as np
import pytest
import tiny
from absl import logging as absl_logging

from jaxface import assembly
from jaxface.data import index, ops, samplers, stream
from jaxface.data.sources import synthetic


@dataclasses.dataclass
class Faces:
    """Who is on each image, and nothing else."""

    labels: np.ndarray

    def __len__(self):
        return len(self.labels)


def faces(counts, seed=0):
    """People with so many images each, in any order; label 0 has none."""
    labels = np.repeat(np.arange(1, len(counts) + 1), counts)
    return Faces(np.random.default_rng(seed).permutation(labels))


def batches(source, count, *, size, k, seed=0, start=0):
    order = samplers.pk(source=source, batch_size=size, seed=seed, k=k)
    steps = range(start, start + count)
    return [order(index.positions(t, batch_size=size)) for t in steps]


def test_every_batch_has_p_people_and_k_different_images_of_each():
    source = faces([4, 5, 9, 4, 7, 13, 4, 6, 8, 5])
    for found in batches(source, 60, size=24, k=4):
        assert len(set(found)) == 24
        people, counts = np.unique(source.labels[found], return_counts=True)
        assert len(people) == 6
        assert set(counts) == {4}


@pytest.mark.parametrize("people", [12, 14, 17])
def test_everyone_comes_up_once_an_epoch_and_fillers_twice(people):
    source, P = faces([3] * people), 6
    per_epoch = -(-people // P)
    found = batches(source, 5 * per_epoch, size=2 * P, k=2)
    for epoch in np.array(found).reshape(5, per_epoch, -1):
        seen = np.bincount(source.labels[epoch.ravel()])[1:] // 2
        assert seen.min() == 1
        assert (seen == 2).sum() == per_epoch * P - people
        assert seen.max() <= 2


def test_epochs_and_seeds_have_their_own_order():
    source = faces([4] * 300)
    one, two = batches(source, 2, size=1200, k=4)
    other = batches(source, 1, size=1200, k=4, seed=1)[0]
    for a, b in ((one, two), (one, other)):
        assert np.mean(source.labels[a] == source.labels[b]) < 0.03
    # and the images of a person another order in another round
    assert np.mean(np.argsort(one) == np.argsort(two)) < 0.03


def test_all_images_of_a_person_are_shown_before_any_again():
    # 10 images, 4 at a time: three epochs make a round, the last filled with two
    source = faces([10, 10, 10])
    found = np.array(batches(source, 9, size=12, k=4)).reshape(3, 36)
    for a_round in found:
        assert np.bincount(a_round).min() == 1
        assert np.bincount(a_round).max() == 2


def test_few_images_repeat_and_that_is_said(caplog):
    absl_logging.get_absl_logger().propagate = True
    with caplog.at_level(logging.WARNING):
        found = batches(faces([2, 9, 1, 9]), 8, size=16, k=4)
    assert "2 of 4 people have fewer than k=4 images" in caplog.text
    labels = faces([2, 9, 1, 9]).labels
    for batch in found:
        counts = [len(set(batch[labels[batch] == who])) for who in (1, 2, 3, 4)]
        assert counts == [2, 4, 1, 4]


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_hosts_see_slices_of_the_same_batch(hosts):
    source = synthetic.Source(identities=10, per_identity=5, size=16)
    line = ops.parse("decode|normalize")
    given = {"batch_size": 24, "seed": 3}
    order = samplers.pk(source=source, k=3, **given)
    whole = stream.Stream(source, line, order=order, **given)
    for step in (0, 1, 77):
        parts = [
            stream.Stream(source, line, order=order, host=h, hosts=hosts, **given)
            for h in range(hosts)
        ]
        joined = np.concatenate([p.plan(step)[1] for p in parts])
        np.testing.assert_array_equal(joined, whole.plan(step)[1])


def test_resuming_anywhere_is_continuing():
    source = faces([4, 3, 9, 2, 7, 13, 1, 6])
    want = batches(source, 40, size=12, k=3)
    for start in (1, 7, 8, 39):
        np.testing.assert_array_equal(
            batches(source, 40 - start, size=12, k=3, start=start), want[start:]
        )


def test_orders_of_many_sizes_are_permutations():
    sizes = np.array([1, 2, 7, 64, 65, 1000])
    which = np.repeat(np.arange(len(sizes)), sizes)
    place = np.concatenate([np.arange(n) for n in sizes])
    rounds = np.zeros_like(place)
    found = index.ordered(rounds, place, n=sizes[which], seed=0, salt=1, which=which)
    for i, n in enumerate(sizes):
        np.testing.assert_array_equal(np.sort(found[which == i]), np.arange(n))


def test_sources_tell_the_labels_they_give():
    source = synthetic.Source(identities=3, per_identity=2, size=16)
    assert source.labels.tolist() == [source.read(i)[1] for i in range(len(source))]


@pytest.mark.parametrize(
    ("source", "size", "k", "words"),
    [
        (faces([4] * 4), 16, 3, "wanted k from 2 up that divides it"),
        (faces([4] * 4), 16, 1, "wanted k from 2 up"),
        (faces([4] * 4), 16, 2, "wants 8 people in a batch of 16, the source has 4"),
        ([1, 2, 3], 2, 2, "has no `labels`; set data.sampler = 'uniform'"),
    ],
)
def test_what_does_not_fit_is_refused(source, size, k, words):
    with pytest.raises(ValueError, match=words):
        samplers.pk(source=source, batch_size=size, seed=0, k=k)


def test_a_run_draws_its_batches_by_the_sampler_of_its_config(caplog):
    absl_logging.get_absl_logger().propagate = True
    c = tiny.recipe()
    c.loss.name, c.loss.margin = "metric.triplet(mining='hard')", ""
    c.data.source = "synthetic(identities=40, per_identity=4, size=16)"
    with caplog.at_level(logging.WARNING):
        assembly.build(c)
    assert "set config.data.sampler = 'pk(k=4)'" in caplog.text
    caplog.clear()
    c.data.sampler = "pk(k=2)"
    with caplog.at_level(logging.WARNING):
        run = assembly.build(c)
    assert not caplog.text
    with contextlib.closing(run.loader(5)) as loader:
        _, counts = np.unique(next(iter(loader))["label"], return_counts=True)
    assert counts.tolist() == [2] * 8


def test_both_loaders_draw_the_same():
    c = tiny.recipe()
    c.data.sampler = "pk(k=4)"
    drawn = []
    for c.data.loader in ("host", "tfdata"):
        run = assembly.build(c)
        with contextlib.closing(run.loader(3)) as loader:
            drawn.append(next(iter(loader)))
    for name in ("label", "position"):
        np.testing.assert_array_equal(drawn[0][name], drawn[1][name])


@pytest.mark.parametrize(
    ("line", "error", "words"),
    [
        ("pq", KeyError, "did you mean 'pk'"),
        ("pk(p=3)", ValueError, r"pk takes \(source, batch_size, seed, k\)"),
        ("pk(k=2)", ValueError, "the source has 6"),
    ],
)
def test_a_wrong_line_is_refused_before_training(line, error, words):
    c = tiny.recipe()
    c.data.sampler = line
    with pytest.raises(error, match=words):
        assembly.build(c)
