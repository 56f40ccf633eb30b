"""How MiniCPM-V cuts pictures, in plain numbers: the whole picture, and slices of about the tower's size."""

import math
from collections.abc import Mapping
from typing import Any

from drive_vlm.models.minicpmv.versions import VERSIONS, Version
from drive_vlm.models.vision import Tiling

# Of one picture: slices with the whole one, rows and columns of the grid; a picture that is not cut has 0 rows and 0 columns.
Grid = tuple[int, int, int]
WHOLE = (1, 0, 0)


class MiniCPMVTiling(Tiling[Grid]):
    """The whole picture first, then its slices row by row; each is scaled to about `side` x `side` pixels in whole patches.

    A row with n pictures and a limit (`--max_tiles`, slices and the whole together) may use max(1, limit // n) for each.
    Without a limit each picture is cut as the processor does it, into at most `most` slices next to the whole.
    """

    def __init__(
        self,
        version: Version,
        side: int,
        patch: int,
        queries: int,
        most: int,
        special_ids: Mapping[str, Any] | None = None,
    ) -> None:
        """`most`: slices next to the whole; `special_ids`: numbers of tokens, as the processor has them."""
        self.version, self.side, self.patch, self.queries = version, side, patch, queries
        self.most, self.special_ids = most, special_ids
        self.max_tiles: int | None = None
        self.tile = (side, side)

    @classmethod
    def read(cls, numbers: Mapping[str, Any], max_tiles: int | None = None) -> "MiniCPMVTiling":
        pixels = numbers["image_processor"]
        version = VERSIONS[str(pixels["version"])]
        side, patch, queries, most = (
            int(pixels[name]) for name in ("scale_resolution", "patch_size", "image_feature_size", "max_slice_nums")
        )
        tiling = cls(version, side, patch, queries, most, numbers.get("special_ids"))
        tiling.max_tiles = max_tiles
        return tiling

    def slices(self, num_images: int, max_tiles: int | None) -> int:
        """The most slices next to the whole that one of `num_images` pictures of a row may have."""
        limit = max_tiles or self.max_tiles
        return self.most if limit is None else min(self.most, max(1, limit // num_images) - 1)

    def layout(self, height: int, width: int, num_images: int = 1, max_tiles: int | None = None) -> Grid:
        columns, rows = grid_of(width, height, self.side, self.slices(num_images, max_tiles))
        return (rows * columns + 1, rows, columns) if rows else WHOLE

    def frame_layout(self) -> Grid:
        return WHOLE

    def largest(self) -> Grid:
        """Of equals the one nearest to a square."""
        most = self.slices(1, None)
        rows = max(rows for rows in range(1, math.isqrt(max(most, 1)) + 1) if most % rows == 0)
        return (most + 1, rows, most // rows) if most > 1 else WHOLE

    def tokens(self, layout: Grid) -> int:
        """Each slice stands between two tags. 2.5 has two more around all slices of a picture.

        The number before a picture in 2.6 is the chat template's, as words are.
        """
        tiles, rows, _ = layout
        newlines = max(0, rows - 1)
        around = 2 if rows and self.version.name == "2.5" else 0
        return tiles * (self.queries + 2) + newlines + around


def grid_of(width: int, height: int, side: int, most: int) -> tuple[int, int]:
    """(columns, rows) of the slices of a picture: those whose shape is nearest to its own; (0, 0) where it is not cut."""
    multiple = min(math.ceil(width * height / side**2), most)
    if multiple <= 1:
        return 0, 0
    best, nearest, ratio = (1, 1), math.inf, math.log(width / height)
    for count in (multiple - 1, multiple, multiple + 1):
        if count == 1 or count > most:
            continue
        for columns in (m for m in range(1, count + 1) if count % m == 0):
            rows = count // columns
            distance = abs(ratio - math.log(columns / rows))
            # On a tie the first one stays.
            if distance < nearest:
                best, nearest = (columns, rows), distance
    return best


def scaled(width: float, height: float, side: int, patch: int, up: bool) -> tuple[int, int]:
    """(width, height) in whole patches with about side x side pixels; a smaller picture stays unless `up`."""
    if width * height > side * side or up:
        ratio = width / height
        height = int(side / math.sqrt(ratio))
        width = int(height * ratio)
    # Python rounds halves to the even number, as the published code does.
    return max(round(width / patch) * patch, patch), max(round(height / patch) * patch, patch)


def sizes_of(width: int, height: int, side: int, patch: int, grid: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """((width, height) of the whole, that of one slice); the latter is missing where `grid` (columns, rows) does not cut."""
    columns, rows = grid
    if not rows:
        return (scaled(width, height, side, patch, up=True),)
    refined_width, refined_height = (
        max(round(width / columns) * columns, columns),
        max(round(height / rows) * rows, rows),
    )
    cell = scaled(refined_width / columns, refined_height / rows, side, patch, up=True)
    return scaled(width, height, side, patch, up=False), cell
