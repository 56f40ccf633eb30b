"""tools/codalm_eval.py over real HTTP: both forms of predictions, ratings, faults."""

import json
import re

import pytest

TASKS = {"general_perception": "general", "driving_suggestion": "suggestion", "region_perception": "region"}


def rate_by_number(body):
    """The judge's rating is the number in the predicted text."""
    text = body["messages"][-1]["content"]
    return f"Fine. Rating: [[{re.search(r'worth (-?[0-9]+)', text)[1]}]]"


@pytest.fixture
def rows(tmp_path):
    """Rows of 2 pictures: per picture 1 general, 1 suggestion and 2 regions."""
    found = []
    for task, short in TASKS.items():
        for i in range(4 if short == "region" else 2):
            picture = i // 2 if short == "region" else i
            found.append({
                "id": f"Mini_{short}_{i}", "question_id": i, "task": task, "group": f"test_{picture}", "image": f"test/{task}_{i}.jpg",
                "category": ("car", "dog")[i % 2] if short == "region" else task,
                "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": f"reference {short} {i}"}],
            })  # fmt: skip
    path = tmp_path / "mini.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


def worth(task, i):
    return {"general_perception": 6 - i, "driving_suggestion": 8, "region_perception": (9, 1, 9, 5)[i]}[task]


@pytest.fixture
def published(tmp_path, rows):
    """The benchmark's answer files in their folder, region answers with labels next to those without."""
    folder = tmp_path / "results"
    folder.mkdir()
    for row in map(json.loads, rows.read_text().splitlines()):
        answer = {
            "question_id": row["question_id"],
            "image": row["image"].split("/")[-1],
            "answer": f"worth {worth(row['task'], row['question_id'])}",
        }
        with open(folder / f"{row['task']}_answer.jsonl", "a") as file:
            file.write(json.dumps(answer) + "\n")
        if row["task"] == "region_perception":
            with open(folder / "region_perception_answer_w_label.jsonl", "a") as file:
                file.write(json.dumps(answer | {"label_name": row["category"]}) + "\n")
    return folder


@pytest.fixture
def evaluate(run_here, chat_server, tmp_path):
    chat_server.answer = rate_by_number

    def start(*flags, **env):
        words = ["--out", tmp_path / "ratings.jsonl", "--json", tmp_path / "score.json", "--judge_model", "judge", "--judge_url", chat_server.url,
                 "--cache", tmp_path / "cache", "--judge_retries", 0]  # fmt: skip
        return run_here("tools/codalm_eval.py", *words, *flags, **env)

    return start


def check_score(tmp_path):
    result = json.loads((tmp_path / "score.json").read_text())
    assert {task: entry["score"] for task, entry in result["tasks"].items()} == {
        "general_perception": 55, "driving_suggestion": 80, "region_perception": 60
    }  # fmt: skip
    assert result["final"]["score"] == pytest.approx(65)
    assert {name: entry["score"] for name, entry in result["region_classes"].items()} == {
        "vehicle": 90,
        "miscellaneous": 30,
    }
    return result


def test_published_answer_files(evaluate, chat_server, published, rows, tmp_path):
    done = evaluate("--predictions", published, "--data", rows, "--price_in", 1, "--price_out", 2)
    assert done.returncode == 0, done.stderr
    result = check_score(tmp_path)
    assert len(chat_server.requests) == 8 and all(body["temperature"] == 0 for body in chat_server.requests)
    texts = " ".join(chat_server.last_texts())
    assert "reference region 3" in texts and "image_url" not in json.dumps(chat_server.requests)
    assert result["judge"]["own_prompts"] and result["judge"]["cost"] > 0
    assert "not the published ones" in done.stdout and "65.00" in done.stdout
    assert evaluate("--predictions", published, "--data", rows).returncode == 0 and len(chat_server.requests) == 8


