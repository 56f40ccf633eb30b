"""The pictures that a step works on: of rows, of folders, or of the lines of an earlier step."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drive_vlm.data.jsonl import JsonlFile
from drive_vlm.data.samples import BadRow, media_of, resolve_below
from drive_vlm.data.sources import Source, open_sources
from drive_vlm.data.table import read_sample
from drive_vlm.data.turns import given, path_of
from drive_vlm.data.videos import is_media
from drive_vlm.data.vision import CHECK_ROOT, FRAME_SUFFIXES, load_image
from drive_vlm.store.fingerprint import content_hash

if TYPE_CHECKING:
    from PIL.Image import Image

# Columns of rows: a line that has none of them, but a key and a picture, is a step's.
_TURNS = ("messages", "conversations")


@dataclasses.dataclass(frozen=True)
class Picture:
    """One picture to work on.

    Attributes:
        image: its path below the image root, which names it in every step.
        path: the file.
        group: the scene or video that it is of; a split must not cut it.
        where: file:line that named it first, or the folder's path.
        source: the file of an earlier step, and
        number: its line there; None and -1 for a picture of rows or of a folder.
    """

    image: str
    path: str
    group: str | None
    where: str
    source: JsonlFile | None = None
    number: int = -1

    @property
    def line(self) -> dict[str, Any]:
        """What earlier steps say of the picture, read from the file each time: lines hold many masks. {} without one."""
        return {} if self.source is None else self.source[self.number]

    def content(self) -> str:
        """Hash of the picture's bytes. Raises BadRow (image_missing)."""
        try:
            return content_hash(self.path)
        except OSError as error:
            problem = f"the picture {self.path} does not exist or cannot be read ({error.strerror})"
            raise BadRow("image_missing", self.where, problem, CHECK_ROOT) from error

    def key(self, *settings: Any, pixels: bool = True) -> str:
        """SHA-256 of everything that decides a step's line: the settings, the picture's name, group and bytes, the input's line.

        Without `pixels`, the key in the input's line stands for the bytes, where it has one. Raises BadRow (image_missing).
        """
        before = "" if self.source is None else hashlib.sha256(self.source.line(self.number).strip()).hexdigest()
        content = self.content() if pixels or "key" not in self.line else None
        parts = [settings, self.image, self.group, content, before]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def load(self) -> "Image":
        """RGB, upright. Raises BadRow (image_missing, image_corrupt, image_mode)."""
        return load_image(self.path, self.where)


def load_all(pictures: Sequence[Picture], threads: int = 4) -> list["Image | BadRow"]:
    """Each picture's RGB, or why it cannot be read, decoded by threads."""

    def look(picture: Picture) -> "Image | BadRow":
        try:
            return picture.load()
        except BadRow as error:
            return error

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(look, pictures))


def is_step_file(path: str | Path) -> bool:
    """Whether the first line is one of a step, or of boxes that somebody drew, and not a row with turns."""
    path = Path(path)
    if path.suffix != ".jsonl" or not path.is_file() or not path.stat().st_size:
        return False
    rows = JsonlFile(path)
    first = rows[0] if len(rows) else None
    if not isinstance(first, dict) or first.keys() & set(_TURNS):
        return False
    return "image" in first and bool(first.keys() & {"key", "boxes"})


def read_pictures(
    data: Sequence[str],
    image_root: str | None,
    note_bad: Callable[[BadRow], None],
    group_by_folder: bool = False,
) -> tuple[list[Picture], str]:
    """(each picture once, in the order of files of rows, folders and step files; the image root). `note_bad` counts a bad row, or raises it.

    `image_root`: default is the folder of pictures, the folder of the rows' file, or what the step file's settings say.
    Raises ValueError for inputs below several roots, for a name that stands for two files, and without any picture.
    """
    found: dict[str, Picture] = {}
    roots: dict[str, str] = {}
    for entry in data:
        root, pictures = _open(entry, image_root, note_bad, group_by_folder)
        roots.setdefault(os.path.realpath(root), entry)
        for picture in pictures:
            first = found.setdefault(picture.image, picture)
            if os.path.realpath(first.path) != os.path.realpath(picture.path):
                raise ValueError(
                    f"{picture.where}: {picture.image!r} is {picture.path}, but {first.path} at {first.where}. Pictures are named by "
                    "their paths below one --image_root."
                )
    if len(roots) > 1:
        raise ValueError(
            f"--data {' '.join(data)}: the pictures start from {len(roots)} folders ({', '.join(roots)}). Give the folder above all of "
            "them as --image_root."
        )
    if not found:
        raise ValueError(
            f"--data {' '.join(data)}: no picture in it. Pictures end in {', '.join(sorted(FRAME_SUFFIXES))}."
        )
    return list(found.values()), next(iter(roots))


