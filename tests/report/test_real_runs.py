"""A report of runs that really ran: an SFT that goes back to a checkpoint, GRPO from its model, answers of both."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from chromium_pipe import Browser


@pytest.mark.slow
def test_sft_with_a_restart_and_grpo(
    run: Callable, report: Callable, browser: Browser, synthetic_data: Path, tiny_model: Path, tmp_path: Path
) -> None:
    def command(*words: object) -> None:
        done = run([sys.executable, "-m", "drive_vlm", *words], timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]

    rows, test = synthetic_data / "train.jsonl", synthetic_data / "val.jsonl"
    shared = ("--data", rows, "--max_length", 512, "--logging_steps", 1, "--save_steps", 2)
    sft = ("sft", "--model", tiny_model, *shared, "--output_dir", tmp_path / "sft")
    command(*sft, "--max_steps", 4)
    command(*sft, "--max_steps", 5, "--resume", tmp_path / "sft" / "checkpoint-2")
    rewards = (
        "--rewards",
        "structure",
        "--num_generations",
        2,
        "--per_device_train_batch_size",
        4,
        "--max_completion_length",
        4,
    )
    command("grpo", "--model", tmp_path / "sft", *shared, *rewards, "--max_steps", 2, "--output_dir", tmp_path / "grpo")
    for name in ("sft", "grpo"):
        answer = ("--data", test, "--max_new_tokens", 4, "--batch_size", 32, "--out", tmp_path / f"{name}.jsonl")
        command("generate", "--model", tmp_path / name, *answer)
    code, said, error = report(
        tmp_path / "sft", tmp_path / "grpo", "--predictions", tmp_path / "sft.jsonl", tmp_path / "grpo.jsonl"
    )
    assert code == 0, error
    # Two models that learned nothing: neither is above the majority answer, and the page says so.
    assert said.startswith("bad: answer accuracy") and "majority answer" in said
    page = tmp_path / "report.html"
    browser.open(page)
    assert browser.problems == []
    words = browser.js("document.body.innerText")
    # The first start logged steps 1 to 4; the second went on from 2 and did 3 and 4 again.
    cells = browser.js(
        "[...document.querySelectorAll('#faults table')][0].innerText.split('\\n').map((line) => line.split('\\t'))"
    )
    assert [row[3] for row in cells[1:]] == ["1 to 4", "3 to 5"], cells
    assert [row[6] for row in cells[1:]] == ["ended", "finished"]
    redone = browser.js(
        "[...document.querySelectorAll('#faults svg')][0].querySelectorAll('.redone')[0].width.baseVal.value"
    )
    assert redone > 0
    metrics = [json.loads(line) for line in (tmp_path / "sft" / "metrics.jsonl").read_text().splitlines()]
    last = [line["loss"] for line in metrics if "loss" in line][-1]
    assert f"sft: loss: {last:,.4g} at step 5" in page.read_text()
    titles = browser.js("[...document.querySelectorAll('.chart strong')].map((e) => e.textContent)")
    assert {
        "loss",
        "tokens a second",
        "memory",
        "reward terms",
        "length",
        "KL",
        "groups without advantage",
        "unread or unscored",
    } <= set(titles)
    assert "what the policy said" in words.lower() and re.search(
        r"grpo, step 2: highest and lowest of \d+ completions", words
    )
    # The scenes of the splits differ, and each picture of the rows that are shown is there.
    assert "None found." in words and "not shown" not in said
    shown = len((test).read_text().splitlines())
    assert browser.js("document.querySelectorAll('.example').length") == min(30, shown)
    assert browser.js("[...document.querySelectorAll('.example')].every((e) => e.querySelector('image'))")
