"""Pixels of a synthetic scene: PIL polygons at twice the size, reduced once; about 5 ms a picture at 224 x 224.

In order: the Painter (canvas, camera, light), then sky, roadside and road, then each class of object, seen from behind.
Night and rain are matters of colour: each flat colour passes through `Painter.tone`, lamps do not.
Every draw from a generator and every rounding here decides bytes that recorded results depend on (quickstart, Drive-VLM on
the synthetic world): a change of order is a change of the data set.
"""

import numpy as np
from PIL import Image, ImageDraw

from drive_vlm.builders.synthetic.scene import LANE_WIDTH, SIZES, VEHICLES, Camera, Scene, SceneObject, front

# Supersampling: the canvas is this many times the picture.
SCALE = 2
# Metres: where the road ends.
_FAR = 140.0
# (time, weather) -> colour at the top and at the horizon.
_SKY = {
    ("day", "clear"): ((58, 128, 222), (214, 232, 246)),
    ("day", "rain"): ((118, 126, 136), (176, 182, 186)),
    ("night", "clear"): ((4, 7, 22), (30, 36, 74)),
    ("night", "rain"): ((16, 17, 22), (46, 46, 54)),
}
COLORS = {
    **{"red": (214, 22, 26), "blue": (26, 74, 220), "green": (16, 150, 58), "yellow": (250, 204, 16)},
    **{"white": (244, 244, 244), "orange": (255, 118, 0), "purple": (150, 40, 205), "pink": (255, 92, 170)},
    **{"lime": (176, 240, 30), "cyan": (0, 214, 234)},
}
LAMPS = {"red": (255, 24, 20), "yellow": (255, 206, 0), "green": (0, 240, 90)}
_AMBER = (255, 150, 0)


class Painter:
    """A canvas with the camera and the light of one scene; colours are RGB, or RGBA to blend."""

    def __init__(self, scene: Scene) -> None:
        height, width = scene.size
        self.scene, self.night, self.rain = scene, scene.time == "night", scene.weather == "rain"
        self.camera = Camera.of(scene.size, SCALE)
        self.size = (width * SCALE, height * SCALE)
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


def render(scene: Scene) -> np.ndarray:
    """The picture of `scene`: uint8[H, W, 3], the same bytes in every process."""
    painter = Painter(scene)
    style = np.random.default_rng([scene.seed, scene.index, 1])
    _draw_sky(painter, style)
    _draw_roadside(painter, style)
    _draw_road(painter)
    # Far to near, so that a nearer object covers what it hides.
    for thing in scene.objects:
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
    # The pool of the headlights.
    if painter.night:
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


def draw_thing(painter: Painter, thing: SceneObject) -> None:
    """Draw `thing` where it stands, with its shadow."""
    box = front(painter.camera, thing)
    if thing.name not in ("traffic light", "traffic sign"):
        _draw_shadow(painter, thing, box)
    if thing.name in VEHICLES:
        _draw_side(painter, thing)
    _DRAWINGS[thing.name](painter, thing, box)
    if thing.name in VEHICLES:
        _draw_lamps(painter, thing, box)


