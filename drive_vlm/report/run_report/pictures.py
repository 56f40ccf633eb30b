"""The pictures of a row as a strip, with its boxes and points drawn, made small, as long as the page has room."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from drive_vlm.data.predictions import Prediction
from drive_vlm.data.samples import BadRow, resolve_below
from drive_vlm.report.page import LARGEST, PALETTE, Box, Mark, boxed

if TYPE_CHECKING:
    from PIL.Image import Image

# Pixels of the longer side of a picture that stands beside others.
_SMALLER = 300
# As nuScenes' drivers see: left to right, the front first.
CAMERAS = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")
# DriveLM's points: in pixels of a camera's picture, or with brackets in thousandths of the one picture of a row.
_TAG = re.compile(r"<(c\d+)\s*,\s*(CAM_[A-Z_]+)\s*,\s*(\[?)\s*(-?\d+(?:\.\d+)?)\s*,\s*(-?\d+(?:\.\d+)?)\s*\]?\s*>")
# Who names a point, and its colour.
QUESTION, ANSWER, SAID = PALETTE[0], PALETTE[3], PALETTE[1]
_FRAMES = 6


@dataclass
class Pictures:
    """Reads and embeds; `left` counts the bytes that the page still has for pictures, `problems` what could not be shown."""

    roots: Sequence[Path]
    left: int
    shown: int = 0
    problems: int = 0
    no_room: int = 0

    def strip(self, item: Prediction) -> list[tuple[Markup, str]]:
        """(picture, caption) of each picture of the row, cameras in their order; a video as frames. A picture that cannot be shown is a
        caption with the reason."""
        images = sorted(enumerate(item.images), key=lambda pair: (_camera_place(pair[1]), pair[0]))
        if images:
            several = len(images) > 1
            return [self._figure(item, path, number, several) for number, path in images]
        if isinstance(item.row.get("video"), str):
            return self._video(item, item.row["video"])
        return []

    def _find(self, path: str, where: str) -> str:
        """The file below one of the roots. Raises BadRow where it is below none."""
        for root in self.roots:
            found = Path(resolve_below(str(root), path, where))
            if found.exists():
                return str(found)
        tried = " or ".join(map(str, self.roots)) or "no folder"
        raise BadRow("image_missing", where, f"no picture {path} below {tried}", "Give --image_root")

    def _figure(self, item: Prediction, path: str, number: int, several: bool) -> tuple[Markup, str]:
        from drive_vlm.data.vision import load_image

        caption = _camera_of(path) or (f"picture {number + 1}" if several else "")
        try:
            picture = load_image(self._find(path, item.where), item.where)
        except BadRow as error:
            self.problems += 1
            return Markup(""), f"{caption} not shown: {error.problem}".strip()
        boxes, marks = drawn_on(item, _camera_of(path), number, picture.size, several)
        return self._embedded(picture, boxes, marks, several, caption)

    def _embedded(
        self, picture: "Image", boxes: Sequence[Box], marks: Sequence[Mark], several: bool, caption: str
    ) -> tuple[Markup, str]:
        if self.left <= 0:
            self.no_room += 1
            return Markup(""), f"{caption} not shown: the page is full".strip()
        svg = boxed(picture, boxes, _SMALLER if several else LARGEST, marks)
        self.left -= len(svg)
        self.shown += 1
        # boxed escapes every text in it.
        return Markup(svg), caption

    def _video(self, item: Prediction, path: str) -> list[tuple[Markup, str]]:
        from drive_vlm.data.vision import load_video

        try:
            frames = load_video(self._find(path, item.where), _FRAMES, item.where)
        except (BadRow, ImportError) as error:
            self.problems += 1
            return [(Markup(""), f"video not shown: {getattr(error, 'problem', error)}")]
        return [
            self._embedded(frame, [], [], True, f"frame {i + 1} of {len(frames)}") for i, frame in enumerate(frames)
        ]


def _camera_of(path: str) -> str:
    """The camera that a path names; the longest name, for CAM_FRONT begins CAM_FRONT_LEFT."""
    found = [camera for camera in CAMERAS if camera in path]
    return max(found, key=len, default="")


def _camera_place(path: str) -> int:
    camera = _camera_of(path)
    return CAMERAS.index(camera) if camera else len(CAMERAS)


def drawn_on(
    item: Prediction, camera: str, number: int, size: tuple[int, int], several: bool
) -> tuple[list[Box], list[Mark]]:
    """Boxes of the row's columns "candidates" and "boxes", and the points <c1,CAM_FRONT,x,y> of question, answer and prediction.

    Boxes are those of the first picture. A point outside its picture is not drawn.
    """
    boxes = []
    for place, entry in enumerate(_boxes_of(item.row) if number == 0 else []):
        coordinates, label = entry
        boxes.append(Box(coordinates, PALETTE[place % len(PALETTE)], str(place + 1), label))
    marks = []
    texts = (
        (QUESTION, "question", str(item.row.get("question") or "")),
        (ANSWER, "answer", item.reference),
        (SAID, "model", item.prediction),
    )
    for colour, who, text in texts:
        for name, of, stitched, x, y in _TAG.findall(text):
            if of != camera and (several or not stitched):
                continue
            across, down = float(x), float(y)
            if stitched:
                across, down = across * size[0] / 1000, down * size[1] / 1000
            if 0 <= across <= size[0] and 0 <= down <= size[1]:
                marks.append(Mark((across, down), colour, name, f"{who}: {name} at {x}, {y} of {of}"))
    return boxes, marks


def _boxes_of(row: dict[str, Any]) -> list[tuple[list[float], str]]:
    """(x1, y1, x2, y2 in pixels; name) of what the row's columns hold in one of the two forms: a list, or {"box", "name"}."""
    found = []
    for column in ("candidates", "boxes"):
        entries = row.get(column)
        for entry in entries if isinstance(entries, list) else []:
            box, name = (entry.get("box"), str(entry.get("name") or "")) if isinstance(entry, dict) else (entry, "")
            if isinstance(box, list) and len(box) == 4 and all(_finite(side) for side in box):
                (x1, x2), (y1, y2) = sorted(map(float, box[::2])), sorted(map(float, box[1::2]))
                found.append(([x1, y1, x2, y2], name))
    return found


def _finite(number: object) -> bool:
    return isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number)
