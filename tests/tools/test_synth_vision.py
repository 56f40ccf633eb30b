"""Detect and segment, through their commands: tiny random models of the real classes, and YOLO on real pictures."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

HELPER = Path(__file__).parents[1] / "builders" / "synthesis" / "tiny_vision.py"
LABELS = ("car", "truck", "traffic cone", "person")


@pytest.fixture(scope="module")
def tiny() -> ModuleType:
    """tests/builders/synthesis/tiny_vision.py."""
    spec = importlib.util.spec_from_file_location("tiny_vision", HELPER)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three pictures of noise, of 96 x 64 pixels."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        noise = np.random.default_rng(i).integers(0, 255, (64, 96, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    return folder


# ---- detect


@pytest.mark.parametrize("kind", ["grounding-dino", "mm-grounding-dino", "owlv2", "sam3"])
def test_open_vocabulary_detectors_of_the_real_classes(
    kind: str, tiny: ModuleType, synth_step: Callable, pictures: Path, tmp_path: Path
) -> None:
    builders = {"owlv2": tiny.tiny_owlv2, "sam3": tiny.tiny_sam3}
    build = builders.get(kind, partial(tiny.tiny_grounding_dino, kind=kind))
    model = build(tmp_path / "m")
    # Random scores stand around a half, those of MM-GroundingDINO below a hundredth: every word is in each of its labels.
    least, word = (0, 0) if kind == "mm-grounding-dino" else (0.2, 0.4)
    words = ("--data", pictures, "--model", model, "--labels", *LABELS, "--threshold", least, "--text_threshold", word)
    lines, audit = synth_step("detect", *words, "--group", 3, "--same_label", 1, "--any_label", 1)
    assert [line["image"] for line in lines] == ["0.png", "1.png", "2.png"] and audit["lines"] == 3
    for line in lines:
        assert line["size"] == [96, 64]
        for box in line["boxes"]:
            x1, y1, x2, y2 = box["box"]
            assert 0 <= x1 < x2 <= 96 and 0 <= y1 < y2 <= 64 and box["label"] in LABELS and box["by"] == "m"
            assert least <= box["score"] <= 1
    unknown = sum(sum(line["unknown_labels"].values()) for line in lines)
    assert audit["dropped"].get("unknown_label", 0) == audit["counts"]["unknown labels"] == unknown
    if kind in builders:
        boxes = [box for line in lines for box in line["boxes"]]
        assert boxes and all(("rle" in box) == (kind == "sam3") for box in boxes)
    else:
        assert unknown, "a random GroundingDINO makes labels of several words, which are no label of the list"
    error = synth_step("detect", *words, "--group", 2, "--same_label", 1, "--any_label", 1, code=2)
    assert "group: 3 then, 2 now" in error and "another --out" in error


class _Parrot:
    """A detector that says the same of every picture."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def __call__(self, group: list[str]) -> list[dict[str, Any]]:
        import torch

        count = len(self.texts)
        boxes = torch.tensor([[10.0 * i, 0, 10.0 * i + 8, 9] for i in range(count)]).reshape(-1, 4)
        return [{"boxes": boxes, "scores": torch.full((count,), 0.5), "text_labels": self.texts or [""]}]


def test_texts_of_two_classes_or_of_word_pieces_are_no_labels() -> None:
    from drive_vlm.builders.synthesis.detectors import Thresholds, _GroundingDino

    def found(texts: list[str]) -> Any:
        detector = _GroundingDino("d", None, None, [list(LABELS)], Thresholds(0.3, 0.3, 0.5))
        detector.ask = lambda pictures, group: _Parrot(texts)(group)  # type: ignore[method-assign]
        return detector([Image.new("RGB", (100, 50))])[0]

    result = found(["car", "car truck", "##cone", "Traffic  Cone", ""])
    assert [box.label for box in result.boxes] == ["car", "traffic cone"]
    assert result.unknown == {"car truck": 1, "##cone": 1, "": 1}
    # Of no box at all, the processor of GroundingDINO makes one empty text.
    assert found([]).boxes == [] and not found([]).unknown


def test_labels_are_parted_where_the_text_is_longer_than_the_detector_reads(tiny: ModuleType, tmp_path: Path) -> None:
    from drive_vlm.builders.synthesis.detectors import Thresholds, open_detector

    model = str(tiny.tiny_grounding_dino(tmp_path / "m"))
    labels = [" ".join([word] * 10) for word in ("car", "bus", "cone")]
    # 32 tokens: two labels of ten words are 22 words and stops, with both ends 24; three are 35.
    groups = open_detector(model, labels, 20, Thresholds(0.3, 0.3, 0.5), "float32").groups  # type: ignore[attr-defined]
    assert sorted(len(group) for group in groups) == [1, 2] and [label for group in groups for label in group] == labels
    with pytest.raises(ValueError, match="longer than the 32 tokens"):
        open_detector(model, [" ".join(["car"] * 40)], 20, Thresholds(0.3, 0.3, 0.5), "float32")


