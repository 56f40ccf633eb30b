"""Things in a picture that a question can be about: which of them count as instances, and which could be taken for one.

The rules are a detector's and a truth file's alike: sure, large enough, mostly in sight, no copy of another box, not right above
or below another thing of its class.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from drive_vlm.config import field
from drive_vlm.data.samples import BadRow

Box = tuple[float, float, float, float]
# The picture's thirds.
SIDES = ("left", "middle", "right")


@dataclass(frozen=True)
class Instance:
    """One thing with its box.

    Attributes:
        name: its class, such as vehicle, pedestrian, traffic light.
        box: x1, y1, x2, y2 in pixels of the picture.
        attributes: what is known of it: kind (car, truck ...), color, state, lane, side. What is not known is not there.
        distance: metres ahead, where the truth has it.
        visible: share of it that is in sight; None where the truth does not say.
        score: a detector's; None for truth.
    """

    name: str
    box: Box
    attributes: dict[str, str]
    distance: float | None = None
    visible: float | None = None
    score: float | None = None

    @property
    def area(self) -> float:
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])

    @property
    def centre(self) -> float:
        """The middle of the box, in pixels from the left."""
        return (self.box[0] + self.box[2]) / 2


@dataclass(frozen=True)
class Picture:
    """A picture with all its boxes, as a source gives it.

    Attributes:
        image: path below the image root.
        size: (height, width) in pixels.
        where: file and place, for messages.
        doubtful: what is there, but too small, hidden or unsure to be asked about: a clear question must not fit it.
    """

    id: str
    group: str
    image: str
    size: tuple[int, int]
    where: str
    instances: tuple[Instance, ...]
    doubtful: tuple[Instance, ...] = ()


@dataclass(frozen=True)
class KeepRules:
    """Which boxes count as instances."""

    min_score: float = field(0.5, help="score of a detection, at least", least=0, most=1)
    min_side: float = field(24.0, help="width and height of a box in pixels, at least", least=0)
    min_area: float = field(0.001, help="area of a box as a share of the picture, at least", least=0, most=1)
    min_visible: float = field(
        0.5, help="share of a thing in sight, at least, where the truth says it", least=0, most=1
    )
    max_iou: float = field(
        0.5, help="overlap (IoU) with a kept box of the class from which a box is a copy", least=0, most=1
    )
    min_gap: float = field(
        0.02, help="distance of the middles of two boxes of a class, as a share of the width, at least", least=0, most=1
    )


def check_boxes(picture: Picture) -> Picture:
    """`picture` with its boxes cut at the border by up to a pixel. Raises BadRow (box_outside, bad_box)."""
    height, width = picture.size
    cut = []
    for thing in picture.instances:
        x1, y1, x2, y2 = thing.box
        if not (x1 < x2 and y1 < y2):
            raise BadRow("bad_box", picture.where, f"the box {thing.box} of a {thing.name} has no area", "Fix the box")
        if x1 < -1 or y1 < -1 or x2 > width + 1 or y2 > height + 1:
            problem = (
                f"the box {thing.box} of a {thing.name} leaves the picture {picture.image}, {width} x {height} pixels"
            )
            way_out = "Boxes are x1, y1, x2, y2 in pixels of this picture; --on_bad_row skip leaves the picture out and counts it"
            raise BadRow("box_outside", picture.where, problem, way_out)
        cut.append(replace(thing, box=(max(0.0, x1), max(0.0, y1), min(float(width), x2), min(float(height), y2))))
    return replace(picture, instances=tuple(cut))


def side_of(x: float, width: float) -> str:
    """The third of a picture of `width` pixels that `x` lies in: left, middle or right; a border belongs to the third behind it.

    >>> side_of(299.9, 900), side_of(300, 900), side_of(599.9, 900), side_of(600, 900)
    ('left', 'middle', 'middle', 'right')
    """
    return SIDES[max(0, min(2, int(3 * x / width)))]


def keep_instances(picture: Picture, rules: KeepRules, left_out: Counter[str]) -> Picture:
    """The picture with the instances that count, from left to right, and the doubtful ones; reasons go into `left_out`.

    Larger boxes are kept before smaller ones. A copy of a kept box is the same thing and not doubtful.
    """
    height, width = picture.size
    kept: list[Instance] = []
    doubtful: list[Instance] = []
    for thing in sorted(picture.instances, key=lambda item: (-item.area, item.box)):
        thing = replace(thing, attributes=thing.attributes | {"side": side_of(thing.centre, width)})
        alike = [other for other in kept if other.name == thing.name]
        reason = _too_poor(thing, rules, height * width)
        if reason is None and any(iou(thing.box, other.box) >= rules.max_iou for other in alike):
            left_out["duplicate"] += 1
            continue
        if reason is None and any(abs(thing.centre - other.centre) < rules.min_gap * width for other in alike):
            reason = "centre_gap"
        if reason:
            left_out[reason] += 1
            doubtful.append(thing)
        else:
            kept.append(thing)
    kept.sort(key=lambda item: (item.centre, item.box))
    return replace(picture, instances=tuple(kept), doubtful=tuple(doubtful))


def _too_poor(thing: Instance, rules: KeepRules, pixels: int) -> str | None:
    x1, y1, x2, y2 = thing.box
    if thing.score is not None and thing.score < rules.min_score:
        return "low_score"
    if min(x2 - x1, y2 - y1) < rules.min_side:
        return "small_side"
    if thing.area < rules.min_area * pixels:
        return "small_area"
    return "hidden" if thing.visible is not None and thing.visible < rules.min_visible else None


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


@dataclass(frozen=True)
class SalienceRules:
    """When one of several things is meant without a word: it is much larger, or it alone is in our lane and near."""

    salient_area: float = field(
        3.0, help="area of the largest candidate over the second's that makes it meant", least=1
    )
    salient_distance: float = field(
        0.6, help="distance of the only candidate in our lane over the next one's, at most", least=0, most=1
    )


def salient(candidates: Sequence[Instance], rules: SalienceRules) -> Instance | None:
    """The candidate that stands out, or None.

    It is larger than any other by `salient_area`, or the only one in our lane and within `salient_distance` of the distance of the
    nearest other; without known lanes and distances the second rule does not apply.
    """
    first, second, *_ = sorted(candidates, key=lambda item: -item.area)
    if first.area >= rules.salient_area * second.area:
        return first
    ours = [item for item in candidates if item.attributes.get("lane") == "ego"]
    known = all("lane" in item.attributes and item.distance is not None for item in candidates)
    if not known or len(ours) != 1:
        return None
    nearest = min(item.distance or 0.0 for item in candidates if item is not ours[0])
    return ours[0] if (ours[0].distance or 0.0) <= rules.salient_distance * nearest else None


def nearest_of(candidates: Sequence[Instance], height: int, tie: float = 0.02) -> Instance | None:
    """The one whose box ends lowest; None where the next ends less than `tie` of the picture's height above it."""
    first, *others = sorted(candidates, key=lambda item: -item.box[3])
    return None if others and first.box[3] - others[0].box[3] < tie * height else first
