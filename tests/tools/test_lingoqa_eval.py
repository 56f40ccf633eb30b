"""tools/build_lingoqa.py and tools/lingoqa_eval.py through their command lines: a small table in the published form, and a tiny random
DeBERTa of Lingo-Judge's class, compared with the published script's way of asking it written out again."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from drive_vlm.data.jsonl import JsonlFile
from drive_vlm.data.samples import parse_row
from drive_vlm.evaluation.text_overlap import language_scores

pytest.importorskip("nltk")
BUILD, EVAL = "tools/build_lingoqa.py", "tools/lingoqa_eval.py"
# (question id, segment, question, answer): the second question has two references that do not stand together.
LINES = [
    ("q0", "s0", "Is the light Red?", "Yes, it is red."),
    ("q1", "s0", "What is ahead?", "A car."),
    ("q0", "s0", "Is the light Red?", "yes"),
    ("q0", "s1", "Is the light Red?", "No."),
    ("q1", "s0", "What is ahead?", "A white car stops ahead of us"),
    ("q0", "s1", "Is the light Red?", "No, there is no light"),
]


@pytest.fixture(scope="module")
def judge_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random DebertaV2ForSequenceClassification with one output, its bias such that both verdicts occur below."""
    import drive_vlm  # noqa: F401, I001 - first: it lets torchvision's wheel live beside a CPU torch
    import torch
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification, DebertaV2Tokenizer

    folder = tmp_path_factory.mktemp("judge")
    pieces = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", "\u2581", "\u2581question", "\u2581no", "\u2581yes"]
    pieces += list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:?!")
    tokenizer = DebertaV2Tokenizer(vocab=[(piece, -float(place)) for place, piece in enumerate(pieces)])
    tokenizer.save_pretrained(folder)
    config = DebertaV2Config(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=160, relative_attention=True, position_buckets=16, norm_rel_ebd="layer_norm", share_att_key=True,
        pos_att_type=["p2c", "c2p"], position_biased_input=False, type_vocab_size=0, num_labels=1, initializer_range=0.6,
    )  # fmt: skip
    torch.manual_seed(3)
    model = DebertaV2ForSequenceClassification(config)
    torch.nn.init.constant_(model.classifier.bias, -4.5)
    model.save_pretrained(folder)
    return folder


