"""tools/synth_questions.py through its command line, with a scripted teacher: shares, facts that must hold, what is unread."""

import base64
import io
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from drive_vlm.store.keyed_lines import read_lines

CAPTION = "A red car waits on the left at a light, and a cone stands on the right of the wet road."
ONE_EACH = ("--rows_a_picture", 4, "--tasks", "general:0.25", "region:0.25", "suggestion:0.25", "vqa:0.25")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pictures, each with a car on the left and a traffic cone on the right; the last has neither caption nor objects."""
    objects = [
        {"box": [0, 10, 30, 40], "label": "car", "score": 0.9, "by": "detector"},
        {"box": [70, 30, 90, 60], "label": "traffic cone", "score": 0.7, "by": "retrieval"},
    ]
    lines = []
    for i in range(6):
        Image.new("RGB", (96, 64), (40 * i,) * 3).save(tmp_path / f"{i}.png")
        caption, found = (CAPTION, objects) if i < 5 else ("", [])
        lines.append(
            {
                "key": f"k{i}",
                "image": f"{i}.png",
                "group": f"g{i}",
                "size": [96, 64],
                "objects": found,
                "caption_raw": caption,
            }
        )
    lines[1]["caption_fine"] = f"{CAPTION} It is refined."
    (tmp_path / "refined.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


@pytest.fixture
def ask(run_here: Callable, folder: Path, chat_server: Any) -> Callable:
    chat_server.answer = good_teacher

    def start(*words: object, out: str = "out.jsonl") -> Any:
        flags = (
            "--data",
            folder / "refined.jsonl",
            "--out",
            folder / out,
            "--model",
            "t",
            "--base_url",
            chat_server.url,
        )
        return run_here("tools/synth_questions.py", *flags, "--workers", 1, "--max_retries", 0, *words)

    return start


def task_of(prompt: str) -> str:
    marks = {
        "about the whole scene": "general",
        "asks for driving advice": "suggestion",
        "in the red rectangle": "region",
    }
    return next((task for mark, task in marks.items() if mark in prompt), "vqa")


def good_teacher(body: dict[str, Any]) -> str:
    """A teacher that obeys each prompt, and says of a fact what the prompt orders."""
    prompt = body["messages"][-1]["content"]
    prompt = prompt if isinstance(prompt, str) else prompt[-1]["text"]
    task = task_of(prompt)
    pair = {"question": "What is there to see here?", "answer": "The red car waits at the light."}
    if task == "general":
        number = int(re.search(r"Write (\d+) different", prompt)[1])  # type: ignore[index]
        return json.dumps({"rows": [pair | {"question": f"What matters in view {i}?"} for i in range(number)]})
    if task == "region":
        label = re.search(r"around one thing: (.*)\.", prompt)[1]  # type: ignore[index]
        return json.dumps(
            {"question": "What is in the red rectangle?", "answer": f"It is a {label}, so keep away from it."}
        )
    if task == "suggestion":
        more = {"objects": ["car"], "hazards": ["it may start"], "rule": "keep a distance", "action": "slow down"}
        return json.dumps({"question": "What should the driver do?", **more, "answer": "Slow down behind the car."})
    return json.dumps(pair | {"question": "Is it there or where is it?", "answer": answer_to(prompt)})


def answer_to(prompt: str) -> str:
    if "begins with" in prompt:
        return f"{re.search(r'begins with .(Yes|No)', prompt)[1]}, one can see that."  # type: ignore[index]
    if found := re.search(r"gives the number (\d+)", prompt):
        return f"There is {found[1]} of them."
    if found := re.search(r"The answer says: (\w+)", prompt):
        return f"It stands on the {found[1]}."
    return "It stands to the left of the other one."


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_lines(path, "damaged", "")]


def audit_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out.jsonl.audit.json").read_text())


def test_rows_of_every_task_in_their_form(ask: Callable, folder: Path, chat_server: Any) -> None:
    done = ask(*ONE_EACH)
    assert done.returncode == 0, done.stderr
    lines = lines_of(folder / "out.jsonl")
    assert [[row["task"] for row in line["rows"]] for line in lines] == [
        ["general", "region", "suggestion", "vqa"]
    ] * 5 + [[]]
    general, region, suggestion, vqa = lines[0]["rows"]
    assert general["kind"] == "general" and general["question"] == "What matters in view 0?"
    assert region["region"]["label"] in region["answer"] and region["region"]["box"] in (
        [0, 10, 30, 40],
        [70, 30, 90, 60],
    )
    assert suggestion["reasoning"] == {
        "objects": ["car"],
        "hazards": ["it may start"],
        "rule": "keep a distance",
        "action": "slow down",
    }
    assert suggestion["answer"] == "Slow down behind the car.", "the answer stands apart from the reasoning"
    assert vqa["kind"] in ("existence", "count", "attribute", "position", "relation", "rule")
    assert len({row["prompt_sha"] for row in lines[0]["rows"]}) == 4 and all(
        len(row["prompt_sha"]) == 64 for row in lines[0]["rows"]
    )
    assert lines[5]["unread"] == {"no caption and no object": 1} and lines[5]["calls"]["questions"] == 0
    audit = audit_of(folder)
    assert audit["counts"]["rows"] == 20 and audit["counts"]["region"] == 5 and audit["counts"]["given up"] == 0
    assert audit["dropped"] == {"no caption and no object": 1}
    texts = chat_server.last_texts()
    assert sum("It is refined." in text for text in texts) == 4, "the refined caption where there is one"
    assert all("- " in text.split("style of good questions:")[1] for text in texts)
    # The picture was not sent.
    assert all(isinstance(body["messages"][-1]["content"], str) for body in chat_server.requests)


def test_what_is_prose_or_breaks_the_form_or_the_facts_is_unread_and_asked_again(
    ask: Callable, folder: Path, chat_server: Any
) -> None:
    pair = {"question": "What is in the red rectangle?", "answer": "It is a car or a cone."}
    bad = {
        "0.png": "The red rectangle shows a car.",
        "1.png": json.dumps(pair | {"more": 1}),
        "2.png": json.dumps(pair | {"answer": "I'm sorry, I cannot see the picture."}),
        "3.png": json.dumps(pair | {"question": "What is it?"}),
        "4.png": json.dumps(pair | {"answer": "It is a person, I think."}),
    }
    replies = iter(
        [*bad.values(), json.dumps(pair | {"answer": "It is a blue car and a cone."}), *[json.dumps(pair)] * 4]
    )
    chat_server.answer = lambda body: next(replies)
    done = ask("--rows_a_picture", 1, "--tasks", "region:1")
    assert done.returncode == 0, done.stderr
    lines = lines_of(folder / "out.jsonl")
    first = ["not_json", "schema", "refusal", "no_rectangle", "name_missing"]
    # Only the first picture fails twice.
    assert lines[0]["unread"] == {"region: not_json": 1, "region: invented_color": 1} and lines[0]["rows"] == []
    assert [line["unread"] for line in lines[1:5]] == [{f"region: {reason}": 1} for reason in first[1:]]
    assert [line["given_up"] for line in lines[:5]] == [{"region": 1}, {}, {}, {}, {}]
    assert [len(line["rows"]) for line in lines] == [0, 1, 1, 1, 1, 0] and next(replies, None) is None
    assert audit_of(folder)["dropped"] == Counter(
        {"no caption and no object": 1, "region: invented_color": 1} | {f"region: {reason}": 1 for reason in first}
    )


@pytest.mark.parametrize("task", ["general", "suggestion", "vqa"])
def test_a_teacher_that_contradicts_boxes_or_invents_gives_no_row(
    ask: Callable, folder: Path, chat_server: Any, task: str
) -> None:
    wrong = {
        "general": {"rows": [{"question": "What is there to see?", "answer": "A green truck comes."}]},
        "suggestion": {"question": "What to do here now?", "objects": ["a purple van"], "hazards": [], "rule": "r", "action": "a", "answer": "Wait."},
        "vqa": {"question": "Is something there?", "answer": "Perhaps in the green one."},
    }  # fmt: skip
    chat_server.answer = lambda body: json.dumps(wrong[task])
    done = ask("--rows_a_picture", 1, "--tasks", f"{task}:1", "--attempts", 1)
    assert done.returncode == 0, done.stderr
    lines = lines_of(folder / "out.jsonl")
    assert all(line["rows"] == [] for line in lines)
    reasons = set().union(*(line["unread"] for line in lines[:5]))
    assert reasons <= {f"{task}: {why}" for why in ("invented_color", "wrong_polarity", "wrong_number", "wrong_side")}
    assert sum(sum(line["unread"].values()) for line in lines[:5]) == 5


def test_the_teacher_sees_the_rectangle_drawn(ask: Callable, folder: Path, chat_server: Any) -> None:
    done = ask(
        "--rows_a_picture",
        2,
        "--tasks",
        "region:0.5",
        "general:0.5",
        "--show_picture",
        "--limit",
        1,
        "--schema_mode",
        "json_object",
    )
    assert done.returncode == 0, done.stderr
    assert chat_server.requests[0]["response_format"] == {"type": "json_object"}
    general, region = (seen_by(body) for body in chat_server.requests)
    plain = np.asarray(Image.open(folder / "0.png").convert("RGB")).astype(int)
    assert (general == plain).all()
    x1, y1, x2, y2 = lines_of(folder / "out.jsonl")[0]["rows"][1]["region"]["box"]
    red = (region[..., 0] - region[..., 1]) > 100
    rows, columns = np.nonzero(red)
    assert (columns.max(), rows.max()) == (x2 + 1, y2 + 1) and columns.min() == max(0, x1 - 2) and rows.min() == y1 - 2
    # Nothing inside is painted over, but where the box touches the border.
    assert not red[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].any()


def seen_by(body: dict[str, Any]) -> np.ndarray:
    url = body["messages"][-1]["content"][0]["image_url"]["url"]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB")).astype(int)


def test_a_killed_run_pays_nothing_twice_and_gives_the_same_rows(ask: Callable, folder: Path, chat_server: Any) -> None:
    flags = ("--price_in", 1, "--price_out", 3, "--batch_size", 2, "--workers", 2)
    assert ask(*flags, out="whole.jsonl").returncode == 0
    whole = len(chat_server.requests)
    # The other file has a cache of its own.
    chat_server.dies_after = whole + whole // 2
    done = ask(*flags)
    assert done.returncode == 2 and "the same command goes on from there" in done.stderr
    chat_server.dies_after = None
    assert ask(*flags).returncode == 0
    assert (folder / "out.jsonl").read_bytes() == (folder / "whole.jsonl").read_bytes()
    assert len(chat_server.requests) == 2 * whole
    settings = ask(*flags, "--rows_a_picture", 8)
    assert settings.returncode == 2 and "rows: 7.0 then, 8.0 now" in settings.stderr


def test_max_cost_within_a_picture_keeps_every_reply(ask: Callable, folder: Path, chat_server: Any) -> None:
    flags = (*ONE_EACH, "--price_in", 0, "--price_out", 1000, "--max_tokens", 100)
    done = ask(*flags, "--max_cost", 0.14)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and "--max_cost 0.14:" in last and "Every reply is kept" in last
    paid = len(chat_server.requests)
    assert 0 < paid < 20
    assert ask(*flags, "--max_cost", 10).returncode == 0
    assert len(chat_server.requests) == 20
    assert audit_of(folder)["counts"]["rows"] == 20


def test_wrong_flags_and_files_are_refused(ask: Callable, folder: Path) -> None:
    for words, said in (
        (("--tasks", "general:0.5", "regions:0.5"), "--tasks regions: not a task"),
        (("--tasks", "general:0.5"), "sum"),
        (("--names", folder / "missing.txt"), "missing.txt: cannot be read"),
        (("--teacher_prompts", folder), "general.txt"),
    ):
        done = ask(*words)
        assert done.returncode == 2 and said in done.stderr, done.stderr


@pytest.mark.slow
@pytest.mark.kit
def test_a_real_small_model_as_teacher_of_one_picture(run_here: Callable, folder: Path, smollm2_server: Any) -> None:
    """SmolLM2-135M writes prose or broken JSON: whatever it says is a row in the right form, or is counted."""
    words = ("--data", folder / "refined.jsonl", "--out", folder / "out.jsonl", "--model", "smollm2", "--limit", 1)
    more = ("--base_url", smollm2_server.url, "--max_tokens", 60, "--workers", 1, "--attempts", 1, "--timeout", 300)
    done = run_here(
        "tools/synth_questions.py",
        *words,
        *more,
        "--schema_mode",
        "none",
        "--rows_a_picture",
        2,
        "--tasks",
        "region:0.5",
        "vqa:0.5",
    )
    assert done.returncode == 0, done.stderr
    line = lines_of(folder / "out.jsonl")[0]
    asked = line["calls"]["questions"]
    assert asked == len(smollm2_server.requests) == 2
    assert len(line["rows"]) + sum(line["given_up"].values()) == 2
    assert sum(line["given_up"].values()) == sum(line["unread"].values())
    assert line["tokens"]["questions"]["prompt"] > 100
