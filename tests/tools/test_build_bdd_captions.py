"""tools/build_bdd_captions.py through its command line, with a scripted teacher over real HTTP."""

import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from drive_vlm.data.videos import MODES, RAW_CAPTION

ROOT = Path(__file__).resolve().parents[2]

CAPTION = (
    "At first a red car waits at a traffic light. Then the light turns green and the red car drives on. "
    "After that a pedestrian steps onto the road in video number {number}, and finally the ego vehicle stops."
)
DETAILED = CAPTION.replace("At first a", "First, a")
CONCISE = "The ego vehicle stops for a pedestrian."


def source_of(body):
    return re.search(r"Caption:\n(.*)\n", body["messages"][-1]["content"]).group(1)


def is_concise(body):
    return "co-driver" in body["messages"][-1]["content"]


def number_of(body):
    return int(re.search(r"number (\d+)", source_of(body)).group(1))


def good_teacher(body):
    return CONCISE if is_concise(body) else f"Here is the description:\n{DETAILED.format(number=number_of(body))}"


@pytest.fixture
def data(tmp_path):
    """Eight captions of eight folders of frames."""
    videos = tmp_path / "videos"
    for i in range(8):
        (videos / f"v{i}").mkdir(parents=True)
        Image.new("RGB", (8, 8), (i, i, i)).save(videos / f"v{i}" / "0.png")
    rows = [{"video": f"v{i}", "caption": CAPTION.format(number=i)} for i in range(8)]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def build(run_here, data, chat_server, spacy_model):
    """Runs the tool on `data` against the server; keeps OUT in data/out."""
    chat_server.answer = good_teacher

    def start(*more, **env):
        words = [
            "--data",
            data / "captions.jsonl",
            "--image_root",
            data / "videos",
            "--out",
            data / "out",
            "--held_out",
            2,
        ]
        words += [
            "--base_url",
            chat_server.url,
            "--teacher",
            "t",
            "--spacy_model",
            spacy_model,
            "--max_retries",
            0,
            *more,
        ]
        return run_here("tools/build_bdd_captions.py", *words, **{"NO_PROXY": "*", **env})

    return start


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def audit_of(data):
    return json.loads((data / "out" / "audit.json").read_text())


@pytest.mark.slow
def test_rows_splits_and_audit(build, data, chat_server, run):
    done = build("--price_in", 1.0, "--price_out", 10.0)
    assert done.returncode == 0, done.stderr
    out = data / "out"
    train, test = (rows_of(out / f"split_entry_{split}.jsonl") for split in ("train", "test"))
    assert (len(train), len(test)) == (12, 4) and len({row["group"] for row in test}) == 2
    assert not {row["group"] for row in train} & {row["group"] for row in test}
    first = next(row for row in train if row["mode"] == "detailed")
    number = first["video"].removeprefix("v")
    assert first == {
        "id": f"v{number}-detailed",
        "video": f"v{number}",
        "conversations": [
            {"from": "human", "value": f"<video>\n{MODES['detailed']}"},
            {"from": "gpt", "value": DETAILED.format(number=number)},
        ],
        "group": f"v{number}",
        "mode": "detailed",
        "new_nouns": [],
    }
    raw = rows_of(out / "raw_captions_test.jsonl")
    assert len(raw) == 2 and raw[0]["conversations"][0]["value"] == f"<video>\n{RAW_CAPTION}"
    audit = audit_of(data)
    assert audit["rows"]["split_entry_train.jsonl"] == 12 and audit["leaks"] == [] and audit["videos"] == 8
    assert audit["modes"]["concise"]["words"] == {"min": 7, "median": 7, "max": 7}
    detailed_words = len(DETAILED.format(number=0).split())
    assert audit["concise_to_detailed"]["max"] == pytest.approx(7 / detailed_words)
    usage = audit["teacher"]["usage"]
    prompt = sum(len(m["content"].split()) for body in chat_server.requests for m in body["messages"])
    assert usage["requests"] == 16 and usage["prompt_tokens"] == prompt
    assert audit["teacher"]["cost"] == pytest.approx((prompt * 1.0 + usage["completion_tokens"] * 10.0) / 1e6)
    assert "microscope.txt" in audit["teacher"]["prompts"]
    again = build("--base_url", chat_server.url.replace("127.0.0.1", "localhost"))
    assert again.returncode == 0 and len(chat_server.requests) == 16, "the second run must ask nobody, at no address"
    reported = audit_of(data)["teacher"]
    assert (
        reported["usage"]["cached"] == 16
        and reported["tokens"]["prompt"] == prompt
        and reported["usage"]["prompt_tokens"] == 0
    )
    # One meta file for each kind and split: what trains on one sees no other stage's rows and no held-out video.
    counts = {"split_entry_train": 12, "split_entry_test": 4, "raw_captions_train": 6, "raw_captions_test": 2}
    assert {path.name for path in out.glob("*meta*")} == {f"{name}.meta.json" for name in counts}
    for name, count in counts.items():
        checked = run([sys.executable, "-c", CHECK_ROWS, out / f"{name}.meta.json"])
        assert checked.returncode == 0, checked.stderr
        assert checked.stdout.split() == [name, str(count)]


