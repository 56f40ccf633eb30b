"""tools/check_data.py on planted faults: bad rows are counted by reason and place, leaks stop, the preview shows the answer."""

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

TOOL = Path(__file__).parents[2] / "tools" / "check_data.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_data", TOOL)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def rows(synthetic_data: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (synthetic_data / "train.jsonl").read_text().splitlines()[:12]]


@pytest.fixture
def write(tmp_path: Path, synthetic_data: Path) -> Callable[[str, list[Any]], Path]:
    """`write(name, rows)`: a data file next to a copy of the pictures; a row that is a text is written as it is."""
    shutil.copytree(synthetic_data / "images", tmp_path / "images")

    def to_file(name: str, rows: list[Any]) -> Path:
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return to_file


@pytest.fixture
def check(run_here: Callable, tiny_model: Path, tmp_path: Path) -> Callable[..., Any]:
    """`check(code, *flags, **env) -> (content of --json, finished process)`."""

    def start(code: int, *flags: object, **env: str) -> Any:
        out = tmp_path / "check.json"
        done = run_here(TOOL, "--model", tiny_model, "--json", out, *flags, **env)
        assert done.returncode == code, done.stdout + done.stderr
        return json.loads(out.read_text()) if out.exists() else None, done

    return start


@pytest.mark.slow
def test_bad_rows_are_counted_by_reason_and_place(rows, write, check, tmp_path):
    rows[2]["image"] = "images/none.jpg"
    rows[3]["image"] = "../outside.jpg"
    rows[4]["conversations"][1]["value"] = " "
    rows[5]["conversations"][0]["value"] = "no placeholder"
    rows[6] = "{broken"
    rows[7]["conversations"][1]["value"] = "word " * 400
    rows[9]["id"] = rows[8]["id"]
    truncated = tmp_path / "images" / "cut.jpg"  # its header is whole: only decoding finds the fault
    truncated.write_bytes((tmp_path / rows[10]["image"]).read_bytes()[:-600])
    rows[10]["image"] = "images/cut.jpg"
    path = write("train.jsonl", rows)
    plot = tmp_path / "plot.png"
    result, done = check(0, "--data", path, "--max_length", 300, "--decode", "--plot", plot)
    train = result["splits"]["train"]
    assert (train["rows_read"], train["rows_used"]) == (12, 6)
    expected = {
        "image_missing": 3,
        "path_outside_root": 4,
        "empty_answer": 5,
        "image_count": 6,
        "broken_json": 7,
        "too_long": 8,
    }
    assert train["bad_rows"]["by_reason"] == dict.fromkeys(expected, 1)
    assert {row["reason"]: row["where"] for row in train["bad_rows"]["rows"]} == {
        k: f"{path}:{n}" for k, n in expected.items()
    }
    assert [(row["first"], row["again"]) for row in train["duplicate_ids"]] == [(f"{path}:9", f"{path}:10")]
    assert [(row["reason"], row["where"]) for row in train["decoded"]["bad"]["rows"]] == [
        ("image_corrupt", f"{path}:11")
    ]
    assert sum(part["rows"] for part in train["histogram"]) == 6
    roots = 'is --image_root, or "root" in a meta JSON, the right folder?'
    assert f"2 rows name files that are not below {path.parent}: {roots}" in done.stdout
    for words in ("6 rows used of 12 read", f"{path}:3: the picture", "1 rows repeat an id", "image_corrupt"):
        assert words in done.stdout
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_pictures_beyond_the_limits_of_pixels_are_counted(rows, write, check, tiny_families, tmp_path):
    """Of 600, 200, 90,000 and 1,600 pixels within 400 to 2,500; a sliver has no size within them."""
    from PIL import Image

    for row, size in zip(rows, ((20, 30), (20, 10), (300, 300), (40, 40), (3, 900)), strict=False):
        row["image"] = f"images/{size[0]}.{size[1]}.png"
        Image.new("RGB", size).save(tmp_path / row["image"])
    path = write("train.jsonl", rows[:5])
    limits = ("--min_pixels", 400, "--max_pixels", 2500, "--preview", 0)
    result, done = check(0, "--model", tiny_families("qwen3_vl"), "--data", path, *limits)
    train = result["splits"]["train"]
    assert train["scaled"] == {"limits": [400, 2500], "pictures": 4, "up": 1, "down": 1}
    assert "pictures: 4; 1 of more than 2,500 pixels are scaled down, 1 of fewer than 400 are scaled up" in done.stdout
    (bad,) = train["bad_rows"]["rows"]
    assert bad["where"] == f"{path}:5" and "a picture of 3 x 900 is a sliver" in bad["problem"]
    # By hand, tokens of 14 x 14: 4, 6, 9 and 9; within the tiny processor's own limits of 196 to 3,136 pixels 2, 1, 9 and 9.
    own, _ = check(0, "--model", tiny_families("qwen3_vl"), "--data", path, "--preview", 0)
    assert own["splits"]["train"]["tokens"]["total"] == train["tokens"]["total"] - 7


