"""Results that cost money, a JSON line each: kept as they come, found again by a rerun, in order at the end."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from drive_vlm.store.cache import write_atomically


class JudgedRows:
    """The rows of `path` by their "key", a hash of everything that decided a row.

    `keys` are the rows wanted now, in order. Rows of an earlier run with other keys (another judge, prompt or answer) are
    taken out of the file and counted in `stale`; a torn last line, left by a killed run, is cut off. A row with
    "unread_after" N, whose replies could not be read in N attempts, is wanted again when `attempts` is larger.
    Raises ValueError, naming file and line, for a file that holds something else.
    """

    def __init__(self, path: str | Path, keys: Sequence[str], attempts: int) -> None:
        self.path, self.keys = Path(path), list(keys)
        found = _read(self.path)
        wanted = set(self.keys)
        self.stale = len(found.keys() - wanted)
        self.rows = {
            key: row for key, row in found.items() if key in wanted and row.get("unread_after", attempts) >= attempts
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._write(self.rows.values())

    def missing(self) -> list[int]:
        """Places in `keys` that have no row yet, each key once."""
        first = {key: place for place, key in reversed(list(enumerate(self.keys)))}
        return sorted(place for key, place in first.items() if key not in self.rows)

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append finished rows to the file."""
        with open(self.path, "a", encoding="utf-8") as file:
            for row in rows:
                self.rows[row["key"]] = row
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def finish(self) -> list[dict[str, Any]]:
        """Write all rows in the order of `keys`, and return them."""
        rows = [self.rows[key] for key in dict.fromkeys(self.keys)]
        self._write(rows)
        return [self.rows[key] for key in self.keys]

    def _write(self, rows: Iterable[dict[str, Any]]) -> None:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomically(self.path, lambda file: file.write(text.encode()))


def _read(path: Path) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    content = path.read_bytes() if path.is_file() else b""
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), 1):
        try:
            row = json.loads(line)
            rows[row["key"]] = row
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}:{number}: not a row of an earlier run. Give another --out, or remove the file."
            ) from error
    return rows
