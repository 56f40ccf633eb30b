"""Names by retrieval, through the commands: embed, data base, retrieve.

What a name must be is tested on coloured crops, whose embedding is their colour; embedders are tiny random ones of the real classes.
"""

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

COLOURS = {"cone": (250, 120, 20), "sign": (30, 60, 220), "bush": (20, 160, 40)}


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Colour:
    """In place of an embedder: the mean colour of a crop, the grey around it taken off."""

    def __call__(self, crops: Any) -> np.ndarray:
        from drive_vlm.builders.synthesis.embedders import unit

        return unit(
            np.stack([np.asarray(crop, dtype=np.float32).reshape(-1, 3).mean(axis=0) - 126.5 for crop in crops])
        )


@pytest.fixture
def coloured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[object, ...]:
    """Flags of an embedder that sees colours."""
    from drive_vlm.builders.synthesis import embedders

    monkeypatch.setattr(embedders, "open_embedder", lambda *flags: Colour())
    folder = tmp_path / "colour"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "siglip"}')
    return "--model", folder


def scene(path: Path, things: list[tuple[str | tuple[int, int, int], list[int]]]) -> None:
    """A grey picture of 200 x 100 with rectangles of colours."""
    picture = Image.new("RGB", (200, 100), (127, 127, 127))
    for colour, box in things:
        ImageDraw.Draw(picture).rectangle(
            [box[0], box[1], box[2] - 1, box[3] - 1], COLOURS[colour] if isinstance(colour, str) else colour
        )
    picture.save(path)


def boxes_line(image: str, things: list[tuple[str, list[int]]], group: str | None = None) -> str:
    boxes = [{"box": box, "label": label, "score": 1.0, "by": "truth"} for label, box in things]
    return json.dumps({"image": image, "group": group, "boxes": boxes}) + "\n"


@pytest.fixture
def named(tmp_path: Path) -> Path:
    """Four crops of each name, in folders by name."""
    folder = tmp_path / "named"
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for i in range(4):
            shade = tuple(min(255, value + 3 * i) for value in colour)
            Image.new("RGB", (20 + i, 20), shade).save(folder / name / f"{i}.png")
    return folder


def region(mask: np.ndarray, box: list[int]) -> dict[str, Any]:
    from drive_vlm.builders.synthesis.records import plain_record
    from drive_vlm.builders.synthesis.rle import encode_rle

    return {"rle": plain_record(encode_rle(mask)), "box": box, "score": 0.9}


def test_regions_get_names_by_their_neighbours_or_none(
    coloured: tuple, named: Path, synth_step: Callable, run_here: Callable, tmp_path: Path
) -> None:
    done = run_here("tools/synth_database.py", "--data", named, *coloured, "--licence", "CC0", "--out", tmp_path / "db")
    assert done.returncode == 0, done.stderr
    names = lines_of(tmp_path / "db" / "names.jsonl")
    assert [row["row"] for row in names] == list(range(12)) and names[0] == {
        "row": 0, "name": "bush", "image": "bush/0.png", "group": None, "licence": "CC0",
    }  # fmt: skip
    things = [
        ("cone", [10, 10, 30, 40]),
        ("sign", [60, 10, 90, 40]),
        ((200, 20, 200), [120, 10, 150, 40]),
        ("bush", [5, 60, 9, 64]),
    ]
    (tmp_path / "data").mkdir()
    scene(tmp_path / "data" / "a.png", things)
    line = json.loads(boxes_line("a.png", [("bush", things[0][1])]))
    line["regions"] = []
    for _, (x1, y1, x2, y2) in things[1:]:
        mask = np.zeros((100, 200), dtype=bool)
        mask[y1:y2, x1:x2] = True
        line["regions"].append(region(mask, [x1, y1, x2, y2]))
    data = tmp_path / "data" / "boxes.jsonl"
    data.write_text(json.dumps(line) + "\n")
    embedded, audit = synth_step("embed", "--data", data, *coloured)
    assert [item["source"] for item in embedded[0]["items"]] == ["box", "region", "region"]
    assert audit["dropped"] == {"too_few_pixels": 1} and embedded[0]["items"][2]["vector"] == 2
    base = ("--data", tmp_path / "embed.jsonl", "--database", tmp_path / "db")
    assert "no threshold" in synth_step("retrieve", *base, code=2)
    lines, audit = synth_step("retrieve", *base, "--threshold", 0.95)
    box, found = lines[0]["objects"]
    # A detector's label stays, with what its neighbours say of it.
    assert (box["label"], box["by"], box["agree"]) == ("bush", "detector", [4, 5])
    assert {hit["name"] for hit in box["hits"][:4]} == {"cone"}
    assert (found["label"], found["by"], found["agree"]) == ("sign", "retrieval", [4, 5]) and found["margin"] > 0.1
    assert found["rle"] == line["regions"][0]["rle"]
    # Violet is nearest to blue, and no sign.
    assert [item["box"] for item in lines[0]["unknown"]] == [[120, 10, 150, 40]] and audit["counts"]["unknown"] == 1
    checked, audit = synth_step("retrieve", *base, "--threshold", 0.95, "--boxes", "check", out="checked.jsonl")
    assert [item["label"] for item in checked[0]["objects"]] == ["sign"]
    assert audit["dropped"] == {"another_name_than_the_detectors": 1} and len(checked[0]["unknown"]) == 2
    if importlib.util.find_spec("faiss"):
        again, _ = synth_step("retrieve", *base, "--threshold", 0.95, "--search", "faiss", out="faiss.jsonl")
        assert again[0]["objects"] == lines[0]["objects"]