def test_owlv2_boxes_are_of_the_padded_square(tiny: ModuleType, tmp_path: Path) -> None:
    """The lower right quarter of the square that a wide picture is padded to lies half below the picture."""
    import torch
    import transformers as hf
    from transformers.models.owlv2.modeling_owlv2 import Owlv2ObjectDetectionOutput

    processor = hf.Owlv2Processor.from_pretrained(tiny.tiny_owlv2(tmp_path / "m"))
    outputs = Owlv2ObjectDetectionOutput(
        logits=torch.tensor([[[5.0, -5.0]]]), pred_boxes=torch.tensor([[[0.75, 0.5, 0.5, 0.5]]])
    )
    result = processor.post_process_grounded_object_detection(outputs, 0.1, [(50, 100)], [["car", "bus"]])[0]
    assert result["boxes"].tolist() == [[50, 25, 100, 75]] and result["text_labels"] == ["car"]


def test_bad_detector_flags_are_one_line(synth_step: Callable, pictures: Path, tmp_path: Path) -> None:
    data = ("--data", pictures)
    assert "one of --model, --yolo and --detection_cache" in synth_step("detect", *data, code=2)
    assert "cannot be loaded" in synth_step("detect", *data, "--model", tmp_path / "none", code=2)
    assert "full stop" in synth_step("detect", *data, "--model", "m", "--labels", "a.b", code=2)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert "a bert is not one of the detectors" in synth_step("detect", *data, "--model", tmp_path, code=2)


def test_yolo_and_its_cache_are_sources(synth_step: Callable, run_here: Callable, kit: Path, tmp_path: Path) -> None:
    # Not importorskip: importing it wraps Pillow's open for the rest of this process (tools/yolo_detector.py puts that back).
    if importlib.util.find_spec("ultralytics") is None:
        pytest.skip("ultralytics is not installed")
    folder = tmp_path / "real"
    folder.mkdir()
    for path in sorted((kit / "noncommercial" / "bdd100k").glob("*.jpg"))[:2]:
        shutil.copy(path, folder)
    weights = kit / "models" / "yolov8n.pt"
    direct, _ = synth_step("detect", "--data", folder, "--yolo", weights, "--imgsz", 320, out="direct.jsonl")
    rows = [
        {"image": path.name, "messages": [{"role": "user", "content": "<image>What?"}]} for path in folder.iterdir()
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sorted(rows, key=str)))
    cache = tmp_path / "cache.jsonl"
    data = ("--data", tmp_path / "rows.jsonl", "--image_root", folder)
    done = run_here(
        "tools/cache_detections.py", *data, "--weights", weights, "--imgsz", 320, "--conf", 0.25, "--out", cache
    )
    assert done.returncode == 0, done.stderr
    cached, audit = synth_step("detect", *data, "--detection_cache", cache, out="cached.jsonl")
    assert direct[0]["boxes"] and [line["boxes"] for line in cached] == [line["boxes"] for line in direct]
    assert audit["models"]["detector"]["name"] == "yolov8n.pt"
    few, audit = synth_step("detect", *data, "--detection_cache", cache, "--labels", "person", out="few.jsonl")
    cars = sum(box["label"] == "car" for line in direct for box in line["boxes"])
    assert not any(line["boxes"] for line in few) and sum(line["unknown_labels"]["car"] for line in few) >= cars
    first = sorted(folder.iterdir())[0]
    Image.new("RGB", (64, 64)).save(first)
    assert "is not the picture that" in synth_step(
        "detect", *data, "--detection_cache", cache, out="cached.jsonl", code=2
    )
    (tmp_path / "more").mkdir()
    shutil.copy(first, tmp_path / "more" / "new.jpg")
    more = ("--data", tmp_path / "more", "--detection_cache", cache)
    assert "no detections for 'new.jpg'" in synth_step("detect", *more, out="more.jsonl", code=2)
    _, audit = synth_step("detect", *more, "--on_bad_row", "skip", out="more.jsonl")
    assert audit["bad_rows"]["by_reason"] == {"no_detections": 1} and audit["lines"] == 0


# ---- segment


@pytest.mark.parametrize("kind", ["tiny_sam", "tiny_sam2"])
def test_segmenters_of_the_real_classes(
    kind: str, tiny: ModuleType, synth_step: Callable, pictures: Path, tmp_path: Path
) -> None:
    from drive_vlm.builders.synthesis.records import Rle
    from drive_vlm.builders.synthesis.rle import decode_rle

    model = getattr(tiny, kind)(tmp_path / "m")
    # Random masks are neither good nor stable.
    words = (
        "--data",
        pictures,
        "--model",
        model,
        "--points_per_side",
        4,
        "--pred_iou_thresh",
        0,
        "--stability_score_thresh",
        0,
    )
    lines, audit = synth_step("segment", *words, "--least_area", 0, "--most_area", 1)
    regions = [region for line in lines for region in line["regions"]]
    assert len(lines) == 3 and regions and audit["counts"]["regions"] == len(regions)
    # Of no area at all, whatever --least_area says.
    dropped = audit["dropped"]
    assert set(dropped) <= {"too_small"}
    for region in regions:
        mask = decode_rle(Rle(**region["rle"]))
        assert mask.shape == (64, 96) and mask.any()
        x1, y1, x2, y2 = (int(value) for value in region["box"])
        assert mask[y1:y2, x1:x2].sum() == mask.sum() and mask[y1, x1:x2].any() and mask[y1:y2, x2 - 1].any()
    assert lines[0]["size"] == [96, 64]
    few, audit = synth_step("segment", *words, "--least_area", 0.3, "--most_area", 0.4, out="few.jsonl")
    kept = sum(len(line["regions"]) for line in few)
    assert kept + sum(audit["dropped"].values()) == len(regions) + sum(dropped.values()) and set(audit["dropped"]) <= {
        "too_small",
        "too_large",
    }
