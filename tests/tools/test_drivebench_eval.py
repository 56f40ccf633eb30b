"""tools/build_drivebench.py and tools/drivebench_eval.py through their command lines, on invented questions in the published form."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from drive_vlm.data.jsonl import JsonlFile
from drive_vlm.data.samples import parse_row

pytest.importorskip("nltk")
BUILD, EVAL = "tools/build_drivebench.py", "tools/drivebench_eval.py"
STATUS = "What is the moving status of object <c1,CAM_FRONT,784.2,486.7>? Please select the correct answer from the following options: A. Going ahead. B. Stopped. C. Turn left. D. Back up."
MOVES = "Would <c1,CAM_FRONT,784.2,486.7> be in the moving direction of the ego vehicle?"
COMMENT, ACTIONS = (
    "What's your comment on this scene?",
    "What actions could the ego vehicle take based on <c1,CAM_FRONT,784.2,486.7>?",
)
# (task, question, answer, tag): two choices and two free answers a frame.
ASKED = (("perception", STATUS, "B", [0]), ("prediction", MOVES, "Yes.", [0]), ("planning", COMMENT, "The road is clear.", [1]), ("planning", ACTIONS, "Brake and wait.", None))  # fmt: skip


def questions(scenes: int = 3) -> list[dict[str, Any]]:
    found = []
    for scene in range(scenes):
        paths = {camera: f"data/nuscenes/samples/{camera}/{scene}.jpg" for camera in ("CAM_FRONT", "CAM_BACK")}
        for task, question, answer, tag in ASKED:
            item = {
                "scene_token": f"s{scene}",
                "frame_token": "f",
                "question_type": task,
                "question": question,
                "answer": answer,
            }
            found.append(item | {"image_path": paths} | ({"tag": tag} if tag else {}))
    return found


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The benchmark's data folder with pictures of two settings and the questions."""
    for folder in ("nuscenes/samples", "corruption/Fog"):
        for camera in ("CAM_FRONT", "CAM_BACK"):
            (tmp_path / folder / camera).mkdir(parents=True)
            for scene in range(3):
                Image.new("RGB", (16, 9)).save(tmp_path / folder / camera / f"{scene}.jpg")
    (tmp_path / "test.json").write_text(json.dumps(questions()))
    return tmp_path


@pytest.fixture
def build(data: Path, tool_with: Any) -> Any:
    return tool_with(BUILD, "--annotations", data / "test.json", "--image_root", data, "--out", data / "out")


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def predict(path: Path, rows: list[dict[str, Any]], answers: dict[str, str] | None = None, **same: str) -> Path:
    """Predictions of `rows` as `generate` writes them: the reference, or what `answers` {question_id: text} and `same` {kind: text} say."""
    lines = []
    for row in rows:
        said = (answers or {}).get(row["question_id"], same.get(row["kind"], row["conversations"][1]["value"]))
        question, reference = (turn["value"] for turn in row["conversations"])
        kept = {name: value for name, value in row.items() if name not in ("conversations",)}
        lines.append(kept | {"prediction": said, "reference": reference, "question": question})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


# --- the builder


def test_settings_are_those_that_are_there(data: Path, build: Any) -> None:
    done = build()
    names = sorted(path.name for path in (data / "out").glob("*.jsonl"))
    assert names == ["clean.jsonl", "fog.jsonl", "noimage.jsonl"]
    assert "holds 12 questions; the published test file holds 1,461" in done.stdout
    clean, fog, none = (rows_of(data / "out" / f"{name}.jsonl") for name in ("clean", "fog", "noimage"))
    assert clean[0]["image"] == ["nuscenes/samples/CAM_FRONT/0.jpg", "nuscenes/samples/CAM_BACK/0.jpg"]
    assert fog[0]["image"] == ["corruption/Fog/CAM_FRONT/0.jpg", "corruption/Fog/CAM_BACK/0.jpg"]
    assert (
        [row["question_id"] for row in clean]
        == [row["question_id"] for row in fog]
        == [row["question_id"] for row in none]
    )
    assert len({row["id"] for rows in (clean, fog, none) for row in rows}) == 36
    assert [(row["question_type"], row["kind"], row["scope"]) for row in clean[:4]] == [
        ("perception", "mcq", "object"), ("prediction", "mcq", "object"), ("planning", "vqa", "scene"), ("planning", "vqa", "object"),
    ]  # fmt: skip
    assert clean[0]["options"]["B"] == "Stopped" and clean[0]["group"] == "s0"
    # Every row is one that training and generate read; noimage's root is the folder of its file.
    for name, root in (("clean", data), ("noimage", data / "out")):
        for where, row in JsonlFile(data / "out" / f"{name}.jsonl").places():
            sample = parse_row(row, where, str(root))
            assert len(sample.images) == 2 and all(Path(path).is_file() for path in sample.images)
    assert np.asarray(Image.open(data / "out" / none[0]["image"][0])).shape == (224, 224, 3)


