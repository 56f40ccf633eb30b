"""Pictures of siglip_qwen in plain numbers: each picture and each frame is one tile, whatever its size."""

import math
from collections.abc import Mapping
from typing import Any

from drive_vlm.models.vision import OneTile


def frame_tokens(patches: int, projector_type: str, pool_size: int, num_queries: int) -> int:
    """Tokens of the language model for a frame of side x side patches: ceil(side / pool_size)^2, or the queries."""
    return num_queries if projector_type == "resampler" else math.ceil(math.isqrt(patches) / pool_size) ** 2


def too_many_frames(frames: int, limit: int) -> str:
    """The error for a row with more frames than temporal embeddings."""
    return (
        f"a row has {frames} frames, but the model has temporal embeddings for {limit}. Lower --num_frames, or compose the model "
        "with a larger --max_frames."
    )


class WholeFrames(OneTile):
    """One tile a picture; `max_frames` is the number of temporal embeddings."""

    def __init__(self, tile: tuple[int, int], tile_tokens: int, max_frames: int) -> None:
        self.tile, self.tile_tokens, self.max_frames = tile, tile_tokens, max_frames

    @classmethod
    def read(cls, numbers: Mapping[str, Any], max_tiles: int | None = None) -> "WholeFrames":
        size = numbers["image_processor"]["size"]
        return cls((int(size["height"]), int(size["width"])), numbers["image_seq_length"], numbers["max_frames"])

    def tokens(self, layout: int) -> int:
        return layout * self.tile_tokens + 2
