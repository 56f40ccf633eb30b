"""A rectangle on a picture: how a region question shows what it asks about, to the teacher and in training."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

RED = (255, 0, 0)


def line_width(width: int) -> int:
    """Pixels of a rectangle's line on a picture of this width: a four-hundredth of it, and at least 2. A thinner line is not seen any
    more once a model has scaled the picture to its input size.

    >>> line_width(1600), line_width(400), line_width(100)
    (4, 2, 2)
    """
    return max(2, round(width / 400))


def draw_box(picture: "Image", box: Sequence[float]) -> "Image":
    """A copy of an RGB picture with a red rectangle around the box [x1, y1, x2, y2].

    The line lies outside the box, so that a small object stays visible, and inside the picture where the box touches its border.
    """
    from PIL import ImageDraw

    shown = picture.copy()
    width, height = shown.size
    line = line_width(width)
    x1, y1, x2, y2 = box
    left, top = max(0, round(x1) - line), max(0, round(y1) - line)
    right, bottom = min(width - 1, round(x2) + line - 1), min(height - 1, round(y2) + line - 1)
    # A box at the border still gets a rectangle that is wider and higher than its line.
    left, top = min(left, max(0, right - 3 * line)), min(top, max(0, bottom - 3 * line))
    right, bottom = min(width - 1, max(right, left + 3 * line)), min(height - 1, max(bottom, top + 3 * line))
    ImageDraw.Draw(shown).rectangle((left, top, right, bottom), outline=RED, width=line)
    return shown
