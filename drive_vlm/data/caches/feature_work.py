"""What a feature cache is made from: the distinct pictures and videos of rows, decoded ahead of the tower."""

import dataclasses
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from drive_vlm.data.caches.feature_cache import FeatureCache, FileIdentity, media_key
from drive_vlm.data.samples import BadRow, Sample
from drive_vlm.data.sources import open_sources
from drive_vlm.data.table import read_sample
from drive_vlm.data.turns import one_row
from drive_vlm.data.videos import find_videos, is_media
from drive_vlm.data.vision import video_frames
from drive_vlm.models.vision import Layout, tiles_in


@dataclasses.dataclass
class Work:
    """One entry to make: the first row that names these pictures and its tile limit.

    `look_up` fills in `tiles` and `recorded` (Entry.bad of the cache, for pictures that could not be read); `decoded` fills in
    `frames` and `identity`.
    """

    sample: Sample
    max_tiles: int | None
    tiles: list[Layout] = dataclasses.field(default_factory=list)
    frames: list[int] | None = None
    recorded: tuple[str, str, str] | None = None
    identity: FileIdentity | None = None


def media_of_rows(
    data: Sequence[str], image_root: str | None, directory: Path, links: str = "follow"
) -> Iterator[tuple[str, Work] | BadRow | None]:
    """For each row, or video that no row names, the key of its pictures in the cache `directory` and the work, the BadRow, or
    None without pictures."""
    for entry in data:
        if is_media(entry):
            for name, path in find_videos(entry):
                sample = Sample(name, (), (), path, None, {}, path)
                yield media_key(sample, None, directory), Work(sample, None)
            continue
        for source in open_sources([entry], image_root, links):
            for i in range(len(source.rows)):
                try:
                    sample = read_sample(source, i, need_answer=False)
                except BadRow as error:
                    yield error
                    continue
                if sample.images or sample.video:
                    yield media_key(sample, source.max_tiles, directory), Work(sample, source.max_tiles)
                else:
                    yield None


def look_up(item: Work, encoder: Any, cache: FeatureCache | None, directory: Path) -> str | BadRow:
    """What is to be done with an item: "new" (no entry, or a bad one), "changed" (other files than the entry's) or "kept"; the
    BadRow of headers that cannot be read. `item.tiles` and `item.recorded` are filled in; no file of a kept entry is opened.

    Raises ValueError for a video of more frames than the model can be trained with.
    """
    entry = cache.entries.get(media_key(item.sample, item.max_tiles, directory)) if cache else None
    state = "new"
    if cache and entry:
        item.recorded = entry.bad
        try:
            state = "new" if entry.bad else "changed" if cache.difference(entry, item.sample) else "kept"
        except BadRow as error:
            return error
        except OSError:
            # The loader says what is wrong with the file.
            state = "changed"
    try:
        if entry and state == "kept":
            item.tiles = list(entry.tiles)
        else:
            item.tiles = list(encoder.layouts_of(item.sample, item.max_tiles))
    except BadRow as error:
        return error
    if item.sample.video:
        encoder.vision.expand_video("", item.tiles)
    return state


def decoded(todo: Sequence[Work], encoder: Any, workers: int) -> Iterator[tuple[Work, Any]]:
    """(work, the family's vision tensors or the BadRow) by an Encoder, decoded ahead by threads, in order."""

    def load(item: Work) -> Any:
        sample = item.sample
        try:
            with one_row(sample.where):
                if sample.video:
                    item.frames = video_frames(sample.video, encoder.num_frames, sample.where)
                item.identity = FileIdentity.of(sample, encoder.num_frames, content=True)
            tensors, layouts = encoder.load_vision(sample, item.max_tiles)
        except BadRow as error:
            return error
        assert sum(map(tiles_in, layouts)) == len(tensors["pixel_values"])
        return tensors

    waiting: deque[tuple[Work, Future]] = deque()
    with ThreadPoolExecutor(workers) as threads:
        for item in todo:
            waiting.append((item, threads.submit(load, item)))
            if len(waiting) > 2 * workers:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
