"""Detection cache: which objects a detector saw in the sampled frames of each video, one JSONL line a video.

    {"video": "<path below the image root>",
     "detector": {"weights": "yolov8x.pt", "sha256": "...", "imgsz": 640, "conf": 0.3, "version": "ultralytics 8.4.190"},
     "file": {"files": 1, "bytes": 81920, "times": "<hash of names and times>", "content": "<hash>"},
     "frames": [{"index": 3, "sha256": "<of the frame's RGB bytes>",
                 "objects": [{"label": "car", "score": 0.91, "box": [x1, y1, x2, y2]}]}],
     "transform": 3}

`tools/cache_detections.py` writes it, rewards and evaluators read it: no detector runs next to training. Boxes are in
pixels of the frame, labels are the detector's class names. A video without objects is a valid, empty answer; a video
that is not in the cache is an error, and so is a cache that two detectors, or two settings of one, have written.

"file" (data.caches.feature_cache.FileIdentity: size, time of change, content) shows when a video or picture was replaced;
"transform" (data.caches.feature_cache.TRANSFORM) says how files became frames. Lines of an older cache lack one or both:
they are read like any other here, and the tool makes them again.
"""

import dataclasses
import json
import math
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from drive_vlm.config import plain
from drive_vlm.data.caches.feature_cache import FileIdentity
from drive_vlm.data.samples import BadRow, Sample
from drive_vlm.store.keyed_lines import LineWriter, read_lines

COMMAND = "python tools/cache_detections.py"


@dataclasses.dataclass(frozen=True)
class Detector:
    """What was run: weights file name and SHA-256 of its bytes, picture size, confidence threshold, software version."""

    weights: str
    sha256: str
    imgsz: int
    conf: float
    version: str

    def __str__(self) -> str:
        return f"{self.weights} ({self.sha256[:8]}, imgsz {self.imgsz}, conf {self.conf}, {self.version})"


@dataclasses.dataclass(frozen=True)
class DetectedObject:
    """One box (x1, y1, x2, y2) in pixels, its class name and its score in 0..1."""

    label: str
    score: float
    box: tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class DetectedFrame:
    """The objects of one frame: its number in the video, the SHA-256 of its RGB bytes."""

    index: int
    sha256: str
    objects: tuple[DetectedObject, ...]


@dataclasses.dataclass(frozen=True)
class VideoDetections:
    """One line of the cache. `file` identifies the file at the time, `transform` the way it was decoded. Lines that differ only
    in these are equal: the same detections of the same frames."""

    video: str
    detector: Detector
    frames: tuple[DetectedFrame, ...]
    file: dict[str, Any] | None = dataclasses.field(default=None, compare=False)
    transform: int | None = dataclasses.field(default=None, compare=False)

    @property
    def classes(self) -> frozenset[str]:
        """Labels seen in any frame."""
        return frozenset(item.label for frame in self.frames for item in frame.objects)