def test_a_threshold_is_found_on_other_scenes_and_used(
    coloured: tuple, named: Path, synth_step: Callable, run_here: Callable, tmp_path: Path
) -> None:
    base = tmp_path / "db"
    assert run_here("tools/synth_database.py", "--data", named, *coloured, "--out", base).returncode == 0
    (tmp_path / "held").mkdir()
    things: list[tuple[Any, list[int]]] = [
        ("cone", [10, 10, 30, 40]),
        ("sign", [60, 10, 90, 40]),
        ((200, 20, 200), [120, 10, 150, 40]),
    ]
    scene(tmp_path / "held" / "h.png", things)
    held = tmp_path / "held" / "boxes.jsonl"
    held.write_text(boxes_line("h.png", [("cone", things[0][1]), ("sign", things[1][1]), ("balloon", things[2][1])]))
    synth_step("embed", "--data", held, *coloured, out="held.jsonl")
    words = ("--database", base, "--calibrate", tmp_path / "held.jsonl", "--precision", 1)
    done = run_here("tools/synth_retrieve.py", *words)
    assert done.returncode == 0, done.stderr
    assert "of 3 crops (2 with a name of the data base) 2 get a name, 2 of them the right one" in done.stdout
    found = json.loads((base / "calibration.json").read_text())
    lines, _ = synth_step("retrieve", "--data", tmp_path / "held.jsonl", "--database", base)
    settings = json.loads((tmp_path / "retrieve.jsonl.settings.json").read_text())
    assert settings["settings"]["threshold"] == found["threshold"] and len(lines[0]["objects"]) == 3
    again = ("--data", tmp_path / "held.jsonl", "--database", base, "--agree", 2)
    assert "agree: 3 then, 2 now" in synth_step("retrieve", *again, out="other.jsonl", code=2)
    # Another data base in its place has no threshold yet.
    (named / "cone" / "0.png").unlink()
    shutil.rmtree(base)
    assert run_here("tools/synth_database.py", "--data", named, *coloured, "--out", base).returncode == 0
    assert "no threshold" in synth_step("retrieve", *again[:4], out="other.jsonl", code=2)


def test_a_data_base_of_another_embedder_is_refused(
    coloured: tuple, named: Path, synth_step: Callable, run_here: Callable, tmp_path: Path
) -> None:
    base = tmp_path / "db"
    assert run_here("tools/synth_database.py", "--data", named, *coloured, "--out", base).returncode == 0
    other = tmp_path / "other"
    shutil.copytree(coloured[1], other)
    (other / "config.json").write_text('{"model_type": "siglip", "size": 2}')
    (tmp_path / "data").mkdir()
    scene(tmp_path / "data" / "a.png", [("cone", [10, 10, 30, 40])])
    data = tmp_path / "data" / "boxes.jsonl"
    data.write_text(boxes_line("a.png", [("cone", [10, 10, 30, 40])]))
    synth_step("embed", "--data", data, "--model", other, out="other.jsonl")
    words = ("--database", base, "--threshold", 0.5)
    error = synth_step("retrieve", "--data", tmp_path / "other.jsonl", *words, code=2)
    assert "was built by another embedder" in error and "synth_database.py" in error
    synth_step("embed", "--data", data, *coloured, "--context", 0.3, out="wide.jsonl")
    assert "context: 0.1 then, 0.3 now" in synth_step("retrieve", "--data", tmp_path / "wide.jsonl", *words, code=2)
    assert "not a file of synth_embed.py" in synth_step("retrieve", "--data", data, *words, code=2)
    assert "no data base in it" in synth_step(
        "retrieve", "--data", data, "--database", named, "--threshold", 0.5, code=2
    )


