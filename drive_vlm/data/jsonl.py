"""Random access to JSONL files of any length: an index of line offsets on disk, one line in memory at a time."""

import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from drive_vlm.data.turns import BadRow
from drive_vlm.store.cache import array_bytes, cache_dir, file_key, read_sealed, write_sealed

_BLOCK = 1 << 24
# Half a surrogate pair as JSON escapes it; a whole pair is a character.
_ESCAPED_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
# Deeper rows end Python's own writers of JSON and of pickles; no form of a row comes near.
_DEEPEST = 64


class JsonlFile:
    """A JSONL file as a sequence of rows. `len(file)`, `file[i] -> dict`, `file.where(i) -> "path:line"`.

    The index int64[N, 3] (start and end of the line in bytes, its number from 1; blank lines are left out) is built once,
    kept in the cache directory and memory-mapped, so that a million rows cost no memory. Threads and forked workers may
    share one JsonlFile: it reads by absolute position.
    Raises BadRow for a line that is not UTF-8 (not_utf8) or not JSON (broken_json).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f"{self.path}: no such data file. Give an existing .jsonl or .json file.")
        index = cache_dir() / f"lines-{file_key(self.path)}.npy"
        if read_sealed(index) is None:
            offsets = _line_offsets(self.path)
            write_sealed(index, array_bytes(offsets))
            self._offsets = offsets
        else:
            self._offsets = np.load(index, mmap_mode="r")
        self._file = open(self.path, "rb")  # noqa: SIM115 - open as long as the object lives

    def __len__(self) -> int:
        return len(self._offsets)

    def where(self, i: int) -> str:
        return f"{self.path}:{self.line_number(i)}"

    def line_number(self, i: int) -> int:
        """Number of the line from 1."""
        return int(self._offsets[i, 2])

    def line(self, i: int) -> bytes:
        start, end = int(self._offsets[i, 0]), int(self._offsets[i, 1])
        return os.pread(self._file.fileno(), end - start, start)

    def __getitem__(self, i: int) -> Any:
        return decode_row(self.line(i), self.where(i))

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def places(self) -> Iterator[tuple[str, Any]]:
        """("path:line", row) of every row."""
        return ((self.where(i), self[i]) for i in range(len(self)))

    def __getstate__(self) -> dict:
        # An open file cannot be pickled. A spawned worker opens the path again, and finds the index in the cache.
        return {"path": self.path}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["path"])  # type: ignore[misc]


def decode_row(line: bytes, where: str) -> Any:
    """The row of a line. Raises BadRow: not_utf8, also for half a surrogate pair, which no file can hold; broken_json, also for
    what JSON leaves open (NaN, a key that comes twice) or what cannot be written again."""
    try:
        row = _DECODER.decode(line.decode("utf-8-sig"))
        if _ESCAPED_HALF.search(line):
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 ({error.reason} at byte {error.start})"
        raise BadRow("not_utf8", where, problem, "Save the file as UTF-8") from error
    except UnicodeEncodeError as error:
        half = error.object[error.start].encode("unicode_escape").decode()
        problem = f"a text holds half a character ({half}, as of an emoji that was cut)"
        raise BadRow("not_utf8", where, problem, "Write the text again, or remove the line") from error
    except json.JSONDecodeError as error:
        problem = f"not valid JSON ({error.msg}, column {error.colno})"
        raise BadRow("broken_json", where, problem, "Fix or remove the line") from error
    # ValueError: a number of more digits than Python reads, and what the hooks say.
    except (ValueError, RecursionError) as error:
        raise BadRow("broken_json", where, f"not valid JSON ({error})", "Fix or remove the line") from error
    if line.count(b"[") + line.count(b"{") > _DEEPEST and _depth(row) > _DEEPEST:
        problem = f"lists and objects stand more than {_DEEPEST} deep in each other"
        raise BadRow("broken_json", where, problem, "Fix or remove the line")
    return row


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if any(key == other for other, _ in pairs[:i]))
        raise ValueError(f"the key {twice[:40]!r} comes twice")
    return row


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is too large a number")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_each_once, parse_constant=_no_number, parse_float=_finite)


def _depth(value: Any) -> int:
    """How deep lists and objects stand in each other."""
    depth, inner = 0, [value]
    while inner := [item for item in inner if isinstance(item, dict | list)]:
        depth += 1
        inner = [part for item in inner for part in (item.values() if isinstance(item, dict) else item)]
    return depth


def _line_offsets(path: Path) -> np.ndarray:
    """int64[N, 3]: start, end and number of every line that is not blank."""
    starts = [np.zeros(1, dtype=np.int64)]
    position = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            starts.append(np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == ord("\n")) + position + 1)
            position += len(block)
    begin = np.concatenate(starts)
    length = np.diff(np.append(begin, position))
    numbers = np.arange(1, len(begin) + 1)
    # A row is longer than 64 bytes: only shorter lines can be blank, and only they are read.
    keep = length > 64
    short = np.flatnonzero((length > 0) & ~keep)
    if len(short):
        with open(path, "rb") as file:
            for i in short:
                file.seek(begin[i])
                keep[i] = bool(file.read(length[i]).strip())
    return np.stack([begin[keep], (begin + length)[keep], numbers[keep]], axis=1)
