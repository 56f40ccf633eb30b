"""tools/build_drivelmm_o1.py and tools/drivelmm_o1_eval.py through their command lines, on invented questions in the published form."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from drive_vlm.data.jsonl import JsonlFile
from drive_vlm.data.samples import parse_row
from drive_vlm.evaluation.drivelmm_o1 import ASPECTS, OVERALL, read_rubric

BUILD, EVAL = "tools/build_drivelmm_o1.py", "tools/drivelmm_o1_eval.py"
CAMERAS = ("CAM_FRONT", "CAM_FRONT_LEFT", "CAM_FRONT_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
GREY = {camera: 40 * place for place, camera in enumerate(CAMERAS)}
MOVES = "What is the status of <o1,CAM_FRONT,780.0,480.0>? Choose from the following answers only: A) Stopped B) Going ahead C) Turning left"


def items(scenes: int = 2) -> list[dict[str, Any]]:
    """Of each scene a free question (1), two choices (2, 5) and a choice without an option in its reference (8)."""
    found = []
    for scene in range(scenes):
        paths = [f"samples/{camera}/{scene}.jpg" for camera in CAMERAS]
        for number, question, final in (
            (1, "Name the most important objects.", "A bus."), (2, MOVES, "B) Going ahead"), (5, MOVES, "C) Turning left"),
            (8, "Is it safe to go?", "Yes, it is."),
        ):  # fmt: skip
            item = {"idx": f"s{scene}_f{scene}_{number}", "image": paths, "question": question}
            found.append(item | {"steps": f"1. Look at {number}.", "final_answer": final})
    return found


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for camera in CAMERAS:
        (tmp_path / "samples" / camera).mkdir(parents=True)
        for scene in range(2):
            Image.new("L", (16, 9), GREY[camera]).save(tmp_path / f"samples/{camera}/{scene}.jpg")
    (tmp_path / "test.json").write_text(json.dumps(items()))
    return tmp_path


@pytest.fixture
def build(data: Path, tool_with: Any) -> Any:
    return tool_with(BUILD, "--test", data / "test.json", "--image_root", data, "--out", data / "rows")


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- the builder


def test_rows_reason_over_a_stitched_picture(data: Path, build: Any) -> None:
    done = build()
    rows = rows_of(data / "rows/test.jsonl")
    assert "test: 8 rows, 6 of them multiple choice" in done.stdout
    assert (rows[1]["id"], rows[1]["group"], rows[1]["question_number"]) == ("s0_f0_2", "s0", 2)
    human, gpt = (turn["value"] for turn in rows[1]["conversations"])
    assert human == f"<image>\n{MOVES}"
    assert gpt == "**Step-by-Step Reasoning**: 1. Look at 2. **Final Answer**: B) Going ahead"
    # Front left, front, front right; back right, back, back left: not DriveLM's order.
    pixels = np.asarray(Image.open(data / "rows" / rows[1]["image"]).convert("L")).astype(int)
    assert pixels.shape == (896, 2688)
    order = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT")
    for place, camera in enumerate(order):
        assert abs(pixels[224 + 448 * (place // 3), 448 + 896 * (place % 3)] - GREY[camera]) <= 3, camera
    meta = json.loads((data / "rows/meta.json").read_text())
    assert meta["test"] == {"root": str(data / "rows"), "annotation": "test.jsonl", "repeat_time": 1, "length": 8}
    for where, row in JsonlFile(data / "rows/test.jsonl").places():
        assert Path(parse_row(row, where, str(data / "rows")).images[0]).is_file()


def test_training_answers_and_six_pictures(data: Path, build: Any) -> None:
    whole = "**Step-by-Step Reasoning**:\n1. A bus.\n\n**Final Answer**: B) Going ahead"
    train = [
        {key: value for key, value in item.items() if key not in ("steps", "final_answer")} for item in items()[:2]
    ]
    for item in train:
        item |= {"answer": whole, "idx": item["idx"].replace("s0", "s7")}
    (data / "train.json").write_text(json.dumps({item["idx"]: item for item in train}))
    (data / "preamble.txt").write_text("Think first.")
    words = ("--train", data / "train.json", "--views", "six", "--target", "final", "--preamble", data / "preamble.txt")
    # The same pictures stand in both files here, under other scenes.
    assert "leaks between the splits" in build(*words, ok=False).stderr
    row = rows_of(data / "rows/train.jsonl")[1]
    assert row["image"][:2] == ["samples/CAM_FRONT_LEFT/0.jpg", "samples/CAM_FRONT/0.jpg"] and len(row["image"]) == 6
    assert row["conversations"] == [
        {"from": "human", "value": f"Think first.\n{'<image>' + chr(10)}" + "<image>\n" * 5 + MOVES},
        {"from": "gpt", "value": "B) Going ahead"},
    ]
    build("--train", data / "train.json", "--views", "six", ok=False)
    assert rows_of(data / "rows/train.jsonl")[1]["conversations"][1]["value"] == whole


def test_a_view_that_cannot_be_decoded_leaves_no_rows(data: Path, build: Any) -> None:
    (data / "samples/CAM_BACK/1.jpg").write_text("no picture")
    assert "samples/CAM_BACK/1.jpg: cannot be decoded" in build(ok=False).stderr
    assert not (data / "rows/test.jsonl").exists()


@pytest.mark.parametrize(
    ("change", "says", "reason"),
    [
        ({"idx": "s0_f0"}, "is no SCENE_FRAME_NUMBER", "bad_name"), ({"question": ""}, "no question, or no final answer", "empty_text"),
        ({"final_answer": None, "steps": None}, "no question, or no final answer", "empty_text"),
        ({"image": ["samples/CAM_FRONT/0.jpg"]}, "0 pictures of CAM_FRONT_LEFT", "camera_missing"), ({"idx": "s0_f0_2"}, "comes twice", "duplicate_id"),
        ({"image": [f"samples/{camera}/9.jpg" for camera in CAMERAS]}, "9.jpg does not exist", "image_missing"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_stops_or_is_counted(data: Path, build: Any, change: Any, says: str, reason: str) -> None:
    made = items()
    made[0] |= change
    (data / "test.json").write_text(json.dumps(made))
    assert says in build("--views", "six", ok=False).stderr
    assert f"left out: 1 {reason}" in build("--views", "six", "--on_bad_row", "skip").stdout


def test_another_file_is_named(data: Path, build: Any, run_here: Any) -> None:
    (data / "test.json").write_text('[{"question": "x"}]')
    assert "expected a list of questions with idx" in build(ok=False).stderr
    assert "give --train" in run_here(BUILD, "--image_root", data, "--out", data / "rows").stderr


# --- the evaluator


@pytest.fixture
def rows(data: Path, build: Any) -> list[dict[str, Any]]:
    build("--views", "six")
    return rows_of(data / "rows/test.jsonl")


@pytest.fixture
def score(data: Path, evaluator_with: Any) -> Any:
    files = ("--data", data / "rows/test.jsonl", "--predictions", data / "p.jsonl")
    return evaluator_with(EVAL, *files)


def predict(path: Path, rows: list[dict[str, Any]], said: dict[str, str]) -> Path:
    lines = [
        {"id": row["id"], "question": row["asked"], "prediction": said.get(row["id"], "It is a bus."), "reference": row["final_answer"]}
        for row in rows
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


SAID = {
    # Right by both; by meaning alone (no bracket behind the letter); a letter in the reasoning is not the final one.
    "s0_f0_2": "A) no. **Final Answer**: B) Going ahead", "s0_f0_5": "Steps. The final answer is: C. Turning left", "s0_f0_8": "**Final Answer**: Yes",
    "s1_f1_2": "So it is B) Going ahead", "s1_f1_5": "Final Answer: C) or B)", "s1_f1_8": "Final Answer: A) Yes",
}  # fmt: skip


def official(said: str, final: str) -> bool:
    """The published script's comparison, written out again."""
    marks = ["The final answer is:", "**Final Answer:**", "Final Answer", "Answer", "Why take this action?:", "**Final Answer**", "**Final Decision**:", "Final Step:", "<CONCLUSION>"]  # fmt: skip
    found = ""
    for mark in marks:
        if mark in said:
            found = said.split(mark)[-1]
            break
    letters = []
    for text in (final, found):
        options = re.findall(r"([A-F])\)\s*(.+)", text)
        letters.append(options[0][0] if options else "F" if "none of the " in text.lower() else "none")
    return letters[0] == letters[1]


