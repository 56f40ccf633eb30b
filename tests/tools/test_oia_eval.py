"""tools/oia_eval.py through its command line: the seed paper's Figure 5 from its counts, the kit's real rows, and what users get wrong."""

import csv
import json
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from drive_vlm.builders.oia import oia_row
from drive_vlm.data.predictions import prediction_row
from drive_vlm.data.samples import parse_row
from drive_vlm.evaluation.oia_labels import ACTION_TEXTS, REASON_TEXTS, json_answer, label_texts, text_answer

TOOL = Path(__file__).parents[2] / "tools" / "oia_eval.py"
ROWS = 403


@pytest.fixture
def evaluate(run_here, tmp_path):
    def call(*flags, expect=0):
        out = tmp_path / "scores.json"
        done = run_here(TOOL, "--json", out, *flags, DRIVE_VLM_CACHE=str(tmp_path / "cache"))
        assert done.returncode == expect and "Traceback" not in done.stderr, done.stderr[-2000:]
        return (json.loads(out.read_text()) if not expect else None), done

    return call


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def one_hot(index, size):
    return [int(place == index) for place in range(size)]


def answers(true, said, hits):
    """One answer for each label of `true`: `hits` of label c are right, `said[c]` answers are c in all, the rest is out of vocabulary."""
    wrong = Counter(said) - Counter(hits)
    left, result = Counter(hits), []
    for label in true:
        if left[label]:
            left[label] -= 1
            result.append(label)
        else:
            others = [other for other, count in wrong.items() if other != label and count]
            result.append(max(others, key=lambda other: wrong[other]) if others else None)
            wrong[result[-1]] -= bool(others)
    assert Counter(label for label in result if label is not None) == Counter(said)
    return result


def listed(counts):
    return [label for label, count in counts.items() for _ in range(count)]


# Rows of one action and one reason. The paper gives right answers, answers out of vocabulary and the share of "stop" and of reason 7;
# the other counts are filled in, so that the sums of true and said labels are those that its mF1 follows from.
TRUE = {"action": listed({1: 339, 0: 40, 2: 15, 3: 9}), "reason": listed({7: 208, 3: 60, 0: 30, 4: 25, 8: 15, 1: 65})}
FIGURE_5 = {
    "sft": {
        "action": ({1: 201, 0: 67, 2: 25, 3: 16}, {0: 5, 1: 170}),
        "reason": ({7: 85, 3: 24, 4: 11, 0: 8, 8: 40, 20: 21}, {0: 1, 3: 2, 4: 3, 7: 49, 8: 2}),
    },
    "a2c": {
        "action": ({1: 203, 0: 46, 2: 25, 3: 16}, {0: 6, 1: 167}),
        "reason": ({7: 69, 3: 42, 4: 30, 8: 37, 20: 3}, {3: 2, 4: 2, 7: 38, 8: 5}),
    },
}


def figure_5(path, name):
    said = {kind: answers(TRUE[kind], *counts) for kind, counts in FIGURE_5[name].items()}
    rows = []
    for i in range(ROWS):
        action, reason = said["action"][i], said["reason"][i]
        words = ["accelerate" if action is None else ACTION_TEXTS[action]]
        text = text_answer(words, ["the weather is fine" if reason is None else REASON_TEXTS[reason]])
        row = {
            "id": i,
            "dataset": "toy",
            "prediction": text,
            "reference": "x",
            "image": f"{i}.jpg",
            "group": f"video-{i // 2}",
        }
        rows.append(row | {"actions": one_hot(TRUE["action"][i], 4), "reason": one_hot(TRUE["reason"][i], 21)})
    return write(path, rows)


