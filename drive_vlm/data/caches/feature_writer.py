"""Writing a feature cache (feature_cache.py): each process appends to files of its own, an entry at a time."""

import dataclasses
import json
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from drive_vlm.data.caches.feature_cache import SETTINGS, FileIdentity, check_settings, media_key, read_settings
from drive_vlm.data.samples import BadRow, Sample
from drive_vlm.models.vision import Layout
from drive_vlm.store.cache import write_json

_SHARD_BYTES = 4 << 30


class FeatureWriter:
    """Appends entries to a pair of files of its own; a new pair is begun after 4 GiB.

    Args:
        directory: the cache, with cache.json.
        stored: number type on disk, float16, bfloat16 or float32.
    """

    def __init__(self, directory: Path, stored: str) -> None:
        self.directory, self.stored = directory, stored
        self.shard = ""
        self._data: IO[bytes] | None = None
        self._index: IO[bytes] | None = None

    def __enter__(self) -> "FeatureWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(
        self,
        sample: Sample,
        max_tiles: int | None,
        features: Any,
        tiles: Sequence[Layout],
        identity: FileIdentity | None,
        frames: list[int] | None,
    ) -> int:
        """Add `features float[P, L, Dv]` of a row's pictures, cut like `tiles`; returns the bytes written.

        `identity` with content is that of the files before they were decoded; `frames` numbers those that were taken of a video.
        Raises ValueError for numbers that are not finite in the cache's type, and when the disk is full.
        """
        import torch

        assert identity is not None and identity.content, "features are written of files that were read"
        stored = features.to("cpu", getattr(torch, self.stored)).contiguous()
        if not torch.isfinite(stored).all():
            raise ValueError(
                f"{sample.where}: features of {sample.video or sample.images} are not finite as {self.stored} (largest "
                f"{features.float().abs().max().item():.3g}). Use --stored bfloat16 or float32 and another --out."
            )
        content = stored.view(torch.uint8).numpy().tobytes()
        try:
            data, index = self._files()
            offset = data.tell()
            # Bytes before the line: an entry that the index names is whole, whenever the process dies.
            data.write(content)
            data.flush()
            row = {"offset": offset, "end": offset + len(content), "shape": list(stored.shape), "tiles": list(tiles)}
            self._line(index, sample, max_tiles, row | {"frames": frames, "identity": dataclasses.asdict(identity)})
        except OSError as error:
            raise ValueError(
                f"{self.directory}: features could not be written ({error}). What is complete stays: fix the cause and run the same "
                "command again."
            ) from error
        return len(content)

    def write_bad(self, sample: Sample, max_tiles: int | None, error: BadRow) -> None:
        """Record that the pictures could not be read, so that training counts the row for the same reason."""
        bad = [error.reason, error.problem, error.way_out]
        self._line(self._files()[1], sample, max_tiles, {"end": 0, "identity": None, "bad": bad})

    def _line(self, index: IO[bytes], sample: Sample, max_tiles: int | None, row: dict[str, Any]) -> None:
        row = {"key": media_key(sample, max_tiles, self.directory), "saved": time.time(), **row}
        index.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        index.flush()

    def _files(self) -> tuple[IO[bytes], IO[bytes]]:
        if self._data is not None and self._data.tell() >= _SHARD_BYTES:
            self.close()
        if self._data is None or self._index is None:
            self.shard = f"features-{secrets.token_hex(6)}"
            self._data = open(self.directory / f"{self.shard}.bin", "xb")  # noqa: SIM115 - closed by close()
            self._index = open(self.directory / f"{self.shard}.jsonl", "xb")  # noqa: SIM115
        return self._data, self._index

    def close(self) -> None:
        for file in (self._data, self._index):
            if file is not None:
                file.flush()
                os.fsync(file.fileno())
                file.close()
        self._data = self._index = None


def start_cache(directory: Path, settings: dict[str, Any], shape: tuple[int, int], rebuild: str) -> None:
    """Make the directory and cache.json, or check that one which is there has these settings.

    Raises ValueError for other settings, and for a directory that cannot be made or written to.
    """
    path = directory / SETTINGS
    if not path.is_file():
        try:
            directory.mkdir(parents=True, exist_ok=True)
            write_json(path, settings | {"stored_shape": list(shape)})
        except OSError as error:
            raise ValueError(
                f"{directory}: no feature cache can be made there ({error}). Give another folder."
            ) from error
    check_settings(directory, read_settings(directory, rebuild), settings, rebuild)


def folder_of(out: str) -> Path:
    """The nearest folder of the path that is there already. Raises ValueError for a file in the place of a folder."""
    path = Path(out).absolute()
    nearest = next(part for part in (path, *path.parents) if part.exists())
    if not nearest.is_dir():
        raise ValueError(f"--out {out}: {nearest} is a file, a feature cache is a folder. Give another --out.")
    return nearest