def test_choices_are_those_of_the_published_script(data: Path, rows: Any, score: Any) -> None:
    predict(data / "p.jsonl", rows, SAID)
    result, _ = score()
    found = {
        name: (entry["value"], entry["n"], entry["of"], entry["unread"]) for name, entry in result["scores"].items()
    }
    by_id = {row["id"]: row for row in rows}
    expected = [official(said, by_id[name]["final_answer"]) for name, said in SAID.items()]
    # s0: 2 right, 5 without a bracket wrong, 8 without any letter on both sides right; s1: no mark wrong, 5 first letter right, 8 wrong.
    assert expected == [True, False, True, False, True, False]
    assert found["final choice, strict"] == (pytest.approx(50, abs=1e-6), 6, 6, 0)
    # Lenient leaves out question 8, whose reference names no option; two letters are unread.
    assert found["final choice, lenient"] == (pytest.approx(75, abs=1e-6), 4, 6, 1)
    assert found["question 2, strict"][0] == 50 and found["question 2, lenient"][0] == 100
    assert (result["unread"], result["strict_and_lenient_differ"]) == (1, 3)
    assert any("2 of 6 multiple-choice rows have no reference" in reason for reason in result["partial"])
    assert "no judge: the reasoning has no score; give --judge_model" in result["partial"]


