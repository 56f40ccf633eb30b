"""Accuracy, baselines and comparison through the command line, counted by hand."""

import csv
import json
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "qa_eval.py"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DRIVE_VLM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def run(run_here):
    return lambda *flags: run_here(TOOL, *flags)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def predictions(path, said):
    """Four questions on two pictures: two about the light (red, green), two counts (3, 1)."""
    rows = [("light", "perception", "red"), ("light", "perception", "green"), ("count", "prediction", "3")]
    rows.append(("count", "prediction", "1"))
    columns = ("template", "category", "reference")
    return write(
        path,
        [
            {
                "id": i,
                "dataset": "toy",
                "prediction": said[i],
                "image": f"{i // 2}.png",
                **dict(zip(columns, row, strict=True)),
            }
            for i, row in enumerate(rows)
        ],
    )


@pytest.fixture
def train(tmp_path):
    answers = [("light", "Red."), ("light", "red"), ("light", "green"), ("count", "1"), ("count", "2"), ("count", "2")]
    rows = []
    for i, (template, answer) in enumerate(answers):
        turns = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": answer}]
        if i % 2:
            turns = [{"role": "user", "content": "what?"}, {"role": "assistant", "content": answer}]
        rows.append({"id": i, "template": template, "messages" if i % 2 else "conversations": turns})
    return write(tmp_path / "train.jsonl", rows)


@pytest.mark.fresh("the command as a user starts it")
def test_numbers_by_hand(tmp_path, train, run):
    before = predictions(tmp_path / "before.jsonl", ["Red!", "red", "1", ""])
    after = predictions(tmp_path / "after.jsonl", ["red", "Green", "the 3", "2"])
    blank = predictions(tmp_path / "blank.jsonl", ["red", "red", "1", "1"])
    files = ["--predictions", before, after, "--train", train, "--blind_predictions", blank]
    done = run(*files, "--json", tmp_path / "r.json", "--out", tmp_path / "r.csv")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "r.json").read_text())
    first, second = result["checkpoints"]["before"], result["checkpoints"]["after"]
    assert (first["accuracy"], second["accuracy"], second["n"], second["groups"]) == (0.25, 0.75, 4, 2)
    assert second["by_category"]["perception"]["accuracy"] == 1.0
    assert second["by_template"]["count"]["accuracy"] == 0.5
    baselines = result["baselines"]
    assert baselines["majority"]["accuracy"] == 0.25  # red, red, 2, 2
    assert baselines["blanked"]["accuracy"] == 0.5
    assert (baselines["blind"]["which"], baselines["blind"]["accuracy"]) == ("blanked", 0.5)
    assert baselines["chance"] == 0.5
    assert second["above_blind"]["difference"] == 0.25
    [change] = result["comparisons"]
    assert (change["difference"], change["wins"], change["losses"]) == (0.5, 2, 0)
    assert "after - before: +50.0 points" in done.stdout and "chance: 50.0%" in done.stdout
    rows = list(csv.DictReader((tmp_path / "r.csv").open()))
    assert [row["correct"] for row in rows] == ["1", "0", "0", "0", "1", "1", "1", "0"]


def test_unseen_template_is_reported(tmp_path, train, run):
    text = predictions(tmp_path / "p.jsonl", ["a"] * 4).read_text().replace('"count"', '"other"')
    (tmp_path / "p.jsonl").write_text(text)
    done = run("--predictions", tmp_path / "p.jsonl", "--train", train)
    assert done.returncode == 0 and "2 questions have a template that training never saw" in done.stdout


def test_errors_name_the_row(tmp_path, train, run):
    good = predictions(tmp_path / "good.jsonl", ["a"] * 4)
    part = write(tmp_path / "part.jsonl", [json.loads(line) for line in good.read_text().splitlines()[:3]])
    done = run("--predictions", good, "--blind_predictions", part)
    assert done.returncode == 2 and "lacks 1 of 4 questions" in done.stderr and "Traceback" not in done.stderr
    done = run("--predictions", good, "--train", train, "--template_column", "kind")
    assert done.returncode == 2 and f'{train}:1: the row has no "kind"' in done.stderr
    done = run("--predictions", tmp_path / "none.jsonl")
    assert done.returncode == 2 and "none.jsonl" in done.stderr
    done = run("--predictions", good, good)
    assert done.returncode == 2 and "names a file twice" in done.stderr


def test_different_references_are_not_compared(tmp_path, run):
    good = predictions(tmp_path / "good.jsonl", ["a"] * 4)
    other = tmp_path / "other.jsonl"
    other.write_text(good.read_text().replace('"reference": "green"', '"reference": "yellow"'))
    done = run("--predictions", good, other)
    assert done.returncode == 2 and "other.jsonl:2: id '1' has another reference" in done.stderr
