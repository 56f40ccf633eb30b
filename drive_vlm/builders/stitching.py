"""Six nuScenes views as one 3x2 picture, and DriveLM's object tags moved between the views and that picture.

The layout is Mini-InternVL's DriveLM adaptation (arXiv 2410.16261): each 1600x900 view is resized to 896x448 and
placed as FRONT_LEFT, FRONT, FRONT_RIGHT above BACK_LEFT, BACK, BACK_RIGHT; the picture has 2688x896 pixels = 6x2 tiles
of 448. A tag `<c1,CAM_BACK,1088.3,497.5>` (pixels of its view) becomes `<c1,CAM_BACK,[560, 776]>`: thousandths of the
stitched width and height. The brackets mark the second form, so that nothing is mapped twice.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from drive_vlm.data.samples import BadRow
from drive_vlm.data.vision import load_image

if TYPE_CHECKING:
    from PIL.Image import Image

VIEW_SIZE = (1600, 900)
TILE_SIZE = (896, 448)
STITCHED_SIZE = (2688, 896)
# Column and row of each camera in the stitched picture.
LAYOUT = {
    "CAM_FRONT_LEFT": (0, 0),
    "CAM_FRONT": (1, 0),
    "CAM_FRONT_RIGHT": (2, 0),
    "CAM_BACK_LEFT": (0, 1),
    "CAM_BACK": (1, 1),
    "CAM_BACK_RIGHT": (2, 1),
}
# Thousandths are whole numbers, hence half of 1/1000 of the stitched size, in pixels of a view: (2.4, 0.9).
QUANTISATION_ERROR = tuple(0.5 / 1000 * STITCHED_SIZE[axis] * VIEW_SIZE[axis] / TILE_SIZE[axis] for axis in (0, 1))

_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
_PIXEL_TAG = re.compile(rf"<(c\d+)\s*,\s*(CAM_[A-Z_]+)\s*,{_NUMBER},{_NUMBER}>")
_NORMALISED_TAG = re.compile(rf"<(c\d+)\s*,\s*(CAM_[A-Z_]+)\s*,\s*\[{_NUMBER},{_NUMBER}\]\s*>")


class Job(NamedTuple):
    """A picture to be stitched: where it goes, the six views by camera, and `where` for messages."""

    target: Path
    views: Mapping[str, Path]
    where: str


def to_stitched(camera: str, x: float, y: float) -> tuple[float, float]:
    """(x, y) in pixels of a 1600x900 view -> thousandths (0-1000) of the stitched picture.

    Raises ValueError for a camera that is not one of the six.
    """
    column, row = _place(camera)
    across = (column * TILE_SIZE[0] + x * TILE_SIZE[0] / VIEW_SIZE[0]) * 1000 / STITCHED_SIZE[0]
    down = (row * TILE_SIZE[1] + y * TILE_SIZE[1] / VIEW_SIZE[1]) * 1000 / STITCHED_SIZE[1]
    return across, down


def from_stitched(camera: str, across: float, down: float) -> tuple[float, float]:
    """Inverse of `to_stitched`, kept inside the view: a point outside lands on its border."""
    column, row = _place(camera)
    x = (across * STITCHED_SIZE[0] / 1000 - column * TILE_SIZE[0]) * VIEW_SIZE[0] / TILE_SIZE[0]
    y = (down * STITCHED_SIZE[1] / 1000 - row * TILE_SIZE[1]) * VIEW_SIZE[1] / TILE_SIZE[1]
    return min(max(x, 0.0), float(VIEW_SIZE[0])), min(max(y, 0.0), float(VIEW_SIZE[1]))


def normalise_tags(text: str) -> str:
    """Every pixel tag of `text` in thousandths of the stitched picture.

    Raises ValueError for a tag with an unknown camera.
    """

    def replace(match: re.Match[str]) -> str:
        name, camera, x, y = match.groups()
        across, down = to_stitched(camera, float(x), float(y))
        return f"<{name},{camera},[{round(across)}, {round(down)}]>"

    return _PIXEL_TAG.sub(replace, text)


def denormalise_tags(text: str) -> str:
    """Inverse of `normalise_tags` up to QUANTISATION_ERROR and the first decimal.

    `text` may be a model's: a tag with a camera that does not exist is left as it stands, and scores nothing.
    """

    def replace(match: re.Match[str]) -> str:
        name, camera, across, down = match.groups()
        if camera not in LAYOUT:
            return match.group(0)
        x, y = from_stitched(camera, float(across), float(down))
        return f"<{name},{camera},{x:.1f},{y:.1f}>"

    return _NORMALISED_TAG.sub(replace, text)


def stitch(views: Mapping[str, "Image"], layout: Mapping[str, tuple[int, int]] = LAYOUT) -> "Image":
    """One RGB picture of 2688x896 from the six views, given by camera, each at its column and row of `layout`.

    Raises ValueError for a missing or unknown camera.
    """
    from PIL import Image

    if set(views) != set(LAYOUT):
        missing, unknown = sorted(set(LAYOUT) - set(views)), sorted(set(views) - set(LAYOUT))
        raise ValueError(f"a stitched picture needs the six cameras; missing {missing}, unknown {unknown}")
    picture = Image.new("RGB", STITCHED_SIZE)
    for camera, view in views.items():
        column, row = layout[camera]
        tile = view.convert("RGB").resize(TILE_SIZE, Image.Resampling.BICUBIC)
        picture.paste(tile, (column * TILE_SIZE[0], row * TILE_SIZE[1]))
    return picture


def stitch_files(jobs: Sequence[Job], workers: int, layout: Mapping[str, tuple[int, int]] = LAYOUT) -> None:
    """Write the stitched picture of each job, by threads, with a progress bar on stderr.

    Raises ValueError, naming place and file, for a view that cannot be decoded.
    """
    from concurrent.futures import ThreadPoolExecutor

    from rich.console import Console
    from rich.progress import track

    def work(job: Job) -> None:
        views = {}
        for camera, path in job.views.items():
            try:
                views[camera] = load_image(str(path), job.where)
            except BadRow as error:
                raise ValueError(f"{error.where}: {path}: cannot be decoded ({error.problem})") from error
        stitch(views, layout).save(job.target, quality=95)

    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        for _ in track(pool.map(work, jobs), "stitching", total=len(jobs), console=Console(stderr=True)):
            pass


def _place(camera: str) -> tuple[int, int]:
    if camera not in LAYOUT:
        raise ValueError(f"unknown camera {camera!r}; expected one of {', '.join(LAYOUT)}")
    return LAYOUT[camera]
