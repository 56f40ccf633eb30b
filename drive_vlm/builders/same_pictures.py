"""Pictures and videos that two splits share under different names: equal files, and with more work near-identical pictures."""

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from drive_vlm.builders.splits import Leak
from drive_vlm.data.samples import BadRow, Sample
from drive_vlm.data.table import RowTable
from drive_vlm.data.vision import frame_files, load_image, load_video
from drive_vlm.store.cache import cache_dir, cache_key, read_sealed, write_sealed

if TYPE_CHECKING:
    from PIL.Image import Image

# On a grey grid of this side, 40 pictures of roads halved and stored at JPEG quality 50 correlate with their originals above 0.999,
# and the likest two of 231 different ones 0.981.
_SIDE, ALIKE = 16, 0.995
# A grid of almost one grey says nothing: below this deviation, in steps of 255.
_FLAT = 1.0
_BLOCK = 512
SPLITS = ("train", "eval")


def same_files(train: Iterable[Sample], held_out: Iterable[Sample]) -> list[Leak]:
    """A leak "content" for each file of `held_out` whose bytes a file of another name in `train` holds. Files of one size alone are
    read. A video that is a folder is looked at frame by frame."""
    sizes = [_by_size(_files(samples)) for samples in (train, held_out)]
    found = []
    for size in sorted(sizes[0].keys() & sizes[1].keys()):
        known: dict[bytes, str] = {}
        for path in sizes[0][size]:
            known.setdefault(_digest(path), path)
        for path in sizes[1][size]:
            twin = known.get(_digest(path), path)
            if twin != path and path not in sizes[0][size]:
                found.append(Leak("content", f"{twin} = {path}", SPLITS))
    return found


def leaks_of(train: RowTable, held_out: RowTable) -> list[str]:
    """What `same_files` finds between the tables of a run, "a.jpg = b.jpg". It is kept in the cache by the bytes of the data files
    and their image roots, so that a further start of the run reads no row for it."""
    rows = [
        [table.file_hashes, [os.path.abspath(source.root) for source in table.sources]] for table in (train, held_out)
    ]
    file = cache_dir() / f"leaks-{cache_key(rows)}.json"
    if (kept := read_sealed(file)) is not None:
        return json.loads(bytes(kept))
    samples = ([sample for sample, _ in table.media()] for table in (train, held_out))
    found = [leak.value for leak in same_files(*samples)]
    write_sealed(file, json.dumps(found).encode())
    return found


def look_alikes(
    train: Iterable[Sample],
    held_out: Iterable[Sample],
    num_frames: int,
    workers: int,
    progress: Callable[[list[list[str]]], Iterable[list[str]]] = iter,
) -> list[Leak]:
    """A leak "look-alike" for each picture or video of `held_out` that shows what one in `train` shows, encoded or scaled in another
    way: its nearest. Equal files and files of both are left to `same_files`; what cannot be decoded is passed over."""
    media = [{path: sample for sample in samples for path in _media(sample)} for samples in (train, held_out)]
    names, grids = [], []
    with ThreadPoolExecutor(workers) as threads:
        for path, found in _grids(media[1], num_frames, threads, iter):
            names += [path] * len(found)
            grids += found
        if not grids:
            return []
        wanted = np.stack(grids)
        best: dict[str, tuple[float, str]] = {}
        for path, found in _grids(media[0], num_frames, threads, progress):
            if path in media[1] or not found:
                continue
            likeness = np.stack(found) @ wanted.T
            for i in np.flatnonzero(likeness.max(axis=0) >= ALIKE).tolist():
                best[names[i]] = max(best.get(names[i], (0.0, "")), (float(likeness[:, i].max()), path))
    pairs = [(twin, path) for path, (_, twin) in sorted(best.items()) if path not in media[0]]
    return [Leak("look-alike", f"{twin} = {path}", SPLITS) for twin, path in pairs if not _equal(twin, path)]


def likeness_grid(picture: "Image") -> np.ndarray | None:
    """float32[_SIDE * _SIDE] of mean 0 and length 1, whose products say how alike two pictures are; None for one of a single grey."""
    from PIL import Image

    grid = np.asarray(picture.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float32).ravel()
    if grid.std() < _FLAT:
        return None
    grid = grid - grid.mean()
    return grid / np.linalg.norm(grid)


def _media(sample: Sample) -> list[str]:
    return [os.path.abspath(path) for path in (*sample.images, *([sample.video] if sample.video else []))]


def _files(samples: Iterable[Sample]) -> Iterator[str]:
    for sample in samples:
        for path in _media(sample):
            try:
                yield from frame_files(path, sample.where) if os.path.isdir(path) else [path]
            except BadRow:
                continue


def _by_size(paths: Iterable[str]) -> dict[int, list[str]]:
    """Regular files by their size, each once."""
    sizes: dict[int, list[str]] = {}
    for path in dict.fromkeys(paths):
        try:
            about = os.stat(path)
        except OSError:
            continue
        if stat.S_ISREG(about.st_mode):
            sizes.setdefault(about.st_size, []).append(path)
    return sizes


def _digest(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()


def _equal(first: str, second: str) -> bool:
    return os.path.isfile(first) and os.path.isfile(second) and _digest(first) == _digest(second)


def _grids(
    media: dict[str, Sample],
    num_frames: int,
    threads: ThreadPoolExecutor,
    progress: Callable[[list[list[str]]], Iterable[list[str]]],
) -> Iterator[tuple[str, list[np.ndarray]]]:
    """(path, its pictures' grids float32[_SIDE * _SIDE] of mean 0 and length 1, flat ones left out), decoded by threads."""

    def look(path: str) -> list[np.ndarray]:
        where, is_video = media[path].where, path not in map(os.path.abspath, media[path].images)
        try:
            pictures = load_video(path, num_frames, where) if is_video else [load_image(path, where)]
        except BadRow:
            return []
        return [grid for grid in map(likeness_grid, pictures) if grid is not None]

    paths = list(media)
    for block in progress([paths[start : start + _BLOCK] for start in range(0, len(paths), _BLOCK)]):
        yield from zip(block, threads.map(look, block), strict=True)
