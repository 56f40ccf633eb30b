"""SmolVLM (SmolVLM-Instruct is an Idefics3, later ones are of their own class) through the native transformers classes."""

import functools
import math
from collections.abc import Sequence
from typing import Any

from drive_vlm.config import ModelConfig
from drive_vlm.models.family import Family, ProcessorParts
from drive_vlm.models.internvl import ATTENTION, has_own_head
from drive_vlm.models.quantize import quantization_arguments

Grid = tuple[int, int, int]  # of one picture: tiles, rows, columns; one tile has 0 rows and 0 columns
WHOLE = (1, 0, 0)
_LARGEST = 4096  # pixels of a side that the native image processor goes to


class SmolVLMVision:
    """Picture side of SmolVLM: a picture is scaled to the processor's longest edge, cut into square tiles, and seen whole.

    A row of n pictures with a limit (`--max_tiles`) may use max(1, limit // n) tiles for each: the longest edge is lowered
    until they suffice. Without a limit each picture is cut as the processor does. A frame of a video is one tile.
    `pixel_values float[P, 1, 3, H, W]` holds the tiles of all pictures, each picture's whole last.
    """

    def __init__(self, processor: Any, max_tiles: int | None = None) -> None:
        self.processor, self.max_tiles = processor, max_tiles
        self.image_token = processor.image_token
        pixels = processor.image_processor
        self.side, self.longest = int(pixels.max_image_size["longest_edge"]), int(pixels.size["longest_edge"])

    def fingerprint(self) -> dict[str, Any]:
        pixels = self.processor.image_processor
        return {
            "family": "smolvlm",
            "tile": [self.side, self.longest, pixels.do_image_splitting],
            "tokens": self.processor.image_seq_len,
            "max_tiles": self.max_tiles,
            "pixels": [list(pixels.image_mean), list(pixels.image_std), int(pixels.resample)],
        }

    def layout(self, height: int, width: int, num_images: int, max_tiles: int | None) -> Grid:
        return self._cut(height, width, num_images, max_tiles)[0]

    def _cut(self, height: int, width: int, num_images: int, max_tiles: int | None) -> tuple[Grid, dict[str, Any]]:
        """(how the picture is cut, what the image processor is told)."""
        limit = max_tiles or self.max_tiles
        share = math.inf if limit is None else max(1, limit // num_images)
        if share > 1 and self.processor.image_processor.do_image_splitting:
            for longest in range(self.longest, self.side, -self.side):
                rows, columns = split(height, width, longest, self.side)
                grid = (rows * columns + 1, rows, columns) if rows else WHOLE
                if grid[0] <= share:
                    return grid, {"size": {"longest_edge": longest}}
        return WHOLE, {"do_image_splitting": False}

    def frame_layout(self) -> Grid:
        return WHOLE

    @functools.lru_cache(maxsize=256)  # noqa: B019 - one adapter lives as long as its run
    def _ids(self, layout: Grid) -> tuple[int, ...]:
        """The processor's own text for a picture, through its tokenizer: both differ between checkpoints."""
        text = self.processor.replace_image_token({"rows": [[layout[1]]], "cols": [[layout[2]]]}, 0)
        return tuple(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"])

    def image_ids(self, layout: Grid) -> list[int]:
        return list(self._ids(layout))

    def expand_video(self, text: str, num_frames: int) -> str:
        return text.replace("<video>", "\n".join([self.image_token] * num_frames))

    def load_pixels(
        self, images: Sequence[Any], max_tiles: int | None, is_video: bool
    ) -> tuple[dict[str, Any], list[Grid]]:
        import torch

        pixels, layouts = [], []
        for image in images:
            _, settings = self._cut(image.height, image.width, len(images), 1 if is_video else max_tiles)
            out = self.processor.image_processor(
                images=[[image]], return_row_col_info=True, return_tensors="pt", **settings
            )
            tiles = out["pixel_values"][0]
            pixels.append(tiles[:, None])
            layouts.append((len(tiles), out["rows"][0][0], out["cols"][0][0]))
        return {"pixel_values": torch.cat(pixels)}, layouts

    def collate_vision(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """No `pixel_attention_mask`: tiles are never padded, and the model takes every pixel where it gets none."""
        import torch

        return {"pixel_values": torch.cat([row["pixel_values"] for row in rows])} if rows else {}

    def dummy_inputs(self) -> dict[str, Any]:
        """One white tile, for batches without a picture (see training_forward.py); the model drops tiles of zeros."""
        import torch

        return {"pixel_values": torch.ones(1, 1, 3, self.side, self.side)}


def split(height: int, width: int, longest: int, side: int) -> tuple[int, int]:
    """(rows, columns) of the tiles that the native image processor cuts a picture into; (0, 0) where it stays whole.

    It scales the longer edge to `longest`, the other to an even number of pixels, then both up to multiples of `side`.
    Its own `get_number_of_image_patches` leaves out that the last step starts from the scaled longer edge.
    """
    wide = width >= height
    height, width = _scaled(height, width, longest)
    height, width = (height + height % 2, width) if wide else (height, width + width % 2)
    height, width = max(height, 1), max(width, 1)
    if max(height, width) > _LARGEST:
        height, width = (max(edge, 1) for edge in _scaled(height, width, _LARGEST))
    height, width = _scaled(height, width, math.ceil(max(height, width) / side) * side)
    rows, columns = math.ceil(height / side), math.ceil(width / side)
    return (rows, columns) if max(rows, columns) > 1 else (0, 0)


def _scaled(height: int, width: int, longer: int) -> tuple[int, int]:
    """(height, width) with the longer edge at `longer` pixels; by the quotient that the processor forms, as it rounds."""
    ratio = width / height
    return (int(longer / ratio), longer) if width >= height else (longer, int(longer * ratio))


def load_processor(path: str, config: ModelConfig) -> ProcessorParts:
    """The processor and what the data path takes from it; no weights are read."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(path)
    template = processor.chat_template or processor.tokenizer.chat_template
    return ProcessorParts(processor, processor.tokenizer, template, SmolVLMVision(processor, config.max_tiles))


def build(path: str, config: ModelConfig, dtype: Any) -> Family:
    """Load model and processor. The head stays untied where the checkpoint has a head of its own."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    parts = load_processor(path, config)
    hf_config = AutoConfig.from_pretrained(path)
    if has_own_head(path):
        hf_config.tie_word_embeddings = hf_config.text_config.tie_word_embeddings = False
    model = AutoModelForImageTextToText.from_pretrained(
        path,
        config=hf_config,
        dtype=dtype,
        attn_implementation=ATTENTION[config.attn_implementation],
        **quantization_arguments(config, ("model.vision_model", "model.connector")),
    )
    vision = hf_config.vision_config
    return Family(
        name="smolvlm",
        model=model,
        processor=parts.processor,
        tokenizer=parts.tokenizer,
        template=parts.template,
        vision=parts.vision,
        parts={
            "vision_tower": ("model.vision_model",),
            "projector": ("model.connector",),
            "language_model": ("model.text_model", "lm_head"),
        },
        lora_targets=r".*text_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
        tokens_per_tile=(vision.image_size // vision.patch_size) ** 2,
        projector_tokens=(vision.image_size // vision.patch_size) ** 2 // hf_config.scale_factor**2,
    )
