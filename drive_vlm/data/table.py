"""Step 3 of the flow: the table of a run's rows. Which row of which file, how many tokens it has, which rows cannot be used and
why.

Lengths come from the text and from picture headers, never from pixels, so that packing and the number of steps are known
before the first picture is decoded. They are cached by file and processor: the second run on the same data reads one array.
"""

import dataclasses
import io
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from drive_vlm.data.encoder import Encoder, too_long
from drive_vlm.data.samples import BadRow, Sample, parse_row
from drive_vlm.data.sources import Source
from drive_vlm.data.turns import one_row
from drive_vlm.data.videos import check_links
from drive_vlm.launch.stop import until_stopped
from drive_vlm.models.vision import Layout
from drive_vlm.store.cache import array_bytes, cache_dir, cache_key, file_key, read_sealed, write_json, write_sealed
from drive_vlm.store.fingerprint import content_hash

_BLOCK = 2048
# Blocks from which on several processes measure, and how many of them at most: starting one costs as much as some thousand rows.
_MANY, _PROCESSES = 8, 16
# Raise it when the same row becomes another text: lengths that are kept in the cache are then measured again.
_READER = 2
BAD = -1


@dataclasses.dataclass
class RowTable:
    """`source int32[N]`, `row int64[N]`, `length int32[N]` of the usable rows, repeats included, and the bad ones.

    `file_hashes` are those of each source's file, not of its pictures, at the time when the rows were measured.
    """

    sources: list[Source]
    source: np.ndarray
    row: np.ndarray
    length: np.ndarray
    bad: list[BadRow]
    rows_read: int
    file_hashes: list[str]

    def __len__(self) -> int:
        return len(self.length)

    def sample(self, i: int, need_answer: bool = True) -> Sample:
        return read_sample(self.sources[self.source[i]], int(self.row[i]), need_answer)

    def media(self) -> Iterator[tuple[Sample, int | None]]:
        """Each row's sample and tile limit, repeated rows once."""
        for source, row in sorted(set(zip(self.source.tolist(), self.row.tolist(), strict=True))):
            yield read_sample(self.sources[source], row, need_answer=False), self.sources[source].max_tiles

    @property
    def content_hash(self) -> str:
        """Hash of the bytes of all data files: an edited row may keep its length."""
        return cache_key(self.file_hashes)

    def audit(self) -> dict[str, Any]:
        """What data_audit.json says of this table."""
        quantiles = np.quantile(self.length, [0, 0.5, 0.95, 1]).tolist() if len(self) else [0] * 4
        return {
            "files": [
                {
                    "name": source.name,
                    "path": str(source.label or source.rows.path),
                    "image_root": source.root,
                    "rows": len(source.rows),
                    "repeat_time": source.repeat_time,
                    "used": int((self.source == i).sum()),
                    "content_hash": self.file_hashes[i],
                }
                for i, source in enumerate(self.sources)
            ],
            "rows_read": self.rows_read,
            "rows_used": len(self),
            "tokens": {
                "total": int(self.length.sum()),
                **dict(zip(("min", "median", "p95", "max"), quantiles, strict=True)),
            },
            "bad_rows": audit_bad_rows(self.bad),
        }


def audit_bad_rows(bad: Sequence[BadRow]) -> dict[str, Any]:
    """Counts by reason, and every row by its place."""
    return {
        "total": len(bad),
        "by_reason": dict(Counter(row.reason for row in bad)),
        "rows": [row.facts() for row in bad],
    }


def read_sample(source: Source, i: int, need_answer: bool = True) -> Sample:
    """Row `i` of a source as a Sample; BadRow names the file and line that the user knows."""
    try:
        with one_row(source.where(i)):
            sample = parse_row(source.row(i), source.where(i), source.root, need_answer)
            if source.links == "refuse":
                check_links(sample, source.root)
            return sample
    except BadRow as error:
        raise BadRow(error.reason, source.where(i), error.problem, error.way_out) from error


def build_table(
    sources: Sequence[Source],
    encoder: Encoder,
    on_bad_row: str = "error",
    max_length: int | None = None,
    seed: int = 0,
    need_answer: bool = True,
    progress: Callable[[Iterator, int], Iterator] | None = None,
    allow_empty: bool = False,
) -> RowTable:
    """Measure every row of `sources`. With on_bad_row "error" the first bad row is raised, with "skip" all are kept in `bad`.

    Raises BadRow, and, unless `allow_empty`, ValueError when no usable row is left.
    """
    columns: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    bad: list[BadRow] = []
    for number, source in enumerate(sources):
        lengths, bad_here = _measure(source, encoder, on_bad_row, need_answer, progress)
        if max_length is not None:
            long = np.flatnonzero(lengths > max_length).tolist()
            bad_here += [too_long(source.where(i), int(lengths[i]), max_length) for i in long]
        if bad_here and on_bad_row == "error":
            raise bad_here[0]
        bad += bad_here
        usable = np.flatnonzero((lengths != BAD) & (lengths <= (max_length or np.inf)))
        repeated = source.repeat_time != 1
        rows = np.asarray(source.repeated_rows(usable.tolist(), seed), dtype=np.int64) if repeated else usable
        columns.append((np.full(len(rows), number, dtype=np.int32), rows, lengths[rows]))
    source_id, row, length = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    if not len(length) and not allow_empty:
        names = ", ".join(str(source.label or source.rows.path) for source in sources)
        raise ValueError(
            f"{names}: no usable row ({len(bad)} bad rows). Run tools/check_data.py on the file to see why."
        )
    rows_read = sum(len(source.rows) for source in sources)
    hashes = [content_hash(source.rows.path) for source in sources]
    return RowTable(list(sources), source_id, row, length, bad, rows_read, hashes)


