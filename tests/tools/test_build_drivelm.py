"""tools/build_drivelm.py through its command line, on an invented annotation file and on the kit's real one."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from drive_vlm.builders.splits import find_leaks
from drive_vlm.builders.stitching import LAYOUT, QUANTISATION_ERROR, denormalise_tags

ROOT = Path(__file__).resolve().parents[2]
KIT = ROOT / ".." / "shared" / "kit" / "noncommercial" / "drivelm"
TAG = "<c1,CAM_BACK,1088.3,497.5>"
# The order of the six pictures of a row.
ORDER = ["CAM_FRONT", "CAM_FRONT_LEFT", "CAM_FRONT_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT"]


@pytest.fixture
def run(run_here):
    return lambda *words: run_here("tools/build_drivelm.py", *words)


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def make(folder, scenes=1, frames=2):
    """An annotation file with pictures whose colour tells the camera; returns its content."""
    content = {}
    for camera_index, camera in enumerate(LAYOUT):
        (folder / "samples" / camera).mkdir(parents=True)
        Image.new("RGB", (160, 90), (40 * camera_index, 90, 200)).save(folder / "samples" / camera / "a.jpg")
    for scene in range(scenes):
        key_frames = {}
        for frame in range(frames):
            qa = {
                "perception": [{"Q": "What is there?", "A": f"A car {TAG}."}, {"Q": f"Is {TAG} red?", "A": "Yes."}],
                "prediction": [{"Q": "What first?", "A": TAG, "tag": [3]}],
                "planning": [],
                "behavior": [{"Q": "Behaviour?", "A": "B"}],
            }
            paths = {camera: f"../nuscenes/samples/{camera}/a.jpg" for camera in sorted(LAYOUT)}
            key_frames[f"f{frame}"] = {"QA": qa, "image_paths": paths, "key_object_infos": {}}
        content[f"s{scene}"] = {"scene_description": "x", "key_frames": key_frames}
    return content


@pytest.fixture
def build(run):
    def start(folder, content, *words):
        (folder / "drivelm.json").write_text(json.dumps(content))
        base = ("--annotations", folder / "drivelm.json", "--image_root", folder, "--out", folder / "out")
        return run(*base, *words)

    return start


def test_six_views(tmp_path, build):
    done = build(tmp_path, make(tmp_path), "--splits", "train:1")
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "out" / "train.jsonl")
    assert [row["id"] for row in rows[:4]] == [
        "s0_f0_perception_0",
        "s0_f0_perception_1",
        "s0_f0_prediction_0",
        "s0_f0_behavior_0",
    ]
    assert [row["drivelm_id"] for row in rows] == [f"s0_f{f}_{i}" for f in range(2) for i in range(4)]
    first = rows[0]
    assert first["image"] == [f"samples/{camera}/a.jpg" for camera in ORDER]
    assert first["conversations"] == [
        {"from": "human", "value": "<image>\n" * 6 + "What is there?"},
        {"from": "gpt", "value": f"A car {TAG}."},
    ]
    assert (first["group"], first["category"], "tag" in first) == ("s0", "perception", False)
    assert rows[2]["tag"] == [3]


def test_stitched_views(tmp_path, build):
    done = build(tmp_path, make(tmp_path), "--splits", "train:1", "--views", "stitched", "--json", tmp_path / "n.json")
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "out" / "train.jsonl")
    assert rows[1]["conversations"][0]["value"] == "<image>\nIs <c1,CAM_BACK,[560, 776]> red?"
    assert rows[0]["conversations"][1]["value"] == "A car <c1,CAM_BACK,[560, 776]>."
    with Image.open(tmp_path / "out" / rows[0]["image"]) as picture:
        assert picture.size == (2688, 896)
        for index, (column, row) in enumerate(LAYOUT.values()):
            pixel = picture.getpixel((column * 896 + 448, row * 448 + 224))
            assert abs(pixel[0] - 40 * index) <= 4
    assert len(list((tmp_path / "out" / "images").iterdir())) == 2
    counts = json.loads((tmp_path / "n.json").read_text())
    assert counts["train"] == {"frames": 2, "scenes": 1, "perception": 4, "prediction": 2, "behavior": 2}


def test_split_by_scene(tmp_path, build):
    content = make(tmp_path, scenes=40, frames=2)
    for scene, data in content.items():  # every scene its own pictures, as in the real data
        for frame, part in data["key_frames"].items():
            for camera in LAYOUT:
                name = f"samples/{camera}/{scene}{frame}.jpg"
                (tmp_path / name).hardlink_to(tmp_path / "samples" / camera / "a.jpg")
                part["image_paths"][camera] = "../nuscenes/" + name
    done = build(tmp_path, content, "--splits", "train:0.7", "val:0.3", "--seed", 3)
    assert done.returncode == 0, done.stderr
    splits = {name: rows_of(tmp_path / "out" / f"{name}.jsonl") for name in ("train", "val")}
    assert sum(map(len, splits.values())) == 40 * 2 * 4 and min(map(len, splits.values())) > 0
    assert find_leaks(splits) == []


def test_max_frames_and_questions_only(tmp_path, build):
    content = make(tmp_path, frames=3)
    for frame in content["s0"]["key_frames"].values():
        for questions in frame["QA"].values():
            for qa in questions:
                qa["A"] = ""
    done = build(tmp_path, content, "--splits", "test:1", "--limit", 1)
    assert done.returncode == 2 and "s0_f0_perception_0: empty question or answer" in done.stderr
    done = build(tmp_path, content, "--splits", "test:1", "--limit", 1, "--questions_only")
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "out" / "test.jsonl")
    assert len(rows) == 4 and all(len(row["conversations"]) == 1 for row in rows)


def test_rows_of_a_test_file_score_with_the_evaluator(tmp_path, build):
    """Builder and evaluator agree on ids, tags and coordinates: stitched references as predictions score full marks."""
    content = make(tmp_path, frames=1)
    tags = {"perception": [2], "prediction": [3], "behavior": [0]}
    for category, questions in content["s0"]["key_frames"]["f0"]["QA"].items():
        for qa in questions:
            qa["tag"] = tags[category]
    assert build(tmp_path, content, "--splits", "test:1", "--views", "stitched").returncode == 0
    predictions = tmp_path / "predictions.jsonl"
    with open(predictions, "w") as file:
        for row in rows_of(tmp_path / "out" / "test.jsonl"):
            question, answer = (turn["value"] for turn in row["conversations"])
            row |= {"question": question, "prediction": answer, "reference": answer}
            file.write(json.dumps(row) + "\n")
    tool = [
        sys.executable,
        str(ROOT / "tools" / "drivelm_eval.py"),
        "--stitched",
        "--json",
        str(tmp_path / "score.json"),
    ]
    tool += ["--predictions", str(predictions), "--annotations", str(tmp_path / "drivelm.json")]
    done = subprocess.run(tool, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "score.json").read_text())
    assert (result["accuracy"], result["gated"], result["missing"]) == (1.0, 0, 0)
    assert result["match_f1"] == pytest.approx(100)


def edit_frame(change):
    def edit(folder, content):
        change(content["s0"]["key_frames"]["f1"])

    return edit


@pytest.mark.parametrize(
    ("edit", "words", "message"),
    [
        (lambda folder, content: (folder / "samples/CAM_BACK/a.jpg").unlink(), [], "scene s0 frame f0: CAM_BACK:"),
        (edit_frame(lambda f: f["image_paths"].pop("CAM_FRONT")), [], "scene s0 frame f1: no picture of CAM_FRONT"),
        (edit_frame(lambda f: f["image_paths"].update(CAM_TOP="x")), [], "scene s0 frame f1: unknown camera 'CAM_TOP'"),
        (edit_frame(lambda f: f["image_paths"].update(CAM_BACK="../a.jpg")), [], "../a.jpg leaves the image root"),
        (edit_frame(lambda f: f["QA"].update(other=[])), [], "scene s0 frame f1: unknown categories ['other']"),
        (
            edit_frame(lambda f: f["QA"]["behavior"][0].update(A="<c1,CAM_TOP,1.0,2.0>")),
            ["--views", "stitched"],
            "s0_f1_behavior_0: unknown camera 'CAM_TOP'",
        ),
        (
            lambda folder, content: (folder / "samples/CAM_BACK/a.jpg").write_bytes(b"\xff\xd8 torn"),
            ["--views", "stitched"],
            "CAM_BACK/a.jpg: cannot be decoded",
        ),
        (lambda folder, content: None, ["--splits", "train:0.7"], "must sum to 1"),
        (lambda folder, content: None, ["--splits", "train"], "expected different name:share"),
    ],
)
def test_errors_name_file_scene_and_frame(tmp_path, edit, words, message, build):
    content = make(tmp_path)
    edit(tmp_path, content)
    done = build(tmp_path, content, *words)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.glob("out/*.jsonl"))


def test_bad_rows_are_left_out_and_counted(tmp_path, build):
    """A frame without a picture and an empty answer; the official numbers of the other questions do not change."""
    content = make(tmp_path, frames=3)
    content["s0"]["key_frames"]["f1"]["image_paths"].pop("CAM_FRONT")
    content["s0"]["key_frames"]["f2"]["QA"]["perception"][0]["A"] = ""
    done = build(tmp_path, content, "--splits", "train:1", "--on_bad_row", "skip", "--json", tmp_path / "n.json")
    assert done.returncode == 0, done.stderr
    ids = [row["drivelm_id"] for row in rows_of(tmp_path / "out" / "train.jsonl")]
    assert ids == [*(f"s0_f0_{i}" for i in range(4)), *(f"s0_f2_{i}" for i in range(1, 4))]
    result = json.loads((tmp_path / "n.json").read_text())
    assert result["bad_rows"]["by_reason"] == {"camera_missing": 1, "empty_text": 1}
    assert "left out: 1 camera_missing" in done.stdout


def test_a_part_of_nuscenes(tmp_path, build):
    """Two of four scenes are wanted, one of their frames is not there; the split that is left without a scene is named."""
    content = make(tmp_path, scenes=4)
    content["s2"]["key_frames"]["f1"]["image_paths"]["CAM_BACK"] = "../nuscenes/samples/CAM_BACK/gone.jpg"
    words = ("--splits", "train:1", "val:0", "--scene_names", "s1", "s2", "--json", tmp_path / "n.json")
    done = build(tmp_path, content, *words)
    assert done.returncode == 2 and "--on_missing skip leaves such frames out" in done.stderr
    done = build(tmp_path, content, *words, "--on_missing", "skip")
    assert done.returncode == 0, done.stderr
    assert {row["drivelm_id"][:5] for row in rows_of(tmp_path / "out" / "train.jsonl")} == {"s1_f0", "s1_f1", "s2_f0"}
    assert json.loads((tmp_path / "n.json").read_text())["bad_rows"]["by_reason"] == {"image_missing": 1}
    assert f"warning: {tmp_path / 'out' / 'val.jsonl'} holds no row" in done.stderr
    assert len(rows_of(tmp_path / "out" / "train.jsonl")) == 12
    done = build(tmp_path, content, "--scene_names", "s9")
    assert done.returncode == 2 and "--scene_names s9" in done.stderr and "has no such scene" in done.stderr
    content["s2"]["key_frames"]["f1"]["QA"]["behavior"][0]["A"] = ""
    content["s2"]["key_frames"]["f1"]["image_paths"]["CAM_BACK"] = "../nuscenes/samples/CAM_BACK/a.jpg"
    done = build(tmp_path, content, *words, "--on_missing", "skip")
    assert done.returncode == 2 and "empty question or answer" in done.stderr, "other bad rows still stop"


def test_a_picture_in_two_splits_is_a_leak(tmp_path, build):
    content = make(tmp_path, scenes=40)
    done = build(tmp_path, content, "--splits", "train:0.7", "val:0.3")
    assert done.returncode == 1 and "6 leaks between the splits, e.g. image 'samples/CAM_BACK/a.jpg'" in done.stderr


@pytest.mark.kit
def test_real_annotations(tmp_path, run):
    if not KIT.is_dir():
        pytest.skip("the kit of real data (../shared/kit) is absent")
    base = ("--annotations", KIT / "train_sample.json", "--image_root", KIT, "--splits", "train:1")
    for views in ("six", "stitched"):
        done = run(*base, "--out", tmp_path / views, "--views", views)
        assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "six" / "train.jsonl")
    wanted = rows_of(KIT / "drivelm_demo.jsonl")
    columns = ("id", "scene", "frame", "category", "image", "conversations")
    assert [[row[c] for c in columns] for row in rows] == [[row[c] for c in columns] for row in wanted]
    coordinates = re.compile(r"(\d+\.\d+),(\d+\.\d+)>")
    tags = 0
    for row, stitched in zip(rows, rows_of(tmp_path / "stitched" / "train.jsonl"), strict=True):
        for turn, other in zip(row["conversations"], stitched["conversations"], strict=True):
            points, back = (coordinates.findall(text) for text in (turn["value"], denormalise_tags(other["value"])))
            assert len(points) == len(back)
            for (x, y), (u, v) in zip(points, back, strict=True):
                assert abs(float(x) - float(u)) <= QUANTISATION_ERROR[0] + 0.051
                assert abs(float(y) - float(v)) <= QUANTISATION_ERROR[1] + 0.051
                tags += 1
    assert tags == 246
    assert len(list((tmp_path / "stitched" / "images").iterdir())) == 4
