"""JSONL, LLaVA JSON and InternVL meta JSON are read alike; errors name the file and the way out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drive_vlm.data.samples import BadRow
from drive_vlm.data.sources import open_sources
from drive_vlm.data.table import build_table, read_sample


def test_the_three_formats_give_the_same_samples(write_rows: Callable, good_row: dict, pictures: Path) -> None:
    rows = [good_row, good_row | {"id": "second"}]
    jsonl = write_rows(rows)
    (pictures / "llava.json").write_text(json.dumps(rows, indent=1))
    meta = {
        "driving": {"root": ".", "annotation": "rows.jsonl", "length": 2, "data_augment": False, "max_dynamic_patch": 2}
    }
    (pictures / "meta.json").write_text(json.dumps(meta))
    files = (jsonl, pictures / "llava.json", pictures / "meta.json")
    sources = [source for path in files for source in open_sources([str(path)])]
    samples = [[read_sample(source, i) for i in range(len(source.rows))] for source in sources]
    assert [[(s.id, s.turns, [Path(p).resolve() for p in s.images]) for s in part] for part in samples] == [
        [(s.id, s.turns, [Path(p).resolve() for p in s.images]) for s in samples[0]]
    ] * 3
    assert [source.name for source in sources] == ["rows", "llava", "driving"] and sources[2].max_tiles == 2
    assert sources[1].where(1) == f"{pictures / 'llava.json'}[1]" == samples[1][1].where


def test_a_bad_row_of_a_llava_list_names_the_list(pictures: Path, good_row: dict) -> None:
    (pictures / "llava.json").write_text(json.dumps([good_row, 3]))
    (source,) = open_sources([str(pictures / "llava.json")])
    with pytest.raises(BadRow, match=r"llava\.json\[1\]: a row must be a JSON object"):
        read_sample(source, 1)


def test_image_root_replaces_the_folder_of_the_file(write_rows: Callable, good_row: dict, tmp_path: Path) -> None:
    (source,) = open_sources([str(write_rows([good_row]))], "/elsewhere")
    assert read_sample(source, 0).images == ("/elsewhere/square.png",)


@pytest.mark.parametrize(("repeat", "count"), [(1, 8), (2, 16), (0.5, 4), (1.25, 10), (0.1, 1)])
def test_repeat_time(
    write_rows: Callable, good_row: dict, pictures: Path, encoder: Any, repeat: float, count: int
) -> None:
    write_rows([good_row | {"id": i} for i in range(8)])
    entry = {"root": ".", "annotation": "rows.jsonl", "repeat_time": repeat}
    (pictures / "meta.json").write_text(json.dumps({"a": entry}))
    table = build_table(open_sources([str(pictures / "meta.json")]), encoder, seed=3)
    again = build_table(open_sources([str(pictures / "meta.json")]), encoder, seed=3)
    assert len(table) == count and table.row.tolist() == again.row.tolist()
    times = [table.row.tolist().count(i) for i in range(8)]
    assert max(times) - min(times) <= 1 and table.audit()["files"][0]["repeat_time"] == repeat


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"a": {"root": "."}}, "entry 'a' needs"),
        ({"a": {"annotation": "rows.jsonl", "repeat_tme": 2}}, "unknown key 'repeat_tme'. Did you mean repeat_time?"),
        ({"a": {"annotation": "rows.jsonl", "repeat_time": 0}}, "must be above 0"),
        ({"a": {"annotation": "rows.jsonl", "data_augment": True}}, "data_augment"),
        ({"a": {"annotation": "rows.jsonl", "length": 3}}, "says length 3, but"),
        ({"a": {"annotation": "absent.jsonl"}}, "no such data file"),
        ("text", "expected a list of rows"),
    ],
)
def test_a_wrong_meta_file(write_rows: Callable, good_row: dict, pictures: Path, content: Any, problem: str) -> None:
    write_rows([good_row])
    (pictures / "meta.json").write_text(json.dumps(content))
    with pytest.raises(ValueError) as caught:
        open_sources([str(pictures / "meta.json")])
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("rows.csv", b"", "unknown data format"),
        ("rows.json", b'{"a": 1}\n{"b": 2}', "rows.json:2: not valid JSON"),
        ("rows.json", b'["\xff"]', "not UTF-8"),
    ],
)
def test_a_file_that_is_no_data(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=problem):
        open_sources([str(tmp_path / name)])


def test_paths_of_a_meta_file_start_from_its_folder(
    write_rows: Callable,
    good_row: dict,
    pictures: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the working directory has files of the same names; InternVL's own files start from the working directory."""
    write_rows([good_row])
    (pictures / "meta.json").write_text(json.dumps({"a": {"root": ".", "annotation": "rows.jsonl"}}))
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "rows.jsonl").write_text("{}\n")
    (elsewhere / "meta").mkdir()
    (elsewhere / "meta" / "m.json").write_text(json.dumps({"b": {"root": "meta", "annotation": "rows.jsonl"}}))
    monkeypatch.chdir(elsewhere)
    (source,) = open_sources([str(pictures / "meta.json")])
    assert Path(source.root) == pictures and source.rows[0]["id"] == "good"
    (source,) = open_sources(["meta/m.json"])
    assert source.rows.path == Path("rows.jsonl") and source.root == "meta"


@pytest.mark.parametrize("kind", ["file", "folder", "frame", "inside"])
def test_links_that_leave_the_image_root_are_a_choice(
    kind: str, write_rows: Callable, good_row: dict, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copy(pictures / "square.png", elsewhere / "6.png")
    row = good_row | {"image": {"file": "link.png", "folder": "linked/6.png"}.get(kind, "inner.png")}
    (pictures / "link.png").symlink_to(elsewhere / "6.png")
    (pictures / "linked").symlink_to(elsewhere)
    (pictures / "inner.png").symlink_to(pictures / "square.png")
    if kind == "frame":
        (pictures / "clip" / "6.png").symlink_to(elsewhere / "6.png")
        turns = [{"from": "human", "value": "<video>\nWhat happens?"}, {"from": "gpt", "value": "a truck"}]
        row = {"id": "v", "video": "clip", "conversations": turns}
    path = str(write_rows([row]))
    assert read_sample(open_sources([path])[0], 0).id == row["id"]
    (refusing,) = open_sources([path], links="refuse")
    if kind == "inside":
        assert read_sample(refusing, 0).id == row["id"]
        return
    with pytest.raises(BadRow, match=r"rows\.jsonl:1: .* is a link to .*elsewhere.*--links follow") as caught:
        read_sample(refusing, 0)
    assert caught.value.reason == "path_outside_root"
