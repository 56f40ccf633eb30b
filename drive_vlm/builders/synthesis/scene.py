"""What a line says of its picture, as texts for a model: objects with places, descriptions, the best caption so far."""

from collections.abc import Sequence
from typing import Any

from drive_vlm.builders.synthesis.pictures import Picture
from drive_vlm.builders.synthesis.records import Description, NamedObject, descriptions_of, field_of
from drive_vlm.data.vision import checked_image_size

SIDES = ("left", "center", "right")


def objects_of(line: dict[str, Any], where: str) -> list[NamedObject]:
    """What a text may name: what retrieval has named, or in a file that never went through it, what the detector has found.

    Raises ValueError for a line that has neither.
    """
    if "objects" not in line and "boxes" in line:
        return [
            NamedObject(found.box, found.label, found.score, "detector") for found in field_of(line, "boxes", where)
        ]
    return field_of(line, "objects", where)


def size_of(picture: Picture, line: dict[str, Any]) -> tuple[int, int]:
    """(width, height), of the line or of the picture's header. Raises BadRow for a picture that cannot be read."""
    if "size" in line:
        width, height = field_of(line, "size", picture.where)
        return width, height
    height, width = checked_image_size(picture.path, picture.where)
    return width, height


def side_of(box: Sequence[float], width: float) -> str:
    """The third of the picture that holds the box's middle.

    >>> side_of([0, 0, 200, 9], 300), side_of([201, 0, 220, 9], 300)
    ('center', 'right')
    """
    middle = (box[0] + box[2]) / 2
    return SIDES[min(2, int(3 * middle / width))]


def object_lines(objects: Sequence[NamedObject], width: int, height: int) -> str:
    """A numbered line for each object: its name, its box in percent of width and height, its third, who named it and how surely;
    "none" without an object."""
    lines = []
    for number, found in enumerate(objects, 1):
        x1, y1, x2, y2 = (round(100 * value / side) for value, side in zip(found.box, (width, height) * 2, strict=True))
        place = f"from {x1} % to {x2} % of the width and {y1} % to {y2} % of the height, {side_of(found.box, width)}"
        lines.append(f"{number}. {found.label}: {place}; named by {found.by}, score {found.score:.2f}")
    return "\n".join(lines) or "none"


def description_lines(line: dict[str, Any], where: str) -> str:
    """ "name: what it is" of each label that has a description; "none" without one."""
    found = known_descriptions(line, where)
    return "\n".join(f"{label}: {entry.text}" for label, entry in sorted(found.items())) or "none"


def known_descriptions(line: dict[str, Any], where: str) -> dict[str, Description]:
    """Labels with their descriptions; none where the step describe was left out."""
    if "descriptions" not in line:
        return {}
    return {label: entry for label, entry in descriptions_of(line, where).items() if entry is not None}


def best_caption(line: dict[str, Any], where: str) -> str:
    """The refined caption where the step refine took it, else the raw one; "" where the captioner gave none."""
    if "caption_fine" in line:
        return field_of(line, "caption_fine", where)
    return field_of(line, "caption_raw", where)
