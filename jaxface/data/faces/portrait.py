"""Portraits: how a person is painted, one function per feature, back to front.

Features are signed distances in face coordinates (u, v), positive inside; `cover`
turns them into anti-aliased paint. Paired features are drawn once, in |u|. Each is
drawn in the box that can see it.

Law: pixels are a function of who, view, grain and size alone.

    who = people.identity(seed=0, identity=7)
    view = people.view(seed=0, identity=7, index=3)
    grain = people.grain(seed=0, identity=7, index=3, size=112)
    image = portrait.draw(who, view, grain, size=112)  # uint8 [112, 112, 3]
"""

from __future__ import annotations

import math

import numpy as np

from jaxface.data.faces import covers, people, stage

# Hair: volume on top, volume at the sides, the v where it ends, how far the sides
# come round. Number 0 is bald.
STYLES = (
    (0.00, 0.00, 0.00, 0.00),
    (0.02, 0.00, 0.00, 0.24),
    (0.09, 0.03, 0.08, 0.24),
    (0.17, 0.01, 0.00, 0.22),
    (0.08, 0.10, 0.45, 0.42),
    (0.09, 0.13, 1.60, 0.42),
    (0.24, 0.22, 0.18, 0.30),
    (0.04, 0.01, 0.02, 0.24),
)
HANGS = 0.3  # hair that ends below this hangs
# Facial hair by number: none, stubble, moustache, goatee, full, chin.
NO_BEARD, STUBBLE, MOUSTACHE, GOATEE, FULL = range(5)


def draw(
    who: people.Identity, view: people.View, grain: np.ndarray, *, size: int
) -> np.ndarray:
    """Draw one picture of a person.

    Args:
        who: the person.
        view: the circumstances.
        grain: [3, size, size] uint8, sensor noise.
        size: height and width in pixels, at least 16.

    Returns:
        [size, size, 3] uint8, RGB.
    """
    scene = stage.build(who, view, size=size)
    skin, hair = people.skin(who), people.hair(who)
    strands = _strands(scene) if who.hair else None
    near = -1.0 if view.yaw > 0 else 1.0
    if strands is not None:
        _back_hair(scene, hair, strands)
    _neck(scene, skin)
    ears = STYLES[who.hair][2] < HANGS  # else the hair hides them
    if ears and abs(view.yaw) < 0.35:
        _ear(scene, skin, -near)  # else the head hides the far one
    _head(scene, skin)
    if ears:
        _ear(scene, skin, near)
    _marks(scene, skin)
    if who.beard != NO_BEARD and STYLES[who.hair][2] < HANGS:
        _beard(scene, hair)
    _mouth(scene, skin)
    _nose(scene, skin)
    _eyes(scene, skin)
    _brows(scene, hair * 0.6 + skin * 0.08)
    if strands is not None:
        _front_hair(scene, hair, strands)
    if view.glasses:
        covers.glasses(scene)
    if view.cover:
        covers.obstacle(scene, skin, hair)
    return stage.expose(scene, grain)


# --- the head -------------------------------------------------------------------------


def _neck(scene: stage.Scene, skin: np.ndarray) -> None:
    who, view = scene.who, scene.view
    box = scene.around(0.0, 0.9, 1.6, 0.62)
    p, q = scene.p[box], scene.q[box]
    across = np.abs(p - 0.1 * math.sin(view.yaw))
    wide = who.neck * who.width
    scene.lay(scene.cover(wide - across), skin * 0.72, box)  # in the chin's shade
    collar = np.minimum(across, wide)
    collar *= 0.6
    collar += q - 0.35 * across
    cloth = stage.colour(*stage.muted(view.clothes))
    scene.lay(scene.cover(collar - (who.height + 0.2)), cloth, box)