def official_scores(folder: Path, items: list[tuple[str, list[str], str]]) -> list[float]:
    """The published way: one question at a time, its references in one padded batch, the highest logit."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    found = []
    for question, references, answer in items:
        texts = []
        for reference in references:
            texts.append("\n".join((tokenizer.cls_token, "Question: " + question, "Answer: " + reference.lower().strip(), "Student: " + answer.lower().strip())))  # fmt: skip
        inputs = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=128)
        with torch.inference_mode():
            found.append(max(model(**inputs).logits.squeeze(-1).tolist()))
    return found


def table(folder: Path, lines: list[tuple[Any, ...]] = LINES, **more: list[Any]) -> Path:
    import pyarrow
    from pyarrow import parquet

    folder.mkdir(parents=True, exist_ok=True)
    columns = dict(
        zip(("question_id", "segment_id", "question", "answer"), map(list, zip(*lines, strict=True)), strict=True)
    )
    parquet.write_table(pyarrow.table(columns | more), folder / "val.parquet")
    for segment in ("s0", "s1"):
        (folder / "images/val" / segment).mkdir(parents=True, exist_ok=True)
        # Frame 10 comes after frame 2.
        for frame in (0, 1, 2, 3, 10):
            Image.new("RGB", (8, 4)).save(folder / "images/val" / segment / f"{frame}.jpg")
    return folder / "val.parquet"


@pytest.fixture
def build(tmp_path: Path, tool_with: Any) -> Any:
    return tool_with(BUILD, "--table", tmp_path / "val.parquet", "--out", tmp_path / "rows")


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- the builder


def test_questions_have_all_their_references_and_frames_in_order(tmp_path: Path, build: Any) -> None:
    table(tmp_path)
    done = build()
    rows = rows_of(tmp_path / "rows/val.jsonl")
    assert [(row["id"], row["references"]) for row in rows] == [
        ("s0_q0", ["Yes, it is red.", "yes"]),
        ("s0_q1", ["A car.", "A white car stops ahead of us"]),
        ("s1_q0", ["No.", "No, there is no light"]),
    ]
    assert rows[0]["image"] == [f"images/val/s0/{frame}.jpg" for frame in (0, 1, 2, 3, 10)]
    assert "3 rows: 3 questions of 2 segments" in done.stdout and "the published evaluation set has 500" in done.stdout
    for where, row in JsonlFile(tmp_path / "rows/val.jsonl").places():
        sample = parse_row(row, where, str(tmp_path))
        assert len(sample.images) == 5 and all(Path(path).is_file() for path in sample.images)
    build("--row_of", "answer", "--shown", "video", "--name", "train")
    rows = rows_of(tmp_path / "rows/train.jsonl")
    assert len(rows) == len({row["id"] for row in rows}) == 6 and "references" not in rows[0]
    assert sorted(row["conversations"][1]["value"] for row in rows) == sorted(line[3] for line in LINES)
    assert rows[0]["video"] == "images/val/s0" and rows[0]["conversations"][0]["value"].startswith("<video>\n")


def test_frames_are_those_that_the_table_names(tmp_path: Path, build: Any) -> None:
    named = [["images/val/s1/3.jpg", "images/val/s1/0.jpg"]] * 3
    table(tmp_path, LINES[3:], images=named)
    build()
    assert rows_of(tmp_path / "rows/val.jsonl")[0]["image"] == named[0]


@pytest.mark.parametrize(
    ("lines", "says", "reason"),
    [
        ([*LINES, ("q0", "s0", "Is it green?", "No")], "question q0 of segment s0 is another one at", "duplicate_id"),
        ([*LINES, ("q2", "s0", "", "No")], "question is empty", "empty_text"),
        ([*LINES, ("q2", "s0", "Why?", None)], "answer is empty", "empty_text"),
        ([*LINES, ("q2", "s9", "Why?", "So")], "images/val/s9 does not exist", "image_missing"),
        ([*LINES, ("q2", "s8", "Why?", "So")], "images/val/s8 holds no frame", "video_empty"),
    ],
)
def test_what_cannot_be_used_stops_or_is_counted(
    tmp_path: Path, build: Any, lines: Any, says: str, reason: str
) -> None:
    table(tmp_path, lines)
    (tmp_path / "images/val/s8").mkdir()
    assert says in build(ok=False).stderr and not (tmp_path / "rows/val.jsonl").exists()
    assert f"left out: 1 {reason}" in build("--on_bad_row", "skip").stdout
    assert len(rows_of(tmp_path / "rows/val.jsonl")) == 3


def test_another_table_is_named(tmp_path: Path, build: Any) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"question": ["x"], "segment_id": ["s"]}), tmp_path / "val.parquet")
    assert "no column question_id, answer; is it a table of LingoQA?" in build(ok=False).stderr


# --- the evaluator


@pytest.fixture
def rows(tmp_path: Path, build: Any) -> list[dict[str, Any]]:
    table(tmp_path)
    build()
    return rows_of(tmp_path / "rows/val.jsonl")


@pytest.fixture
def score(tmp_path: Path, evaluator_with: Any) -> Any:
    files = ("--data", tmp_path / "rows/val.jsonl", "--predictions", tmp_path / "p.jsonl")
    return evaluator_with(EVAL, *files)


def predict(path: Path, rows: list[dict[str, Any]], said: list[str]) -> Path:
    lines = []
    for row, answer in zip(rows, said, strict=True):
        lines.append(
            {"id": row["id"], "question": row["asked"], "prediction": answer, "reference": row["references"][0]}
        )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


# The last one is cut at 128 tokens: each letter is a token.
SAID = ["  YES it is", "a red bus", "no light " * 30]


def test_scores_are_those_of_the_published_script(tmp_path: Path, rows: Any, score: Any, judge_folder: Path) -> None:
    predict(tmp_path / "p.jsonl", rows, SAID)
    blind = predict(tmp_path / "blind.jsonl", rows, ["no", "no", "no"])
    words = (
        "--lingo_judge",
        judge_folder,
        "--blind_predictions",
        blind,
        "--official_csv",
        tmp_path / "predictions.csv",
    )
    result, text = score(*words, "--batch_size", 2)
    asked = [(row["asked"], row["references"]) for row in rows]
    logits = official_scores(judge_folder, [(*item, answer) for item, answer in zip(asked, SAID, strict=True)])
    found = {name: entry["value"] for name, entry in result["scores"].items()}
    assert found["Lingo-Judge"] == pytest.approx(100 * sum(logit > 0 for logit in logits) / 3, abs=1e-6)
    expected = 100 * sum(1 / (1 + math.exp(-logit)) for logit in logits) / 3
    assert found["Lingo-Judge, mean probability"] == pytest.approx(expected, abs=1e-4)
    blind_logits = official_scores(judge_folder, [(*item, "no") for item in asked])
    assert result["baselines"]["blind, Lingo-Judge"]["value"] == pytest.approx(
        100 * sum(x > 0 for x in blind_logits) / 3
    )
    overlap = language_scores(SAID, [row["references"] for row in rows])
    assert found["BLEU-4"] == pytest.approx(100 * overlap["Bleu_4"], abs=1e-6)
    assert found["CIDEr"] == pytest.approx(100 * overlap["CIDEr"], abs=1e-6)
    assert result["judge"]["truncated"] == {"predictions": 2, "majority of these rows": 0, "blind": 0}
    assert "saw 2 answers, each with one reference, cut at 128 tokens" in text
    assert result["partial"] == ["the file has 3 of the 500 published questions"]
    with open(tmp_path / "predictions.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert lines[1] == {"question_id": "q1", "segment_id": "s0", "question": "What is ahead?", "answer": "a red bus"}


def test_the_logits_are_those_of_the_published_script(judge_folder: Path) -> None:
    from drive_vlm.judges.lingo import LingoJudge

    items = [
        ("Is it Red?", ["Yes, RED ", "no"], " Blue "), ("What?", ["a car ahead of us on the left lane"], "no"),
        ("Why? " * 40, ["x"], "cut away"), ("Is it Red?", ["no", "Yes, RED "], " Blue "),
    ]  # fmt: skip
    expected = official_scores(judge_folder, items)
    judge = LingoJudge(str(judge_folder), batch_size=3)
    found = judge.scores(*map(list, zip(*items, strict=True)))
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    # The best of several references, in any order; another answer has another score, and what is cut away has none.
    assert expected[0] == pytest.approx(expected[3], abs=1e-6) and min(expected) < 0 < max(expected)
    assert found[0] != pytest.approx(judge.scores([items[0][0]], [items[0][1]], ["no"])[0], abs=1e-3)
    assert judge.truncated == 1


def test_an_empty_answer_is_wrong_whatever_the_judge_says(
    tmp_path: Path, rows: Any, score: Any, judge_folder: Path
) -> None:
    from drive_vlm.judges.lingo import LingoJudge

    asked = [row["asked"] for row in rows], [row["references"] for row in rows]
    # Somewhere the random judge calls the empty answer right: the score must not.
    assert (LingoJudge(str(judge_folder)).scores(*asked, ["", "", ""]) > 0).any()
    predict(tmp_path / "p.jsonl", rows, ["", " ", ""])
    result, _ = score("--lingo_judge", judge_folder)
    assert (result["scores"]["Lingo-Judge"]["value"], result["unread"], result["unread_share"]) == (0, 3, 1)


def test_the_majority_does_not_know_its_own_question(tmp_path: Path, rows: Any, score: Any) -> None:
    predict(tmp_path / "p.jsonl", rows, ["yes", "A car.", "No."])
    result, _ = score()
    # Each question would be given its own reference (BLEU-1 of 100); "a car." is the first of the equally common ones.
    assert result["baselines"]["majority of these rows, BLEU-1"]["value"] < 50
    assert result["scores"]["BLEU-1"]["value"] > 99
    # Told the answers by question, it says "a car." of the second: a third of the words more is right.
    known, text = score("--train", tmp_path / "rows/val.jsonl")
    own, by_question = result["baselines"]["majority of these rows, BLEU-1"], known["baselines"]["majority, BLEU-1"]
    values = [own["value"], by_question["value"]]
    assert values[1] > values[0] + 10 and f"the majority knows {tmp_path}" in " ".join(text.split())


@pytest.mark.parametrize("fault", ["no judge", "no folder", "no head", "two classes", "fifteen", "another version", "twice", "no reference", "other rows"])  # fmt: skip
def test_bad_input_gets_one_line(tmp_path: Path, rows: Any, score: Any, judge_folder: Path, fault: str) -> None:
    path = predict(tmp_path / "p.jsonl", rows, SAID)
    lines = path.read_text().splitlines(keepends=True)
    if fault == "no judge":
        result, text = score()
        assert any("no Lingo-Judge, only text overlap" in reason for reason in result["partial"])
        assert "hf download wayveai/Lingo-Judge" in " ".join(text.split()) and "Lingo-Judge" not in result["scores"]
    elif fault == "no folder":
        said = score("--lingo_judge", tmp_path / "nowhere", ok=False)
        assert "no directory with Lingo-Judge" in said and "hf download wayveai/Lingo-Judge" in said
    elif fault in ("no head", "two classes"):
        import torch
        from transformers import AutoTokenizer, DebertaV2Config, DebertaV2ForSequenceClassification, DebertaV2Model

        config = DebertaV2Config.from_pretrained(judge_folder, num_labels=2)
        model = DebertaV2Model(config) if fault == "no head" else DebertaV2ForSequenceClassification(config)
        model.to(torch.float32).save_pretrained(tmp_path / "other")
        AutoTokenizer.from_pretrained(judge_folder).save_pretrained(tmp_path / "other")
        said = score("--lingo_judge", tmp_path / "other", ok=False)
        assert ("lack 4 of the classifier's parts" if fault == "no head" else "a classifier of 2 classes") in said
    elif fault == "fifteen":
        path.write_text(lines[0])
        assert "2 of 3 rows of" in score(ok=False)
        assert score("--on_missing", "skip")[0]["partial"][0] == "1 of 3 rows have a prediction"
    elif fault == "another version":
        path.write_text(lines[0].replace("the light Red", "it") + "".join(lines[1:]))
        assert "it is a file of another version" in score(ok=False)
    elif fault == "twice":
        path.write_text("".join([*lines, lines[0]]))
        assert "came before at" in score(ok=False)
    elif fault == "no reference":
        made = [row | {"references": [], "conversations": row["conversations"][:1]} for row in rows]
        (tmp_path / "rows/val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
        assert "id 's0_q0' has no reference" in score(ok=False)
    else:
        made = [row | {"benchmark": "DriveBench"} for row in rows]
        (tmp_path / "rows/val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
        assert "is no row of LingoQA, its benchmark is 'DriveBench'" in score(ok=False)
