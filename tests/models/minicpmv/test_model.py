"""Counts of the published checkpoints, and what is refused with one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from drive_vlm.config import ModelConfig
from drive_vlm.data.encoder import Encoder
from drive_vlm.data.samples import parse_row
from drive_vlm.data.turns import BadRow
from drive_vlm.models import load_family, load_processor, model_on_meta
from drive_vlm.models.minicpmv.tower import buckets, position_ids
from drive_vlm.models.minicpmv.versions import version_of
from drive_vlm.plan.model_sizes import all_shipped

PARTS = {
    "minicpm_v_8b": (741, 8_537_092_336, 6_979_588_096, 525_336_576, 417_792_240, 89_038_848),
    # With the biases of q, k and v of 28 layers.
    "minicpm_v_2_6": (789, 8_099_175_152, 6_525_621_760, 543_570_944, 417_792_240, 68_619_264),
}


@pytest.mark.parametrize("name", PARTS)
def test_sizes_are_the_published_ones(name: str, published_names: Callable) -> None:
    """Tensors and parameters of each part, on the meta device, under the names of the checkpoint."""
    model = model_on_meta(ModelConfig(model=name), all_shipped()[name]["config"]).model
    sizes = {theirs: model.get_parameter(ours).numel() for theirs, ours in published_names(model).items()}

    def part(begin: str) -> int:
        return sum(size for theirs, size in sizes.items() if theirs.startswith(begin))

    tensors, total, layers, words, tower, resampler = PARTS[name]
    assert (len(sizes), sum(sizes.values())) == (tensors, total)
    assert part("llm.model.layers.") + part("llm.model.norm.") == layers
    assert part("llm.model.embed_tokens.") == part("llm.lm_head.") == words
    assert (part("vpm."), part("resampler.")) == (tower, resampler)
    queries = {"minicpm_v_8b": (96, 4096), "minicpm_v_2_6": (64, 3584)}[name]
    assert tuple(model.model.vision.resampler.query.shape) == queries


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        ({"version": "2.0"}, r"MiniCPM-V-2\.0 \(version 2\.0"),
        ({"vision_encoder": "vit_so400m"}, r"MiniCPM-V-2\.0 or older"),
        ({"version": 4.0, "vision_config": {"model_type": "siglip_vision_model"}}, r"MiniCPM-V-4 "),
        ({"version": "4.5", "vision_config": {"model_type": "siglip"}}, r"MiniCPM-V-4\.5"),
        ({"version": "2.6", "vision_config": {"model_type": "siglip"}, "init_audio": True}, r"MiniCPM-o-2\.6"),
        ({"version": "2.5", "vision_config": {"model_type": "siglip"}}, r"version 2\.5, tower siglip"),
    ],
)
def test_other_models_of_the_model_type_are_refused_by_name(stored: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        version_of(stored)
    assert version_of({"vision_config": {"model_type": "siglip_vision_model"}}).name == "2.6"


def test_another_version_is_refused_before_its_weights_are_read(tiny_families: Callable, tmp_path: Path) -> None:
    path = shutil.copytree(tiny_families("minicpmv"), tmp_path / "other")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"version": "4.0"}))
    with pytest.raises(ValueError, match=r"MiniCPM-V-4 .*Supported are MiniCPM-Llama3-V-2_5"):
        load_family(ModelConfig(model=str(path)), torch.float32)
    with pytest.raises(ValueError, match="MiniCPM-V-4 "):
        model_on_meta(ModelConfig(model=str(path)))


def test_a_checkpoint_with_a_missing_tensor_is_refused(tiny_families: Callable, tmp_path: Path) -> None:
    path = shutil.copytree(tiny_families("minicpmv"), tmp_path / "short")
    weights = load_file(path / "model.safetensors")
    del weights["resampler.ln_kv.bias"]
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ValueError, match=r"lacks 1 tensors of the model, such as model\.vision\.resampler\.ln_kv\.bias"
    ):
        load_family(ModelConfig(model=str(path)), torch.float32)


def test_positions_of_2_6_go_by_row_and_column() -> None:
    ids = position_ids([(3, 4), (2, 2)], 12, 70, True)
    rows, columns = buckets(3, 70), buckets(4, 70)
    assert ids[0].tolist() == [row * 70 + column for row in rows.tolist() for column in columns.tolist()]
    assert ids[1].tolist() == [0, 35, 35 * 70, 35 * 70 + 35] + [0] * 8


def test_copies_of_a_row_keep_its_slices(tiny_families: Callable) -> None:
    """Two rows of 1 and 5 slices, asked for twice each: every copy answers as its row does alone."""
    family = load_family(ModelConfig(model=str(tiny_families("minicpmv"))), torch.float32)
    processor, model = family.processor, family.model.eval()
    pictures = [Image.effect_noise(size, 80).convert("RGB") for size in ((40, 50), (112, 112))]
    texts = ["a" + processor.image_token + "b"] * 2
    said = []
    for chosen in ([0], [1], [0, 1]):
        chosen_texts = [texts[i] for i in chosen]
        words = {"return_tensors": "pt", "padding": True, "add_special_tokens": False}
        batch = processor(text=chosen_texts, images=[pictures[i] for i in chosen], **words)
        copies = {"num_return_sequences": 2, "num_beams": 2} if len(chosen) == 2 else {"num_beams": 2}
        out = model.generate(**batch, max_new_tokens=5, min_new_tokens=5, do_sample=False, **copies)
        said.append(out[:, batch["input_ids"].shape[1] :].tolist())
    assert said[2][0] == said[0][0] and said[2][2] == said[1][0]


def test_rows_at_the_limits(tiny_families: Callable, tmp_path: Path) -> None:
    """A picture of one pixel is read; ten pictures share the slices that --max_tiles allows; a row that does not fit is named."""
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    Image.new("RGB", (112, 112)).save(tmp_path / "square.png")

    def row(*images: str) -> Any:
        words = [{"from": "human", "value": "<image>\n" * len(images) + "Go?"}, {"from": "gpt", "value": "no"}]
        return parse_row(
            {"id": "1", "image": list(images), "conversations": words}, "rows.jsonl:1", str(tmp_path), True
        )

    def encoder(most: int | None, longest: int | None = None) -> Encoder:
        parts = load_processor(ModelConfig(model=str(tiny_families("minicpmv")), max_tiles=most))
        return Encoder(parts.tokenizer, parts.template, parts.vision, max_length=longest)

    dot = encoder(None).encode(row("dot.png"))["vision"]
    assert dot["tgt_sizes"].tolist() == [[8, 8]]
    ten = row(*["square.png"] * 10)
    assert len(encoder(None).encode(ten)["vision"]["tgt_sizes"]) == 50
    assert len(encoder(9).encode(ten)["vision"]["tgt_sizes"]) == 10
    with pytest.raises(
        BadRow, match=r"rows\.jsonl:1: the row has \d+ tokens, more than --max_length 200.*lower --max_tiles"
    ):
        encoder(None, 200).encode(ten)
