"""Videos that a path names: a video file, a folder of frames, or a folder that holds some of both."""

import os
from pathlib import Path

from drive_vlm.data.vision import FRAME_SUFFIXES

VIDEO_SUFFIXES = {".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".ts"}


def is_media(path: str | Path) -> bool:
    """Whether `path` names a folder or, by its extension, a video, and not a file of rows."""
    return os.path.isdir(path) or Path(path).suffix.lower() in VIDEO_SUFFIXES


def find_videos(path: str | Path) -> list[tuple[str, str]]:
    """(name, path) of each video that `path` names, in the order of their paths.

    A file is one video, and so is a folder with pictures right in it; any other folder is searched below. Names are
    paths below that folder without extension, or the name of the file or folder itself. A missing file is found as well:
    what reads it says that it is missing. Raises ValueError for a folder without videos.
    """
    top = Path(path)
    if not top.is_dir():
        return [(top.stem, str(top))]
    if _has_frames(top):
        return [(top.resolve().name, str(top))]
    found: list[Path] = []
    for folder, folders, files in os.walk(top):
        inner = [Path(folder, name) for name in folders]
        frames = [item for item in inner if _has_frames(item)]
        folders[:] = [item.name for item in inner if item not in frames]
        found += frames + [Path(folder, name) for name in files if Path(name).suffix.lower() in VIDEO_SUFFIXES]
    if not found:
        raise ValueError(
            f"{top}: no video in this folder. Videos end in {', '.join(sorted(VIDEO_SUFFIXES))}; frames in a folder of "
            f"their own end in {', '.join(sorted(FRAME_SUFFIXES))}."
        )
    return [(_name(item.relative_to(top)), str(item)) for item in sorted(found)]


def _name(path: Path) -> str:
    return (path.with_suffix("") if path.suffix.lower() in VIDEO_SUFFIXES else path).as_posix()


def _has_frames(folder: Path) -> bool:
    return any(Path(entry.name).suffix.lower() in FRAME_SUFFIXES for entry in os.scandir(folder))
