"""Videos that a path names: a video file, a folder of frames, or a folder that holds some of both."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drive_vlm.data.columnar import is_dataset_folder
from drive_vlm.data.samples import BadRow, Sample, resolve_below
from drive_vlm.data.vision import FRAME_SUFFIXES, frame_files, video_length
from drive_vlm.launch.topology import read_topology

# What a model is asked to do with a video: Drive-VLM's two granularities (its "split entry" prompts), word for word.
MODES: dict[str, str] = {
    "detailed": "Describe the video in detail.",
    "concise": "Summarize the driving scene concisely.",
}
# The question to captions as they were found, of neither granularity.
RAW_CAPTION = "Describe the video."

VIDEO_SUFFIXES = {".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".ts"}


def is_media(path: str | Path) -> bool:
    """Whether `path` names a folder or, by its extension, a video, and not a file or a data set of rows."""
    top = Path(path)
    if not top.is_dir():
        return _is_video(top.name)
    # A folder of videos may have a README.md and a .jsonl file as well.
    return not is_dataset_folder(top, jsonl=not any(_is_video(item.name) for item in top.iterdir()))


def find_videos(path: str | Path) -> list[tuple[str, str]]:
    """(name, path) of each video that `path` names, in the order of their paths.

    A file is one video, and so is a folder with pictures right in it and no video file below; any other folder is searched.
    Pictures in a folder that also has videos below it are not frames: they are left out, and a line says how many. Names are
    paths below that folder (distinct_names), or the name of the file or folder itself. A path that does not exist is returned
    as well: what reads it reports it as missing. Raises ValueError for a folder without videos.
    """
    top = Path(path)
    if not top.is_dir():
        return [(top.stem, str(top))]
    files = [Path(folder, name) for folder, _, names in os.walk(top) for name in names if _is_video(name)]
    searched = {parent for file in files for parent in file.parents}
    if _has_frames(top) and not files:
        return [(top.resolve().name, str(top))]
    found, left_out = files, 0
    for folder, folders, names in os.walk(top):
        inner = [Path(folder, name) for name in folders]
        frames = [item for item in inner if item not in searched and _has_frames(item)]
        folders[:] = [item.name for item in inner if item not in frames]
        found = found + frames
        left_out += sum(_is_picture(name) for name in names)
    if not found:
        raise ValueError(
            f"{top}: no video in this folder. Videos end in {', '.join(sorted(VIDEO_SUFFIXES))}; frames in a folder of "
            f"their own end in {', '.join(sorted(FRAME_SUFFIXES))}."
        )
    if left_out and read_topology().is_main:
        print(f"{top}: {len(found):,} videos; {left_out:,} pictures next to videos are left out", flush=True)
    found = sorted(found)
    names = distinct_names([item.relative_to(top) for item in found])
    return [(name, str(item)) for name, item in zip(names, found, strict=True)]


def shown_path(path: str, image_root: str | None) -> str:
    """The name of the video at `path` in answers and caches: its path below `image_root`, as in rows, or as it was given."""
    below = os.path.relpath(path, image_root) if image_root else os.pardir
    return os.path.normpath(path) if below.split(os.sep)[0] == os.pardir else below


def video_below(folder: str, video: Any, where: str) -> str:
    """The path of a row's video below `folder`, which the user gave as --image_root. Raises BadRow (missing_field,
    path_outside_root, video_missing, video_empty, video_corrupt) where no video can be read there."""
    try:
        path = resolve_below(folder, video, where)
        video_length(path, where)
    except BadRow as error:
        if error.reason in ("path_outside_root", "video_missing"):
            way_out = "Check the folder of videos (--image_root); a row names its video by the path below it"
            raise BadRow(error.reason, where, error.problem, way_out) from error
        raise
    return path


def check_links(sample: Sample, root: str) -> None:
    """Raises BadRow (path_outside_root) where a file of the row, or a frame of its folder, lies outside `root` behind a symbolic link."""
    inside = os.path.realpath(root)
    paths = [*sample.images, *([sample.video] if sample.video else [])]
    if sample.video and os.path.isdir(sample.video):
        paths += frame_files(sample.video, sample.where)
    for path in paths:
        real = os.path.realpath(path)
        if os.path.commonpath([inside, real]) != inside:
            problem = f"{path} is a link to {real}, which is outside the image root {root}"
            raise BadRow("path_outside_root", sample.where, problem, "Give --links follow if that is meant")


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """A name for each of the distinct `paths`: without a video's extension, unless another of them would be called the same."""
    short = [(path.with_suffix("") if _is_video(path.name) else path).as_posix() for path in paths]
    count = Counter(name for path, stem in zip(paths, short, strict=True) for name in {stem, path.as_posix()})
    return [stem if count[stem] == 1 else path.as_posix() for path, stem in zip(paths, short, strict=True)]


def _is_video(name: str) -> bool:
    return Path(name).suffix.lower() in VIDEO_SUFFIXES


def _is_picture(name: str) -> bool:
    return Path(name).suffix.lower() in FRAME_SUFFIXES


def _has_frames(folder: Path) -> bool:
    return any(_is_picture(entry.name) for entry in os.scandir(folder))