CHECK_ROWS = """
import sys
from drive_vlm.data.sources import open_sources
from drive_vlm.data.table import read_sample
from drive_vlm.data.vision import load_video
count = 0
for source in open_sources(sys.argv[1:]):
    for i in range(len(source.rows)):
        sample = read_sample(source, i)
        assert len(load_video(sample.video, 4, sample.where)) == 1
        count += 1
    print(source.name, count)
"""


@pytest.mark.slow
def test_unusable_answers_are_asked_again_then_left_out_by_reason(build, data, chat_server):
    def answer(body):
        number, attempt = number_of(body), body["seed"]
        if is_concise(body):
            return good_teacher(body) if number != 5 else DETAILED.format(number=5)  # never shorter
        if number == 0 and attempt == 0:
            return "I'm sorry, but I can't help with that."  # once, then good
        if number == 1:
            return "I’m sorry, but I can’t assist with that request."  # always
        if number == 2:
            return (
                DETAILED.format(number=2) + " A bus, a truck and a cyclist wait beside a bridge."
            )  # facts from nowhere
        if number == 3:
            return DETAILED.format(number=3) + " A dog waits beside the road."  # one new noun is kept and counted
        return good_teacher(body) if number != 4 else "Too short."

    chat_server.answer = answer
    done = build("--attempts", 2)
    assert done.returncode == 0, done.stderr
    modes = audit_of(data)["modes"]
    assert modes["detailed"]["written"] == 5
    assert modes["detailed"]["left_out"] == {
        "new_nouns": {"count": 1, "ids": ["v2"]},
        "refusal": {"count": 1, "ids": ["v1"]},
        "too_short": {"count": 1, "ids": ["v4"]},
    }
    assert modes["detailed"]["asked_again"] == {"refusal": 2, "new_nouns": 1, "too_short": 1}
    assert modes["detailed"]["new_nouns"] == {"rows": 1, "total": 1, "most": {"dog": 1}}
    assert modes["concise"]["left_out"] == {"not_shorter": {"count": 1, "ids": ["v5"]}}
    rows = [row for split in ("train", "test") for row in rows_of(data / "out" / f"split_entry_{split}.jsonl")]
    assert {row["id"] for row in rows if row["mode"] == "detailed"} == {f"v{i}-detailed" for i in (0, 3, 5, 6, 7)}
    assert next(row for row in rows if row["id"] == "v3-detailed")["new_nouns"] == ["dog"]
    assert "sorry" not in json.dumps(rows) and "left out: 1 new_nouns, 1 refusal, 1 too_short" in done.stdout


@pytest.mark.slow
def test_a_server_that_dies_midway_loses_nothing(build, data, chat_server):
    chat_server.dies_after = 7
    done = build("--workers", 1)
    assert done.returncode == 2 and "the same command goes on from there" in done.stderr
    assert "7 replies are in" in done.stderr and "Traceback" not in done.stderr
    assert not list((data / "out").glob("*.meta.json"))
    chat_server.dies_after = None
    done = build("--workers", 1)
    assert done.returncode == 0, done.stderr
    assert len(chat_server.requests) == 16 and audit_of(data)["teacher"]["usage"]["cached"] == 7