class DetectionCache:
    """All lines of one or several cache files by video.

    Attributes:
        detector: the settings that all lines share; None for a cache without lines.
        paths: the files it was read from.
    """

    def __init__(self, entries: dict[str, VideoDetections], paths: Sequence[Path]) -> None:
        self._entries, self.paths = entries, list(paths)
        self._classes = {video: entry.classes for video, entry in entries.items()}
        self.detector = next((entry.detector for entry in entries.values()), None)

    @classmethod
    def load(cls, paths: str | Path | Sequence[str | Path]) -> "DetectionCache":
        """Read the files. The same video may come again with the same content (a repeated shard).

        Raises ValueError with file:line for a line that is not of the format, for two different answers about one
        video and for a second detector or setting; and for a file that is not there.
        """
        files = [Path(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
        entries: dict[str, VideoDetections] = {}
        first: dict[str, str] = {}
        for path in files:
            for where, entry in read_detections(path):
                known = entries.setdefault(entry.video, entry)
                origin = first.setdefault(entry.video, where)
                start = next(iter(entries))
                if entry.detector != entries[start].detector:
                    raise ValueError(
                        f"{where}: detector {entry.detector}, but {first[start]} has {entries[start].detector}; a cache "
                        f"holds one detector with one setting: run {COMMAND} again for all videos, to a new file"
                    )
                if known != entry:
                    raise ValueError(
                        f"{where}: other detections for {entry.video!r} than at {origin} (other frames, or a changed "
                        f"video); remove one of the two lines, or run {COMMAND} again to a new file"
                    )
        return cls(entries, files)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, video: str) -> bool:
        return video in self._entries

    def __iter__(self) -> Iterator[VideoDetections]:
        return iter(self._entries.values())

    def entry(self, video: str) -> VideoDetections:
        """Raises ValueError, with the command that adds it, for a video that is not in the cache."""
        if video not in self._entries:
            raise ValueError(self._missing(video))
        return self._entries[video]

    def classes(self, video: str) -> frozenset[str]:
        """Labels seen in any sampled frame of the video (its path below the image root); raises as `entry` does."""
        if video not in self._classes:
            raise ValueError(self._missing(video))
        return self._classes[video]

    def problem(self, video: str, frames: Sequence[int] | None = None, sample: Sample | None = None) -> str | None:
        """Why the cache does not fit a row of a run that takes these `frames` of the video; None when it does.

        With `sample`, the row itself, its files are compared with those that were looked at.
        """
        if video not in self._entries:
            return self._missing(video)
        entry = self._entries[video]
        was, files = [frame.index for frame in entry.frames], ", ".join(map(str, self.paths))
        if entry.file and sample and (changed := _difference(entry.file, sample, len(was))):
            return (
                f"{video!r} is not what was looked at for {files}: {changed}. Run {COMMAND} with the same flags again"
            )
        if frames is None or was == list(frames):
            return None
        return (
            f"the detections of {video!r} in {files} are of {len(was)} frames ({_some(was)}), this run takes {len(frames)} "
            f"({_some(frames)}). Give --num_frames {len(was)}, or make a new cache: {COMMAND} --num_frames {len(frames)}"
        )

    def _missing(self, video: str) -> str:
        files = ", ".join(map(str, self.paths)) or "the cache"
        near = [known for known in self._entries if Path(known).name == Path(video).name]
        hint = f" (it has {near[0]!r}: other image root?)" if near else ""
        return (
            f"no detections for {video!r} in {files}, which holds {len(self)} videos{hint}; add it with "
            f"{COMMAND} --data ROWS.jsonl --out {self.paths[0] if self.paths else 'detections.jsonl'}"
        )


def _difference(file: dict[str, Any], sample: Sample, num_frames: int) -> str:
    """How the files of `sample` differ from those of a cache line's "file", in words; '' where they do not."""
    try:
        return FileIdentity(**file).difference(sample, num_frames)
    except BadRow as error:
        return error.problem
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _some(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:4])) + (" ..." if len(numbers) > 4 else "")


def read_detections(path: Path) -> Iterator[tuple[str, VideoDetections]]:
    """("file:line", entry) of every line. Raises ValueError with file:line; blank lines are passed over."""
    if not path.is_file():
        raise ValueError(f"{path}: no such detection cache; write it with {COMMAND} --data ROWS.jsonl --out {path}")
    torn = f"a torn last line: {COMMAND} with this --out cuts it off"
    for number, row in read_lines(path, "not valid JSON", "Fix or remove the line.", torn=torn):
        yield f"{path}:{number}", parse_detections(row, f"{path}:{number}")


def parse_detections(row: Any, where: str) -> VideoDetections:
    """One decoded line, checked key by key; unknown keys are refused. Raises ValueError with `where`."""
    rest = {key: row[key] for key in row if key not in ("file", "transform")} if isinstance(row, dict) else row
    top = _keys(rest, {"video": str, "detector": dict, "frames": list}, where, "the line")
    file, transform = row.get("file"), row.get("transform")
    if file is not None:
        _keys(file, {"files": int, "bytes": int, "times": str, "content": str}, where, '"file"')
    if transform is not None:
        _keys({"transform": transform}, {"transform": int}, where, "the line")
    detector = _keys(
        top["detector"],
        {"weights": str, "sha256": str, "imgsz": int, "conf": float, "version": str},
        where,
        '"detector"',
    )
    frames = tuple(_frame(item, where, f'"frames"[{i}]') for i, item in enumerate(top["frames"]))
    if not top["video"]:
        raise ValueError(f'{where}: "video" is empty')
    if not frames:
        raise ValueError(f'{where}: no "frames": nothing was looked at, which is not the same as nothing seen')
    return VideoDetections(top["video"], Detector(**detector), frames, file, transform)


