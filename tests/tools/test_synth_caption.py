"""tools/synth_caption.py through its command line, with a scripted captioner over real HTTP: what every paid step shares."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from drive_vlm.store.keyed_lines import read_lines

GOOD = "A red car waits on the left at a traffic light while a person crosses the wet road."
REFUSAL = "I'm sorry, I cannot help with that."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pictures of different grey."""
    (tmp_path / "pictures").mkdir()
    for i in range(6):
        Image.new("RGB", (64, 48), (40 * i,) * 3).save(tmp_path / "pictures" / f"{i}.png")
    return tmp_path


@pytest.fixture
def caption(run_here: Callable, folder: Path, chat_server: Any) -> Callable:
    """Runs the tool on the six pictures against the server, one request at a time."""
    chat_server.answer = lambda body: GOOD

    def start(*words: object, out: str = "out.jsonl") -> Any:
        flags = ("--data", folder / "pictures", "--out", folder / out, "--model", "m", "--base_url", chat_server.url)
        return run_here("tools/synth_caption.py", *flags, "--workers", 1, "--max_retries", 0, *words)

    return start


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_lines(path, "damaged", "")]


def audit_of(path: Path) -> dict[str, Any]:
    return json.loads(path.with_name(f"{path.name}.audit.json").read_text())


def test_captions_with_tokens_cost_and_provenance(caption: Callable, folder: Path, chat_server: Any) -> None:
    done = caption("--price_in", 1.0, "--price_out", 10.0, "--json", folder / "audit.json")
    assert done.returncode == 0, done.stderr
    lines = lines_of(folder / "out.jsonl")
    assert [line["image"] for line in lines] == [f"{i}.png" for i in range(6)]
    first, body = lines[0], chat_server.requests[0]
    assert (first["caption_raw"], first["model"], first["finish_reason"]) == (GOOD, "m", "stop")
    assert "refused" not in first
    prompt, reply = len(chat_server.text_of(body["messages"][-1]).split()), len(GOOD.split())
    assert first["tokens"]["caption"] == {"prompt": prompt, "reply": reply} and first["calls"] == {"caption": 1}
    assert first["cost"]["caption"] == pytest.approx((prompt * 1.0 + reply * 10.0) / 1e6)
    # The picture itself is sent, not its name.
    assert [part["type"] for part in body["messages"][-1]["content"]] == ["image_url", "text"]
    assert len({body["messages"][-1]["content"][0]["image_url"]["url"] for body in chat_server.requests}) == 6
    audit = json.loads((folder / "audit.json").read_text())
    assert audit["counts"] == {"calls": 6, "captions": 6, "without a caption": 0, "words": 6 * reply}
    assert audit["models"] == {"captioner": {"name": "m"}}
    assert audit["cost"] == pytest.approx(6 * first["cost"]["caption"])


def test_what_cannot_be_used_is_counted_and_never_made_up(caption: Callable, folder: Path, chat_server: Any) -> None:
    # One block of three pictures: 0 and 1 fail at first, 2 is good; then 0 fails again and 1 is good.
    replies = [REFUSAL, "Too short.", GOOD, "<think>no end", GOOD]
    chat_server.answer = lambda body: replies.pop(0)
    done = caption("--limit", 3)
    assert done.returncode == 0, done.stderr
    lines = lines_of(folder / "out.jsonl")
    assert [line["caption_raw"] for line in lines] == ["", GOOD, GOOD] and not replies
    assert [line.get("refused") for line in lines] == ["empty", None, None]
    assert [line["calls"]["caption"] for line in lines] == [2, 2, 1]
    audit = audit_of(folder / "out.jsonl")
    assert audit["dropped"] == {"refusal": 1, "too_short": 1, "empty": 1}
    assert audit["counts"]["without a caption"] == 1
    seeds = [body["seed"] for body in chat_server.requests]
    assert seeds == [0, 0, 0, 1, 1] and chat_server.requests[3]["temperature"] == 0.7


