"""Rows of both forms become the same Sample; each kind of bad row has its own reason and names its place."""

import pickle
from typing import Any

import pytest

from drive_vlm.data.samples import IMAGE, VIDEO, BadRow, parse_row

ASK, ANSWER = {"from": "human", "value": "<image>\nWhat is ahead?"}, {"from": "gpt", "value": "a truck"}


def conversation(*turns: dict, **columns: Any) -> dict[str, Any]:
    return {"id": "7", "conversations": list(turns), **columns}


def test_the_two_forms_give_the_same_turns() -> None:
    first = parse_row(conversation(ASK, ANSWER, image="a.png"), "f:1", "/root")
    content = [{"type": "image"}, {"type": "text", "text": "What is ahead?"}]
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": "a truck"}]},
    ]
    placed = [{"role": "user", "content": "<image>\nWhat is ahead?"}, {"role": "assistant", "content": "a truck"}]
    unplaced = [{"role": "user", "content": "What is ahead?"}, {"role": "assistant", "content": "a truck"}]
    for form in (messages, placed, unplaced):
        second = parse_row({"id": 7, "images": [{"path": "a.png"}], "messages": form}, "f:1", "/root")
        assert second.turns == first.turns and second.images == first.images == ("/root/a.png",) and second.id == "7"
    assert first.turns[0].parts == (IMAGE, "What is ahead?")


def test_columns_group_and_reference_survive() -> None:
    sample = parse_row(conversation(ASK, ANSWER, image="a.png", group=3, category="planning"), "f:1", "/root")
    assert (sample.group, sample.columns, sample.reference) == ("3", {"category": "planning"}, "a truck")
    assert [turn.role for turn in sample.prompt_turns()] == ["user"]


def test_pictures_stand_where_the_text_puts_them() -> None:
    ask = {"from": "human", "value": "First <image> then\n<image>\nwhat changed?"}
    sample = parse_row(conversation(ask, ANSWER, image=["a.png", "b.png"]), "f:1", "/root")
    assert sample.turns[0].parts == ("First ", IMAGE, " then\n", IMAGE, "what changed?")
    video = parse_row(conversation({"from": "human", "value": "<video>\nWhat?"}, ANSWER, video="v.mp4"), "f:1", "/root")
    assert video.turns[0].parts == (VIDEO, "What?") and video.video == "/root/v.mp4"


def test_pictures_without_words_are_a_question() -> None:
    sample = parse_row(conversation({"from": "human", "value": "<image>"}, ANSWER, image="a.png"), "f:1", "/root")
    assert sample.turns[0].parts == (IMAGE,)


def test_a_prompt_only_row_is_for_generation() -> None:
    assert parse_row(conversation(ASK, image="a.png"), "f:1", "/root", need_answer=False).reference == ""


BAD = {
    "not_an_object": [["a list"], "text", 3, None],
    "missing_field": [
        {"id": 1},
        conversation({"from": "human"}, ANSWER),
        conversation({"from": "human", "value": 3}, ANSWER),
        {"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
        {"messages": [{"role": "user"}]},
        conversation(ASK, ANSWER, image=[" "]),
        conversation(ASK, ANSWER, image=[3]),
    ],
    "bad_role": [
        conversation({"from": "robot", "value": "hello"}, ANSWER),
        conversation(ANSWER),
        conversation(),
        conversation(ASK, ASK, ANSWER, image=["a.png", "b.png"]),
        conversation({"from": "human", "value": "a"}, ANSWER, {"from": "system", "value": "b"}),
    ],
    "image_count": [
        conversation(ASK, ANSWER),
        conversation(ASK, ANSWER, image=""),
        conversation(ASK, ANSWER, image=["a.png", "b.png"]),
        conversation({"from": "human", "value": "no mark"}, ANSWER, image="a.png"),
        conversation({"from": "human", "value": "<video>"}, ANSWER, image="a.png"),
        conversation(ASK, ANSWER, image="a.png", video="v.mp4"),
        conversation({"from": "human", "value": "a"}, {"from": "gpt", "value": "b <image>"}, image="a.png"),
    ],
    "empty_answer": [
        conversation(ASK, image="a.png"),
        conversation(ASK, {"from": "gpt", "value": " \n"}, image="a.png"),
        conversation(ASK, ANSWER, {"from": "human", "value": "and?"}, image="a.png"),
    ],
    "empty_question": [conversation({"from": "human", "value": "  "}, ANSWER)],
    "path_outside_root": [
        conversation(ASK, ANSWER, image=path) for path in ("/etc/a.png", "../a.png", "x/../../a.png", "..")
    ],
}


@pytest.mark.parametrize(("reason", "row"), [(reason, row) for reason, rows in BAD.items() for row in rows])
def test_bad_rows(reason: str, row: Any) -> None:
    with pytest.raises(BadRow) as caught:
        parse_row(row, "rows.jsonl:12", "/root")
    assert caught.value.reason == reason
    assert str(caught.value).startswith("rows.jsonl:12: ") and caught.value.way_out in str(caught.value)


def test_a_path_with_dots_that_stays_inside_is_fine() -> None:
    assert parse_row(conversation(ASK, ANSWER, image="x/../a..b.png"), "f:1", "/root").images == ("/root/a..b.png",)


def test_a_bad_row_crosses_processes() -> None:
    row = pickle.loads(pickle.dumps(BadRow("broken_json", "f:1", "problem", "way out")))
    assert (row.reason, str(row)) == ("broken_json", "f:1: problem. way out.")
