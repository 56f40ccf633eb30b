"""Names of objects against the truth: by hand, with ties, and where nothing is defined."""

import numpy as np
import pytest

from drive_vlm.evaluation.object_names import (
    Claim,
    box_counts,
    claim_change,
    claim_counts,
    claim_of,
    claim_scores,
    name_change,
    name_scores,
    overlap,
    right_boxes,
)

A, B = [0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0]
NAMES = ("bus", "car", "traffic light", "light")


def test_a_true_box_is_found_once_and_by_its_own_name():
    assert overlap(A, [5.0, 0.0, 15.0, 10.0]) == pytest.approx(50 / 150) and overlap(A, B) == 0
    shifted = [1.0, 0.0, 11.0, 10.0]
    assert right_boxes([("car", A), ("car", shifted)], [("car", A)]) == 1
    # The nearer pair counts, so that the second box is left for the second car.
    assert right_boxes([("car", shifted), ("car", A)], [("car", A), ("car", [2.0, 0.0, 12.0, 10.0])]) == 2
    assert right_boxes([("bus", A)], [("car", A)]) == 0


def test_precision_recall_and_their_change_are_those_of_a_count_by_hand():
    """Two pictures: 3 true; found before 1 right of 2, after 3 right of 3."""
    truth = {"1": [("car", A), ("bus", B)], "2": [("car", A)], "3": []}
    before = box_counts({"1": [("car", A), ("car", B)]}, truth)
    after = box_counts({"1": [("car", A), ("bus", B)], "2": [("car", A)]}, truth)
    assert before.tolist() == [[1, 2, 2], [0, 0, 1], [0, 0, 0]]
    scores = name_scores(before)
    assert scores["precision"].value == pytest.approx(1 / 2) and scores["recall"].value == pytest.approx(1 / 3)
    change = name_change(before, after)
    assert change["precision"].value == pytest.approx(1 / 2) and change["recall"].value == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("question", "answer", "found"),
    [
        ("Is there a car?", "Yes, there is a car.", ("car", True)),
        ("Is there a car?", "No, there is no car.", ("car", False)),
        ("Is there a traffic light?", "Yes.", ("traffic light", True)),
        ("How many buses are there?", "There are two buses.", ("bus", True)),
        ("How many cars are there?", "There are no cars.", ("car", False)),
        ("Where is the bus?", "The bus is on the left.", ("bus", True)),
        ("Where is the bus?", "On the left.", ("bus", True)),
        ("Is there a bus?", "No, there is none.", ("bus", False)),
        ("Is there a car?", "A nocturnal scene.", None),
        ("Is it raining?", "Yes.", None),
    ],
)
def test_what_a_short_question_claims(question, answer, found):
    assert claim_of("p", question, answer, NAMES) == (None if found is None else Claim("p", *found))


def test_hallucinated_is_false_claims_of_all_claims_and_denials_claim_nothing():
    truth = {"1": [("car", A)], "2": [("bus", A), ("car", B)]}
    claims = [
        Claim("1", "car", True),
        Claim("1", "bus", True),
        Claim("1", "bus", True),
        Claim("2", "bus", True),
        Claim("2", "car", False),
    ]
    counts = claim_counts(claims, truth, ("bus", "car"))
    assert counts.tolist() == [[2, 3, 1, 2, 1], [0, 1, 1, 1, 2]]
    scores = claim_scores(counts)
    assert scores["hallucinated"].value == pytest.approx(2 / 4)
    assert scores["precision"].value == pytest.approx(2 / 3) and scores["recall"].value == pytest.approx(2 / 3)
    none = claim_counts([], truth, ("bus", "car"))
    assert claim_scores(none)["hallucinated"].value is None
    better = claim_counts(claims[:1] + claims[3:], truth, ("bus", "car"))
    assert claim_change(counts, better)["hallucinated"].value == pytest.approx(-1 / 2)
    assert np.isfinite(better).all()
