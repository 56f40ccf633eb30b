"""Step 3: each box and region as a vector, of its crop with some context and of the crop with its background greyed."""

import base64
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from drive_vlm.builders.synthesis.embedders import Embed, unit
from drive_vlm.builders.synthesis.pictures import Picture, load_all
from drive_vlm.builders.synthesis.records import Crop, Rle, field_of, plain_record
from drive_vlm.builders.synthesis.rle import decode_rle
from drive_vlm.builders.synthesis.step import Made, Make, Place
from drive_vlm.data.samples import BadRow
from drive_vlm.store.cache import write_atomically
from drive_vlm.store.keyed_lines import write_lines

if TYPE_CHECKING:
    from PIL.Image import Image

# The field in which a line that is not joined yet holds its vectors.
PACKED = "packed_vectors"
_GREY = (127, 127, 127)


@dataclasses.dataclass(frozen=True)
class Views:
    """`context`: share of a box's width and height that a crop shows beyond each of its sides. `least_side`: pixels below which a box
    is not embedded: a handful of pixels is like everything."""

    context: float
    least_side: float


def crop_views(picture: "Image", box: Sequence[float], rle: Rle | None, context: float) -> list["Image"]:
    """[the crop with its context, and with a mask the same with grey in place of what is not the object]."""
    from PIL import Image

    wide, high = (box[2] - box[0]) * context, (box[3] - box[1]) * context
    left, top = (max(0, int(np.floor(value))) for value in (box[0] - wide, box[1] - high))
    right = min(picture.width, max(left + 1, int(np.ceil(box[2] + wide))))
    low = min(picture.height, max(top + 1, int(np.ceil(box[3] + high))))
    crop = picture.crop((left, top, right, low))
    if rle is None:
        return [_square(crop)]
    mask = decode_rle(rle)[top:low, left:right]
    alone = Image.composite(crop, Image.new("RGB", crop.size, _GREY), Image.fromarray(mask))
    return [_square(crop), _square(alone)]


def _square(crop: "Image") -> "Image":
    """The crop in the middle of a grey square: encoders that cut a square out of the middle would lose a pedestrian's head."""
    from PIL import Image

    side = max(crop.size)
    square = Image.new("RGB", (side, side), _GREY)
    square.paste(crop, ((side - crop.width) // 2, (side - crop.height) // 2))
    return square


def embed_crops(
    embed: Embed, picture: "Image", crops: Sequence[tuple[Sequence[float], Rle | None]], context: float
) -> np.ndarray:
    """float16[N, D]: the mean of each crop's views, of length 1."""
    views = [crop_views(picture, box, rle, context) for box, rle in crops]
    vectors = embed([view for group in views for view in group])
    ends = np.cumsum([len(group) for group in views]).tolist()
    means = [vectors[end - len(group) : end].mean(axis=0) for end, group in zip(ends, views, strict=True)]
    return unit(np.stack(means)).astype(np.float16) if means else np.zeros((0, 0), dtype=np.float16)


def embedding(embed: Embed, views: Views) -> Make:
    """The make of the step: the boxes and regions of the line of each picture."""

    def make(pictures: Sequence[Picture]) -> Iterator[Made | BadRow]:
        for picture, shown in zip(pictures, load_all(pictures), strict=True):
            if isinstance(shown, ValueError):
                yield shown
                continue
            found = things(picture.line, picture.where)
            kept = [item for item in found if min(_sides(item.box)) >= views.least_side]
            vectors = embed_crops(embed, shown, [(item.box, item.rle) for item in kept], views.context)
            items = [plain_record(dataclasses.replace(item, vector=i)) for i, item in enumerate(kept)]
            dropped = {"too_few_pixels": len(found) - len(kept)} if len(kept) < len(found) else {}
            yield Made({"items": items, PACKED: pack(vectors)}, dropped)

    return make


def things(line: dict[str, Any], where: str) -> list[Crop]:
    """What of a line is to be embedded. Raises ValueError for a line that has neither boxes nor regions."""
    if "boxes" not in line and "regions" not in line:
        raise ValueError(f"{where}: neither boxes nor regions. Give a file of synth_detect.py or synth_segment.py.")
    found = []
    for name, source in (("boxes", "box"), ("regions", "region")):
        for i, item in enumerate(field_of(line, name, where) if name in line else []):
            found.append(Crop(item.box, source, i, -1, item.rle))
    return found


def _sides(box: Sequence[float]) -> tuple[float, float]:
    return box[2] - box[0], box[3] - box[1]


# ---- vectors beside the lines


def vectors_path(out: Path) -> Path:
    return out.with_name(f"{out.name}.vectors.npy")


def pack(vectors: np.ndarray) -> dict[str, Any]:
    """Vectors float16[N, D] as a line holds them until they are joined."""
    return {"shape": list(vectors.shape), "data": base64.b64encode(vectors.astype("<f2").tobytes()).decode()}


def unpack(packed: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed["data"]), dtype="<f2").reshape(packed["shape"])


def open_vectors(out: Path) -> np.ndarray:
    """float16[N, D] of the step's file `out`, memory-mapped. Raises ValueError where they are not there."""
    path = vectors_path(out)
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file; the vectors of {out.name} belong beside it. Run tools/synth_embed.py again."
        )
    vectors = np.load(path) if path.stat().st_size < 256 else np.load(path, mmap_mode="r")
    if vectors.dtype != np.float16 or vectors.ndim != 2:
        raise ValueError(
            f"{path}: {vectors.dtype}{list(vectors.shape)} are no vectors of a step. Run tools/synth_embed.py again."
        )
    return vectors


def store_vectors(out: Path, places: Sequence[Place]) -> Iterator[dict[str, Any]]:
    """Write OUT.vectors.npy float16[N, D] in the order of the lines, and give the lines with the numbers of their rows in it.

    OUT and its vectors are two files, and a kill may come between them: all lines are in a part with their vectors first, which the
    engine removes after OUT is written, and OUT is gone until both are whole.
    """
    whole = out.with_name(f"{out.name}.part0")
    write_lines(whole, (_packed_line(place) for place in places))
    out.unlink(missing_ok=True)
    shapes = [unpack(line[PACKED]).shape for line in _lines(whole)]
    rows, width = sum(shape[0] for shape in shapes), max((shape[1] for shape in shapes), default=0)

    def write(file: Any) -> None:
        header = {"descr": "<f2", "fortran_order": False, "shape": (rows, width)}
        np.lib.format.write_array_header_1_0(file, header)
        for line in _lines(whole):
            file.write(unpack(line[PACKED]).tobytes())

    write_atomically(vectors_path(out), write)
    first = 0
    for line in _lines(whole):
        del line[PACKED]
        for item in line["items"]:
            item["vector"] += first
        first += len(line["items"])
        yield line


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    from drive_vlm.data.jsonl import JsonlFile

    return iter(JsonlFile(path)) if path.stat().st_size else iter(())


def _packed_line(place: Place) -> dict[str, Any]:
    """The line with its own vectors, counted from 0, wherever it stands."""
    line = place.line
    if PACKED in line:
        return line
    rows = [item["vector"] for item in line["items"]]
    vectors = open_vectors(place.file.path)
    if rows and max(rows) >= len(vectors):
        raise ValueError(
            f"{place.file.path}: names vector {max(rows)} of {len(vectors)}. Give another --out, or remove both files."
        )
    items = [item | {"vector": i} for i, item in enumerate(line["items"])]
    return line | {"items": items, PACKED: pack(vectors[rows] if rows else np.zeros((0, 0), dtype=np.float16))}
