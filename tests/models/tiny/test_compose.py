"""An InternVL composed of a DINOv2 tower and a Llama, tiny and random: what is saved must come back as it was."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drive_vlm.config import ModelConfig
from drive_vlm.models import load_family, model_on_meta
from drive_vlm.models.tiny.tiny import train_tokenizer

STATISTICS = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Path, Any, Any]:
    """(directory of a DINOv2 tower, Llama, tokenizer without picture tokens)."""
    import torch
    from transformers import Dinov2Config, Dinov2Model, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tower = tmp_path / "tower"
    Dinov2Model(
        Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=70, patch_size=14)
    ).save_pretrained(tower)
    (tower / "preprocessor_config.json").write_text(json.dumps(STATISTICS))
    tokenizer = train_tokenizer(["the car stops at the red light"] * 3, 400)
    language = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=True,
        )
    )
    return tower, language, tokenizer


def test_the_parts_come_back_with_their_weights(
    tmp_path: Path, parts: tuple[Path, Any, Any], compose_internvl: Callable[..., Path]
) -> None:
    import torch
    from transformers import AutoModel

    tower_dir, language, tokenizer = parts
    ids = tokenizer("the car stops", return_tensors="pt").input_ids
    expected = language.eval()(ids).logits
    out = compose_internvl(tmp_path / "vlm", tower_dir, language, tokenizer, image_size=56)
    family = load_family(ModelConfig(model=str(out)), torch.float32)
    family.model.eval()
    pixels = torch.randn(2, 3, 56, 56)
    tower = AutoModel.from_pretrained(tower_dir).eval()
    assert type(family.model.model.vision_tower).__name__ == "Dinov2Model"
    assert type(family.model.model.language_model).__name__ == "LlamaModel"
    same = family.model.model.vision_tower(pixels).last_hidden_state
    assert torch.equal(same, tower(pixels).last_hidden_state)
    assert torch.allclose(family.model(input_ids=ids).logits[..., : expected.shape[-1]], expected, atol=1e-5)
    assert family.model.get_image_features(pixels).pooler_output.shape == (2, 4, 32)  # 4 x 4 patches, shuffled 2 x 2
    assert family.model.lm_head.weight is family.model.get_input_embeddings().weight
    assert family.processor.image_seq_length == 4
    assert list(family.processor.image_processor.image_mean) == STATISTICS["image_mean"]
    assert family.tokenizer.convert_ids_to_tokens(family.model.config.image_token_id) == "<IMG_CONTEXT>"


def test_a_second_save_keeps_the_tower(
    tmp_path: Path, parts: tuple[Path, Any, Any], compose_internvl: Callable[..., Path]
) -> None:
    import torch

    out = compose_internvl(tmp_path / "vlm", *parts, image_size=56)
    family = load_family(ModelConfig(model=str(out)), torch.float32)
    family.model.save_pretrained(tmp_path / "again")
    config = model_on_meta(ModelConfig(model=str(tmp_path / "again"))).model.config
    assert config.vision_config.model_type == "dinov2" and config.vision_config.hidden_size == 32
    text = (tmp_path / "again" / "config.json").read_text()
    assert str(tmp_path) not in text  # no path of the machine that composed it