@pytest.mark.fresh("the command as a user starts it")
def test_the_seed_paper_s_figures(evaluate, tmp_path):
    files = [figure_5(tmp_path / f"{name}.jsonl", name) for name in FIGURE_5]
    flags = (
        "--plot",
        tmp_path / "f1.png",
        "--plot_distribution",
        tmp_path / "labels.png",
        "--csv",
        tmp_path / "rows.csv",
    )
    result, done = evaluate("--predictions", *files, *flags, "--map_nearest")
    assert (result["rows"], result["videos"]) == (403, 202)
    sft, a2c = result["checkpoints"]["sft"], result["checkpoints"]["a2c"]

    def percent(entry, kind, score="F1_all"):
        return round(100 * entry["scores"][kind][score]["value"], 2)

    assert [percent(entry, kind) for kind in ("action", "reason") for entry in (sft, a2c)] == [
        43.42,
        42.93,
        14.14,
        11.66,
    ]
    m_f1 = [entry["scores"][kind]["mF1"]["value"] for kind in ("action", "reason") for entry in (sft, a2c)]
    assert m_f1 == pytest.approx([0.180772, 0.188943, 0.032101, 0.027553], abs=1e-6)
    each = [[entry["scores"]["action"][f"F1 {text}"]["value"] for text in ACTION_TEXTS] for entry in (sft, a2c)]
    assert each == [pytest.approx(found, abs=5e-5) for found in ([0.0935, 0.6296, 0, 0], [0.1395, 0.6162, 0, 0])]
    outside = [
        round(403 * entry["answers"][f"{kind}_unknown"]["value"])
        for kind in ("action", "reason")
        for entry in (sft, a2c)
    ]
    assert outside == [94, 113, 214, 222]
    assert sft["said"]["action"]["(none)"] == 94 and sft["unknown"]["action"]["commonest"] == [["accelerate", 94]]
    # The seed's own baseline: both models are far below "always stop".
    stop = result["baselines"]["always stop/slow down"]
    assert (percent(stop, "action"), percent(stop, "reason")) == (84.12, 51.61)
    assert stop["scores"]["action"]["mF1"]["value"] == pytest.approx(0.2284, abs=5e-5)
    assert result["baselines"].keys() >= {"majority set", "commonest labels", "prior", "random"}
    [moved] = result["comparisons"]
    assert (moved["first"], moved["second"]) == ("sft", "a2c")
    change = moved["scores"]["action"]["F1_all"]
    assert change["value"] == pytest.approx(-2 / 403) and change["low"] < change["value"] < change["high"]
    assert moved["scores"]["action"]["mF1"]["value"] == pytest.approx(0.188943 - 0.180772, abs=2e-6)
    assert moved["answers"]["action_unknown"]["value"] == pytest.approx(19 / 403)
    # Nothing is near "accelerate": the second line says the same.
    assert sft["nearest"]["scores"] == sft["scores"]
    with (tmp_path / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * ROWS and sum(float(row["action_F1"]) for row in rows if row["checkpoint"] == "sft") == 175
    assert rows[0] | {"prediction": ""} == {
        "id": "0", "dataset": "toy", "group": "video-0", "checkpoint": "sft", "form": "text", "actions": "1", "actions_said": "1",
        "action_F1": "1.000000", "reasons": "7", "reasons_said": "7", "reason_F1": "1.000000", "pair_F1": "1.000000", "unknown": "",
        "prediction": "",
    }  # fmt: skip
    for name in ("f1.png", "labels.png"):
        assert min(Image.open(tmp_path / name).size) > 800
    for reported in (
        "actions: 403 rows of 403, 202 videos",
        "reasons: 403 rows of 403",
        "sft, nearest labels",
        "always stop/slow down",
        '1 action texts are out of vocabulary and count for nothing; the commonest: "accelerate" 94',
        "know the labels of the evaluated rows themselves",
        "a2c - sft",
        "339 (84.1%)",
    ):
        assert reported in done.stdout, done.stdout


def test_real_rows_of_the_kit_as_json(evaluate, kit, tmp_path):
    """What ResNet-50 says of 267 real rows, written as a model would; the labels come from a data file, the baselines from it as well."""
    folder = kit / "noncommercial" / "bddoia"
    outputs = [json.loads(line) for line in (folder / "resnet50_joint_seed43_logits.jsonl").read_text().splitlines()]
    labels = json.loads((folder / "test_25k_images_actions.json").read_text())
    reasons = {
        row["file_name"]: row["reason"] for row in json.loads((folder / "test_25k_images_reasons.json").read_text())
    }
    data = [
        {
            "id": Path(row["file_name"]).stem,
            "actions": labels["annotations"][row["id"]]["category"][:4],
            "reason": reasons[row["file_name"]],
        }
        for row in labels["images"]
    ]
    said = []
    for row in outputs:
        name = Path(row["file_name"]).stem
        texts = [
            label_texts([logit > 0 for logit in row[f"{kind}_logits"]], texts)
            for kind, texts in (("action", ACTION_TEXTS), ("reason", REASON_TEXTS))
        ]
        said.append(
            {"id": name, "prediction": json_answer("A street.", *texts), "group": name[:17], "image": row["file_name"]}
        )
    blind = [row | {"prediction": text_answer(["stop"], ["red light"])} for row in said]
    files = [write(tmp_path / f"{name}.jsonl", rows) for name, rows in (("p", said), ("blind", blind), ("data", data))]
    flags = ("--predictions", files[0], "--blind_predictions", files[1], "--data", files[2], "--train", files[2])
    result, done = evaluate(*flags)
    golden = json.loads((folder / "golden.json").read_text())["sample"]
    entry, videos = result["checkpoints"]["p"], len({row["group"] for row in said})
    for kind, scores in entry["scores"].items():
        if kind in golden:
            found = [scores[name]["value"] for name in ("F1_all", "mF1", "micro_F1", "accuracy", "exact")]
            expected = [golden[kind][name] for name in ("F1_all", "mF1", "micro_F1", "accuracy", "exact_match")]
            assert found == pytest.approx(expected, abs=1e-12)
    assert (result["rows"], result["videos"], entry["answers"]["json"]["value"]) == (267, videos, 1)
    assert entry["answers"]["action_unknown"]["value"] == entry["answers"]["reason_unknown"]["value"] == 0
    assert result["true"]["action"] == {
        text: sum(row["actions"][c] for row in data) for c, text in enumerate(ACTION_TEXTS)
    } | {"(none)": 0}
    assert result["true"]["reason"]["(none)"] == 8
    # A run on blank pictures says the same of every row, as the constant does.
    shown, constant = (
        result["baselines"][name]["scores"]["action"] for name in ("blind pictures", "always stop/slow down")
    )
    assert shown == constant
    [above] = result["comparisons"]
    assert (above["first"], above["second"]) == ("blind pictures", "p")
    change = above["scores"]["action"]["F1_all"]
    assert change["value"] == pytest.approx(golden["action"]["F1_all"] - shown["F1_all"]["value"]) and change["low"] > 0
    assert above["answers"]["json"]["value"] == 1
    assert f"know the labels of {files[2]}" in " ".join(done.stdout.split())


def good(**changes):
    row = {
        "id": "a",
        "prediction": "Action: stop; Reason: traffic light",
        "actions": [0, 1, 0, 0],
        "reason": one_hot(7, 21),
    }
    return row | changes


def test_labels_travel_with_the_rows_and_may_come_apart(evaluate, tmp_path):
    """What generate writes of a row with labels; and predictions without labels next to the rows that have them."""
    row = {"id": "a", "group": "v", "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>"}]}
    row |= {"actions": [0, 1, 0, 0], "reason": one_hot(7, 21), "dataset": "toy", "_image": "a.jpg"}
    sample = parse_row(row, "x:1", "", need_answer=False)
    written = prediction_row(sample, "Action: stop; Reason: traffic light", "length")
    result, done = evaluate("--predictions", write(tmp_path / "p.jsonl", [written]))
    entry = result["checkpoints"]["p"]
    assert entry["scores"]["pair"]["F1_all"] == {"value": 1, "low": None, "high": None} and entry["cut"] == 1
    assert "1 of 1 answers were cut" in done.stdout
    bare = [{"id": name, "prediction": written["prediction"]} for name in "ab"]
    data = write(tmp_path / "data.jsonl", [good(), good(id="b", actions=[1, 0, 0, 0]), good(id="c")])
    file = write(tmp_path / "bare.jsonl", bare)
    _, done = evaluate("--predictions", file, "--data", data, expect=2)
    assert "1 of 3 rows" in done.stderr and "e.g. c; answer them" in done.stderr
    result, done = evaluate("--predictions", file, "--data", data, "--on_missing", "skip")
    assert result["checkpoints"]["bare"]["scores"]["action"]["exact"]["value"] == 0.5 and result["missing"] == ["c"]
    assert "2 rows of 3" in done.stdout and "1 rows of --data have no prediction" in done.stdout