@pytest.mark.slow
def test_a_request_to_stop_is_obeyed_between_the_two_texts_of_a_caption(build, data, chat_server, tmp_path):
    chat_server.asks_to_stop = (7, tmp_path)
    done = build("--workers", 1, DRIVE_VLM_CONTROL_DIR=str(tmp_path))
    assert done.returncode == 1 and "stopped: time limit. What is done so far is kept" in done.stderr
    assert len(chat_server.requests) == 7 and not list((data / "out").glob("*.jsonl"))
    done = build("--workers", 1, DRIVE_VLM_CONTROL_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert len(chat_server.requests) == 16 and audit_of(data)["teacher"]["usage"]["cached"] == 7


@pytest.mark.slow
def test_a_slow_teacher_and_a_wrong_key_are_one_clear_error(build, chat_server):
    chat_server.faults = [3.0]
    done = build("--workers", 1, "--timeout", 0.5)
    assert done.returncode == 2 and "timed out" in done.stderr and "Traceback" not in done.stderr
    chat_server.required_key = "right"
    done = build(OPENAI_API_KEY="sk-wrong-key-123")
    assert done.returncode == 2 and "401" in done.stderr and "sk-wrong-key-123" not in done.stdout + done.stderr
    assert build(OPENAI_API_KEY="right").returncode == 0


@pytest.mark.slow
def test_a_malformed_reply_is_asked_again_and_a_refused_request_costs_its_row_only(build, data, chat_server):
    chat_server.faults = ["<html>busy</html>", 400]
    done = build("--workers", 1, "--attempts", 1, "--max_retries", 1)
    assert done.returncode == 0, done.stderr
    modes = audit_of(data)["modes"]
    assert modes["detailed"]["left_out"] == {"no_answer": {"count": 1, "ids": ["v0"]}}
    assert modes["detailed"]["written"] == 7 and modes["concise"]["written"] == 8


def test_a_server_that_speaks_another_protocol_is_one_clear_error(build, chat_server):
    chat_server.faults = ['{"no": "choices"}'] * 40
    done = build()
    assert done.returncode == 2 and "no chat completion" in done.stderr and "Traceback" not in done.stderr


def test_a_teacher_without_any_usable_answer_fails(build, data, chat_server):
    chat_server.answer = lambda body: "As an AI I must decline to describe this."
    done = build()
    assert done.returncode == 1 and "no usable text" in done.stderr
    assert not list((data / "out").glob("split_entry_*")) and audit_of(data)["modes"]["detailed"]["written"] == 0


def test_own_prompts_and_what_they_must_hold(build, data, chat_server):
    (data / "prompts").mkdir()
    for name, text in (
        ("microscope.txt", "LONG {caption}"),
        ("copilot.txt", "SHORT of a co-driver\nCaption:\n{caption}\n"),
    ):
        (data / "prompts" / name).write_text(text)
    chat_server.answer = lambda body: good_teacher(body) if is_concise(body) else body["messages"][0]["content"][5:]
    done = build("--teacher_prompts", data / "prompts")
    assert done.returncode == 0, done.stderr
    assert sum(text.startswith("LONG At first") for text in chat_server.last_texts()) == 8
    (data / "prompts" / "copilot.txt").write_text("no place")
    done = build("--teacher_prompts", data / "prompts")
    assert done.returncode == 2 and "copilot.txt: the prompt must hold {caption}" in done.stderr


def test_dry_run_shows_prompts_and_estimates_and_asks_nobody(build, data, chat_server):
    done = build("--dry_run", "--price_in", 1e6, "--price_out", 0, "--max_tokens", 100)
    assert done.returncode == 0, done.stderr
    assert CAPTION.format(number=0) in done.stdout and "--- concise, user" in done.stdout
    prompts = [(ROOT / "tools" / "prompts" / name).read_text().strip() for name in ("microscope.txt", "copilot.txt")]
    letters = sum(len(p.replace("{caption}", CAPTION.format(number=i))) for p in prompts for i in range(8))
    assert f"16 requests, each answered at the first attempt: about {letters // 4:,} prompt tokens" in done.stdout
    assert f"at most 1,600 reply tokens; cost at most {letters // 4:.2f}" in done.stdout
    assert not chat_server.requests and not (data / "out").exists()


def test_missing_videos_stop_or_are_counted(build, data):
    with open(data / "captions.jsonl", "a") as file:
        file.write(json.dumps({"video": "gone.mp4", "caption": "x"}) + "\n")
    done = build()
    assert done.returncode == 2 and "captions.jsonl:9" in done.stderr and "gone.mp4 does not exist" in done.stderr
    done = build("--on_bad_row", "skip")
    assert done.returncode == 0, done.stderr
    assert audit_of(data)["bad_rows"]["by_reason"] == {"video_missing": 1}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--held_out", 8), "--held_out: 8 of 8 groups cannot be held out"),
        (("--concise_ratio", 1.5), "--concise_ratio: must be at most 0.99, got 1.5"),
        (("--attempts", 0), "--attempts: must be at least 1"),
        (("--timeout", -1), "--timeout: must be at least 0.1, got -1"),
        (("--requests_per_minute", -5), "--requests_per_minute: must be at least 0.01"),
        (("--temperature", 9), "--temperature: must be at most 2, got 9"),
        (("--price_in", "nan"), "--price_in: must be at least 0, got nan"),
        (("--out", Path(__file__) / "x"), f"{Path(__file__)} is not a folder"),
        (("--detailed_words", 30, 20), "give MIN and MAX"),
        (("--base_url", "nowhere"), "expected an address"),
        (("--spacy_model", "xx"), "spaCy model 'xx' cannot be loaded"),
        (("--prompt", "x"), "Did you mean --teacher_prompts?"),
    ],
)
def test_wrong_arguments(build, words, message):
    done = build(*words)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
