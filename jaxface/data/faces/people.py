"""People and pictures as numbers: what the face renderer draws, and how it varies.

`Identity` is who: geometry, colours and marks. `View` is everything a picture may
change: pose, expression, light, camera, surroundings. Every field declares the law
it is drawn from. Lengths are in half frames (the frame is [-1, 1], x right, y
down), angles in radians, fractions without unit.

Law: a draw is a function of (seed, identity, index) alone, by Philox counters; no
generator is shared, so any order and any thread gives the same people.

    who = people.identity(seed=0, identity=7)
    shot = people.view(seed=0, identity=7, index=3)
    who.eye_gap, shot.yaw
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_SKIN = (
    (0.98, 0.83, 0.75),
    (0.93, 0.73, 0.60),
    (0.78, 0.56, 0.41),
    (0.53, 0.35, 0.25),
    (0.33, 0.21, 0.15),
)
_HAIR = (
    (0.05, 0.04, 0.05),
    (0.13, 0.08, 0.06),
    (0.28, 0.16, 0.09),
    (0.45, 0.28, 0.15),
    (0.60, 0.25, 0.10),
    (0.78, 0.58, 0.30),
    (0.92, 0.83, 0.62),
    (0.66, 0.65, 0.64),
)
_IRIS = (
    (0.14, 0.08, 0.05),
    (0.30, 0.17, 0.08),
    (0.42, 0.34, 0.14),
    (0.27, 0.45, 0.24),
    (0.25, 0.47, 0.68),
    (0.50, 0.60, 0.66),
)
_LIPS = (
    (0.80, 0.45, 0.42),
    (0.76, 0.28, 0.30),
    (0.62, 0.10, 0.18),
)
_DARK = 0.6  # skin from this tone on mostly comes with dark hair and eyes


def _law(count: int, law: Callable[[Sequence[float]], Any]) -> Any:
    return dataclasses.field(metadata={"count": count, "law": law})


def _between(low: float, high: float) -> Any:
    return _law(1, lambda u: low + (high - low) * u[0])


def _rarely(chance: float, low: float, high: float) -> Any:
    """0 most of the time, else uniform in [low, high]."""
    return _law(
        1,
        lambda u: low + (high - low) * u[0] / chance if u[0] < chance else 0.0,
    )


def _chance(chance: float) -> Any:
    return _law(1, lambda u: u[0] < chance)


def _one_of(count: int) -> Any:
    return _law(1, lambda u: int(u[0] * count))


def _weighted(*odds: float) -> Any:
    """The number of a case, drawn by the odds of the cases."""
    total = sum(odds)
    ends = [sum(odds[: i + 1]) / total for i in range(len(odds) - 1)]
    return _law(1, lambda u: bisect.bisect_right(ends, u[0]))


def _several(count: int) -> Any:
    return _law(count, tuple)


@dataclasses.dataclass(frozen=True)
class Identity:
    """Who: geometry, colours and marks that no picture of a person changes."""

    neck: float = _between(0.52, 0.72)  # over the width of the head
    width: float = _between(0.47, 0.61)
    height: float = _between(0.70, 0.82)
    skull: float = _between(2.0, 3.0)  # squareness of the upper head
    jaw: float = _between(1.9, 4.2)  # squareness of the lower head
    taper: float = _between(0.0, 0.36)  # how much narrower the chin is
    cheek: float = _between(-0.02, 0.08)
    chin: float = _between(0.0, 0.6)  # strength of the chin's ball
    ear: float = _between(0.09, 0.17)
    ear_out: float = _between(-0.02, 0.05)
    eye_v: float = _between(-0.12, 0.02)
    eye_gap: float = _between(0.19, 0.275)
    eye_size: float = _between(0.092, 0.15)
    eye_open: float = _between(0.34, 0.68)
    eye_tilt: float = _between(-0.20, 0.22)
    eye_deep: float = _between(0.0, 1.0)
    iris: float = _between(0.42, 0.56)
    iris_colour: tuple[float, ...] = _several(2)
    lash: float = _between(0.3, 1.4)
    lid: float = _between(0.0, 0.8)
    brow_gap: float = _between(0.10, 0.19)
    brow_thick: float = _between(0.012, 0.045)
    brow_long: float = _between(0.11, 0.19)
    brow_arch: float = _between(0.0, 0.075)
    brow_tilt: float = _between(-0.3, 0.3)
    brow_dark: float = _between(0.45, 1.0)
    nose_long: float = _between(0.24, 0.40)
    nose_wide: float = _between(0.055, 0.125)
    nose_bridge: float = _between(0.025, 0.055)
    nose_tip: float = _between(0.035, 0.07)
    nose_out: float = _between(0.10, 0.22)
    mouth_v: float = _between(0.13, 0.20)  # below the nose
    mouth_wide: float = _between(0.125, 0.225)
    lip_upper: float = _between(0.10, 0.36)
    lip_lower: float = _between(0.16, 0.46)
    mouth_curve: float = _between(-0.12, 0.10)
    cupid: float = _between(0.0, 0.6)
    lip_colour: tuple[float, ...] = _several(2)
    skin: tuple[float, ...] = _several(3)  # tone, undertone, saturation
    blush: float = _between(0.0, 0.25)
    hair: int = _weighted(3, 5, 7, 6, 7, 7, 4, 5)  # portrait.STYLES; 0 is bald
    volume: float = _between(0.75, 1.35)
    hair_colour: tuple[float, ...] = _several(4)
    hairline: float = _between(-0.54, -0.36)
    peak: float = _rarely(0.35, 0.03, 0.09)
    recede: float = _rarely(0.35, 0.04, 0.16)
    fringe: float = _rarely(0.42, 0.08, 0.25)
    part: float = _between(-0.35, 0.35)
    sweep: float = _between(-7.0, 7.0)
    curl: float = _between(0.0, 1.0)
    beard: int = _weighted(30, 3, 2, 3, 4, 2)  # portrait.BEARDS; 0 has none
    beard_top: float = _between(0.0, 0.12)
    moles: tuple[float, ...] = _several(12)
    freckles: float = _rarely(0.2, 0.3, 1.0)
    scar: tuple[float, ...] = _several(5)
    wrinkles: float = _rarely(0.4, 0.2, 1.0)


@dataclasses.dataclass(frozen=True)
class View:
    """Everything a picture may change: pose, face, light, camera, surroundings."""

    yaw: float = _between(-0.55, 0.55)
    pitch: float = _between(-0.26, 0.26)
    roll: float = _between(-0.24, 0.24)
    scale: float = _between(1.0, 1.27)
    shift_x: float = _between(-0.09, 0.09)
    shift_y: float = _between(-0.09, 0.09)
    smile: float = _between(-0.25, 1.0)
    open: float = _rarely(0.4, 0.05, 0.5)
    closed: float = _rarely(0.25, 0.2, 0.95)
    raised: float = _between(-0.02, 0.045)
    gaze_x: float = _between(-0.3, 0.3)
    gaze_y: float = _between(-0.12, 0.12)
    light_side: float = _between(-1.4, 1.4)
    light_up: float = _between(-0.35, 1.1)
    ambient: float = _between(0.34, 0.72)
    direct: float = _between(0.22, 0.8)
    warmth: float = _between(-0.18, 0.18)
    tint: float = _between(-0.08, 0.08)
    fill: float = _between(-0.15, 0.15)  # warmth of the ambient light
    backdrop: int = _one_of(4)
    backdrop_colours: tuple[float, ...] = _several(6)
    backdrop_shape: tuple[float, ...] = _several(8)
    clothes: tuple[float, ...] = _several(3)
    glasses: bool = _chance(0.14)
    glasses_shape: tuple[float, ...] = _several(8)
    cover: float = _rarely(0.12, 0.0, 1.0)  # mask, hand or strand
    cover_shape: tuple[float, ...] = _several(4)
    gain: float = _between(0.75, 1.25)
    contrast: float = _between(0.75, 1.2)
    blur: float = _rarely(0.45, 0.006, 0.022)
    noise: float = _between(0.0, 0.08)


_WHO, _VIEW, _GRAIN = range(3)  # which stream of a (seed, identity, index)


def identity(*, seed: int, identity: int) -> Identity:
    """Return person number `identity` of a seed."""
    return _draw(Identity, _stream(seed, identity, 0, _WHO))


def view(*, seed: int, identity: int, index: int) -> View:
    """Return the circumstances of picture `index` of a person."""
    return _draw(View, _stream(seed, identity, index, _VIEW))


def grain(*, seed: int, identity: int, index: int, size: int) -> np.ndarray:
    """Return [3, size, size] uint8 of sensor noise, uniform."""
    count = 3 * size * size
    words = _stream(seed, identity, index, _GRAIN).random_raw(-(-count // 8))
    return words.astype("<u8", copy=False).view(np.uint8)[:count].reshape(3, size, size)


def _stream(seed: int, identity: int, index: int, purpose: int) -> np.random.Philox:
    # The counter runs in its lowest words; the upper two name the stream.
    return np.random.Philox(key=[seed, identity], counter=[0, 0, purpose, index])


def _draw(cls: Any, stream: np.random.Philox) -> Any:
    laws, count = _laws(cls)
    raw = stream.random_raw(count)
    unit = ((raw >> np.uint64(11)) * 2.0**-53).tolist()  # [0, 1), as NumPy does
    return cls(*(law(unit[at]) for at, law in laws))


@functools.cache
def _laws(cls: Any) -> tuple[list[tuple[slice, Any]], int]:
    """Return (which draws, law) of every field, and how many draws there are."""
    laws, at = [], 0
    for field in dataclasses.fields(cls):
        count = field.metadata["count"]
        laws.append((slice(at, at + count), field.metadata["law"]))
        at += count
    return laws, at


def skin(who: Identity) -> np.ndarray:
    """Return the colour of the skin, [3, 1, 1] float32 in 0 .. 1."""
    tone, under, rich = who.skin
    warm, rich = 0.12 * (under - 0.5), 0.85 + 0.4 * rich
    red, green, blue = _blend(_SKIN, tone)
    plain = red * (1 + 0.4 * warm), green, blue * (1 - warm)
    grey = sum(plain) / 3
    return _colour(*(grey + rich * (c - grey) for c in plain))


def hair(who: Identity) -> np.ndarray:
    """Return the colour of the hair, [3, 1, 1] float32 in 0 .. 1."""
    shade, dyed, hue, light = who.hair_colour
    if dyed < 0.05:
        wheel = (math.cos(6.28 * (hue - k / 3)) for k in range(3))
        return _colour(*(0.12 + (0.15 + 0.2 * light) * (1 + w) for w in wheel))
    natural = dyed < 0.9 and who.skin[0] > _DARK
    return _colour(*_blend(_HAIR, shade * (0.4 if natural else 1.0)))


def iris(who: Identity) -> np.ndarray:
    """Return the colour of the eyes, [3, 1, 1] float32 in 0 .. 1."""
    hue, light = who.iris_colour
    dark = 0.4 if who.skin[0] > _DARK else 1.0
    return _colour(*(c * (0.85 + 0.4 * light) for c in _blend(_IRIS, hue * dark)))


def lips(who: Identity) -> np.ndarray:
    """Return the colour of the lips, [3, 1, 1] float32 in 0 .. 1."""
    return _colour(*_blend(_LIPS, who.lip_colour[0])) * 0.6 + skin(who) * 0.3


def _colour(*rgb: float) -> np.ndarray:
    return np.array(rgb, np.float32).reshape(3, 1, 1)


def _blend(palette: tuple[tuple[float, float, float], ...], t: float) -> list[float]:
    at = t * (len(palette) - 1)
    i = min(int(at), len(palette) - 2)
    pairs = zip(palette[i], palette[i + 1], strict=True)
    return [a + (at - i) * (b - a) for a, b in pairs]
