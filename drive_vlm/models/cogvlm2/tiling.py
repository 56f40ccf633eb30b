"""Pictures of CogVLM2 in plain numbers: each is scaled to one square, whatever its shape."""

import math
from collections.abc import Mapping
from typing import Any

from drive_vlm.models.vision import OneTile

# Patches along a side that the adapter's convolution joins.
POOL = 2
# boi and eoi, which the adapter puts around the tokens of a picture.
ENDS = 2


def picture_tokens(image_size: int, patch_size: int) -> int:
    """Tokens of the language model for one picture: 2,306 for 1,344 pixels and patches of 14."""
    return (image_size // patch_size // POOL) ** 2 + ENDS


class Squares(OneTile):
    """One square a picture."""

    def __init__(self, side: int, tile_tokens: int) -> None:
        self.tile, self.tile_tokens = (side, side), tile_tokens

    @classmethod
    def read(cls, numbers: Mapping[str, Any], max_tiles: int | None = None) -> "Squares":
        """Of a published directory, which has no processor_config.json, the tokens alone are known: patches are of 14 pixels."""
        tokens = numbers["image_seq_length"]
        published = {"height": math.isqrt(tokens - ENDS) * POOL * 14}
        size = numbers.get("image_processor", {}).get("size", published)
        return cls(int(size["height"]), tokens)

    def tokens(self, layout: int) -> int:
        return layout * self.tile_tokens
