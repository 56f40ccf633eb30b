"""What an evaluation file says of its scenes, frames and pictures, in whatever form it comes: for the check that training saw none of them.

Benchmarks of one source overlap under other names: DriveBench is cut from DriveLM's training frames, and its corrupted pictures have
other bytes and folders than the clean ones. Three things stay: nuScenes' token of the scene (`group` of the rows of builders), its token
of the key frame, and the file name of a picture, which holds log, camera and time.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from drive_vlm.data.samples import Sample

# n008-2018-09-18-14-35-12-0400__CAM_FRONT__1537295827412404.jpg
_NUSCENES = re.compile(r"n\d{3}-[\d-]+[-+]\d{4}__CAM_[A-Z_]+__\d+\.\w+")
_TOKEN = re.compile(r"[0-9a-f]{32}")
_SCENE = ("group", "scene_token", "scene")
_FRAME = ("frame_token", "sample_token", "frame", "token")
_MEDIA = ("image", "images", "video", "image_path", "image_paths", "img_paths")


def picture_name(path: str) -> str:
    """What names a picture wherever it lies: a nuScenes file name, else its absolute path.

    >>> picture_name("corruption/Fog/CAM_BACK/n008-2018-08-30-15-52-26-0400__CAM_BACK__1535658934037558.jpg")
    'n008-2018-08-30-15-52-26-0400__CAM_BACK__1535658934037558.jpg'
    """
    name = os.path.basename(path)
    return name if _NUSCENES.fullmatch(name) else os.path.abspath(path)


def frame_token(row: dict[str, Any]) -> str | None:
    """The row's token of a key frame (32 hexadecimal digits); None without one: a plain number names a frame in its own file only."""
    found = (row.get(name) for name in _FRAME)
    return next((value for value in found if isinstance(value, str) and _TOKEN.fullmatch(value)), None)


def evaluation_rows(path: Path) -> Iterator[dict[str, Any]]:
    """{"id", "group", "frame", "media": paths as written} of each row or key frame of an evaluation file: rows (.jsonl), the official
    lists of DriveBench and RoboSense track 1, the nested files of DriveLM and of the challenge.

    Raises ValueError for a file that cannot be read, and for one that names no scene, frame or picture at all.
    """
    found = 0
    for row in _rows(path):
        group = next((str(row[name]) for name in _SCENE if row.get(name) not in (None, "")), None)
        media = [text for name in _MEDIA for text in _paths(row.get(name))]
        key = {"id": row.get("id"), "group": group, "frame": frame_token(row), "media": media}
        found += any((group, key["frame"], media))
        yield key
    if not found:
        raise ValueError(f"{path}: no row names a scene, a frame or a picture, so nothing can be compared with it")


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix == ".jsonl":
        from drive_vlm.data.jsonl import JsonlFile

        yield from (row for _, row in JsonlFile(path).places() if isinstance(row, dict))
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read as JSON ({error})") from error
    if isinstance(content, list):
        yield from (row for row in content if isinstance(row, dict))
        return
    if not isinstance(content, dict) or not all(isinstance(scene, dict) for scene in content.values()):
        raise ValueError(f"{path}: expected rows, a list of questions or {{scene: {{key_frames: ...}}}}")
    for scene, parts in content.items():
        for frame, views in parts.get("key_frames", {}).items():
            yield {"group": scene, "frame_token": frame, "image_paths": views.get("image_paths")}


def _paths(value: Any) -> Iterator[str]:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    yield from (item for item in items if isinstance(item, str) and item)


def leak_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of `evaluation_rows` as find_leaks takes it."""
    return {
        "id": row["id"],
        "group": row["group"],
        "frame": row["frame"],
        "image": list(map(picture_name, row["media"])),
    }


def pictures_of(rows: list[dict[str, Any]], path: Path, root: str | None) -> list[Sample]:
    """The pictures of the rows that are there, below `root` (default: the file's folder), as same_files takes them."""
    base = Path(root) if root else path.parent
    files = dict.fromkeys(str(base / name) for row in rows for name in row["media"])
    there = tuple(name for name in files if os.path.isfile(name))
    return [Sample(path.name, (), there, None, None, {}, str(path))] if there else []
