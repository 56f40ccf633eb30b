"""tools/judge_arena.py over real HTTP: a scripted judge, its faults, and a model in the process."""

import json
import re
import sys

import pytest
from PIL import Image

SECRET = "sk-arena-secret-0123456789"
TOOL = "tools/judge_arena.py"


def quality_judge(body):
    """Prefers the answer with the larger number; equal numbers tie."""
    content = body["messages"][-1]["content"]
    text = content if isinstance(content, str) else content[-1]["text"]
    first, second = (float(re.search(rf"Answer {name}:\nquality (\d+)", text)[1]) for name in "AB")
    return "Because. " + ("[[A]]" if first > second else "[[B]]" if second > first else "[[C]]")


def write_files(folder, qualities, questions=12, pictures=False):
    """One prediction file a model; `qualities[model](i)` is the number in its answer to question i."""
    paths = []
    if pictures:
        for i in range(questions):
            Image.new("RGB", (8, 8), (i, 90, 200)).save(folder / f"{i}.png")
    for name, quality in qualities.items():
        path = folder / f"{name}.jsonl"
        rows = [
            {"id": f"q{i}", "dataset": "d", "question": f"What is at {i}?", "reference": f"a car {i}", "group": f"g{i // 2}",
             "category": "even" if i % 2 == 0 else "odd", "prediction": f"quality {quality(i)} of {name}"} | ({"image": f"{i}.png"} if pictures else {})
            for i in range(questions)
        ]  # fmt: skip
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        paths.append(path)
    return paths


@pytest.fixture
def arena(run_here, chat_server, tmp_path):
    """`arena(paths, *flags)`: a finished process, judged by `chat_server`, battles in tmp_path/arena.jsonl."""
    chat_server.answer = quality_judge

    def start(paths, *flags, key=SECRET):
        words = ["--predictions", *paths, "--out", tmp_path / "arena.jsonl", "--json", tmp_path / "arena.json",
                 "--judge_model", "judge", "--judge_url", chat_server.url, "--cache", tmp_path / "cache", "--judge_retries", 1]  # fmt: skip
        return run_here(TOOL, *words, *flags, OPENAI_API_KEY=key)

    return start


def result_of(tmp_path):
    return json.loads((tmp_path / "arena.json").read_text())


def battles_of(tmp_path):
    return [json.loads(line) for line in (tmp_path / "arena.jsonl").read_text().splitlines()]


def test_three_models_and_a_rerun_that_costs_nothing(arena, chat_server, tmp_path):
    paths = write_files(
        tmp_path, {"weak": lambda i: 1, "mid": lambda i: 5 if i else 1, "strong": lambda i: 9}, pictures=True
    )
    done = arena(paths, "--plot", tmp_path / "arena.png", "--price_in", 1, "--price_out", 1)
    assert done.returncode == 0, done.stderr
    assert len(chat_server.requests) == 12 * 3 * 2
    parts = chat_server.requests[0]["messages"][-1]["content"]
    assert [part["type"] for part in parts] == ["image_url", "text"] and chat_server.requests[0]["temperature"] == 0
    result = result_of(tmp_path)
    assert result["counts"] == {
        "battles": 36, "equal_answers": 0, "unreadable": 0, "asked_again": 0, "decided": 35, "tie": 1, "with_pictures": 36
    }  # fmt: skip
    ratings = {name: entry["bradley_terry"]["rating"] for name, entry in result["models"].items()}
    assert ratings["strong"] > ratings["mid"] > ratings["weak"] and sum(ratings.values()) == pytest.approx(3000)
    assert result["pairs"]["mid"]["weak"]["rate"] == pytest.approx(11.5 / 12)
    assert result["models"]["strong"]["win_rate"]["rate"] == 1 and result["models"]["strong"]["win_rate"]["low"] < 1
    assert result["by_category"]["odd"]["mid"]["n"] == 12
    assert result["position_bias"]["agree"]["share"] == 1 and result["judge"]["cost"] > 0
    assert "arena" in done.stdout and "72 requests" in done.stdout
    assert Image.open(tmp_path / "arena.png").size[0] > 300
    battle = battles_of(tmp_path)[0]
    assert battle["models"] == ["weak", "mid"] and battle["winner"] == "tie" and battle["verdicts"] == ["tie", "tie"]

    (tmp_path / "arena.jsonl").unlink()  # the cache alone is enough as well
    again = arena(paths)
    assert again.returncode == 0 and len(chat_server.requests) == 72
    assert battles_of(tmp_path)[0] == battle
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(SECRET.encode() in path.read_bytes() for path in files)
    assert SECRET not in done.stdout + done.stderr


