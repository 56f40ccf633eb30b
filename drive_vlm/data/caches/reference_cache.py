"""Log-probabilities of preference pairs under a frozen reference, on disk: training needs no second model.

    DIR/reference.json       what all entries share: the reference model, its number type, template, tokenizer, pixels, and how
                             files become pixels (feature_cache.TRANSFORM)
    DIR/log-probs-*.jsonl    {"key", "chosen", "rejected"} a line; sums over the tokens of each answer

The key of a pair is its words, its two answers, its tile limit and the files of its pictures (names, sizes, times of
change). Every process that writes has a file of its own, so that ranks and array jobs never meet.
"""

from pathlib import Path
from typing import Any, Self

import numpy as np

from drive_vlm.data.caches.feature_cache import TRANSFORM, FileIdentity
from drive_vlm.data.encoder import Encoder
from drive_vlm.data.preference.pair_encoding import answers_of
from drive_vlm.data.samples import BadRow, Sample
from drive_vlm.data.table import RowTable
from drive_vlm.store.cache import cache_key, write_json
from drive_vlm.store.forms import read_object
from drive_vlm.store.keyed_lines import Keyed, LineWriter, check_same, read_keyed

SETTINGS = "reference.json"
FORMAT = 1


def reference_settings(model: list[dict[str, Any]], dtype: str, encoder: Encoder) -> dict[str, Any]:
    """The part of the key that all pairs share. `model`: fingerprints (store/fingerprint.py) of the reference, and of the
    base model where the reference is an adapter on it."""
    hashes = [{name: value for name, value in part.items() if name != "name" or len(part) == 2} for part in model]
    return {
        "format": FORMAT,
        "transform": TRANSFORM,
        "model": hashes,
        "dtype": dtype,
        "encoding": encoder.fingerprint(),
    }


def pair_key(sample: Sample, num_frames: int, max_tiles: int | None) -> str:
    """Hash of everything that decides a pair's log-probabilities besides the settings. Raises BadRow for a row that is not a
    pair, or whose pictures are gone."""
    words = [(turn.role, turn.parts) for turn in sample.prompt_turns()]
    try:
        files = FileIdentity.of(sample, num_frames)
    except OSError as error:
        problem = f"{error.filename} cannot be found"
        raise BadRow("image_missing", sample.where, problem, "Check the image root (--image_root)") from error
    return cache_key(words, answers_of(sample), max_tiles, files.files, files.bytes, files.times)


class ReferenceCache:
    """A cache directory, for reading and for writing one file of it. `settings` come from reference_settings.

    Raises ValueError when the directory holds log-probabilities made with other settings, naming each that differs.
    """

    def __init__(self, directory: str | Path, settings: dict[str, Any]) -> None:
        self.directory, self.settings = Path(directory), settings
        path = self.directory / SETTINGS
        if path.is_file():
            was = read_object(path, f"Remove {self.directory}; its pairs are computed again.")
            way_out = (
                f"Give another directory, or go back to the --model, --data settings and --dtype of its {SETTINGS}."
            )
            check_same(f"{self.directory}: its log-probabilities were made with other settings", was, settings, way_out)
        self.entries: dict[str, tuple[float, float]] = {}
        self.read()

    @classmethod
    def start(cls, directory: str | Path, settings: dict[str, Any]) -> Self:
        """As the constructor, but the directory is made where it is not there."""
        cache = cls(directory, settings)
        cache.directory.mkdir(parents=True, exist_ok=True)
        write_json(cache.directory / SETTINGS, settings)
        return cache

    def read(self) -> None:
        """Take in every line of every file."""
        for path in sorted(self.directory.glob("log-probs-*.jsonl")):
            rows = read_keyed(path, "damaged", "Remove the file; its pairs are computed again.", _Line)
            self.entries |= {key: (row["chosen"], row["rejected"]) for key, row in rows.items()}

    def __len__(self) -> int:
        return len(self.entries)

    def lookup(self, keys: list[str]) -> np.ndarray:
        """float64[N, 2]: log-probabilities of chosen and rejected by key; NaN for a pair that is not in the cache."""
        nothing = (np.nan, np.nan)
        return np.array([self.entries.get(key, nothing) for key in keys], dtype=np.float64).reshape(-1, 2)

    def writer(self, name: str) -> "ReferenceWriter":
        return ReferenceWriter(self.directory / f"log-probs-{name}.jsonl")


class _Line(Keyed):
    """Summed log-probabilities of a pair's two answers."""

    chosen: float
    rejected: float


class ReferenceWriter(LineWriter):
    """Appends to one file of a cache."""

    def write(self, key: str, chosen: float, rejected: float) -> None:
        self.append({"key": key, "chosen": chosen, "rejected": rejected})


def keys_of(table: RowTable, num_frames: int) -> list[str]:
    """The key of every row of the table."""
    return [
        pair_key(table.sample(i, need_answer=False), num_frames, table.sources[table.source[i]].max_tiles)
        for i in range(len(table))
    ]
