"""Pixels of a synthetic scene: PIL polygons at twice the size, brought down once; about 5 ms a picture at 224 x 224.

Night and rain are matters of colour: each flat colour passes through `Painter.tone`, lamps do not.
"""

import numpy as np
from PIL import Image, ImageDraw

from drive_vlm.data.synthetic_scene import LANE_WIDTH, Camera, Scene
from drive_vlm.data.synthetic_things import draw_thing

_SKY = {  # (time, weather) -> colour at the top and at the horizon
    ("day", "clear"): ((58, 128, 222), (214, 232, 246)),
    ("day", "rain"): ((118, 126, 136), (176, 182, 186)),
    ("night", "clear"): ((4, 7, 22), (30, 36, 74)),
    ("night", "rain"): ((16, 17, 22), (46, 46, 54)),
}
_SCALE = 2  # supersampling
_FAR = 140.0  # metres: where the road ends


class Painter:
    """A canvas with the camera and the light of one scene; colours are RGB, or RGBA to blend."""

    def __init__(self, scene: Scene) -> None:
        height, width = scene.size
        self.scene, self.night, self.rain = scene, scene.time == "night", scene.weather == "rain"
        self.camera = Camera.of(scene.size, _SCALE)
        self.size = (width * _SCALE, height * _SCALE)
        self.image = Image.fromarray(_backdrop(scene, self.camera, self.size))
        self.draw = ImageDraw.Draw(self.image, "RGBA")

    def tone(self, color: tuple[int, ...], lit: float = 0.3) -> tuple[int, ...]:
        """`color` in this scene's light; at night a share `lit` of it remains (headlights reach near things)."""
        red, green, blue = (float(channel) for channel in color[:3])
        if self.night:
            red, green, blue = red * lit, green * lit, blue * lit + 8
        if self.rain:
            grey = (red + green + blue) / 3
            red, green, blue = (0.78 * c + 0.2 * grey for c in (red, green, blue))
        return (int(red), int(green), int(min(255, blue)), *color[3:])

    def ground(self, corners: list[tuple[float, float]], color: tuple[int, ...]) -> None:
        """Fill a polygon of ground points (x metres right, z metres ahead)."""
        self.draw.polygon([self.camera.project(x, 0.0, z) for x, z in corners], fill=color)

    def strip(self, left: float, right: float, near: float, far: float, color: tuple[int, ...]) -> None:
        """Fill the ground from x = `left` to `right` and z = `near` to `far` (metres)."""
        self.ground([(left, near), (left, far), (right, far), (right, near)], color)

    def solid(self, corners: list[tuple[float, float, float]], color: tuple[int, ...]) -> None:
        """Fill a polygon of points (x, y above the ground, z) in metres."""
        self.draw.polygon([self.camera.project(*corner) for corner in corners], fill=color)

    def glow(self, x: float, y: float, radius: float, color: tuple[int, ...]) -> None:
        """A soft halo around a lamp at pixel (x, y)."""
        for share, alpha in ((2.4, 40), (1.7, 60)) if self.night else ((1.5, 45),):
            r = radius * share
            self.draw.ellipse([x - r, y - r, x + r, y + r], fill=(*color, alpha))

    @property
    def near(self) -> float:
        """Metres to the ground that the lower border of the picture shows, a little less to be safe."""
        return 0.9 * self.camera.focal * self.camera.height / (self.size[1] - self.camera.horizon)


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
    pixels = np.asarray(painter.image.reduce(_SCALE)).astype(np.int16)
    grain = np.random.default_rng([scene.seed, scene.index, 2, scene.frame])
    pixels += grain.integers(-5, 6, size=(*scene.size, 1), dtype=np.int8)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _backdrop(scene: Scene, camera: Camera, size: tuple[int, int]) -> np.ndarray:
    """Sky and ground as two vertical gradients: uint8[H, W, 3]."""
    width, height = size
    top, low = (np.array(c, dtype=np.float32) for c in _SKY[scene.time, scene.weather])
    horizon = int(camera.horizon)
    share = np.linspace(0, 1, horizon, dtype=np.float32)[:, None]
    grass = np.array([92, 138, 70] if scene.time == "day" else [16, 27, 24], dtype=np.float32)
    if scene.weather == "rain":
        grass = 0.6 * grass + 0.4 * grass.mean()
    depth = np.linspace(0.75, 1.1, height - horizon, dtype=np.float32)[:, None]
    rows = np.concatenate([top + (low - top) * share, grass * depth])
    return np.ascontiguousarray(np.broadcast_to(rows.astype(np.uint8)[:, None], (height, width, 3)))


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
