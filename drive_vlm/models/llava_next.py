"""LLaVA-NeXT (llava-hf/llama3-llava-next-8b-hf and its kin) through the native transformers classes."""

from collections.abc import Sequence
from typing import Any

from drive_vlm.config import ModelConfig
from drive_vlm.models.family import Family, ProcessorParts
from drive_vlm.models.internvl import ATTENTION, has_own_head
from drive_vlm.models.quantize import quantization_arguments

Crops = tuple[int, int]  # of one picture: crops with the whole picture first, tokens


class LlavaNextVision:
    """Picture side of LLaVA-NeXT: the whole picture as one crop, and crops of it laid out on the best grid ("anyres").

    The grid is one of the processor's `image_grid_pinpoints`. Tokens of the padding around the picture are left out and
    each line of tokens ends with a newline token, so that a picture's tokens follow from its height and width.
    A frame of a video is scaled to a square of one crop's side, which fixes its tokens.
    `pixel_values float[P, 3, H, W]` holds the crops of all pictures, `image_sizes int64[N, 2]` their (height, width).
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.image_token = processor.image_token
        pixels = processor.image_processor
        self.side = int(pixels.crop_size["height"])
        self.grids = [list(grid) for grid in pixels.image_grid_pinpoints]

    def fingerprint(self) -> dict[str, Any]:
        pixels = self.processor.image_processor
        return {
            "family": "llava_next",
            "crop": [self.side, self.processor.patch_size],
            "grids": self.grids,
            "features": [self.processor.vision_feature_select_strategy, self.processor.num_additional_image_tokens],
            "pixels": [list(pixels.image_mean), list(pixels.image_std), int(pixels.resample)],
        }

    def layout(self, height: int, width: int, num_images: int, max_tiles: int | None) -> Crops:
        """Raises ValueError where a data file asks for fewer crops than the model's grids give."""
        from transformers.image_processing_utils import select_best_resolution

        grid_height, grid_width = select_best_resolution((height, width), self.grids)
        crops = (grid_height // self.side) * (grid_width // self.side) + 1
        if max_tiles is not None and crops > max_tiles:
            raise ValueError(
                f"max_dynamic_patch {max_tiles}: a picture of {width} x {height} has {crops} crops. LLaVA-NeXT has one list of grids for "
                "all rows: leave max_dynamic_patch out and give --max_tiles."
            )
        return crops, self._tokens(height, width)

    def _tokens(self, height: int, width: int) -> int:
        """By the processor's own arithmetic."""
        tokens = self.processor._get_number_of_features(height, width, self.side, self.side)
        return tokens - (self.processor.vision_feature_select_strategy == "default")

    def frame_layout(self) -> Crops:
        return self.layout(self.side, self.side, 1, None)

    def image_ids(self, layout: Crops) -> list[int]:
        return [self.processor.image_token_id] * layout[1]

    def expand_video(self, text: str, num_frames: int) -> str:
        return text.replace("<video>", "\n".join([self.image_token] * num_frames))

    def load_pixels(
        self, images: Sequence[Any], max_tiles: int | None, is_video: bool
    ) -> tuple[dict[str, Any], list[Crops]]:
        import torch

        if is_video:
            images = [image.resize((self.side, self.side)) for image in images]
        # One call a picture: together they would be padded to the most crops among them.
        out = [self.processor.image_processor(images=[image], return_tensors="pt") for image in images]
        crops, sizes = [one["pixel_values"][0] for one in out], [one["image_sizes"] for one in out]
        layouts = [(len(c), self._tokens(*size[0].tolist())) for c, size in zip(crops, sizes, strict=True)]
        return {"pixel_values": torch.cat(crops), "image_sizes": torch.cat(sizes)}, layouts

    def collate_vision(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        import torch

        return {key: torch.cat([row[key] for row in rows]) for key in ("pixel_values", "image_sizes")} if rows else {}

    def dummy_inputs(self) -> dict[str, Any]:
        """One black picture, for batches without one (see training_forward.py)."""
        import torch

        pixels = torch.zeros(self.frame_layout()[0], 3, self.side, self.side)
        return {"pixel_values": pixels, "image_sizes": torch.tensor([[self.side, self.side]])}


def load_processor(path: str, config: ModelConfig) -> ProcessorParts:
    """The processor and what the data path takes from it; no weights are read.

    `--max_tiles` leaves only the grids of at most so many crops, the whole picture's among them. Raises ValueError when
    none is left.
    """
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(path)
    pixels = processor.image_processor
    if config.max_tiles is not None:
        side = int(pixels.crop_size["height"])
        crops = {(h, w): (h // side) * (w // side) + 1 for h, w in pixels.image_grid_pinpoints}
        if config.max_tiles < min(crops.values()):
            raise ValueError(
                f"--max_tiles {config.max_tiles}: the smallest grid of {path} has {min(crops.values())} crops. Give at least as many."
            )
        pixels.image_grid_pinpoints = [list(grid) for grid, count in crops.items() if count <= config.max_tiles]
    template = processor.chat_template or processor.tokenizer.chat_template
    return ProcessorParts(processor, processor.tokenizer, template, LlavaNextVision(processor))


def build(path: str, config: ModelConfig, dtype: Any) -> Family:
    """Load model and processor. Layers of the tower that the model does not read are frozen: no gradient reaches them."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    parts = load_processor(path, config)
    hf_config = AutoConfig.from_pretrained(path)
    hf_config.image_grid_pinpoints = parts.vision.grids  # both must cut a picture alike
    if has_own_head(path):
        hf_config.tie_word_embeddings = hf_config.text_config.tie_word_embeddings = False
    model = AutoModelForImageTextToText.from_pretrained(
        path,
        config=hf_config,
        dtype=dtype,
        attn_implementation=ATTENTION[config.attn_implementation],
        **quantization_arguments(config, ("model.vision_tower", "model.multi_modal_projector")),
    )
    tower = model.model.vision_tower
    read = layers_read(hf_config.vision_feature_layer, hf_config.vision_config.num_hidden_layers)
    for module in (*tower.encoder.layers[read:], tower.post_layernorm):
        module.requires_grad_(False)
    vision = hf_config.vision_config
    return Family(
        name="llava_next",
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
        tokens_per_tile=(vision.image_size // vision.patch_size) ** 2 + 1,
        projector_tokens=(vision.image_size // vision.patch_size) ** 2,
    )


def layers_read(chosen: int | Sequence[int], depth: int) -> int:
    """Layers of a tower of `depth` layers up to the last whose output goes on (vision_feature_layer); -2 leaves out one."""
    return max(
        layer if layer >= 0 else depth + 1 + layer for layer in ([chosen] if isinstance(chosen, int) else chosen)
    )
