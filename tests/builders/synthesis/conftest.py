"""What the tests of synthesis share: rows to change, a reader of texts, pictures, steps that need no model."""

import argparse
import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from drive_vlm.builders.synthesis.gates.candidate import Candidate, SourceObject
from drive_vlm.rewards.text import driving_text
from drive_vlm.rewards.text.open_names import OpenNames


@pytest.fixture
def row() -> Callable[..., Candidate]:
    """`row(question="...", objects=[("car", box)], region=("car", box), ...)`: a candidate of a picture of 900 x 450 pixels."""

    def make(**changes: Any) -> Candidate:
        objects = tuple(SourceObject(box, label) for label, box in changes.pop("objects", []))
        region = changes.pop("region", None)
        values: dict[str, Any] = {
            "id": "a-0",
            "where": "q.jsonl:1: row 0",
            "image": "a.png",
            "path": "a.png",
            "group": "g",
            "size": (900, 450),
            "task": "vqa",
            "question": "What is ahead of us?",
            "answer": "A road.",
            "objects": objects,
            "region": None if region is None else SourceObject(region[1], region[0]),
        }
        return Candidate(**(values | changes))

    return make


@pytest.fixture(scope="session")
def open_names(spacy_model: str) -> Callable[..., OpenNames]:
    """`open_names(names)`: an OpenNames; all share one pipeline of spaCy, which takes a second to load."""
    nlp = driving_text.load_spacy(spacy_model)

    def make(names: Iterable[str] | None) -> OpenNames:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(driving_text, "load_spacy", lambda model: nlp)
            return OpenNames(names, spacy_model)

    return make


@pytest.fixture(scope="session")
def coco_reader(open_names: Callable[..., OpenNames]) -> OpenNames:
    """Reads texts for a detector of COCO's classes."""
    return open_names(None)


@pytest.fixture(scope="session")
def reader_of(open_names: Callable[..., OpenNames]) -> Callable[..., OpenNames]:
    """`reader_of("car", "traffic cone")`: reads texts for sources that can see these names."""
    return lambda *names: open_names(names)


@pytest.fixture(scope="session")
def draw() -> Callable[..., Image.Image]:
    """`draw(seed)`: a picture of 320 x 160 pixels with boxes of any colour; of different seeds no two are alike."""

    def make(seed: int, size: tuple[int, int] = (320, 160)) -> Image.Image:
        rng, picture = random.Random(seed), Image.new("RGB", size, (90, 90, 90))
        pen = ImageDraw.Draw(picture)
        for _ in range(12):
            x, y = rng.randrange(size[0]), rng.randrange(size[1])
            colour = tuple(rng.randrange(256) for _ in range(3))
            pen.rectangle([x, y, x + rng.randrange(10, 80), y + rng.randrange(10, 60)], fill=colour)
        return picture

    return make


@pytest.fixture
def picture_files(tmp_path: Path, draw: Callable[..., Image.Image]) -> Callable[..., dict[str, str]]:
    """`picture_files("a", "b")`: name -> path of pictures that differ."""

    def make(*names: str) -> dict[str, str]:
        paths = {}
        for seed, name in enumerate(names):
            paths[name] = str(tmp_path / f"{name}.png")
            draw(seed).save(paths[name])
        return paths

    return make


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of six pictures of 40 x 30 pixels, each of one grey."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(6):
        Image.new("RGB", (40, 30), (40 * i, 40 * i, 40 * i)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def flags(pictures: Path, tmp_path: Path) -> Callable[..., argparse.Namespace]:
    """`flags(out="a.jsonl", shard="0/2")`: what step_flags gives, over `pictures`."""

    def make(out: str = "out.jsonl", **more: Any) -> argparse.Namespace:
        usual = {"data": [str(pictures)], "image_root": None, "group_by_folder": False, "batch_size": 2, "limit": None}
        usual |= {"shard": None, "merge": [], "on_bad_row": "error", "out": str(tmp_path / out)}
        return argparse.Namespace(**usual | more)

    return make


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]
