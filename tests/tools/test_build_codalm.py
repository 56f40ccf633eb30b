"""tools/build_codalm.py on invented annotations in the published shape."""

import json

import pytest
from PIL import Image

from drive_vlm.builders.splits import find_leaks

CATEGORIES = (
    "vehicles",
    "vulnerable_road_users",
    "traffic signs",
    "traffic lights",
    "traffic cones",
    "barriers",
    "other objects",
)


def annotation(number, regions=2, text="a cone"):
    general = {name: [] for name in CATEGORIES} | {"description and explanation": text and f"general {text} {number}"}
    boxes = {
        str(i): {"description and explanation": text and f"region {text} {i}", "box": [10 * i, 5, 20, 10.5], "category_name": ("car", "bollard")[i % 2]}
        for i in range(1, regions + 1)
    }  # fmt: skip
    return {
        "general_perception": general,
        "region_perception": boxes,
        "driving_suggestion": text and f"slow down {number}",
    }


@pytest.fixture
def root(tmp_path):
    """Train of 2 pictures (val_*), Mini of 1, Test of 1 without texts."""
    root = tmp_path / "CODA"
    for language in ("CODA-LM", "CODA-LM-chinese"):
        for split, name, text in (
            ("Train", "val_0002", "a cone"),
            ("Train", "val_0001", "a cone"),
            ("Mini", "test_0001", "a cone"),
            ("Test", "test_0007", ""),
        ):
            path = root / language / split / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            text = text and ("锥" if language.endswith("chinese") else text)
            path.write_text(json.dumps(annotation(name, text=text)))
    for source, number in (("val", "0001"), ("val", "0002"), ("test", "0001"), ("test", "0007")):
        folder = root / source / "images"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48), (90, 90, 90)).save(folder / f"{number}.jpg")
    return root


@pytest.fixture
def build(run_here, root, tmp_path):
    return lambda *flags: run_here("tools/build_codalm.py", "--image_root", root, "--out", tmp_path / "out", *flags)


def rows_of(tmp_path, split):
    return [json.loads(line) for line in (tmp_path / "out" / f"{split}.jsonl").read_text().splitlines()]


def test_rows_boxes_and_split_sizes(build, root, tmp_path):
    assert "Val: no annotation files" in build("--splits", "Val").stderr
    done = build("--splits", "Train", "Mini", "Test", "--json", tmp_path / "counts.json")
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path, "train")
    assert [(row["id"], row["question_id"], row["group"]) for row in rows] == [
        ("Train_general_0", 0, "val_0001"), ("Train_suggestion_0", 0, "val_0001"), ("Train_region_0", 0, "val_0001"), ("Train_region_1", 1, "val_0001"),
        ("Train_general_1", 1, "val_0002"), ("Train_suggestion_1", 1, "val_0002"), ("Train_region_2", 2, "val_0002"), ("Train_region_3", 3, "val_0002"),
    ]  # fmt: skip
    general, suggestion, region = rows[0], rows[1], rows[2]
    assert (
        general["image"] == "val/images/0001.jpg" and general["conversations"][1]["value"] == "general a cone val_0001"
    )
    assert general["conversations"][0]["value"].startswith("<image>\nThere is an image of traffic")
    assert suggestion["task"] == suggestion["category"] == "driving_suggestion"
    assert region["image"] == "val/images_w_boxes/0001_object_1.jpg"
    assert (region["category"], region["class"], region["box"]) == ("bollard", "barrier", [10, 5, 20, 10.5])
    with Image.open(root / region["image"]) as picture:
        red, inside, outside = (picture.getpixel(place) for place in ((20, 5), (20, 10), (50, 30)))
    assert red[0] - max(red[1:]) > 60
    assert max(inside) - min(inside) < 40 and outside == (90, 90, 90)
    prompts = rows_of(tmp_path, "test")
    assert all(len(row["conversations"]) == 1 and "reference" not in row for row in prompts)
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert counts["Test"]["without_answer"] == 4 and counts["Train"]["boxes_drawn"] == 4
    assert "4,884" in done.stdout and "Train: 2 images, the published split has 4,884" in done.stdout
    assert not find_leaks({split: rows_of(tmp_path, split) for split in ("train", "mini", "test")})
    assert (
        build("--splits", "Train").returncode == 0
        and json.loads((tmp_path / "out/train.audit.json").read_text())["boxes_drawn"] == 0
    )


def test_released_test_answers_are_no_part_of_the_conversation(build, root, tmp_path):
    (root / "CODA-LM/Test/test_0007.json").write_text(json.dumps(annotation("test_0007")))
    assert build("--splits", "Test").returncode == 0
    rows = rows_of(tmp_path, "test")
    assert all(len(row["conversations"]) == 1 for row in rows) and rows[1]["reference"] == "slow down test_0007"


def test_chinese_and_other_questions(build, tmp_path):
    questions = {task: f"问 {task}" for task in ("general_perception", "driving_suggestion", "region_perception")}
    (tmp_path / "q.json").write_text(json.dumps(questions))
    done = build("--splits", "Mini", "--language", "chinese", "--questions", tmp_path / "q.json")
    assert done.returncode == 0, done.stderr
    row = rows_of(tmp_path, "mini")[0]
    assert (
        row["conversations"][0]["value"] == "<image>\n问 general_perception"
        and "锥" in row["conversations"][1]["value"]
    )
    (tmp_path / "q.json").write_text("{}")
    assert "expected a JSON object" in build("--splits", "Mini", "--questions", tmp_path / "q.json").stderr


def test_bad_rows_stop_or_are_counted(build, root, tmp_path):
    (root / "val/images/0002.jpg").unlink()
    broken = annotation("val_0001", regions=3)
    broken["driving_suggestion"] = " "
    broken["region_perception"]["2"]["box"] = [1, 2, 0, 4]
    (root / "CODA-LM/Train/val_0001.json").write_text(json.dumps(broken))
    done = build("--splits", "Train")
    assert done.returncode == 2 and "val_0001.json: driving_suggestion: the answer is empty" in done.stderr
    assert not (tmp_path / "out" / "train.jsonl").exists()
    done = build("--splits", "Train", "--on_bad_row", "skip")
    assert done.returncode == 0, done.stderr
    audit = json.loads((tmp_path / "out/train.audit.json").read_text())
    assert audit["bad_rows"]["by_reason"] == {"empty_answer": 1, "bad_box": 1, "image_missing": 4}
    assert [row["id"] for row in rows_of(tmp_path, "train")] == ["Train_general_0", "Train_region_0", "Train_region_2"]
    assert "4 rows left out: image_missing" in done.stdout


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("val_0001.json", "{", "val_0001.json:1: not valid JSON"),
        ("val_0001.json", '{"general_perception": {}}', "not a CODA-LM annotation"),
        ("0001.json", "{}", "expected a name such as val_0001.json"),
    ],
)
def test_files_of_another_form_are_named(build, root, name, text, message):
    (root / "CODA-LM/Train" / name).write_text(text)
    done = build("--splits", "Train")
    assert done.returncode == 2 and message in done.stderr and name in done.stderr and "Traceback" not in done.stderr
