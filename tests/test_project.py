import importlib.util
import sys

import numpy as np
import pytest
from sklearn import decomposition

from jaxface.eval import project


def points(n=40, D=6):
    return np.random.default_rng(0).normal(size=(n, D)) * np.arange(1, D + 1)


def test_pca_is_scikit_learns_up_to_sign():
    want = decomposition.PCA(2, svd_solver="full").fit_transform(points())
    np.testing.assert_allclose(np.abs(project.pca(points())), np.abs(want), atol=1e-9)


def test_pca_does_not_hang_on_where_or_in_which_order_points_are():
    x, order = points(), np.random.default_rng(1).permutation(40)
    xy = project.pca(x)
    np.testing.assert_allclose(project.pca(x + 7.0), xy, atol=1e-9)
    np.testing.assert_allclose(project.pca(x[order]), xy[order], atol=1e-9)


NO_UMAP = pytest.mark.skipif(
    importlib.util.find_spec("umap") is None, reason="umap-learn is not installed"
)


@pytest.mark.parametrize(
    "place", [project.tsne, pytest.param(project.umap, marks=NO_UMAP)]
)
def test_neighbours_stay_together_and_are_the_same_twice(place):
    who = np.arange(40) // 10
    x = np.eye(6)[who] * 20 + points() / 10
    xy = place(x)
    np.testing.assert_array_equal(place(x), xy)
    far = np.linalg.norm(xy[:, None] - xy[None], axis=-1) + 1e9 * np.eye(40)
    np.testing.assert_array_equal(who[far.argmin(axis=1)], who)


@pytest.mark.parametrize(
    ("place", "library", "extra"), [("tsne", "sklearn", "report"), ("umap",) * 3]
)
def test_a_library_that_is_missing_names_its_extra(monkeypatch, place, library, extra):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"jaxface\[{extra}\]"):
        project.PROJECTIONS[place](points())


@pytest.mark.parametrize(
    "bad", [np.ones(3), np.ones((1, 4)), np.ones((4, 1)), np.full((4, 4), np.nan)]
)
def test_what_is_no_embedding_is_refused(bad):
    with pytest.raises(ValueError, match=r"wanted \[n, D\]"):
        project.pca(bad)


def test_chosen_are_the_first_images_of_the_people_with_most():
    person = np.array([7, 3, 7, -1, 3, 7, 9, 3, -1, -1, -1])
    assert project.chosen(person, people=2, each=2).tolist() == [0, 1, 2, 4]
    assert project.chosen(person, people=1, each=9).tolist() == [1, 4, 7]
    assert project.chosen(person).tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert project.chosen(np.full(3, -1)).tolist() == []
