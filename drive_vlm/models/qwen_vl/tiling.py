"""How Qwen2.5-VL and Qwen3-VL see pictures and videos, from sizes and times alone; neither torch nor transformers is loaded."""

import abc
import math
from collections.abc import Mapping, Sequence
from typing import Any

from drive_vlm.models.vision import Tiling

# Of one picture or piece of a video: tiles, the grid of patches (times, rows, columns), and when it is (STILL for a picture).
Grid = tuple[int, int, int, int, int]
STILL = -1
# The longer edge over the shorter one that the native processors go to.
_SLIVER = 200
_MICROSECONDS = 1_000_000


class QwenTiling(Tiling[Grid]):
    """A picture is scaled to whole tiles within a limit of pixels, and keeps its shape. A tile is one token.

    A tile is `merge` x `merge` patches of `temporal` frames; a picture stands in all of these frames. `--min_pixels` and
    `--max_pixels` replace the processor's limits of a picture; `--max_pixels` also limits a frame of a video.
    """

    limits: tuple[int, int]
    timed = True

    def __init__(self, patch: int, merge: int, temporal: int, picture: tuple[int, int], video: tuple[int, int]) -> None:
        """`patch`: pixels of a patch's side; `picture`, `video`: the fewest and most pixels that the processors scale to."""
        self.patch, self.merge, self.temporal = patch, merge, temporal
        self.limits, self.video = picture, video
        # Pixels of a tile's side; its frames are counted one below the other.
        self.side = patch * merge
        self.tile = (temporal * self.side, self.side)
        self.most_of_frame = math.inf

    @classmethod
    def read(cls, numbers: Mapping[str, Any], max_tiles: int | None = None) -> "QwenTiling":
        if max_tiles is not None:
            raise ValueError(
                f"--max_tiles {max_tiles}: Qwen-VL sees a picture whole, at its own resolution. Give --max_pixels instead."
            )
        pixels = numbers["image_processor"]
        patch, merge = int(pixels["patch_size"]), int(pixels["merge_size"])
        # Without a file of their own, videos have the numbers of pictures.
        video = numbers.get("video_processor") or pixels
        return cls(patch, merge, int(pixels["temporal_patch_size"]), _limits(pixels), _limits(video))

    def limit_pixels(self, least: int | None, most: int | None) -> None:
        low, high = least or self.limits[0], most or self.limits[1]
        if most is not None and least is None:
            low = min(low, high)
        if low > high:
            raise ValueError(
                f"--min_pixels {low} is more than --max_pixels {high}{'' if most else ', which is the processor'}. Give fewer."
            )
        if high < self.side**2:
            raise ValueError(
                f"--max_pixels {high}: one token shows {self.side} x {self.side} pixels. Give at least that."
            )
        self.limits = (low, high)
        self.most_of_frame = most or math.inf

    def layout(self, height: int, width: int, num_images: int = 1, max_tiles: int | None = None) -> Grid:
        """Raises ValueError for a data file's own limit of tiles, and for slivers, which the native processors refuse."""
        if max_tiles is not None:
            raise ValueError(
                f"max_dynamic_patch {max_tiles}: Qwen-VL sees a picture whole. Leave max_dynamic_patch out and give --max_pixels."
            )
        return self.grid(1, *fitted(height, width, self.side, *self.limits), STILL)

    def grid(self, times: int, height: int, width: int, when: int) -> Grid:
        rows, columns = height // self.patch, width // self.patch
        return times * rows * columns // self.merge**2, times, rows, columns, when

    @abc.abstractmethod
    def frame_size(self, height: int, width: int, frames: int) -> tuple[int, int]:
        """(height, width) that each of so many frames of a video is scaled to."""

    def frame_layout(self) -> Grid:
        """Two frames of one tile; video_layouts has those of a real video."""
        return self.grid(1, self.side, self.side, 0)

    def largest(self) -> Grid:
        most = self.limits[1] // self.side**2
        # Of equals the one nearest to a square.
        rows = max(range(1, math.isqrt(most) + 1), key=lambda rows: (rows * (most // rows), rows))
        return self.grid(1, rows * self.side, most // rows * self.side, STILL)

    def tokens(self, layout: Grid) -> int:
        return layout[0]


class Qwen2_5Tiling(QwenTiling):
    """A video is one piece. Its `when` is the time from one pair of frames to the next, in microseconds."""

    def video_layouts(self, height: int, width: int, times: Sequence[float], duration: float) -> list[Grid]:
        size = self.frame_size(height, width, len(times))
        between = self.temporal * duration / len(times)
        return [self.grid(-(-len(times) // self.temporal), *size, round(between * _MICROSECONDS))]

    def frame_size(self, height: int, width: int, frames: int) -> tuple[int, int]:
        """(height, width) of each frame: the limits are those of one frame."""
        most = int(min(self.video[1], self.most_of_frame))
        return fitted(height, width, self.side, min(self.video[0], most), most)


class Qwen3Tiling(QwenTiling):
    """Each pair of frames is a piece behind words that say its time. Its `when` is that time, in tenths of a second."""

    def video_layouts(self, height: int, width: int, times: Sequence[float], duration: float) -> list[Grid]:
        size = self.frame_size(height, width, len(times))
        # The last frame again, where one is missing.
        padded = [*times, *[times[-1]] * (-len(times) % self.temporal)]
        middles = [
            (padded[i] + padded[i + self.temporal - 1]) / 2 - times[0] for i in range(0, len(padded), self.temporal)
        ]
        return [self.grid(1, *size, int(f"{middle:.1f}".replace(".", ""))) for middle in middles]

    def frame_size(self, height: int, width: int, frames: int) -> tuple[int, int]:
        """(height, width) of each frame: the limits are those of the whole video (`smart_resize` of transformers' qwen3_vl)."""
        # The model takes pairs; a frame alone stands twice.
        frames = max(frames, self.temporal)
        most = int(min(self.video[1], self.most_of_frame * frames))
        scale = max(self.side / height, self.side / width, 1)
        height, width = int(height * scale), int(width * scale)
        even = round(frames / self.temporal) * self.temporal
        return fitted(height, width, self.side, min(self.video[0], most), most, frames, even)


def _limits(numbers: Mapping[str, Any]) -> tuple[int, int]:
    """(fewest, most) pixels of a processor; older files name them themselves."""
    size = numbers.get("size") or {}
    least, most = (
        numbers.get(name) or size[edge]
        for name, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge"))
    )
    return int(least), int(most)


def fitted(
    height: int, width: int, side: int, least: int, most: int, frames: int = 1, even: int = 1
) -> tuple[int, int]:
    """(height, width) in multiples of `side` with `least` to `most` pixels in all frames, near the shape that it had.

    This is `smart_resize` of transformers' qwen2_vl and, with the number of frames and that number rounded to pairs, of
    qwen3_vl; neither can be imported without torch. Raises ValueError for slivers, as it does.
    """
    if max(height, width) / min(height, width) > _SLIVER:
        raise ValueError(f"a picture of {width} x {height} is a sliver: Qwen-VL takes edges up to 1 : {_SLIVER}")
    rows, columns = round(height / side) * side, round(width / side) * side
    if even * rows * columns > most:
        scale = math.sqrt((frames * height * width) / most)
        rows, columns = (max(side, math.floor(edge / scale / side) * side) for edge in (height, width))
    elif even * rows * columns < least:
        scale = math.sqrt(least / (frames * height * width))
        rows, columns = (math.ceil(edge * scale / side) * side for edge in (height, width))
    return rows, columns
