"""What the tests of the synthesis steps share: a few pictures, and a step that needs no model."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image


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