def test_sample_against_the_first_and_equal_answers(arena, chat_server, tmp_path):
    paths = write_files(tmp_path, {"base": lambda i: 3, "up": lambda i: 7, "down": lambda i: 2})
    lines = paths[2].read_text().replace("of down", "of base").replace("quality 2", "quality  3")
    paths[2].write_text(lines)
    done = arena(paths, "--pairs", "vs-first", "--battles", 10, "--no_images")
    assert done.returncode == 0, done.stderr
    battles = battles_of(tmp_path)
    assert len(battles) == 10 and {tuple(b["models"]) for b in battles} == {("base", "up"), ("base", "down")}
    equal = [b for b in battles if b.get("equal_answers")]
    assert equal and all(b["models"] == ["base", "down"] and b["winner"] == "tie" for b in equal)
    assert len(chat_server.requests) == 2 * (10 - len(equal))
    more = arena(paths, "--pairs", "vs-first", "--battles", 16, "--no_images")
    assert more.returncode == 0 and "dropped" not in more.stdout
    ids = {(b["id"], *b["models"]) for b in battles}
    assert ids < {(b["id"], *b["models"]) for b in battles_of(tmp_path)}
    assert arena(paths, "--battles", 99).returncode == 2
    assert arena(paths, "--pairs", "vs-first", "--no_images", "--category_column", "dataset").returncode == 0
    assert {b["category"] for b in battles_of(tmp_path)} == {"d"}, "kept battles take the column of now"
    lines = (tmp_path / "arena.jsonl").read_text().splitlines()
    for damaged, problem in (
        (json.loads(lines[0]) | {"winner": "nobody"}, "no verdict of base and up. Remove the line"),
        ({"key": json.loads(lines[0])["key"]}, "arena.jsonl:1: not a row of an earlier run (winner is missing)"),
    ):
        (tmp_path / "arena.jsonl").write_text("\n".join([json.dumps(damaged), *lines[1:]]) + "\n")
        done = arena(paths, "--pairs", "vs-first", "--no_images")
        assert done.returncode == 2 and problem in done.stderr


def test_a_judge_that_likes_the_first_place_gives_ties(arena, chat_server, tmp_path):
    chat_server.answer = lambda body: "[[A]]"
    assert arena(write_files(tmp_path, {"a": lambda i: 1, "b": lambda i: 2})).returncode == 0
    result = result_of(tmp_path)
    assert result["counts"]["tie"] == 12 and result["pairs"]["a"]["b"]["rate"] == 0.5
    assert result["position_bias"]["agree"]["share"] == 0 and result["position_bias"]["first"]["share"] == 1


def test_replies_that_cannot_be_read_are_asked_again_then_counted(arena, chat_server, tmp_path):
    def judge(body):
        text = body["messages"][-1]["content"]
        if "What is at 3?" in text:
            return "I cannot say."
        if "What is at 5?" in text and "seed" not in body:
            return "[[A]] or [[B]]"
        return quality_judge(body)

    chat_server.answer = judge
    paths = write_files(tmp_path, {"a": lambda i: 1, "b": lambda i: 2})
    done = arena(paths, "--judge_attempts", 3)
    assert done.returncode == 0, done.stderr
    result = result_of(tmp_path)
    assert result["counts"]["unreadable"] == 1 and result["counts"]["asked_again"] == 2
    assert result["pairs"]["b"]["a"] | {"low": 0, "high": 0} == {"n": 11, "wins": 11, "ties": 0, "losses": 0, "rate": 1, "low": 0, "high": 0}  # fmt: skip
    assert "1 unreadable" in done.stdout
    again = [body for body in chat_server.requests if "seed" in body]
    assert sorted({body["seed"] for body in again}) == [1, 2] and all(body["temperature"] == 0.7 for body in again)
    assert len(chat_server.requests) == 24 + 2 * 2 + 2  # question 3 in both orders twice more, question 5 once more
    assert [b["winner"] for b in battles_of(tmp_path) if b["id"] == "q3"] == [None]
    assert arena(paths, "--judge_attempts", 3).returncode == 0 and len(chat_server.requests) == 30
    chat_server.answer = quality_judge  # with one more attempt only what was not read is asked
    assert arena(paths, "--judge_attempts", 4).returncode == 0 and len(chat_server.requests) == 32
    assert [b["winner"] for b in battles_of(tmp_path) if b["id"] == "q3"] == ["b"]