def _ear(scene: stage.Scene, skin: np.ndarray, side: float) -> None:
    who, turn = scene.who, math.sin(scene.view.yaw)
    p = side * (who.width + 0.8 * who.ear_out) * math.cos(scene.view.yaw) - 0.08 * turn
    wide = 0.055 + 0.07 * max(0.0, -side * turn) + max(who.ear_out, 0.0)
    box = scene.around(p, 0.06, wide, who.ear)
    dp, dq = (scene.p[box] - p) * (1 / wide), (scene.q[box] - 0.06) * (1 / who.ear)
    radius = np.sqrt(dp * dp + dq * dq)
    shell = scene.cover((1 - radius) * wide)
    scene.lay(shell, skin * stage.colour(0.95, 0.84, 0.82), box)
    scene.paint(shell * np.maximum(0.75 - radius, 0), skin * 0.55, box)


def _head(scene: stage.Scene, skin: np.ndarray) -> None:
    who = scene.who
    box = scene.around(0.0, 0.0, 1.04 * (who.width + who.cheek), 1.02 * who.height)
    scene.lay(scene.cover(scene.edge[box]), skin, box)
    cheeks, box = scene.bump(0.28, 0.18, 0.16, 0.12, 0.10 + who.cheek)
    scene.paint(cheeks * who.blush, skin * stage.colour(1, 0.62, 0.62), box)
    scene.bump(who.eye_gap, who.eye_v, 0.13, 0.09, -0.1 - 0.22 * who.eye_deep)
    scene.bump(0.0, 0.88 * who.height, 0.16, 0.10, 0.3 * who.chin)


def _marks(scene: stage.Scene, skin: np.ndarray) -> None:
    who = scene.who
    brown = skin * stage.colour(0.42, 0.32, 0.30)
    for i in range(0, len(who.moles), 3):
        across, down, there = who.moles[i : i + 3]
        if there < 0.4:
            at = 0.8 * across - 0.4, 0.9 * down - 0.3
            scene.stain(*at, 0.012 + 0.045 * there, brown, 0.9)
    if who.freckles:
        _freckles(scene, brown)
    if who.scar[4] < 0.15:
        _scar(scene, skin * stage.colour(1.1, 0.8, 0.8))
    _folds(scene, skin * 0.5, 0.22 * who.wrinkles + 0.15 * max(scene.view.smile, 0))
    if who.wrinkles:
        box = scene.box(0.0, who.hairline + 0.14, 0.3, 0.14)
        u = scene.u[box]
        lines = np.sin((scene.v[box] - 0.4 * u * u) * 75) - 0.35
        fade = np.exp(u * u * -16) * (0.6 * who.wrinkles)
        scene.paint(np.maximum(lines, 0) * fade, skin * 0.5, box)


def _folds(scene: stage.Scene, ink: np.ndarray, strength: float) -> None:
    """The lines from the wings of the nose to the corners of the mouth."""
    who = scene.who
    base = who.eye_v + who.nose_long
    box = scene.box(0.0, base + 0.08, who.nose_wide + 0.2, 0.14)
    v = scene.v[box] - (base - 0.02)
    along = (v * 12).clip(0, 1) * ((0.2 - v) * 10).clip(0, 1)
    off = (np.abs(scene.u[box]) - (who.nose_wide + 0.035) - 0.5 * v) * 55
    scene.paint(np.exp(-off * off) * along * strength, ink, box)


def _freckles(scene: stage.Scene, ink: np.ndarray) -> None:
    box = scene.box(0.0, 0.13, 0.45, 0.17)
    u, v = scene.u[box], scene.v[box]
    spots = np.sin(u * 83 + 4 * np.sin(v * 47)) * np.sin(v * 91 + 4 * np.sin(u * 39))
    alpha = np.maximum(spots - 0.35, 0) * np.exp((v - 0.13) ** 2 * -81)
    scene.paint(alpha * scene.who.freckles, ink, box)


