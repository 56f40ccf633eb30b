"""A family outside the package, in one file: LLaVA-1.5 with a SigLIP tower, through transformers' own classes.

test_toy_family.py enters it with one line and takes it through every command; drive_vlm/models/ADDING.md names it.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from drive_vlm.models.family import FamilySpec, llm_linears
from drive_vlm.models.vision import OneTile, VisionAdapter


class ToyTiling(OneTile):
    """Each picture and each frame is one square tile."""

    def __init__(self, side: int, patch_size: int) -> None:
        self.tile, self.tile_tokens = (side, side), (side // patch_size) ** 2

    @classmethod
    def read(cls, numbers: Mapping[str, Any], max_tiles: int | None = None) -> "ToyTiling":
        return cls(int(numbers["image_processor"]["size"]["height"]), int(numbers["patch_size"]))

    def tokens(self, layout: int) -> int:
        return layout * self.tile_tokens


class ToyVision(VisionAdapter[int]):
    """`pixel_values float[P, 3, H, W]`: one tile a picture."""

    tiling: ToyTiling

    def fingerprint(self) -> dict[str, Any]:
        return {"family": "toy", "tile": list(self.tiling.tile), "tokens": self.tiling.tile_tokens}

    def image_ids(self, layout: int) -> list[int]:
        return [self.processor.image_token_id] * self.tiling.tokens(layout)

    def load_pixels(self, images: Sequence[Any], max_tiles: int | None, is_video: bool) -> tuple[Any, list[int]]:
        out = self.processor.image_processor(images=list(images), return_tensors="pt")
        return {"pixel_values": out["pixel_values"]}, [1] * len(images)


def tile_tokens(config: Mapping[str, Any]) -> tuple[int, int]:
    patches = (config["vision_config"]["image_size"] // config["vision_config"]["patch_size"]) ** 2
    return patches, patches


def name_features(model: Any) -> None:
    """LLaVA reads hidden_states[-1], before SigLIP's final norm: the feature cache must hold the same."""
    tower = model.model.vision_tower
    model.model.tower_features = lambda pixel_values: tower(pixel_values, output_hidden_states=True).hidden_states[-1]


FAMILY = FamilySpec(
    name="toy",
    parts={
        "vision_tower": ("model.vision_tower",),
        "projector": ("model.multi_modal_projector",),
        "language_model": ("model.language_model", "lm_head"),
    },
    lora_targets=llm_linears("language_model"),
    tile_tokens=tile_tokens,
    tiling=ToyTiling,
    adapter=ToyVision,
    settle=name_features,
    tiny="tests.stages.toy_family:build_tiny",
)


def build_tiny(out: Path, corpus: Iterable[str], side: int = 56, patch_size: int = 14) -> Path:
    """Write a random one with tokenizer and processor to `out`."""
    import torch
    from transformers import (
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        SiglipImageProcessor,
        SiglipVisionConfig,
    )

    from drive_vlm.models.tiny.tiny import LLAVA_TEMPLATE, SPECIAL, train_tokenizer

    torch.manual_seed(0)
    tokenizer = train_tokenizer(corpus, 600, (*SPECIAL[:3], "<image>"), {})
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2}
    vision = SiglipVisionConfig(**sizes, image_size=side, patch_size=patch_size, vision_use_head=False)
    text = LlamaConfig(
        **sizes,
        vocab_size=len(tokenizer),
        num_key_value_heads=1,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    config = LlavaConfig(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(side // patch_size) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    pixels = SiglipImageProcessor(size={"height": side, "width": side})
    processor = LlavaProcessor(
        pixels, tokenizer, patch_size, "full", num_additional_image_tokens=0, chat_template=LLAVA_TEMPLATE
    )
    model.save_pretrained(out)
    processor.save_pretrained(out)
    return Path(out)
