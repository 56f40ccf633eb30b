"""COCO's run lengths: against pycocotools, and against a decoder written from the definition."""

import numpy as np
import pytest

from drive_vlm.builders.synthesis.records import Rle
from drive_vlm.builders.synthesis.rle import area_of, decode_rle, encode_rle


def masks() -> list[np.ndarray]:
    """Blobs, noise, stripes that make negative differences, and the empty and the full mask."""
    drawn = np.random.default_rng(0)
    found = [
        drawn.random((height, width)) < share
        for height, width, share in ((1, 1, 0.5), (7, 5, 0.5), (33, 61, 0.02), (120, 90, 0.98))
    ]
    stripes = np.zeros((50, 40), dtype=bool)
    stripes[3:30, ::2] = True
    blob = np.zeros((720, 1280), dtype=bool)
    blob[100:620, 200:900] = True
    return [*found, stripes, blob, np.zeros((9, 4), dtype=bool), np.ones((9, 4), dtype=bool)]


def slowly(counts: str, height: int, width: int) -> np.ndarray:
    """The mask, pixel by pixel."""
    runs: list[int] = []
    at = 0
    while at < len(counts):
        bits = []
        while True:
            letter = ord(counts[at]) - 48
            at += 1
            bits += [(letter >> i) & 1 for i in range(5)]
            if not letter & 32:
                break
        value = sum(bit << i for i, bit in enumerate(bits)) - (bits[-1] << len(bits))
        runs.append(value + (runs[len(runs) - 2] if len(runs) > 2 else 0))
    flat = [bool(i % 2) for i, run in enumerate(runs) for _ in range(run)]
    return np.array([[flat[column * height + row] for column in range(width)] for row in range(height)])


@pytest.mark.parametrize("mask", masks(), ids=lambda mask: f"{mask.shape}")
def test_a_mask_comes_back(mask: np.ndarray) -> None:
    rle = encode_rle(mask)
    assert (decode_rle(rle) == mask).all() and area_of(rle) == mask.sum()
    if mask.size < 20_000:
        assert (slowly(rle.counts, *mask.shape) == mask).all()


@pytest.mark.parametrize("mask", masks(), ids=lambda mask: f"{mask.shape}")
def test_letters_are_those_of_pycocotools(mask: np.ndarray) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    rle = encode_rle(mask)
    assert coco.encode(np.asfortranarray(mask.astype(np.uint8))) == {"size": rle.size, "counts": rle.counts.encode()}


@pytest.mark.parametrize("counts", ["~", "0000", "P", ""])
def test_damaged_letters_are_refused(counts: str) -> None:
    with pytest.raises(ValueError, match=r"COCO mask|runs of"):
        decode_rle(Rle([3, 4], counts))
