"""Rows and an encoder of the tiny model, for the tests of the data path."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="session")
def parts(tiny_model: Path) -> Any:
    """ProcessorParts of the tiny model: processor, tokenizer, template, vision."""
    from drive_vlm.config import ModelConfig
    from drive_vlm.models import load_processor

    return load_processor(ModelConfig(model=str(tiny_model)))


@pytest.fixture
def encoder(parts: Any) -> Any:
    from drive_vlm.data.encoder import Encoder

    return Encoder(parts.tokenizer, parts.template, parts.vision, num_frames=4)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with wide.png (120 x 50), tall.jpg (40 x 100), square.png (56 x 56), clip/ of 6 frames and empty/ of none."""
    from PIL import Image

    random = np.random.default_rng(0)
    sizes = {"wide.png": (120, 50), "tall.jpg": (40, 100), "square.png": (56, 56)}
    sizes |= {f"clip/{i}.png": (60, 40) for i in range(6)}
    for folder in ("clip", "empty"):
        (tmp_path / folder).mkdir()
    for name, (width, height) in sizes.items():
        Image.fromarray(random.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(tmp_path / name)
    return tmp_path


@pytest.fixture
def write_rows(pictures: Path) -> Callable[..., Path]:
    """`write_rows(rows, name="rows.jsonl")` beside the pictures; a row is a dict, or bytes as they shall stand in the file."""

    def write(rows: list[dict | bytes], name: str = "rows.jsonl") -> Path:
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        (pictures / name).write_bytes(b"".join(line + b"\n" for line in lines))
        return pictures / name

    return write


@pytest.fixture
def good_row() -> dict[str, Any]:
    turns = [{"from": "human", "value": "<image>\nWhat is ahead?"}, {"from": "gpt", "value": "a truck"}]
    return {"id": "good", "image": "square.png", "conversations": turns}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory of this test alone."""
    path = tmp_path / "cache"
    monkeypatch.setenv("DRIVE_VLM_CACHE", str(path))
    yield path
    shutil.rmtree(path, ignore_errors=True)
