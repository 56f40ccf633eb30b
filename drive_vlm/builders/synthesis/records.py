"""What the fields of a step's line hold, and readers that name file, line and field of what is damaged.

Boxes are [x1, y1, x2, y2] in pixels of the picture as it is displayed. Scores lie in 0..1.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drive_vlm.config import plain
from drive_vlm.store.forms import part

Box = list[float]


@dataclass(frozen=True)
class Rle:
    """A mask as COCO writes it: size [height, width], and run lengths down the columns in COCO's letters (rle.py)."""

    size: list[int]
    counts: str


@dataclass(frozen=True)
class FoundBox:
    """A box of "boxes": what the detector called `by` takes for a `label`; with its mask where the detector gives one."""

    box: Box
    label: str
    score: float
    by: str
    rle: Rle | None = None

    def __post_init__(self) -> None:
        check_box(self.box)
        check_score(self.score)


@dataclass(frozen=True)
class Region:
    """A region of "regions": its mask, the box around it, and how sure the segmenter is."""

    rle: Rle
    box: Box
    score: float

    def __post_init__(self) -> None:
        check_box(self.box)


@dataclass(frozen=True)
class Crop:
    """An item of "items": a box or a region, and the number of its row in the step's vectors. `source`: "box" or "region";
    `place`: its place in "boxes" or "regions"."""

    box: Box
    source: str
    place: int
    vector: int
    rle: Rle | None = None

    def __post_init__(self) -> None:
        check_box(self.box)
        if self.source not in ("box", "region"):
            raise ValueError(f"source must be box or region, got {self.source!r}")


@dataclass(frozen=True)
class Hit:
    """A neighbour: its name, its cosine similarity in -1..1, and its row in the data base."""

    name: str
    score: float
    row: int


@dataclass(frozen=True)
class NamedObject:
    """An entry of "objects": what a text may name. `by`: "detector" or "retrieval".

    `margin`: how much the name's best neighbour is nearer than that of any other name; `agree` [n, k]: n of k neighbours have the
    name. Both are None, and `hits` is empty, for a detector's label that was not looked up.
    """

    box: Box
    label: str
    score: float
    by: str
    margin: float | None = None
    agree: list[int] | None = None
    hits: list[Hit] | None = None
    rle: Rle | None = None

    def __post_init__(self) -> None:
        check_box(self.box)
        if self.by not in ("detector", "retrieval"):
            raise ValueError(f"by must be detector or retrieval, got {self.by!r}")


@dataclass(frozen=True)
class UnknownObject:
    """An entry of "unknown": something is there, and no name passes. `score`: similarity of its nearest neighbour."""

    box: Box
    score: float
    rle: Rle | None = None

    def __post_init__(self) -> None:
        check_box(self.box)


@dataclass(frozen=True)
class Description:
    """What the knowledge file says of a label, with the licence that travels with the text."""

    title: str
    text: str
    url: str
    licence: str


# Field of a line -> what it holds, and the step that adds it.
FIELDS: dict[str, tuple[Any, str]] = {
    "size": (list[int], "detect"),
    "boxes": (list[FoundBox], "detect"),
    "unknown_labels": (dict[str, int], "detect"),
    "regions": (list[Region], "segment"),
    "items": (list[Crop], "embed"),
    "objects": (list[NamedObject], "retrieve"),
    "unknown": (list[UnknownObject], "retrieve"),
    "descriptions": (dict[str, Any], "describe"),
    "caption_raw": (str, "caption"),
    "caption_fine": (str, "refine"),
    "used_objects": (list[str], "refine"),
    "dropped_claims": (list[str], "refine"),
    "rows": (list[dict], "questions"),
}


def field_of(line: dict[str, Any], name: str, where: str) -> Any:
    """The field `name` of a step's line, as FIELDS says: dataclasses for boxes, regions, items, objects. Raises ValueError `where: ...`
    for a field that is missing or damaged, with the step that writes it."""
    kind, step = FIELDS[name]
    way_out = f"Give a file that tools/synth_{step}.py has written"
    return part(line, name, kind, Path(where), way_out)


def descriptions_of(line: dict[str, Any], where: str) -> dict[str, Description | None]:
    """The field "descriptions": None for a label without one. Raises ValueError as field_of."""
    found = field_of(line, "descriptions", where)
    way_out = "Give a file that tools/synth_describe.py has written"
    # An empty object has no dots to be read as a path of fields: labels may hold some.
    return {
        label: None
        if entry is None
        else part({"entry": entry}, "entry", Description, Path(f"{where}: {label}"), way_out)
        for label, entry in found.items()
    }


def plain_record(record: Any) -> dict[str, Any]:
    """A dataclass of this file as its JSON object; what it has nothing to say of is left out."""
    return {name: value for name, value in plain(record).items() if value is not None}


def check_box(box: list[float]) -> None:
    """Raises ValueError unless it is four finite numbers with x1 <= x2 and y1 <= y2."""
    if len(box) != 4 or not all(math.isfinite(value) for value in box) or box[0] > box[2] or box[1] > box[3]:
        raise ValueError(f"a box must be four numbers x1, y1, x2, y2 with x1 <= x2 and y1 <= y2, got {box}")


def check_score(score: float) -> None:
    """Raises ValueError outside 0..1."""
    if not 0 <= score <= 1:
        raise ValueError(f"a score must lie in 0..1, got {score}")