def test_a_cut_and_an_empty_reply_are_told_apart(caption: Callable, folder: Path, chat_server: Any) -> None:
    def reply(content: str, reason: str) -> str:
        choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": reason}
        usage = {"prompt_tokens": 5, "completion_tokens": 9, "total_tokens": 14}
        return json.dumps(
            {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
        )

    chat_server.faults = [reply(GOOD, "length"), reply("", "content_filter"), 400]
    done = caption("--limit", 4, "--attempts", 1)
    assert done.returncode == 0, done.stderr
    lines = lines_of(folder / "out.jsonl")
    assert [line.get("refused") for line in lines] == ["cut_off", "no_answer", "no_answer", None]
    assert [line["finish_reason"] for line in lines] == ["length", "refused", "refused", "stop"]
    assert audit_of(folder / "out.jsonl")["dropped"] == {"cut_off": 1, "no_answer": 2}


def test_a_server_that_is_silent_or_dies_is_one_error_and_pays_nothing_twice(
    caption: Callable, folder: Path, chat_server: Any
) -> None:
    whole = caption(out="whole.jsonl")
    assert whole.returncode == 0
    asked = len(chat_server.requests)
    chat_server.dies_after = asked + 4
    # Another seed, so that nothing is known.
    prices = ("--seed", 5, "--price_in", 1, "--price_out", 1, "--batch_size", 2)
    done = caption(*prices)
    assert done.returncode == 2 and "the same command goes on from there" in done.stderr
    assert "Traceback" not in done.stderr and not (folder / "out.jsonl").exists()
    chat_server.dies_after = None
    chat_server.faults = [0.6]
    done = caption(*prices, "--timeout", 0.2)
    assert done.returncode == 2 and "timed out" in done.stderr, done.stderr
    done = caption(*prices)
    assert done.returncode == 0, done.stderr
    # Six pictures, and the one request that timed out.
    assert len(chat_server.requests) - asked == 6 + 1
    assert [row["caption_raw"] for row in lines_of(folder / "out.jsonl")] == [GOOD] * 6
    again = caption(*prices)
    assert again.returncode == 0 and len(chat_server.requests) - asked == 7


def test_a_stopped_run_gives_the_bytes_of_one_that_was_not(caption: Callable, folder: Path, chat_server: Any) -> None:
    chat_server.answer = lambda body: (
        f"{GOOD} The seed is {body['seed']} and the road is free." if body["seed"] else "Short."
    )
    flags = ("--price_in", 1, "--price_out", 2, "--batch_size", 2, "--workers", 3)
    assert caption(*flags, out="whole.jsonl").returncode == 0
    first = len(chat_server.requests)
    chat_server.dies_after = first + 7
    assert caption(*flags, out="out.jsonl").returncode == 2
    chat_server.dies_after = None
    assert caption(*flags, out="out.jsonl").returncode == 0
    assert (folder / "out.jsonl").read_bytes() == (folder / "whole.jsonl").read_bytes()
    assert len(chat_server.requests) == 2 * first


def test_max_cost_stops_before_it_is_passed_and_keeps_what_was_paid(
    caption: Callable, folder: Path, chat_server: Any
) -> None:
    # A request may cost 100 reply tokens at most, 0.01; each costs 18: 0.0018. With 0.0145 the fourth may still be asked.
    prices = ("--price_in", 0, "--price_out", 100, "--max_tokens", 100, "--batch_size", 1)
    reply = len(GOOD.split()) * 100 / 1e6
    done = caption(*prices, "--max_cost", 0.0145)
    assert done.returncode == 2 and done.stderr.count("error:") == 1, done.stderr
    assert (
        "--max_cost 0.0145" in done.stderr.splitlines()[-1] and "3 lines are finished" in done.stderr.splitlines()[-1]
    )
    assert len(chat_server.requests) == 3 and 3 * reply + 0.01 > 0.0145 > 2 * reply + 0.01
    # What was paid before counts, so the same command stops at once.
    done = caption(*prices, "--max_cost", 0.0145)
    assert done.returncode == 2 and len(chat_server.requests) == 3
    done = caption(*prices, "--max_cost", 1)
    assert done.returncode == 0 and len(chat_server.requests) == 6
    assert audit_of(folder / "out.jsonl")["cost"] == pytest.approx(6 * reply)
    done = caption("--max_cost", 1, out="other.jsonl")
    assert done.returncode == 2 and "needs --price_in and --price_out" in done.stderr


def test_preview_shows_ten_lines_and_the_estimate_uses_it(caption: Callable, folder: Path, chat_server: Any) -> None:
    done = caption("--estimate", "--price_in", 1, "--price_out", 1)
    assert done.returncode == 0 and not chat_server.requests, done.stderr
    assert "not measured" in done.stdout and "--picture_tokens" in done.stdout and "unknown" in done.stdout
    done = caption("--preview", 2)
    assert done.returncode == 0 and done.stdout.count(f"png: {GOOD}") == 2, done.stderr
    assert len(chat_server.requests) == 2
    done = caption(
        "--estimate", "--price_in", 1000, "--price_out", 1000, "--gpu_seconds", 3600, "--json", folder / "e.json"
    )
    assert done.returncode == 0 and len(chat_server.requests) == 2, done.stderr
    told = json.loads((folder / "e.json").read_text())["estimate"]
    lines = lines_of(folder / "out.jsonl")
    prompt, reply = (sum(line["tokens"]["caption"][name] for line in lines) * 3 for name in ("prompt", "reply"))
    assert (told["pictures"], told["calls"], told["prompt_tokens"], told["reply_tokens"]) == (6, 6, prompt, reply)
    assert told["cost"] == pytest.approx((prompt + reply) / 1000) and told["gpu_hours"] == pytest.approx(6)
    assert told["disk_bytes"] == pytest.approx(3 * (folder / "out.jsonl").stat().st_size)
    done = caption("--estimate", "--max_tokens", 7)
    assert done.returncode == 2 and "the preview had other settings" in done.stderr
    # The whole run takes the two lines over.
    assert caption().returncode == 0 and len(chat_server.requests) == 6


def test_a_picture_that_cannot_be_read_stops_the_run_or_is_counted(
    caption: Callable, folder: Path, chat_server: Any
) -> None:
    whole = (folder / "pictures" / "2.png").read_bytes()
    (folder / "pictures" / "2.png").write_bytes(whole[: len(whole) // 2])
    done = caption()
    assert done.returncode == 2 and "2.png" in done.stderr and "--on_bad_row skip" in done.stderr
    paid = len(chat_server.requests)
    done = caption("--on_bad_row", "skip")
    assert done.returncode == 0, done.stderr
    assert [line["image"] for line in lines_of(folder / "out.jsonl")] == ["0.png", "1.png", "3.png", "4.png", "5.png"]
    assert audit_of(folder / "out.jsonl")["bad_rows"]["by_reason"] == {"image_corrupt": 1}
    assert len(chat_server.requests) == paid == 5, "what was asked beside the bad picture is in the cache"


def test_objects_stand_in_the_prompt_by_flag(run_here: Callable, folder: Path, chat_server: Any) -> None:
    box = {"box": [0, 0, 16, 24], "label": "traffic cone", "score": 0.5, "by": "retrieval"}
    lines = [{"key": "k", "image": "0.png", "group": "g", "size": [64, 48], "objects": [box]}]
    (folder / "pictures" / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    chat_server.answer = lambda body: GOOD
    words = ("--data", folder / "pictures" / "lines.jsonl", "--model", "m", "--base_url", chat_server.url)
    for more in ((), ("--with_objects",)):
        done = run_here("tools/synth_caption.py", *words, "--out", folder / f"{len(more)}.jsonl", *more)
        assert done.returncode == 0, done.stderr
    without, with_ = chat_server.last_texts()
    assert "traffic cone" not in without
    assert (
        "1. traffic cone: from 0 % to 25 % of the width and 0 % to 50 % of the height, left; named by retrieval, score 0.50"
        in with_
    )
    line = lines_of(folder / "1.jsonl")[0]
    assert line["group"] == "g" and line["objects"] == [box], "earlier fields are carried on"


@pytest.mark.slow
def test_a_local_model_captions_and_a_rerun_gives_the_same(run_here: Callable, folder: Path, tiny_model: Path) -> None:
    words = (
        "--data",
        folder / "pictures",
        "--backend",
        "hf",
        "--model",
        tiny_model,
        "--max_tokens",
        12,
        "--words",
        1,
        50,
    )
    for name in ("a", "b"):
        if name == "b":
            assert run_here("tools/synth_caption.py", *words, "--out", folder / "b.jsonl", "--limit", 2).returncode == 0
        done = run_here("tools/synth_caption.py", *words, "--out", folder / f"{name}.jsonl", "--temperature", 0.0)
        assert done.returncode == 0, done.stderr
    assert (folder / "a.jsonl").read_bytes() == (folder / "b.jsonl").read_bytes()
    line = lines_of(folder / "a.jsonl")[0]
    assert (
        line["finish_reason"] in ("stop", "length")
        and "cost" not in line
        and line["calls"] == {"caption": line["calls"]["caption"]}
    )
    settings = json.loads((folder / "a.jsonl.settings.json").read_text())
    assert settings["models"]["captioner"]["weights"]
