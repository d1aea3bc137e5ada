"""What every sampler owes, by listing them, and what each promises besides."""

import numpy as np
import pytest

from jaxface import spec
from jaxface.data import index, samplers

COUNTS = [4, 3, 9, 2, 7, 13, 1, 6]
N = sum(COUNTS)
BATCH = 24


class Sets:
    """Who is on each image, and where the merged sets begin."""

    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(8), COUNTS))
    starts = np.array([0, 5, N])

    def __len__(self):
        return N


def scores(tmp_path):
    path = tmp_path / "scores.npy"
    np.save(path, np.random.default_rng(1).permutation(N).astype(np.float32))
    return str(path)


# The arguments of each; a new sampler has its line here.
MAKE = {
    "uniform": lambda tmp_path: {},
    "balanced": lambda tmp_path: {},
    "mixed": lambda tmp_path: {"weights": (3, 1)},
    "curriculum": lambda tmp_path: {"path": scores(tmp_path), "epochs": 3},
    "pk": lambda tmp_path: {"k": 3},
}


@pytest.fixture(params=[name for name in spec.public(samplers) if name != "Order"])
def order(request, tmp_path):
    make = getattr(samplers, request.param)
    given = MAKE[request.param](tmp_path)
    return make(source=Sets(), batch_size=BATCH, seed=3, **given)


def test_an_order_is_a_function_of_the_position_alone(order):
    whole = order(np.arange(40 * BATCH))
    assert whole.min() >= 0
    assert whole.max() < N
    for start in (0, 1, 7, 500, 959):  # resuming anywhere is continuing
        np.testing.assert_array_equal(order(np.arange(start, 960)), whole[start:])
    for hosts in (1, 2, 3, 4, 6, 8):  # who share each batch
        given = {"batch_size": BATCH, "hosts": hosts}
        slices = [index.positions(17, host=h, **given) for h in range(hosts)]
        joined = np.concatenate([order(s) for s in slices])
        np.testing.assert_array_equal(joined, whole[17 * BATCH : 18 * BATCH])


def test_everything_comes_up_in_the_long_run(order):
    assert set(order(np.arange(60 * N))) == set(range(N))


def test_balanced_has_everybody_once_a_round_and_their_images_in_turn():
    order = samplers.balanced(source=Sets(), batch_size=BATCH, seed=0)
    rounds = order(np.arange(8 * 26)).reshape(26, 8)
    people = Sets.labels[rounds]
    np.testing.assert_array_equal(np.sort(people), [range(8)] * 26)
    assert len({tuple(p) for p in people}) > 20  # in other orders
    images, times = np.unique(rounds[people == 5], return_counts=True)
    assert (len(images), set(times)) == (13, {2})


def test_mixed_keeps_the_weights_in_every_round_and_shows_each_set_whole():
    order = samplers.mixed(source=Sets(), batch_size=BATCH, seed=0, weights=(3, 1))
    drawn = order(np.arange(4 * 40 * 3)).reshape(-1, 4)
    assert set((drawn < 5).sum(axis=1)) == {3}
    small, large = drawn[drawn < 5], drawn[drawn >= 5]
    np.testing.assert_array_equal(np.bincount(small), [72] * 5)
    first = np.sort(large[: N - 5])
    np.testing.assert_array_equal(first, np.arange(5, N))


def test_curriculum_admits_the_easiest_first_and_all_in_the_end(tmp_path):
    path = scores(tmp_path)
    easy = np.argsort(-np.load(path))
    order = samplers.curriculum(
        source=Sets(), batch_size=BATCH, seed=0, path=path, first=0.2, epochs=2
    )
    drawn = order(np.arange(9 + 27 + 2 * N))  # N is 45: 9, 27, then all
    for size, epoch in zip((9, 27, N, N), np.split(drawn, (9, 36, 81)), strict=True):
        np.testing.assert_array_equal(np.sort(epoch), np.sort(easy[:size]))
    assert (drawn[36:81] != drawn[81:]).any()


def test_scores_may_be_text_and_must_fit(tmp_path):
    (tmp_path / "s.txt").write_text("\n".join(str(i) for i in range(N)))
    given = {"source": Sets(), "batch_size": BATCH, "seed": 0}
    order = samplers.curriculum(path=str(tmp_path / "s.txt"), first=0.2, **given)
    assert set(order(np.arange(9))) == set(range(N - 9, N))
    np.save(tmp_path / "few.npy", np.zeros(N - 1))
    np.save(tmp_path / "nan.npy", np.full(N, np.nan))
    np.save(tmp_path / "code.npy", np.array([print] * N), allow_pickle=True)
    (tmp_path / "words.txt").write_text("easy\n" * N)
    for name, words in (
        ("few.npy", f"wanted a number for each of the {N} images"),
        ("nan.npy", "no finite numbers"),
        ("code.npy", "holds no scores"),
        ("words.txt", "holds no scores"),
    ):
        with pytest.raises(ValueError, match=words):
            samplers.curriculum(path=str(tmp_path / name), **given)


@pytest.mark.parametrize("weights", [(1,), (1, 0), (0.5, 0.5), (1, 2, 3)])
def test_mixed_wants_a_whole_weight_for_each_set(weights):
    with pytest.raises(ValueError, match="whole number from 1 up for each of 2 sets"):
        samplers.mixed(source=Sets(), batch_size=4, seed=0, weights=weights)
    with pytest.raises(ValueError, match="wants a source of several sets"):
        samplers.mixed(source=[1, 2], batch_size=4, seed=0, weights=weights)
