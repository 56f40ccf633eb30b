"""Step 1 of the flow: the files that a run reads, by the end of their names. One table, FILES."""

import codecs
import dataclasses
import gzip
import json
import shutil
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drive_vlm.config import nearest
from drive_vlm.data import columnar
from drive_vlm.data.dataset_info import Renaming, is_dataset_info, read_entry
from drive_vlm.data.forms import FORMS
from drive_vlm.data.jsonl import JsonlFile
from drive_vlm.store.cache import cache_dir, file_key, write_atomically
from drive_vlm.store.forms import made
from drive_vlm.store.keyed_lines import write_lines

# So many times the rows are repeated by a slip of the hand only.
_MOST_REPEATS = 1e6


@dataclasses.dataclass(frozen=True)
class _MetaEntry:
    """An entry of an InternVL meta JSON."""

    annotation: str
    root: str = ""
    repeat_time: float = 1.0
    max_dynamic_patch: int | None = None
    data_augment: bool | None = None
    length: int | None = None


@dataclasses.dataclass
class Source:
    """One annotation file: rows, the folder its picture paths start from, how often it is repeated, its tile limit."""

    name: str
    rows: JsonlFile
    root: str
    repeat_time: float = 1.0
    max_tiles: int | None = None
    # The file that messages name, where `rows` reads a converted copy of it; of an unpacked one the lines are the same.
    label: str = ""
    same_lines: bool = False
    renaming: Renaming | None = None
    # Its pictures lie in the cache alone: the table holds them itself.
    embedded: bool = False
    # refuse: a row whose file is reached through a symbolic link that leaves `root` is bad.
    links: str = "follow"

    def row(self, i: int) -> Any:
        """Row `i` as JSON, before it is checked. Raises BadRow for a line that is not JSON."""
        row = self.rows[i]
        return self.renaming(row) if self.renaming else row

    def where(self, i: int) -> str:
        if not self.label:
            return self.rows.where(i)
        return f"{self.label}:{self.rows.line_number(i)}" if self.same_lines else f"{self.label}[{i}]"

    def repeated_rows(self, rows: Sequence[int], seed: int) -> list[int]:
        """`rows` as often as `repeat_time` says: whole times, and a seeded subset for the fraction."""
        whole, fraction = divmod(self.repeat_time, 1)
        part = round(fraction * len(rows))
        if not part:
            return list(rows) * int(whole)
        chosen = np.random.default_rng([seed, len(rows)]).permutation(len(rows))[:part]
        return list(rows) * int(whole) + [rows[i] for i in sorted(chosen)]


def open_sources(paths: Sequence[str], image_root: str | None = None, links: str = "follow") -> list[Source]:
    """Open every file, or folder of a data set, of `paths`. `image_root` replaces the default root: the file's own folder.

    Raises ValueError for a missing file, an unknown extension, or a meta JSON with an unknown key.
    """
    sources: list[Source] = []
    for text in paths:
        top = Path(text)
        for path in columnar.files_of(top) if top.is_dir() else [top]:
            if not path.is_file():
                raise ValueError(f"{path}: no such data file. Give an existing file: {_known()}.")
            ending = next((ending for ending in FILES if path.name.lower().endswith(ending)), None)
            if ending is None:
                way_out = (
                    "Write other tables as JSON lines, e.g. pandas.read_csv(f).to_json(g, orient='records', lines=True)"
                )
                raise ValueError(f"{path}: unknown data format. Give {_known()}. {way_out}.")
            sources.extend(FILES[ending][1](path, image_root or str(top if top.is_dir() else path.parent)))
    for source in sources:
        source.links = links
    name_apart(sources)
    return sources


def require_files(sources: Sequence[Source]) -> None:
    """Raises ValueError for a table that holds its pictures itself: rows that are written to another file would lose them."""
    for source in sources:
        if source.embedded:
            raise ValueError(
                f"{source.label}: holds its pictures itself, and the rows that are made of it are kept in other files, which would not "
                f"find them. Its rows and pictures lie unpacked in {source.rows.path} and {source.root}: copy both to a folder of "
                "your own, and give that file and that folder (--image_root)."
            )


