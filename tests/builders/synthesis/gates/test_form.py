"""Gate 1, form: both sides of every threshold, and what it must not take for a fault."""

import json
from collections import Counter

import pytest

from drive_vlm.builders.synthesis.gates.form import FormLimits, check_form


def words(count: int, end: str = ".") -> str:
    return " ".join(["car"] * count) + end


@pytest.mark.parametrize(
    ("count", "reason"),
    [(3, "question_too_short"), (4, ""), (60, ""), (61, "question_too_long")],
)
def test_lengths_of_a_free_question(row, count, reason):
    assert check_form(row(question=words(count, "?"))).reason == reason


@pytest.mark.parametrize(("count", "reason"), [(0, "empty"), (1, ""), (300, ""), (301, "too_long")])
def test_lengths_of_an_answer(row, count, reason):
    assert check_form(row(answer=words(count) if count else "  ")).reason == reason


def test_limits_are_those_given(row):
    limits = FormLimits(question=(1, 2), answer=(3, 4))
    assert check_form(row(question="Why?", answer="A red car."), limits).reason == ""
    assert check_form(row(question="Why not now?", answer="A red car."), limits).reason == "question_too_long"
    assert check_form(row(question="Why?", answer="A car."), limits).reason == "too_short"


def test_the_benchmarks_own_question_is_not_measured(row):
    """CODA-LM's general question has 95 words and ends as it likes; a driving suggestion is asked for with "please provide"."""
    assert check_form(row(fixed=True, question=words(95))).reason == ""
    assert check_form(row(fixed=True, question="Please provide driving suggestions")).reason == ""
    assert check_form(row(fixed=True, question=" ")).reason == "question_empty"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("Yes", ""),
        ("two red cars", ""),
        ("two red cars ahead", "no_end"),
        ("Two red cars ahead.", ""),
        ('The sign reads "STOP."', ""),
        ("Look at this list:", "no_end"),
        ("There is a car and", "no_end"),
    ],
)
def test_an_answer_ends_unless_it_is_short(row, answer, reason):
    assert check_form(row(answer=answer)).reason == reason


def test_what_stopped_at_the_limit_is_cut_off_even_when_it_ends_well(row):
    assert check_form(row(answer="A red car.", finish_reason="length")).reason == "cut_off"
    assert check_form(row(answer="A red car.", finish_reason="stop")).reason == ""


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't help with that.",
        "As an AI language model I have no eyes.",
        "I cannot see the image.",
        "One can’t see the picture here.",
        "No image was provided with this message.",
    ],
)
def test_refusals(row, answer):
    assert check_form(row(answer=answer)).reason == "refusal"


@pytest.mark.parametrize(
    "answer",
    [
        "According to the caption, a car waits.",
        "Based on the provided description there is a bus.",
        "The bounding box of the car is large.",
        "A car is listed in the object list.",
        "A bus with a confidence of 0.87 is there.",
        "From the detections, two cars are ahead.",
    ],
)
def test_source_leaks(row, answer):
    found = check_form(row(answer=answer))
    assert found.reason == "source_leak" and found.detail


@pytest.mark.parametrize(
    "answer",
    [
        "According to the sign, trucks must turn right.",
        "The driver cannot see the pedestrian behind the bus.",
        "In the context of heavy rain, slow down.",
        "Based on the red light, the car stops.",
        "A box truck with a large box on it is ahead.",
        "The car is at [1620, 900].",
    ],
)
def test_what_only_looks_like_a_leak(row, answer):
    assert check_form(row(answer=answer)).reason == ""


def test_words_of_an_encyclopedia(row):
    assert check_form(row(answer="Bicycles were introduced in the 19th century.")).reason == "encyclopaedic"
    assert check_form(row(answer="Trams have run here since 1890.")).reason == "encyclopaedic"
    assert check_form(row(answer="The road is 2000 meters long.")).reason == ""


def test_reasoning_is_looked_at_as_the_answer_is(row):
    assert check_form(row(reasoning="According to the caption a car waits.")).reason == "source_leak"
    assert check_form(row(reasoning="A car waits.")).reason == ""


def test_echo_script_and_marks(row):
    assert check_form(row(question="Is the light red?", answer="is the light red")).reason == "no_end"
    assert check_form(row(question="Is the light red?", answer="Is the light RED?")).reason == "echo"
    assert check_form(row(answer="前方有一辆汽车.")).reason == "other_script"
    assert check_form(row(answer="The sign of Café Škoda is lit.")).reason == ""
    assert check_form(row(answer="<image> A car.")).reason == "special_tokens"


@pytest.mark.kit
def test_answers_that_people_checked_pass_but_for_their_length(row, kit):
    """847 reference answers of CODA-LM: what the gate says of them besides their length would be wrong."""
    folder = kit / "noncommercial" / "codalm_text" / "prediction"
    if not folder.is_dir():
        pytest.skip("the kit has no codalm_text")
    lines = [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]
    reasons = Counter(
        check_form(row(question=line["question"], answer=line["answer"], fixed=True)).reason for line in lines
    )
    assert len(lines) == 847 and set(reasons) == {"", "too_long"} and reasons["too_long"] == 23
