"""The stage: where every pixel looks, the paint, the light and the camera.

A head is a stack of ellipses turned in space. Every pixel is mapped back to the
point (u, v) of the face it sees, so whatever is drawn as a signed distance in
(u, v) gets foreshortening, parallax and a hidden far cheek from the pose alone.
Units are those of `people`; colours are [3, 1, 1] float32 in 0 .. 1; everything
else is [H, W] float32, or a part of it in a box.

Law: a scene belongs to one call and shares nothing that is written to.

    scene = stage.build(who, view, size=112)
    box = scene.box(0.0, 0.4, 0.2, 0.1)  # what sees the face around (0, 0.4)
    spot = scene.cover(0.1 - np.hypot(scene.u[box], scene.v[box] - 0.4))
    scene.paint(spot, stage.colour(1, 0, 0), box)
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from jaxface.data.faces import people

Box = tuple[slice, slice]
FRAME: Box = (slice(None), slice(None))
DEPTH = 0.95  # half depth of a head over its half width
FOLLOW = 0.65  # how much of a turn the alignment of the crop takes back


@dataclasses.dataclass
class Scene:
    """One picture in the making."""

    who: people.Identity
    view: people.View
    size: int
    pixel: float  # side of a pixel, in half frames of the head
    lamp: tuple[float, float, float]  # unit vector to the light: right, down, out
    frame: tuple[float, float, float, float]  # head to frame: cos, sin, shift
    p: np.ndarray  # the head upright and centred, as seen: right
    q: np.ndarray  # down
    depth: np.ndarray  # out, 0 beside the head
    edge: np.ndarray  # signed distance to the outline of the head, positive inside
    u: np.ndarray  # on the face: across, the nose at 0
    v: np.ndarray  # down, the head from -height to height
    z: np.ndarray  # to the front
    steep: np.ndarray  # half the slope of the squared half width
    norm: np.ndarray  # 1 / length of the normal (p, -steep, depth)
    relief: np.ndarray  # light that small forms add or take
    bare: np.ndarray  # how much of the backdrop is seen
    albedo: np.ndarray  # [3, H, W], premultiplied by coverage

    def box(self, u: float, v: float, ru: float, rv: float) -> Box:
        """Return the pixels that see the face within (ru, rv) of (u, v)."""
        return self.around(*_seen(self.who, self.view, u, v), 1.08 * ru, 1.15 * rv)

    def around(self, p: float, q: float, rp: float, rq: float) -> Box:
        """Return the pixels within (rp, rq) of a point (p, q) as seen; maybe none."""
        view, half = self.view, self.size / 2
        cos, sin, fx, fy = self.frame
        dp, dq = p - fx, q - fy
        x, y = dp * cos - dq * sin + view.shift_x, dp * sin + dq * cos + view.shift_y
        rx, ry = rp * cos + rq * abs(sin), rp * abs(sin) + rq * cos
        (x0, x1), (y0, y1) = (
            (max(int((at - r + 1) * half) - 1, 0), max(int((at + r + 1) * half) + 2, 0))
            for at, r in ((x, rx), (y, ry))
        )
        return slice(y0, y1), slice(x0, x1)

    def cover(self, distance: np.ndarray) -> np.ndarray:
        """Return the coverage, 0 .. 1, of what has a signed distance."""
        alpha = distance * (1 / self.pixel)
        alpha += 0.5
        return alpha.clip(0, 1, out=alpha)

    def paint(self, alpha: np.ndarray, ink: np.ndarray, box: Box) -> None:
        """Lay a colour over what is there; alpha is that of the box."""
        target = self.albedo[:, box[0], box[1]]
        change = ink - target
        change *= alpha
        target += change

    def lay(
        self,
        alpha: np.ndarray,
        ink: np.ndarray,
        box: Box = FRAME,
        *,
        texture: np.ndarray | None = None,
    ) -> None:
        """Paint a part of the person, which hides the backdrop."""
        rest = 1 - alpha
        lit = alpha if texture is None else alpha * texture
        for plane, c in zip(self.albedo, ink.ravel().tolist(), strict=True):
            target = plane[box]
            target *= rest
            target += lit * c
        bare = self.bare[box]
        bare *= rest

    def stain(
        self, u: float, v: float, radius: float, ink: np.ndarray, alpha: float
    ) -> None:
        """Lay a soft spot of colour."""
        box = self.box(u, v, 2 * radius, 2 * radius)
        du, dv = self.u[box] - u, self.v[box] - v
        spot = np.exp((du * du + dv * dv) * (-1 / radius**2))
        self.paint(spot * alpha, ink, box)

    def bump(
        self, u: float, v: float, ru: float, rv: float, height: float
    ) -> tuple[np.ndarray, Box]:
        """Raise (or sink) soft hills at u and -u, as the light sees them.

        Returns:
            Where they are, 0 .. 1, and in which box.
        """
        box = self.box(0.0, v, u + 2 * ru, 2 * rv)
        across = self.u[box]
        du, dv = (np.abs(across) - u) * (1 / ru), (self.v[box] - v) * (1 / rv)
        hill = np.exp(-du * du - dv * dv)
        lx, ly, _ = self.lamp
        slope = du * np.sign(across) * (2 * height * lx)
        slope += dv * (2 * height * ly)
        slope *= hill
        self.relief[box] += slope
        return hill, box


def build(who: people.Identity, view: people.View, *, size: int) -> Scene:
    """Set the stage: nothing is painted yet."""
    axis = _axis(size)
    cos, sin = math.cos(view.roll) / view.scale, math.sin(view.roll) / view.scale
    fx, fy = _recentre(who, view)
    dx, dy = axis[None, :] - view.shift_x, axis[:, None] - view.shift_y
    # One block: many small ones go back to the kernel and cost a page fault each.
    block = np.empty((14, size, size), np.float32)
    p, q, depth, edge, u, v, z, steep, norm, relief, bare, *_ = block
    np.add(dx * cos, dy * sin + fx, out=p)
    np.add(dy * cos, fy - dx * sin, out=q)
    e, phase = _turn(view)
    _outline(who, q, e, square=edge, steep=steep)
    edge -= np.multiply(p, p, out=norm)
    np.sqrt(edge.clip(0, 1, out=depth), out=depth)  # clip is faster than maximum
    norm += steep * steep
    norm += 1e-6
    edge /= np.sqrt(norm) * 2  # F / |grad F|, F the squared half width less p^2
    norm += depth * depth
    np.divide(1, np.sqrt(norm, out=norm), out=norm)
    c, s = math.cos(phase) / e, math.sin(phase) / e
    np.multiply(p, c, out=u)
    u -= np.multiply(depth, s, out=v)
    np.multiply(p, s, out=z)
    z += np.multiply(depth, c, out=v)
    np.multiply(depth, DEPTH * math.sin(view.pitch), out=v)
    v += q
    relief[:], bare[:], block[11:] = 0, 1, 0
    flat = math.cos(view.light_up)
    side, front = math.sin(view.light_side), math.cos(view.light_side)
    return Scene(
        who=who,
        view=view,
        size=size,
        pixel=2 / size / view.scale,
        lamp=(side * flat, -math.sin(view.light_up), front * flat),
        frame=(cos * view.scale**2, sin * view.scale**2, fx, fy),
        p=p,
        q=q,
        depth=depth,
        edge=edge,
        u=u,
        v=v,
        z=z,
        steep=steep,
        norm=norm,
        relief=relief,
        bare=bare,
        albedo=block[11:],
    )


def expose(scene: Scene, grain: np.ndarray) -> np.ndarray:
    """Light the person, put the backdrop behind, take the picture.

    Args:
        scene: painted; it is used up.
        grain: [3, size, size] uint8, sensor noise.

    Returns:
        [size, size, 3] uint8, RGB.
    """
    view, size = scene.view, scene.size
    cast = np.array((1 + view.warmth, 1 + view.tint, 1 - view.warmth))
    cast *= 255 * view.gain * view.contrast
    fill = view.ambient * cast * (1 + view.fill, 1, 1 - view.fill)
    lamp = view.direct * cast * (1 + view.warmth, 1, 1 - view.warmth)
    back, front = _backdrop_colours(view)
    light, pattern = _facing(scene), _backdrop(scene)
    image = np.empty((size, size, 3), np.uint8)
    pattern *= scene.bare
    for c, plane in enumerate(scene.albedo):
        lit = light * float(lamp[c])
        lit += float(fill[c])
        plane *= lit
        plane += pattern * float((front[c] - back[c]) * cast[c])
        plane += scene.bare * float(back[c] * cast[c])
        _blur(plane, view.blur * size / 2, -(-size // 112))
        noise = grain[c].astype(np.float32)
        noise *= view.noise
        plane += noise
        plane += 127.5 * (1 - view.noise - view.contrast)
        plane.clip(0, 255, out=plane)
        image[..., c] = plane
    return image


# --- geometry -------------------------------------------------------------------------


@functools.lru_cache(maxsize=16)
def _axis(size: int) -> np.ndarray:
    axis = ((np.arange(size) + 0.5) * (2 / size) - 1).astype(np.float32)
    axis.setflags(write=False)  # shared by threads
    return axis


def _turn(view: people.View) -> tuple[float, float]:
    """Return a cross-section's apparent half width (of 1), and its phase."""
    c, s = math.cos(view.yaw), DEPTH * math.sin(view.yaw)
    return math.hypot(c, s), math.atan2(s, c)


