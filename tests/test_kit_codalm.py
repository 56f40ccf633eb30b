"""CODA-LM's real texts through the real command lines: rows, scores by a scripted judge, and a small real model as judge.

The kit holds annotations of 197 test pictures in an early form, without pictures and boxes, and answers of two models.
Here they are put into the published form with rendered stand-ins for the pictures and invented boxes; the texts,
categories and answers are real.
"""

import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.kit
TASKS = {"general_perception": "stage1", "driving_suggestion": "stage2", "region_perception": "stage3"}


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def place_of(row):
    """(picture, region) of a row of the kit: 0001.jpg, images/test_0001.jpg, 0001_bbox_1.jpg, vis/test_0001_object_1.jpg."""
    name = Path(row.get("img_name") or row["image"]).stem.removeprefix("test_")
    number, _, region = name.partition("_")
    return number, region.split("_")[-1]


@pytest.fixture(scope="module")
def texts(kit):
    folder = kit / "noncommercial" / "codalm_text"
    if not folder.is_dir():
        pytest.skip("the kit has no codalm_text")
    return folder


@pytest.fixture(scope="module")
def root(texts, tmp_path_factory):
    """The 197 annotations as CODA-LM/Mini, and a stand-in for every picture."""
    root = tmp_path_factory.mktemp("CODA")
    (root / "CODA-LM" / "Mini").mkdir(parents=True)
    (root / "test" / "images").mkdir(parents=True)
    labels = {place_of(row): row["label_name"] for row in lines_of(texts / "test" / "llava_7b_stage3.jsonl")}
    regions: dict = {}
    for row in lines_of(texts / "prediction" / "codalm_all_stage3.jsonl"):
        number, region = place_of(row)
        box = [20 + 9 * len(regions.get(number, {})), 30, 24, 18]
        entry = {"description and explanation": row["answer"], "box": box, "category_name": labels[number, region]}
        regions.setdefault(number, {})[region] = entry
    for file in sorted((texts / "ann").glob("*.json")):
        early = json.loads(file.read_text())
        suggestion = " ".join(early.pop("suggestions"))
        words = [f"{item['description']} {item['explanation']}" for items in early.values() for item in items]
        content = {
            "general_perception": early | {"description and explanation": " ".join(words)},
            "region_perception": regions.get(file.stem, {}),
            "driving_suggestion": suggestion,
        }
        (root / "CODA-LM" / "Mini" / f"test_{file.stem}.json").write_text(json.dumps(content))
        Image.new("RGB", (160, 90), (70, int(file.stem) % 256, 90)).save(root / "test" / "images" / f"{file.stem}.jpg")
    return root


@pytest.fixture(scope="module")
def rows(run, root, tmp_path_factory):
    out = tmp_path_factory.mktemp("codalm")
    words = ["tools/build_codalm.py", "--image_root", root, "--out", out, "--splits", "Mini", "--on_bad_row", "skip"]
    done = run([sys.executable, *words])
    assert done.returncode == 0, done.stderr
    return out / "mini.jsonl"


def published_answers(texts, rows, model, folder):
    """The real answers of a model as the benchmark's files, numbered as the rows are."""
    folder.mkdir()
    numbers = {(row["task"], *place_of(row)): row["question_id"] for row in lines_of(rows)}
    for task, stage in TASKS.items():
        with open(folder / f"{task}_answer.jsonl", "w") as file:
            for row in lines_of(texts / "test" / f"{model}_{stage}.jsonl"):
                key = task, *place_of(row)
                if key in numbers:
                    file.write(json.dumps({"question_id": numbers[key], "answer": row["answer"]}) + "\n")
    return folder


def overlap_judge(body):
    """Rates by the share of the reference's words that the prediction has."""
    found = re.search(
        r"Reference .*?:\n(.*)\n\nPredicted .*?:\n(.*)\n\n(?:Look|Rate)", body["messages"][-1]["content"], re.DOTALL
    )
    reference, prediction = (set(part.lower().split()) for part in found.groups())
    return f"Rating: [[{1 + round(9 * len(reference & prediction) / len(reference))}]]"


@pytest.mark.slow
def test_rows_and_scores_of_real_texts(run, texts, rows, chat_server, tmp_path):
    built = lines_of(rows)
    counts = {task: sum(row["task"] == task for row in built) for task in TASKS}
    assert counts["general_perception"] == 197 and counts["region_perception"] == 453
    audit = json.loads((rows.parent / "mini.audit.json").read_text())
    assert counts["driving_suggestion"] + audit["bad_rows"]["total"] == 197
    assert {row["class"] for row in built if "class" in row} <= {
        "vehicle", "vru", "traffic_sign", "traffic_light", "traffic_cone", "barrier", "miscellaneous"
    }  # fmt: skip
    chat_server.answer = overlap_judge
    scores = {}
    for model in ("llava_7b", "gemini-pro"):
        answers = published_answers(texts, rows, model, tmp_path / model)
        words = ["--predictions", answers, "--data", rows, "--out", tmp_path / f"{model}.jsonl", "--json", tmp_path / "score.json",
                 "--judge_model", "overlap", "--judge_url", chat_server.url, "--cache", tmp_path / "cache"]  # fmt: skip
        done = run([sys.executable, "tools/codalm_eval.py", *words])
        assert done.returncode == 0, done.stderr
        scores[model] = json.loads((tmp_path / "score.json").read_text())
        assert scores[model]["images"] == 197 and scores[model]["final"]["unread"] == 0
        assert {task: entry["rated"] for task, entry in scores[model]["tasks"].items()} == counts
        assert scores[model]["final"]["low"] < scores[model]["final"]["score"] < scores[model]["final"]["high"]
    assert scores["llava_7b"]["final"] != scores["gemini-pro"]["final"]