def name_apart(sources: Sequence[Source]) -> None:
    """Give sources of one name (a/val.jsonl, b/val.jsonl) names that differ, with as many folders as it takes: an id belongs to
    the data set that it stands in. A file that is given twice keeps one name, and so do the shards of one entry."""
    for name in {source.name for source in sources}:
        alike = [source for source in sources if source.name == name]
        shards: dict[int, Path] = {}
        paths = []
        for source in alike:
            path = Path(source.label or source.rows.path).resolve()
            paths.append(shards.setdefault(id(source.renaming), path) if source.renaming else path)
        different = set(paths)
        if len(different) == 1:
            continue
        # train.jsonl and train.parquet differ in their ends only.
        plain = len({path.with_suffix("") for path in different}) == len(different)
        parts = {path: (path.with_suffix("") if plain else path).parts for path in different}
        depth = 1
        while len({part[-depth:] for part in parts.values()}) < len(different):
            depth += 1
        for source, path in zip(alike, paths, strict=True):
            found = "/".join(parts[path][-depth:])
            # An entry of a meta file has a name of its own.
            source.name = found if path.name.startswith(f"{name}.") else f"{name}/{found}"


def _known() -> str:
    return "; ".join(f"{ending} ({what})" for ending, (what, _) in FILES.items())


def _open_lines(path: Path, root: str) -> list[Source]:
    return [Source(path.stem, JsonlFile(path), root)]


def _open_packed(path: Path, root: str) -> list[Source]:
    """A gzip file of the table's other forms, unpacked into the cache once."""
    inner = Path(path.stem)
    unpacked = cache_dir() / f"unpacked-{file_key(path)}{inner.suffix.lower()}"
    if not unpacked.is_file():
        try:
            with gzip.open(path) as packed:
                write_atomically(unpacked, lambda file: shutil.copyfileobj(packed, file))
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: damaged ({error}). Download or pack it again.") from error
    lines = inner.suffix.lower() != ".json"
    if not lines:
        with open(unpacked, "rb") as file:
            begins = file.read(64).removeprefix(codecs.BOM_UTF8).lstrip()
        if begins.startswith(b"{"):
            raise ValueError(f"{path}: names other files. Unpack it: they are found from its own folder.")
    opened = _open_lines(unpacked, root) if lines else _open_json(unpacked, root, path)
    return [dataclasses.replace(source, name=inner.stem, label=str(path), same_lines=lines) for source in opened]


def _open_table(path: Path, root: str) -> list[Source]:
    rows, pictures = columnar.convert(path)
    return [Source(path.stem, JsonlFile(rows), str(pictures or root), label=str(path), embedded=pictures is not None)]


def _open_json(path: Path, root: str, shown: Path | None = None) -> list[Source]:
    # The key holds size and time of the file: an edited list is converted again.
    converted = cache_dir() / f"rows-{file_key(path)}.jsonl"
    if not converted.is_file():
        content = _load_json(path, shown or path)
        if isinstance(content, dict) and any(all(column in content for column in form.columns) for form in FORMS):
            # A list of one row, written without the list.
            content = [content]
        if isinstance(content, dict) and is_dataset_info(content):
            return [source for name, entry in content.items() for source in _named_source(path, root, name, entry)]
        if isinstance(content, dict) and content:
            return [_meta_source(path, name, entry) for name, entry in content.items()]
        if not isinstance(content, list):
            found = "an empty object" if content == {} else type(content).__name__
            raise ValueError(
                f"{shown or path}: expected a list of rows (LLaVA), one row, a meta object (InternVL) or a dataset_info.json "
                f"(LLaMA-Factory), got {found}."
            )
        # A JSON list cannot be read lazily: it becomes JSONL once, and is an ordinary lazy file from then on.
        write_lines(converted, content)
    return [Source(path.stem, JsonlFile(converted), root, label=str(path))]