def test_no_usable_row_is_reported_with_its_reasons(rows, write, check):
    path = write("train.jsonl", ["{broken", "[]"])
    result, done = check(1, "--data", path)
    assert result["splits"]["train"]["bad_rows"]["by_reason"] == {"broken_json": 1, "not_an_object": 1}
    assert "no usable row in train" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["id", "group", "image"])
def test_leak_stops_with_an_example(kind, rows, write, check, tmp_path):
    """One value of one kind is shared; the evaluation file names its pictures from another root."""
    train = [row | {"id": f"t{i}", "group": f"train-{i}"} for i, row in enumerate(rows[:3])]
    other = [row | {"id": f"e{i}", "group": f"eval-{i}"} for i, row in enumerate(rows[3:6])]
    for i, row in enumerate(train + other):
        name = f"{i}.jpg"
        # Several of the rows are about one picture: a byte behind its end makes each a file of its own.
        (tmp_path / "images" / name).write_bytes((tmp_path / row["image"]).read_bytes() + bytes([i]))
        row["image"] = f"images/{name}"
    value = str(tmp_path / "images" / "1.jpg") if kind == "image" else train[1][kind]
    other[2][kind] = "images/1.jpg" if kind == "image" else value
    path = write("train.jsonl", train)
    for row in other:
        row["image"] = row["image"].removeprefix("images/")
    held_out = write("images/val.jsonl", other)
    result, done = check(1, "--data", path, "--eval_data", held_out, "--preview", 0)
    assert result["leaks"] == [{"kind": kind, "value": value, "splits": ["train", "eval"]}]
    assert f"leak: 1 values of {kind}" in done.stderr and value in done.stderr

    other[2] |= {"id": "e2", "group": "eval-2", "image": "5.jpg"}
    result, done = check(0, "--data", path, "--eval_data", write("images/val.jsonl", other), "--preview", 0)
    assert result["leaks"] == []


@pytest.mark.slow
def test_a_picture_under_another_name_is_a_leak(rows, write, check, tmp_path):
    """One is copied, one is stored again; ids and groups differ."""
    from PIL import Image

    train = [rows[0] | {"id": "t", "group": "t"}]
    first = tmp_path / rows[0]["image"]
    shutil.copy(first, tmp_path / "images" / "copy.jpg")
    Image.open(first).resize((48, 48)).save(tmp_path / "images" / "again.jpg", quality=60)
    other = [rows[0] | {"id": f"e{n}", "group": "e", "image": f"images/{n}.jpg"} for n in ("copy", "again")]
    flags = ("--data", write("train.jsonl", train), "--preview", 0, "--deep", "--eval_data")
    held_out = tmp_path / "val.jsonl"
    held_out.write_text("".join(json.dumps(row) + "\n" for row in other))
    result, done = check(1, *flags, held_out)
    assert [(leak["kind"], leak["value"]) for leak in result["leaks"]] == [
        ("content", f"{first} = {tmp_path}/images/copy.jpg"),
        ("look-alike", f"{first} = {tmp_path}/images/again.jpg"),
    ]
    assert "leak: 1 values of content are in train and in eval" in done.stderr


