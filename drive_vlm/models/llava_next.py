"""LLaVA-NeXT (llava-hf/llama3-llava-next-8b-hf and its kin) through the native transformers classes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from drive_vlm.models.family import FamilySpec, llm_linears
from drive_vlm.models.vision import Tiling, VisionAdapter

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

# Of one picture: crops with the whole picture first, tokens.
Crops = tuple[int, int]


class LlavaNextTiling(Tiling[Crops]):
    """The whole picture as one crop, and crops of it laid out on the best of a list of grids ("anyres").

    Tokens of the padding around the picture are left out and each line of tokens ends with a newline token, so that a
    picture's tokens follow from its height and width. A frame of a video is scaled to a square of one crop's side, which
    fixes its tokens. `--max_tiles` leaves only the grids of at most so many crops, the whole picture's among them.
    """

    def __init__(self, side: int, patch_size: int, grids: Sequence[Sequence[int]], extra_tokens: int) -> None:
        """`grids`: (height, width) in pixels; `extra_tokens`: of the whole picture next to its patches, -1, 0 or 1."""
        self.side, self.patch_size, self.extra_tokens = side, patch_size, extra_tokens
        self.grids = [list(grid) for grid in grids]
        self.tile = (side, side)

    @classmethod
    def read(cls, numbers: Mapping[str, Any], max_tiles: int | None = None) -> "LlavaNextTiling":
        pixels = numbers["image_processor"]
        default = numbers["vision_feature_select_strategy"] == "default"
        tiling = cls(
            int(pixels["crop_size"]["height"]),
            int(numbers["patch_size"]),
            pixels["image_grid_pinpoints"],
            int(numbers["num_additional_image_tokens"]) - default,
        )
        if max_tiles is not None:
            crops = [tiling.crops(grid) for grid in tiling.grids]
            if max_tiles < min(crops):
                raise ValueError(
                    f"--max_tiles {max_tiles}: the smallest grid of the model has {min(crops)} crops. Give at least as many."
                )
            tiling.grids = [grid for grid, count in zip(tiling.grids, crops, strict=True) if count <= max_tiles]
        return tiling

    def crops(self, grid: Sequence[int]) -> int:
        """Crops of a picture on `grid`, with the whole picture."""
        return (grid[0] // self.side) * (grid[1] // self.side) + 1

    def layout(self, height: int, width: int, num_images: int = 1, max_tiles: int | None = None) -> Crops:
        """Raises ValueError where a data file asks for fewer crops than the model's grids give."""
        grid = best_resolution(height, width, self.grids)
        crops = self.crops(grid)
        if max_tiles is not None and crops > max_tiles:
            raise ValueError(
                f"max_dynamic_patch {max_tiles}: a picture of {width} x {height} has {crops} crops. LLaVA-NeXT has one list of grids for "
                "all rows: leave max_dynamic_patch out and give --max_tiles."
            )
        return crops, self._whole_tokens() + self._crop_tokens(height, width, grid)

    def _whole_tokens(self) -> int:
        return (self.side // self.patch_size) ** 2 + self.extra_tokens

    def _crop_tokens(self, height: int, width: int, grid: Sequence[int]) -> int:
        """Tokens of the crops without those of padding, and a newline for each line of them.

        The arithmetic of LlavaNextProcessor._get_unpadded_features, with its rounding: the model unpads by the same.
        """
        patches = self.side // self.patch_size
        lines, columns = (patches * (edge // self.side) for edge in grid)
        if width / height > columns / lines:
            lines -= (lines - int(round(height * (columns / width), 7))) // 2 * 2
        else:
            columns -= (columns - int(round(width * (lines / height), 7))) // 2 * 2
        return lines * columns + lines

    def frame_layout(self) -> Crops:
        return self.layout(self.side, self.side)

    def largest(self) -> Crops:
        return max(self.layout(*grid) for grid in self.grids)

    def tokens(self, layout: Crops) -> int:
        return layout[1]


def best_resolution(height: int, width: int, grids: Sequence[Sequence[int]]) -> Sequence[int]:
    """The grid (height, width) that keeps most pixels of a picture, and of those the one with least padding.

    This is `select_best_resolution` of transformers, which cannot be imported without torch.
    """

    def merit(grid: Sequence[int]) -> tuple[int, int]:
        scale = min(grid[1] / width, grid[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - grid[0] * grid[1]

    # max() returns the first of equals, as the original does.
    return max(grids, key=merit)


class LlavaNextVision(VisionAdapter[Crops]):
    """`pixel_values uint8[P, 3, H, W]` holds the crops of all pictures, `image_sizes int64[N, 2]` their (height, width)."""

    tiling: LlavaNextTiling
    keys = ("pixel_values", "image_sizes")
    # The model asks for each picture's size several times.
    read_by_host = ("image_sizes",)

    def __init__(self, processor: Any, tiling: LlavaNextTiling) -> None:
        super().__init__(processor, tiling)
        # The processor must cut as the tiling says, also where --max_tiles left grids out.
        processor.image_processor.image_grid_pinpoints = tiling.grids

    def fingerprint(self) -> dict[str, Any]:
        pixels = self.processor.image_processor
        return {
            "family": "llava_next",
            "crop": [self.tiling.side, self.tiling.patch_size],
            "grids": self.tiling.grids,
            "features": [self.processor.vision_feature_select_strategy, self.processor.num_additional_image_tokens],
            "pixels": [list(pixels.image_mean), list(pixels.image_std), int(pixels.resample)],
        }

    def image_ids(self, layout: Crops) -> list[int]:
        return [self.processor.image_token_id] * layout[1]

    def load_pixels(
        self, images: Sequence["Image"], max_tiles: int | None, is_video: bool
    ) -> tuple[dict[str, "torch.Tensor"], list[Crops]]:
        import torch

        from drive_vlm.models.pixels import AS_THEY_ARE

        if is_video:
            images = [image.resize(self.tiling.tile) for image in images]
        # One call a picture: together they would be padded to the most crops among them.
        out = [self.processor.image_processor(images=[image], return_tensors="pt", **AS_THEY_ARE) for image in images]
        crops, sizes = [one["pixel_values"][0] for one in out], [one["image_sizes"] for one in out]
        layouts = [(len(c), self.tiling.layout(*size[0].tolist())[1]) for c, size in zip(crops, sizes, strict=True)]
        return {"pixel_values": torch.cat(crops), "image_sizes": torch.cat(sizes)}, layouts

    def dummy_inputs(self) -> dict[str, "torch.Tensor"]:
        """One black picture."""
        import torch

        pixels = torch.zeros(self.frame_layout()[0], 3, *self.tiling.tile)
        return {"pixel_values": pixels, "image_sizes": torch.tensor([self.tiling.tile])}


def layers_read(chosen: int | Sequence[int], depth: int) -> int:
    """Layers of a tower of `depth` layers up to the last whose output goes on (vision_feature_layer); -2 leaves out one."""
    return max(
        layer if layer >= 0 else depth + 1 + layer for layer in ([chosen] if isinstance(chosen, int) else chosen)
    )


def _tile_tokens(config: Mapping[str, Any]) -> tuple[int, int]:
    patches = (config["vision_config"]["image_size"] // config["vision_config"]["patch_size"]) ** 2
    return patches + 1, patches


def _use_grids(hf_config: Any, stored: Mapping[str, Any], tiling: Tiling | None) -> None:
    if isinstance(tiling, LlavaNextTiling):
        # Model and processor must cut a picture alike.
        hf_config.image_grid_pinpoints = tiling.grids


def _freeze_unread(model: Any) -> None:
    """Freeze the tower's layers behind the one that the model reads: no gradient reaches them, and DDP would wait for one."""
    config, tower = model.config, model.model.vision_tower
    read = layers_read(config.vision_feature_layer, config.vision_config.num_hidden_layers)
    for module in (*tower.encoder.layers[read:], tower.post_layernorm):
        module.requires_grad_(False)


FAMILY = FamilySpec(
    name="llava_next",
    parts={
        "vision_tower": ("model.vision_tower",),
        "projector": ("model.multi_modal_projector",),
        "language_model": ("model.language_model", "lm_head"),
    },
    lora_targets=llm_linears("language_model"),
    tile_tokens=_tile_tokens,
    tiling=LlavaNextTiling,
    adapter=LlavaNextVision,
    configure=_use_grids,
    settle=_freeze_unread,
    tiny="drive_vlm.models.tiny.tiny:build_tiny_llava_next",
)
