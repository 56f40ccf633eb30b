"""Activation bytes by formula against what autograd really keeps in a small model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import drive_vlm  # noqa: F401
from drive_vlm.config import ModelConfig
from drive_vlm.plan.activations import Batch, activations
from drive_vlm.plan.lookup import load_sizes
from drive_vlm.plan.model_sizes import ModelSizes

CONFIG = {
    "model_type": "internvl",
    "downsample_ratio": 0.5,
    "image_seq_length": 16,
    "vision_config": {
        "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 256,
        "image_size": [56, 56], "patch_size": [7, 7],
    },
    "text_config": {
        "model_type": "qwen2", "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 512, "vocab_size": 300, "tie_word_embeddings": False,
    },
}  # fmt: skip


def sizes_of(folder: Path, config: dict[str, Any], tokens: int, freeze: list[str]) -> ModelSizes:
    """The sizes of a model that is a config.json and the numbers of a processor."""
    pixels = {"size": {"height": 56, "width": 56}, "max_patches": 1}
    processor = {
        "image_seq_length": tokens,
        "max_frames": config.get("max_frames"),
        "image_processor": pixels,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "processor_config.json").write_text(json.dumps(processor))
    return load_sizes(ModelConfig(model=str(folder), freeze=freeze))


def kept_bytes(dtype: torch.dtype, freeze_tower: bool, checkpointing: bool) -> int:
    """What autograd saves of InternVL's body, in bytes."""
    import transformers

    torch.manual_seed(0)
    config = transformers.InternVLConfig(**{k: v for k, v in CONFIG.items() if k != "model_type"}, image_token_id=299)
    model = transformers.InternVLForConditionalGeneration(config).to(dtype).train()
    model.model.vision_tower.requires_grad_(not freeze_tower)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.disable_input_require_grads()
    ids = torch.randint(0, 298, (1, 256))
    ids[0, :16] = 299
    return saved_bytes(
        model, {"input_ids": ids, "pixel_values": torch.zeros(1, 3, 56, 56, dtype=dtype), "use_cache": False}
    )


def saved_bytes(model: Any, inputs: dict[str, Any]) -> int:
    """Bytes of all distinct storages that autograd saves in one forward pass of `model.model`, weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Any] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            # Held, so that no address comes twice.
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.model(**inputs)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("freeze_tower", "checkpointing"), [(True, False), (False, False), (True, True)])
def test_what_autograd_keeps_is_what_the_formula_says(
    dtype: torch.dtype, freeze_tower: bool, checkpointing: bool, tmp_path: Path
) -> None:
    sizes = sizes_of(tmp_path, CONFIG, 16, ["vision_tower"] if freeze_tower else [])
    planned = activations(sizes, Batch(1, 256, 1, 0), dtype.itemsize, checkpointing).kept
    real = kept_bytes(dtype, freeze_tower, checkpointing)
    print(f"planned {planned:,}, kept {real:,}: {planned / real - 1:+.1%}")
    assert planned == pytest.approx(real, rel=0.1)


VIDEO: dict[str, Any] = {
    "max_frames": 4, "num_queries": 8, "resampler_layers": 2,
    "vision_config": {
        "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 256, "image_size": 56, "patch_size": 7,
    },
    "text_config": {
        "model_type": "qwen3", "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 32, "intermediate_size": 256, "vocab_size": 300, "tie_word_embeddings": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("settings", [("mlp", 1), ("mlp", 2), ("resampler", 1)], ids=str)
def test_what_the_video_projectors_keep(dtype: torch.dtype, settings: tuple[str, int], tmp_path: Path) -> None:
    """Four frames of 64 patches with gradient checkpointing and a frozen tower: bytes of the projector and what is around it."""
    from drive_vlm.models.siglip_qwen.configuration import SiglipQwenConfig
    from drive_vlm.models.siglip_qwen.modeling import SiglipQwenForConditionalGeneration

    torch.manual_seed(0)
    words = {**VIDEO, "projector_type": settings[0], "pool_size": settings[1]}
    config = SiglipQwenConfig(**words, image_token_id=299)
    model = SiglipQwenForConditionalGeneration(config).to(dtype).train()
    model.model.vision_tower.requires_grad_(False)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    ids = torch.full((1, 320), 5)
    ids[0, : 4 * config.image_seq_length] = 299
    pixels = torch.zeros(4, 3, 56, 56, dtype=dtype)
    real = saved_bytes(model, {"input_ids": ids, "pixel_values": pixels, "use_cache": False})
    # Autograd lets go of them, the batch does not: it holds them as a byte each.
    real += pixels.numel()
    sizes = sizes_of(tmp_path, {**words, "model_type": "siglip_qwen"}, config.image_seq_length, ["vision_tower"])
    planned = activations(sizes, Batch(1, 320, 4, 0), dtype.itemsize, True).kept
    print(f"planned {planned:,}, kept {real:,}: {planned / real - 1:+.1%}")
    assert planned == pytest.approx(real, rel=0.1)