def test_marks_and_none_of_the_options(data: Path, rows: Any, score: Any) -> None:
    for row in rows:
        row["final_answer"] = "F) None of the options" if row["question_number"] == 2 else row["final_answer"]
    (data / "rows/test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = {"s0_f0_2": "<CONCLUSION> None of the above", "s1_f1_2": "Answer: none of the options fits"}
    predict(data / "p.jsonl", rows, said)
    assert score()[0]["scores"]["question 2, strict"]["value"] == 100


def test_baselines(data: Path, rows: Any, score: Any) -> None:
    predict(data / "p.jsonl", rows, SAID)
    blind = predict(data / "blind.jsonl", rows, dict.fromkeys(SAID, "Final Answer: B) Going ahead"))
    result, _ = score("--blind_predictions", blind, "--train", data / "rows/test.jsonl")
    # By question number, B of 2 and C of 5 are always right.
    assert result["baselines"]["majority"]["value"] == 100
    assert result["baselines"]["chance"]["value"] == pytest.approx(100 / 3, abs=1e-6)
    assert (result["baselines"]["blind, lenient"]["value"], result["baselines"]["blind, lenient"]["n"]) == (50, 4)


def rubric(value: float, overall: float, **change: Any) -> str:
    return json.dumps(dict.fromkeys(ASPECTS, value) | {OVERALL: overall} | change)


def test_the_rubric_by_hand(data: Path, rows: Any, score: Any, chat_server: Any) -> None:
    def says(body: dict[str, Any]) -> str:
        text = chat_server.text_of(body["messages"][-1])
        assert "**Step-by-Step Reasoning**: 1. Look at" in text
        if "most important" in text:
            return "I cannot say."
        return rubric(6, 7.5) if "Look at 2" in text else rubric(4, 5, Hallucination=10)

    chat_server.answer = says
    predict(data / "p.jsonl", rows, SAID)
    words = ("--judge_model", "j", "--judge_url", chat_server.url, "--cache", data / "cache", "--judge_attempts", 1)
    result, text = score(*words)
    overall = result["scores"]["reasoning, overall"]
    # Two of 7.5 and four of 5, two unread: left out of the mean, counted, and their choices are scored all the same.
    assert (overall["value"], overall["n"], overall["of"], overall["unread"]) == (
        pytest.approx(100 * 35 / 60, abs=1e-6),
        6,
        8,
        2,
    )
    mean = (2 * 6 + 4 * (4 * 11 + 10) / 12) / 6
    assert result["scores"]["reasoning, mean of the aspects"]["value"] == pytest.approx(10 * mean, abs=1e-6)
    assert result["scores"]["reasoning, Hallucination"]["value"] == pytest.approx(10 * (12 + 40) / 6, abs=1e-6)
    assert result["scores"]["final choice, strict"]["n"] == 6 and result["judge"]["own_prompt"]
    assert "rated with this project's prompt" in text


def test_rubrics_that_are_not_whole_are_unread() -> None:
    assert read_rubric(f"Here: ```json\n{rubric(5, 5)}\n```") == dict.fromkeys((*ASPECTS, OVERALL), 5.0)
    short = json.loads(rubric(5, 5))
    short["Commonsense"] = short.pop("Commonsense Reasoning")
    assert read_rubric(json.dumps(short)) is not None
    for reply in (
        "",
        "5",
        rubric(5, 11),
        rubric(0, 5),
        rubric(5, 5, Relevance="high"),
        rubric(5, 5, Relevance=True),
        rubric(5, 5) * 2,
    ):
        assert read_rubric(reply) is None
    del short["Relevance"]
    assert read_rubric(json.dumps(short)) is None


@pytest.mark.parametrize(
    "fault", ["another version", "other rows", "twice", "fifteen", "one number", "no choice", "another benchmark"]
)
def test_bad_input_gets_one_line(data: Path, rows: Any, score: Any, fault: str) -> None:
    path = predict(data / "p.jsonl", rows, SAID)
    lines, file = path.read_text().splitlines(keepends=True), data / "rows/test.jsonl"
    if fault == "another version":
        path.write_text(lines[0].replace("Name the most", "Count the") + "".join(lines[1:]))
        assert "it is a file of another version" in score(ok=False)
    elif fault == "other rows":
        path.write_text("".join(lines).replace('"id": "s0', '"id": "s7'))
        assert "and 3 more of 8 predictions are not in" in score(ok=False)
    elif fault == "twice":
        path.write_text("".join([*lines, lines[0]]))
        assert "came before at" in score(ok=False)
    elif fault == "fifteen":
        path.write_text(lines[0])
        assert "7 of 8 rows of" in score(ok=False)
        assert "1 of 8 rows have a prediction" in score("--on_missing", "skip")[0]["partial"]
    elif fault in ("one number", "no choice"):
        number = 2 if fault == "one number" else 1
        file.write_text("".join(json.dumps(row | {"question_number": number}) + "\n" for row in rows))
        reasons = score()[0]["partial"]
        assert f"\"question_number\" is '{number}' in all 8 rows, so scores by it say nothing" in reasons
        assert ("no multiple-choice row, so no accuracy of the final choice" in reasons) is (fault == "no choice")
    else:
        file.write_text("".join(json.dumps(row | {"final_answer": None}) + "\n" for row in rows))
        assert "is no row of DriveLMM-o1, lacks final_answer; build the rows with tools/build_drivelmm_o1.py" in score(
            ok=False
        )
