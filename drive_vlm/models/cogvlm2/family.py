"""The family `cogvlm2`: its classes are known to transformers' Auto classes when it is first asked for."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from drive_vlm.models.cogvlm2.tiling import Squares, picture_tokens
from drive_vlm.models.family import FamilySpec
from drive_vlm.models.vision import VisionAdapter

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


class CogVLM2Vision(VisionAdapter[int]):
    """Picture side for the data path: pictures and frames alike are one tile.

    `pixel_values uint8[P, 3, H, W]` holds them. boi and eoi come from the adapter: all tokens of a picture are the same placeholder, which is the padding token as well.
    """

    tiling: Squares
    last_answer_only = True

    def fingerprint(self) -> dict[str, Any]:
        pixels = self.processor.image_processor
        return {
            "family": "cogvlm2",
            "square": list(self.tiling.tile),
            "pixels": [list(pixels.image_mean), list(pixels.image_std), int(pixels.resample)],
            "tokens": self.tiling.tile_tokens,
        }

    def image_ids(self, layout: int) -> list[int]:
        return [self.processor.image_token_id] * (layout * self.tiling.tile_tokens)

    def load_pixels(
        self, images: Sequence["Image"], max_tiles: int | None, is_video: bool
    ) -> tuple[dict[str, "torch.Tensor"], list[int]]:
        from drive_vlm.models.pixels import AS_THEY_ARE

        out = self.processor.image_processor(images=list(images), return_tensors="pt", **AS_THEY_ARE)
        return {"pixel_values": out["pixel_values"]}, [1] * len(images)


def register() -> None:
    """Let the Auto classes know ours; calling it again does nothing."""
    from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

    from drive_vlm.models.cogvlm2.configuration import CogVLM2Config
    from drive_vlm.models.cogvlm2.modeling import CogVLM2Model, CogVLMForCausalLM
    from drive_vlm.models.cogvlm2.processing import CogVLM2Processor

    AutoConfig.register(CogVLM2Config.model_type, CogVLM2Config, exist_ok=True)
    AutoModel.register(CogVLM2Config, CogVLM2Model, exist_ok=True)
    AutoModelForImageTextToText.register(CogVLM2Config, CogVLMForCausalLM, exist_ok=True)
    AutoProcessor.register(CogVLM2Config, CogVLM2Processor, exist_ok=True)


def _open_processor(path: str) -> Any:
    from drive_vlm.models.cogvlm2.processing import open_processor

    return open_processor(path)


def _tile_tokens(config: Mapping[str, Any]) -> tuple[int, int]:
    vision = config["vision_config"]
    return vision["num_positions"], picture_tokens(vision["image_size"], vision["patch_size"])


def _settle(model: Any) -> None:
    # A completion with a placeholder could not be read again: there is no picture for it.
    model.generation_config.suppress_tokens = [model.config.pad_token_id]


FAMILY = FamilySpec(
    name="cogvlm2",
    parts={
        "vision_tower": ("model.vision_tower",),
        "projector": ("model.projector",),
        "language_model": ("model.language_model", "lm_head"),
    },
    lora_targets=(
        r".*language_model\..*\.((vision|language)_expert_(query_key_value|dense)|gate_proj|up_proj|down_proj)"
    ),
    # A token passes one of two experts of a size.
    idle=r"\.vision_(expert_query_key_value|expert_dense|mlp)\.",
    tile_tokens=_tile_tokens,
    tiling=Squares,
    adapter=CogVLM2Vision,
    register=register,
    processor=_open_processor,
    settle=_settle,
    tiny="drive_vlm.models.tiny.cogvlm2:build_tiny_cogvlm2",
)
