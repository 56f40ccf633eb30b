"""Captions of videos: JSONL rows of the forms that data sets have -> VideoCaption, or a BadRow that says what is wrong.

{"video": "a.mp4", "caption": "..."}                        a caption
{"video": "a.mp4", "q": "...", "a": "..."}                  a question and its answer
{"video": "a.mp4", "q": "...", "captions": ["...", "..."]}  several texts, joined
{"video_path": "a.mp4", "captions": [{"idx": "1", "content": "..."}, ..., {"idx": "-1", "content": "..."}]}
                                                            ShareGPT4Video: idx -1 is the caption of the whole video
"""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from drive_vlm.data.jsonl import JsonlFile
from drive_vlm.data.samples import IMAGE, VIDEO, BadRow
from drive_vlm.data.videos import distinct_names, video_below


@dataclasses.dataclass(frozen=True)
class VideoCaption:
    """One caption.

    Attributes:
        video: path below the folder of videos.
        id: the video's name there (videos.distinct_names); the second caption of a video has a number behind it.
        group: the group of the first row about the same content that gives one, else the name of the first video with
            this content, so that copies under other names stay in one split.
    """

    video: str
    id: str
    group: str
    caption: str
    question: str | None
    where: str


def read_video_captions(
    paths: Sequence[str | Path], videos: str | Path, on_bad_row: str = "error", limit: int | None = None
) -> tuple[list[VideoCaption], list[BadRow]]:
    """All captions whose video is below the folder `videos`, in order, and the rows that were left out.

    Raises (on_bad_row "error") or returns (on_bad_row "skip") BadRow with one of the reasons not_utf8, broken_json,
    not_an_object, missing_field, empty_caption, placeholder, path_outside_root, video_missing, video_empty,
    video_corrupt, duplicate (the same words about the same video), two_groups (another group than an earlier row gives).
    """
    if not Path(videos).is_dir():
        raise ValueError(f"{videos}: no such folder of videos")
    captions: list[VideoCaption] = []
    bad: list[BadRow] = []
    known = _Known(str(videos))
    for path in paths:
        file = JsonlFile(path)
        for i in range(len(file)):
            if limit is not None and len(captions) >= limit:
                return known.named(captions), bad
            try:
                captions.append(known.check(_parse(file[i], file.where(i), str(videos))))
            except BadRow as error:
                if on_bad_row == "error":
                    raise
                bad.append(error)
    return known.named(captions), bad


def _parse(row: Any, where: str, videos: str) -> VideoCaption:
    if not isinstance(row, dict):
        raise BadRow("not_an_object", where, f"a row must be a JSON object, this is {type(row).__name__}", "Fix it")
    path = video_below(videos, row.get("video", row.get("video_path")), where)
    caption = _caption_of(row, where)
    if any(mark in caption for mark in (IMAGE, VIDEO)):
        raise BadRow("placeholder", where, f"the caption holds {IMAGE} or {VIDEO}", "Remove it from the caption")
    question = row.get("q")
    if question is not None and not isinstance(question, str):
        raise BadRow("missing_field", where, f"'q' must be a text, got {question!r}", "Fix the row")
    question = question.replace(VIDEO, "").replace(IMAGE, "").strip() if question else None
    group = "" if row.get("group") is None else str(row["group"])
    return VideoCaption(os.path.relpath(path, videos), "", group, caption, question or None, where)


def _caption_of(row: dict[str, Any], where: str) -> str:
    value = row.get("caption", row.get("captions", row.get("a")))
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        whole = [item.get("content") for item in value if str(item.get("idx")) == "-1"]
        value = whole or [item.get("content") for item in value]
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = " ".join(text.strip() for text in value)
    if not isinstance(value, str):
        raise BadRow("missing_field", where, "no caption: none of 'caption', 'captions', 'a' is a text", "Fix the row")
    if not value.strip():
        raise BadRow("empty_caption", where, "the caption is empty", "Write it, or remove the row")
    return " ".join(value.split())


class _Known:
    """The rows read so far: rejects a caption that a video already has, and finds copies of a file under other names."""

    def __init__(self, videos: str) -> None:
        self._videos = videos
        self._said: dict[str, list[str]] = {}
        self._by_size: dict[int, list[str]] = {}
        # Of each video, the first with the same content; of such first videos, the first row that gives a group.
        self._first: dict[str, str] = {}
        self._groups: dict[str, VideoCaption] = {}

    def check(self, found: VideoCaption) -> VideoCaption:
        """Return `found`. Raises BadRow for a caption that the video already has, and for a second group of one video."""
        first = self._first.get(found.video) or self._find_first(found.video)
        given = self._groups.get(first, found)
        if found.group and found.group != given.group:
            problem = f"{found.video} has group {found.group!r} here, {given.group!r} at {given.where} ({given.video})"
            raise BadRow("two_groups", found.where, problem, "Give all rows about one video the same group")
        if found.group:
            self._groups[first] = given
        self._first[found.video] = first
        said = self._said.setdefault(found.video, [])
        if found.caption in said:
            raise BadRow("duplicate", found.where, f"{found.video} has this caption already", "Remove the row")
        said.append(found.caption)
        return found

    def named(self, captions: list[VideoCaption]) -> list[VideoCaption]:
        """All `captions` with ids and groups, once all are read: the name of a video depends on the names of the others."""
        names = dict(zip(self._said, distinct_names([Path(video) for video in self._said]), strict=True))
        taken = set(names.values())
        unused = set(taken)
        named: list[VideoCaption] = []
        for caption in captions:
            name = names[caption.video]
            own = name if name in unused else next(id for i in count(2) if (id := f"{name}-{i}") not in taken)
            unused.discard(own)
            taken.add(own)
            first = self._first[caption.video]
            group = self._groups[first].group if first in self._groups else names[first]
            named.append(dataclasses.replace(caption, id=own, group=group))
        return named

    def _find_first(self, video: str) -> str:
        path = os.path.join(self._videos, video)
        if not os.path.isfile(path):
            return video
        alike = self._by_size.setdefault(os.path.getsize(path), [])
        same = (other for other in alike if _digest(path) == _digest(os.path.join(self._videos, other)))
        first = next(same, video)
        if first == video:
            alike.append(video)
        return first


def _digest(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
