"""tools/drivelm_eval.py through its command line: both forms of predictions, stitched answers, a judge, errors."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from drive_vlm.builders.stitching import normalise_tags

ROOT = Path(__file__).resolve().parents[2]
KIT = ROOT / ".." / "shared" / "kit" / "noncommercial" / "drivelm"
OBJECTS = "A car <c1,CAM_BACK,1088.3,497.5> and a van <c2,CAM_FRONT,300.0,400.0> stand {still}."
FIRST = "First notice <c2,CAM_FRONT,300.0,400.0>."
TEST = {
    "s": {
        "key_frames": {
            "f": {
                "QA": {
                    "perception": [
                        {"Q": "Which objects?", "A": OBJECTS, "tag": [2]},
                        {"Q": "Status of <c1,CAM_BACK,1088.3,497.5>?", "A": "A", "tag": [0]},
                    ],
                    "prediction": [{"Q": "What first?", "A": FIRST, "tag": [3]}],
                    "planning": [{"Q": "Safe actions?", "A": "Brake.", "tag": [1]}],
                    "behavior": [],
                }
            }
        }
    }
}
QUESTIONS = [qa for category in TEST["s"]["key_frames"]["f"]["QA"].values() for qa in category]


@pytest.fixture
def run(run_here):
    return lambda *words, **env: run_here("tools/drivelm_eval.py", *words, **env)


@pytest.fixture
def files(tmp_path):
    """The test file and perfect predictions in the official form."""
    (tmp_path / "test.json").write_text(json.dumps(TEST))
    rows = [
        {"id": f"s_f_{i}", "question": "<image>\n" + qa["Q"], "gt_answer": qa["A"], "answer": qa["A"]}
        for i, qa in enumerate(QUESTIONS)
    ]
    (tmp_path / "output.json").write_text(json.dumps(rows))
    return tmp_path


@pytest.fixture
def scored(run):
    def start(folder, predictions, *words, **env):
        out = folder / "out" / "score.json"
        done = run(
            "--predictions", folder / predictions, "--annotations", folder / "test.json", "--json", out, *words, **env
        )
        assert done.returncode == 0, done.stderr
        return json.loads(out.read_text()), done.stdout

    return start


def test_official_list(files, scored):
    result, text = scored(files, "output.json")
    assert (result["accuracy"], result["final"], result["note"]) == (1.0, None, "GPT part left out")
    assert result["match_f1"] == pytest.approx(100) and result["counted"] == 4
    assert "no final score: GPT part left out" in text and "0.5" in text


def test_predictions_jsonl_with_ids_of_the_builder_and_stitched_answers(files, scored):
    names = ["perception_0", "perception_1", "prediction_0", "planning_0"]
    rows = [
        {
            "id": f"s_f_{name}",
            "prediction": normalise_tags(qa["A"]),
            "reference": normalise_tags(qa["A"]),
            "question": normalise_tags(qa["Q"]),
        }
        for name, qa in zip(names, QUESTIONS, strict=True)
    ]
    (files / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result, _ = scored(files, "rows.jsonl", "--stitched")
    assert result["match_f1"] == pytest.approx(100) and result["gated"] == 0 and result["ignored_coordinates"] == 0
    unmapped, text = scored(files, "rows.jsonl")
    assert unmapped["match_f1"] == 0 and unmapped["gated"] == 1 and unmapped["ignored_coordinates"] == 6
    assert "6 coordinates without decimals" in text


def test_missing_and_strange_rows_are_reported(files, scored):
    rows = [*json.loads((files / "output.json").read_text())[:3], {"id": "x_y_0", "answer": "?"}]
    (files / "output.json").write_text(json.dumps(rows))
    result, text = scored(files, "output.json")
    assert result["missing"] == 1 and "1 answers missing" in text


class _Judge(BaseHTTPRequestHandler):
    """Rates 90 what holds the word "Brake", 70 everything else."""

    asked: list[str] = []  # noqa: RUF012

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][0]["content"]
        self.asked.append(text)
        message = {"role": "assistant", "content": "90" if "Brake" in text else "70"}
        data = json.dumps(
            {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": body["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            }
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


def test_judge_completes_the_score_and_its_replies_are_cached(files, scored):
    _Judge.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    (files / "prompt.txt").write_text("Rate {answer} against {reference}")
    words = ["--judge_url", url, "--judge_model", "j", "--cache", files / "cache"]
    words += ["--judge_prompt", files / "prompt.txt"]
    result, text = scored(files, "output.json", *words, NO_PROXY="*")
    again, _ = scored(files, "output.json", *words, NO_PROXY="*")
    server.shutdown()
    server.server_close()
    assert sorted(_Judge.asked) == ["Rate Brake. against Brake.", f"Rate {FIRST} against {FIRST}"]
    assert (result["gpt"], result["match_gpt"], again["final"]) == (90.0, 70.0, result["final"])
    assert result["final"] == pytest.approx(0.4 * 0.9 + 0.2 * result["language"] + 0.2 * 0.85 + 0.2)
    assert f"final score: {result['final']:.4f}" in text


def test_a_judge_that_says_nothing_is_asked_again_and_counted(files, chat_server, tmp_path, scored):
    """One answer gets a rating at the second attempt; the other none: an empty reply, whose error text holds numbers, then words."""
    replies = {"Brake.": iter(["very good", "Score: 80/100"]), FIRST: iter(["", "", "", "well"])}
    chat_server.answer = lambda body: next(
        replies["Brake." if "Brake." in body["messages"][0]["content"] else FIRST], "no number"
    )
    words = ["--judge_url", chat_server.url, "--judge_model", "j", "--judge_attempts", 2, "--judge_retries", 2]
    for _ in range(2):
        result, text = scored(files, "output.json", *words, DRIVE_VLM_CACHE=str(tmp_path / "cache"))
        assert (result["gpt"], result["match_gpt"], result["unrated"]) == (80.0, None, 1)
        assert "1 replies of the judge without a rating" in text and "2 answers were asked about again" in text
        assert "judge: " in text
    # Replies are kept without a flag; what was refused is asked again.
    assert len(chat_server.requests) == 7


def test_a_request_to_stop_keeps_the_replies(files, chat_server, tmp_path, run):
    chat_server.answer = lambda body: "80"
    chat_server.asks_to_stop = (1, tmp_path)
    words = [
        "--predictions",
        files / "output.json",
        "--annotations",
        files / "test.json",
        "--judge_url",
        chat_server.url,
    ]
    words += [
        "--judge_model",
        "j",
        "--judge_workers",
        1,
        "--cache",
        tmp_path / "cache",
        "--json",
        tmp_path / "score.json",
    ]
    done = run(*words, DRIVE_VLM_CONTROL_DIR=str(tmp_path))
    assert done.returncode == 1 and "stopped: time limit" in done.stderr and len(chat_server.requests) == 1
    assert not (tmp_path / "score.json").exists()
    assert run(*words, DRIVE_VLM_CONTROL_DIR=str(tmp_path)).returncode == 0 and len(chat_server.requests) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.append(rows[0]), "comes twice"),
        (lambda rows: rows[1].update(question="Another question?"), "build the rows from this very test file"),
        (lambda rows: rows[2].pop("answer"), 'a row needs "id"'),
        (lambda rows: rows.__setitem__(0, 7), "output.json[0]: expected an object"),
        (lambda rows: [row.update(id="x_" + row["id"]) for row in rows], "no prediction has an id of the test file"),
    ],
)
def test_bad_predictions_are_one_clear_line(files, change, message, run):
    rows = json.loads((files / "output.json").read_text())
    change(rows)
    (files / "output.json").write_text(json.dumps(rows))
    done = run("--predictions", files / "output.json", "--annotations", files / "test.json")
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_bad_files_and_prompts(files, run):
    (files / "broken.json").write_text("[{]")
    (files / "prompt.txt").write_text("rate it")
    reference = ["--annotations", files / "test.json"]
    for words, message in [
        (["--predictions", files / "none.json", *reference], "no such file"),
        (["--predictions", files / "broken.json", *reference], "broken.json:1: not JSON"),
        (["--predictions", files / "output.json", "--annotations", files / "output.json"], "expected {scene: ...}"),
        (
            [
                "--predictions",
                files / "output.json",
                *reference,
                "--judge_model",
                "j",
                "--judge_prompt",
                files / "prompt.txt",
            ],
            "must hold {reference} and {answer}",
        ),
    ]:
        done = run(*words)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.kit
def test_official_sample_pair(tmp_path, run):
    """The numbers are those of tests/evaluation/test_drivelm.py: the official logic on the same pair."""
    if not KIT.is_dir():
        pytest.skip("the kit of real data (../shared/kit) is absent")
    out = tmp_path / "score.json"
    done = run("--predictions", KIT / "output.json", "--annotations", KIT / "test_eval.json", "--json", out)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert (result["questions"], result["counted"], result["gated"], result["accuracy"]) == (66, 31, 35, 0.0)
    assert result["language"] == pytest.approx(0.08725520739090228, abs=1e-12)


def test_judge_seeds_and_lenient_accuracy(files, run_here, chat_server):
    """The first rating is greedy; further ones are sampled with seeds of their own, and the score keeps the first."""
    chat_server.answer = lambda body: str(60 + 10 * bool(body["temperature"]) + body.get("seed", 0))
    words = ("--predictions", files / "output.json", "--annotations", files / "test.json", "--json", files / "s.json")
    judge = ("--judge_model", "j", "--judge_url", chat_server.url, "--cache", files / "cache", "--judge_seeds", 3)
    for name in ("test.json", "output.json"):
        text = (files / name).read_text().replace("497.5>?", "497.5>? Options: A. Going ahead. B. Stopped.")
        (files / name).write_text(text)
    (files / "blank.json").write_text((files / "output.json").read_text().replace('"answer": "A"', '"answer": "b."'))
    blind = ("--blind_predictions", files / "blank.json")
    done = run_here("tools/drivelm_eval.py", *words, *judge, *blind, "--judge_attempts", 2)
    assert done.returncode == 0, done.stderr
    result = json.loads((files / "s.json").read_text())
    assert result["judge_seeds"]["gpt"]["values"] == [60, 72, 74] and result["gpt"] == 60
    assert result["judge_seeds"]["final"]["values"][0] == result["final"]
    assert "over 3 seeds of the judge: 60.0000, 72.0000, 74.0000" in done.stdout
    assert result["accuracy_table"]["scores"]["strict"]["value"] == 100
    baselines = {name: entry["value"] for name, entry in result["accuracy_table"]["baselines"].items()}
    assert baselines == {"majority of these rows": 100, "chance": 50, "blind, lenient": 0}
