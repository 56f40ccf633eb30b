"""Step 1 of the flow: the files that a run reads. JSONL rows, LLaVA JSON (one list), or an InternVL meta JSON that names several of
them."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drive_vlm.config import nearest
from drive_vlm.data.jsonl import JsonlFile
from drive_vlm.store.cache import cache_dir, file_key
from drive_vlm.store.keyed_lines import write_lines

_META_KEYS = {"root", "annotation", "repeat_time", "max_dynamic_patch", "data_augment", "length"}


@dataclasses.dataclass
class Source:
    """One annotation file: rows, the folder its picture paths start from, how often it is repeated, its tile limit."""

    name: str
    rows: JsonlFile
    root: str
    repeat_time: float = 1.0
    max_tiles: int | None = None
    # The file that messages name, where `rows` reads a converted copy of it.
    label: str = ""
    # refuse: a row whose file is reached through a symbolic link that leaves `root` is bad.
    links: str = "follow"

    def where(self, i: int) -> str:
        return f"{self.label}[{i}]" if self.label else self.rows.where(i)

    def repeated_rows(self, rows: Sequence[int], seed: int) -> list[int]:
        """`rows` as often as `repeat_time` says: whole times, and a seeded subset for the fraction."""
        whole, fraction = divmod(self.repeat_time, 1)
        part = round(fraction * len(rows))
        if not part:
            return list(rows) * int(whole)
        chosen = np.random.default_rng([seed, len(rows)]).permutation(len(rows))[:part]
        return list(rows) * int(whole) + [rows[i] for i in sorted(chosen)]


def open_sources(paths: Sequence[str], image_root: str | None = None, links: str = "follow") -> list[Source]:
    """Open every file of `paths`. `image_root` replaces the default root of JSONL and LLaVA files: their own folder.

    Raises ValueError for a missing file, an unknown extension, or a meta JSON with an unknown key.
    """
    sources: list[Source] = []
    for text in paths:
        path = Path(text)
        if not path.is_file():
            raise ValueError(
                f"{path}: no such data file. Give an existing .jsonl file, LLaVA .json or InternVL meta .json."
            )
        root = image_root or str(path.parent)
        if path.suffix == ".jsonl":
            sources.append(Source(path.stem, JsonlFile(path), root))
        elif path.suffix == ".json":
            sources.extend(_open_json(path, root))
        else:
            raise ValueError(
                f"{path}: unknown data format. Give .jsonl rows, a LLaVA .json list or an InternVL meta .json."
            )
    for source in sources:
        source.links = links
    return sources


def _open_json(path: Path, root: str) -> list[Source]:
    # The key holds size and time of the file: an edited list is converted again.
    converted = cache_dir() / f"rows-{file_key(path)}.jsonl"
    if not converted.is_file():
        content = _load_json(path)
        if isinstance(content, dict):
            return [_meta_source(path, name, entry) for name, entry in content.items()]
        if not isinstance(content, list):
            raise ValueError(
                f"{path}: expected a list of rows (LLaVA) or a meta object (InternVL), got {type(content).__name__}."
            )
        # A JSON list cannot be read lazily: it becomes JSONL once, and is an ordinary lazy file from then on.
        write_lines(converted, content)
    return [Source(path.stem, JsonlFile(converted), root, label=str(path))]


def _load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not UTF-8 ({error.reason} at byte {error.start}). Save the file as UTF-8."
        ) from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}:{error.lineno}: not valid JSON ({error.msg}). One row a line? Then name it .jsonl."
        ) from error


def _meta_source(path: Path, name: str, entry: Any) -> Source:
    if not isinstance(entry, dict) or "annotation" not in entry:
        raise ValueError(
            f'{path}: entry {name!r} needs {{"root": ..., "annotation": ..., "repeat_time": ...}} (InternVL meta JSON).'
        )
    for key in entry:
        if key not in _META_KEYS:
            raise ValueError(f"{path}: entry {name!r} has the unknown key {key!r}.{nearest(key, _META_KEYS)}")
    if entry.get("data_augment"):
        raise ValueError(
            f"{path}: entry {name!r} asks for data_augment, which is not offered: it would change pictures silently. Set it to false."
        )
    repeat = float(entry.get("repeat_time", 1))
    if repeat <= 0:
        raise ValueError(
            f"{path}: entry {name!r} has repeat_time {repeat}; it must be above 0 (below 1 takes a part of the rows)."
        )
    annotation, root = (_path_in_meta(path, entry.get(key, "")) for key in ("annotation", "root"))
    (source,) = open_sources([str(annotation)], str(root))
    source = dataclasses.replace(source, name=name, repeat_time=repeat, max_tiles=entry.get("max_dynamic_patch"))
    if "length" in entry and entry["length"] != len(source.rows):
        raise ValueError(
            f"{path}: entry {name!r} says length {entry['length']}, but {annotation} holds {len(source.rows)} rows. Fix the number."
        )
    return source


def _path_in_meta(path: Path, text: str) -> Path:
    """A path of a meta JSON: relative to the meta file, or to the working directory where only that exists (InternVL's own)."""
    relative = path.parent / text
    return Path(text) if not relative.exists() and Path(text).exists() else relative
