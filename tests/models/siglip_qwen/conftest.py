"""The tiny video model, encoded rows of every kind, and batches of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from drive_vlm.config import ModelConfig
from drive_vlm.data.collate import Collator
from drive_vlm.data.encoder import Encoder
from drive_vlm.data.samples import parse_row
from drive_vlm.models import load_family
from drive_vlm.models.family import Family

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def family(tiny_video_model: Path) -> Family:
    """Loaded once; tests that change weights copy them back."""
    loaded = load_family(ModelConfig(model=str(tiny_video_model)), torch.float32)
    loaded.model.eval()
    return loaded


@pytest.fixture(scope="module")
def raw(synthetic_data: Path) -> Rows:
    """A clip of 4 frames, a text, one picture, two pictures, another clip."""
    clips = [json.loads(line) for line in (synthetic_data / "clips_train.jsonl").read_text().splitlines()]
    scenes = [json.loads(line) for line in (synthetic_data / "train.jsonl").read_text().splitlines()]
    text = {"id": "text", "conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "the car"}]}
    words = [{"from": "human", "value": "<image>\n<image>\nWhich?"}, {"from": "gpt", "value": "the second"}]
    images = sorted({row["image"] for row in scenes})[:2]
    other = next(row for row in clips if row["video"] != clips[0]["video"])
    return [clips[0], text, scenes[0], {"id": "two", "image": images, "conversations": words}, other]


@pytest.fixture(scope="module")
def encode(family: Family, synthetic_data: Path) -> Callable[..., Rows]:
    """`encode(raw, prompt=False)`: rows as the data path has them, four frames of a video."""

    def run(raw: Rows, prompt: bool = False) -> Rows:
        encoder = Encoder(family.tokenizer, family.template, family.vision, 4)
        return [encoder.encode(parse_row(row, "rows.jsonl:1", str(synthetic_data)), prompt=prompt) for row in raw]

    return run


@pytest.fixture(scope="module")
def rows(raw: Rows, encode: Callable) -> Rows:
    return encode(raw)


@pytest.fixture(scope="module")
def batch_of(family: Family) -> Callable[..., dict[str, Any]]:
    """`batch_of(sequences, packed=False)`: what the model is given for lists of encoded rows."""

    def run(sequences: list[Rows], packed: bool = False) -> dict[str, Any]:
        batch = Collator(family.tokenizer.pad_token_id, family.vision, packed)(sequences)
        return {key: value for key, value in batch.items() if isinstance(value, torch.Tensor)}

    return run


@pytest.fixture(scope="module")
def with_features(family: Family) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The same batch with the tower's output in the place of pixels."""

    def run(inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = dict(inputs)
        with torch.no_grad():
            inputs["vision_features"] = family.model.model.tower_features(inputs.pop("pixel_values"))
        return inputs

    return run
