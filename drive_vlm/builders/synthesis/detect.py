"""Step 1: what a detector finds on pictures becomes the fields "size", "boxes" and "unknown_labels", every object once."""

from collections.abc import Iterator, Sequence
from typing import Any

from drive_vlm.builders.synthesis.boxes import each_object_once
from drive_vlm.builders.synthesis.detectors import Detect, Found
from drive_vlm.builders.synthesis.labels import letters
from drive_vlm.builders.synthesis.pictures import Picture, load_all
from drive_vlm.builders.synthesis.records import FoundBox, plain_record
from drive_vlm.builders.synthesis.step import Made, Make
from drive_vlm.data.samples import BadRow


def named_boxes(objects: Sequence[Any], labels: list[str], by: str) -> Found:
    """Found of a closed detector's objects: of its classes those of `labels`, all of them where there is no list."""
    known, found = {letters(label): label for label in labels}, Found()
    for item in objects:
        label = known.get(letters(item.label)) if labels else item.label
        if label is None:
            found.unknown[item.label] += 1
        else:
            found.boxes.append(FoundBox(list(item.box), label, item.score, by))
    return found


def looking(detect: Detect, same_label: float, any_label: float) -> Make:
    """The make of the step: unreadable pictures are bad, all others are shown to the detector together."""

    def make(pictures: Sequence[Picture]) -> Iterator[Made | BadRow]:
        loaded = load_all(pictures)
        shown = [item for item in loaded if not isinstance(item, ValueError)]
        found = iter(detect(shown) if shown else [])
        for item in loaded:
            yield item if isinstance(item, ValueError) else merged(next(found), item.size, same_label, any_label)

    return make


def merged(found: Found, size: tuple[int, int], same_label: float, any_label: float) -> Made:
    """The line's fields: every object once."""
    boxes, dropped = each_object_once(found.boxes, *size, same_label, any_label)
    unknown = dict(sorted(found.unknown.items()))
    fields = {"size": list(size), "boxes": [plain_record(box) for box in boxes], "unknown_labels": unknown}
    return Made(fields, dict(dropped) | ({"unknown_label": sum(unknown.values())} if unknown else {}))
