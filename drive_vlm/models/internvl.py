"""InternVL (InternVL3-1B-hf and its kin) through the native transformers classes."""

import json
from collections.abc import Sequence
from typing import Any

from drive_vlm.config import ModelConfig
from drive_vlm.models.family import Family, ProcessorParts
from drive_vlm.models.quantize import quantization_arguments

ATTENTION = {"sdpa": "sdpa", "flash": "flash_attention_2", "flex": "flex_attention", "eager": "eager"}
_PIXEL_SETTINGS = ("image_processor_type", "image_mean", "image_std", "resample", "rescale_factor", "do_normalize")


class InternVLVision:
    """Picture side of InternVL: dynamic tiles of the native image processor, `image_seq_length` tokens a tile.

    A row with n pictures may use max(1, max_tiles // n) tiles for each, as InternVL trains; a frame of a video is one
    tile. `pixel_values float[P, 3, H, W]` holds the tiles of all pictures, each picture's thumbnail last.
    """

    def __init__(self, processor: Any, max_tiles: int | None = None) -> None:
        self.processor = processor
        self.max_tiles = max_tiles or processor.image_processor.max_patches
        self.image_token = processor.image_token

    def fingerprint(self) -> dict[str, Any]:
        size = self.processor.image_processor.size
        pixels = self.processor.image_processor.to_dict()
        return {
            "family": "internvl",
            "tile": [size["height"], size["width"]],
            "tokens": self.processor.image_seq_length,
            "max_tiles": self.max_tiles,
            "pixels": {name: pixels[name] for name in _PIXEL_SETTINGS if name in pixels},
        }

    def _crop(self, num_images: int, max_tiles: int | None) -> dict[str, Any]:
        limit = max(1, (max_tiles or self.max_tiles) // num_images)
        return {"crop_to_patches": limit > 1, "min_patches": 1, "max_patches": limit}

    def layout(self, height: int, width: int, num_images: int, max_tiles: int | None) -> int:
        return self.processor.image_processor.get_number_of_image_patches(
            height, width, self._crop(num_images, max_tiles)
        )

    def frame_layout(self) -> int:
        return 1

    def image_ids(self, layout: int) -> list[int]:
        context = [self.processor.image_token_id] * (layout * self.processor.image_seq_length)
        return [self.processor.start_image_token_id, *context, self.processor.end_image_token_id]

    def expand_video(self, text: str, num_frames: int) -> str:
        frames = "\n".join(f"Frame{i + 1}: {self.image_token}" for i in range(num_frames))
        return text.replace(self.processor.video_token, frames)

    def load_pixels(
        self, images: Sequence[Any], max_tiles: int | None, is_video: bool
    ) -> tuple[dict[str, Any], list[int]]:
        crop = self._crop(len(images), 1 if is_video else max_tiles)
        out = self.processor.image_processor(images=list(images), return_tensors="pt", **crop)
        return {"pixel_values": out["pixel_values"]}, [int(n) for n in out["num_patches"]]

    def collate_vision(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        import torch

        return {"pixel_values": torch.cat([row["pixel_values"] for row in rows])} if rows else {}

    def dummy_inputs(self) -> dict[str, Any]:
        """One black tile, for batches without a picture (see training_forward.py)."""
        import torch

        size = self.processor.image_processor.size
        return {"pixel_values": torch.zeros(1, 3, size["height"], size["width"])}


def load_processor(path: str, config: ModelConfig) -> ProcessorParts:
    """The processor and what the data path takes from it; no weights are read."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(path)
    return ProcessorParts(
        processor=processor,
        tokenizer=processor.tokenizer,
        template=processor.chat_template or processor.tokenizer.chat_template,
        vision=InternVLVision(processor, config.max_tiles),
    )


def build(path: str, config: ModelConfig, dtype: Any) -> Family:
    """Load model and processor. The head stays untied where the checkpoint has a head of its own."""
    from transformers import AutoModelForImageTextToText

    hf_config = internvl_config(path)
    if has_own_head(path):
        # InternVLConfig ties by default; InternVL3-1B has its own lm_head, which tying would throw away silently.
        hf_config.tie_word_embeddings = hf_config.text_config.tie_word_embeddings = False
    parts = load_processor(path, config)
    model = AutoModelForImageTextToText.from_pretrained(
        path,
        config=hf_config,
        dtype=dtype,
        attn_implementation=ATTENTION[config.attn_implementation],
        **quantization_arguments(config, ("model.vision_tower", "model.multi_modal_projector")),
    )
    return Family(
        name="internvl",
        model=model,
        processor=parts.processor,
        tokenizer=parts.tokenizer,
        template=parts.template,
        vision=parts.vision,
        parts={
            "vision_tower": ("model.vision_tower",),
            "projector": ("model.multi_modal_projector",),
            "language_model": ("model.language_model", "lm_head"),
        },
        lora_targets=r".*language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
        tokens_per_tile=round(parts.processor.image_seq_length / hf_config.downsample_ratio**2) + 1,
        projector_tokens=parts.processor.image_seq_length,
    )


def has_own_head(path: str) -> bool:
    """Whether the checkpoint stores an lm_head tensor, read from the safetensors header or index."""
    from safetensors import safe_open
    from transformers.utils import cached_file

    index = cached_file(path, "model.safetensors.index.json", _raise_exceptions_for_missing_entries=False)
    if index is not None:
        with open(index) as file:
            names = list(json.load(file)["weight_map"])
    else:
        weights = cached_file(path, "model.safetensors", _raise_exceptions_for_missing_entries=False)
        if weights is None:
            raise ValueError(
                f"{path}: no model.safetensors. Weights are loaded from safetensors only: convert the checkpoint with save_pretrained."
            )
        with safe_open(weights, "pt") as file:
            names = list(file.keys())
    return any(name.endswith("lm_head.weight") for name in names)


def internvl_config(path: str) -> Any:
    """InternVLConfig of a directory or hub id, with the vision tower that it names.

    InternVLConfig reads every vision_config as an InternViT, whatever its model_type says: a DINOv2 tower would come
    back as an InternViT of the default size, with random weights.
    """
    from transformers import AutoConfig, PreTrainedConfig

    config = AutoConfig.from_pretrained(path)
    stored = dict(PreTrainedConfig.get_config_dict(path)[0].get("vision_config") or {})
    kind = stored.pop("model_type", "internvl_vision")
    if kind != "internvl_vision":
        config.vision_config = AutoConfig.for_model(kind, **stored)
    return config
