"""Short questions by templates, and boxes of the truth with a detector's faults by chance."""

import json
from pathlib import Path

import numpy as np
import pytest

from drive_vlm.builders.synthesis.short_questions import short_questions
from drive_vlm.builders.synthesis.truth import NAMES, finding, nothing, objects_of_scene
from drive_vlm.evaluation.object_names import overlap

OBJECTS = [("car", [0, 0, 10, 10]), ("car", [30, 0, 40, 10]), ("bus", [80, 0, 100, 10]), ("road", [0, 0, 99, 9])]
ALL = {"present": 9, "absent": 9, "count": 9, "position": 9}


def test_answers_are_those_of_the_objects():
    found = {one.question: one for one in short_questions(OBJECTS, ("bus", "car", "truck"), 100, "p", 0, ALL)}
    answers = {question: one.answer for question, one in found.items()}
    assert answers == {
        "Is there a bus?": "Yes, there is one.",
        "Is there a car?": "Yes, there is one.",
        "Is there a truck?": "No, there is none.",
        "How many buses are there?": "There is one.",
        "How many cars are there?": "There are two.",
        # Where is said of what is there once: the middle of the bus is at 90 of 100.
        "Where is the bus?": "On the right.",
    }
    assert [one.question for one in found.values() if one.absent] == ["Is there a truck?"]


def test_the_choice_is_of_the_picture_and_seed_and_within_the_counts():
    few = {"present": 1, "absent": 2, "count": 0, "position": 1}
    first = short_questions(OBJECTS, NAMES, 100, "p", 0, few)
    assert first == short_questions(list(reversed(OBJECTS)), NAMES, 100, "p", 0, few)
    kinds = [one.kind for one in first]
    assert kinds == ["existence"] * 3 + ["position"] and [one.absent for one in first[:3]] == [False, True, True]
    others = {tuple(one.label for one in short_questions(OBJECTS, NAMES, 100, str(i), 0, few)) for i in range(20)}
    assert len(others) > 5


class Picture:
    where = "pictures.jsonl:1"

    def __init__(self, image: str) -> None:
        self.image = image


@pytest.fixture(scope="module")
def scenes(synthetic_data: Path) -> dict:
    lines = map(json.loads, (synthetic_data / "scenes.jsonl").read_text().splitlines())
    return {truth["image"]: truth for truth in lines if "image" in truth}


def test_without_faults_the_boxes_are_the_truth_and_no_region_is_left(scenes):
    pictures = [Picture(image) for image in scenes]
    for picture, made in zip(pictures, finding(scenes, 0, 0, 0, 0)(pictures), strict=True):
        boxes = [(box["label"], box["box"]) for box in made.fields["boxes"]]
        assert boxes == objects_of_scene(scenes[picture.image]) and made.fields["regions"] == [] and not made.dropped


def test_what_is_missed_has_a_region_in_place_of_a_box_and_what_is_invented_is_absent(scenes):
    pictures = [Picture(image) for image in scenes]
    made = list(finding(scenes, 0.3, 0.2, 1, 0)(pictures))
    assert [one.fields for one in made] == [one.fields for one in finding(scenes, 0.3, 0.2, 1, 0)(pictures)]
    missed = invented = objects = 0
    for picture, one in zip(pictures, made, strict=True):
        truth = objects_of_scene(scenes[picture.image])
        boxes = [(box["label"], box["box"]) for box in one.fields["boxes"]]
        false = [box for box in boxes if box not in truth]
        regions = [region["box"] for region in one.fields["regions"]]
        lost = [box for _, box in truth if not any(box == other for _, other in boxes)]
        assert all(box in regions for box in lost)
        assert not {name for name, _ in false} & {name for name, _ in truth}
        missed, invented, objects = missed + one.dropped.get("missed", 0), invented + len(false), objects + len(truth)
    assert 0.15 < missed / objects < 0.45 and invented > 10


def test_regions_of_nothing_keep_away_from_objects():
    chance = np.random.default_rng(0)
    there = [[0.0, 0.0, 30.0, 64.0]]
    found = list(nothing(chance, there, 64, 64, 50))
    assert len(found) > 20 and all(overlap(box, there[0]) < 0.25 for box in found)
    assert list(nothing(chance, [[0.0, 0.0, 64.0, 64.0]], 64, 64, 5)) == []


def test_a_picture_that_the_truth_lacks_is_named(scenes):
    with pytest.raises(ValueError, match=r"pictures.jsonl:1: x.png is no picture of the truth"):
        list(finding(scenes, 0, 0, 0, 0)([Picture("x.png")]))
