"""Trajectories from above: the row's own and the model's, in metres, the ego vehicle at the origin, driving up."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

Path2d = list[tuple[float, float]]
# Beyond this, in metres, numbers are no way of a car in a few seconds.
_FARTHEST = 1000.0


@dataclass(frozen=True)
class Track:
    """A trajectory to draw: `kind` is a class of the page's style ("answer", "said", "other")."""

    name: str
    points: Path2d
    kind: str


def read_track(text: str) -> Path2d | None:
    """Points of a text that is a list of pairs as JSON or Python write it, with or without a name before it; None for any other.

    >>> read_track("PT = [(1.0, 2.0), (3.0, 4.0)]")
    [(1.0, 2.0), (3.0, 4.0)]
    """
    start, end = text.find("["), text.rfind("]")
    if start < 0 or end < start:
        return None
    try:
        found = json.loads(text[start : end + 1].replace("(", "[").replace(")", "]"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, list) or len(found) < 2:
        return None
    points = []
    for pair in found:
        if not isinstance(pair, list) or len(pair) != 2:
            return None
        if not all(
            type(number) in (int, float) and math.isfinite(number) and abs(number) < _FARTHEST for number in pair
        ):
            return None
        points.append((float(pair[0]), float(pair[1])))
    return points


def draw_tracks(tracks: Sequence[Track], size: int = 260) -> Markup:
    """An <svg>: x forward, y to the left, as the field writes them; a ring each 10 m."""
    every = [point for track in tracks for point in track.points] + [(0.0, 0.0)]
    ahead, behind = max(x for x, _ in every), min(x for x, _ in every)
    side = max(abs(y) for _, y in every)
    reach = max(5.0, ahead - behind, 2 * side) * 1.15
    scale, middle = size / reach, (ahead + behind) / 2

    def place(point: tuple[float, float]) -> str:
        return f"{size / 2 - point[1] * scale:.1f},{size / 2 - (point[0] - middle) * scale:.1f}"

    centre = place((0.0, 0.0)).split(",")
    shapes = [
        Markup('<circle cx="{}" cy="{}" r="{}" class="ring"/>').format(*centre, f"{10 * ring * scale:.1f}")
        for ring in range(1, min(12, int(reach / 10) + 2))
    ]
    for track in tracks:
        line = " ".join(map(place, [(0.0, 0.0), *track.points]))
        dots = Markup("").join(
            Markup('<circle cx="{}" cy="{}" r="2.5"/>').format(*place(point).split(",")) for point in track.points
        )
        shapes.append(
            Markup('<g class="track {}"><title>{}</title><polyline points="{}"/>{}</g>').format(
                track.kind, track.name, line, dots
            )
        )
    ego = Markup('<rect x="{:.1f}" y="{:.1f}" width="8" height="16" rx="2" class="ego"/>').format(
        float(centre[0]) - 4, float(centre[1]) - 8
    )
    return Markup('<svg class="bird" viewBox="0 0 {} {}" role="img">{}{}</svg>').format(
        size, size, Markup("").join(shapes), ego
    )
