"""Arithmetic of boxes [x1, y1, x2, y2] in pixels: overlap, clipping, and one box for what was found several times."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from drive_vlm.builders.synthesis.records import Box, FoundBox


def overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union float64[N, M] of boxes float[N, 4] and float[M, 4]; 0 where both are empty."""
    shared = intersections(first, second)
    total = areas(first)[:, None] + areas(second)[None] - shared
    return np.divide(shared, total, out=np.zeros_like(shared), where=total > 0)


def intersections(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Shared area float64[N, M] of boxes float[N, 4] and float[M, 4]."""
    first, second = (np.asarray(boxes, dtype=np.float64).reshape(-1, 4) for boxes in (first, second))
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    return (high - low).clip(0).prod(axis=2)


def areas(boxes: np.ndarray) -> np.ndarray:
    """float64[N]."""
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    return (boxes[:, 2:] - boxes[:, :2]).clip(0).prod(axis=1)


def clipped(box: Sequence[float], width: int, height: int) -> Box:
    """The box inside a picture of this size, to a tenth of a pixel."""
    x1, y1, x2, y2 = box
    limits = ((x1, width), (y1, height), (x2, width), (y2, height))
    return [round(min(max(float(value), 0.0), float(limit)), 1) for value, limit in limits]


def each_object_once(
    found: Sequence[FoundBox], width: int, height: int, same_label: float, any_label: float
) -> tuple[list[FoundBox], Counter[str]]:
    """(boxes in the order of their scores, what was dropped by reason).

    Boxes are clipped to the picture; those of less than a pixel on a side are dropped (outside_picture). Of boxes that overlap by
    more than `same_label` under one label (found_twice), or more than `any_label` under two (two_labels), the surer one stays; of two
    with one score the one that came first.
    """
    dropped: Counter[str] = Counter()
    kept: list[FoundBox] = []
    for item in sorted(found, key=lambda item: -item.score):
        box = clipped(item.box, width, height)
        if box[2] - box[0] < 1 or box[3] - box[1] < 1:
            dropped["outside_picture"] += 1
            continue
        overlap = overlaps(np.array([box]), np.array([other.box for other in kept]))[0]
        labels = [other.label == item.label for other in kept]
        if any(value > same_label and same for value, same in zip(overlap, labels, strict=True)):
            dropped["found_twice"] += 1
        elif any(value > any_label for value in overlap):
            dropped["two_labels"] += 1
        else:
            kept.append(FoundBox(box, item.label, item.score, item.by, item.rle))
    return kept, dropped