FAULTS = {
    "no labels": ([good(actions=None)], "p.jsonl:1: id 'a': \"actions\" must be a list of 4 numbers 0 or 1, got null"),
    "five actions": ([good(actions=[0, 1, 0, 0, 0])], '"actions" must be a list of 4 numbers'),
    "a logit": ([good(reason=[0.5] * 21)], '"reason" must be a list of 21 numbers'),
    "true": ([good(actions=[True, False, False, False])], '"actions" must be a list of 4 numbers'),
    "two": ([good(actions=[0, 2, 0, 0])], '"actions" must be a list of 4 numbers'),
    "no id twice": ([good(), good()], "id 'a' came before"),
    "no prediction": ([good(prediction=None)], '"prediction" must be a text'),
    "empty": ([], "no rows"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_predictions_are_one_line(name, evaluate, tmp_path):
    rows, message = FAULTS[name]
    _, done = evaluate("--predictions", write(tmp_path / "p.jsonl", rows), expect=2)
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_files_that_do_not_fit_together(evaluate, tmp_path):
    p, other = write(tmp_path / "p.jsonl", [good()]), write(tmp_path / "other.jsonl", [good(actions=[1, 0, 0, 0])])
    _, done = evaluate("--predictions", p, other, expect=2)
    assert "other.jsonl:1: id 'a' has other labels than" in done.stderr
    strange = write(tmp_path / "strange.jsonl", [good(id="z")])
    for flags, message in {
        ("--data", strange): "id 'a' is not in --data",
        ("--blind_predictions", write(tmp_path / "blind.jsonl", [good(), good(id="b")])): None,
        ("--blind_predictions", strange): "no id in common",
        ("--train", write(tmp_path / "train.jsonl", [good(), good()])): "train.jsonl:2: id 'a' came before",
        (
            "--train",
            write(tmp_path / "bad.jsonl", [{"id": "a", "actions": [0, 1, 0, 0]}]),
        ): "bad.jsonl:1: id 'a': \"reason\"",
        ("--train", tmp_path / "none.jsonl"): "none.jsonl",
        ("--plot", tmp_path): "is a folder",
    }.items():
        _, done = evaluate("--predictions", p, *flags, expect=2 if message else 0)
        assert not message or message in done.stderr, done.stderr


def test_hostile_answers_are_counted_and_printed(evaluate, tmp_path):
    said = [
        '{"action": "\\ud83d", "justification": []}',
        '{"action": "[/bold]\\u001b[31m", "justification": ["traffic light", 5]}',
        "Action: \x1b[2J; Reason: [red]x[/red]\nline",
        '{"a":' * 20_000,
        '{"action": "stop", "justification": "traffic light"',
        "",
    ]
    rows = [good(id=str(i), prediction=text, group=f"v{i}") for i, text in enumerate(said)]
    result, done = evaluate("--predictions", write(tmp_path / "p.jsonl", rows), "--csv", tmp_path / "rows.csv")
    entry = result["checkpoints"]["p"]
    assert round(6 * entry["answers"]["json"]["value"]) == 1 and round(6 * entry["answers"]["none"]["value"]) == 4
    assert entry["said"]["reason"]["traffic light"] == 1 and entry["unknown"]["action"]["different"] == 2
    assert "\x1b" not in done.stdout and "[red]x[/red]" in done.stdout


@pytest.mark.slow
def test_the_seven_real_pictures_are_answered_and_scored(evaluate, run, kit, tiny_families, tmp_path):
    """Pictures of 1280 x 720 through SmolVLM-Instruct's class, asked by the picture alone."""
    pictures = kit / "noncommercial" / "bddoia" / "pictures_without_labels"
    places = [{"id": str(i), "image": f"{i}.jpg", "group": str(i)} for i in range(1, 8)]
    rows = [oia_row(place, one_hot(0, 4), one_hot(0, 21), "labels") for place in places]
    said = tmp_path / "said.jsonl"
    flags = ("--model", tiny_families("idefics3"), "--image_root", pictures, "--max_new_tokens", 8, "--out", said)
    done = run([sys.executable, "-m", "drive_vlm", "generate", *flags, "--data", write(tmp_path / "rows.jsonl", rows)])
    assert done.returncode == 0, done.stderr
    answered = [json.loads(line) for line in said.read_text().splitlines()]
    assert len(answered) == 7 and all(row["prediction"].strip() for row in answered)
    scores, _ = evaluate("--predictions", said)
    # A random model names no label.
    assert scores["rows"] == 7 and scores["checkpoints"]["said"]["scores"]["action"]["F1_all"]["value"] == 0
