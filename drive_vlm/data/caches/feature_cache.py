"""Features of a frozen vision tower on disk, so that training neither decodes pictures nor runs the tower.

    DIR/cache.json              what all entries share: the tower, its pixel settings, frames of a video, number types
    DIR/features-<id>.bin       float[P, L, Dv] of one entry after the other, raw; memory-mapped when read
    DIR/features-<id>.jsonl     one line an entry, written when its bytes are in the .bin

An entry belongs to the pictures of a row, however many rows ask about them. Its key is their paths, relative to DIR so
that data and cache may move together, and the tile limit; it is valid while the files are the same: equal size and time
of change, or, where only the time differs (a copied data set), equal content. Every process that writes has a pair of
files of its own, so ranks, array jobs and restarts never meet, and two caches of one cache.json are joined by copying
their files into one folder. `tools/cache_features.py` writes (feature_writer.py), `--feature_cache` reads.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from drive_vlm.data.samples import BadRow, Sample
from drive_vlm.data.turns import RunError
from drive_vlm.data.vision import CHECK_ROOT, frame_files, frame_indices
from drive_vlm.models.vision import Layout
from drive_vlm.store.cache import cache_key
from drive_vlm.store.fingerprint import content_hash
from drive_vlm.store.forms import read_object
from drive_vlm.store.keyed_lines import check_same, read_lines

SETTINGS = "cache.json"
FORMAT = 1
# Raise it when the same files give other pixels: frames are chosen or ordered, files decoded, or pictures cut in another way.
TRANSFORM = 4
# numpy has no bfloat16: its bytes are read as whole numbers and viewed by torch.
_STORED = {"float16": np.float16, "bfloat16": np.uint16, "float32": np.float32}
# Settings that training does not compare: it takes features of any number type.
_HOW_STORED = {"stored", "computed"}


def cache_settings(tower: dict[str, Any], pixels: dict[str, Any], num_frames: int) -> dict[str, Any]:
    """The part of the key that all entries share. `tower`: models.vision_features.tower_identity; `pixels`:
    VisionAdapter.fingerprint, of which the tokens of a picture are left out: they are the projector's."""
    pixels = {name: value for name, value in pixels.items() if name != "tokens"}
    settings = {"format": FORMAT, "transform": TRANSFORM, "num_frames": num_frames, "tower": tower, "pixels": pixels}
    return json.loads(json.dumps(settings))


@dataclasses.dataclass(frozen=True, slots=True)
class FileIdentity:
    """Size, times and hash of the files behind an entry, to notice a change.

    `files` counts them, `bytes` is their size, `times` a hash of names and times of change, `content` a hash of what is decoded.
    """

    files: int
    bytes: int
    times: str
    content: str = ""

    @classmethod
    def of(cls, sample: Sample, num_frames: int, content: bool = False, cached: bool = False) -> "FileIdentity":
        """Of the pictures of `sample`; with `content` the files that are decoded are read. Raises OSError, and BadRow (video_mixed)."""
        files = used = list(sample.images)
        if sample.video is not None:
            files = used = [sample.video]
            if os.path.isdir(sample.video):
                files = frame_files(sample.video, sample.where)
                used = [files[i] for i in frame_indices(len(files), num_frames)]
        stats = [os.stat(file) for file in files]
        times = cache_key([(os.path.basename(file), s.st_mtime_ns) for file, s in zip(files, stats, strict=True)])
        digest = cache_key([content_hash(file, cached) for file in used]) if content else ""
        return cls(len(files), sum(s.st_size for s in stats), times, digest)

    def difference(self, sample: Sample, num_frames: int) -> str:
        """How the files of `sample` differ from those that this was made of, in words; '' where they do not. Raises OSError."""
        now = FileIdentity.of(sample, num_frames)
        if (self.files, self.bytes) != (now.files, now.bytes):
            return f"{self.files} files of {self.bytes:,} bytes then, {now.files} of {now.bytes:,} bytes now"
        if self.times != now.times:
            now = FileIdentity.of(sample, num_frames, content=True, cached=True)
            if self.content != now.content:
                return "other content (size the same, time and hash differ)"
        return ""


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """A line of the index: where `shape` (P, L, Dv) lies in which .bin, `tiles` (the layout) of each picture, frame numbers of a video.

    `bad` holds (reason, problem, way out) of pictures that could not be read when the cache was built.
    """

    saved: float
    identity: FileIdentity | None = None
    shard: str = ""
    offset: int = 0
    shape: tuple[int, int, int] = (0, 0, 0)
    tiles: tuple[Layout, ...] = ()
    frames: tuple[int, ...] | None = None
    bad: tuple[str, str, str] | None = None


