"""What the HTML pages share: one file that holds its pictures, boxes drawn over them as SVG, every text escaped."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

# For boxes on pictures: bright, and distinct on dark and light ground.
PALETTE = ("#66ccee", "#ffb000", "#ee6677", "#44dd77", "#cc66ff", "#ffee55", "#ffffff", "#ff8844")
# Pixels of a picture's longer side in a page.
LARGEST = 480
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem auto; padding: 0 1rem; max-width: 1700px; color: #222; }
h1 { font-size: 1.3rem } h2 { font-size: 1.1rem; margin: 2.2rem 0 .3rem; overflow-wrap: anywhere }
.note, figcaption { color: #666; font-size: .85rem }
figure { margin: 0; flex: 1 1 190px; max-width: 340px } svg { width: 100%; display: block; border-radius: 4px }
"""


@dataclass(frozen=True)
class Box:
    """A box over a picture, x1, y1, x2, y2 in its pixels; `label` is written next to it, `title` shows under the pointer."""

    box: Sequence[float]
    colour: str
    label: str = ""
    title: str = ""


@dataclass(frozen=True)
class Mark:
    """A point over a picture, x and y in its pixels, with the same words."""

    point: tuple[float, float]
    colour: str
    label: str = ""
    title: str = ""


def write_html(path: Path, title: str, style: str, body: str) -> None:
    """Write the page; its folder is made. `style` adds to what all pages have, `body` is HTML."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}{style}</style></head><body>\n<h1>{escape(title)}</h1>\n"
        f"{body}\n</body></html>\n",
        encoding="utf-8",
    )


def boxed(picture: "Image", boxes: Sequence[Box], largest: int = LARGEST, marks: Sequence[Mark] = ()) -> str:
    """The picture, made small (`largest` pixels a side) and embedded, with its boxes and points: an <svg>."""
    width, height = picture.size
    small = picture.copy()
    small.thumbnail((largest, largest))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=88)
    data = base64.b64encode(buffer.getvalue()).decode()
    # Lines and words are as large on a small picture as on a large one.
    unit = max(width, height) / 100 * LARGEST / largest
    shapes = []
    for item in boxes:
        x1, y1, x2, y2 = item.box
        # A label near the right edge grows to the left.
        right = x1 > 0.7 * width
        shapes.append(
            f'<rect x="{x1}" y="{y1}" width="{x2 - x1}" height="{y2 - y1}" fill="none" stroke="{item.colour}" stroke-width="{unit:.2f}">'
            f"<title>{escape(item.title)}</title></rect>"
        )
        if item.label:
            shapes.append(_label(item, x2 if right else x1, max(y1 - unit, 5 * unit), right, unit))
    for mark in marks:
        x, y = mark.point
        right = x > 0.7 * width
        shapes.append(
            f'<circle cx="{x}" cy="{y}" r="{1.5 * unit:.2f}" fill="none" stroke="{mark.colour}" stroke-width="{unit:.2f}">'
            f"<title>{escape(mark.title)}</title></circle>"
        )
        if mark.label:
            aside = -2.5 * unit if right else 2.5 * unit
            shapes.append(_label(mark, x + aside, min(max(y, 5 * unit), height - unit), right, unit))
    return (
        f'<svg viewBox="0 0 {width} {height}"><image href="data:image/jpeg;base64,{data}" width="{width}" height="{height}"/>'
        f"{''.join(shapes)}</svg>"
    )


def _label(item: Box | Mark, x: float, y: float, right: bool, unit: float) -> str:
    """The words next to a shape, in its colour on a black rim; they end at x with `right`, else begin there."""
    return (
        f'<text x="{x:.2f}" text-anchor="{"end" if right else "start"}" y="{y:.2f}" font-size="{5 * unit:.2f}" fill="{item.colour}" '
        f'stroke="#000" stroke-width="{unit:.2f}" paint-order="stroke">{escape(item.label)}</text>'
    )