def _scar(scene: stage.Scene, ink: np.ndarray) -> None:
    across, down, angle, long, _ = scene.who.scar
    u, v, half = 0.7 * across - 0.35, 0.7 * down - 0.3, 0.06 + 0.08 * long
    box = scene.box(u, v, half, half)
    cos, sin = math.cos(3.14 * angle), math.sin(3.14 * angle)
    du, dv = scene.u[box] - u, scene.v[box] - v
    line = 0.013 - np.abs(dv * cos - du * sin)
    line = np.minimum(line, half - np.abs(du * cos + dv * sin))
    scene.paint(scene.cover(line) * 0.7, ink, box)


# --- features -------------------------------------------------------------------------


def _eyes(scene: stage.Scene, skin: np.ndarray) -> None:
    who, view, size = scene.who, scene.view, scene.who.eye_size
    box = scene.box(0.0, who.eye_v, who.eye_gap + 1.2 * size, 1.1 * size)
    u = scene.u[box]
    x = (np.abs(u) - who.eye_gap) * (1 / size)  # outwards
    y = (scene.v[box] - who.eye_v) * (1 / size)
    y += x * who.eye_tilt
    arch = 1 - x * x
    wide = who.eye_open * (1 - view.closed) * (1 - 0.2 * max(view.smile, 0))
    upper, lower = y + wide * arch, (0.5 * wide + 0.02) * arch - y
    opening = np.minimum(upper, lower)
    dark = skin * 0.25
    # Looks at the camera, more or less, when the head is turned.
    gx = x - np.sign(u) * (view.gaze_x - 0.45 * math.sin(view.yaw))
    gy = y - (view.gaze_y - 0.12 * who.eye_open)
    far = np.sqrt(gx * gx + gy * gy)
    scene.paint(scene.cover(opening * size), stage.colour(0.93, 0.91, 0.89), box)
    ring = np.minimum(who.iris - far, opening)
    pupil = scene.cover((far - 0.42 * who.iris) * size)
    rim = scene.cover((0.84 * who.iris - far) * size) * 0.5 + 0.5
    scene.paint(scene.cover(ring * size), people.iris(who) * (pupil * rim), box)
    lx, ly, _ = scene.lamp
    glint = 0.16 - np.abs(gx - np.sign(u) * (0.2 * lx)) - np.abs(gy - 0.2 * ly)
    glint = np.minimum(glint, opening)
    scene.paint(scene.cover(glint * size), stage.colour(1, 1, 1), box)
    lash = np.minimum(0.035 + 0.075 * who.lash - np.abs(upper), arch + 0.15)
    crease = 0.05 - np.abs(upper + (0.12 + 0.3 * who.lid))
    below = 0.03 - np.abs(lower)
    faint = scene.cover(np.minimum(np.maximum(crease, below), arch) * size) * 0.5
    scene.paint(np.maximum(scene.cover(lash * size), faint), dark * 0.6, box)


def _brows(scene: stage.Scene, ink: np.ndarray) -> None:
    who, view = scene.who, scene.view
    u0 = who.eye_gap + 0.015
    v0 = who.eye_v - who.brow_gap - view.raised
    box = scene.box(0.0, v0, u0 + 1.05 * who.brow_long, 0.12)
    x = (np.abs(scene.u[box]) - u0) * (1 / who.brow_long)  # -1 at the nose
    y = scene.v[box] - v0
    y += who.brow_arch * (1 - (x - 0.25) ** 2) - 0.02
    y -= (who.brow_tilt * who.brow_long * 0.5) * x
    thick = (1.05 - 0.4 * x - 0.2 * x * x) * who.brow_thick
    hairs = np.minimum(thick - np.abs(y), (1 - np.abs(x)) * (0.5 * who.brow_long))
    scene.paint((hairs * 50 + 0.5).clip(0, 1) * who.brow_dark, ink, box)


