"""`--shard I/N`: the part of a list that one job of an array takes."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")


def parse_shard(text: str | None) -> tuple[int, int]:
    """(I, N) of "I/N"; (0, 1) for None. Raises ValueError for anything but 0 <= I < N."""
    if text is None:
        return 0, 1
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    index, count = (int(number) for number in match.groups()) if match else (0, 0)
    if not 0 <= index < count:
        raise ValueError(f"--shard {text}: write I/N with I from 0 to N-1, e.g. 0/8 for the first of eight.")
    return index, count


def shard_of(items: Sequence[Item], shard: tuple[int, int]) -> list[Item]:
    """The I-th of N consecutive parts of `items`, equal but for one; joined in order they are the items again."""
    index, count = shard
    return list(items[len(items) * index // count : len(items) * (index + 1) // count])


def shard_path(path: Path, shard: tuple[int, int]) -> Path:
    """The file of shard I of N: out.shard-02-of-08.jsonl; sorted by name they are in the order of the shards."""
    index, count = shard
    width = max(2, len(str(count)))
    return path.with_name(f"{path.stem}.shard-{index:0{width}}-of-{count:0{width}}{path.suffix}")
