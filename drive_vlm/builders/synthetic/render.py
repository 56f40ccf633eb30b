"""Pixels of a synthetic scene: PIL polygons at twice the size, brought down once; about 5 ms a picture at 224 x 224.

Night and rain are matters of colour: each flat colour passes through `Painter.tone`, lamps do not.
"""

import numpy as np

from drive_vlm.builders.synthetic.painter import SCALE, Painter
from drive_vlm.builders.synthetic.scene import LANE_WIDTH, Scene
from drive_vlm.builders.synthetic.things import draw_thing

_FAR = 140.0  # metres: where the road ends


def render(scene: Scene) -> np.ndarray:
    """The picture of `scene`: uint8[H, W, 3], the same bytes in every process."""
    painter = Painter(scene)
    style = np.random.default_rng([scene.seed, scene.index, 1])
    _draw_sky(painter, style)
    _draw_roadside(painter, style)
    _draw_road(painter)
    for thing in scene.objects:  # far to near
        draw_thing(painter, thing)
    if painter.rain:
        _draw_rain(painter)
    pixels = np.asarray(painter.image.reduce(SCALE)).astype(np.int16)
    grain = np.random.default_rng([scene.seed, scene.index, 2, scene.frame])
    pixels += grain.integers(-5, 6, size=(*scene.size, 1), dtype=np.int8)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _draw_sky(painter: Painter, style: np.random.Generator) -> None:
    width, horizon = painter.size[0], painter.camera.horizon
    xs, ys = style.random(30) * width, style.random(30) * horizon
    if painter.night and not painter.rain:
        painter.draw.point([(x, y) for x, y in zip(xs, ys, strict=True)], fill=(220, 220, 255, 200))
        x, y, r = 0.03 * width + 0.25 * xs[0], 0.2 * horizon, 0.025 * width
        painter.draw.ellipse([x - r, y - r, x + r, y + r], fill=(235, 235, 215))
        return
    color = (255, 255, 255, 90) if not painter.rain else (*painter.tone((90, 94, 100)), 110)
    for x, y in zip(xs[:5], ys[:5], strict=True):
        for k in (-1, 0, 1):
            cx, w, h = x + k * 0.06 * width, 0.09 * width, (0.035 - 0.01 * abs(k)) * width
            painter.draw.ellipse([cx - w, 0.75 * y - h, cx + w, 0.75 * y + h], fill=color)


def _draw_roadside(painter: Painter, style: np.random.Generator) -> None:
    """Buildings and trees on both sides; they stand still in the world, so a clip drives past them."""
    scene, period = painter.scene, 96.0
    things = []
    for side in ("left", "right"):
        numbers = style.random((9, 4))
        for slot, (kind, tall, hue, offset) in enumerate(numbers.tolist()):
            z = (slot * period / 9 + 5 * offset - scene.travelled) % period + 11.0
            things.append((z, side, kind, tall, hue))
    haze = painter.tone((130, 150, 160))
    horizon = painter.camera.horizon
    painter.draw.rectangle([0, horizon * 0.965, painter.size[0], horizon], fill=haze)
    for z, side, kind, tall, hue in sorted(things, reverse=True):
        edge, sign = scene.edge(side), -1 if side == "left" else 1
        if kind < 0.55:
            _draw_building(painter, edge + sign * 4.2, sign, z, 5 + 11 * tall, hue)
        else:
            _draw_tree(painter, edge + sign * 3.4, z, 4 + 3 * tall, hue)


