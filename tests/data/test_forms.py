"""The forms and columns of the field's tools: each is read as its tool means it, or is a bad row by the name of the column."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drive_vlm.config import IGNORE_INDEX
from drive_vlm.data import forms, turns
from drive_vlm.data.forms import FORMS
from drive_vlm.data.preference.pair_encoding import answers_of
from drive_vlm.data.samples import IMAGE, VIDEO, BadRow, Sample, parse_row

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()


def said(*texts: str, **columns: Any) -> dict[str, Any]:
    """A messages row, user and assistant in turn."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)], **columns}


def marked(key: str, *values: Any) -> dict[str, Any]:
    """Two exchanges with `key` on each answer."""
    row = said("q1", "WRONG", "q2", "right")
    for turn, value in zip(row["messages"][1::2], values, strict=True):
        turn[key] = value
    return row


def read(row: Any, need_answer: bool = True) -> Sample:
    return parse_row(row, "rows.jsonl:3", "/root", need_answer)


def words(sample: Sample) -> list[tuple[str, str]]:
    return [(turn.role, "".join(turn.parts)) for turn in sample.turns]


ONE = [("user", "Go?"), ("assistant", "yes")]
SEEN = [("user", f"{IMAGE}Go?"), ("assistant", "yes")]
ASK, TELL = {"role": "user", "content": "Go?"}, {"role": "assistant", "content": "yes"}
NO = {"role": "assistant", "content": "no"}
PICTURE = {"type": "image", "image": "a.jpg"}
TEXT = {"type": "text", "text": "Go?"}
# name: (row, its turns)
READ: dict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {
    "InternVL, text only": ({"image": "", "conversations": [{"from": "human", "value": "Go?"}, {"from": "gpt", "value": "yes"}]}, ONE),
    "nulls of a table": (said("Go?", "yes", images=[None], video=None, tools=None, system=None, history=None), ONE),
    "null next to a list": (said("Go?", "yes", image=None, images=["a.jpg"]), SEEN),
    "empty video next to a picture": (said("Go?", "yes", video="", videos=[], images="a.jpg"), SEEN),
    "roles in conversations": ({"image": "a.jpg", "conversations": [{"role": "user", "content": "<image>\nGo?"}, TELL]}, SEEN),
    "MiniCPM-V": ({"image": {"<image_00>": "a.jpg"}, "conversations": [{"role": "user", "content": "<image_00>\nGo?"}, TELL]}, SEEN),
    "MiniCPM-V without a mark": ({"image": "a.jpg", "conversations": [ASK, TELL]}, SEEN),
    "a system column": (said("Go?", "yes", system="Drive."), [("system", "Drive."), *ONE]),
    "the same system twice": ({"system": "Drive.", "messages": [{"role": "system", "content": "Drive."}, ASK, TELL]}, [("system", "Drive."), *ONE]),
    "developer": ({"messages": [{"role": "developer", "content": "Drive."}, ASK, TELL]}, [("system", "Drive."), *ONE]),
    "Qwen's part": ({"messages": [{"role": "user", "content": [PICTURE, TEXT]}, TELL]}, SEEN),
    "Qwen's part without a type": ({"messages": [{"role": "user", "content": [{"image": "a.jpg"}, {"text": "Go?"}]}, TELL]}, SEEN),
    "OpenAI's part": ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a.jpg"}}, TEXT]}, TELL]}, SEEN),
    "part and column agree": ({"images": ["a.jpg"], "messages": [{"role": "user", "content": [PICTURE, TEXT]}, TELL]}, SEEN),
    "nulls of nested tables": ({"images": ["a.jpg"], "messages": [{"role": "user", "content": [{"type": "image", "text": None}, {**TEXT, "image": None}], "loss": None}, {**TELL, "tool_calls": None}]}, SEEN),
    "TRL": ({"prompt": [ASK], "completion": [TELL], "images": ["a.jpg"]}, SEEN),
    "TRL in texts": ({"prompt": "Go?", "completion": "yes"}, ONE),
    "TRL dpo": ({"prompt": [ASK], "chosen": [TELL], "rejected": [NO], "images": ["a.jpg"]}, SEEN),
    "TRL dpo, implicit": ({"chosen": [ASK, TELL], "rejected": [ASK, NO]}, ONE),
    "ultrafeedback": ({"prompt": "Go?", "chosen": [ASK, TELL], "rejected": [ASK, NO], "messages": [ASK, TELL]}, ONE),
    "SPIN": ({"real": [ASK, TELL], "generated": [ASK, NO]}, ONE),
    "LLaMA-Factory dpo": ({"conversations": [{"from": "human", "value": "Go?"}], "chosen": {"from": "gpt", "value": "yes"}, "rejected": {"from": "gpt", "value": "no"}}, [("user", "Go?")]),
    "Alpaca dpo": ({"instruction": "Go?", "input": "", "chosen": "yes", "rejected": "no"}, ONE),
    "ms-swift": ({"query": "<image>Go?", "response": "yes", "images": [{"path": "a.jpg", "bytes": None}]}, SEEN),
    "ms-swift with a history": ({"query": "Go?", "response": "yes", "history": [["a", "b"]]}, [("user", "a"), ("assistant", "b"), *ONE]),
    "Alpaca": ({"instruction": "Go?", "input": "The light is red.", "output": "no"}, [("user", "Go?\nThe light is red."), ("assistant", "no")]),
    "a thought": ({"messages": [ASK, {**TELL, "reasoning_content": "It is green."}]}, [ONE[0], ("assistant", "<think>\nIt is green.\n</think>\n\nyes")]),
    "a column that repeats the question": (said("Go?", "yes", query="Go?"), ONE),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_a_form_is_read_as_its_tool_means_it(name: str) -> None:
    row, expected = READ[name]
    sample = read(row, need_answer=len(expected) > 1)
    assert words(sample) == expected
    assert sample.images == (("/root/a.jpg",) if IMAGE in expected[0][1] else ())
    if "dpo" in name or name in ("SPIN", "ultrafeedback"):
        assert answers_of(sample) == ("yes", "no")


@pytest.mark.parametrize("row", [said("Go?", "yes", videos=["v.mp4"]), said("<video>Go?", "yes", videos="v.mp4")])
def test_a_list_of_one_video_is_the_video(row: dict) -> None:
    assert (read(row).video, words(read(row))[0]) == ("/root/v.mp4", ("user", f"{VIDEO}Go?"))


def test_a_prompt_alone_is_for_generation() -> None:
    assert words(read({"prompt": [ASK], "solution": "yes"}, need_answer=False)) == [("user", "Go?")]
    with pytest.raises(BadRow, match="the last turn is the user's"):
        read({"prompt": [ASK]})


LEARNED_ROWS = [
    *(marked(key, *values) for key in turns.LEARNED for values in ((False, True), (0, 1), (0.0, 1.0))),
    said("q1", "WRONG", "q2", "right", loss_mask=[0, 0, 0, 1]),
    said("q1", "WRONG", "q2", "right", loss_mask=[False, False, False, True], system="Drive."),
    said("q1", "WRONG", "q2", "right", loss_mask=[0, 0, 0, 0, 1], system="Drive."),
]


@pytest.mark.parametrize(
    "row", LEARNED_ROWS, ids=lambda row: str(next(iter(row["messages"][1].keys() - {"role", "content"}), "mask"))
)
def test_an_answer_that_is_marked_is_not_learned(row: dict, encoder: Any) -> None:
    encoded = encoder.encode(read(row))
    learned = encoder.tokenizer.decode(encoded["labels"][encoded["labels"] != IGNORE_INDEX])
    assert learned == "right<|im_end|>"
    assert "WRONG" in encoder.tokenizer.decode(encoded["input_ids"])
    assert len(np.flatnonzero(encoded["labels"] != IGNORE_INDEX)) < len(encoded["labels"])


# (reason, the column or key that the message names, row)
BAD = [
    ("two_forms", "'image' and in 'images'", said("Go?", "yes", image="a.jpg", images=["a.jpg", "a.jpg"])),
    ("two_forms", "'video' and in 'videos'", said("Go?", "yes", video="a.mp4", videos=["b.mp4"])),
    ("image_count", "2 videos", said("Go?", "yes", videos=["a.mp4", "b.mp4"])),
    ("image_count", "images and a video", said("<image><video>Go?", "yes", images=["a.jpg"], videos=["v.mp4"])),
    ("two_forms", "parts of the messages", {"images": ["b.jpg"], "messages": [{"role": "user", "content": [PICTURE, TEXT]}, TELL]}),
    ("image_count", "system turn", {"images": ["a.jpg"], "messages": [{"role": "system", "content": "see <image>"}, ASK, TELL]}),
    ("missing_field", "'image_path'", said("Go?", "yes", image_path="a.jpg")),
    ("not_a_file", "https://", said("Go?", "yes", images=["https://example.org/a.jpg"])),
    ("not_a_file", "data:", said("Go?", "yes", image="data:image/png;base64," + "A" * 10_000)),
    ("missing_field", "bytes", said("Go?", "yes", images=[{"bytes": "AAAA"}])),
    ("unsupported_column", "'min_pixels'", {"messages": [{"role": "user", "content": [PICTURE | {"min_pixels": 9}, TEXT]}, TELL]}),
    ("unsupported_column", "'tools'", said("Go?", "yes", tools=[{"name": "brake"}])),
    ("unsupported_column", "'tools'", said("Go?", "yes", tools='[{"name": "brake"}]')),
    ("unsupported_column", "'audios'", said("Go?", "yes", audios=["a.wav"])),
    ("unsupported_column", "'objects'", said("<image>find <ref-object>", "<bbox>", images=["a.jpg"], objects={"ref": ["car"], "bbox": [[1, 2, 3, 4]]})),
    ("unsupported_column", "'input_ids'", said("Go?", "yes", input_ids=[1, 2])),
    ("unsupported_column", "'loss'", said("Go?", "yes", loss=False)),
    ("unsupported_column", "'weight'", said("Go?", "yes", weight=0)),
    ("unsupported_column", "'weight'", marked("weight", 0.5, 1)),
    ("unsupported_column", "'loss'", {"messages": [{**ASK, "loss": True}, TELL]}),
    ("two_forms", "'loss' and in 'weight'", {"messages": [ASK, {**TELL, "loss": True, "weight": 0}]}),
    ("unsupported_column", "'loss_mask'", said("Go?", "yes", loss_mask=[0, 0, 1])),
    ("unsupported_column", "'loss_mask'", said("Go?", "yes", loss_mask=[1, 1])),
    ("unsupported_column", "'loss_mask'", said("Go?", "yes", loss_mask=[0, 0.5])),
    ("not_learned", "not learned", marked("loss", False, False)),
    ("unsupported_column", "'label'", {"prompt": [ASK], "completion": [TELL], "label": False}),
    ("unsupported_column", "'history'", {"query": "Go?", "response": "yes", "history": "a"}),
    ("two_forms", "'history'", said("Go?", "yes", history=[["a", "b"]])),
    ("two_forms", "'query'", said("Go?", "yes", query="Stop?")),
    ("two_forms", "'messages'", {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "messages": [ASK, TELL]}),
    ("two_forms", "'system'", {"system": "Walk.", "messages": [{"role": "system", "content": "Drive."}, ASK, TELL]}),
    ("two_forms", "'chosen'", {"messages": [ASK], "chosen": [{"role": "user", "content": "Stop?"}, TELL], "rejected": "no"}),
    ("two_forms", "'rejected'", said("Go?", "yes", rejected="no", rejected_response="never")),
    ("unsupported_column", "'rejected_images'", said("Go?", "yes", rejected_images=["b.jpg"])),
    ("unsupported_column", "'tool_calls'", {"messages": [ASK, {**TELL, "tool_calls": [{"id": 1}]}]}),
    ("unsupported_column", "'images'", {"messages": [{**ASK, "images": ["a.jpg"]}, TELL]}),
    ("bad_role", "call of a tool", {"messages": [ASK, {"role": "tool", "content": "12"}, TELL]}),
    ("bad_role", "join turns of one role", {"messages": [ASK, ASK, TELL]}),
    ("missing_field", "it has role, from, content", {"messages": [{"role": "user", "from": "human", "content": "a"}, TELL]}),
    ("missing_field", "an id must be", said("Go?", "yes", id=[1])),
    ("missing_field", "query, response (ms-swift)", {"text": "a car"}),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "named", "row"), BAD, ids=[f"{i}-{name}" for i, (_, name, _) in enumerate(BAD)])
