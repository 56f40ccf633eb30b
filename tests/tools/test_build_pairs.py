"""tools/build_pairs.py through its command line, with a judge over real HTTP."""

import json
import re

import pytest
from PIL import Image

from drive_vlm.data.samples import parse_row

ANSWERS = ["a red light ahead", "a truck in the lane", "two cyclists on the right", "a closed road", "nothing of note"]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "train.jsonl"
    rows = []
    for i, answer in enumerate(ANSWERS):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
        turns = [{"from": "human", "value": f"<image>\nWhat matters at {i}?"}, {"from": "gpt", "value": answer}]
        rows.append({"id": f"q{i}", "image": f"{i}.png", "group": f"g{i}", "kind": "k", "conversations": turns})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def generations(folder, name, answers):
    path = folder / f"{name}.jsonl"
    path.write_text(
        "".join(
            json.dumps({"id": f"q{i}", "prediction": text, "reference": ""}) + "\n"
            for i, text in enumerate(answers)
            if text is not None
        )
    )
    return path


@pytest.fixture
def make(run_here, data, tmp_path):
    def start(*flags, out="pairs.jsonl"):
        return run_here("tools/build_pairs.py", "--data", data, "--out", tmp_path / out, *flags)

    return start


def pairs_of(tmp_path, out="pairs.jsonl"):
    return [json.loads(line) for line in (tmp_path / out).read_text().splitlines()]


def audit_of(tmp_path, out="pairs.jsonl"):
    return json.loads((tmp_path / f"{out}.audit.json").read_text())


def test_pairs_of_a_spin_round(make, tmp_path):
    said = generations(
        tmp_path,
        "round0",
        ["a green light", " a truck in  the lane", "", "A closed road.", "a very long answer about a street"],
    )
    done = make("--predictions", said)
    assert done.returncode == 0, done.stderr
    pairs = pairs_of(tmp_path)
    assert [(pair["id"], pair["row_id"], pair["chosen"], pair["rejected"]) for pair in pairs] == [
        ("q0-r1", "q0", "a red light ahead", "a green light"),
        ("q3-r1", "q3", "a closed road", "A closed road."),
        ("q4-r1", "q4", "nothing of note", "a very long answer about a street"),
    ]
    sample = parse_row(pairs[0], "f:1", str(tmp_path))
    assert sample.reference == pairs[0]["chosen"] and sample.group == "g0" and sample.columns["kind"] == "k"
    audit = audit_of(tmp_path)
    assert audit["dropped"] == {"identical": 1, "empty_rejected": 1} and audit["rows"] == 5 and audit["pairs"] == 3
    assert audit["near_duplicates"]["pairs"] == [{"id": "q3-r1", "similarity": 1.0}]
    assert audit["words"]["chosen"]["mean"] == pytest.approx(10 / 3) and audit["words"]["chosen_longer"] == 0.5
    assert audit["image_root"] == str(tmp_path) and "image root" in done.stdout
    assert "dropped: 1 identical" in done.stdout and "near-duplicates: 1 pairs" in done.stdout
    assert make("--predictions", said, "--drop_near_duplicates").returncode == 0
    assert audit_of(tmp_path)["dropped"]["near_duplicate"] == 1 and len(pairs_of(tmp_path)) == 2


def test_the_next_round_mixes_the_pairs_of_the_round_before(make, tmp_path):
    first = generations(tmp_path, "round0", ["red", "truck", "bikes", "road", "none"])
    second = generations(tmp_path, "round1", ["amber", "truck", "bikes on the right", "road", "void"])
    assert make("--predictions", first, out="pairs1.jsonl").returncode == 0
    done = make("--predictions", second, "--round", 2, "--mix", tmp_path / "pairs1.jsonl", out="pairs2.jsonl")
    assert done.returncode == 0, done.stderr
    pairs, audit = pairs_of(tmp_path, "pairs2.jsonl"), audit_of(tmp_path, "pairs2.jsonl")
    assert len(pairs) == 8 and audit["by_round"] == {"2": 5, "1": 3} and audit["dropped"] == {"repeated": 2}
    assert len({pair["id"] for pair in pairs}) == 8
    clash = make("--predictions", second, "--round", 1, "--mix", tmp_path / "pairs1.jsonl", out="clash.jsonl")
    assert clash.returncode == 2 and "another --round" in clash.stderr and not (tmp_path / "clash.jsonl").exists()


def test_own_best_answers_as_positives_by_metric(make, tmp_path):
    files = [
        generations(tmp_path, "s0", ["a red light", "a truck", "x", "same", None]),
        generations(tmp_path, "s1", ["a red light ahead now", "a truck in the lane", "two cyclists", "same", None]),
        generations(tmp_path, "s2", ["cats", "dogs", "two cyclists on the left", "same", "only one"]),
    ]
    done = make("--predictions", *files, "--positives", "best", "--min_margin", 0.1)
    assert done.returncode == 0, done.stderr
    assert [(pair["chosen"], pair["rejected"]) for pair in pairs_of(tmp_path)] == [
        ("a red light ahead now", "cats"), ("a truck in the lane", "dogs"), ("two cyclists on the left", "x")
    ]  # fmt: skip
    best, worst = pairs_of(tmp_path)[1]["scores"]
    assert best == pytest.approx(1.0) and worst == 0
    assert audit_of(tmp_path)["dropped"] == {"fewer_than_two_answers": 2}
    assert "at least two --predictions" in make("--predictions", files[0], "--positives", "best").stderr


