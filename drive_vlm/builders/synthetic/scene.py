"""A synthetic driving scene: what stands where, its boxes, and the ground truth that follows (no pixels, no words).

The world is metric and seen by a pinhole camera 1.4 m above the middle of the ego lane: x to the right, z ahead.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from drive_vlm.evaluation.oia_labels import REASON_TEXTS

VEHICLES = ("car", "truck", "bus")
# Metres.
LANE_WIDTH = 3.5
# An object with less of its box in sight is neither drawn nor labelled.
MIN_VISIBLE = 0.35
# The same for lights and signs, whose lit lamp or face must show.
MIN_VISIBLE_SIGNAL = 0.75
# class -> width, height, length, height of its lower edge above the ground (metres)
SIZES = {
    "car": (1.9, 1.5, 4.4, 0.0),
    "truck": (2.5, 3.1, 8.0, 0.0),
    "bus": (2.5, 2.9, 11.0, 0.0),
    "pedestrian": (0.8, 1.8, 0.0, 0.0),
    "cyclist": (0.8, 1.8, 0.0, 0.0),
    "cone": (0.65, 0.95, 0.0, 0.0),
    "traffic light": (1.2, 2.8, 0.0, 5.0),
    "traffic sign": (1.6, 1.6, 0.0, 2.8),
}


@dataclass(frozen=True)
class SceneObject:
    """One thing in the scene.

    Attributes:
        name: a key of SIZES.
        lateral: metres from the middle of the ego lane to the object's middle, right is positive.
        distance: metres ahead of the camera.
        state: vehicles: moving | braking; lights: red | yellow | green; signs: stop | speed limit | warning.
        signal: left | right | both | none: a vehicle's indicator, a light's green arrows.
        lane: left | ego | right.
        on_road: False off the carriageway (pavement, lights, signs).
        box: x1, y1, x2, y2 in pixels, x2 and y2 exclusive, inside the picture.
        visible: share of the whole box that lies in the picture and behind nothing nearer.
    """

    name: str
    color: str
    lateral: float
    distance: float
    state: str = "none"
    signal: str = "none"
    lane: str = "ego"
    on_road: bool = True
    box: tuple[int, int, int, int] = (0, 0, 0, 0)
    visible: float = 1.0


@dataclass(frozen=True)
class Scene:
    """One picture's worth of world with its truth.

    Attributes:
        size: (height, width) in pixels.
        time: day | night; weather: clear | rain; light: red | yellow | green | none.
        sign: stop | speed limit | warning | none.
        left, right: open | solid | none: the line to the lane on that side, or no such lane.
        lane_arrow: left | right | both | none: arrows painted on the ego lane.
        travelled: metres since the first frame of a clip.
        actions, reason: int[4] and int[21], in BDD-OIA's order (evaluation/oia_labels.py).
    """

    seed: int
    index: int
    frame: int
    id: str
    group: str
    size: tuple[int, int]
    time: str
    weather: str
    light: str
    sign: str
    left: str
    right: str
    lane_arrow: str
    travelled: float
    objects: tuple[SceneObject, ...]
    actions: tuple[int, ...] = ()
    reason: tuple[int, ...] = ()

    @property
    def lead(self) -> SceneObject | None:
        """The nearest vehicle in the ego lane."""
        return min((o for o in self.ahead if o.name in VEHICLES), key=lambda o: o.distance, default=None)

    @property
    def ahead(self) -> list[SceneObject]:
        """What stands or drives in the ego lane, nearest first."""
        return sorted((o for o in self.objects if o.on_road and o.lane == "ego"), key=lambda o: o.distance)

    def lane_objects(self, lane: str) -> list[SceneObject]:
        """What stands or drives in the lane `left`, `ego` or `right`."""
        return [o for o in self.objects if o.on_road and o.lane == lane]

    def edge(self, side: str) -> float:
        """Metres from the middle of the ego lane to the kerb on `side`; negative on the left."""
        width = LANE_WIDTH * (0.5 if getattr(self, side) == "none" else 1.5)
        return -width if side == "left" else width


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks along the road. Focal length and horizon in pixels, height in metres."""

    focal: float
    horizon: float
    middle: float
    height: float = 1.4

    @classmethod
    def of(cls, size: tuple[int, int], scale: int = 1) -> "Camera":
        """The camera of a picture of `size` (height, width), enlarged `scale` times for supersampling."""
        height, width = size[0] * scale, size[1] * scale
        return cls(focal=0.8 * min(width, 1.15 * height), horizon=0.45 * height, middle=width / 2)

    def project(self, x: float, y: float, z: float) -> tuple[float, float]:
        """The pixel of the point x metres right, y metres above the ground, z metres ahead."""
        return self.middle + self.focal * x / z, self.horizon + self.focal * (self.height - y) / z


def finish(scene: Scene) -> Scene:
    """Fill in boxes, visibility, lanes, actions and reasons; drop what is mostly hidden (see MIN_VISIBLE)."""
    placed = _place(scene)
    names = {o.name for o in placed}
    light = scene.light if "traffic light" in names else "none"
    sign = scene.sign if "traffic sign" in names else "none"
    scene = replace(scene, objects=placed, light=light, sign=sign)
    actions, reason = derive_truth(scene)
    return replace(scene, actions=actions, reason=reason)