class FeatureCache:
    """A cache directory for reading.

    Args:
        directory: with cache.json.
        settings: what this run would make features with (cache_settings).
        rebuild: the command that builds the cache, for error messages.

    Raises ValueError when there is no cache, and when it was made with other settings, naming each that differs.
    """

    def __init__(self, directory: str | Path, settings: dict[str, Any], rebuild: str) -> None:
        self.directory, self.rebuild = Path(directory), rebuild
        self.settings = read_settings(self.directory, rebuild)
        check_settings(self.directory, self.settings, settings, rebuild)
        self.num_frames = int(self.settings["num_frames"])
        self.entries: dict[str, Entry] = {}
        for path in sorted(self.directory.glob("features-*.jsonl")):
            for key, entry in _read_index(path):
                if key not in self.entries or self.entries[key].saved < entry.saved:
                    self.entries[key] = entry
        self._checked: set[str] = set()
        self._maps: dict[str, np.memmap] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Sent to a DataLoader worker, a memory map would be copied with all its bytes. Each worker opens its own.
        return self.__dict__ | {"_maps": {}}

    def __len__(self) -> int:
        return len(self.entries)

    def fingerprint(self) -> str:
        """Changes with the settings and with every entry."""
        newest = max((entry.saved for entry in self.entries.values()), default=0.0)
        return cache_key(self.settings, len(self.entries), newest)

    def find(self, sample: Sample, max_tiles: int | None = None) -> Entry:
        """The valid entry of a row's pictures.

        Raises BadRow for pictures that could not be read when the cache was built; ValueError for those that are not in
        it, or have changed since.
        """
        key = media_key(sample, max_tiles, self.directory)
        entry, name = self.entries.get(key), sample.video or ", ".join(sample.images)
        if entry is None:
            raise RunError(
                f"{sample.where}: {name} is not among the {len(self):,} entries of the feature cache {self.directory}. "
                f"Add it: {self.rebuild}"
            )
        if entry.bad:
            reason, problem, way_out = entry.bad
            raise BadRow(reason, sample.where, problem, way_out)
        if key not in self._checked:
            try:
                changed = self.difference(entry, sample)
            except OSError as error:
                reason = "video_missing" if sample.video else "image_missing"
                problem = f"{error.filename} cannot be found, though its features are in {self.directory}"
                raise BadRow(reason, sample.where, problem, CHECK_ROOT) from error
            if changed:
                raise RunError(
                    f"{sample.where}: {name} has changed since its features were written to {self.directory}: {changed}. "
                    f"Renew what has changed: {self.rebuild}"
                )
            self._checked.add(key)
        return entry

    def difference(self, entry: Entry, sample: Sample) -> str:
        """`FileIdentity.difference` of an entry that is not bad."""
        assert entry.identity is not None
        return entry.identity.difference(sample, self.num_frames)

    def layouts(self, sample: Sample, max_tiles: int | None = None) -> list[Layout]:
        """How each picture or frame of a row is cut; none is opened. Raises as `find`."""
        return list(self.find(sample, max_tiles).tiles)

    def load(self, sample: Sample, max_tiles: int | None = None) -> Any:
        """`float[P, L, Dv]` of a row's pictures, in the cache's number type. Raises as `find`."""
        import torch

        entry = self.find(sample, max_tiles)
        if entry.shard not in self._maps:
            self._maps[entry.shard] = np.memmap(self.directory / f"{entry.shard}.bin", dtype=np.uint8, mode="r")
        kind = str(self.settings["stored"])
        # Copied out of the map: torch warns of arrays that cannot be written to.
        count = int(np.prod(entry.shape)) * np.dtype(_STORED[kind]).itemsize
        part = np.array(self._maps[entry.shard][entry.offset : entry.offset + count])
        return torch.from_numpy(part).view(getattr(torch, kind)).view(entry.shape)

    def check(self, samples: Iterable[tuple[Sample, int | None]]) -> None:
        """Look at every row's entry and at the size and time of its files before a run, not in the middle of it.

        Raises ValueError as `find`; a row whose files are gone is left to the loader, which counts it.
        """
        for sample, max_tiles in samples:
            if sample.images or sample.video:
                try:
                    self.find(sample, max_tiles)
                except BadRow:
                    continue

    def facts(self) -> dict[str, Any]:
        """What run.json says of the cache."""
        own = {"directory": str(self.directory), "entries": len(self), "fingerprint": self.fingerprint()}
        return own | self.settings

    @property
    def feature_shape(self) -> tuple[int, int]:
        """(L, Dv): tokens of one tile and their width."""
        tokens, width = self.settings["stored_shape"]
        return tokens, width


