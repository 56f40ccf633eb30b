"""Lengths from headers, kept between runs; each kind of bad row is counted by reason with file and line, or stops the run."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from drive_vlm.data import table as module
from drive_vlm.data.encoder import Encoder
from drive_vlm.data.samples import BadRow
from drive_vlm.data.sources import open_sources
from drive_vlm.data.table import RowTable, build_table, save_audit
from drive_vlm.launch import stop


class CountingTokenizer:
    """Passes everything on to the tokenizer and counts the texts that it was asked to encode."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.texts = tokenizer, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, texts: Any, **kwargs: Any) -> Any:
        self.texts += 1 if isinstance(texts, str) else len(texts)
        return self.tokenizer(texts, **kwargs)


@pytest.fixture
def counting(parts: Any, cache: Path) -> Encoder:
    """An encoder that counts, with a cache of its own."""
    return Encoder(CountingTokenizer(parts.tokenizer), parts.template, parts.vision, num_frames=4)


def table_of(path: Path, encoder: Encoder, **arguments: Any) -> RowTable:
    return build_table(open_sources([str(path)]), encoder, **arguments)


def test_lengths_are_those_of_the_encoded_rows(synthetic_data: Path, encoder: Encoder) -> None:
    for name in ("val", "captions_val", "dialogs_val", "clips_train"):
        table = table_of(synthetic_data / f"{name}.jsonl", encoder)
        encoded = [encoder.encode(table.sample(i)) for i in range(len(table))]
        assert table.length.tolist() == [len(row["input_ids"]) for row in encoded], name


def test_a_second_run_asks_the_tokenizer_nothing(synthetic_data: Path, counting: Encoder, parts: Any) -> None:
    path = synthetic_data / "val.jsonl"
    first = table_of(path, counting)
    asked = counting.tokenizer.texts
    assert asked == len(first) > 10
    assert table_of(path, counting).length.tolist() == first.length.tolist() and counting.tokenizer.texts == asked
    table_of(path, counting, max_length=int(first.length.max()))  # the limit is no part of the key
    assert counting.tokenizer.texts == asked
    other = Encoder(counting.tokenizer, parts.template + "{# another #}", parts.vision, num_frames=4)
    table_of(path, other)
    assert counting.tokenizer.texts == 2 * asked  # another processor measures anew


