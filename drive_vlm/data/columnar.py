"""Parquet and Arrow files as rows, and data set directories as the hub and `save_to_disk` lay them out.

A table becomes JSONL in the cache once, its embedded pictures become files next to it: from then on rows and pictures are read
like any others, one at a time.
"""

import hashlib
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from drive_vlm.data.turns import RunError
from drive_vlm.store.cache import cache_dir, file_key, write_atomically
from drive_vlm.store.forms import part, read_object
from drive_vlm.store.keyed_lines import write_lines

_MAGIC = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG": ".png",
    b"GIF8": ".gif",
    b"RIFF": ".webp",
    b"BM": ".bmp",
    b"II*\0": ".tif",
}
_BATCH = 256
# train-00000-of-00012.parquet
_SHARD = re.compile(r"-\d+-of-\d+$")
_TABLES = {".parquet", ".arrow"}


def convert(path: Path) -> tuple[Path, Path | None]:
    """(JSONL of a table, folder of the pictures that it embeds or None where it names files), both in the cache.

    Raises ValueError for a file that cannot be read.
    """
    key = file_key(path)
    rows, pictures = cache_dir() / f"rows-{key}.jsonl", cache_dir() / f"pictures-{key}"
    if not rows.is_file():
        # The pictures first: the rows, written last and whole, say that they are all there.
        write_lines(rows, (_plain(row, pictures) for row in _rows(path)))
    return rows, pictures if pictures.is_dir() else None


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow
        from pyarrow import ipc, parquet
    except ImportError as error:
        raise RunError(
            f"{path}: tables are read with pyarrow, which is missing ({error}): pip install pyarrow"
        ) from error
    try:
        if path.suffix.lower() == ".parquet":
            batches = parquet.ParquetFile(path).iter_batches(_BATCH)
        else:
            batches = ipc.open_stream(pyarrow.memory_map(str(path)))
        for batch in batches:
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: cannot be read as a table ({error}). Download or write it again.") from error


def _plain(value: Any, pictures: Path) -> Any:
    """A value of a table as JSON has it: bytes become files, NaN (an empty cell of pandas) null, dates their text."""
    if isinstance(value, dict):
        if isinstance(value.get("bytes"), bytes):
            return {"path": _file_of(value["bytes"], pictures)}
        return {key: _plain(item, pictures) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, pictures) for item in value]
    if isinstance(value, bytes):
        return _file_of(value, pictures) if _suffix(value) else value.decode(errors="replace")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _suffix(content: bytes) -> str:
    """The ending of a picture's or a video's file by its first bytes; '' for other content."""
    if content[4:8] == b"ftyp":
        return ".avif" if content[8:12] == b"avif" else ".mp4"
    return next((suffix for magic, suffix in _MAGIC.items() if content.startswith(magic)), "")


def _file_of(content: bytes, pictures: Path) -> str:
    name = f"{hashlib.blake2b(content, digest_size=16).hexdigest()}{_suffix(content) or '.bin'}"
    pictures.mkdir(exist_ok=True)
    if not (pictures / name).is_file():
        write_atomically(pictures / name, lambda file: file.write(content))
    return name


# ---- directories


def is_dataset_folder(folder: Path, jsonl: bool = True) -> bool:
    """Whether a folder holds a data set (of the hub, or of save_to_disk), and not videos or frames. `jsonl`: whether .jsonl files
    make one of it, or tables alone."""
    if any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return True
    return any(jsonl or path.suffix.lower() in _TABLES for path in _data_files(folder))


def files_of(folder: Path) -> list[Path]:
    """The files of the one split of a data set's folder, in order. Raises ValueError for a folder without one, or with several."""
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(item.name for item in folder.iterdir() if (item / "state.json").is_file())
        raise ValueError(f"{folder}: holds the splits {', '.join(splits)}. Give one of their folders.")
    if (folder / "state.json").is_file():
        path, way_out = folder / "state.json", "Save the data set again."
        named = part(read_object(path, way_out), "_data_files", list[dict], path, way_out)
        return [folder / part(item, "filename", str, path, way_out) for item in named]
    splits_of: dict[str, list[Path]] = {}
    for path in _data_files(folder):
        splits_of.setdefault(_SHARD.sub("", path.name.split(".")[0]), []).append(path)
    if not splits_of:
        raise ValueError(
            f"{folder}: no data set in this folder (Parquet files in it or in data/, or README.md with .jsonl files). Give a file of rows."
        )
    if len(splits_of) > 1:
        name, paths = next(iter(splits_of.items()))
        raise ValueError(
            f"{folder}: holds the splits {', '.join(splits_of)}. Give the files of one, e.g. {paths[0].parent}/{name}*"
        )
    return next(iter(splits_of.values()))


def _data_files(folder: Path) -> list[Path]:
    """Tables of the folder or of data/ in it, or else the JSONL files of a hub directory, which has a README.md."""
    places = [folder, folder / "data"]
    tables = [path for place in places for path in sorted(place.glob("*")) if path.suffix.lower() in _TABLES]
    if tables or not (folder / "README.md").is_file():
        return tables
    return [path for place in places for path in sorted(place.glob("*.jsonl*")) if path.is_file()]