def test_the_leak_check_finds_planted_crops_and_says_how(
    coloured: tuple, named: Path, run_here: Callable, tmp_path: Path
) -> None:
    held = tmp_path / "held"
    held.mkdir()
    scene(held / "e.png", [((250, 240, 10), [10, 10, 60, 60])])
    scene(held / "f.png", [((10, 240, 250), [10, 10, 60, 60])])
    rows = held / "boxes.jsonl"
    rows.write_text(boxes_line("e.png", [("taxi", [10, 10, 60, 60])], "scene-1") + boxes_line("f.png", [], "scene-2"))
    words = ("--data", named, *coloured, "--against", rows, "--out")
    clean = run_here("tools/synth_database.py", *words, tmp_path / "clean")
    assert clean.returncode == 0 and "leaks by look-alike, left out" in clean.stdout
    # An evaluation crop that was cut out and stored as JPEG: only what it shows tells.
    (named / "taxi").mkdir()
    Image.open(held / "e.png").crop((12, 12, 50, 50)).save(named / "taxi" / "cut.jpg", quality=80)
    # A whole evaluation picture under another name.
    shutil.copy(held / "f.png", named / "cone" / "copy.png")
    done = run_here("tools/synth_database.py", *words, tmp_path / "leaky")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "2 of the crops are of evaluation pictures (0 by group, 1 by content, 1 by look-alike)" in done.stderr
    assert not (tmp_path / "leaky" / "settings.json").exists()
    done = run_here("tools/synth_database.py", *words, tmp_path / "leaky", "--on_leak", "skip")
    assert done.returncode == 0, done.stderr
    leaks = {leak["kind"]: (leak["image"], leak["held_out"]) for leak in lines_of(tmp_path / "leaky" / "leaks.jsonl")}
    assert leaks == {"content": ("cone/copy.png", "f.png"), "look-alike": ("taxi/cut.jpg", "e.png")}
    assert "taxi" not in {row["name"] for row in lines_of(tmp_path / "leaky" / "names.jsonl")}
    # A crop of a training picture of an evaluation scene.
    train = tmp_path / "train"
    train.mkdir()
    scene(train / "t.png", [("cone", [10, 10, 60, 60])])
    (train / "boxes.jsonl").write_text(boxes_line("t.png", [("cone", [10, 10, 60, 60])], "scene-2"))
    more = ("--data", train / "boxes.jsonl", *coloured, "--against", rows, "--out", tmp_path / "same")
    assert "(1 by group, 0 by content, 0 by look-alike)" in run_here("tools/synth_database.py", *more).stderr


