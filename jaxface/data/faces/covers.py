"""What hides a face: glasses, a mask, a hand, a lock of hair.

They belong to the view, never to the person, so they tell nothing of who it is.

Law: nothing is drawn unless the view says so.

    if view.glasses:
        covers.glasses(scene)
    if view.cover:
        covers.obstacle(scene, skin, hair)
"""

from __future__ import annotations

import math

import numpy as np

from jaxface.data.faces import stage


def glasses(scene: stage.Scene) -> None:
    """Put on the glasses of this view: round or square, clear or dark."""
    who, view = scene.who, scene.view
    rx, ry, square, thick, dark, *rgb = view.glasses_shape
    rx, ry = 0.15 + 0.05 * rx, 0.09 + 0.06 * ry
    box = scene.box(0.0, who.eye_v, 0.65, 0.22)
    u = scene.u[box] - 0.06 * math.tan(view.yaw)
    v = scene.v[box] - (who.eye_v + 0.015)
    x, y = (np.abs(u) - (0.02 + rx)) * (1 / rx), v * (1 / ry)
    radius = x * x + y * y if square < 0.5 else np.sqrt(x**4 + y**4)
    lens = (1 - np.sqrt(radius)) * min(rx, ry)
    bar = np.minimum(0.016 - np.abs(v + 0.25 * ry), np.maximum(0.04 - np.abs(u), x - 1))
    frame = np.maximum(0.014 + 0.014 * thick - np.abs(lens), bar)
    ink = stage.colour(*(0.06 + 0.5 * c * c for c in rgb))
    seen = scene.cover(scene.edge[box] + 0.02)
    if dark < 0.3:
        scene.paint(scene.cover(lens) * seen * 0.9, ink * 0.3, box)
    else:
        scene.paint(scene.cover(lens) * seen * 0.1, stage.colour(0.85, 0.9, 0.95), box)
    scene.paint(scene.cover(frame) * seen, ink, box)


def obstacle(scene: stage.Scene, skin: np.ndarray, hair: np.ndarray) -> None:
    """Put a mask, a hand or a lock of hair before the face."""
    if scene.view.cover < 0.4:
        _mask(scene)
    elif scene.view.cover < 0.75:
        _hand(scene, skin)
    else:
        _lock(scene, hair)


def _mask(scene: stage.Scene) -> None:
    who = scene.who
    a, b, c, _ = scene.view.cover_shape
    box = scene.around(0.0, 0.4, 1.05 * who.width + 0.05, 0.55)
    u, v = scene.u[box], scene.v[box]
    rim = who.eye_v + who.nose_long * (0.55 + 0.2 * a)
    cloth = np.minimum(v - rim - 0.5 * u * u, scene.edge[box] + 0.015)
    cloth = np.minimum(cloth, scene.z[box] + 0.1)
    folds = 1 - np.maximum(np.sin(v * 50), 0) * 0.12
    ink = stage.colour(0.35 + 0.6 * b, 0.4 + 0.275 * (b + c), 0.45 + 0.5 * c)
    scene.lay(scene.cover(cloth), ink, box, texture=folds)


def _hand(scene: stage.Scene, skin: np.ndarray) -> None:
    """Fingers from below, in frame coordinates of their own."""
    a, b, c, d = scene.view.cover_shape
    angle = 0.8 * (a - 0.5)
    x = scene.p * math.cos(angle) + scene.q * math.sin(angle) - (1.1 * b - 0.55)
    y = scene.q * math.cos(angle) - scene.p * math.sin(angle)
    off = np.abs((x * (1 / 0.13) + 50) % 1 - 0.5) * 0.13  # from a finger's middle
    hand = np.minimum(0.26 - np.abs(x), y - (0.15 + 0.4 * c) - 3 * x * x)
    hand = np.minimum(hand, np.maximum(0.057 - off, y - (0.65 + 0.2 * d)))
    scene.lay(scene.cover(hand), skin, texture=1.05 - 4 * off)


def _lock(scene: stage.Scene, hair: np.ndarray) -> None:
    a, b, c, d = scene.view.cover_shape
    box = scene.around(0.0, -0.3, scene.who.width, 0.8)
    u, v = scene.u[box], scene.v[box]
    across = u - (0.8 * a - 0.4) - (b - 0.5) * v - 0.08 * np.sin(6 * v)
    lock = np.minimum(0.02 + 0.03 * c - np.abs(across), 0.1 + 0.4 * d - v)
    scene.paint(scene.cover(np.minimum(lock, scene.edge[box])), hair, box)