def test_a_request_that_the_server_refuses_does_not_stop_the_others(arena, chat_server, tmp_path):
    paths = write_files(tmp_path, {"a": lambda i: 1, "b": lambda i: 2})
    chat_server.faults = [400]
    done = arena(paths, "--judge_workers", 1, "--judge_attempts", 1)
    assert done.returncode == 0 and "1 unreadable" in done.stdout, done.stderr
    first = battles_of(tmp_path)[0]
    assert first["winner"] is None and "(refused)" in first["replies"][0] and "400" in first["replies"][0]


def test_a_wrong_key_is_named_without_showing_any(arena, chat_server, tmp_path):
    chat_server.required_key = SECRET
    paths = write_files(tmp_path, {"a": lambda i: 1, "b": lambda i: 2})
    done = arena(paths, key="sk-wrong-key-9876543210")
    assert done.returncode == 2 and "401" in done.stderr and "0 of 12 judgements are kept" in done.stderr
    assert "Traceback" not in done.stderr
    assert "sk-wrong" not in done.stdout + done.stderr
    assert arena(paths).returncode == 0


def test_a_server_that_dies_loses_nothing_that_was_judged(arena, chat_server, tmp_path):
    paths = write_files(tmp_path, {"a": lambda i: 1, "b": lambda i: 2}, questions=50)
    chat_server.dies_after = 80
    done = arena(paths)
    assert done.returncode == 2 and "32 of 50 judgements are kept" in done.stderr and "go on" in done.stderr
    assert len(battles_of(tmp_path)) == 32 and "Traceback" not in done.stderr
    with open(tmp_path / "arena.jsonl", "a") as file:
        file.write('{"key": "torn')
    chat_server.dies_after = None
    assert arena(paths).returncode == 0
    assert len(chat_server.requests) == 100 and len(battles_of(tmp_path)) == 50
    assert [b["id"] for b in battles_of(tmp_path)] == [f"q{i}" for i in range(50)]


def test_a_request_to_stop_lets_no_further_question_begin(arena, chat_server, tmp_path, monkeypatch):
    """80 questions in: a block of 64 is in the file, what was under way in the cache; the rerun asks for nothing again."""
    monkeypatch.setenv("DRIVE_VLM_CONTROL_DIR", str(tmp_path))
    paths = write_files(tmp_path, {"a": lambda i: 1, "b": lambda i: 2}, questions=50)
    chat_server.asks_to_stop = (80, tmp_path)
    done = arena(paths, "--judge_workers", 2)
    assert done.returncode == 1 and "stopped: time limit. What is done so far is kept" in done.stderr
    assert len(battles_of(tmp_path)) == 32 and 80 <= len(chat_server.requests) < 90 and "Traceback" not in done.stderr
    assert not (tmp_path / "stop").exists() and not (tmp_path / "arena.json").exists()
    assert arena(paths).returncode == 0
    assert len(chat_server.requests) == 100 and len(battles_of(tmp_path)) == 50