def _nose(scene: stage.Scene, skin: np.ndarray) -> None:
    who, view = scene.who, scene.view
    long, wide = who.nose_long, who.nose_wide
    slant = who.nose_out * math.tan(view.yaw)
    middle = who.eye_v + 0.55 * long - 0.5 * who.nose_out * math.sin(view.pitch)
    box = scene.box(0.5 * slant, middle, 2 * wide + 0.5 * abs(slant), 0.72 * long)
    v = scene.v[box] - who.eye_v
    down = (v * (1 / long)).clip(0, 1)
    u = scene.u[box] - slant * down  # what stands out is seen shifted
    v += (who.nose_out * math.sin(view.pitch)) * down - long  # 0 at the base
    spread = (0.75 * wide - who.nose_bridge) * (down * down) + who.nose_bridge
    across = u / spread
    reach = ((0.05 - v) * 12).clip(0, 1) * down
    ridge = np.exp(-across * across) * reach
    lx, ly, _ = scene.lamp
    shadow = across + 1.7 * lx  # cast away from the lamp
    shadow = np.exp(-shadow * shadow) * reach * (0.45 * abs(lx))
    scene.relief[box] += ridge * across * (1.4 * lx) - shadow
    flank = (np.abs(across) - 1.35) * 1.6
    under_u, under_v = u * (0.9 / wide), (v - 0.035) * 30
    shade = np.exp(-flank * flank) * reach * 0.28
    shade += np.exp(-under_u * under_u - under_v * under_v) * (0.30 - 0.2 * ly)
    scene.paint(shade, skin * 0.5, box)
    tip_u, tip_v = u * (1 / who.nose_tip), (v + 0.045) * (1 / who.nose_tip)
    shine = np.maximum(ridge * 0.35, np.exp(-tip_u * tip_u - tip_v * tip_v) * 0.45)
    scene.paint(shine, skin * 1.2, box)
    au = np.abs(u)
    wing = np.sqrt((au - 0.6 * wide) ** 2 + (v + 0.02) ** 2) - 0.42 * wide
    wing = np.minimum(0.012 - np.abs(wing), au - 0.6 * wide)
    hole = ((au - 0.5 * wide) * (1 / (0.27 * wide))) ** 2 + ((v - 0.005) * 55) ** 2
    dark = np.maximum(scene.cover(wing) * 0.55, scene.cover(0.02 - hole * 0.02) * 0.9)
    scene.paint(dark, skin * 0.3, box)


def _mouth(scene: stage.Scene, skin: np.ndarray) -> None:
    who, view = scene.who, scene.view
    v0 = who.eye_v + who.nose_long + who.mouth_v + 0.03 * view.open
    wide = who.mouth_wide * (1 + 0.16 * view.smile)
    shift = 0.07 * math.tan(view.yaw)
    box = scene.box(shift, v0 + 0.05, 1.05 * wide, (0.55 + 0.5 * view.open) * wide)
    x = (scene.u[box] - shift) * (1 / wide)
    y = (scene.v[box] - v0) * (1 / wide)
    xx = x * x
    y += (0.26 * view.smile - who.mouth_curve) * xx  # a smile lifts the corners
    arch = 1 - xx
    dip = 1 - (0.45 * who.cupid) * np.exp(xx * -30)
    upper = y + (who.lip_upper * dip + 0.3 * view.open) * arch
    lower = (who.lip_lower + 0.7 * view.open) * arch - y
    lips = people.lips(who)
    alpha = scene.cover(np.minimum(upper, lower) * wide)
    alpha *= 0.55 + 0.4 * who.lip_colour[1]
    scene.paint(alpha, lips * (1 - 0.25 * (y * -6).clip(0, 1)), box)
    roof, floor = y + (0.3 * view.open) * arch, (0.7 * view.open) * arch - y
    gap = np.minimum(roof, floor) * wide
    inner = np.minimum(gap + 0.011, arch * wide)
    scene.paint(scene.cover(inner), stage.colour(0.16, 0.05, 0.05), box)
    if view.open > 0.1:
        teeth = np.minimum(gap, (0.13 - roof) * wide)
        scene.paint(scene.cover(teeth), stage.colour(0.92, 0.90, 0.86), box)
    scene.bump(0.0, v0 + 0.6 * who.lip_lower * wide, 0.8 * wide, 0.05, 0.16)


# --- hair -----------------------------------------------------------------------------