def test_track_one_and_questions_about_corruption(data: Path, build: Any) -> None:
    converted = [
        {"scene_token": "s", "frame_token": "f", "question": q, "answer": "", "category": "corruption", "img_paths": {"CAM_FRONT": "phase2/CAM_FRONT/0.jpg"}}
        for q in ("What's the current type of corruption? Please select from the options: A. Fog. B. Snow. E. Rain", "Which camera is corrupted?")
    ]  # fmt: skip
    (data / "phase2/CAM_FRONT").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(data / "phase2/CAM_FRONT/0.jpg")
    (data / "test.json").write_text(json.dumps(converted))
    done = build("--settings", "corrupted", "--benchmark", "RoboSense")
    rows = rows_of(data / "out/corrupted.jsonl")
    assert [(row["kind"], row["benchmark"], len(row["conversations"])) for row in rows] == [
        ("mcq", "RoboSense", 1),
        ("vqa", "RoboSense", 1),
    ]
    assert "2 rows have no answer" in done.stdout and rows[0]["image"] == ["phase2/CAM_FRONT/0.jpg"]
    own = questions(1)[:1]
    own[0] |= {"question_type": "robust_qas", "image_path": {"CAM_FRONT": "./Fog/CAM_FRONT/0.jpg"}}
    (data / "test.json").write_text(json.dumps(own))
    build("--settings", "fog")
    assert rows_of(data / "out/fog.jsonl")[0]["image"] == ["corruption/Fog/CAM_FRONT/0.jpg"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"s": {"key_frames": {}}}, "names no pictures; convert it"), ([], "expected a JSON list"), ([{"scene_token": "s"}], "not a question of DriveBench"),
        ([questions()[0] | {"question_type": "poetry"}], "question_type 'poetry'"), ([questions()[0] | {"image_path": {"CAM_UP": "x"}}], "cameras ['CAM_UP']"),
        ([questions()[0] | {"question": " "}], "the question is empty"), ([questions()[0] | {"image_path": {"CAM_FRONT": "nuscenes/samples/CAM_FRONT/9.jpg"}}], "9.jpg does not exist"),
    ],
)  # fmt: skip
def test_what_is_not_the_published_form_is_refused(data: Path, build: Any, content: Any, says: str) -> None:
    (data / "test.json").write_text(json.dumps(content))
    done = build("--settings", "clean", ok=False)
    assert says in done.stderr and "Traceback" not in done.stderr
    if "exist" in says:
        assert "left out: 1 image_missing" in build("--settings", "clean", "--on_missing", "skip").stdout


# --- the evaluator


@pytest.fixture
def rows(data: Path, build: Any) -> dict[str, list[dict[str, Any]]]:
    build()
    return {name: rows_of(data / "out" / f"{name}.jsonl") for name in ("clean", "fog", "noimage")}


@pytest.fixture
def score(data: Path, evaluator_with: Any) -> Any:
    evaluate = evaluator_with(EVAL)

    def start(
        *predictions: Path, settings: tuple[str, ...] = ("clean",), words: tuple[object, ...] = (), ok: bool = True
    ) -> Any:
        files = [data / "out" / f"{name}.jsonl" for name in settings]
        return evaluate("--data", *files, "--predictions", *predictions, *words, ok=ok)

    return start


