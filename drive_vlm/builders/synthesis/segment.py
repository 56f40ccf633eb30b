"""Step 2: masks of what has no name yet, by the mask-generation pipeline of transformers (SAM, SAM2 and their kin)."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from drive_vlm.builders.synthesis.boxes import clipped, overlaps
from drive_vlm.builders.synthesis.devices import device, open_model
from drive_vlm.builders.synthesis.pictures import Picture, load_all
from drive_vlm.builders.synthesis.records import FoundBox, Region, field_of, plain_record
from drive_vlm.builders.synthesis.rle import encode_rle
from drive_vlm.builders.synthesis.step import Made, Make
from drive_vlm.data.samples import BadRow

if TYPE_CHECKING:
    from PIL.Image import Image

# (mask bool[H, W], score) of each region of a picture.
Masks = list[tuple[np.ndarray, float]]
Segment = Callable[["Image"], Masks]


@dataclass(frozen=True)
class Limits:
    """Which masks are kept: their share of the picture's area, and the overlap (IoU of boxes) with a named box from which on the region
    has a name already."""

    least_area: float
    most_area: float
    named_overlap: float


def open_segmenter(
    model: str, points_per_side: int, points_per_batch: int, iou: float, stability: float, dtype: str
) -> Segment:
    """Picture -> masks of the model at `model`, asked at a grid of points. `iou` and `stability` are the pipeline's thresholds."""
    import transformers as hf
    from transformers.pipelines import MaskGenerationPipeline

    config = open_model(hf.AutoConfig, model)
    network = open_model(hf.AutoModelForMaskGeneration, model, dtype).to(device()).eval()
    pictures = open_model(hf.AutoImageProcessor, model)
    if config.model_type not in ("sam", "sam2", "sam_hq", "edgetam"):
        raise ValueError(
            f"--model {model}: a {config.model_type} makes no masks of points. Give a SAM, SAM2, SAM-HQ or EdgeTAM."
        )
    pipeline = MaskGenerationPipeline(model=network, image_processor=pictures, device=device())

    def segment(picture: "Image") -> Masks:
        found = pipeline(
            picture,
            points_per_batch=points_per_batch,
            points_per_crop=points_per_side,
            pred_iou_thresh=iou,
            stability_score_thresh=stability,
        )
        scores = [float(score) for score in found["scores"]]
        return [(np.asarray(mask, dtype=bool), score) for mask, score in zip(found["masks"], scores, strict=True)]

    return segment


def segmenting(segment: Segment, limits: Limits) -> Make:
    """The make of the step."""

    def make(pictures: Sequence[Picture]) -> Iterator[Made | BadRow]:
        for picture, shown in zip(pictures, load_all(pictures), strict=True):
            if isinstance(shown, ValueError):
                yield shown
                continue
            named = field_of(line, "boxes", picture.where) if "boxes" in (line := picture.line) else []
            regions, dropped = regions_of(segment(shown), named, limits)
            fields: dict[str, Any] = {"regions": [plain_record(region) for region in regions]}
            yield Made(fields if "size" in line else {"size": list(shown.size)} | fields, dict(dropped))

    return make


def regions_of(masks: Masks, named: Sequence[FoundBox], limits: Limits) -> tuple[list[Region], Counter[str]]:
    """(regions by falling score, what was dropped by reason: too_small, too_large, has_a_name)."""
    dropped: Counter[str] = Counter()
    regions = []
    boxes = np.array([item.box for item in named], dtype=np.float64).reshape(-1, 4)
    for mask, score in sorted(masks, key=lambda item: -item[1]):
        share = float(mask.mean())
        # A mask may have no pixel at all.
        if not share or share < limits.least_area:
            dropped["too_small"] += 1
            continue
        if share > limits.most_area:
            dropped["too_large"] += 1
            continue
        box = box_of(mask)
        if len(boxes) and overlaps(np.array([box]), boxes).max() >= limits.named_overlap:
            dropped["has_a_name"] += 1
        else:
            # A model's own estimate of its IoU may pass 1.
            regions.append(Region(encode_rle(mask), box, round(min(max(score, 0.0), 1.0), 4)))
    return regions, dropped


def box_of(mask: np.ndarray) -> list[float]:
    """The box around the pixels of a mask bool[H, W] that has some: x2 and y2 are the edges behind the last pixel."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    height, width = mask.shape
    return clipped([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], width, height)