def _load_json(path: Path, shown: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{shown}: not UTF-8 ({error.reason} at byte {error.start}). Save the file as UTF-8."
        ) from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{shown}:{error.lineno}: not valid JSON ({error.msg}). One row a line? Then name it .jsonl."
        ) from error
    # A number of more digits than Python reads, lists within lists without end.
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{shown}: cannot be read ({error}). Written as .jsonl, only its row would be bad.") from error


def _named_source(path: Path, root: str, name: str, entry: dict[str, Any]) -> list[Source]:
    """The data set of an entry of LLaMA-Factory's dataset_info.json; its pictures are found from the folder of that file."""
    file, renaming = read_entry(path, name, entry)
    opened = open_sources([str(file)], root)
    return [dataclasses.replace(source, name=name, renaming=renaming) for source in opened]


def _meta_source(path: Path, name: str, entry: Any) -> Source:
    if not isinstance(entry, dict) or "annotation" not in entry:
        raise ValueError(
            f'{path}: entry {name!r} needs {{"root": ..., "annotation": ..., "repeat_time": ...}} (InternVL meta JSON).'
        )
    known = {field.name for field in dataclasses.fields(_MetaEntry)}
    for key in entry:
        if key not in known:
            raise ValueError(f"{path}: entry {name!r} has the unknown key {key!r}.{nearest(key, known)}")
    meta = made(entry, _MetaEntry, path, name)
    if meta.data_augment:
        raise ValueError(
            f"{path}: entry {name!r} asks for data_augment, which is not offered: it would change pictures silently. Set it to false."
        )
    # `not <` in place of `>=`: NaN is refused as well.
    if not 0 < meta.repeat_time <= _MOST_REPEATS:
        raise ValueError(
            f"{path}: entry {name!r} has repeat_time {meta.repeat_time}; it must be above 0 (below 1 takes a part of the rows), at most "
            f"{_MOST_REPEATS:,.0f}."
        )
    if meta.max_dynamic_patch is not None and meta.max_dynamic_patch < 1:
        raise ValueError(f"{path}: entry {name!r} has max_dynamic_patch {meta.max_dynamic_patch}; at least 1.")
    annotation, root = _path_in_meta(path, meta.annotation), _path_in_meta(path, meta.root)
    opened = open_sources([str(annotation)], str(root))
    if len(opened) != 1:
        raise ValueError(
            f"{path}: entry {name!r} names {annotation}, which holds {len(opened)} files. Give each an entry."
        )
    repeat, tiles = float(meta.repeat_time), meta.max_dynamic_patch
    source = dataclasses.replace(opened[0], name=name, repeat_time=repeat, max_tiles=tiles)
    if meta.length is not None and meta.length != len(source.rows):
        raise ValueError(
            f"{path}: entry {name!r} says length {meta.length}, but {annotation} holds {len(source.rows)} rows. Fix the number."
        )
    return source


def _path_in_meta(path: Path, text: str) -> Path:
    """A path of a meta JSON: relative to the meta file, or to the working directory where only that exists (InternVL's own)."""
    relative = path.parent / text
    return Path(text) if not relative.exists() and Path(text).exists() else relative


# The end of a file's name -> what it is, how it is opened. The longest ending that fits comes first.
FILES: dict[str, tuple[str, Callable[[Path, str], list[Source]]]] = {
    ".jsonl.gz": ("JSON lines, packed", _open_packed),
    ".ndjson.gz": ("JSON lines, packed", _open_packed),
    ".json.gz": ("a list of rows, packed", _open_packed),
    ".jsonl": ("JSON lines: one row a line", _open_lines),
    ".ndjson": ("JSON lines: one row a line", _open_lines),
    ".json": ("a LLaVA list of rows, an InternVL meta file or a LLaMA-Factory dataset_info.json", _open_json),
    ".parquet": ("a Parquet table, pictures embedded or by path", _open_table),
    ".arrow": ("an Arrow table of save_to_disk", _open_table),
}