def _beard(scene: stage.Scene, hair: np.ndarray) -> None:
    who = scene.who
    base = who.eye_v + who.nose_long
    mouth = base + who.mouth_v
    box = scene.around(0.0, 0.5, who.width, 0.4)
    au, v = np.abs(scene.u[box]), scene.v[box]
    shape = np.minimum(v - (base + 0.045), mouth + 0.03 - v) - 1.2 * au * au
    shape = np.minimum(shape, 0.85 * who.mouth_wide + 0.02 - au)  # the moustache
    if who.beard in (STUBBLE, FULL):
        cheeks = v - (mouth - 0.04 + who.beard_top) + 1.1 * np.maximum(au - 0.2, 0)
        shape = np.maximum(shape, cheeks)
    elif who.beard != MOUSTACHE:
        chin = np.minimum(v - (mouth + 0.07), 0.17 - au)
        shape = np.maximum(shape, chin) if who.beard == GOATEE else chin
    shape = np.minimum(shape, scene.edge[box] + 0.02)
    sharp, dense = (9, 0.42) if who.beard == STUBBLE else (25, 0.88)
    scene.lay((shape * sharp + 0.4).clip(0, 1) * dense, hair * 0.8, box)


def _strands(scene: stage.Scene) -> np.ndarray:
    """Return how light the hair is, around 1."""
    curl = scene.who.curl
    wave = scene.q * (8 + 10 * curl)
    np.sin(wave, out=wave)
    wave *= 0.5 + 2.5 * curl
    wave += scene.p * 34
    strands = np.sin(wave)
    strands *= 0.13
    strands += 1
    return strands


def _back_hair(scene: stage.Scene, hair: np.ndarray, strands: np.ndarray) -> None:
    who, turn = scene.who, math.sin(scene.view.yaw)
    top, side, end, _ = STYLES[who.hair]
    top, side = top * who.volume, side * who.volume
    high, wide = who.height + top + 0.03, who.width + side + 0.25
    box = scene.around(0.0, (end - high) / 2, wide, (end + high) / 2 + 0.03)
    p, q = scene.p[box], scene.q[box]
    distance = (q * -2.2).clip(0, 1)
    distance *= top - side
    distance += scene.edge[box]
    distance -= p * (0.2 * turn) - side  # more at the back of the head
    if end > HANGS:
        hang = who.width + side - np.abs(p + 0.1 * turn)
        distance = np.maximum(distance, np.minimum(hang, q + 0.1))
    distance = np.minimum(distance, end - q)
    distance *= 22
    distance += 0.5
    scene.lay(distance.clip(0, 1), hair * 0.8, box, texture=strands[box])


def _front_hair(scene: stage.Scene, hair: np.ndarray, strands: np.ndarray) -> None:
    who = scene.who
    top, _, end, wrap = STYLES[who.hair]
    low = min(end + 0.1, who.height)
    middle, half = (low - who.height - top) / 2, (low + who.height + top) / 2
    box = scene.around(0.0, middle, who.width + 0.25, half)
    u, v = scene.u[box], scene.v[box]
    au = np.abs(u)
    uu = u * u
    line = uu * 0.35 + who.hairline
    if who.peak:
        line += np.exp(uu * -150) * who.peak
    if who.recede:
        line -= np.exp((au - 0.27) ** 2 * -64) * who.recede
    if who.fringe:
        swept = 1 / (1 + np.exp((who.part - u) * (2 * who.sweep)))
        line += swept * who.fringe + 0.25 * who.fringe
        line += np.sin(u * 55) * 0.012
    sides = wrap * au - scene.z[box] - 0.35 * np.maximum(v - 0.15, 0)
    sides = np.minimum(sides, end + 0.1 - v)
    distance = np.maximum(line - v, sides)
    distance = np.minimum(distance, scene.edge[box] + 0.6 * top)
    distance *= 30
    distance += 0.5
    scene.lay(distance.clip(0, 1), hair, box, texture=strands[box])
