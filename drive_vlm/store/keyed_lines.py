"""JSON lines that survive a kill: written one by one as results come, read again by key, checked against their settings.

A process that is killed while it writes leaves half a line at the end of its file, without a newline: a *torn* line. Readers
pass over it, and a writer cuts it off before it appends, since the next line would otherwise become its tail. A broken line
anywhere else is damage from outside and is refused with file:line.

* read_lines, read_keyed    what a file holds, torn line left out
* LineWriter                appends lines; each is with the operating system when `append` returns
* write_lines               replaces a file, whole or not at all
* JudgedRows                rows that cost money: what a rerun needs of the earlier ones, and what is missing
* check_same                refuses a file whose settings are not those of this run
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NotRequired, Self, TypedDict

from drive_vlm.store.cache import finite, write_atomically
from drive_vlm.store.forms import check_fields

_BLOCK = 1 << 16


def read_lines(
    path: Path, problem: str, way_out: str, parse: Callable[[Any], Any] = lambda row: row, torn: str | None = None
) -> Iterator[tuple[int, Any]]:
    """(line number from 1, `parse` of the decoded line) of every line; blank lines are passed over.

    Raises ValueError `path:line: problem (cause). way_out` for a line that is not JSON or that `parse` cannot take, and, where
    `torn` says what to call it, for a torn last line. A file that is not there has no lines.
    """
    if not path.is_file():
        return
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            whole = line.endswith(b"\n")
            if not whole and torn is None:
                return
            try:
                row = parse(json.loads(line))
            # RecursionError: brackets nested thousands deep.
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                cause = f"no {error}" if isinstance(error, KeyError) else str(error)
                raise ValueError(f"{path}:{number}: {problem} ({cause if whole else torn}). {way_out}") from error
            yield number, row


class Keyed(TypedDict):
    """What every keyed line holds; a kind of lines adds its own fields."""

    key: str


def read_keyed(path: Path, problem: str, way_out: str, form: type[Keyed] = Keyed) -> dict[str, dict[str, Any]]:
    """Rows by their "key"; of two with one key the later one. Raises ValueError as read_lines, also for a row that is not of
    this `form`."""

    def parse(row: Any) -> tuple[str, dict[str, Any]]:
        check_fields(row, form)
        return row["key"], row

    return dict(row for _, row in read_lines(path, problem, way_out, parse))


def cut_torn_line(path: Path) -> None:
    """Shorten the file to its last whole line; a file that is not there stays so."""
    if not path.is_file():
        return
    size = end = path.stat().st_size
    with open(path, "rb") as file:
        # From the end on: judges open a file of many thousand rows for each few that they add.
        while end > 0:
            start = max(0, end - _BLOCK)
            file.seek(start)
            if (found := file.read(end - start).rfind(b"\n")) >= 0:
                end = start + found + 1
                break
            end = start
    if end < size:
        os.truncate(path, end)


def _line(row: Any) -> bytes:
    row = finite(row)
    try:
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        # Half a surrogate pair, which broken texts hold, has no UTF-8 form; as an escape of JSON it is read again.
        return json.dumps(row).encode() + b"\n"


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """Replace the file by these rows, atomically."""
    write_atomically(path, lambda file: file.writelines(map(_line, rows)))


def append_line(path: Path, row: Any) -> None:
    """Append one line, which need not be on the disk yet: a log."""
    try:
        with open(path, "ab") as file:
            file.write(_line(row))
    except OSError as error:
        error.filename = str(path)
        raise


class LineWriter:
    """Appends to one file, which no other process may write to. A torn last line is cut off first; on leaving all is on disk."""

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        cut_torn_line(path)
        # A kill loses what Python still buffers; what the operating system has survives it.
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by __exit__

    def append(self, row: Any) -> None:
        rest = memoryview(_line(row))
        try:
            while rest:
                # A disk that is nearly full takes a part, and refuses the next.
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            # Writing to an open file fails without its name.
            error.filename = self._file.name
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            os.fsync(self._file.fileno())
        except OSError:
            # What went wrong first is what is reported.
            if kind is None:
                raise
        finally:
            self._file.close()


class JudgedRow(Keyed):
    """What JudgedRows reads itself."""

    unread_after: NotRequired[int]


class JudgedRows:
    """The rows of `path` by their "key", a hash of everything that decided a row.

    `keys` are the rows wanted now, in order. Rows of an earlier run with other keys (another judge, prompt or answer) are
    taken out of the file and counted in `stale`. A row with "unread_after" N, whose replies could not be read in N attempts,
    is wanted again when `attempts` is larger.
    `form` says what a reader takes from a row of the file. `facts[i]`, what the inputs of now say of the row
    `keys[i]` besides, takes the place of what the file says. `flag` names the file in messages.
    Raises ValueError, naming file and line, for a file that holds something else.
    """

    def __init__(
        self,
        path: str | Path,
        keys: Sequence[str],
        attempts: int,
        form: type[JudgedRow],
        facts: Sequence[dict[str, Any]] | None = None,
        flag: str = "--out",
    ) -> None:
        self.path, self.keys = Path(path), list(keys)
        way_out = f"Give another {flag}, or remove the file."
        found = read_keyed(self.path, "not a row of an earlier run", way_out, form)
        self._facts = dict(zip(self.keys, facts, strict=True)) if facts is not None else {}
        wanted = set(self.keys)
        self.stale = len(found.keys() - wanted)
        self.rows = {
            key: row | self._facts.get(key, {})
            for key, row in found.items()
            if key in wanted and row.get("unread_after", attempts) >= attempts
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_lines(self.path, self.rows.values())

    def missing(self) -> list[int]:
        """Places in `keys` that have no row yet, each key once."""
        first = {key: place for place, key in reversed(list(enumerate(self.keys)))}
        return sorted(place for key, place in first.items() if key not in self.rows)

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append finished rows to the file."""
        with LineWriter(self.path) as file:
            for result in rows:
                key = result["key"]
                self.rows[key] = {"key": key} | self._facts.get(key, {}) | result
                file.append(self.rows[key])

    def add_blocks(
        self, places: Iterable[int], blocks: Iterable[Iterable[Any]], row: Callable[[int, Any], dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Append `row(place, result)` as the blocks come, which hold the results of `places` in order; then `finish`.

        A ValueError on the way says as well how many rows are kept, and how to go on.
        """
        rest = iter(places)
        try:
            for block in blocks:
                self.add(
                    {"key": self.keys[place]} | row(place, result) for result, place in zip(block, rest, strict=False)
                )
        except ValueError as error:
            raise ValueError(
                f"{error}\n{len(self.rows):,} of {len(self.keys):,} judgements are kept in {self.path}, and every reply in the "
                "cache; fix the cause and give the same command again to go on"
            ) from error
        return self.finish()

    def finish(self) -> list[dict[str, Any]]:
        """Write all rows in the order of `keys`, and return them."""
        write_lines(self.path, [self.rows[key] for key in dict.fromkeys(self.keys)])
        return [self.rows[key] for key in self.keys]


def check_same(problem: str, was: dict[str, Any], now: dict[str, Any], way_out: str) -> None:
    """Raises ValueError `problem (a.b: 1 then, 2 now; ...). way_out` unless every setting is the same.

    `was` comes from a JSON file; `now` may hold tuples, which JSON makes lists.
    """
    moved = list(_differences(was, json.loads(json.dumps(now))))
    if moved:
        raise ValueError(f"{problem} ({'; '.join(moved)}). {way_out}")


def _differences(was: Any, now: Any, name: str = "") -> Iterator[str]:
    if isinstance(was, dict) and isinstance(now, dict):
        for key in sorted(was.keys() | now.keys()):
            yield from _differences(was.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif was != now:
        yield f"{name}: {short(was)} then, {short(now)} now"


def short(value: Any) -> str:
    """A value for a message, at most 120 characters: a text as it is, anything else as JSON."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:117]}..."