@pytest.mark.slow
def test_training_rows_that_stand_in_a_benchmark_stop(rows, write, check, tmp_path):
    """An official file, which is no file of rows: a shared scene by its token, and a picture by its bytes."""
    train = [rows[0] | {"id": "t", "group": "a" * 32}]
    shutil.copy(tmp_path / rows[0]["image"], tmp_path / "images" / "copy.jpg")
    questions = [
        {"scene_token": "a" * 32, "frame_token": "f", "question": "?", "image_path": {"CAM_FRONT": "images/copy.jpg"}}
    ]
    official = tmp_path / "test.json"
    official.write_text(json.dumps(questions))
    result, done = check(1, "--data", write("train.jsonl", train), "--preview", 0, "--against", official)
    assert [(leak["kind"], leak["splits"]) for leak in result["leaks"]] == [
        ("group", ["train", str(official)]),
        ("content", ["train", str(official)]),
    ]
    assert f"leak: 1 values of group are in train and in {official}, such as {'a' * 32}" in done.stderr


@pytest.mark.slow
def test_preview_colours_exactly_the_answer(rows, write, check, tool, tiny_model):
    from drive_vlm.config import ModelConfig
    from drive_vlm.data.encoder import Encoder
    from drive_vlm.data.sources import open_sources
    from drive_vlm.data.table import build_table
    from drive_vlm.models import load_processor

    rows[0]["conversations"][1]["value"] = "Gelbes Licht: bremsen – jetzt."
    path = write("train.jsonl", rows[:1])
    parts = load_processor(ModelConfig(model=str(tiny_model), max_tiles=1))
    encoder = Encoder(parts.tokenizer, parts.template, parts.vision)
    row = encoder.encode(build_table(open_sources([str(path)]), encoder).sample(0))
    text = tool.preview_text(row["input_ids"].tolist(), row["labels"].tolist(), parts.tokenizer, encoder.image_id)
    learned = [text.plain[span.start : span.end] for span in text.spans if span.style == "bold green"]
    assert learned == ["Gelbes Licht: bremsen – jetzt.<|im_end|>"]
    assert "<img><16 image tokens></img>" in text.plain and "IMG_CONTEXT" not in text.plain

    flags = ("--data", path, "--preview", 1, "--max_tiles", 1)
    assert "⟦Gelbes Licht: bremsen – jetzt.<|im_end|>⟧" in check(0, *flags)[1].stdout
    coloured = check(0, *flags, FORCE_COLOR="1", TERM="xterm-256color")[1].stdout
    assert "\x1b[1;32mGelbes Licht: bremsen – jetzt.<|im_end|>" in coloured and "⟦" not in coloured


def test_processor_parts_are_those_of_the_family(tiny_model):
    import torch

    from drive_vlm.config import ModelConfig
    from drive_vlm.models import load_family, load_processor

    config = ModelConfig(model=str(tiny_model), max_tiles=2)
    parts, family = load_processor(config), load_family(config, torch.float32)
    assert parts.template == family.template
    assert parts.vision.fingerprint() == family.vision.fingerprint()
    assert parts.tokenizer.get_vocab() == family.tokenizer.get_vocab()


def test_numbers_by_hand():
    from drive_vlm.builders.checks import histogram, padding_shares

    lengths = np.array([10, 10, 10, 30])
    assert histogram(np.array([5, 5, 6, 40])) == [(5 + 3 * i, 7 + 3 * i, n) for i, n in enumerate([3] + [0] * 10 + [1])]
    shares = padding_shares(lengths, max_length=40, batch_size=4)
    assert shares["unpacked"] == {"sequences": 4, "padding_share": pytest.approx(1 - 60 / 120)}
    assert shares["packed"] == {"sequences": 2, "padding_share": pytest.approx(1 - 60 / 80), "rows_per_pack": 2}


def test_user_errors(check, run, tmp_path):
    done = run([sys.executable, TOOL, "--data", tmp_path / "none.jsonl", "--model", tmp_path])
    assert done.returncode == 2 and "no such data file" in done.stderr and "Traceback" not in done.stderr
