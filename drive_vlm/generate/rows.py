"""The rows to answer: those of data files, and one for each video or folder of frames that --mode asks about.

Notes for later steps go with a row in columns that begin with "_", which are never written out: `_image` and `_video` are the
paths that a prediction shows, `_max_tiles` is the tile limit of the row's data file.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from drive_vlm.data.samples import VIDEO, BadRow, Sample, Turn
from drive_vlm.data.videos import MODES, find_videos, is_media, shown_path
from drive_vlm.launch.topology import read_topology

if TYPE_CHECKING:
    from drive_vlm.data.sources import Source
    from drive_vlm.generate.config import GenerateConfig


def read_rows(config: "GenerateConfig") -> tuple[list[Sample], list[BadRow]]:
    """All rows in order, and the bad ones (on_bad_row skip).

    A second row with the id of one of its data set is a bad row: predictions are found by both.
    Raises BadRow, and ValueError for a video without --mode, and for --mode when every row is of another mode.
    """
    samples: list[Sample] = []
    bad: list[BadRow] = []
    seen: dict[tuple[str, str], str] = {}
    others = 0
    for read in _readers(config):
        if config.limit is not None and len(samples) >= config.limit:
            break
        try:
            sample = read()
            if config.mode and sample.columns.get("mode", config.mode) != config.mode:
                others += 1
                continue
            if sample.key in seen:
                problem = f"id {sample.id!r} came before at {seen[sample.key]}. Predictions are found by id"
                way_out = "Make ids unique (videos: give the folder above both)"
                raise BadRow("duplicate_id", sample.where, problem, way_out)
        except BadRow as error:
            if config.on_bad_row == "error":
                raise
            bad.append(error)
            continue
        seen[sample.key] = sample.where
        samples.append(sample)
    if others and read_topology().is_main:
        print(f"{others:,} rows of another mode than {config.mode} are left out", flush=True)
    if others and not samples:
        raise ValueError(f"--mode {config.mode}: all {others} rows are of another mode. Give the rows of this one.")
    return samples, bad


def _readers(config: "GenerateConfig") -> Iterator[Callable[[], Sample]]:
    """One function a row, which reads it or raises BadRow."""
    from drive_vlm.data.sources import name_apart, open_sources

    opened = [
        [] if is_media(entry) else open_sources([entry], config.image_root, config.links) for entry in config.data
    ]
    name_apart([source for sources in opened for source in sources])
    for entry, sources in zip(config.data, opened, strict=True):
        for source in sources:
            yield from (partial(_file_sample, source, i, config.mode) for i in range(len(source.rows)))
        if is_media(entry):
            if config.mode is None:
                raise ValueError(
                    f"{entry} is a video or a folder: say what to ask, --mode {' or --mode '.join(MODES)}."
                )
            for name, path in find_videos(entry):
                shown = shown_path(path, config.image_root)
                yield partial(_media_sample, Path(entry).resolve().name, name, path, shown, config.mode)


def _media_sample(dataset: str, name: str, path: str, shown: str, mode: str) -> Sample:
    """A row for the video at `path`, which answers call `shown`; `name` becomes its id and group."""
    columns = {"dataset": dataset, "mode": mode, "_video": shown, "_max_tiles": None}
    return Sample(name, _question(mode), (), path, name, columns, path)


def _file_sample(source: "Source", i: int, mode: str | None) -> Sample:
    """Row `i` of a data file. With a mode its question becomes the mode's. The row's own answer stays only if the row names that
    mode: any other answer belongs to another question."""
    from drive_vlm.data.table import read_sample

    sample = read_sample(source, i, need_answer=False)
    relative = [os.path.relpath(path, source.root) for path in sample.images]
    columns = {
        "dataset": source.name,
        **sample.columns,
        "_image": relative[0] if len(relative) == 1 else relative,
        "_max_tiles": source.max_tiles,
    }
    if sample.video:
        columns["_video"] = os.path.relpath(sample.video, source.root)
    if mode is None or columns.get("mode", mode) != mode:
        return dataclasses.replace(sample, columns=columns)
    if not sample.video:
        problem = f"--mode {mode} asks about videos and the row has none"
        raise BadRow("no_video", sample.where, problem, "Leave out --mode")
    answer = sample.turns[-1:] if "mode" in columns and sample.reference else ()
    return dataclasses.replace(sample, turns=_question(mode) + answer, columns=columns | {"mode": mode})


def _question(mode: str) -> tuple[Turn, ...]:
    return (Turn("user", (VIDEO, MODES[mode])),)
