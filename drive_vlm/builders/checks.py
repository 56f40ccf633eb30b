"""What tools/check_data.py measures of a data set before a run; nothing here trains or prints."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from drive_vlm.builders.evaluation_files import frame_token, picture_name
from drive_vlm.builders.same_pictures import SPLITS, kept_of_tables, leaks_of
from drive_vlm.builders.splits import Leak, find_leaks
from drive_vlm.data.order import EpochOrder, pack
from drive_vlm.data.samples import BadRow, parse_row
from drive_vlm.data.sources import Source
from drive_vlm.data.table import RowTable
from drive_vlm.data.turns import one_row
from drive_vlm.data.vision import checked_image_size, load_image, load_video

_BINS, _BLOCK = 16, 2048


def histogram(lengths: np.ndarray) -> list[tuple[int, int, int]]:
    """[(from, to, rows)]: up to 16 bins of equal width over int[N] lengths, both ends included."""
    if not len(lengths):
        return []
    low, high = int(lengths.min()), int(lengths.max())
    width = max(1, -(-(high - low + 1) // _BINS))
    counts = np.bincount((lengths - low) // width)
    return [(low + i * width, low + (i + 1) * width - 1, int(count)) for i, count in enumerate(counts)]


def padding_shares(lengths: np.ndarray, max_length: int, batch_size: int) -> dict[str, Any]:
    """Share of padding in random batches of `batch_size` rows, and in packs of `max_length` tokens, as training forms them."""
    if not len(lengths):
        return {}
    total = int(lengths.sum())
    order = np.array(EpochOrder(lengths, seed=0)(0)).ravel()
    batches = [lengths[order[i : i + batch_size]] for i in range(0, len(order), batch_size)]
    padded = sum(int(batch.max()) * len(batch) for batch in batches)
    packs = len(pack(lengths, max_length))
    return {
        "unpacked": {"sequences": len(lengths), "padding_share": 1 - total / padded},
        "packed": {
            "sequences": packs,
            "padding_share": 1 - total / (packs * max_length),
            "rows_per_pack": len(lengths) / packs,
        },
    }


def scaled_pictures(table: RowTable, limits: tuple[int, int]) -> dict[str, int]:
    """{"pictures", "up", "down"}: the distinct pictures of the usable rows, and how many of them have fewer or more pixels than
    a model's `limits`. Only headers are read."""
    places = {path: sample.where for sample, _ in table.media() for path in sample.images}
    with ThreadPoolExecutor(16) as threads:
        pixels = np.array([h * w for h, w in threads.map(checked_image_size, places, places.values())], dtype=np.int64)
    least, most = limits
    return {"pictures": len(pixels), "up": int((pixels < least).sum()), "down": int((pixels > most).sum())}


def raw_rows(sources: Sequence[Source]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(place, image root, row) of every line that is a JSON object; the others are in the audit."""
    for source in sources:
        for i in range(len(source.rows)):
            try:
                row = source.row(i)
            except BadRow:
                continue
            if isinstance(row, dict):
                yield source.where(i), source.root, row


def duplicate_ids(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """[{"id", "first", "again"}] for every id that stands a second time in the same file."""
    found = []
    for source in sources:
        first: dict[str, str] = {}
        for where, _, row in raw_rows([source]):
            if row.get("id") is not None and first.setdefault(str(row["id"]), where) != where:
                found.append({"id": str(row["id"]), "first": first[str(row["id"])], "again": where})
    return found


def leak_keys(sources: Sequence[Source]) -> Iterator[dict[str, Any]]:
    """Rows as find_leaks takes them, with media by `picture_name`: two files may have different roots."""
    for where, root, row in raw_rows(sources):
        media: list[str] = []
        # What is no usable row shows its id and group at least.
        with contextlib.suppress(BadRow), one_row(where):
            sample = parse_row(row, where, root, need_answer=False)
            media = [picture_name(path) for path in (*sample.images, *filter(None, [sample.video]))]
        group = row.get("group") or row.get("scene_token")
        yield {"id": row.get("id"), "group": group, "frame": frame_token(row), "image": media}


def leaks_between(train: RowTable, held_out: RowTable) -> list[Leak]:
    """Ids, groups and paths that rows of both tables have, and pictures of equal bytes under other names. Kept in the cache, as
    `leaks_of` keeps the latter."""

    def find() -> list[list[str]]:
        rows = dict(zip(SPLITS, (leak_keys(train.sources), leak_keys(held_out.sources)), strict=True))
        return [[leak.kind, leak.value] for leak in find_leaks(rows)]

    found = [Leak(kind, value, SPLITS) for kind, value in kept_of_tables("shared", (train, held_out), find)]
    return found + [Leak("content", value, SPLITS) for value in leaks_of(train, held_out)]


def decode_all(
    table: RowTable, num_frames: int, workers: int, progress: Callable[[range], Iterator[int]] = iter
) -> tuple[int, list[BadRow]]:
    """(files decoded, BadRows): every picture and video of the usable rows once, in threads (Pillow and FFmpeg free the GIL)."""

    def decode(job: tuple[str, str, bool]) -> BadRow | None:
        path, where, is_video = job
        try:
            with one_row(where):
                load_video(path, num_frames, where) if is_video else load_image(path, where)
        except BadRow as error:
            return error
        return None

    seen: set[str] = set()
    bad: list[BadRow] = []
    with ThreadPoolExecutor(workers) as threads:
        for start in progress(range(0, len(table), _BLOCK)):
            jobs = []
            for i in range(start, min(start + _BLOCK, len(table))):
                sample = table.sample(i)
                paths = [(path, False) for path in sample.images] + ([(sample.video, True)] if sample.video else [])
                jobs += [(path, sample.where, is_video) for path, is_video in paths if path not in seen]
                seen.update(path for path, _ in paths)
            bad += [error for error in threads.map(decode, jobs) if error is not None]
    return len(seen), bad