def test_vectors_survive_kills_shards_and_repeats(
    coloured: tuple, synth_step: Callable, run_here: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from drive_vlm.builders.synthesis import embed
    from drive_vlm.builders.synthesis import step as engine

    (tmp_path / "data").mkdir()
    rows = ""
    for i, colour in enumerate([*COLOURS, *COLOURS]):
        scene(tmp_path / "data" / f"{i}.png", [(colour, [10, 10, 40, 40]), ("sign", [60, 5, 80 + i, 50])])
        rows += boxes_line(f"{i}.png", [(colour, [10, 10, 40, 40]), ("sign", [60, 5, 80 + i, 50])][: 1 + i % 2])
    data = tmp_path / "data" / "boxes.jsonl"
    data.write_text(rows)
    words = ("--data", data, *coloured, "--batch_size", 1)
    synth_step("embed", *words, out="whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_text(), (tmp_path / "whole.jsonl.vectors.npy").read_bytes()
    for i in range(2):
        assert (
            run_here("tools/synth_embed.py", *words, "--out", tmp_path / "parts.jsonl", "--shard", f"{i}/2").returncode
            == 0
        )
    shards = sorted(tmp_path.glob("parts.shard-??-of-02.jsonl"))
    synth_step("embed", "--merge", *shards, out="parts.jsonl")
    assert whole == ((tmp_path / "parts.jsonl").read_text(), (tmp_path / "parts.jsonl.vectors.npy").read_bytes())
    out, vectors = tmp_path / "out.jsonl", tmp_path / "out.jsonl.vectors.npy"
    synth_step("embed", *words, "--limit", 3, out="out.jsonl")
    # A kill between the vectors and the lines that name them.
    monkeypatch.setattr(engine, "write_lines", lambda path, lines: (list(lines), exec("raise ValueError('killed')")))
    assert "killed" in synth_step("embed", *words, out="out.jsonl", code=2)
    assert vectors.is_file() and not out.exists()
    monkeypatch.undo()
    monkeypatch.setattr(sys.modules["drive_vlm.builders.synthesis.embedders"], "open_embedder", None)
    # Nothing is embedded again.
    synth_step("embed", *words, out="out.jsonl")
    assert whole == (out.read_text(), vectors.read_bytes()) and not list(tmp_path.glob("out.jsonl.part*"))
    found = np.load(vectors)
    assert found.dtype == np.float16 and np.abs(np.linalg.norm(found.astype(np.float32), axis=1) - 1).max() < 1e-3
    assert embed.open_vectors(out).shape == (9, 3)


@pytest.mark.parametrize("kind", ["dinov2", "siglip", "open_clip"])
def test_embedders_of_the_real_classes(kind: str, synth_step: Callable, tmp_path: Path, random_clip: Path) -> None:
    import torch
    import transformers as hf

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
    if kind == "open_clip":
        words: tuple[object, ...] = ("--clip_model", random_clip)
    else:
        size = {"height": 32, "width": 32}
        if kind == "dinov2":
            hf.Dinov2Model(hf.Dinov2Config(**sizes)).save_pretrained(tmp_path / "m")
            hf.BitImageProcessor(size=size, crop_size=size).save_pretrained(tmp_path / "m")
        else:
            text = {
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "vocab_size": 32,
            }
            hf.SiglipModel(
                hf.SiglipConfig(text_config=text, vision_config=sizes | {"intermediate_size": 32})
            ).save_pretrained(tmp_path / "m")
            hf.SiglipImageProcessor(size=size).save_pretrained(tmp_path / "m")
        words = ("--model", tmp_path / "m")
    mask = np.zeros((64, 96), dtype=bool)
    mask[10:40, 20:50] = True
    line = json.loads(boxes_line("0.png", [("car", [5, 5, 60, 60])])) | {"regions": [region(mask, [20, 10, 50, 40])]}
    noise = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "0.png")
    (tmp_path / "boxes.jsonl").write_text(json.dumps(line) + "\n")
    lines, _ = synth_step("embed", "--data", tmp_path / "boxes.jsonl", *words)
    vectors = np.load(tmp_path / "embed.jsonl.vectors.npy").astype(np.float32)
    assert vectors.shape == (2, 16) and np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-3
    assert [item["vector"] for item in lines[0]["items"]] == [0, 1] and np.abs(vectors[0] - vectors[1]).max() > 1e-3


def test_a_region_is_seen_with_its_background_and_without() -> None:
    from drive_vlm.builders.synthesis.embed import crop_views
    from drive_vlm.builders.synthesis.rle import encode_rle

    picture = Image.new("RGB", (100, 50), (10, 20, 30))
    mask = np.zeros((50, 100), dtype=bool)
    mask[10:20, 40:60] = True
    whole, alone = crop_views(picture, [40, 10, 60, 20], encode_rle(mask), 0.1)
    # 20 x 10 with a tenth on each side is 24 x 12, in the middle of a square.
    assert whole.size == alone.size == (24, 24)
    pixels = np.asarray(alone)
    assert (pixels == (10, 20, 30)).all(axis=2).sum() == 200 and (pixels[:7] == 127).all()
    assert (np.asarray(whole) == (10, 20, 30)).all(axis=2).sum() == 24 * 12
    # At the picture's edge a crop ends, and a box thinner than a pixel still has one.
    assert crop_views(picture, [99.5, 0, 100, 0.2], None, 0.1)[0].size == (1, 1)


@pytest.mark.kit
@pytest.mark.slow
def test_real_pictures_from_boxes_to_names(synth_step: Callable, run_here: Callable, kit: Path, tmp_path: Path) -> None:
    """YOLOv8n's boxes on real pictures, DINOv2-S crops, a data base of the first pictures, names for the others."""
    folder = tmp_path / "real"
    folder.mkdir()
    for path in sorted((kit / "noncommercial" / "bdd100k").glob("*.jpg"))[:4]:
        Image.open(path).resize((640, 360)).save(folder / path.name)
    synth_step("detect", "--data", folder, "--yolo", kit / "models" / "yolov8n.pt", "--threshold", 0.6)
    dino = ("--model", kit / "models" / "dinov2-small", "--least_side", 16)
    lines = lines_of(tmp_path / "detect.jsonl")
    for name, part in (("base.jsonl", lines[:3]), ("query.jsonl", lines[3:])):
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in part))
    root = ("--image_root", folder)
    base = run_here(
        "tools/synth_database.py", "--data", tmp_path / "base.jsonl", *root, *dino, "--out", tmp_path / "db"
    )
    assert base.returncode == 0, base.stderr
    synth_step("embed", "--data", tmp_path / "query.jsonl", *root, *dino)
    found, _ = synth_step(
        "retrieve", "--data", tmp_path / "embed.jsonl", "--database", tmp_path / "db", "--threshold", 0.3
    )
    looked = [item for item in found[0]["objects"] if item["hits"]]
    assert looked and all(item["label"] == "car" and item["hits"][0]["name"] == "car" for item in looked)