def _draw_building(painter: Painter, x: float, sign: int, z: float, height: float, hue: float) -> None:
    walls = ((176, 148, 122), (150, 150, 158), (170, 112, 92), (190, 184, 168))
    wall = walls[int(hue * 4)]
    dark = tuple(int(0.7 * c) for c in wall)
    far = z + 9.0
    painter.solid([(x, 0, z), (x, height, z), (x, height, far), (x, 0, far)], painter.tone(dark))
    out = x + sign * 12.0
    painter.solid([(x, 0, z), (x, height, z), (out, height, z), (out, 0, z)], painter.tone(wall))
    for floor in range(int(height // 3)):
        y = 3 * floor + 1.2
        for column in range(3):
            lit = painter.night and (floor * 7 + column * 5 + int(hue * 40)) % 3 == 0
            pane = (236, 200, 112) if lit else painter.tone((70, 88, 108))
            left = x + sign * (1.0 + 3.4 * column)
            x1, y1 = painter.camera.project(left, y + 1.3, z)
            x2, y2 = painter.camera.project(left + sign * 1.8, y, z)
            if abs(x2 - x1) > 3 and max(x1, x2) > 0 and min(x1, x2) < painter.size[0]:
                painter.draw.rectangle([min(x1, x2), y1, max(x1, x2), y2], fill=pane)


def _draw_tree(painter: Painter, x: float, z: float, height: float, hue: float) -> None:
    x1, top = painter.camera.project(x - 0.2, height, z)
    x2, foot = painter.camera.project(x + 0.2, 0, z)
    painter.draw.rectangle([x1, (top + foot) / 2, x2, foot], fill=painter.tone((88, 66, 48)))
    middle, radius = (x1 + x2) / 2, 0.33 * (foot - top)
    green = (40 + int(36 * hue), 104, 48)
    for dx, dy, share, light in ((0, 1.35, 0.95, 0.8), (-0.4, 1.1, 0.7, 1.0), (0.4, 0.95, 0.75, 0.9)):
        cx, cy, r = middle + dx * radius, top + dy * radius, share * radius
        painter.draw.ellipse([cx - r, cy - r, cx + r, cy + r], fill=painter.tone(tuple(int(light * c) for c in green)))


def _draw_road(painter: Painter) -> None:
    scene, near, half = painter.scene, painter.near, LANE_WIDTH / 2
    left, right = scene.edge("left"), scene.edge("right")
    asphalt = (74, 78, 88) if painter.rain else (92, 92, 96)
    painter.strip(left - 2.2, right + 2.2, near, _FAR, painter.tone((158, 154, 148), 0.24))
    painter.strip(left - 0.25, right + 0.25, near, _FAR, painter.tone((196, 194, 188), 0.3))
    painter.strip(left, right, near, _FAR, painter.tone(asphalt, 0.34))
    if painter.night:  # the pool of the headlights
        for step in range(7):
            reach, half_width, spread = 32 - 3.6 * step, 1.9 - 0.12 * step, 2.9 - 0.1 * step
            beam = [
                (-half_width, near),
                (-spread, 0.8 * reach),
                (0, 1.15 * reach),
                (spread, 0.8 * reach),
                (half_width, near),
            ]
            painter.ground(beam, (255, 244, 200, 8))
    if painter.rain:
        for k in range(7):
            x, z = (k * 2.7 + scene.index * 0.61) % (right - left) + left, 4 + (k * 5.3 - scene.travelled) % 24
            sheen = (150, 162, 180, 70) if not painter.night else (120, 132, 160, 60)
            (x1, y1), (x2, y2) = painter.camera.project(x - 1.1, 0, z + 1.2), painter.camera.project(x + 1.1, 0, z)
            painter.draw.ellipse([x1, y1, x2, max(y1, y2)], fill=sheen)
    paint = painter.tone((236, 236, 232), 0.62)
    for side, x in (("left", -half), ("right", half)):
        if getattr(scene, side) == "solid":
            painter.strip(x - 0.12, x + 0.12, near, _FAR, paint)
        elif getattr(scene, side) == "open":
            start = -(scene.travelled % 6.0)
            for z in np.arange(start, 60.0, 6.0).tolist():
                if z + 2.6 > near:
                    painter.strip(x - 0.1, x + 0.1, max(z, near), z + 2.6, paint)
    for edge, inward in ((left, 0.3), (right, -0.3)):
        painter.strip(edge + inward - 0.06, edge + inward + 0.06, near, _FAR, painter.tone((210, 210, 200), 0.45))
    if scene.lane_arrow != "none":
        _draw_lane_arrow(painter, paint)


def _draw_lane_arrow(painter: Painter, paint: tuple[int, ...]) -> None:
    """A turn arrow on the ego lane just before the bonnet, repeated further ahead as the car drives on."""
    z = 3.4
    painter.strip(-0.16, 0.16, z - 0.6, z + 1.2, paint)
    for side, sign in (("left", -1), ("right", 1)):
        if painter.scene.lane_arrow in (side, "both"):
            painter.ground([(0, z + 0.85), (0, z + 1.25), (sign * 0.6, z + 1.25), (sign * 0.6, z + 0.85)], paint)
            painter.ground([(sign * 0.55, z + 0.35), (sign * 0.55, z + 1.8), (sign * 1.35, z + 1.05)], paint)


def _draw_rain(painter: Painter) -> None:
    """Streaks that slant with the wind, and spray that takes contrast from the whole picture."""
    scene, (width, height) = painter.scene, painter.size
    drops = np.random.default_rng([scene.seed, scene.index, 3, scene.frame]).random((110, 3)).tolist()
    color = (214, 222, 236, 120) if not painter.night else (170, 184, 214, 95)
    for x, y, fall in drops:
        long = (0.03 + 0.05 * fall) * height
        x, y = x * width * 1.1, y * height * 1.05 - long
        painter.draw.line(
            [x, y, x - 0.22 * long, y + long], fill=color, width=max(1, round((0.6 + fall) * height / 400))
        )