def _frame(item: Any, where: str, name: str) -> DetectedFrame:
    frame = _keys(item, {"index": int, "sha256": str, "objects": list}, where, name)
    objects = tuple(_object(thing, where, f'{name}["objects"][{i}]') for i, thing in enumerate(frame["objects"]))
    if frame["index"] < 0:
        raise ValueError(f'{where}: {name}: "index" is {frame["index"]}, below 0')
    return DetectedFrame(frame["index"], frame["sha256"], objects)


def _object(item: Any, where: str, name: str) -> DetectedObject:
    thing = _keys(item, {"label": str, "score": float, "box": list}, where, name)
    box = thing["box"]
    if len(box) != 4 or not all(_is(value, float) and math.isfinite(value) for value in box):
        raise ValueError(f'{where}: {name}: "box" must be four finite numbers x1, y1, x2, y2, got {json.dumps(box)}')
    if box[0] > box[2] or box[1] > box[3]:
        raise ValueError(f'{where}: {name}: "box" {box} has x1 > x2 or y1 > y2')
    if not thing["label"] or not 0 <= thing["score"] <= 1:
        raise ValueError(f"{where}: {name}: label {thing['label']!r}, score {thing['score']}: need a name and 0..1")
    x1, y1, x2, y2 = map(float, box)
    return DetectedObject(thing["label"], thing["score"], (x1, y1, x2, y2))


def _is(value: Any, kind: type) -> bool:
    """isinstance as JSON means it: an integer is a number, true is not."""
    return isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)


def _keys(item: Any, kinds: dict[str, type], where: str, name: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise ValueError(f"{where}: {name} must be an object, got {type(item).__name__}")
    wrong = sorted(kinds.keys() ^ item.keys())
    if wrong:
        differing = ", ".join(f"{'no' if key in kinds else 'unknown'} key {key!r}" for key in wrong)
        raise ValueError(f"{where}: {name} has {differing}; expected {', '.join(kinds)}")
    for key, kind in kinds.items():
        if not _is(item[key], kind):
            raise ValueError(f"{where}: {name}[{key!r}] must be {kind.__name__}, got {json.dumps(item[key])}")
    return item


def append_detections(path: str | Path, entries: Iterable[VideoDetections]) -> None:
    """Add lines, on disk when the call ends. A torn last line, left by a killed run, is cut off first.

    One process writes to a file; shards write files of their own and `merge_detections` joins them.
    """
    with LineWriter(path) as file:
        for entry in entries:
            row = plain(entry)
            # Nothing is written that cannot be read.
            parse_detections(json.loads(json.dumps(row)), f"{path}: {entry.video}")
            file.append(row)


def drop_detections(path: Path, videos: Collection[str]) -> None:
    """Take the lines of `videos` out of the file, atomically."""
    _replace(path, [entry for _, entry in read_detections(path) if entry.video not in videos])


def merge_detections(shards: Sequence[str | Path], out: str | Path) -> DetectionCache:
    """Join shard files (and what `out` holds already) into `out`, by video name, atomically; raises as `load` does."""
    out = Path(out)
    cache = DetectionCache.load([*([out] if out.is_file() else []), *shards])
    _replace(out, sorted(cache, key=lambda entry: entry.video))
    cache.paths = [out]
    return cache


def _replace(path: Path, entries: Iterable[VideoDetections]) -> None:
    # Written in the same folder, since a rename is atomic within one file system only.
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.unlink(missing_ok=True)
    append_detections(part, entries)
    os.replace(part, path)
