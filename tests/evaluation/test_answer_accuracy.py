"""Normalisation and baselines, counted by hand."""

import pytest

from drive_vlm.evaluation.answer_accuracy import TrainingAnswers, correct_answers, normalize_answer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" The  red light. ", "red light"),
        ("Yes!", "yes"),
        ("a car, an Ego-vehicle", "car ego vehicle"),
        ("0.5", "0.5"),
        ("-5 m", "-5 m"),
        ("two-lane", "two lane"),
        ("It is 3.", "it is 3"),
        ("ＳＴＯＰ", "stop"),
        ("theatre", "theatre"),
        ("<c1,CAM_FRONT,714.3,503.6>", "c1 cam_front 714.3 503.6"),
        ("the", ""),
    ],
)
def test_normalize(text, expected):
    assert normalize_answer(text) == expected


def test_correct_answers():
    assert correct_answers(["Red.", "green", "", "5"], ["red", "red", "red", "-5"]).tolist() == [1, 0, 0, 0]


@pytest.fixture
def answers():
    counted = TrainingAnswers()
    for template, answer in [
        ("light", "Red."),
        ("light", "red"),
        ("light", "green"),
        ("count", "1"),
        ("count", "2"),
        ("count", "3"),
        ("count", "4"),
    ]:
        counted.add(template, answer)
    return counted


def test_majority_of_the_template_and_ties_by_alphabet(answers):
    assert answers.majority(["light", "count", "never seen"]) == ["red", "1", "red"]


def test_chance(answers):
    assert answers.chance(["light", "count", "never seen"]).tolist() == [1 / 2, 1 / 4, 1 / 6]
