"""What evaluation files in their official forms share with training rows: scenes, key frames, picture names."""

import json
from pathlib import Path
from typing import Any

import pytest

from drive_vlm.builders.checks import leak_keys
from drive_vlm.builders.evaluation_files import evaluation_rows, leak_row, picture_name, pictures_of
from drive_vlm.builders.splits import find_leaks
from drive_vlm.data.sources import open_sources

SCENE, FRAME = "a" * 32, "b" * 32
PICTURE = "n008-2018-08-30-15-52-26-0400__CAM_FRONT__1535658934012637.jpg"


def put(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


# The same frame in the four official forms; DriveBench's picture is a corrupted one elsewhere.
FORMS: dict[str, Any] = {
    "drivebench": [{"scene_token": SCENE, "frame_token": FRAME, "question": "?", "image_path": {"CAM_FRONT": f"./Fog/CAM_FRONT/{PICTURE}"}}],
    "track1": [{"scene_token": SCENE, "frame_token": FRAME, "question": "?", "img_paths": {"CAM_FRONT": f"data/x/{PICTURE}"}}],
    "drivelm": {SCENE: {"key_frames": {FRAME: {"QA": {}, "image_paths": {"CAM_FRONT": f"../nuscenes/samples/CAM_FRONT/{PICTURE}"}}}}},
    "release": {SCENE: {"key_frames": {FRAME: {"QA": {}}}}},
}  # fmt: skip


def train(folder: Path, **row: Any) -> list[Any]:
    (folder / "samples").mkdir(exist_ok=True)
    (folder / "samples" / PICTURE).write_bytes(b"clean")
    line = {
        "id": "t",
        "image": f"samples/{PICTURE}",
        "conversations": [{"from": "human", "value": "<image>\nQ?"}, {"from": "gpt", "value": "A"}],
    }
    (folder / "train.jsonl").write_text(json.dumps(line | row) + "\n")
    return open_sources([str(folder / "train.jsonl")])


def kinds(sources: list[Any], path: Path) -> list[str]:
    return [
        leak.kind for leak in find_leaks({"train": leak_keys(sources), "eval": map(leak_row, evaluation_rows(path))})
    ]


@pytest.mark.parametrize("form", FORMS)
def test_official_forms_are_compared_by_scene_frame_and_picture(tmp_path: Path, form: str) -> None:
    path = put(tmp_path / f"{form}.json", FORMS[form])
    picture = [] if form == "release" else ["image"]
    assert kinds(train(tmp_path, group=SCENE, frame=FRAME), path) == ["group", "frame", *picture]
    # Rows of another builder: the token stands in other columns, and the picture's name alone tells.
    assert kinds(train(tmp_path, scene_token=SCENE, sample_token=FRAME), path) == ["group", "frame", *picture]
    assert kinds(train(tmp_path, group="scene-0001", frame="3"), path) == picture
    assert kinds(train(tmp_path, image=None, group="c" * 32), path) == []


def test_rows_and_plain_names(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"id": "t", "group": "other", "frame": 3, "image": ["images/1.jpg"]}) + "\n")
    assert kinds(train(tmp_path, group="own", frame=3), path) == ["id"]
    assert picture_name("images/1.jpg") == str(Path("images/1.jpg").absolute())


def test_pictures_are_those_that_are_there(tmp_path: Path) -> None:
    train(tmp_path)
    rows = [{"media": [f"samples/{PICTURE}", "samples/none.jpg"]}]
    (found,) = pictures_of(rows, tmp_path / "x.json", None)
    assert found.images == (str(tmp_path / "samples" / PICTURE),)
    assert pictures_of(rows, tmp_path / "x.json", str(tmp_path / "samples")) == []


@pytest.mark.parametrize(
    ("content", "says"),
    [([{"question": "?"}], "no row names a scene"), (7, "expected rows, a list"), ({"a": 1}, "expected rows, a list")],
)
def test_a_file_that_says_nothing_is_refused(tmp_path: Path, content: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        list(evaluation_rows(put(tmp_path / "x.json", content)))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json: cannot be read as JSON"):
        list(evaluation_rows(tmp_path / "broken.json"))