def test_own_predictions_and_own_prompts(evaluate, chat_server, rows, tmp_path):
    predictions = tmp_path / "p.jsonl"
    lines = []
    for row in map(json.loads, rows.read_text().splitlines()):
        turns = row.pop("conversations")
        answer = f"worth {worth(row['task'], row['question_id'])}"
        lines.append(json.dumps(row | {"reference": turns[1]["value"], "prediction": answer, "dataset": "mini"}) + "\n")
    predictions.write_text("".join(lines))
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    turns = [{"role": "system", "content": "official"}, {"role": "user", "content": "example"}, {"role": "assistant", "content": "Rating: [[2]]"},
             {"role": "user", "content": "{reference} | {prediction}"}]  # fmt: skip
    for task in TASKS:
        (prompts / f"{task}.json").write_text(json.dumps(turns))
    done = evaluate("--predictions", predictions, "--judge_prompts", prompts)
    assert done.returncode == 0, done.stderr
    check_score(tmp_path)
    sent = chat_server.requests[0]["messages"]
    assert [turn["role"] for turn in sent] == ["system", "user", "assistant", "user"] and " | worth " in sent[-1][
        "content"
    ]
    assert "not the published ones" not in done.stdout
    (prompts / "region_perception.json").write_text("[]")
    assert evaluate("--predictions", predictions, "--judge_prompts", prompts).returncode == 2
    predictions.write_text(lines[0].replace('"task"', '"tusk"'))
    assert '"task" is null' in evaluate("--predictions", predictions).stderr


def test_unread_ratings_are_asked_again_and_counted(evaluate, chat_server, published, rows, tmp_path):
    def judge(body):
        text = body["messages"][-1]["content"]
        if "reference general 0" in text:
            return "Rating: eleven"
        return "hm" if "reference suggestion 1" in text and "seed" not in body else rate_by_number(body)

    chat_server.answer = judge
    done = evaluate("--predictions", published, "--data", rows)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "score.json").read_text())
    assert result["tasks"]["general_perception"] | {"low": None, "high": None} == {
        "score": 50,
        "low": None,
        "high": None,
        "rated": 1,
        "unread": 1,
    }
    assert result["asked_again"] == 2 and result["tasks"]["driving_suggestion"]["score"] == 80
    assert len(chat_server.requests) == 8 + 2 + 1 and "2 answers were asked for again" in done.stdout


def test_a_request_to_stop_keeps_the_replies(evaluate, chat_server, published, rows, tmp_path):
    chat_server.asks_to_stop = (3, tmp_path)
    words = ("--predictions", published, "--data", rows, "--judge_workers", 1)
    done = evaluate(*words, DRIVE_VLM_CONTROL_DIR=str(tmp_path))
    assert done.returncode == 1 and "stopped: time limit" in done.stderr and len(chat_server.requests) == 3
    assert evaluate(*words, DRIVE_VLM_CONTROL_DIR=str(tmp_path)).returncode == 0 and len(chat_server.requests) == 8
    check_score(tmp_path)


def test_missing_and_foreign_answers(evaluate, chat_server, published, rows, tmp_path):
    path = published / "general_perception_answer.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0])
    done = evaluate("--predictions", published, "--data", rows)
    assert done.returncode == 2 and "1 of 8 rows" in done.stderr and "Mini_general_1" in done.stderr
    assert not chat_server.requests
    done = evaluate("--predictions", published, "--data", rows, "--on_missing", "skip")
    assert done.returncode == 0 and "1 rows without an answer" in done.stdout
    path.write_text("".join(lines) + lines[0])
    assert "came before at" in evaluate("--predictions", published, "--data", rows).stderr
    path.write_text(lines[0].replace('"question_id": 0', '"question_id": 9'))
    assert "has no question 9" in evaluate("--predictions", published, "--data", rows).stderr
    path.write_text(lines[0].replace("_0.jpg", "_7.jpg"))
    assert "question 0 of --data is about" in evaluate("--predictions", published, "--data", rows).stderr
    path.write_text('{"question_id": "0"}\n')
    assert "expected" in evaluate("--predictions", published, "--data", rows).stderr
    assert "give --data" in evaluate("--predictions", published).stderr
    assert "none of" in evaluate("--predictions", tmp_path / "cache", "--data", rows).stderr


def test_a_dying_server_keeps_what_was_rated(evaluate, chat_server, published, rows, tmp_path):
    chat_server.dies_after = 5
    done = evaluate("--predictions", published, "--data", rows, "--judge_workers", 1)
    assert done.returncode == 2 and "every reply in the cache" in done.stderr and "Traceback" not in done.stderr
    chat_server.dies_after = None
    assert evaluate("--predictions", published, "--data", rows).returncode == 0
    assert len(chat_server.requests) == 8
    check_score(tmp_path)
