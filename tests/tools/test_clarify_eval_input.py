"""tools/clarify_eval.py: files that do not fit are refused with the way out, what is missing is counted."""

import pytest
from clarify_rows import ROWS, base, predictions, read, tuned, write

from drive_vlm.builders.ambiguity.rows import meant_by_user


def broken(world, tmp_path, what):
    """Flags that must be refused, and words of the refusal."""
    good = predictions(tmp_path / "p.jsonl", ROWS, tuned)
    data = ("--data", world / "val.jsonl")
    if what == "a row without a prediction":
        return ("--predictions", predictions(tmp_path / "few.jsonl", ROWS[:-2], tuned), *data), [
            "2 of 36 rows",
            "11-left",
            "--on_missing skip",
        ]
    if what == "a prediction of another split":
        return ("--predictions", good, "--data", write(tmp_path / "half.jsonl", ROWS[:6])), [
            "p.jsonl:7",
            "'2-two' is not in --data",
        ]
    if what == "rows of another builder":
        rows = [{"id": "a", "prediction": "x", "reference": "y", "question": "z"}]
        return ("--predictions", write(tmp_path / "other.jsonl", rows)), [
            "other.jsonl:1",
            "'a'",
            "tools/build_ambiguity.py",
        ]
    if what == "an id twice in the rows":
        return ("--predictions", good, "--data", write(tmp_path / "twice.jsonl", [*ROWS, ROWS[0]])), [
            "twice.jsonl:37",
            "came before",
        ]
    if what == "one file for two checkpoints":
        other = predictions(tmp_path / "q.jsonl", ROWS, base)
        return ("--predictions", good, other, "--after", good), ["--after: 1 for 2 --predictions"]
    if what == "questions back without an answer":
        return ("--predictions", good, "--after", good), ["13 questions back have no answer", "--on_missing skip"]
    if what == "answers to another question back":
        rows = [read(good)[0] | {"id": "0-two-after", "back": "Which?", "target": 0}]
        return ("--predictions", good, "--after", write(tmp_path / "a.jsonl", rows)), [
            "a.jsonl:1",
            "another question back",
            "--write_dialogues",
        ]
    if what == "dialogues without the rows":
        return ("--predictions", good, "--write_dialogues", tmp_path / "d.jsonl"), ["need --data"]
    if what == "rows without options":
        rows = [{key: value for key, value in row.items() if key != "choices"} for row in ROWS]
        flags = ("--data", write(tmp_path / "bare.jsonl", rows), "--write_choices", tmp_path / "c.jsonl")
        return ("--predictions", good, *flags), ["'0-two'", "36 rows", "--on_missing skip"]
    if what == "a label that cannot be":
        (tmp_path / "h.csv").write_text("id,strategy,factual,asked\n0-two,5,pass,yes\n")
        return ("--predictions", good, "--human", tmp_path / "h.csv"), ["h.csv:2", "'0-two'", "strategy", "'5'"]
    if what == "a label of nobody":
        (tmp_path / "h.csv").write_text("id,strategy,factual,asked\nzebra,4,pass,yes\n")
        return ("--predictions", good, "--human", tmp_path / "h.csv"), ["h.csv:2", "'zebra' has no prediction"]
    if what == "a judge without a file":
        return ("--predictions", good, "--judge_model", "j"), ["--verdicts"]
    if what == "a column of nobody":
        return ("--predictions", good, "--by", "fog"), ["--by fog"]
    if what == "answers that are no choices":
        return ("--predictions", good, "--choices", good), ["p.jsonl:1", "--write_choices"]
    if what == "samples of other rows":
        rows = [row | {"id": f"x{i}"} for i, row in enumerate(ROWS)]
        return ("--predictions", good, "--samples", predictions(tmp_path / "s.jsonl", rows, tuned)), [
            "36 rows are not in all of --samples"
        ]
    if what == "a run on another reward":
        write(tmp_path / "metrics.jsonl", [{"step": 1, "reward": 0.5}])
        return ("--predictions", good, "--training", tmp_path), [
            "no metrics.jsonl with clarify/ metrics",
            "--rewards clarify",
        ]
    assert what == "a picture that is not there"
    return ("--predictions", good, "--gallery", tmp_path / "g.html", "--image_root", tmp_path), [
        "p.jsonl:1",
        "images/0.png",
        "--image_root",
    ]


WRONG = (
    "a row without a prediction", "a prediction of another split", "rows of another builder", "an id twice in the rows", "one file for two checkpoints",
    "questions back without an answer", "answers to another question back", "dialogues without the rows", "rows without options",
    "a label that cannot be", "a label of nobody", "a judge without a file", "a column of nobody", "answers that are no choices",
    "samples of other rows", "a run on another reward", "a picture that is not there",
)  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_bad_input_is_named_with_the_way_out(evaluate, world, tmp_path, what):
    flags, words = broken(world, tmp_path, what)
    _, done = evaluate(*flags, expect=2)
    assert all(word in done.stderr for word in words), done.stderr


def test_what_is_missing_is_counted(evaluate, world, tmp_path):
    file = predictions(tmp_path / "few.jsonl", ROWS[:-2], tuned)
    more = predictions(tmp_path / "more.jsonl", ROWS, base)
    asked = [row for row in read(file) if row["prediction"].endswith("?")]
    after = [row | {"id": f"{row['id']}-after", "back": row["prediction"], "prediction": "It is red."} for row in asked]
    for row in after:
        if row["ambiguous"]:
            row["target"] = meant_by_user(row["id"].removesuffix("-after"), 2, 0)
    second = write(tmp_path / "after.jsonl", after[3:])
    both = ("--predictions", file, more, "--data", world / "val.jsonl", "--on_missing", "skip")
    result, done = evaluate(*both, "--after", second, second)
    assert (result["rows"], result["missing"]) == (34, ["11-left", "11-bus"])
    entry = result["checkpoints"]["few"]
    assert len(entry["after"]["unanswered"]) == 3 and entry["scores"]["final_accuracy"]["n"] == 31
    assert result["checkpoints"]["more"]["ids_left_out"] == 2
    third = predictions(tmp_path / "third.jsonl", ROWS, tuned)
    result, _ = evaluate("--predictions", more, file, third, "--on_missing", "skip")
    pairs = [(entry["first"], entry["second"]) for entry in result["comparisons"]]
    assert pairs == [("more", "few"), ("more", "third"), ("few", "third")]
    for words in ("2 rows of --data have no prediction", "3 questions back have no answer", "more: 2 ids left out"):
        assert words in done.stdout, words