def _recentre(who: people.Identity, view: people.View) -> tuple[float, float]:
    reach = FOLLOW * DEPTH * who.width
    return reach * math.sin(view.yaw), -reach * math.sin(view.pitch)


def _seen(
    who: people.Identity, view: people.View, u: float, v: float
) -> tuple[float, float]:
    """Return where (p, q) a point of the face is seen."""
    t = v / who.height
    power = who.skull if t < 0 else who.jaw
    low = max(t, 0.0) ** 1.5
    square = (who.width * (1 - who.taper * low)) ** 2 * max(1 - abs(t) ** power, 0)
    z = math.sqrt(max(square - u * u, 0))
    p = u * math.cos(view.yaw) + DEPTH * z * math.sin(view.yaw)
    depth = math.sqrt(max(square * _turn(view)[0] ** 2 - p * p, 0))
    return p, v - DEPTH * math.sin(view.pitch) * depth


def _outline(
    who: people.Identity,
    q: np.ndarray,
    e: float,
    *,
    square: np.ndarray,
    steep: np.ndarray,
) -> None:
    """Fill in the squared half width at every q, seen turned, and half its slope."""
    rise, middle, span = _profile_axis()
    power = np.where(rise < 0, np.float32(who.skull), np.float32(who.jaw))
    low = np.maximum(rise, 0)
    shape = 1 - who.taper * low * np.sqrt(low)
    shape += who.cheek * middle
    shape *= shape
    shape *= (1 - np.abs(rise) ** power) * (who.width * e) ** 2
    half = (len(rise) - 1) / 2
    slope = np.empty_like(shape)
    slope[1:-1] = (shape[2:] - shape[:-2]) * (half / (span * who.height) / 4)
    slope[0], slope[-1] = slope[1], slope[-2]
    at = q * (half / (span * who.height))
    at += half + 0.5
    rows = at.astype(np.intp)
    shape.take(rows, mode="clip", out=square)
    slope.take(rows, mode="clip", out=steep)


