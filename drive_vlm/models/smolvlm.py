"""SmolVLM (SmolVLM-Instruct is an Idefics3, later ones are of their own class) through the native transformers classes."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from drive_vlm.models.family import FamilySpec, llm_linears
from drive_vlm.models.vision import Tiling, VisionAdapter

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

# Of one picture: tiles, rows, columns; one tile has 0 rows and 0 columns.
Grid = tuple[int, int, int]
WHOLE = (1, 0, 0)
# Pixels of a side that the native image processor goes to.
_LARGEST = 4096


class SmolVLMTiling(Tiling[Grid]):
    """A picture is scaled to the processor's longest edge, cut into square tiles, and seen whole.

    A row of n pictures with a limit (`--max_tiles`) may use max(1, limit // n) tiles for each: the longest edge is lowered
    until they suffice. Without a limit each picture is cut as the processor does. A frame of a video is one tile.
    """

    # Tokens of an empty line, "\n\n": one in SmolLM2's tokenizer; the adapter asks the real one.
    blank_line = 1

    def __init__(
        self, side: int, longest: int, tile_tokens: int, cuts: bool = True, max_tiles: int | None = None
    ) -> None:
        """`side`, `longest`: pixels of a tile and of a scaled picture; `cuts`: whether the processor cuts pictures at all."""
        self.side, self.longest, self.tile_tokens = side, longest, tile_tokens
        self.cuts, self.max_tiles = cuts, max_tiles
        self.tile = (side, side)

    @classmethod
    def read(cls, numbers: Mapping[str, Any], max_tiles: int | None = None) -> "SmolVLMTiling":
        pixels = numbers["image_processor"]
        side, longest = int(pixels["max_image_size"]["longest_edge"]), int(pixels["size"]["longest_edge"])
        return cls(side, longest, int(numbers["image_seq_len"]), pixels.get("do_image_splitting", True), max_tiles)

    def layout(self, height: int, width: int, num_images: int = 1, max_tiles: int | None = None) -> Grid:
        return self.cut(height, width, num_images, max_tiles)[0]

    def cut(self, height: int, width: int, num_images: int, max_tiles: int | None) -> tuple[Grid, int | None]:
        """(how the picture is cut, the longest edge that the image processor must be given; None to leave it whole)."""
        limit = max_tiles or self.max_tiles
        share = math.inf if limit is None else max(1, limit // num_images)
        if share > 1 and self.cuts:
            for longest in range(self.longest, self.side, -self.side):
                rows, columns = split(height, width, longest, self.side)
                grid = (rows * columns + 1, rows, columns) if rows else WHOLE
                if grid[0] <= share:
                    return grid, longest
        return WHOLE, None

    def frame_layout(self) -> Grid:
        return WHOLE

    def largest(self) -> Grid:
        return self.layout(self.longest, self.longest)

    def tokens(self, layout: Grid) -> int:
        """A tile has its tokens, a border and a place; a border ends the picture; lines of tiles end with a newline, the last
        with an empty line. Borders and places are special tokens."""
        tiles, rows, _ = layout
        return tiles * (self.tile_tokens + 2) + 1 + (rows - 1 + self.blank_line if rows else 0)


class SmolVLMVision(VisionAdapter[Grid]):
    """Picture side of SmolVLM: `pixel_values uint8[P, 1, 3, H, W]` holds the tiles of all pictures, each one's whole last.

    There is no `pixel_attention_mask`: tiles are never padded, and the model takes every pixel where it gets none.
    """

    tiling: SmolVLMTiling

    def __init__(self, processor: Any, tiling: SmolVLMTiling) -> None:
        super().__init__(processor, tiling)
        tiling.blank_line = len(processor.tokenizer("\n\n", add_special_tokens=False)["input_ids"])

    def fingerprint(self) -> dict[str, Any]:
        pixels = self.processor.image_processor
        return {
            "family": "smolvlm",
            "tile": [self.tiling.side, self.tiling.longest, pixels.do_image_splitting],
            "tokens": self.tiling.tile_tokens,
            "max_tiles": self.tiling.max_tiles,
            "pixels": [list(pixels.image_mean), list(pixels.image_std), int(pixels.resample)],
        }

    @functools.lru_cache(maxsize=256)  # noqa: B019 - one adapter lives as long as its run
    def _ids(self, layout: Grid) -> tuple[int, ...]:
        """The processor's own text for a picture, through its tokenizer: both differ between checkpoints."""
        text = self.processor.replace_image_token({"rows": [[layout[1]]], "cols": [[layout[2]]]}, 0)
        return tuple(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"])

    def image_ids(self, layout: Grid) -> list[int]:
        return list(self._ids(layout))

    def load_pixels(
        self, images: Sequence["Image"], max_tiles: int | None, is_video: bool
    ) -> tuple[dict[str, "torch.Tensor"], list[Grid]]:
        import torch

        from drive_vlm.models.pixels import AS_THEY_ARE

        # Padding a batch of one picture changes nothing but the type of its pixels.
        pixels, layouts, common = [], [], {**AS_THEY_ARE, "do_pad": False}
        for image in images:
            longest = self.tiling.cut(image.height, image.width, len(images), 1 if is_video else max_tiles)[1]
            settings = {"size": {"longest_edge": longest}} if longest else {"do_image_splitting": False}
            out = self.processor.image_processor(
                images=[[image]], return_row_col_info=True, return_tensors="pt", **common, **settings
            )
            tiles = out["pixel_values"][0]
            pixels.append(tiles[:, None])
            layouts.append((len(tiles), out["rows"][0][0], out["cols"][0][0]))
        return {"pixel_values": torch.cat(pixels)}, layouts

    def dummy_inputs(self) -> dict[str, "torch.Tensor"]:
        """One white tile: the model drops tiles of zeros."""
        import torch

        return {"pixel_values": torch.ones(1, 1, 3, *self.tiling.tile)}


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


def _tile_tokens(config: Mapping[str, Any]) -> tuple[int, int]:
    patches = (config["vision_config"]["image_size"] // config["vision_config"]["patch_size"]) ** 2
    return patches, patches // config["scale_factor"] ** 2


FAMILY = FamilySpec(
    name="smolvlm",
    parts={
        "vision_tower": ("model.vision_model",),
        "projector": ("model.connector",),
        "language_model": ("model.text_model", "lm_head"),
    },
    lora_targets=llm_linears("text_model"),
    tile_tokens=_tile_tokens,
    tiling=SmolVLMTiling,
    adapter=SmolVLMVision,
    tiny="drive_vlm.models.tiny.tiny:build_tiny_smolvlm",
)
