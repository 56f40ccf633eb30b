"""Trajectories from above: the row's own and the model's, in metres, the ego vehicle at the origin, driving up."""

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
    """The trajectory of a text (evaluation/answers/points.py); None for one that holds none, or no way of a car.

    >>> read_track("PT = [(1.0, 2.0), (3.0, 4.0)]")
    [(1.0, 2.0), (3.0, 4.0)]
    """
    from drive_vlm.evaluation.answers import read_points

    points = list(read_points(text).value or ())
    if len(points) < 2 or any(abs(number) >= _FARTHEST for point in points for number in point):
        return None
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
