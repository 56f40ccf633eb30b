"""Rows of every form become pairs, and ids of several data files are told apart."""

import json
from pathlib import Path
from typing import Any

import pytest

from drive_vlm.builders.pair_sources import gold_pairs, read_answered
from drive_vlm.data.preference.pair_encoding import answers_of
from drive_vlm.data.samples import parse_row


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_ids_of_two_files_and_rows_of_other_forms(tmp_path: Path) -> None:
    talk = [{"from": "human", "value": "<image>\nGo?"}, {"from": "gpt", "value": "yes"}]
    data = [
        write(tmp_path / "a" / "val.jsonl", [{"id": 1, "image": "x.jpg", "conversations": talk}]),
        write(
            tmp_path / "b" / "val.jsonl",
            [
                {"id": 1, "query": "Stop?", "response": "no", "system": "Drive.", "group": "g"},
                {"id": 2, "images": ["x.jpg"], "instruction": "Why?", "input": "red", "output": "it is"},
            ],
        ),
    ]
    answers = [("a/val", "1", "A"), ("b/val", "1", "B"), ("b/val", "2", "C")]
    generated = write(tmp_path / "p.jsonl", [{"dataset": d, "id": i, "prediction": p} for d, i, p in answers])
    sources, missing, _ = read_answered(data, [generated], str(tmp_path), need_answer=True)
    pairs = gold_pairs(sources, 1)
    assert not missing and [pair["id"] for pair in pairs] == ["a/val/1-r1", "b/val/1-r1", "2-r1"]
    samples = [parse_row(json.loads(json.dumps(pair)), "p:1", "/root", need_answer=False) for pair in pairs]
    assert [answers_of(sample) for sample in samples] == [("yes", "A"), ("no", "B"), ("it is", "C")]
    words = [["".join(turn.parts) for turn in sample.prompt_turns()] for sample in samples]
    assert words == [["<image>Go?"], ["Drive.", "Stop?"], ["<image>Why?\nred"]]
    assert [sample.group for sample in samples] == [None, "g", None]


def test_generations_of_a_file_under_another_name_are_found(tmp_path: Path) -> None:
    """One data set in the generations is that of the rows, whatever the file was called then."""
    row = {"id": "1", "messages": [{"role": "user", "content": "Go?"}, {"role": "assistant", "content": "yes"}]}
    data = write(tmp_path / "copy.jsonl", [row])
    for columns in ({}, {"dataset": "train"}):
        generated = write(tmp_path / "p.jsonl", [{"id": "1", "prediction": "no"} | columns])
        (source,), missing, _ = read_answered([data], [generated], None, need_answer=True)
        assert source.answers == ("no",) and not missing


def test_answers_to_the_rows_of_another_file_make_no_pair(tmp_path: Path) -> None:
    """Two files of one name, answered each on its own: their answers say "train", and the rows are of a/train and b/train."""
    row = {"id": "0", "messages": [{"role": "user", "content": "Go?"}, {"role": "assistant", "content": "yes"}]}
    data = [write(tmp_path / name / "train.jsonl", [row]) for name in ("a", "b")]
    generated = [
        write(tmp_path / f"{name}.jsonl", [{"dataset": "train", "id": "0", "prediction": f"answer to {name}"}])
        for name in ("a", "b")
    ]
    with pytest.raises(ValueError, match=r"no id of .* is in"):
        read_answered(data, generated, str(tmp_path), need_answer=True)