def judge_flags(chat_server, tmp_path):
    return ["--judge_model", "j", "--judge_url", chat_server.url, "--cache", tmp_path / "cache", "--judge_retries", 0]


def test_judge_scores_the_own_answers(make, chat_server, tmp_path):
    chat_server.answer = lambda body: (
        f"Rating: [[{re.search(r'worth (.)', body['messages'][-1]['content'][-1]['text'])[1]}]]"
    )
    files = [
        generations(tmp_path, f"s{k}", [f"worth {v}" for v in values]) for k, values in enumerate(["39x55", "71557"])
    ]
    done = make("--predictions", *files, "--positives", "best", "--score", "judge", *judge_flags(chat_server, tmp_path))
    assert done.returncode == 0, done.stderr
    assert [(pair["row_id"], pair["chosen"], pair["rejected"]) for pair in pairs_of(tmp_path)] == [
        ("q0", "worth 7", "worth 3"), ("q1", "worth 9", "worth 1"), ("q4", "worth 7", "worth 5")
    ]  # fmt: skip
    assert audit_of(tmp_path)["dropped"] == {"fewer_than_two_answers": 2}  # one unread, one said twice the same
    assert chat_server.requests[0]["messages"][-1]["content"][0]["type"] == "image_url"


def test_judge_filter_keeps_what_it_prefers_and_goes_on_after_a_crash(make, chat_server, tmp_path, monkeypatch):
    def judge(body):
        text = body["messages"][-1]["content"]
        first, second = (re.search(rf"Answer {name}:\n(.*)", text)[1] for name in "AB")
        if "What matters at 4?" in text:
            return "no idea"
        if "What matters at 3?" in text:
            return "[[C]]"
        good = [*ANSWERS[:2], "bikes"]
        return "[[A]]" if first in good else "[[B]]" if second in good else "[[C]]"

    chat_server.answer = judge
    said = generations(tmp_path, "round0", ["red", "truck", "bikes", "road", "none"])
    flags = [
        "--predictions",
        said,
        "--judge_filter",
        "--no_images",
        "--judge_attempts",
        2,
        *judge_flags(chat_server, tmp_path),
    ]
    chat_server.dies_after = 3
    done = make(*flags, "--judge_workers", 1)
    assert done.returncode == 2 and "go on" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "pairs.jsonl").exists()
    chat_server.dies_after, chat_server.asks_to_stop = None, (5, tmp_path)
    monkeypatch.setenv("DRIVE_VLM_CONTROL_DIR", str(tmp_path))
    done = make(*flags, "--judge_workers", 1)
    assert done.returncode == 1 and "stopped: time limit" in done.stderr and len(chat_server.requests) == 5
    assert not (tmp_path / "pairs.jsonl").exists()
    done = make(*flags)
    assert done.returncode == 0, done.stderr
    assert len(chat_server.requests) == 10 + 2
    assert [pair["row_id"] for pair in pairs_of(tmp_path)] == ["q0", "q1"]
    assert audit_of(tmp_path)["dropped"] == {"judge_rejected": 1, "judge_tie": 1, "judge_unread": 1}
    assert make(*flags).returncode == 0 and len(chat_server.requests) == 12
    assert "no judge" in make("--predictions", said, "--judge_filter").stderr


def test_bad_input(make, data, tmp_path):
    some = generations(tmp_path, "some", ["red", None, None, None, None])
    done = make("--predictions", some)
    assert done.returncode == 2 and "4 of 5 rows have no generated answer, e.g. 'q1'" in done.stderr
    assert make("--predictions", some, "--on_missing", "skip").returncode == 0
    assert audit_of(tmp_path)["rows_without_generation"] == ["q1", "q2", "q3", "q4"]
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "more.jsonl").write_text(data.read_text().replace('"q', '"p'))
    done = make("--predictions", some, "--data", data, tmp_path / "sub" / "more.jsonl")
    assert done.returncode == 2 and "give --image_root" in done.stderr
    same = generations(tmp_path, "same", ANSWERS)
    assert "no pair is left: 5 identical" in make("--predictions", same).stderr
    some.write_text('{"id": "zz", "prediction": "x"}\n')
    assert "generate from the same rows" in make("--predictions", some).stderr
    some.write_text('{"id": "q0"}\n')
    assert "some.jsonl:1" in make("--predictions", some).stderr
    some.write_text('{"id": "q0", "prediction": "x"}\n' * 2)
    assert "stands twice" in make("--predictions", some).stderr
    (tmp_path / "old.jsonl").write_text('{"id": "1", "chosen": "a", "rejected": " a"}\n')
    assert "old.jsonl:1: the pair is identical" in make("--predictions", same, "--mix", tmp_path / "old.jsonl").stderr
