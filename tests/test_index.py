"""The endless stream is a pure function of seed and position."""

import tracemalloc

import numpy as np
import pytest

from jaxface.data import index


@pytest.mark.parametrize("n", [1, 2, 5, 63, 64, 65, 1000])
@pytest.mark.parametrize("seed", [0, -1, 2**70])
def test_every_epoch_is_a_permutation(n, seed):
    found = index.examples(np.arange(3 * n), n=n, seed=seed).reshape(3, n)
    np.testing.assert_array_equal(np.sort(found, axis=1), np.tile(np.arange(n), (3, 1)))


def test_epochs_and_seeds_have_their_own_order():
    n = 1000
    first, second = index.examples(np.arange(2 * n), n=n, seed=0).reshape(2, n)
    other = index.examples(np.arange(n), n=n, seed=1)
    for a, b in [(first, second), (first, other), (first, np.arange(n))]:
        assert np.mean(a == b) < 0.01  # one in n by chance


def test_every_order_is_equally_likely():
    n, epochs = 4, 4800
    found = index.examples(np.arange(n * epochs), n=n, seed=0).reshape(epochs, n)
    orders, counts = np.unique(found, axis=0, return_counts=True)
    assert len(orders) == 24
    # chi-square with 23 degrees of freedom exceeds 59 once in 20,000
    assert np.sum((counts - 200) ** 2 / 200) < 59


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_slices_of_the_hosts_are_the_batch(hosts):
    parts = [
        index.positions(7, batch_size=24, host=h, hosts=hosts) for h in range(hosts)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), np.arange(168, 192))


def test_an_example_depends_on_its_position_alone():
    every = index.examples(np.arange(500), n=123, seed=5)
    some = np.array([3, 499, 122, 123, 3])
    np.testing.assert_array_equal(index.examples(some, n=123, seed=5), every[some])


def test_millions_of_records_cost_nothing_to_open():
    tracemalloc.start()
    found = index.examples(np.arange(10**12, 10**12 + 64), n=42_000_000, seed=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(set(found)) == 64
    assert peak < 1e6


def test_uniform_numbers_depend_on_position_seed_and_salt():
    p = np.arange(20_000)
    u = index.uniform(p, seed=0, count=3, salt=1)
    np.testing.assert_array_equal(
        index.uniform(p[77:80], seed=0, count=2, salt=1), u[77:80, :2]
    )
    others = [index.uniform(p, seed=s, count=3, salt=t) for s, t in [(1, 1), (0, 2)]]
    columns = np.concatenate([u, *others], axis=1)
    assert columns.min() >= 0
    assert columns.max() < 1
    # five standard errors of a mean, a variance and a correlation
    np.testing.assert_allclose(columns.mean(0), 0.5, atol=5 * 0.289 / 141)
    np.testing.assert_allclose(columns.var(0), 1 / 12, atol=5 * 0.0745 / 141)
    np.testing.assert_allclose(np.corrcoef(columns.T), np.eye(9), atol=5 / 141)


def test_substitutes_are_spread_over_the_examples():
    found = [index.substitute(p, 1, n=10, seed=0) for p in range(1000)]
    assert np.bincount(found, minlength=10).min() > 60  # 100 +- 9.5 expected
    assert found[5] == index.substitute(5, 1, n=10, seed=0)
    assert found != [index.substitute(p, 2, n=10, seed=0) for p in range(1000)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 10, "hosts": 4}, "multiple of 4"),
        ({"batch_size": 0}, "multiple of 1"),
        ({"batch_size": 8, "host": 2, "hosts": 2}, "host 2 of 2"),
    ],
)
def test_hosts_that_cannot_share_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        index.positions(0, **wrong)


def test_an_empty_stream_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        index.examples(np.arange(3), n=0, seed=0)
