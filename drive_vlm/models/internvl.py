"""InternVL (InternVL3-1B-hf and its kin) through the native transformers classes."""

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from drive_vlm.models.family import FamilySpec, llm_linears
from drive_vlm.models.vision import Tiling, VisionAdapter

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL.Image import Image

_PIXEL_SETTINGS = ("image_processor_type", "image_mean", "image_std", "resample", "rescale_factor", "do_normalize")


class InternVLTiling(Tiling[int]):
    """Dynamic tiles: the grid with the nearest aspect ratio, and the whole picture as a thumbnail where there are several.

    A row with n pictures may use max(1, max_tiles // n) tiles for each, as InternVL trains; a frame of a video is one tile.
    """

    def __init__(self, tile: tuple[int, int], tile_tokens: int, max_tiles: int) -> None:
        self.tile, self.tile_tokens, self.max_tiles = tile, tile_tokens, max_tiles

    @classmethod
    def read(cls, numbers: Mapping[str, Any], max_tiles: int | None = None) -> "InternVLTiling":
        pixels = numbers["image_processor"]
        tile = int(pixels["size"]["height"]), int(pixels["size"]["width"])
        return cls(tile, int(numbers["image_seq_length"]), max_tiles or int(pixels["max_patches"]))

    def share(self, num_images: int, max_tiles: int | None) -> int:
        """Tiles that each of `num_images` pictures may have."""
        return max(1, (max_tiles or self.max_tiles) // num_images)

    def layout(self, height: int, width: int, num_images: int = 1, max_tiles: int | None = None) -> int:
        return with_thumbnail(*best_grid(height, width, self.tile, self.share(num_images, max_tiles)))

    def frame_layout(self) -> int:
        return 1

    def largest(self) -> int:
        return self.max_tiles + (self.max_tiles > 1)

    def tokens(self, layout: int) -> int:
        return layout * self.tile_tokens + 2


def with_thumbnail(columns: int, rows: int) -> int:
    """The tiles of a picture that is cut into this grid."""
    return columns * rows + (columns * rows > 1)


@functools.lru_cache(maxsize=4096)
def best_grid(height: int, width: int, tile: tuple[int, int], limit: int) -> tuple[int, int]:
    """(columns, rows) of at most `limit` tiles whose aspect ratio is nearest to the picture's.

    Of equally near grids the larger wins while the picture has more than half its pixels. This is
    `get_optimal_tiled_canvas` of transformers' GotOcr2ImageProcessor, which cannot be imported without torch.
    """
    ratio, best, nearest = width / height, (1, 1), float("inf")
    # Small grids first and, among grids of one size, narrow ones first: on a tie the order decides.
    grids = ((columns, rows) for columns in range(1, limit + 1) for rows in range(1, limit // columns + 1))
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        distance = abs(ratio - columns / rows)
        larger = distance == nearest and height * width > 0.5 * tile[0] * tile[1] * columns * rows
        if distance < nearest or larger:
            best, nearest = (columns, rows), distance
    return best


class InternVLVision(VisionAdapter[int]):
    """Picture side of InternVL: `pixel_values uint8[P, 3, H, W]` holds the tiles of all pictures, each one's thumbnail last."""

    tiling: InternVLTiling
    reads_levels = True

    def fingerprint(self) -> dict[str, Any]:
        pixels = self.processor.image_processor.to_dict()
        return {
            "family": "internvl",
            "tile": list(self.tiling.tile),
            "tokens": self.tiling.tile_tokens,
            "max_tiles": self.tiling.max_tiles,
            "pixels": {name: pixels[name] for name in _PIXEL_SETTINGS if name in pixels},
        }

    def image_ids(self, layout: int) -> list[int]:
        context = [self.processor.image_token_id] * (layout * self.tiling.tile_tokens)
        return [self.processor.start_image_token_id, *context, self.processor.end_image_token_id]

    def expand_video(self, text: str, layouts: Sequence[int]) -> str:
        frames = "\n".join(f"Frame{i + 1}: {self.image_token}" for i in range(len(layouts)))
        return text.replace(self.processor.video_token, frames)

    def load_pixels(
        self, images: Sequence["Image | np.ndarray"], max_tiles: int | None, is_video: bool
    ) -> tuple[dict[str, "torch.Tensor"], list[int]]:
        import torch

        from drive_vlm.models.pixels import planes

        limit = self.tiling.share(len(images), 1 if is_video else max_tiles)
        pictures = [planes(image) for image in images]
        grids = [best_grid(*pixels.shape[1:], self.tiling.tile, limit) for pixels in pictures]
        counts = [with_thumbnail(*grid) for grid in grids]
        # The channels of a pixel stay next to each other in memory: copies are of whole lines.
        tiles = torch.empty(sum(counts), *self.tiling.tile, 3, dtype=torch.uint8)
        for pixels, grid, part in zip(pictures, grids, tiles.split(counts), strict=True):
            self._cut(pixels, *grid, part)
        return {"pixel_values": tiles.permute(0, 3, 1, 2)}, counts

    def _cut(self, pixels: "torch.Tensor", columns: int, rows: int, tiles: "torch.Tensor") -> None:
        """Write a picture uint8[3, H, W] into `tiles uint8[P, h, w, 3]`: the grid row by row, its thumbnail last.

        The pixels are those of GotOcr2ImageProcessor.crop_image_to_patches, which copies each of them four times on the way.
        """
        from drive_vlm.models.pixels import resized

        (high, wide), processor = self.tiling.tile, self.processor.image_processor
        tiles[-1] = resized(pixels, high, wide, processor).permute(1, 2, 0)
        if len(tiles) > 1:
            canvas = resized(pixels, rows * high, columns * wide, processor).permute(1, 2, 0)
            cells = canvas.view(rows, high, columns, wide, 3).transpose(1, 2)
            tiles[:-1].view(rows, columns, high, wide, 3).copy_(cells)


def _tile_tokens(config: Mapping[str, Any]) -> tuple[int, int]:
    """The tower's class token goes on with the patches; the pixel shuffle makes the projector's tokens fewer."""
    return round(config["image_seq_length"] / config["downsample_ratio"] ** 2) + 1, config["image_seq_length"]


def _name_tower(hf_config: Any, stored: Mapping[str, Any], tiling: Tiling | None) -> None:
    """The vision config that the checkpoint names.

    InternVLConfig reads every vision_config as an InternViT, whatever its model_type says: a DINOv2 tower would come
    back as an InternViT of the default size, with random weights.
    """
    vision = dict(stored.get("vision_config") or {})
    kind = vision.pop("model_type", "internvl_vision")
    if kind != "internvl_vision":
        from transformers import AutoConfig

        hf_config.vision_config = AutoConfig.for_model(kind, **vision)


FAMILY = FamilySpec(
    name="internvl",
    parts={
        "vision_tower": ("model.vision_tower",),
        "projector": ("model.multi_modal_projector",),
        "language_model": ("model.language_model", "lm_head"),
    },
    lora_targets=llm_linears("language_model"),
    tile_tokens=_tile_tokens,
    tiling=InternVLTiling,
    adapter=InternVLVision,
    configure=_name_tower,
    tiny="drive_vlm.models.tiny.tiny:build_tiny_internvl",
)
