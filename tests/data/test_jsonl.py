"""Any row of any file at once, with its own line number, in constant memory."""

import json
import pickle
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from drive_vlm.data.jsonl import JsonlFile
from drive_vlm.data.samples import BadRow
from drive_vlm.store.fingerprint import content_hash


@pytest.mark.parametrize(
    ("content", "rows", "lines"),
    [
        (b'{"a":1}\n{"a":2}\n', [{"a": 1}, {"a": 2}], [1, 2]),
        (b'{"a":1}\n{"a":2}', [{"a": 1}, {"a": 2}], [1, 2]),  # no final newline
        (b'{"a":1}\r\n{"a":2}\r\n', [{"a": 1}, {"a": 2}], [1, 2]),
        (b'\n\n{"a":1}\n\r\n\n{"a":2}\n\n', [{"a": 1}, {"a": 2}], [3, 6]),  # line numbers count the blank ones
        (b'  \n{"a":1}\n\t \t  \n{"a":2}', [{"a": 1}, {"a": 2}], [2, 4]),
        (b'\xef\xbb\xbf{"a":1}\n{"a":2}\n', [{"a": 1}, {"a": 2}], [1, 2]),  # byte order mark
        (b"{}\n3\n[]", [{}, 3, []], [1, 2, 3]),
        ('{"a":"\u2028 ü 車"}\n'.encode(), [{"a": "\u2028 ü 車"}], [1]),  # a line separator that is no newline
        (b"", [], []),
    ],
)
def test_rows_and_line_numbers(tmp_path: Path, content: bytes, rows: list, lines: list[int]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    file = JsonlFile(path)
    assert [file[i] for i in range(len(file))] == rows
    assert [file.where(i) for i in range(len(file))] == [f"{path}:{line}" for line in lines]


def test_blocks_smaller_than_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drive_vlm.data.jsonl._BLOCK", 5)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"number": {i}}}\n' for i in range(50)))
    assert [row["number"] for row in JsonlFile(path)] == list(range(50))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": "\xff"}', "not_utf8"),
        (b'{"a": "cut \\ud83d"}', "not_utf8"),
        (b'{"\\udc00": ["\\ud83d\\ude00"]}', "not_utf8"),
        (b'{"a": 1', "broken_json"),
        (b"hello", "broken_json"),
        (b'{"a": ' + b"9" * 5000 + b"}", "broken_json"),
        (b"[" * 100_000 + b"]" * 100_000, "broken_json"),
        (b"[" * 80 + b"]" * 80, "broken_json"),
        (b'{"a": NaN}', "broken_json"),
        (b'{"a": 1e999}', "broken_json"),
        (b'{"image": "a.jpg", "image": null}', "broken_json"),
    ],
)
def test_a_broken_line_is_named_and_the_others_are_read(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 0}\n\n' + line + b'\n{"a": 2}\n')
    file = JsonlFile(path)
    assert (file[0], file[2]) == ({"a": 0}, {"a": 2})
    with pytest.raises(BadRow) as caught:
        file[1]
    assert caught.value.reason == reason and str(caught.value).startswith(f"{path}:3: ")


def test_a_whole_surrogate_pair_is_a_character(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": "\\ud83d\\ude00", "b": [[[1]]]}\n')
    assert JsonlFile(path)[0] == {"a": "\U0001f600", "b": [[[1]]]}


def test_a_changed_file_is_indexed_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n')
    assert len(JsonlFile(path)) == 1
    path.write_text('{"a": 1}\n{"b": 2}\n')
    assert JsonlFile(path)[1] == {"b": 2}


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such data file"):
        JsonlFile(tmp_path / "absent.jsonl")


def test_threads_and_pickles_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"number": {i}, "pad": "{"x" * (i % 97)}"}}\n' for i in range(3000)))
    file = pickle.loads(pickle.dumps(JsonlFile(path)))
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda i: file[i % 3000]["number"], range(12000)))
    assert numbers == [i % 3000 for i in range(12000)]


@pytest.mark.fresh("its memory is measured")
@pytest.mark.slow
def test_a_million_rows_in_constant_memory(tmp_path: Path, run: Callable) -> None:
    """400 MB of rows; the process that indexes and reads them stays below 300 MB. The seconds are printed, not asserted."""
    path = tmp_path / "million.jsonl"
    pad = "x" * 370
    with open(path, "w") as file:
        for start in range(0, 1_000_000, 10_000):
            file.write("".join(f'{{"id": {i}, "pad": "{pad}"}}\n' for i in range(start, start + 10_000)))
    code = (
        "import sys, time; from drive_vlm.data.jsonl import JsonlFile; t = time.perf_counter();"
        "from drive_vlm.launch.manifest import peak_resident_bytes;"
        "f = JsonlFile(sys.argv[1]); assert len(f) == 1_000_000 and f[999_999]['id'] == 999_999;"
        "print(time.perf_counter() - t, peak_resident_bytes() / 2**20)"
    )
    for what in ("indexing and reading", "reading again"):
        done = run([sys.executable, "-c", code, path])
        assert done.returncode == 0, done.stderr
        seconds, megabytes = map(float, done.stdout.split())
        print(f"{what} row 999,999 of 1,000,000: {seconds:.2f} s, {megabytes:.0f} MB")
        assert megabytes < 300


@pytest.mark.parametrize("damage", ["a byte", "cut off", "empty"])
def test_what_a_cache_lost_is_computed_again(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index of lines and the hash of a file; a wrong offset would read another row, a wrong hash refuse a resume."""
    monkeypatch.setenv("DRIVE_VLM_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"id": i, "text": "x" * i}) + "\n" for i in range(50)))
    rows, digest = list(JsonlFile(path)), content_hash(path)
    kept = list((tmp_path / "cache").iterdir())
    assert {file.name.split("-")[0] for file in kept} == {"lines", "hash"}
    for file in kept:
        content = bytearray(file.read_bytes())
        for place in range(0, len(content), 7):
            damaged = bytearray(content)
            damaged[place] ^= 1
            file.write_bytes({"a byte": damaged, "cut off": content[:place], "empty": b""}[damage])
            assert (list(JsonlFile(path)), content_hash(path)) == (rows, digest)
        assert file.read_bytes() == bytes(content), "it is kept again"
