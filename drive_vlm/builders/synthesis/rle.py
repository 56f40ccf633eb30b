"""COCO's compressed run lengths of a mask, without pycocotools.

A mask bool[H, W] is read column by column. Its runs of 0 and 1 in turn, beginning with 0, are counted; from the fourth run on the
difference to the run two before is written. A number is written in groups of 5 bits, lowest first, each with a sixth bit that says
whether another follows, as the letter 48 + group; the sign is the fifth bit of the last group. (COCO API, common/maskApi.c.)
"""

from collections.abc import Sequence

import numpy as np

from drive_vlm.builders.synthesis.records import Rle


def encode_rle(mask: np.ndarray) -> Rle:
    """The mask bool[H, W] as {"size": [H, W], "counts": letters}."""
    height, width = mask.shape
    return Rle([int(height), int(width)], _letters(run_lengths(mask)))


def run_lengths(mask: np.ndarray) -> list[int]:
    """Lengths of the runs of 0, 1, 0, 1, ... down the columns; the first is 0 where the mask begins with 1."""
    flat = np.asarray(mask, dtype=bool).ravel(order="F")
    turns = np.flatnonzero(np.diff(flat)) + 1
    ends = np.concatenate([[0], turns, [flat.size]])
    lengths = np.diff(ends).tolist()
    return [0, *lengths] if flat.size and flat[0] else lengths


def decode_rle(rle: Rle) -> np.ndarray:
    """The mask bool[H, W]. Raises ValueError for letters that are no runs of this size."""
    height, width = rle.size
    lengths = _numbers(rle.counts)
    if min(lengths, default=0) < 0 or sum(lengths) != height * width:
        raise ValueError(f"a mask of {height} x {width} pixels has runs of {sum(lengths)} pixels")
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, lengths).reshape((height, width), order="F")


def area_of(rle: Rle) -> int:
    """Pixels of the mask."""
    return sum(_numbers(rle.counts)[1::2])


def _letters(lengths: Sequence[int]) -> str:
    text = []
    for place, length in enumerate(lengths):
        value, more = length - (lengths[place - 2] if place > 2 else 0), True
        while more:
            group, value = value & 0x1F, value >> 5
            more = value != (-1 if group & 0x10 else 0)
            text.append(chr(48 + (group | 0x20 if more else group)))
    return "".join(text)


def _numbers(letters: str) -> list[int]:
    """The run lengths. Raises ValueError for letters that no writer makes."""
    lengths: list[int] = []
    value = shift = 0
    for letter in letters:
        group = ord(letter) - 48
        if not 0 <= group < 64:
            raise ValueError(f"{letter!r} is no letter of a COCO mask")
        value |= (group & 0x1F) << shift
        shift += 5
        if group & 0x20:
            continue
        if group & 0x10:
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("the letters of a COCO mask end in the middle of a number")
    return lengths