def derive_truth(scene: Scene) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """BDD-OIA's vectors actions int[4] and reason int[21] from what is in sight.

    Forward and stop/slow exclude each other. A turn is allowed by a permit (reasons 9-11, 12-14) where no obstacle
    (15-17, 18-20) forbids it, so that P(left | 9-11) = 1 and P(left | 15-17) = 0; forward or stop does not matter.
    """
    reason = [0] * len(REASON_TEXTS)
    lead, ahead = scene.lead, {o.name for o in scene.ahead}
    reason[3] = int(lead is not None and lead.state == "braking")
    reason[4], reason[5], reason[6] = (int(name in ahead) for name in ("pedestrian", "cyclist", "cone"))
    reason[7] = int(scene.light in ("red", "yellow"))
    reason[8] = int(scene.sign == "stop")
    stop = any(reason[3:9])
    if not stop:
        reason[0] = int(lead is not None)
        reason[1] = int(lead is None and scene.light == "none")
        reason[2] = int(scene.light == "green")
    turns = []
    arrows = next((o.signal for o in scene.objects if o.name == "traffic light"), "none")
    for side, permit, block in (("left", 9, 15), ("right", 12, 18)):
        line = getattr(scene, side)
        blocks = [bool(scene.lane_objects(side)), line == "none", line == "solid"]
        permits = [
            lead is not None and lead.signal == side,
            scene.lane_arrow in (side, "both"),
            arrows in (side, "both"),
        ]
        turns.append(int(any(permits) and not any(blocks)))
        reason[block : block + 3] = map(int, blocks)
        if not any(blocks):
            reason[permit : permit + 3] = map(int, permits)
    return (int(not stop), int(stop), *turns), tuple(reason)


def front(camera: Camera, thing: SceneObject) -> tuple[float, float, float, float]:
    """Pixels x1, y1, x2, y2 of the side that faces us. Of a traffic light: the housing, red, yellow, green from the top down."""
    width, height, _, base = SIZES[thing.name]
    x1, y1 = camera.project(thing.lateral - width / 2, base + height, thing.distance)
    x2, y2 = camera.project(thing.lateral + width / 2, base, thing.distance)
    return x1, y1, x2, y2


def outline(camera: Camera, thing: SceneObject) -> tuple[float, float, float, float]:
    """Pixels x1, y1, x2, y2 around the whole object (its far end and a light's arrows too), not cut at the border."""
    width, height, length, base = SIZES[thing.name]
    low, high = thing.lateral - width / 2, thing.lateral + width / 2
    if thing.name == "traffic light":
        low -= width * (thing.signal in ("left", "both"))
        high += width * (thing.signal in ("right", "both"))
    corners = [
        camera.project(x, y, z)
        for x in (low, high)
        for y in (base, base + height)
        for z in (thing.distance, thing.distance + length)
    ]
    xs, ys = zip(*corners, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _place(scene: Scene) -> tuple[SceneObject, ...]:
    """Boxes and visibility, painted from near to far: a nearer object's box hides what lies behind it."""
    height, width = scene.size
    camera = Camera.of(scene.size)
    covered = np.zeros((height, width), dtype=bool)
    placed = []
    for thing in sorted(scene.objects, key=lambda o: o.distance):
        if thing.distance < 3.0:
            # Out of the picture, or behind the camera.
            continue
        x1, y1, x2, y2 = outline(camera, thing)
        box = (max(0, int(x1)), max(0, int(y1)), min(width, int(np.ceil(x2))), min(height, int(np.ceil(y2))))
        if box[0] >= box[2] or box[1] >= box[3]:
            continue
        window = covered[box[1] : box[3], box[0] : box[2]]
        visible = min(1.0, float(np.count_nonzero(~window)) / ((x2 - x1) * (y2 - y1)))
        signal = thing.name in ("traffic light", "traffic sign")
        if visible < (MIN_VISIBLE_SIGNAL if signal else MIN_VISIBLE):
            continue
        window[:] = True
        off_road = thing.lateral < scene.edge("left") or thing.lateral > scene.edge("right")
        on_road = not off_road and not signal
        half = LANE_WIDTH / 2
        lane = "ego" if abs(thing.lateral) < half else "left" if thing.lateral < 0 else "right"
        placed.append(replace(thing, box=box, visible=round(visible, 3), lane=lane, on_road=on_road))
    return tuple(sorted(placed, key=lambda o: -o.distance))


# What a perfect detector of COCO's classes would find in this world.
COCO_LABELS = ("bicycle", "bus", "car", "person", "stop sign", "traffic light", "truck")
# Class of the world -> COCO labels; the others are called the same. Of the signs, COCO has the stop sign only.
_LABELS = {"pedestrian": ("person",), "cyclist": ("bicycle", "person"), "cone": (), "traffic sign": ()}


def coco_labels(name: str, state: str) -> tuple[str, ...]:
    """COCO labels of one object by its class and state: a cyclist is a bicycle and a person, a cone nothing."""
    return ("stop sign",) if state == "stop" else _LABELS.get(name, (name,))


def coco_classes(scenes: Iterable[Scene]) -> list[str]:
    """The COCO classes that are in sight in any of the frames, sorted."""
    return sorted(
        {label for scene in scenes for thing in scene.objects for label in coco_labels(thing.name, thing.state)}
    )
