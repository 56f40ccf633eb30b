"""Gate 2, positions: "a car on the left" must have a car's box in the left third, and coordinates must lie inside the picture.

A part of a sentence is read when it holds one object and one side; any other is left unread and counted, as is a side of something
else than the picture ("on the left of the truck", "the left lane"). "To the left" is where something moves, and is not read.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from drive_vlm.builders.ambiguity.instances import side_of
from drive_vlm.builders.synthesis.gates.candidate import Candidate, Outcome, SourceObject
from drive_vlm.builders.synthesis.gates.grounding import labels_of
from drive_vlm.builders.synthesis.gates.objects import Mention, ObjectReader

_SIDE = re.compile(
    r"\b(?:on|at|in|near|along)\s+(?:(?:the|its|our|your)\s+)?+(?:(?:far|extreme|very|lower|upper|bottom|top)\s+)?+"
    r"(left|right|cent(?:er|re)|middle)(?:[- ]hand)?+(?:\s+(?:side|edge|third|part|portion|half))?+\b"
    r"(?!\s+of\s+(?!(?:the|this)\s+(?:image|picture|photo|frame|scene|view)\b))"
    r"(?!\s+(?:\w+\s+)?(?:lanes?|turns?|arrows?|shoulder|sidewalk|curb|kerb|roads?|streets?|signal|wheel|mirror)\b)",
    re.IGNORECASE,
)
_PARTS = re.compile(r"[.;!?]+(?=\s|$)|,|\b(?:while|whereas|and|but)\b", re.IGNORECASE)
_NUMBER = r"-?\d+(?:\.\d+)?"
_COORDINATES = re.compile(rf"[\[(<]\s*(?:c\d+\s*,\s*\w+\s*,\s*)?({_NUMBER}(?:\s*,\s*{_NUMBER}){{1,3}})\s*[\])>]")
_SCALE = {"thousandths": 1000.0, "unit": 1.0}


@dataclass(frozen=True)
class Place:
    """A thing that a text puts on a side: the words, the classes, left, middle or right."""

    words: str
    classes: frozenset[str]
    side: str


def check_positions(row: Candidate, reader: ObjectReader, coordinates: str = "pixels") -> Outcome:
    """Reasons: region_outside, outside (coordinates that are not in the picture), bad_box (corners in the wrong order), wrong_side (no
    box of such a thing has its middle in that third). `coordinates`: what numbers are measured in, pixels, thousandths or unit. The score `sides_unread` counts what was not read."""
    width, height = row.size
    if row.region is not None and not _inside(row.region.box, width, height):
        return Outcome("region_outside", f"{list(row.region.box)} in {width} x {height}")
    for text in row.texts:
        if problem := _coordinates_problem(text, row.size, coordinates):
            return problem
    unread = 0
    for text in row.texts:
        places, skipped = places_of(text, row, reader)
        unread += skipped
        for place in places:
            boxes = _boxes(place, row, reader)
            sides = {side_of((box[0] + box[2]) / 2, width) for box in boxes}
            if boxes and place.side not in sides:
                detail = f"{place.words} said to be {place.side}, its boxes are {' and '.join(sorted(sides))}"
                return Outcome("wrong_side", detail)
    return Outcome(scores={"sides_unread": unread} if unread else {})


def places_of(text: str, row: Candidate, reader: ObjectReader) -> tuple[list[Place], int]:
    """(the places that a text gives to things that sources see, how many sides were left unread)."""
    labels = labels_of(row)
    mentions = reader.mentions(text, labels)
    asked = reader.mentions(row.question, labels) if row.asks_freely else ()
    places, unread = [], 0
    for start, end in _clauses(text, mentions):
        sides = {_name(found[1]) for found in _SIDE.finditer(text, start, end)}
        things = [mention for mention in mentions if start <= mention.start < end]
        if not sides:
            continue
        # "Where is the car?" "On the left."
        asked_thing = not mentions and len(asked) == 1
        if len(sides) > 1 or (len(things) != 1 and not asked_thing):
            unread += 1
            continue
        thing, words = (things[0], text) if things else (asked[0], row.question)
        if thing.verdict == "hit":
            places.append(Place(words[thing.start : thing.end].lower(), frozenset(thing.classes), sides.pop()))
    return places, unread


def _clauses(text: str, mentions: Sequence[Mention]) -> Iterator[tuple[int, int]]:
    """(start, end) of the parts of the sentences; a part that only says where ("On the left, a car waits") is one with the next."""
    borders = [0, *(found.start() for found in _PARTS.finditer(text)), len(text)]
    named = [mention.start for mention in mentions]
    start = 0
    for end in borders[1:]:
        bare = not any(start <= place < end for place in named) and _SIDE.search(text, start, end)
        if bare and text[end : end + 1] == ",":
            continue
        if end > start:
            yield start, end
        start = end


def _name(word: str) -> str:
    return word.lower() if word.lower() in ("left", "right") else "middle"


def _boxes(place: Place, row: Candidate, reader: ObjectReader) -> list[tuple[float, float, float, float]]:
    """The boxes that the thing can be; of a region row, whose thing is the region's, that one alone."""

    def fits(thing: SourceObject) -> bool:
        return bool(reader.classes_of(thing.label) & place.classes)

    if row.region is not None and fits(row.region):
        return [row.region.box]
    return [thing.box for thing in row.objects if fits(thing)]


def _coordinates_problem(text: str, size: tuple[int, int], coordinates: str) -> Outcome | None:
    scale = _SCALE.get(coordinates)
    width, height = size if scale is None else (scale, scale)
    for found in _COORDINATES.finditer(text):
        numbers = [float(number) for number in found[1].split(",")]
        if len(numbers) == 3:
            continue
        if any(not 0 <= x <= width for x in numbers[::2]) or any(not 0 <= y <= height for y in numbers[1::2]):
            return Outcome("outside", f"{found[0]} in {width:g} x {height:g}")
        if len(numbers) == 4 and (numbers[0] >= numbers[2] or numbers[1] >= numbers[3]):
            return Outcome("bad_box", found[0])
    return None


def _inside(box: tuple[float, float, float, float], width: float, height: float) -> bool:
    x1, y1, x2, y2 = box
    return 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