@functools.cache
def _profile_axis() -> tuple[np.ndarray, np.ndarray, float]:
    """Return heights over the head's (-1 the top, 1 the chin), the cheeks, the end."""
    span = 1.6
    rise = np.linspace(-span, span, 801, dtype=np.float32)
    cheeks = np.exp(-(((rise - 0.15) * 4) ** 2))
    for array in (rise, cheeks):
        array.setflags(write=False)
    return rise, cheeks, span


# --- light, backdrop, lens ------------------------------------------------------------


def colour(*rgb: float) -> np.ndarray:
    """Return a colour as it is painted: [3, 1, 1] float32."""
    return np.array(rgb, np.float32).reshape(3, 1, 1)


def muted(rgb: Sequence[float]) -> list[float]:
    """Return a colour drawn towards grey, as cloth and walls are."""
    grey = sum(rgb) / 3
    return [grey + 0.55 * (c - grey) for c in rgb]


def _facing(scene: Scene) -> np.ndarray:
    """Return how much of the lamp every point gets, 0 .. 1 and a little over."""
    lx, ly, lz = scene.lamp
    facing = scene.p * (0.5 * lx)
    facing -= scene.steep * (0.5 * ly)
    facing += scene.depth * (0.5 * lz)
    facing *= scene.norm
    facing += scene.relief * 0.5
    facing += 0.5
    facing.clip(0, 9, out=facing)
    facing *= facing  # half-Lambert: soft, as a large lamp is
    return facing


def _backdrop_colours(view: people.View) -> tuple[list[float], list[float]]:
    return muted(view.backdrop_colours[:3]), muted(view.backdrop_colours[3:])


def _backdrop(scene: Scene) -> np.ndarray:
    """Return the pattern behind the person, 0 .. 1 from one colour to the other."""
    view, axis = scene.view, _axis(scene.size)
    x, y = axis[None, :], axis[:, None]
    s = view.backdrop_shape
    cos, sin = math.cos(6.28 * s[0]), math.sin(6.28 * s[0])
    if view.backdrop == 1:  # blobs: products of a row and a column
        narrow = -2 - 6 * s[7]
        blobs = (
            np.exp((x - 2 * s[i] + 1) ** 2 * narrow)
            * np.exp((y - 2 * s[i + 1] + 1) ** 2 * narrow)
            for i in (1, 3, 5)
        )
        return np.sum(list(blobs), axis=0).clip(0, 1)
    along = x * cos + y * sin
    if view.backdrop == 0:  # a gradient
        return (along * 0.45 + 0.5).clip(0, 1)
    if view.backdrop == 2:  # stripes
        wave = np.sin(along * (4 + 16 * s[1]) + 6.28 * s[2])
        return (wave * (0.5 + 3 * s[3]) + 0.5).clip(0, 1)
    cross = y * cos - x * sin  # a weave
    bend = np.sin(cross * (3 + 9 * s[2])) * (3 * s[3])
    wave = np.sin(along * (5 + 20 * s[1]) + bend)
    wave *= np.sin(cross * (5 + 20 * s[4]) + 6.28 * s[5])
    return (wave * 0.6 + 0.5).clip(0, 1)


def _blur(plane: np.ndarray, sigma: float, stride: int) -> None:
    """Blur [H, W] in place by two three-tap passes, near and twice as far."""
    # A pass [a, 1 - 2 a, a] at distance d adds 2 a d^2 of variance.
    a = sigma * sigma / (10 * stride * stride)
    if a == 0:
        return
    for step in (stride, 2 * stride):
        for lines in (plane, plane.T):
            change = lines[step:] - lines[:-step]
            change *= a
            lines[:-step] += change
            lines[step:] -= change
