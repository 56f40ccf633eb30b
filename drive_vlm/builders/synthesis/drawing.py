"""The rectangle of a region row, drawn so that it is still there at the model's input size."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


def draw_box(image: "Image", box: Sequence[float]) -> "Image":
    """A copy of `image` with a red rectangle around `box`."""
    from PIL import ImageDraw

    copy = image.copy()
    ImageDraw.Draw(copy).rectangle(
        [round(value) for value in box], outline="red", width=max(2, round(image.width / 400))
    )
    return copy
