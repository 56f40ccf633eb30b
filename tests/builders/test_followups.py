"""Rows for a second generate: what a user replies to a model's own question, and options in four rotations."""

import pytest

from drive_vlm.builders.ambiguity.followups import NotPossible, four_choice_rows, meant_in, own_dialogue
from drive_vlm.builders.ambiguity.rows import meant_by_user
from drive_vlm.data.samples import parse_row

THINGS = [
    {"name": f"the {color} car", "box": [0, 0, 9, 9], "category": "vehicle", "attributes": {"color": color}}
    for color in ("red", "blue")
]
ROW = {
    "id": "a", "image": "a.png", "group": "g", "question": "Where is the car?", "ambiguous": 1, "candidates": THINGS, "target": None,
    "answer": "", "answers": {"the red car": "It is on the left.", "the blue car": "It is on the right."}, "description": "the car",
    "choices": ["w", "x", "y", "z"], "gold_choice": 2,
    "messages": [
        {"role": "system", "content": "Answer accurately."},
        {"role": "user", "content": "<image>\nWhere is the car?"},
        {"role": "assistant", "content": "Do you mean the red car or the blue car?"},
    ],
}  # fmt: skip
CLEAR = ROW | {"ambiguous": 0, "answers": {}, "answer": "There is no car in the picture."}


def test_a_dialogue_keeps_the_system_turn_and_the_model_s_words() -> None:
    back = "Which one: **red** or blue?"
    found = {}
    for seed in range(8):
        row = own_dialogue(ROW, back, seed, "val.jsonl:1")
        meant = meant_by_user("a", 2, seed)
        name = THINGS[meant]["name"]
        assert [turn["role"] for turn in row["messages"]] == ["system", "user", "assistant", "user", "assistant"]
        assert [turn["content"] for turn in row["messages"][2:]] == [back, f"T{name[1:]}.", ROW["answers"][name]]
        assert (row["id"], row["row"], row["target"], row["back"]) == (
            "a-after",
            "a",
            meant,
            back,
        ) and "choices" not in row
        assert parse_row(row, "row", "").reference == row["answer"] == ROW["answers"][name]
        found[meant] = name
    assert len(found) == 2


def test_of_a_clear_row_the_user_says_again_what_it_is_about() -> None:
    assert own_dialogue(CLEAR, "Which?", 0, "x")["messages"][-2]["content"] == "The car."
    one = own_dialogue(CLEAR | {"target": 1, "answer": "It is on the right."}, "Which?", 0, "x")
    assert one["messages"][-2]["content"] == "The blue car." and meant_in(CLEAR, 0) is None


def test_options_stand_in_four_rotations() -> None:
    rows = four_choice_rows(ROW, "x")
    assert [row["messages"][1]["content"].splitlines()[-5] for row in rows] == ["A. w", "A. x", "A. y", "A. z"]
    for row in rows:
        letter = row["messages"][-1]["content"]
        assert f"{letter}. y" in row["messages"][1]["content"] and row["choices"]["ABCD".index(letter)] == "y"
        assert row["messages"][0]["role"] == "system" and parse_row(row, "row", "").reference == letter
    assert {row["messages"][-1]["content"] for row in rows} == set("ABCD") and len({row["id"] for row in rows}) == 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"candidates": [], "answers": {}}, "'a' names no candidates"),
        ({"messages": [{"role": "user"}]}, 'no "messages" that end with a question'),
        ({"messages": None}, 'no "messages" that end with a question'),
    ],
)
def test_rows_that_nobody_can_go_on_from(change, words) -> None:
    with pytest.raises(NotPossible, match=words):
        own_dialogue(ROW | change, "Which?", 0, "val.jsonl:7")


def test_rows_without_options() -> None:
    for change in ({"choices": ["w"]}, {"gold_choice": 4}, {"choices": None}):
        with pytest.raises(NotPossible, match='no "choices" of four options'):
            four_choice_rows(ROW | change, "val.jsonl:7")
