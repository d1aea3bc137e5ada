"""The similarity against Umeyama's own form, the warp against OpenCV and by hand."""

import cv2
import numpy as np
import pytest

from jaxface import align


def umeyama(points, onto):
    """Eqs. (34)-(42) by singular values, as the paper writes them; no reflection."""
    mean, to = points.mean(0), onto.mean(0)
    u, d, vt = np.linalg.svd((onto - to).T @ (points - mean) / len(points))
    sign = np.diag([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    scale = np.trace(np.diag(d) @ sign) / np.mean(np.sum((points - mean) ** 2, 1))
    turn = scale * u @ sign @ vt
    return np.hstack([turn, (to - turn @ mean)[:, None]])


def landmarks(seed, count=1):
    rng = np.random.default_rng(seed)
    spread = rng.uniform(0.3, 4, (count, 1, 1))
    return align.template() * spread + rng.normal(0, 9, (count, 5, 2)) + 40


def test_a_similarity_is_umeyamas():
    points = landmarks(0, 50)
    wanted = [umeyama(p, align.template()) for p in points]
    found = align.similarity(points, align.template())
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9)


def test_rows_of_a_batch_do_not_meet():
    points = landmarks(1, 6).reshape(2, 3, 5, 2)
    found = align.similarity(points, align.template())
    assert found.shape == (2, 3, 2, 3)
    for i in np.ndindex(2, 3):
        alone = align.similarity(points[i], align.template())
        np.testing.assert_array_equal(found[i], alone)


def test_a_moved_template_is_moved_back():
    turn = 1.7 * np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    points = align.template() @ turn.T + (5, -9)
    matrix = align.similarity(points, align.template())
    back = points @ matrix[:, :2].T + matrix[:, 2]
    np.testing.assert_allclose(back, align.template(), atol=1e-10)


def test_a_mirrored_face_is_not_reflected():
    matrix = align.similarity(landmarks(2)[0] * (-1, 1), align.template())
    assert np.linalg.det(matrix[:, :2]) > 0


@pytest.mark.parametrize(
    "points",
    [
        np.full((5, 2), 7.0),
        np.full((5, 2), np.nan),
        np.where(np.eye(5, 2) > 0, np.inf, 3.0),
    ],
    ids=["one place", "nan", "infinite"],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_landmarks_of_no_face_are_named(points):
    batch = np.stack([align.template(), points])
    with pytest.raises(ValueError, match=r"row 1 fit no face \(1 of 2 rows\)"):
        align.similarity(batch, align.template())
    with pytest.raises(ValueError, match=r"row 0 fit no face \(1 of 1 rows\)"):
        align.similarity(points, align.template())


def test_templates_of_other_sizes_are_those_of_the_field():
    at = align.template()
    np.testing.assert_allclose(align.template(224), 2 * at)
    np.testing.assert_allclose(align.template(128), at + np.array([8, 0]))
    np.testing.assert_allclose(align.template((112, 96)), at - np.array([8, 0]))
    np.testing.assert_allclose(align.template(56), at / 2)
    with pytest.raises(ValueError, match="wanted a square, or 112 x 96"):
        align.template((96, 112))
    with pytest.raises(ValueError, match="at least one pixel"):
        align.template(0)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("size", [112, (112, 96), 33])
def test_a_warp_is_opencvs_to_a_grey_level(seed, size):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*rng.integers(1, 200, 2), 3), dtype=np.uint8)
    matrix = align.similarity(landmarks(seed)[0], align.template(112))
    height, width = align.shape(size)
    wanted = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR)
    found = align.warp(image, matrix, size)
    assert np.abs(found.astype(int) - wanted).max() <= 1


def test_a_warp_by_hand():
    image = np.array([[[0], [100]], [[50], [200]]], np.uint8)
    same = np.array([[1.0, 0, 0], [0, 1, 0]])
    np.testing.assert_array_equal(align.warp(image, same, 2), image)
    # moved half a pixel right and down: corners meet one, two or four pixels
    moved = align.warp(image, same + np.array([0, 0, 0.5]), 3)[..., 0]
    wanted = np.rint([[0, 25, 25], [12.5, 87.5, 75], [12.5, 62.5, 50]])
    np.testing.assert_array_equal(moved, wanted)


def test_outside_is_black_however_far():
    white = np.full((4, 4, 3), 255, np.uint8)
    for shift in (-1e12, -5.0, 5.0, 1e12):
        matrix = np.array([[1.0, 0, shift], [0, 1, 0]])
        assert not align.warp(white, matrix, 4).any()


def test_a_warp_refuses_what_it_cannot_draw():
    flat = np.zeros((2, 3))
    with pytest.raises(ValueError, match="flattens"):
        align.warp(np.zeros((4, 4, 3), np.uint8), flat, 4)
    with pytest.raises(ValueError, match=r"wanted uint8 \[H, W, C\]"):
        align.warp(np.zeros((4, 4, 3)), flat, 4)
