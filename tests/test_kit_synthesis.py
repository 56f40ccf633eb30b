"""Thirty real driving pictures through all steps of tools/synthesize.py: YOLOv8n, DINOv2-S, our knowledge, SmolLM2-135M as the teacher.

SmolLM2 sees no picture and does not keep to a schema: what is proved is that the line works with real parts, that each reply is used or counted
by reason, and that a second run pays nothing. It writes about three of the pictures (all thirty take six minutes), the others go as far as the
facts about what was found.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.kit]
PICTURES, WRITTEN = 30, 3


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.timeout(1200)
def test_thirty_real_pictures_end_to_end(
    run: Callable, kit: Path, smollm2_server: Any, spacy_model: str, tmp_path: Path
) -> None:
    named, frames = tmp_path / "named", tmp_path / "frames"
    for folder in (named, frames):
        folder.mkdir()
    # Names come from the pictures of another scene.
    for path in sorted((kit / "noncommercial/drivelm").rglob("*.jpg"))[:12]:
        shutil.copy(path, named / path.name)
    sources = (
        "permissive/udacity",
        "noncommercial/bdd100k",
        "noncommercial/bddoia",
        "copyleft/coco8",
        "permissive/comma2k19",
    )
    found = [path for source in sources for path in sorted((kit / source).rglob("*.jpg"))][:PICTURES]
    assert len(found) == PICTURES
    for i, path in enumerate(found):
        shutil.copy(path, frames / f"{i:02}-{path.name}")
    yolo = {"yolo": str(kit / "models/yolov8n.pt"), "imgsz": 320}
    detect = [
        sys.executable,
        "tools/synth_detect.py",
        "--data",
        named,
        "--yolo",
        yolo["yolo"],
        "--imgsz",
        320,
        "--out",
        tmp_path / "named.jsonl",
    ]
    assert run(detect).returncode == 0
    dino = str(kit / "models/dinov2-small")
    server = {"model": "SmolLM2-135M", "base_url": smollm2_server.url, "workers": 1, "attempts": 1, "max_tokens": 40}
    plan = {
        "data": [str(frames)],
        "steps": {
            "database": {"data": [str(tmp_path / "named.jsonl")], "model": dino, "against": [str(frames)]},
            "knowledge": {"data": [str(ROOT / "tools/prompts/synthesis/road_objects.jsonl")]},
            "detect": yolo,
            "embed": {"model": dino},
            "retrieve": {"boxes": "keep", "threshold": 0.7},
            "describe": {},
            "caption": server | {"with_objects": True},
            "refine": server | {"spacy_model": spacy_model},
            "questions": server | {"rows_a_picture": 1},
            "gate": {"spacy_model": spacy_model, "text_processes": 1},
        },
    }
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    out = tmp_path / "out"
    command = [sys.executable, "tools/synthesize.py", "--plan", tmp_path / "plan.json", "--out", out]
    looked = [*command, "--steps", "database..describe"]
    done = run(looked, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    boxes = [box for line in lines(out / "detect.jsonl") for box in line["boxes"]]
    assert len(boxes) > 30 and {"car"} <= {box["label"] for box in boxes}
    for name in ("detect", "embed", "retrieve", "describe"):
        assert len(lines(out / f"{name}.jsonl")) == PICTURES, name
    described = {label: text for line in lines(out / "describe.jsonl") for label, text in line["descriptions"].items()}
    assert described["car"]["title"].lower() == "car" and described["car"]["licence"]
    again = run(looked, timeout=600)
    assert again.stdout.count("finished before") == 6 and not smollm2_server.requests, again.stdout

    written = [*command, "--preview", WRITTEN]
    done = run(written, timeout=600)
    asked = lines(out / "preview/questions.jsonl")
    rows = [row for line in asked for row in line["rows"]]
    # The gate ends with 1 where no row is left to train on.
    assert done.returncode == (0 if rows else 1), done.stdout[-3000:] + done.stderr[-3000:]
    used, rejected = (lines(out / f"preview/gate/{name}.jsonl") for name in ("rows", "rejected"))
    # Nothing vanishes: a question has a row, or a reply that could not be read is counted; a row is used, or rejected by a gate.
    assert len(asked) == WRITTEN and len(used) + len(rejected) == len(rows)
    assert all(line["rows"] or line["unread"] or line["given_up"] for line in asked), asked
    assert (out / "preview/gate/sample.html").stat().st_size > 1000
    paid = len(smollm2_server.requests)
    assert paid >= 2 * WRITTEN
    run(written, timeout=600)
    assert len(smollm2_server.requests) == paid