def test_a_stop_keeps_what_is_measured(
    synthetic_data: Path, counting: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM in the second block: the next run measures the rest alone."""
    monkeypatch.setattr(module, "_BLOCK", 4)

    def block_by_block(blocks: Iterator, total: int) -> Iterator:
        for number, block in enumerate(blocks):
            if number == 1:
                signal.raise_signal(signal.SIGTERM)
            yield block

    path = synthetic_data / "val.jsonl"
    with pytest.raises(stop.StopRequested), stop.listening():
        table_of(path, counting, progress=block_by_block)
    asked = counting.tokenizer.texts
    assert asked == 8
    whole = table_of(path, counting)
    assert counting.tokenizer.texts == len(whole) > asked
    assert whole.length.tolist() == [len(counting.encode(whole.sample(i))["input_ids"]) for i in range(len(whole))]


def test_a_changed_file_is_measured_anew(write_rows: Callable, good_row: dict, counting: Encoder) -> None:
    table_of(write_rows([good_row]), counting)
    path = write_rows([good_row])
    os.utime(path, ns=(1, 1))
    table_of(path, counting)
    assert counting.tokenizer.texts == 2


def test_the_content_of_a_file_is_told_apart_at_equal_lengths(
    write_rows: Callable, good_row: dict, counting: Encoder
) -> None:
    """Another id leaves every length as it was, also under the old times; new times alone change nothing."""
    path = write_rows([good_row, good_row | {"id": "second"}])
    first, times = table_of(path, counting), path.stat()
    assert [entry["content_hash"] for entry in first.audit()["files"]] == first.file_hashes
    os.utime(path, ns=(0, 0))
    assert table_of(path, counting).content_hash == first.content_hash
    path.write_bytes(path.read_bytes().replace(b"second", b"third!"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    changed = table_of(path, counting)
    assert changed.length.tolist() == first.length.tolist() and changed.rows_read == first.rows_read
    assert changed.content_hash != first.content_hash


def test_measuring_decodes_no_pixel(
    write_rows: Callable, good_row: dict, encoder: Encoder, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(self: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    path = write_rows([good_row | {"image": name} for name in ("wide.png", "tall.jpg", "square.png")])
    wide, tall, square = table_of(path, encoder).length.tolist()
    assert (wide - square, tall - square) == (
        2 * 16,
        3 * 16,
    )  # 2 x 1 and 1 x 3 tiles with a thumbnail, against one tile


BAD_ROWS: dict[str, tuple[str, bytes | dict]] = {
    "missing picture": ("image_missing", {"image": "absent.png"}),
    "corrupt picture": ("image_corrupt", {"image": "corrupt.png"}),
    "two pictures for one mark": ("image_count", {"image": ["wide.png", "tall.jpg"]}),
    "no picture for a mark": ("image_count", {"image": []}),
    "empty answer": ("empty_answer", {"conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": ""}]}),
    "not UTF-8": ("not_utf8", b'{"id": "\xff\xfe"}'),
    "broken JSON": ("broken_json", b'{"id": '),
    "absolute path": ("path_outside_root", {"image": "/etc/passwd"}),
    "path above the root": ("path_outside_root", {"image": "../wide.png"}),
    "too long": ("too_long", {"conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a truck " * 200}]}),
    "video without frames": (
        "video_empty",
        {"image": None, "video": "empty", "conversations": [{"from": "human", "value": "<video>"}, {"from": "gpt", "value": "a"}]},
    ),
    "reserved token": ("special_token", {"conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "<|im_end|>"}]}),
}  # fmt: skip


def bad_line(name: str, good: dict[str, Any]) -> bytes | dict[str, Any]:
    change = BAD_ROWS[name][1]
    return change if isinstance(change, bytes) else good | change


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_stops_or_is_counted(
    name: str, write_rows: Callable, good_row: dict, pictures: Path, encoder: Encoder, cache: Path
) -> None:
    reason = BAD_ROWS[name][0]
    (pictures / "corrupt.png").write_bytes((pictures / "wide.png").read_bytes()[:12])
    path = write_rows([good_row, b"", bad_line(name, good_row), good_row | {"id": "last"}])
    with pytest.raises(BadRow) as caught:
        table_of(path, encoder, max_length=150)
    message = str(caught.value)
    assert caught.value.reason == reason and message.startswith(f"{path}:3: ") and "\n" not in message
    for _ in range(2):  # measured, and from the cache
        table = table_of(path, encoder, on_bad_row="skip", max_length=150)
        audit = table.audit()
        assert [table.sample(i).id for i in range(len(table))] == ["good", "last"]
        assert (audit["rows_read"], audit["rows_used"]) == (3, 2)
        assert audit["bad_rows"]["by_reason"] == {reason: 1} and audit["bad_rows"]["rows"][0]["where"] == f"{path}:3"


def test_all_reasons_are_counted_at_once(
    write_rows: Callable, good_row: dict, pictures: Path, encoder: Encoder, cache: Path
) -> None:
    (pictures / "corrupt.png").write_bytes(b"broken")
    path = write_rows([good_row, *(bad_line(name, good_row) for name in BAD_ROWS)])
    table = table_of(path, encoder, on_bad_row="skip", max_length=150)
    save_audit(pictures / "data_audit.json", {"train": table}, [BadRow("image_corrupt", "f:9", "cut", "Replace it")])
    audit = json.loads((pictures / "data_audit.json").read_text())
    expected: dict[str, int] = {}
    for reason, _ in BAD_ROWS.values():
        expected[reason] = expected.get(reason, 0) + 1
    assert audit["train"]["bad_rows"]["by_reason"] == expected
    assert audit["train"]["rows_used"] == 1 and audit["train"]["bad_rows"]["total"] == len(BAD_ROWS)
    assert audit["bad_during_run"]["by_reason"] == {"image_corrupt": 1}


def test_a_picture_that_comes_back_is_used(
    write_rows: Callable, good_row: dict, pictures: Path, counting: Encoder
) -> None:
    path = write_rows([good_row, good_row | {"image": "late.png"}])
    assert len(table_of(path, counting, on_bad_row="skip")) == 1
    Image.new("RGB", (56, 56)).save(pictures / "late.png")
    assert len(table_of(path, counting, on_bad_row="skip")) == 2 and counting.tokenizer.texts == 2


def test_no_usable_row(write_rows: Callable, encoder: Encoder) -> None:
    with pytest.raises(ValueError, match=r"rows\.jsonl: no usable row \(2 bad rows\)"):
        table_of(write_rows([b"x", b"y"]), encoder, on_bad_row="skip")
    with pytest.raises(ValueError, match="no usable row"):
        table_of(write_rows([]), encoder)


def test_several_files_and_prompts_without_answers(write_rows: Callable, good_row: dict, encoder: Encoder) -> None:
    prompt = good_row | {"id": "prompt", "conversations": good_row["conversations"][:1]}
    first, second = write_rows([good_row] * 3, "a.jsonl"), write_rows([prompt], "b.jsonl")
    table = build_table(open_sources([str(first), str(second)]), encoder, need_answer=False)
    assert table.source.tolist() == [0, 0, 0, 1] and table.row.tolist() == [0, 1, 2, 0]
    assert len(set(table.length.tolist())) == 1  # the same prompt with and without an answer behind it
    assert [table.sample(i, need_answer=False).id for i in (2, 3)] == ["good", "prompt"]
    assert np.array_equal(
        table.length, [len(encoder.encode(table.sample(i, False), prompt=True)["input_ids"]) for i in range(4)]
    )


def test_several_processes_measure_what_one_does(
    synthetic_data: Path, encoder: Encoder, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of five rows, some of them bad: the same lengths, and bad rows in the same order."""
    rows = [json.loads(line) for line in (synthetic_data / "train.jsonl").read_text().splitlines()][:43]
    for i in (0, 7, 41):
        rows[i] = rows[i] | {"image": "absent.jpg"}
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in {row["image"] for row in rows} - {"absent.jpg"}:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(synthetic_data / name)
    monkeypatch.setattr(module, "_BLOCK", 5)
    monkeypatch.setattr(module, "_MANY", 100)
    one = table_of(path, encoder, on_bad_row="skip")
    for kept in cache.glob("lengths-*"):
        kept.unlink()
    monkeypatch.setattr(module, "_MANY", 2)
    started: list[int] = []
    pool = module.ProcessPoolExecutor
    monkeypatch.setattr(
        module, "ProcessPoolExecutor", lambda count, *rest: (started.append(count), pool(count, *rest))[1]
    )
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    several = table_of(path, encoder, on_bad_row="skip")
    assert started == [3]
    assert several.length.tolist() == one.length.tolist() and several.row.tolist() == one.row.tolist()
    assert [row.where for row in several.bad] == [row.where for row in one.bad] and len(one.bad) == 3
    with pytest.raises(BadRow, match="absent"):
        for kept in cache.glob("lengths-*"):
            kept.unlink()
        table_of(path, encoder)
