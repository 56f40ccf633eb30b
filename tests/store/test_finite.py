"""JSON has no word for NaN: what is written holds null instead, and is read by every reader."""

import dataclasses
import json
from pathlib import Path

from drive_vlm.builders.row_writer import RowWriter
from drive_vlm.config import plain
from drive_vlm.store.cache import write_json
from drive_vlm.store.keyed_lines import write_lines

NAN, INF = float("nan"), float("inf")
CONTENT = {"a": NAN, "b": [1.5, -INF, {"c": (INF, "x", None, True)}]}
WRITTEN = {"a": None, "b": [1.5, None, {"c": [None, "x", None, True]}]}


def strict(text: str) -> object:
    def refuse(word: str) -> None:
        raise AssertionError(word)

    return json.loads(text, parse_constant=refuse)


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", CONTENT)
    write_lines(tmp_path / "a.jsonl", [CONTENT])
    with RowWriter(tmp_path) as writer:
        writer.add("rows.jsonl", [CONTENT])
    for name in ("a.json", "a.jsonl", "rows.jsonl"):
        assert strict((tmp_path / name).read_text()) == WRITTEN

    @dataclasses.dataclass
    class Score:
        value: float = NAN

    assert plain({"score": Score(), "x": [INF]}) == {"score": {"value": None}, "x": [None]}
