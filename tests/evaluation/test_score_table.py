"""The shared tail of benchmark evaluators: coverage, unread rows, intervals, baselines, what makes a score partial."""

import json

import pytest

from drive_vlm.data.predictions import parse_prediction
from drive_vlm.evaluation.answers import Said, unread
from drive_vlm.evaluation.score_table import CHANGES, ScoreTable, constant_column, majority, match_predictions


def predictions(**answers):
    return [
        parse_prediction(
            {"id": name, "prediction": text, "reference": "A", "question": f"<image>\nQ {name}?"}, f"p:{i}"
        )
        for i, (name, text) in enumerate(answers.items(), 1)
    ]


ROWS = {name: {"question": f"Q {name}?"} for name in "abc"}


def test_unread_choices_are_wrong_and_unread_ratings_are_left_out() -> None:
    table = ScoreTable("X", "v1", rows_there=4, rows_scored=4)
    said = [Said("A"), unread("empty"), Said("B"), Said("A")]
    right = table.add_choices("all", [True, False, False, False], said, ["A"] * 4, ["s", "s", "t", "t"])
    assert right.tolist() == [1, 0, 0, 1]
    scores = table.sections["scores"]
    assert (scores["all, strict"].value, scores["all, lenient"].value, scores["all, lenient"].unread) == (25, 50, 1)
    rated = table.add("judge", [None, 0.5, 1.0], ["s", "s", "t"])
    assert (rated.value, rated.n, rated.of, rated.unread) == (75, 2, 3, 1)
    empty = table.add("nothing rated", [None], ["s"])
    assert (empty.value, empty.low, empty.unread) == (None, None, 1)
    json.dumps(table.to_dict(), allow_nan=False)


def test_an_unread_answer_never_equals_a_missing_truth() -> None:
    table = ScoreTable("X", "v1", 1, 1)
    assert table.add_choices("all", [False], [unread("empty")], [None], ["s"]).tolist() == [0]


def test_intervals_draw_scenes() -> None:
    table = ScoreTable("X", "v1", 40, 40, scale=1)
    values = [1.0] * 20 + [0.0] * 20
    wide = table.add("two scenes", values, ["s"] * 20 + ["t"] * 20)
    narrow = table.add("forty scenes", values, list(range(40)))
    assert (wide.low, wide.high, wide.groups) == (0, 1, 2) and 0.3 < narrow.low < narrow.high < 0.7
    change = table.add_change("change", [0, 1], [1, 1], ["s", "t"])
    assert change.value == 0.5 and CHANGES in table.to_dict()


def test_fifteen_of_450_rows_are_partial() -> None:
    table = ScoreTable("X", "v1", rows_there=450, rows_scored=15)
    assert table.partial == ["15 of 450 rows have a prediction"]
    assert not ScoreTable("X", "v1", 15, 15).partial


def test_predictions_meet_their_rows() -> None:
    found = match_predictions(ROWS, predictions(c="1", a="2", b="3"), "rows.jsonl")
    assert [item.id for item in found] == ["a", "b", "c"]
    with pytest.raises(ValueError, match=r"1 of 3 rows of rows\.jsonl have no prediction, e\.g\. c"):
        match_predictions(ROWS, predictions(a="", b=""), "rows.jsonl")
    assert [item.id for item in match_predictions(ROWS, predictions(b=""), "rows.jsonl", "skip")] == ["b"]
    with pytest.raises(ValueError, match=r"p:2: id 'z' and 0 more of 2 predictions are not in rows\.jsonl"):
        match_predictions(ROWS, predictions(a="", z=""), "rows.jsonl")
    other = ROWS | {"a": {"question": "Another question?"}}
    with pytest.raises(ValueError, match="another version"):
        match_predictions(other, predictions(a="", b="", c=""), "rows.jsonl")


def test_a_constant_column_is_named() -> None:
    assert constant_column(["x", "y"], "kind") is None and constant_column(["x"], "kind") is None
    assert "'x' in all 2 rows" in str(constant_column(["x", "x"], "kind"))
    assert "no row has" in str(constant_column([None, ""], "kind"))


def test_majority_by_template() -> None:
    known, templates = ["A", "B", "B", "C"], ["q", "q", "r", "r"]
    # Ties go to the first in order; a template that was never seen gets the commonest of all.
    assert majority(known, templates, ["q", "r", "new"]) == ["A", "B", "B"]
    assert majority([], [], ["q"]) == [None]