def test_timeouts_and_malformed_replies_on_the_way(arena, chat_server, tmp_path):
    chat_server.faults = [2.0, "<html>", '{"choices": [', 500, 429, None, "{}", 2.0]
    paths = write_files(tmp_path, {"a": lambda i: 1, "b": lambda i: 2})
    done = arena(paths, "--judge_timeout", 0.5, "--judge_retries", 8)
    assert done.returncode == 0, done.stderr
    assert result_of(tmp_path)["pairs"]["b"]["a"]["wins"] == 12


def test_changed_answers_are_judged_again(arena, chat_server, tmp_path):
    paths = write_files(tmp_path, {"a": lambda i: 1, "b": lambda i: 2})
    assert arena(paths).returncode == 0
    paths[1].write_text(paths[1].read_text().replace("quality 2 of b", "quality 0 of b", 1))
    done = arena(paths)
    assert done.returncode == 0 and "1 battles of another judge, prompt or answer" in done.stdout
    assert len(chat_server.requests) == 26 and result_of(tmp_path)["pairs"]["b"]["a"]["wins"] == 11


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "other"}, "no id in common"),
        ({"question": ""}, 'no "question"'),
        ({"image": "gone.png"}, "gone.png does not exist"),
    ],
)
def test_bad_input(arena, tmp_path, change, message):
    paths = write_files(tmp_path, {"a": lambda i: 1, "b": lambda i: 2}, questions=1)
    paths[0].write_text(json.dumps(json.loads(paths[0].read_text()) | change) + "\n")
    done = arena(paths)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert arena(paths[:1]).returncode == 2


def test_the_reference_judges_without_a_model(run_here, tmp_path):
    """Right and wrong by qa_eval's normalisation: one of two right answers wins nothing over the other."""
    answers = {"a": ["Red.", "bus", "a bus", "wet"], "b": ["the red", "A bus!", "car", "dry"]}
    references = ["red", "truck", "bus", "snow"]
    paths = []
    for name, said in answers.items():
        paths.append(tmp_path / f"{name}.jsonl")
        paths[-1].write_text("".join(
            json.dumps({"id": f"q{i}", "question": "What?", "reference": reference, "prediction": text, "image": "nowhere.png"}) + "\n"
            for i, (reference, text) in enumerate(zip(references, said, strict=True))
        ))  # fmt: skip
    words = [TOOL, "--predictions", *paths, "--out", tmp_path / "arena.jsonl", "--json", tmp_path / "arena.json", "--judge_backend", "reference"]  # fmt: skip
    done = run_here(*words)
    assert done.returncode == 0, done.stderr
    assert [battle["winner"] for battle in battles_of(tmp_path)] == ["tie", "tie", "a", "tie"]
    result = result_of(tmp_path)
    assert result["pairs"]["a"]["b"]["rate"] == 0.625 and result["judge"]["name"] == "reference"
    assert result["position_bias"]["agree"]["share"] == 1 and not result["judge"]["sees_images"]
    refused = run_here(*words, "--judge_model", "m")
    assert refused.returncode == 2 and "asks no model" in refused.stderr


@pytest.mark.slow
def test_a_model_in_the_process_judges(run, tiny_model, synthetic_data, tmp_path):
    """A random VLM says nothing that can be read: every battle is tried, and the tool says so."""
    rows = [json.loads(line) for line in (synthetic_data / "test.jsonl").read_text().splitlines()[:3]]
    paths = []
    for name in ("a", "b"):
        paths.append(tmp_path / f"{name}.jsonl")
        paths[-1].write_text("".join(
            json.dumps({"id": row["id"], "question": "What is it?", "reference": "a car", "image": row["image"], "prediction": f"red {name}"}) + "\n"
            for row in rows
        ))  # fmt: skip
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("{question} {reference} {answer_a} {answer_b}")
    done = run([sys.executable, TOOL, "--predictions", *paths, "--out", tmp_path / "out.jsonl", "--judge_backend", "hf", "--judge_model", tiny_model,
                "--image_root", synthetic_data, "--judge_prompt", prompt, "--judge_max_tokens", 4, "--judge_attempts", 2])  # fmt: skip
    assert done.returncode == 2 and "none of 3 battles has a verdict that can be read" in done.stderr, done.stderr
    battles = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [battle["attempts"] for battle in battles] == [[2, 2]] * 3
