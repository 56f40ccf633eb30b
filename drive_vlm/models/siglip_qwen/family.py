"""The family `siglip_qwen`: registered with transformers' Auto classes when first asked for."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from drive_vlm.models.family import FamilySpec, llm_linears
from drive_vlm.models.siglip_qwen.tiling import WholeFrames, frame_tokens, too_many_frames
from drive_vlm.models.vision import VisionAdapter

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL.Image import Image


class SiglipQwenVision(VisionAdapter[int]):
    """Picture side for the data path: pictures and frames alike are one tile of `image_seq_length` tokens.

    `pixel_values uint8[P, 3, H, W]` holds them in the order of their row.
    """

    tiling: WholeFrames
    reads_levels = True

    def fingerprint(self) -> dict[str, Any]:
        pixels = self.processor.image_processor
        return {
            "family": "siglip_qwen",
            "frame": list(self.tiling.tile),
            "pixels": [list(pixels.image_mean), list(pixels.image_std), int(pixels.resample)],
            "tokens": self.tiling.tile_tokens,
        }

    def image_ids(self, layout: int) -> list[int]:
        processor = self.processor
        context = [processor.image_token_id] * (layout * self.tiling.tile_tokens)
        return [processor.start_image_token_id, *context, processor.end_image_token_id]

    def expand_video(self, text: str, layouts: Sequence[int]) -> str:
        """The same text as a row with the frames as pictures has: temporal embeddings, not words, say which frame is which.

        Raises ValueError for more frames than the model has temporal embeddings for, before anything is trained.
        """
        if len(layouts) > self.tiling.max_frames:
            raise ValueError(too_many_frames(len(layouts), self.tiling.max_frames))
        return text.replace(self.processor.video_token, self.image_token * len(layouts))

    def load_pixels(
        self, images: Sequence["Image | np.ndarray"], max_tiles: int | None, is_video: bool
    ) -> tuple[dict[str, "torch.Tensor"], list[int]]:
        import torch

        from drive_vlm.models.pixels import planes, resized

        frames = [resized(planes(image), *self.tiling.tile, self.processor.image_processor) for image in images]
        return {"pixel_values": torch.stack(frames).contiguous()}, [1] * len(images)


def register() -> None:
    """Let AutoConfig, AutoProcessor and AutoModelForImageTextToText know the classes; calling it again does nothing."""
    from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

    from drive_vlm.models.siglip_qwen.configuration import SiglipQwenConfig
    from drive_vlm.models.siglip_qwen.modeling import SiglipQwenForConditionalGeneration, SiglipQwenModel
    from drive_vlm.models.siglip_qwen.processing import SiglipQwenProcessor

    AutoConfig.register(SiglipQwenConfig.model_type, SiglipQwenConfig, exist_ok=True)
    AutoModel.register(SiglipQwenConfig, SiglipQwenModel, exist_ok=True)
    AutoModelForImageTextToText.register(SiglipQwenConfig, SiglipQwenForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(SiglipQwenConfig, SiglipQwenProcessor, exist_ok=True)


def _tile_tokens(config: Mapping[str, Any]) -> tuple[int, int]:
    patches = (config["vision_config"]["image_size"] // config["vision_config"]["patch_size"]) ** 2
    return patches, frame_tokens(patches, config["projector_type"], config["pool_size"], config["num_queries"])


FAMILY = FamilySpec(
    name="siglip_qwen",
    parts={
        "vision_tower": ("model.vision_tower",),
        "temporal_embeddings": ("model.temporal_embeddings",),
        "projector": ("model.projector",),
        "language_model": ("model.language_model", "lm_head"),
    },
    lora_targets=llm_linears("language_model"),
    tile_tokens=_tile_tokens,
    tiling=WholeFrames,
    adapter=SiglipQwenVision,
    # Our own config says truly whether the head is tied, and ZeRO-3 saves a tied head twice.
    own_head=False,
    register=register,
    tiny="drive_vlm.models.tiny.tiny:build_tiny_siglip_qwen",
)
