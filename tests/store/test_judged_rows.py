import json

import pytest

from drive_vlm.store.judged_rows import JudgedRows


def test_rows_come_back_in_order_and_stale_ones_go(tmp_path):
    path = tmp_path / "sub" / "rows.jsonl"
    rows = JudgedRows(path, ["a", "b", "c", "b"], attempts=3)
    assert rows.missing() == [0, 1, 2] and rows.stale == 0
    rows.add([{"key": "c", "n": 3}])
    rows.add([{"key": "b", "n": 2, "unread_after": 3}])
    path.write_text(path.read_text() + '{"key": "a", "to')  # torn by a kill
    again = JudgedRows(path, ["a", "b", "c"], attempts=3)
    assert again.missing() == [0] and len(path.read_text().splitlines()) == 2
    again.add([{"key": "a", "n": 1}])
    assert [row["n"] for row in again.finish()] == [1, 2, 3]
    assert [json.loads(line)["n"] for line in path.read_text().splitlines()] == [1, 2, 3]
    assert JudgedRows(path, ["a", "b", "c"], attempts=4).missing() == [1]  # not read in 3 attempts
    other = JudgedRows(path, ["a", "z"], attempts=3)
    assert other.stale == 1 and other.missing() == [1]  # b went with the row that was to be asked again


def test_another_file_is_not_overwritten(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"id": 1}\n')
    with pytest.raises(ValueError, match=r"train\.jsonl:1: not a row of an earlier run"):
        JudgedRows(path, [], attempts=1)
    assert path.read_text() == '{"id": 1}\n'