def test_what_cannot_be_obeyed_is_a_bad_row_by_its_name(reason: str, named: str, row: dict) -> None:
    with pytest.raises(BadRow) as caught:
        read(row, need_answer="chosen" not in row)
    assert (caught.value.reason, caught.value.where) == (reason, "rows.jsonl:3")
    assert named in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("column", [*forms.REFUSED, *turns.REFUSED])
@pytest.mark.parametrize("empty", [None, "", [], {}])
def test_a_column_that_says_nothing_is_absent(column: str, empty: Any) -> None:
    assert words(read(said("Go?", "yes", **{column: empty}) | {"weight": 1, "loss": True, "label": "left"})) == ONE
    message = said("Go?", "yes")
    message["messages"][1] |= {column: empty}
    assert words(read(message)) == ONE


def test_an_id_of_nothing_is_the_place_of_the_row() -> None:
    for missing in ({}, {"id": None}, {"id": ""}):
        assert read(said("Go?", "yes", **missing)).id == "rows.jsonl:3"
    assert [read(said("Go?", "yes", id=value)).id for value in (0, "0", 1.5)] == ["0", "0", "1.5"]


def test_columns_of_other_names_are_free() -> None:
    free = {
        "category": "planning",
        "width_list": [64],
        "input": "kept",
        "output": "kept",
        "objects": [{"label": "car"}],
        "answer": "b",
    }
    assert read(said("Go?", "yes", **free)).columns == free