@pytest.mark.slow
def test_a_small_real_model_judges_over_http_and_in_the_process(run, texts, rows, smollm2, smollm2_server, tmp_path):
    """SmolLM2-135M is a poor judge: what is proved is that its battles and ratings come
    through silence, errors and junk, and that the same model in the process says the same."""
    questions = [row for row in lines_of(rows) if row["task"] == "driving_suggestion"][:5]
    answers: dict = {"llava_7b": {}, "gemini-pro": {}}
    for model, found in answers.items():
        found |= {place_of(row)[0]: row["answer"] for row in lines_of(texts / "test" / f"{model}_stage2.jsonl")}
    paths = []
    for model, found in answers.items():
        paths.append(tmp_path / f"{model}.jsonl")
        predictions = [
            {"id": row["id"], "question": "What should the ego car do?", "group": row["group"], "task": row["task"], "category": row["category"],
             "reference": row["conversations"][1]["value"].split(". ")[0], "prediction": found[place_of(row)[0]].strip().split(". ")[0]}
            for row in questions
        ]  # fmt: skip
        paths[-1].write_text("".join(json.dumps(row) + "\n" for row in predictions))
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    write_prompt(
        prompts / "arena.json", "Right: {reference}\nA: {answer_a}\nB: {answer_b}\nBetter:", PAIRS, "{question}\n"
    )
    for task in TASKS:
        write_prompt(prompts / f"{task}.json", "Right: {reference}\nSaid: {prediction}\nRating:", RATINGS)
    judge = ["--judge_model", "smollm2", "--judge_url", smollm2_server.url, "--cache", tmp_path / "cache", "--judge_max_tokens", 8, "--judge_workers", 1,
             "--judge_timeout", 10, "--judge_retries", 6]  # fmt: skip
    smollm2_server.faults = [11.0, "<html>overloaded</html>", 503, '{"choices": [', None, 429, "null"]
    arena = [
        "--predictions",
        *paths,
        "--out",
        tmp_path / "battles.jsonl",
        "--json",
        tmp_path / "arena.json",
        "--judge_prompt",
        prompts / "arena.json",
    ]
    done = run([sys.executable, "tools/judge_arena.py", *arena, *judge], timeout=240)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "arena.json").read_text())
    assert result["counts"]["battles"] == 5 and result["counts"]["unreadable"] < 5
    assert result["judge"]["requests"] >= 10 and not smollm2_server.faults

    local = [str(word).replace("battles.jsonl", "local.jsonl") for word in arena]
    local_judge = ["--judge_backend", "hf", "--judge_model", smollm2, "--judge_max_tokens", 8, "--judge_batch_size", 1]
    done = run([sys.executable, "tools/judge_arena.py", *local, *local_judge], timeout=240)
    assert done.returncode == 0, done.stderr
    verdicts = [[row["verdicts"] for row in lines_of(tmp_path / name)] for name in ("battles.jsonl", "local.jsonl")]
    assert verdicts[0] == verdicts[1] and "in this process" in done.stdout

    smollm2_server.dies_after = len(smollm2_server.requests) + 2
    rate = [
        "--predictions",
        paths[0],
        "--out",
        tmp_path / "ratings.jsonl",
        "--json",
        tmp_path / "score.json",
        "--judge_prompts",
        prompts,
    ]
    done = run([sys.executable, "tools/codalm_eval.py", *rate, *judge[:-1], 0], timeout=240)
    assert done.returncode == 2 and "go on" in done.stderr and "Traceback" not in done.stderr
    smollm2_server.dies_after = None
    done = run([sys.executable, "tools/codalm_eval.py", *rate, *judge], timeout=240)
    assert done.returncode == 0, done.stderr
    scored = json.loads((tmp_path / "score.json").read_text())
    suggestion = scored["tasks"]["driving_suggestion"]
    assert suggestion["rated"] + suggestion["unread"] == 5 and scored["judge"]["cached"] >= 2
    assert suggestion["rated"] >= 1 and scored["final"]["score"] is None


# A model of this size follows examples, not instructions.
PAIRS = [
    ({"reference": "Stop.", "answer_a": "Drive on.", "answer_b": "Stop now."}, "[[B]]"),
    ({"reference": "Slow down.", "answer_a": "Reduce the speed.", "answer_b": "Go faster."}, "[[A]]"),
    ({"reference": "Keep left.", "answer_a": "Turn right.", "answer_b": "Stay on the left."}, "[[B]]"),
    ({"reference": "Give way.", "answer_a": "Let it pass first.", "answer_b": "Push through."}, "[[A]]"),
]
RATINGS = [
    ({"reference": "Stop.", "prediction": "Stop now."}, "Rating: [[9]]"),
    ({"reference": "Slow down.", "prediction": "Go faster."}, "Rating: [[1]]"),
    ({"reference": "Keep left.", "prediction": "Be careful."}, "Rating: [[4]]"),
]


def write_prompt(path, form, examples, before=""):
    turns = []
    for values, reply in examples:
        turns += [{"role": "user", "content": form.format(**values)}, {"role": "assistant", "content": reply}]
    path.write_text(json.dumps([*turns, {"role": "user", "content": before + form}]))
