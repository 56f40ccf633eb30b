import json

import pytest

from drive_vlm.store.keyed_lines import (
    JudgedRow,
    JudgedRows,
    LineWriter,
    check_same,
    cut_torn_line,
    read_keyed,
    read_lines,
    write_lines,
)


class Numbered(JudgedRow):
    n: int


def test_rows_come_back_in_order_and_stale_ones_go(tmp_path):
    path = tmp_path / "sub" / "rows.jsonl"
    rows = JudgedRows(path, ["a", "b", "c", "b"], 3, Numbered, [{"of": key} for key in "abcb"])
    assert rows.missing() == [0, 1, 2] and rows.stale == 0
    rows.add([{"key": "c", "n": 3}])
    rows.add([{"key": "b", "n": 2, "unread_after": 3}])
    path.write_text(path.read_text() + '{"key": "a", "to')  # torn by a kill
    again = JudgedRows(path, ["a", "b", "c"], 3, Numbered, [{"of": key} for key in "xyz"])
    assert again.missing() == [0] and len(path.read_text().splitlines()) == 2
    again.add([{"key": "a", "n": 1}])
    assert [row["n"] for row in again.finish()] == [1, 2, 3]
    # What the inputs say of a row is that of now, also in rows of an earlier run.
    assert [row["of"] for row in again.finish()] == ["x", "y", "z"]
    assert [json.loads(line)["n"] for line in path.read_text().splitlines()] == [1, 2, 3]
    assert JudgedRows(path, ["a", "b", "c"], 4, Numbered).missing() == [1]  # not read in 3 attempts
    other = JudgedRows(path, ["a", "z"], 3, Numbered)
    assert other.stale == 1 and other.missing() == [1]  # b went with the row that was to be asked again


@pytest.mark.parametrize(
    "line, problem",
    [
        ('{"key": "a"}', "n is missing"),
        ('{"key": "a", "n": "1"}', "n must be a whole number"),
        ('{"key": "a", "n": 1, "unread_after": "x"}', "unread_after must be a whole number"),
    ],
)
def test_a_row_of_another_form_is_named(tmp_path, line, problem):
    path = tmp_path / "rows.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match=rf"rows\.jsonl:1: not a row of an earlier run \({problem}"):
        JudgedRows(path, ["a"], 1, Numbered)


def test_another_file_is_not_overwritten(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"id": 1}\n')
    with pytest.raises(ValueError, match=r"train\.jsonl:1: not a row of an earlier run"):
        JudgedRows(path, [], 1, Numbered)
    assert path.read_text() == '{"id": 1}\n'


def test_a_torn_last_line_is_passed_over_then_cut_and_damage_is_named(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    with LineWriter(path) as file:
        file.append({"key": "a", "text": "one \u2028 line"})
    whole = path.read_bytes()
    path.write_bytes(whole + b'\n{"key": "b", "te')
    assert read_keyed(path, "damaged", "Remove it.") == {"a": {"key": "a", "text": "one \u2028 line"}}
    with pytest.raises(ValueError, match=r"rows\.jsonl:3: damaged \(a kill\)\. Remove it\."):
        list(read_lines(path, "damaged", "Remove it.", torn="a kill"))
    with LineWriter(path) as file:
        file.append({"key": "a", "n": 2})
    assert read_keyed(path, "damaged", "Remove it.") == {"a": {"key": "a", "n": 2}}
    for line, cause in (
        (b'{"key": "b", "te\n', "Invalid control character"),
        (b"[1]\n", "its content must be an object"),
        (b"{}\n", "key is missing"),
        (b'{"key": {}}\n', "key must be a text"),
    ):
        path.write_bytes(whole + line)
        with pytest.raises(ValueError, match=rf"rows\.jsonl:2: damaged \(.*{cause}.*\)\. Remove it\."):
            read_keyed(path, "damaged", "Remove it.")
    assert not read_keyed(tmp_path / "absent", "damaged", "Remove it.")


def test_every_setting_that_differs_is_named_with_both_values():
    was = {"model": {"name": "a", "weights": "w"}, "seed": 0, "size": [3, 5]}
    check_same("DIR: its rows were made with other settings", was, was | {"size": (3, 5)}, "Go back.")
    with pytest.raises(ValueError, match=r"made with other settings \(model\.weights: w then, v now; new: null then, "):
        check_same(
            "DIR: its rows were made with other settings",
            was,
            was | {"model": {"name": "a", "weights": "v"}, "new": "x" * 999},
            "",
        )


@pytest.mark.parametrize("whole", [b"", b"{}\n", b"{}\n" * 30_000])
@pytest.mark.parametrize("torn", [b"", b"x", b"x" * 200_000])
def test_only_the_torn_line_is_cut(tmp_path, whole, torn):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(whole + torn)
    cut_torn_line(path)
    assert path.read_bytes() == whole


def test_half_a_surrogate_pair_is_written_and_read(tmp_path):
    rows = [{"key": "\ud83d", "text": "ü"}, {"key": "b", "text": "ü"}]
    write_lines(tmp_path / "rows.jsonl", rows)
    assert list(read_keyed(tmp_path / "rows.jsonl", "damaged", "Remove it.").values()) == rows
    assert "ü".encode() in (tmp_path / "rows.jsonl").read_bytes()