def test_the_tables_stand_in_the_docs() -> None:
    """Every form and every column and key of the tables, in docs/data.md."""
    spans = set(re.findall(r"`([^`\n]+)`", PAGE))
    rows = {line.split(" | ")[0].strip("| ") for line in PAGE.splitlines() if line.startswith("| `")}
    assert {", ".join(f"`{column}`" for column in form.columns) for form in FORMS} <= rows
    columns = {*forms.REFUSED, *forms.SYSTEM, "loss_mask", "objects", "label", "kto_tag", "rejected_response"}
    keys = {*turns.LEARNED, *turns.THOUGHTS, *turns.REFUSED, *turns.PIXEL_KEYS}
    assert not (columns | keys) - spans


def test_a_form_without_content_gives_way_to_one_that_has_it() -> None:
    assert words(read(said("Go?", "yes") | {"conversations": []})) == ONE
    pair = {"instruction": "Go?", "output": "", "chosen": "yes", "rejected": "no"}
    assert words(read(pair)) == ONE and answers_of(read(pair)) == ("yes", "no")
    with pytest.raises(BadRow, match="turn is empty"):
        read({"query": "Go?", "response": ""})


def test_a_detail_that_asks_for_nothing_is_absent() -> None:
    row = said("Go?", "yes")
    picture = {"type": "image_url", "image_url": {"url": "a.jpg", "detail": "auto"}}
    row["messages"][0]["content"] = [picture, {"type": "text", "text": "Go?"}]
    assert read(row).images == ("/root/a.jpg",)
    picture["image_url"]["detail"] = "low"
    with pytest.raises(BadRow, match="detail"):
        read(row)
