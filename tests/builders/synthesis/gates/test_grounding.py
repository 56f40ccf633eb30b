"""Gate 2, grounding: what a row claims, what it denies, and what nobody could have seen."""

import pytest

from drive_vlm.builders.synthesis.gates.grounding import check_grounding, claims_of

CAR, PERSON = ("car", (0, 0, 9, 9)), ("pedestrian", (500, 0, 520, 60))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("A car waits.", ""),
        ("A sedan waits for a man.", ""),
        ("A vehicle waits.", ""),
        ("A bus waits.", "ungrounded"),
        ("A car and a bus wait.", "ungrounded"),
        ("There is no bus.", ""),
        ("There are neither buses nor trucks, only a car.", ""),
        ("A cyclist rides by.", "ungrounded"),
        ("A traffic cone stands next to the barrier.", ""),
        ("A bus stop is ahead.", ""),
    ],
)
def test_claims_of_an_answer_against_a_detector_of_coco(row, coco_reader, answer, reason):
    assert check_grounding(row(answer=answer, objects=[CAR, PERSON]), coco_reader).reason == reason


def test_the_score_is_the_share_of_claims_that_a_source_has(row, coco_reader):
    found = check_grounding(row(answer="A car, a man, a bus and a train.", objects=[CAR, PERSON]), coco_reader)
    assert (found.reason, found.detail, found.scores) == ("ungrounded", "bus, train", {"grounding": 0.5})
    assert check_grounding(row(answer="A road."), coco_reader).scores == {}


def test_what_the_sources_cannot_see_is_neither_right_nor_wrong(row, reader_of, coco_reader):
    horse = row(answer="A horse stands there.", objects=[CAR])
    assert check_grounding(horse, coco_reader).reason == "ungrounded"
    assert check_grounding(horse, reader_of("car", "person")).reason == ""
    assert check_grounding(horse, reader_of("car", "horse")).reason == "ungrounded"
    # A detector of cars alone does not know that the vehicle is no bus.
    vehicle = row(answer="A vehicle waits.")
    assert check_grounding(vehicle, reader_of("car")).reason == ""
    assert check_grounding(vehicle, coco_reader).reason == "ungrounded"


def test_names_of_an_open_vocabulary_become_claims(row, reader_of):
    cone = ("traffic cone", (0, 0, 9, 9))
    reader = reader_of("car", "traffic_cone", "sentry box")
    assert check_grounding(row(answer="A traffic cone stands there."), reader).detail == "traffic cone"
    assert check_grounding(row(answer="Two traffic cones stand there.", objects=[cone]), reader).reason == ""
    assert check_grounding(row(answer="There is no traffic cone."), reader).reason == ""
    assert check_grounding(row(answer="A sentry box is on the left."), reader).reason == "ungrounded"
    assert check_grounding(row(answer="A barrier is on the left."), reader).reason == ""


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("Is there a bus in the picture?", "Yes.", "ungrounded"),
        ("Is there a bus in the picture?", "Yes, on the left.", "ungrounded"),
        ("Is there a bus in the picture?", "No.", ""),
        ("Is there a car in the picture?", "Yes.", ""),
        ("Is there a car in the picture?", "No, there is none.", "denied_seen"),
        ("Is there a car in our lane?", "No.", ""),
        ("How many buses are visible?", "Two.", "ungrounded"),
        ("How many buses are visible?", "There are 3.", "ungrounded"),
        ("How many buses are visible?", "None.", ""),
        ("How many cars are visible?", "Zero.", "denied_seen"),
        ("Do you see a horse?", "It is hard to say.", ""),
        ("What is the horse doing?", "It waits.", "ungrounded"),
        ("What is the car doing?", "It waits.", ""),
    ],
)
def test_a_question_claims_what_its_answer_affirms_or_what_it_takes_for_granted(
    row, coco_reader, question, answer, reason
):
    assert check_grounding(row(question=question, answer=answer, objects=[CAR]), coco_reader).reason == reason


def test_an_absent_object_may_be_asked_about(row, coco_reader):
    asked = row(kind="existence", question="Is a bicycle near us?", answer="No, no bicycle is near us.", objects=[CAR])
    assert claims_of(asked, coco_reader).named == 0 and check_grounding(asked, coco_reader).reason == ""


def test_the_question_of_a_fixed_task_claims_nothing(row, coco_reader):
    """CODA-LM's question lists cars, buses, cyclists and cones that the picture need not have."""
    question = "Focus on cars, trucks, buses, pedestrians, cyclists, motorcyclists and traffic lights."
    assert check_grounding(row(fixed=True, question=question, objects=[CAR]), coco_reader).reason == ""
    assert check_grounding(row(question=question, objects=[CAR]), coco_reader).reason == "ungrounded"


def test_reasoning_is_read_as_well(row, coco_reader):
    asked = row(task="suggestion", answer="Slow down.", reasoning="Objects: car, bus.", objects=[CAR])
    assert check_grounding(asked, coco_reader).detail == "bus"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("A pedestrian who may cross behind the car.", ""),
        ("A car that waits.", "other_object"),
        ("This object may fall over.", ""),
        ("A vehicle is parked.", "other_object"),
        ("The vehicle is parked.", ""),
    ],
)
def test_an_answer_about_a_region_names_the_region(row, coco_reader, answer, reason):
    asked = row(task="region", question="Describe it.", answer=answer, objects=[CAR, PERSON], region=PERSON)
    assert check_grounding(asked, coco_reader).reason == reason


def test_a_region_that_no_detector_can_name(row, coco_reader):
    barrier = ("barrier", (0, 0, 9, 9))
    named = row(task="region", answer="A barrier next to a car.", objects=[CAR, barrier], region=barrier)
    other = row(task="region", answer="A car that waits.", objects=[CAR, barrier], region=barrier)
    assert check_grounding(named, coco_reader).reason == ""
    assert check_grounding(other, coco_reader).reason == "other_object"