def _measure(
    source: Source,
    encoder: Encoder,
    on_bad_row: str,
    need_answer: bool,
    progress: Callable[[Iterator, int], Iterator] | None,
) -> tuple[np.ndarray, list[BadRow]]:
    """int32[rows] lengths (BAD where a row cannot be used) and the bad rows; from the cache when file and processor are the same."""
    settings = source.root, source.links, source.max_tiles, encoder.fingerprint(), need_answer
    names = dataclasses.asdict(source.renaming) if source.renaming else None
    key = cache_key(_READER, file_key(source.rows.path), *settings, names)
    path = cache_dir() / f"lengths-{key}.npy"
    if (kept := read_sealed(path)) is not None:
        lengths = np.load(io.BytesIO(kept))
        # A picture that was missing may be there now.
        again = np.flatnonzero(lengths == BAD)
    else:
        lengths = np.full(len(source.rows), BAD, dtype=np.int32)
        again = np.arange(len(lengths))
    bad: list[BadRow] = []
    parts = [again[start : start + _BLOCK] for start in range(0, len(again), _BLOCK)]
    measured = _measure_blocks(partial(_measure_block, source, encoder, need_answer), parts)
    try:
        steps = until_stopped(iter(parts))
        for part in progress(steps, len(parts)) if progress else steps:
            found, bad_here = next(measured)
            lengths[part] = found
            bad += bad_here
            if bad and on_bad_row == "error":
                break
    finally:
        measured.close()
        # After a request to stop as well: rows that were not reached are BAD, and are measured next time.
        if len(again):
            write_sealed(path, array_bytes(lengths))
    return lengths, bad


Measured = tuple[np.ndarray, list[BadRow]]
# The function of the block, in a process that measures.
_of_this_process: Callable[[np.ndarray], Measured] | None = None


def _measure_blocks(measure: Callable[[np.ndarray], Measured], parts: Sequence[np.ndarray]) -> Generator[Measured]:
    """`measure` of each of the `parts`, in their order; of many parts in several processes."""
    processes = min(len(os.sched_getaffinity(0)), _PROCESSES, len(parts))
    if len(parts) < _MANY or processes == 1:
        yield from map(measure, parts)
        return
    # Forked: tokenizer and rows are there already, and nothing of a GPU is touched.
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(processes, fork, _begin_process, (measure,)) as pool:
        try:
            yield from pool.map(_measure_here, parts)
        finally:
            pool.shutdown(cancel_futures=True)


def _begin_process(measure: Callable[[np.ndarray], Measured]) -> None:
    global _of_this_process
    _of_this_process = measure
    # A tokenizer that has worked in threads warns in a fork, and works in one from then on.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _measure_here(rows: np.ndarray) -> Measured:
    assert _of_this_process is not None, "_begin_process ran first"
    return _of_this_process(rows)


def _measure_block(source: Source, encoder: Encoder, need_answer: bool, rows: np.ndarray) -> Measured:
    """(int32[len(rows)] lengths of `rows`, BAD where one cannot be used; the bad ones).

    Reading headers waits for the disk: it overlaps in threads. Tokenizing is work: one call takes the whole block.
    """

    def look(i: int) -> tuple[int, Sequence[Layout], list[str]] | BadRow:
        try:
            sample = read_sample(source, i, need_answer)
            layouts = encoder.layouts_of(sample, source.max_tiles)
            return i, layouts, encoder.texts(sample, layouts, prompt=not need_answer)
        except BadRow as error:
            return error

    with ThreadPoolExecutor(16) as headers:
        seen = list(headers.map(look, (int(i) for i in rows)))
    good = [item for item in seen if not isinstance(item, BadRow)]
    bad = [item for item in seen if isinstance(item, BadRow)]
    try:
        found = _longest(good, encoder)
    except (TypeError, ValueError, OverflowError):
        # One text that the tokenizer cannot take fails the call for all: each row is asked alone, and the bad one is named.
        found = {}
        for item in good:
            try:
                with one_row(source.where(item[0])):
                    found |= _longest([item], encoder)
            except BadRow as error:
                bad.append(error)
    return np.array([found.get(int(i), BAD) for i in rows], dtype=np.int32), bad


def _longest(good: Sequence[tuple[int, Sequence[Layout], list[str]]], encoder: Encoder) -> dict[int, int]:
    """The length of each row, of its longest text, by the row's number."""
    owners = [i for i, _, texts in good for _ in texts]
    lengths = encoder.lengths([t for g in good for t in g[2]], [g[1] for g in good for _ in g[2]])
    found: dict[int, int] = {}
    for i, length in zip(owners, lengths, strict=True):
        found[i] = max(found.get(i, 0), length)
    return found


def save_audit(path: Path, tables: dict[str, RowTable], runtime: Sequence[BadRow] = ()) -> None:
    """Write data_audit.json: each table's audit, and the rows that failed to decode during the run."""
    content = {name: table.audit() for name, table in tables.items()}
    content["bad_during_run"] = audit_bad_rows(runtime)
    write_json(path, content)
