"""Rows of predictions keep what evaluators need of the row that was asked."""

import json

from drive_vlm.data.predictions import prediction_row
from drive_vlm.generate import GenerateConfig, read_rows


def test_a_prediction_names_its_video_as_the_row_does(tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").touch()
    turns = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "A car."}]
    row = {"id": "a-concise", "video": "clips/a.mp4", "group": "a", "mode": "concise", "conversations": turns}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    [sample], bad = read_rows(GenerateConfig(data=[str(tmp_path / "rows.jsonl")], out="x"))
    assert not bad
    made = prediction_row(sample, "A bus.")
    assert {key: made[key] for key in ("id", "prediction", "reference", "video", "group", "mode")} == {
        "id": "a-concise", "prediction": "A bus.", "reference": "A car.", "video": "clips/a.mp4", "group": "a", "mode": "concise",
    }  # fmt: skip
    assert not any(key.startswith("_") for key in made) and "image" not in made


def test_a_column_of_the_row_is_not_taken_for_the_answer(tmp_path):
    turns = [{"from": "human", "value": "What?"}]
    row = {
        "id": "a",
        "conversations": turns,
        "prediction": "old",
        "question": "?",
        "reference": "A car.",
        "category": "x",
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    [sample], _ = read_rows(GenerateConfig(data=[str(tmp_path / "rows.jsonl")], out="x"))
    assert prediction_row(sample, "A bus.") == {
        "id": "a", "dataset": "rows", "prediction": "A bus.", "reference": "A car.", "question": "What?", "category": "x",
    }  # fmt: skip