def test_strict_and_lenient_stand_side_by_side(data: Path, rows: Any, score: Any) -> None:
    # Of six choices: exact, meant, unread; exact, meant, wrong.
    said = {"s0_f_perception_0": "B", "s1_f_perception_0": "The answer is B. Stopped.", "s2_f_perception_0": "A or B"}
    said |= {"s0_f_prediction_0": "Yes.", "s1_f_prediction_0": "yes, it would", "s2_f_prediction_0": "No."}
    result, text = score(predict(data / "p.jsonl", rows["clean"], said))
    found = {name: (entry["value"], entry["n"], entry["unread"]) for name, entry in result["scores"].items()}
    assert found["clean: all mcq, strict"] == (pytest.approx(100 * 2 / 6, abs=1e-6), 6, 0)
    assert found["clean: all mcq, lenient"] == (pytest.approx(100 * 4 / 6, abs=1e-6), 6, 1)
    assert found["clean: perception mcq, lenient"] == (pytest.approx(100 * 2 / 3, abs=1e-6), 3, 1)
    assert (result["unread"], result["strict_and_lenient_differ"]) == (1, 2)
    # Free answers that are the reference: ROUGE-L 1; METEOR 1 - 0.5 / words ** 3.
    assert found["clean: planning vqa scene, ROUGE-L"][0] == pytest.approx(100, abs=1e-6)
    assert found["clean: planning vqa scene, METEOR (exact and stems)"][0] == pytest.approx(
        100 * (1 - 0.5 / 4**3), abs=1e-6
    )
    assert result["partial"] == [
        "clean: the file has 12 of the 1,461 published questions", "no judge: the VQA rows have no score of the benchmark, only text overlap",
    ]  # fmt: skip
    assert (
        "12 of 12 rows scored" in text
        and "strict and lenient reading differ in 2 rows" in text
        and "DriveBench@0911602" in re.sub(r"\s", "", text)
    )


def test_baselines_know_words_not_letters(data: Path, rows: Any, score: Any) -> None:
    predict(data / "p.jsonl", rows["clean"])
    blind = predict(data / "blind.jsonl", rows["noimage"], mcq="B")
    result, _ = score(data / "p.jsonl", words=("--blind_predictions", blind))
    assert result["baselines"]["majority of these rows"]["value"] == 100
    assert result["baselines"]["chance"]["value"] == pytest.approx(100 * (3 / 4 + 3 / 2) / 6, abs=1e-6)
    assert (result["baselines"]["blind, lenient"]["value"], result["baselines"]["blind, lenient"]["unread"]) == (50, 3)
    # Training knows "Turn left" as C elsewhere: here it is C too, and never right.
    other = [json.loads(json.dumps(row)) for row in rows["clean"]]
    for row in other:
        if row["question_type"] == "perception":
            row["conversations"][1]["value"] = "C"
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in other))
    assert score(data / "p.jsonl", words=("--train", data / "train.jsonl"))[0]["baselines"]["majority"]["value"] == 50


def test_drop_from_clean_is_by_question(data: Path, rows: Any, score: Any) -> None:
    clean, fog = predict(data / "c.jsonl", rows["clean"]), predict(data / "f.jsonl", rows["fog"], mcq="B")
    result, _ = score(clean, fog, settings=("clean", "fog"))
    assert result["changes"]["fog - clean, mcq strict"]["value"] == pytest.approx(-50, abs=1e-6)
    assert result["changes"]["fog - clean, mcq strict"]["n"] == 6
    assert result["scores"]["fog: all mcq, strict"]["value"] == 50


def judge_says(body: dict[str, Any]) -> str:
    return "Fine.\n**Total Score: 80**" if "road is clear" in str(body) else "Poor.\nTotal Score: 40"


