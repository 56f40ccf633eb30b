"""Which pictures are the same: by their bytes, by their looks, and by vectors where some are given.

Looks are the grey grids of builders/same_pictures.py. Every pair is compared, in blocks: 200,000 pictures among themselves are 4e10
products of 256 numbers.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drive_vlm.builders.same_pictures import ALIKE, likeness_grid
from drive_vlm.data.jsonl import JsonlFile
from drive_vlm.data.samples import BadRow
from drive_vlm.data.vision import CHECK_ROOT, load_image
from drive_vlm.store.fingerprint import content_hash

# Cosine of two pictures' vectors above which they count as one.
VECTOR_ALIKE = 0.97
# Products that are held at a time (64 MB).
_PRODUCTS = 1 << 24


@dataclass(frozen=True)
class Print:
    """What a picture is known by. `grid` float32[256] is None for a picture of one grey; `vectors` float32[V, D], V may be 0."""

    name: str
    digest: str
    grid: np.ndarray | None
    vectors: np.ndarray | None = None


@dataclass(frozen=True)
class Twin:
    """A pair of equal pictures: `name` among the first, `other` among the second; `how`: bytes, look or embedding."""

    name: str
    other: str
    how: str
    likeness: float


def take_prints(
    paths: Mapping[str, str],
    vectors: Mapping[str, np.ndarray] | None = None,
    workers: int = 4,
    note_bad: Callable[[BadRow], None] | None = None,
) -> list[Print]:
    """A print of each picture, name -> path, decoded by threads. One that cannot be read is left to `note_bad`; without that it is raised
    as BadRow."""

    def take(item: tuple[str, str]) -> Print | BadRow:
        name, path = item
        try:
            return Print(name, content_hash(path), likeness_grid(load_image(path, name)), (vectors or {}).get(name))
        except OSError as error:
            return BadRow("image_missing", name, f"{path} cannot be read ({error.strerror})", CHECK_ROOT)
        except BadRow as error:
            return error

    found = []
    with ThreadPoolExecutor(max(1, workers)) as threads:
        for one in threads.map(take, paths.items()):
            if isinstance(one, Print):
                found.append(one)
            elif note_bad is None:
                raise one
            else:
                note_bad(one)
    return found


def read_vectors(folder: str | Path) -> dict[str, np.ndarray]:
    """Picture -> float32[V, D] of length 1, from a folder of vectors.npy and names.jsonl ({"row", "image"}) as tools/synth_database.py
    writes it, here of whole pictures. Raises ValueError, naming the file, for what is not there or does not fit."""
    folder = Path(folder)
    try:
        array = np.load(folder / "vectors.npy", mmap_mode="r")
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / 'vectors.npy'}: cannot be read as vectors ({error})") from error
    found: dict[str, list[np.ndarray]] = {}
    for where, row in JsonlFile(folder / "names.jsonl").places():
        number = row.get("row") if isinstance(row, dict) else None
        image = row.get("image") if isinstance(row, dict) else None
        if type(number) is not int or not 0 <= number < len(array) or not isinstance(image, str):
            raise ValueError(
                f'{where}: expected {{"row": 0 to {len(array) - 1}, "image": path}}, got {json.dumps(row)[:100]}'
            )
        vector = np.asarray(array[number], dtype=np.float32)
        found.setdefault(image, []).append(vector / max(float(np.linalg.norm(vector)), 1e-12))
    return {image: np.stack(vectors) for image, vectors in found.items()}


def twins(first: Sequence[Print], second: Sequence[Print]) -> list[Twin]:
    """The nearest twin of each picture of `first` among `second`, if it has one: equal bytes before equal looks before equal vectors."""
    by_bytes: dict[str, str] = {}
    for one in second:
        by_bytes.setdefault(one.digest, one.name)
    found = {one.name: Twin(one.name, by_bytes[one.digest], "bytes", 1.0) for one in first if one.digest in by_bytes}
    for how, least in (("look", ALIKE), ("embedding", VECTOR_ALIKE)):
        rest = [one for one in first if one.name not in found]
        for name, other, likeness in _nearest(_stacked(rest, how), _stacked(second, how), how, least):
            known = found.get(name)
            if known is None or likeness > known.likeness:
                found[name] = Twin(name, other, how, likeness)
    return [found[one.name] for one in first if one.name in found]


def merged_groups(prints: Sequence[Print], groups: Mapping[str, str]) -> dict[str, str]:
    """Picture -> group, where `groups` of pictures that are the same have become one, which is called as the first of them in the
    alphabet: a split by group then never has a picture on both sides."""
    parent = {group: group for group in groups.values()}

    def root(group: str) -> str:
        while parent[group] != group:
            parent[group] = parent[parent[group]]
            group = parent[group]
        return group

    def join(name: str, other: str) -> None:
        first, second = sorted((root(groups[name]), root(groups[other])))
        parent[second] = first

    by_bytes: dict[str, str] = {}
    for one in prints:
        join(one.name, by_bytes.setdefault(one.digest, one.name))
    for how, least in (("look", ALIKE), ("embedding", VECTOR_ALIKE)):
        names, array = _stacked(prints, how)
        for name, other, _ in _pairs((names, array), (names, array), how, least):
            join(name, other)
    return {name: root(group) for name, group in groups.items()}


_Stacked = tuple[list[str], np.ndarray]


def _stacked(prints: Sequence[Print], how: str) -> _Stacked:
    """(names, vectors float32[N, D]) of the prints that have some; a name may come several times."""
    names: list[str] = []
    parts: list[np.ndarray] = []
    for one in prints:
        part = one.vectors if how == "embedding" else None if one.grid is None else one.grid[None]
        if part is not None and len(part):
            names += [one.name] * len(part)
            parts.append(part)
    return names, np.concatenate(parts) if parts else np.empty((0, 1), dtype=np.float32)


def _pairs(first: _Stacked, second: _Stacked, how: str, least: float) -> Iterator[tuple[str, str, float]]:
    """(name, other name, likeness) of every pair that counts as one picture. A look counts from `least` on, a vector above it."""
    if not len(first[1]) or not len(second[1]):
        return
    if first[1].shape[1] != second[1].shape[1]:
        raise ValueError(
            f"vectors of {first[1].shape[1]} and of {second[1].shape[1]} numbers cannot be compared: make both with one embedder"
        )
    block = max(1, _PRODUCTS // len(second[1]))
    for start in range(0, len(first[1]), block):
        likeness = first[1][start : start + block] @ second[1].T
        rows, columns = np.nonzero(likeness > least if how == "embedding" else likeness >= least)
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            yield first[0][start + row], second[0][column], float(likeness[row, column])


def _nearest(first: _Stacked, second: _Stacked, how: str, least: float) -> Iterator[tuple[str, str, float]]:
    """The nearest of `_pairs` for each name; of equally near ones the first in the alphabet."""
    best: dict[str, tuple[float, str]] = {}
    for name, other, likeness in _pairs(first, second, how, least):
        known = best.get(name)
        if known is None or (-likeness, other) < (-known[0], known[1]):
            best[name] = likeness, other
    yield from ((name, other, likeness) for name, (likeness, other) in best.items())


def audit_of(found: Sequence[Twin], with_vectors: bool) -> dict[str, Any]:
    """{"bytes", "look", "embedding"} -> pictures, 0 included; null for what was not looked at."""
    counts: dict[str, Any] = {how: sum(twin.how == how for twin in found) for how in ("bytes", "look", "embedding")}
    return counts if with_vectors else counts | {"embedding": None}