def _open(
    entry: str, image_root: str | None, note_bad: Callable[[BadRow], None], group_by_folder: bool
) -> tuple[str, Iterator[Picture]]:
    """(image root, pictures) of one word of --data."""
    if is_step_file(entry):
        from drive_vlm.builders.synthesis.settings import read_settings

        known = read_settings(Path(entry))
        root = image_root or (known.image_root if known else str(Path(entry).parent))
        return root, _of_step(JsonlFile(entry), root, note_bad)
    if Path(entry).is_dir() and is_media(entry):
        return image_root or entry, _of_folder(entry, image_root or entry, group_by_folder)
    return image_root or str(Path(entry).parent), _of_rows(entry, image_root, note_bad)


def _of_step(rows: JsonlFile, root: str, note_bad: Callable[[BadRow], None]) -> Iterator[Picture]:
    for i in range(len(rows)):
        where = rows.where(i)
        try:
            line = rows[i]
            image, group = (line.get(name) for name in ("image", "group")) if isinstance(line, dict) else (None, None)
            if not isinstance(image, str):
                problem = 'a line of a step must hold "image"'
                raise BadRow("missing_field", where, problem, "Make the file again with the tool of its step")
            path = resolve_below(root, image, where)
        except BadRow as error:
            note_bad(error)
            continue
        yield Picture(image, path, None if group is None else str(group), where, rows, i)


def _of_folder(entry: str, root: str, group_by_folder: bool) -> Iterator[Picture]:
    """Every picture below the folder, in the order of paths."""
    paths = [
        Path(folder, name)
        for folder, _, names in os.walk(entry, followlinks=True)
        for name in names
        if Path(name).suffix.lower() in FRAME_SUFFIXES and not name.startswith(".")
    ]
    for path in sorted(paths):
        image = os.path.relpath(path, root)
        if image.split(os.sep)[0] == os.pardir:
            raise ValueError(f"{path} is not below --image_root {root}. Give a folder above it.")
        yield Picture(image, str(path), os.path.dirname(image) or "." if group_by_folder else None, str(path))


def _of_rows(entry: str, image_root: str | None, note_bad: Callable[[BadRow], None]) -> Iterator[Picture]:
    for source in open_sources([entry], image_root):
        for i in range(len(source.rows)):
            where = source.where(i)
            try:
                images, group = _media(source, i)
            except BadRow as error:
                note_bad(error)
                continue
            for path in images:
                yield Picture(os.path.relpath(path, source.root), path, group, where)


def _media(source: Source, i: int) -> tuple[Sequence[str], str | None]:
    """(paths of the pictures, group) of a row, which needs no turns: {"image", "group"} is a row of an unlabelled picture. Raises BadRow."""
    where, row = source.where(i), source.row(i)
    images, videos = media_of(given(row), where) if isinstance(row, dict) else ([], [])
    if images and not videos:
        group = row.get("group")
        return [resolve_below(source.root, path_of(item, where), where) for item in images], (
            None if group is None else str(group)
        )
    # Pictures may stand in the parts of messages.
    sample = read_sample(source, i, need_answer=False)
    if sample.video or not sample.images:
        problem = f"the row has a video ({sample.video})" if sample.video else "the row has no picture"
        way_out = "Write the frames of videos to files, or use --on_bad_row skip"
        raise BadRow("no_picture", where, f"{problem}, and synthesis works on pictures", way_out)
    return sample.images, sample.group
