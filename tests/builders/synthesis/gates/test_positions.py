"""Gate 2, positions: thirds to the pixel, sides of other things than the picture, coordinates on the border."""

import pytest

from drive_vlm.builders.ambiguity.instances import side_of
from drive_vlm.builders.synthesis.gates.positions import check_positions, places_of

LEFT, MIDDLE, RIGHT = (0, 0, 100, 50), (400, 0, 500, 50), (800, 0, 900, 50)


@pytest.mark.parametrize(
    ("x", "side"),
    [
        (0, "left"),
        (299.99, "left"),
        (300, "middle"),
        (599.99, "middle"),
        (600, "right"),
        (900, "right"),
        (901, "right"),
    ],
)
def test_thirds_of_900_pixels(x, side):
    assert side_of(x, 900) == side


@pytest.mark.parametrize(
    ("box", "reason"),
    [((199, 0, 400, 9), ""), ((200, 0, 400, 9), "wrong_side"), ((0, 0, 598, 9), ""), ((0, 0, 602, 9), "wrong_side")],
)
def test_the_middle_of_the_box_decides(row, coco_reader, box, reason):
    asked = row(answer="A car is on the left.", objects=[("car", box)])
    assert check_positions(asked, coco_reader).reason == reason


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("A car is on the left.", ""),
        ("A car is on the right.", "wrong_side"),
        ("A car is in the middle of the picture.", "wrong_side"),
        ("On the right, a car waits.", "wrong_side"),
        ("On the left, a car waits.", ""),
        ("A car is on the left-hand side and a pedestrian is on the right.", ""),
        ("A pedestrian is on the left while a car is on the left.", "wrong_side"),
        ("A car is on the right of the bus.", ""),
        ("A car is on the right side of the road.", ""),
        ("A car is in the right lane.", ""),
        ("The car turns to the right.", ""),
        ("No car is on the right.", ""),
        ("A sign is on the right.", ""),
    ],
)
def test_sides(row, coco_reader, answer, reason):
    asked = row(answer=answer, objects=[("car", LEFT), ("pedestrian", RIGHT)])
    assert check_positions(asked, coco_reader).reason == reason


def test_any_box_of_the_kind_will_do(row, coco_reader):
    asked = row(answer="A car is on the right.", objects=[("car", LEFT), ("car", RIGHT)])
    assert check_positions(asked, coco_reader).reason == ""


def test_of_a_region_row_its_own_box_counts(row, coco_reader):
    things = [("car", LEFT), ("car", RIGHT)]
    asked = row(task="region", answer="The car is on the right.", objects=things, region=("car", LEFT))
    assert check_positions(asked, coco_reader).reason == "wrong_side"


def test_an_answer_of_a_side_alone_is_about_the_one_thing_asked_for(row, coco_reader):
    asked = row(question="Where is the car?", answer="On the right.", objects=[("car", LEFT)])
    assert check_positions(asked, coco_reader).reason == "wrong_side"
    two = row(question="Where are the car and the bus?", answer="On the right.", objects=[("car", LEFT)])
    assert check_positions(two, coco_reader).scores == {"sides_unread": 1}


def test_what_is_not_read_is_counted(row, coco_reader):
    asked = row(answer="A car with a dog is on the right.", objects=[("car", LEFT), ("dog", LEFT)])
    assert places_of(asked.answer, asked, coco_reader) == ([], 1)
    assert check_positions(asked, coco_reader).scores == {"sides_unread": 1}


@pytest.mark.parametrize(
    ("answer", "coordinates", "reason"),
    [
        ("It is at [900, 450].", "pixels", ""),
        ("It is at [901, 450].", "pixels", "outside"),
        ("It is at (900, 451).", "pixels", "outside"),
        ("It is at (-1, 0).", "pixels", "outside"),
        ("It is at [0, 0, 900, 450].", "pixels", ""),
        ("It is at [10, 0, 10, 450].", "pixels", "bad_box"),
        ("It is at [10, 20, 30, 20].", "pixels", "bad_box"),
        ("It is at <c1, CAM_FRONT, 901.5, 3>.", "pixels", "outside"),
        ("It is at [1000, 1000].", "thousandths", ""),
        ("It is at [1001, 10].", "thousandths", "outside"),
        ("It is at [0.5, 1.0].", "unit", ""),
        ("It is at [0.5, 1.01].", "unit", "outside"),
        ("Mind [1, 2, 9999].", "pixels", ""),
    ],
)
def test_coordinates_on_the_border(row, coco_reader, answer, coordinates, reason):
    assert check_positions(row(answer=answer), coco_reader, coordinates).reason == reason


@pytest.mark.parametrize(
    ("box", "reason"),
    [((0, 0, 900, 450), ""), ((0, 0, 900.5, 450), "region_outside"), ((5, 0, 5, 9), "region_outside")],
)
def test_a_region_lies_inside_the_picture(row, coco_reader, box, reason):
    assert check_positions(row(task="region", region=("car", box)), coco_reader).reason == reason
