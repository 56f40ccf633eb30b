"""tools/synth_refine.py through its command line: facts explain an object and never add one; what breaks the rules leaves the raw caption."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from drive_vlm.builders.synthesis.refine import added_names, names_in
from drive_vlm.store.keyed_lines import read_lines

RAW = "A red car waits on the left side of the wet road, and something orange stands near it."
FINE = "A red car waits on the left side of the wet road, and a traffic cone, which closes a part of a lane, stands near it."


def reply(caption: str, used: list[Any] | None = None, dropped: list[Any] | None = None) -> str:
    return json.dumps({"caption": caption, "used_objects": used or [], "dropped_claims": dropped or []})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Lines of five pictures; the last has no caption."""
    objects = [
        {"box": [0, 0, 30, 30], "label": "car", "score": 0.9, "by": "detector"},
        {"box": [32, 0, 40, 30], "label": "traffic cone", "score": 0.7, "by": "retrieval"},
    ]
    text = {"title": "Traffic cone", "text": "A traffic cone closes a lane.", "url": "", "licence": "Apache-2.0"}
    more = {"size": [64, 48], "objects": objects, "descriptions": {"car": None, "traffic cone": text}}
    lines = []
    for i in range(5):
        Image.new("RGB", (64, 48), (40 * i,) * 3).save(tmp_path / f"{i}.png")
        lines.append(
            {"key": f"k{i}", "image": f"{i}.png", "group": None}
            | more
            | {"caption_raw": f"{RAW} {i}." if i < 4 else ""}
        )
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


@pytest.fixture
def refine(run_here: Callable, folder: Path, chat_server: Any, spacy_model: str) -> Callable:
    def start(*words: object, out: str = "out.jsonl") -> Any:
        flags = (
            "--data",
            folder / "captions.jsonl",
            "--out",
            folder / out,
            "--model",
            "t",
            "--base_url",
            chat_server.url,
        )
        return run_here("tools/synth_refine.py", *flags, "--workers", 1, "--spacy_model", spacy_model, *words)

    return start


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_lines(path, "damaged", "")]


def number_of(body: dict[str, Any]) -> int:
    """Which of the pictures a prompt is about."""
    return int(body["messages"][-1]["content"].split("stands near it. ")[1][0])


def test_a_refined_caption_and_every_way_to_be_refused(refine: Callable, folder: Path, chat_server: Any) -> None:
    bad = {
        # A bus is neither in the caption nor among the objects; an excavator is known by --names alone.
        1: [reply(FINE + " A bus comes behind it."), reply(FINE + " An excavator digs.")],
        2: ["The caption is fine as it is.", json.dumps({"caption": FINE, "used_objects": "car"})],
        3: [reply(FINE, ["car", "bollard"]), reply("I'm sorry, but I cannot help with this.")],
    }
    good = reply(FINE, ["traffic cones", "Car"], ["something orange"])
    chat_server.answer = lambda body: bad[number_of(body)][body["seed"]] if number_of(body) else good
    (folder / "names.txt").write_text("traffic cone\n\nexcavator\n")
    done = refine("--names", folder / "names.txt")
    assert done.returncode == 0, done.stderr
    first, *others = lines_of(folder / "out.jsonl")
    assert first["caption_fine"] == FINE and first["used_objects"] == ["car", "traffic cone"]
    assert first["dropped_claims"] == ["something orange"] and "refused" not in first
    assert [line["refused"] for line in others] == ["added_object: excavator", "schema", "refusal", "no_caption"]
    assert not any("caption_fine" in line for line in others), "the raw caption stays"
    audit = json.loads((folder / "out.jsonl.audit.json").read_text())
    reasons = {"added_object": 2, "not_json": 1, "schema": 1, "unknown_object": 1, "refusal": 1, "no_caption": 1}
    assert audit["dropped"] == reasons
    assert audit["counts"] == {"calls": 7, "refined": 1, "raw caption stays": 4, "used objects": 2, "dropped claims": 1}
    prompt = chat_server.requests[0]["messages"][-1]["content"]
    assert "traffic cone: A traffic cone closes a lane." in prompt and "2. traffic cone: from 50 % to 62 %" in prompt
    schema = chat_server.requests[0]["response_format"]["json_schema"]
    assert schema["strict"] and schema["schema"]["required"] == ["caption", "used_objects", "dropped_claims"]


def test_without_names_only_classes_of_detectors_count(refine: Callable, folder: Path, chat_server: Any) -> None:
    chat_server.answer = lambda body: reply(FINE + " An old building stands behind a puddle.")
    done = refine("--schema_mode", "none", "--limit", 2, "--preview", 1)
    assert done.returncode == 0, done.stderr
    assert lines_of(folder / "out.jsonl")[0]["caption_fine"].endswith("puddle.")
    assert "response_format" not in chat_server.requests[0]
    assert f"before: {RAW} 0." in done.stdout and len(chat_server.requests) == 1


def test_a_server_without_the_schema_mode_is_named_with_the_way_out(
    refine: Callable, folder: Path, chat_server: Any
) -> None:
    line = json.loads((folder / "captions.jsonl").read_text().splitlines()[0])
    for i in range(4, 14):
        Image.new("RGB", (64, 48), (i, i, i)).save(folder / f"{i}.png")
    more = [line | {"key": f"k{i}", "image": f"{i}.png", "caption_raw": f"{RAW} {i}"} for i in range(4, 14)]
    (folder / "captions.jsonl").write_text("".join(json.dumps(item) + "\n" for item in more))
    chat_server.faults = [400] * 30
    done = refine("--max_retries", 0)
    assert done.returncode == 2 and "--schema_mode none sends no schema" in done.stderr
    assert not (folder / "out.jsonl").exists()


def test_a_line_without_a_caption_step_is_named(refine: Callable, folder: Path) -> None:
    line = json.loads((folder / "captions.jsonl").read_text().splitlines()[0])
    del line["caption_raw"]
    (folder / "captions.jsonl").write_text(json.dumps(line) + "\n")
    done = refine()
    assert done.returncode == 2 and "captions.jsonl:1: caption_raw is missing" in done.stderr
    assert "synth_caption.py" in done.stderr


def test_a_file_that_was_refined_before_is_refused(refine: Callable, folder: Path, chat_server: Any) -> None:
    chat_server.answer = lambda body: reply(FINE)
    assert refine("--limit", 1).returncode == 0
    done = refine("--data", folder / "out.jsonl", out="again.jsonl")
    assert done.returncode == 2 and "out.jsonl:1: has a caption_fine already" in done.stderr


def test_names_are_found_as_whole_words_and_in_plurals() -> None:
    names = ["bus", "cone", "traffic cone", "lorry", "car"]
    assert names_in("Two lorries, a school bus and a carpet; T-junction cones.", names) == ["bus", "cone", "lorry"]
    added = added_names(names)
    assert added("A cone.", ["car"], "Cars stand beside cones.") == []
    assert added("A cone.", ["car"], "A traffic cone and buses.") == ["bus", "traffic cone"]