def _at(box: tuple[float, float, float, float], x1: float, y1: float, x2: float, y2: float) -> list[float]:
    """The part of `box` between the shares x1..x2 of its width and y1..y2 of its height."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    return [left + x1 * width, top + y1 * height, left + x2 * width, top + y2 * height]


def _reach(painter: Painter, thing: SceneObject) -> float:
    """Share of a colour that remains at night: the headlights fade with the distance."""
    return max(0.45, 0.95 - 0.025 * thing.distance)


def _shade(color: tuple[int, ...], share: float) -> tuple[int, ...]:
    return tuple(min(255, int(share * c)) for c in color)


def _draw_shadow(painter: Painter, thing: SceneObject, box: tuple[float, float, float, float]) -> None:
    x1, y1, x2, y2 = box
    width = x2 - x1
    flat = 0.07 * width
    painter.draw.ellipse([x1 - 0.06 * width, y2 - flat, x2 + 0.06 * width, y2 + flat], fill=(0, 0, 0, 120))
    # The wet road mirrors what stands on it.
    if painter.rain:
        color = painter.tone(COLORS[thing.color], _reach(painter, thing))
        for share, alpha in ((0.18, 60), (0.34, 40)):
            painter.draw.rectangle(
                [x1 + 0.08 * width, y2, x2 - 0.08 * width, y2 + share * (y2 - y1)], fill=(*color, alpha)
            )


def _draw_side(painter: Painter, thing: SceneObject) -> None:
    """The flank that shows of a vehicle in a neighbouring lane."""
    width, height, length, _ = SIZES[thing.name]
    if abs(thing.lateral) < width / 2:
        return
    x = thing.lateral + (width / 2 if thing.lateral < 0 else -width / 2)
    near, far = thing.distance, thing.distance + length
    body = painter.tone(_shade(COLORS[thing.color], 0.72), _reach(painter, thing))
    glass = painter.tone((48, 60, 78), 0.6)
    low, top = 0.25, height * (0.62 if thing.name == "car" else 1.0)
    painter.solid([(x, low, near), (x, top, near), (x, top, far), (x, low, far)], body)
    if thing.name == "car":
        painter.solid(
            [(x, top, near + 0.2), (x, height, near + 0.8), (x, height, near + 2.8), (x, top, near + 3.6)], body
        )
        painter.solid(
            [(x, top, near + 0.6), (x, 0.93 * height, near + 1), (x, 0.93 * height, near + 2.6), (x, top, near + 3.2)],
            glass,
        )
    elif thing.name == "bus":
        painter.solid([(x, 1.6, near + 0.3), (x, 2.5, near + 0.3), (x, 2.5, far - 0.3), (x, 1.6, far - 0.3)], glass)
    for z in (near + 0.2 * length, near + 0.8 * length):
        painter.solid([(x, 0, z - 0.35), (x, 0.6, z - 0.35), (x, 0.6, z + 0.35), (x, 0, z + 0.35)], (14, 14, 16))


def _draw_car(painter: Painter, thing: SceneObject, box: tuple[float, float, float, float]) -> None:
    lit, draw = _reach(painter, thing), painter.draw
    body, roof = painter.tone(COLORS[thing.color], lit), painter.tone(_shade(COLORS[thing.color], 0.86), lit)
    for x in (0.06, 0.76):
        draw.rectangle(_at(box, x, 0.72, x + 0.18, 1.0), fill=(14, 14, 16))
    x1, y1, x2, y2 = _at(box, 0.0, 0.0, 1.0, 0.46)
    w = x2 - x1
    draw.polygon([(x1 + 0.04 * w, y2), (x1 + 0.18 * w, y1), (x2 - 0.18 * w, y1), (x2 - 0.04 * w, y2)], fill=roof)
    y1, y2 = y1 + 0.2 * (y2 - y1), y2 - 0.06 * (y2 - y1)
    glass = painter.tone((50, 66, 88), 0.6)
    draw.polygon([(x1 + 0.13 * w, y2), (x1 + 0.22 * w, y1), (x2 - 0.22 * w, y1), (x2 - 0.13 * w, y2)], fill=glass)
    draw.rounded_rectangle(_at(box, 0.0, 0.4, 1.0, 0.86), radius=0.08 * w, fill=body)
    draw.rectangle(_at(box, 0.02, 0.78, 0.98, 0.88), fill=painter.tone((52, 52, 56), 0.6))
    draw.rectangle(_at(box, 0.37, 0.62, 0.63, 0.74), fill=painter.tone((232, 232, 224), 0.8))


def _draw_truck(painter: Painter, thing: SceneObject, box: tuple[float, float, float, float]) -> None:
    lit, draw = _reach(painter, thing), painter.draw
    body, seam = painter.tone(COLORS[thing.color], lit), painter.tone(_shade(COLORS[thing.color], 0.6), lit)
    for x in (0.05, 0.73):
        draw.rectangle(_at(box, x, 0.82, x + 0.22, 1.0), fill=(14, 14, 16))
    draw.rectangle(_at(box, 0.0, 0.0, 1.0, 0.78), fill=body)
    for x in (0.0, 0.485, 0.97):
        draw.rectangle(_at(box, x, 0.0, x + 0.03, 0.78), fill=seam)
    draw.rectangle(_at(box, 0.0, 0.0, 1.0, 0.03), fill=seam)
    draw.rectangle(_at(box, 0.03, 0.78, 0.97, 0.9), fill=painter.tone((44, 44, 48), 0.6))
    for k in range(6):
        stripe = (220, 30, 30) if k % 2 else (240, 240, 240)
        draw.rectangle(_at(box, 0.2 + 0.1 * k, 0.8, 0.3 + 0.1 * k, 0.85), fill=painter.tone(stripe, lit))


def _draw_bus(painter: Painter, thing: SceneObject, box: tuple[float, float, float, float]) -> None:
    lit, draw = _reach(painter, thing), painter.draw
    body = painter.tone(COLORS[thing.color], lit)
    for x in (0.05, 0.75):
        draw.rectangle(_at(box, x, 0.84, x + 0.2, 1.0), fill=(14, 14, 16))
    draw.rounded_rectangle(_at(box, 0.0, 0.0, 1.0, 0.93), radius=0.08 * (box[2] - box[0]), fill=body)
    inside = (232, 206, 140) if painter.night else painter.tone((40, 54, 76))
    draw.rounded_rectangle(_at(box, 0.1, 0.18, 0.9, 0.52), radius=0.04 * (box[2] - box[0]), fill=inside)
    draw.rectangle(_at(box, 0.25, 0.05, 0.75, 0.14), fill=(20, 20, 20))
    draw.rectangle(_at(box, 0.3, 0.075, 0.7, 0.115), fill=_AMBER)
    draw.rectangle(_at(box, 0.0, 0.6, 1.0, 0.64), fill=painter.tone((250, 250, 250), lit))
    draw.rectangle(_at(box, 0.02, 0.86, 0.98, 0.94), fill=painter.tone((50, 50, 54), 0.6))


def _draw_lamps(painter: Painter, thing: SceneObject, box: tuple[float, float, float, float]) -> None:
    """Rear lamps: dim while it moves, large and glowing while it brakes; the indicator is amber and larger still."""
    top = {"car": 0.46, "truck": 0.8, "bus": 0.7}[thing.name]
    deep = {"car": 0.15, "truck": 0.09, "bus": 0.1}[thing.name]
    braking = thing.state == "braking"
    width = box[2] - box[0]
    for side, x in (("left", 0.03), ("right", 0.81)):
        lamp = _at(box, x, top, x + 0.16, top + deep)
        painter.draw.rectangle(lamp, fill=(255, 70, 60) if braking else (96, 10, 14))
        cx, cy = (lamp[0] + lamp[2]) / 2, (lamp[1] + lamp[3]) / 2
        if braking:
            painter.glow(cx, cy, 0.11 * width, (255, 20, 20))
            r = 0.05 * width
            painter.draw.ellipse([cx - r, cy - r, cx + r, cy + r], fill=(255, 226, 210))
        if thing.signal == side:
            outer = box[0] if side == "left" else box[2]
            r = 0.13 * width
            cx = outer + (r if side == "left" else -r)
            cy -= 0.08 * width
            painter.glow(cx, cy, r, _AMBER)
            painter.draw.ellipse([cx - r, cy - r, cx + r, cy + r], fill=_AMBER)
    if braking:
        y = {"car": 0.1, "truck": 0.05, "bus": 0.02}[thing.name]
        painter.draw.rectangle(_at(box, 0.36, y, 0.64, y + 0.05), fill=(255, 60, 50))


def _draw_pedestrian(painter: Painter, thing: SceneObject, box: tuple[float, float, float, float]) -> None:
    lit, draw = _reach(painter, thing), painter.draw
    coat, dark = painter.tone(COLORS[thing.color], lit), painter.tone((40, 40, 62), 0.7)
    x1, y1, x2, y2 = _at(box, 0.0, 0.52, 1.0, 1.0)
    w = x2 - x1
    for foot in (0.1, 0.9):
        draw.polygon(
            [(x1 + 0.36 * w, y1), (x1 + 0.64 * w, y1), (x1 + (foot + 0.13) * w, y2), (x1 + (foot - 0.1) * w, y2)],
            fill=dark,
        )
    draw.rounded_rectangle(_at(box, 0.2, 0.2, 0.8, 0.6), radius=0.16 * w, fill=coat)
    draw.line([*_at(box, 0.24, 0.25, 0.04, 0.52)], fill=coat, width=max(2, int(0.14 * w)))
    draw.line([*_at(box, 0.76, 0.25, 0.96, 0.52)], fill=coat, width=max(2, int(0.14 * w)))
    draw.ellipse(_at(box, 0.31, 0.0, 0.69, 0.19), fill=painter.tone((226, 178, 144), lit))
    draw.pieslice(_at(box, 0.29, -0.01, 0.71, 0.19), 180, 360, fill=painter.tone((50, 34, 24), 0.6))


def _draw_cyclist(painter: Painter, thing: SceneObject, box: tuple[float, float, float, float]) -> None:
    lit, draw = _reach(painter, thing), painter.draw
    shirt, black = painter.tone(COLORS[thing.color], lit), (12, 12, 14)
    draw.rounded_rectangle(_at(box, 0.38, 0.56, 0.62, 1.0), radius=0.1 * (box[2] - box[0]), fill=black)
    draw.rectangle(_at(box, 0.0, 0.44, 1.0, 0.5), fill=black)
    for x in (0.2, 0.62):
        draw.rectangle(_at(box, x, 0.5, x + 0.18, 0.82), fill=painter.tone((34, 36, 70), 0.7))
    draw.ellipse(_at(box, 0.12, 0.17, 0.88, 0.6), fill=shirt)
    draw.ellipse(_at(box, 0.3, 0.0, 0.7, 0.2), fill=painter.tone((250, 250, 250), lit))
    draw.rectangle(_at(box, 0.42, 0.6, 0.58, 0.66), fill=(255, 40, 40))


def _draw_cone(painter: Painter, thing: SceneObject, box: tuple[float, float, float, float]) -> None:
    lit = _reach(painter, thing)
    orange = painter.tone(COLORS["orange"], lit)
    x1, y1, x2, y2 = box
    w, h = x2 - x1, y2 - y1
    painter.draw.rectangle([x1, y2 - 0.12 * h, x2, y2], fill=_shade(orange, 0.7))
    painter.draw.polygon(
        [(x1 + 0.42 * w, y1), (x1 + 0.58 * w, y1), (x2 - 0.1 * w, y2 - 0.12 * h), (x1 + 0.1 * w, y2 - 0.12 * h)],
        fill=orange,
    )
    painter.draw.rectangle(_at(box, 0.32, 0.35, 0.68, 0.52), fill=painter.tone((250, 250, 250), lit))


def _draw_light(painter: Painter, thing: SceneObject, box: tuple[float, float, float, float]) -> None:
    """A mast with an arm over the road, a housing of three lamps, and green arrows next to it."""
    draw, camera = painter.draw, painter.camera
    x1, y1, x2, y2 = box
    width = x2 - x1
    mast_x, foot = camera.project(painter.scene.edge("right") + 0.6, 0.0, thing.distance)
    steel = painter.tone((88, 92, 96), 0.5)
    thick = 0.16 * width
    draw.rectangle([mast_x - thick, y1 - thick, mast_x + thick, foot], fill=steel)
    draw.rectangle([(x1 + x2) / 2, y1 - 2 * thick, mast_x + thick, y1], fill=steel)
    draw.rounded_rectangle(
        box, radius=0.16 * width, fill=(18, 18, 20), outline=(236, 196, 40), width=max(1, int(0.05 * width))
    )
    third = (y2 - y1) / 3
    for row, color in enumerate(LAMPS):
        cx, cy, r = (x1 + x2) / 2, y1 + (row + 0.5) * third, 0.38 * width
        on = thing.state == color
        draw.ellipse([cx - r, cy - r, cx + r, cy + r], fill=LAMPS[color] if on else (46, 46, 48))
        if on:
            painter.glow(cx, cy, r, LAMPS[color])
            if painter.rain:
                drop = camera.project(thing.lateral, 0.0, thing.distance)[1]
                draw.rectangle([cx - r, drop, cx + r, drop + 5 * r], fill=(*LAMPS[color], 60))
    for side, sign in (("left", -1), ("right", 1)):
        if thing.signal in (side, "both"):
            low, high = sorted((x1 + sign * width, x2 + sign * width))
            draw.rounded_rectangle([low, y2 - width, high, y2], radius=0.16 * width, fill=(18, 18, 20))
            cx, cy, r = (low + high) / 2, y2 - width / 2, 0.42 * width
            tip, back = cx + sign * r, cx - sign * r
            head = [(tip, cy), (cx, cy - r), (cx, cy - 0.4 * r), (back, cy - 0.4 * r)]
            draw.polygon([*head, (back, cy + 0.4 * r), (cx, cy + 0.4 * r), (cx, cy + r)], fill=LAMPS["green"])


def _draw_sign(painter: Painter, thing: SceneObject, box: tuple[float, float, float, float]) -> None:
    """Stop: red octagon; speed limit: white disc with a red ring; warning: yellow triangle with a red rim."""
    draw, lit = painter.draw, 0.85
    x1, y1, x2, y2 = box
    w, h = x2 - x1, y2 - y1
    middle, foot = painter.camera.project(thing.lateral, 0.0, thing.distance)
    draw.rectangle([middle - 0.05 * w, y2 - 0.1 * h, middle + 0.05 * w, foot], fill=painter.tone((120, 124, 128), 0.5))
    red, white = painter.tone((214, 16, 24), lit), painter.tone((250, 250, 250), lit)
    if thing.state == "stop":
        c = 0.29
        points = [(c, 0), (1 - c, 0), (1, c), (1, 1 - c), (1 - c, 1), (c, 1), (0, 1 - c), (0, c)]
        draw.polygon([(x1 + px * w, y1 + py * h) for px, py in points], fill=red)
        for x in (0.14, 0.34, 0.54, 0.74):
            draw.rectangle(_at(box, x, 0.36, x + 0.12, 0.64), fill=white)
    elif thing.state == "speed limit":
        draw.ellipse(box, fill=red)
        draw.ellipse(_at(box, 0.17, 0.17, 0.83, 0.83), fill=white)
        for x in (0.3, 0.54):
            draw.rectangle(_at(box, x, 0.36, x + 0.16, 0.64), fill=(24, 24, 28))
    else:
        draw.polygon([(x1, y2), ((x1 + x2) / 2, y1), (x2, y2)], fill=red)
        inner = [(x1 + 0.17 * w, y2 - 0.1 * h), ((x1 + x2) / 2, y1 + 0.22 * h), (x2 - 0.17 * w, y2 - 0.1 * h)]
        draw.polygon(inner, fill=painter.tone((255, 214, 0), lit))
        draw.rectangle(_at(box, 0.46, 0.46, 0.54, 0.8), fill=(24, 24, 28))


_DRAWINGS = {
    "car": _draw_car,
    "truck": _draw_truck,
    "bus": _draw_bus,
    "pedestrian": _draw_pedestrian,
    "cyclist": _draw_cyclist,
    "cone": _draw_cone,
    "traffic light": _draw_light,
    "traffic sign": _draw_sign,
}
