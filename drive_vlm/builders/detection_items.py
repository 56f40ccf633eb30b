"""What a detector looks at: each video and picture of the rows once, with the frames that training samples."""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from drive_vlm.data.caches.feature_cache import TRANSFORM, FileIdentity
from drive_vlm.data.samples import BadRow, Sample
from drive_vlm.data.sources import Source, open_sources
from drive_vlm.data.table import read_sample
from drive_vlm.data.turns import one_row
from drive_vlm.data.videos import find_videos, is_media, shown_path
from drive_vlm.data.vision import CHECK_ROOT, load_image, load_video, video_frames


@dataclasses.dataclass(frozen=True)
class PendingItem:
    """One cache line still to write: a video or a picture.

    Attributes:
        name: path below the image root (`./a//b` is `a/b`), as rewards see it; a video that no row names is called as given.
        path: the file.
        where: file:line that named it first.
    """

    name: str
    path: str
    where: str
    is_video: bool

    @property
    def media(self) -> Sample:
        """A row of nothing but this video or picture, for FileIdentity."""
        images = () if self.is_video else (self.path,)
        return Sample(self.name, (), images, self.path if self.is_video else None, None, {}, self.where)

    def identity(self, num_frames: int) -> dict[str, Any]:
        """FileIdentity of the file with its content, as a cache line holds it. Raises BadRow."""
        try:
            return dataclasses.asdict(FileIdentity.of(self.media, num_frames, content=True))
        except OSError as error:
            raise self._unreadable(error) from error

    def changed(self, was: dict[str, Any], num_frames: int) -> bool:
        """Whether the file is another one than `was` (identity), of which `num_frames` were taken. Raises BadRow."""
        try:
            return bool(FileIdentity(**was).difference(self.media, num_frames))
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> BadRow:
        kind, reason = ("video", "video_missing") if self.is_video else ("picture", "image_missing")
        problem = f"the {kind} {self.path} does not exist or cannot be read ({error.strerror})"
        return BadRow(reason, self.where, problem, CHECK_ROOT)


@dataclasses.dataclass
class Frames:
    """The sampled frames of an item: its file's identity, numbers, RGB pictures and the SHA-256 of their bytes."""

    item: PendingItem
    identity: dict[str, Any]
    indices: list[int]
    pictures: list[Any]
    hashes: list[str]


def read_items(
    data: Sequence[str], image_root: str | None, note_bad: Callable[[BadRow], None], links: str = "follow"
) -> list[PendingItem]:
    """Distinct videos and pictures, in the order of files of rows, videos and folders; `note_bad` counts a bad row, or raises
    it. Raises ValueError for a name that stands for two files."""
    found: dict[str, PendingItem] = {}
    for entry in data:
        rows = () if is_media(entry) else open_sources([entry], image_root, links)
        items = _items_of_folder(entry, image_root) if is_media(entry) else _items_of_rows(rows, note_bad)
        for item in items:
            first = found.setdefault(item.name, item)
            if os.path.realpath(first.path) != os.path.realpath(item.path):
                raise ValueError(
                    f"{item.where}: {item.name!r} is {item.path}, but {first.path} at {first.where}. A cache names "
                    "files by the rows' paths: give one --out for each data root."
                )
    return list(found.values())


def _items_of_folder(entry: str, image_root: str | None) -> Iterator[PendingItem]:
    """The videos of a folder, under the names that the answers of `generate` to the same entry have."""
    for _, path in find_videos(entry):
        yield PendingItem(shown_path(path, image_root), path, path, is_video=True)


def _items_of_rows(sources: Sequence[Source], note_bad: Callable[[BadRow], None]) -> Iterator[PendingItem]:
    for source in sources:
        for i in range(len(source.rows)):
            try:
                sample = read_sample(source, i, need_answer=False)
            except BadRow as error:
                note_bad(error)
                continue
            for path in [sample.video] if sample.video else sample.images:
                yield PendingItem(os.path.relpath(path, source.root), path, sample.where, bool(sample.video))


def load_frames(item: PendingItem, num_frames: int) -> Frames:
    """Decode the frames that training would take. Raises BadRow."""
    # Before the file is decoded: a change during decoding is then noticed by the next run.
    identity = item.identity(num_frames)
    if item.is_video:
        indices = video_frames(item.path, num_frames, item.where)
        pictures = load_video(item.path, num_frames, item.where)
    else:
        indices, pictures = [0], [load_image(item.path, item.where)]
    return Frames(
        item, identity, indices, pictures, [hashlib.sha256(picture.tobytes()).hexdigest() for picture in pictures]
    )


def decoded(items: Sequence[PendingItem], num_frames: int, workers: int) -> Iterator[list[Frames | BadRow]]:
    """The frames of all items, `workers` items at a time, decoded by threads."""
    load = partial(_frames_or_error, num_frames=num_frames)
    with ThreadPoolExecutor(workers) as threads:
        for start in range(0, len(items), workers):
            yield list(threads.map(load, items[start : start + workers]))


def _frames_or_error(item: PendingItem, num_frames: int) -> Frames | BadRow:
    try:
        with one_row(item.where):
            return load_frames(item, num_frames)
    except BadRow as error:
        return error


def outdated(entry: Any, item: PendingItem, num_frames: int, verify: bool) -> str:
    """Why a finished item must be made again, '' when it is up to date; `verify` decodes it again. `entry` is its cache line.

    Raises ValueError when --num_frames takes other frames of the same file; BadRow.
    """
    if entry.file and item.changed(entry.file, len(entry.frames)):
        return "changed"
    if item.is_video:
        now = video_frames(item.path, num_frames, item.where)
        was = [frame.index for frame in entry.frames]
        # Another version took other frames of a video whose frame rate varies.
        if was != now and not (entry.transform != TRANSFORM and len(was) == len(now)):
            raise ValueError(
                f"frames {was} of {item.name!r} were looked at, --num_frames {num_frames} takes {now} of it. Give the old "
                "--num_frames or another --out."
            )
    if not entry.file:
        return "from an older cache that does not record their files"
    if entry.transform != TRANSFORM:
        return "from a version that decodes in another way"
    seen = [frame.sha256 for frame in entry.frames]
    return "changed" if verify and load_frames(item, num_frames).hashes != seen else ""
