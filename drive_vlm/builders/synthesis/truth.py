"""Boxes and regions from the exact truth of a synthetic data set, with the faults of a detector by seeded chance.

It stands in for detector and segmenter where neither can run: `misses` of the objects have no box, `false_hits` of the names that a
picture lacks have one somewhere. Regions are of the missed objects and of some places where nothing is, as a segmenter that knows
no names finds them where no box is yet; their masks are rectangles.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drive_vlm.builders.synthesis.pictures import Picture
from drive_vlm.builders.synthesis.records import Box, FoundBox, Region, plain_record
from drive_vlm.builders.synthesis.rle import encode_rle
from drive_vlm.builders.synthesis.step import Made, Make
from drive_vlm.data.jsonl import JsonlFile

# Class of the world -> the name that a text has for it; the others are called the same.
_NAMES = {"pedestrian": "person", "cyclist": "bicycle", "cone": "traffic cone"}
NAMES = ("bicycle", "bus", "car", "person", "traffic cone", "traffic light", "traffic sign", "truck")
# What a crop of no object is called in a data base: a thing that has a name of its own, and that nobody asks about.
BACKGROUND = "background"
# A region where nothing is shares at most this much of itself with any object.
_APART = 0.2
_TRIES = 20


def objects_of_scene(truth: Mapping[str, Any]) -> list[tuple[str, Box]]:
    """(name, box) of every object of a line of scenes.jsonl."""
    return [
        (_NAMES.get(thing["name"], thing["name"]), [float(value) for value in thing["box"]])
        for thing in truth["objects"]
    ]


def read_scenes(path: Path) -> dict[str, dict[str, Any]]:
    """Truth of each picture by its path. Raises ValueError for a missing file and one without pictures."""
    if not path.is_file():
        raise ValueError(f"{path} is not there: it is a file of tools/build_synthetic.py")
    found = {scene["image"]: scene for scene in JsonlFile(path) if "image" in scene}
    if not found:
        raise ValueError(f"{path} holds no pictures: build with --scenes")
    return found


def chance_of(picture: str, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, int.from_bytes(hashlib.sha256(picture.encode()).digest()[:8], "big")])


def finding(scenes: Mapping[str, Mapping[str, Any]], misses: float, false_hits: float, empty: int, seed: int) -> Make:
    """The make of the step: "size", "boxes", "unknown_labels" and "regions" of each picture; `empty`: regions where nothing is.

    It raises ValueError for a picture that the truth lacks.
    """

    def make(pictures: Sequence[Picture]) -> Iterator[Made]:
        for picture in pictures:
            truth = scenes.get(picture.image)
            if truth is None:
                raise ValueError(
                    f"{picture.where}: {picture.image} is no picture of the truth. Give its own scenes.jsonl"
                )
            yield _found(truth, chance_of(picture.image, seed), misses, false_hits, empty)

    return make


def _found(truth: Mapping[str, Any], chance: np.random.Generator, misses: float, false_hits: float, empty: int) -> Made:
    height, width = truth["size"]
    there = objects_of_scene(truth)
    seen = [chance.random() >= misses for _ in there]
    kept, missed = (
        [thing for thing, found in zip(there, seen, strict=True) if found is side] for side in (True, False)
    )
    absent = [name for name in NAMES if name not in {name for name, _ in there}]
    invented = [(name, _somewhere(chance, width, height)) for name in absent if chance.random() < false_hits]
    boxes = [
        FoundBox(box, name, round(float(chance.uniform(0.5, 1.0)), 3), "scene truth")
        for name, box in (*kept, *invented)
    ]
    places = [box for _, box in missed] + list(nothing(chance, [box for _, box in there], width, height, empty))
    regions = [Region(_mask(box, width, height), box, round(float(chance.uniform(0.8, 1.0)), 3)) for box in places]
    counts = {name: len(found) for name, found in (("missed", missed), ("invented", invented)) if found}
    return Made(
        {
            "size": [width, height],
            "boxes": [plain_record(box) for box in boxes],
            "unknown_labels": {},
            "regions": [plain_record(region) for region in regions],
        },
        counts,
    )


def _somewhere(chance: np.random.Generator, width: int, height: int) -> Box:
    """A box of a sixth to a third of each side."""
    wide, high = (int(chance.integers(side // 6, side // 3 + 1)) for side in (width, height))
    left, top = int(chance.integers(0, width - wide + 1)), int(chance.integers(0, height - high + 1))
    return [float(left), float(top), float(left + wide), float(top + high)]


def nothing(chance: np.random.Generator, there: Sequence[Box], width: int, height: int, count: int) -> Iterator[Box]:
    """At most `count` boxes that hardly share a pixel with `there`; a full picture has fewer."""
    for _ in range(count):
        for _ in range(_TRIES):
            box = _somewhere(chance, width, height)
            if all(_shared(box, other) <= _APART for other in there):
                yield box
                break


def _shared(box: Box, other: Box) -> float:
    """Area that both have, over the smaller of the two areas."""
    wide = min(box[2], other[2]) - max(box[0], other[0])
    high = min(box[3], other[3]) - max(box[1], other[1])
    areas = [(one[2] - one[0]) * (one[3] - one[1]) for one in (box, other)]
    return max(0.0, wide) * max(0.0, high) / max(1e-9, min(areas))


def _mask(box: Box, width: int, height: int) -> Any:
    mask = np.zeros((height, width), dtype=bool)
    mask[int(box[1]) : int(box[3]), int(box[0]) : int(box[2])] = True
    return encode_rle(mask)