def test_judge_and_the_weights_of_track_one(data: Path, rows: Any, score: Any, chat_server: Any) -> None:
    chat_server.answer = judge_says
    files = []
    for name in ("clean", "fog"):
        path = data / "out" / f"{name}.jsonl"
        path.write_text(path.read_text().replace('"benchmark": "DriveBench"', '"benchmark": "RoboSense"'))
        wrong = {"mcq": "B"} if name == "fog" else {}
        files.append(predict(data / f"{name}.jsonl", rows[name], **wrong))
    words = ("--judge_model", "j", "--judge_url", chat_server.url, "--cache", data / "cache")
    result, text = score(*files, settings=("clean", "fog"), words=words)
    assert result["scores"]["clean: planning vqa scene, judge"]["value"] == pytest.approx(80, abs=1e-6)
    assert result["scores"]["clean: planning vqa object, judge"]["value"] == pytest.approx(40, abs=1e-6)
    # Clean: (100 + 100 + 80 + 40) / 4 = 80; fog: (100 + 0 + 80 + 40) / 4 = 55.
    assert result["final"] == pytest.approx(0.2 * 80 + 0.8 * 55, abs=1e-6)
    assert result["changes"]["fog - clean, judge"]["value"] == pytest.approx(0, abs=1e-6)
    assert "0.2 clean + 0.8 corrupted = 60.00" in text and "this project's prompts" in text


def test_replies_without_a_total_are_left_out_and_counted(data: Path, rows: Any, score: Any, chat_server: Any) -> None:
    chat_server.answer = lambda body: (
        "Total Score: 50" if "road is clear" in str(body) else "I would say it is good: 90"
    )
    words = ("--judge_model", "j", "--judge_url", chat_server.url, "--cache", data / "cache", "--judge_attempts", 1)
    result, _ = score(predict(data / "p.jsonl", rows["clean"]), words=words)
    entry = result["scores"]["clean: all vqa, judge"]
    assert (entry["value"], entry["n"], entry["of"], entry["unread"]) == (50, 3, 6, 3)


def test_hidden_references_cannot_be_scored(data: Path, rows: Any, score: Any) -> None:
    path = predict(data / "p.jsonl", rows["clean"])
    for row in rows["clean"]:
        del row["conversations"][1]
    (data / "out/clean.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows["clean"]))
    assert "no row has a reference; the challenge hides them" in score(path, ok=False)


@pytest.mark.parametrize("fault", ["another version", "other rows", "twice", "fifteen", "no reference", "constant"])
def test_bad_input_gets_one_line(data: Path, rows: Any, score: Any, fault: str) -> None:
    made = rows["clean"]
    path = predict(data / "p.jsonl", made)
    lines = path.read_text().splitlines(keepends=True)
    if fault == "another version":
        path.write_text(lines[0].replace("moving status", "colour") + "".join(lines[1:]))
        assert re.search(r"p\.jsonl:1: id .* file of another version", score(path, ok=False))
    elif fault == "other rows":
        path.write_text("".join(lines).replace('"id": "clean_s0', '"id": "clean_s7'))
        assert "and 3 more of 12 predictions are not in" in score(path, ok=False)
    elif fault == "twice":
        path.write_text("".join([*lines, lines[0]]))
        assert "came before at" in score(path, ok=False)
    elif fault == "fifteen":
        path.write_text("".join(lines[:2]))
        assert "10 of 12 rows of" in score(path, ok=False)
        result, text = score(path, words=("--on_missing", "skip"))
        assert result["partial"][0] == "2 of 12 rows have a prediction" and "partial score: 2 of 12" in text
    elif fault == "no reference":
        for row in made:
            row["conversations"][1]["value"] = (
                "see the picture" if row["question_type"] == "perception" else row["conversations"][1]["value"]
            )
        (data / "out/clean.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
        result, _ = score(path)
        assert "3 of 6 multiple-choice rows have no reference that names a choice" in result["partial"]
        assert result["scores"]["clean: all mcq, strict"]["n"] == 3
    else:
        (data / "out/clean.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in made if row["question_type"] == "planning")
        )
        path.write_text("".join(line for line in lines if "planning" in line))
        assert "\"question_type\" is 'planning' in all 6 rows, so scores by it say nothing" in score(path)[0]["partial"]