def read_settings(directory: Path, rebuild: str) -> dict[str, Any]:
    """Content of cache.json. Raises ValueError when it is missing or broken."""
    path = directory / SETTINGS
    if not path.is_file():
        raise ValueError(f"{directory}: no feature cache ({SETTINGS} is missing). Build it: {rebuild}")
    try:
        return read_object(path)
    except ValueError as error:
        cause = str(error).removeprefix(f"{path}: ")
        raise ValueError(f"{path}: damaged ({cause}). Remove {directory} and build it again: {rebuild}") from error


def check_settings(directory: Path, was: dict[str, Any], now: dict[str, Any], rebuild: str) -> None:
    """Raises ValueError naming every setting of `now` that the cache was not made with."""
    kept = {name: value for name, value in was.items() if name not in ("stored_shape", *(_HOW_STORED - now.keys()))}
    way_out = f"Go back to those, or build the cache again (another --out, or remove {directory} first): {rebuild}"
    check_same(f"{directory}: its features were made with other settings", kept, now, way_out)


@functools.lru_cache(maxsize=1 << 12)
def _real(folder: str) -> str:
    return os.path.realpath(folder)


def media_key(sample: Sample, max_tiles: int | None, directory: Path) -> str:
    """What names a row's pictures in a cache: kind, tile limit, paths seen from the cache's directory."""
    paths = [sample.video] if sample.video is not None else list(sample.images)
    base = _real(str(directory))
    seen = [os.path.relpath(os.path.join(_real(os.path.dirname(p)), os.path.basename(p)), base) for p in paths]
    return json.dumps(["video", *seen] if sample.video is not None else ["images", max_tiles, *seen])


def _read_index(path: Path) -> Iterator[tuple[str, Entry]]:
    """Entries of one shard whose bytes are all there; a torn last line, left by a killed run, is passed over."""
    data = path.with_suffix(".bin")
    available = data.stat().st_size if data.is_file() else 0

    def parse(row: dict[str, Any]) -> tuple[str, int, Entry]:
        key, end, identity = row.pop("key"), row.pop("end"), row.pop("identity")
        lists = {name: _tuples(value) for name, value in row.items() if isinstance(value, list)}
        return key, end, Entry(**row | lists, shard=path.stem, identity=identity and FileIdentity(**identity))

    for _, (key, end, entry) in read_lines(path, "damaged", f"Remove {path.stem}.* and build again.", parse):
        if end <= available:
            yield key, entry


def _tuples(value: Any) -> Any:
    return tuple(_tuples(one) for one in value) if isinstance(value, list) else value
