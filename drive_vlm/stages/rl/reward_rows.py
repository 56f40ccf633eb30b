"""Whether the rewards of a GRPO run can score every row, asked before the training and not in the middle of it."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from accelerate.utils import gather_object

from drive_vlm.data.caches.feature_cache import FeatureCache
from drive_vlm.data.samples import BadRow, Sample
from drive_vlm.data.table import RowTable
from drive_vlm.data.vision import video_frames
from drive_vlm.stages.rl.prompts import columns_of, same_keys
from drive_vlm.stages.rl.scorers import Scorer

_THREADS = 8
_SHOWN = 3
# ((source, row), "file:line: what is wrong") of each row that a reward cannot score.
Problems = list[tuple[tuple[int, int], str]]


def check_rows(
    table: RowTable,
    scorers: Sequence[Scorer],
    num_frames: int,
    features: FeatureCache | None,
    rank: int,
    world_size: int,
) -> None:
    """Ask each of `scorers` that has a check (Scorer.check) about each row: its columns, `sample`, the row itself, and
    `frames`, the numbers of the frames that the run takes of its video. The ranks share the rows and agree on the result;
    with a feature cache (`features`, else None) no video is opened.

    Raises ValueError with the number of rows that a reward cannot score, and file:line and problem of the first.
    """
    asked = [scorer for scorer in scorers if scorer.checks]
    if not asked:
        return
    numbers = {place: i for i, place in enumerate(zip(table.source.tolist(), table.row.tolist(), strict=True))}
    # Repeated rows are asked about once.
    mine = [numbers[place] for place in sorted(numbers)[rank::world_size]]
    answer: tuple[list[Problems], str] = [], ""
    try:
        answer = _ask(table, mine, asked, num_frames, features), ""
    except ValueError as error:
        # Every rank must learn of it, or the others would wait for this one in the gather; only the main one prints.
        answer = [], str(error)
    parts = gather_object([answer])
    for _, failure in parts:
        if failure:
            raise ValueError(failure)
    for i, scorer in enumerate(asked):
        problems = sorted(item for found, _ in parts for item in found[i])
        if problems:
            first = "; ".join(text for _, text in problems[:_SHOWN])
            more = f"; and {len(problems) - _SHOWN:,} more" if len(problems) > _SHOWN else ""
            raise ValueError(
                f"reward {scorer.__name__} cannot score {len(problems):,} of {len(numbers):,} rows: {first}{more}"
            )


def _ask(
    table: RowTable, rows: Sequence[int], asked: Sequence[Scorer], num_frames: int, features: FeatureCache | None
) -> list[Problems]:
    """The problems of each reward with these rows."""

    def look(i: int) -> tuple[str, dict[str, Any]]:
        sample, source = table.sample(i, need_answer=False), table.sources[table.source[i]]
        frames = _frames(sample, num_frames, features, source.max_tiles)
        return sample.where, columns_of(sample, source.root) | {"frames": frames, "sample": sample}

    if not rows:
        return [[] for _ in asked]
    with ThreadPoolExecutor(_THREADS) as threads:
        places, found_columns = zip(*threads.map(look, rows), strict=True)
    filled = same_keys(found_columns)
    columns = {name: [row[name] for row in filled] for name in filled[0]}
    found: list[Problems] = []
    for scorer in asked:
        answers = zip(rows, places, scorer.check(columns), strict=True)
        found.append(
            [((int(table.source[i]), int(table.row[i])), f"{where}: {text}") for i, where, text in answers if text]
        )
    return found


def _frames(sample: Sample, num_frames: int, features: FeatureCache | None, max_tiles: int | None) -> list[int] | None:
    """Numbers of the frames that are taken of the row's video; None without one, and for one that the loader cannot read."""
    if sample.video is None:
        return None
    try:
        if features is not None:
            frames = features.find(sample, max_tiles).frames
            assert frames is not None, "the entry of a video has its frames"
            return list(frames)
        return video_frames(sample.video, num_frames, sample.where)
    except BadRow:
        return None
