"""How each class of object is drawn, seen from behind: vehicles, people, cones, lights, signs.

A `painter` is drive_vlm.builders.synthetic.painter.Painter; boxes here are pixels of the enlarged canvas.
"""

from drive_vlm.builders.synthetic.painter import Painter
from drive_vlm.builders.synthetic.scene import SIZES, SceneObject, housing

COLORS = {
    **{"red": (214, 22, 26), "blue": (26, 74, 220), "green": (16, 150, 58), "yellow": (250, 204, 16)},
    **{"white": (244, 244, 244), "orange": (255, 118, 0), "purple": (150, 40, 205), "pink": (255, 92, 170)},
    **{"lime": (176, 240, 30), "cyan": (0, 214, 234)},
}
LAMPS = {"red": (255, 24, 20), "yellow": (255, 206, 0), "green": (0, 240, 90)}
_AMBER = (255, 150, 0)


def draw_thing(painter: Painter, thing: SceneObject) -> None:
    """Draw `thing` where it stands, with its shadow."""
    width, height, _, base = SIZES[thing.name]
    x1, y1 = painter.camera.project(thing.lateral - width / 2, base + height, thing.distance)
    x2, y2 = painter.camera.project(thing.lateral + width / 2, base, thing.distance)
    box = (x1, y1, x2, y2)
    if thing.name == "traffic light":
        _draw_light(painter, thing)
    elif thing.name == "traffic sign":
        _draw_sign(painter, thing, box)
    else:
        _draw_shadow(painter, thing, box)
        if thing.name in _VEHICLE_BACKS:
            _draw_side(painter, thing)
            _VEHICLE_BACKS[thing.name](painter, thing, box)
            _draw_lamps(painter, thing, box)
        else:
            {"pedestrian": _draw_pedestrian, "cyclist": _draw_cyclist, "cone": _draw_cone}[thing.name](
                painter, thing, box
            )


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
    if painter.rain:  # the wet road mirrors what stands on it
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


_VEHICLE_BACKS = {"car": _draw_car, "truck": _draw_truck, "bus": _draw_bus}


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


def _draw_light(painter: Painter, thing: SceneObject) -> None:
    """A mast with an arm over the road, a housing of three lamps, and green arrows beside it."""
    draw, camera = painter.draw, painter.camera
    x1, y1, x2, y2 = box = housing(camera, thing)
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
