"""JSONL, LLaVA JSON and InternVL meta JSON are read alike; errors name the file and the way out."""

import gzip
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drive_vlm.data.preference.pair_encoding import answers_of
from drive_vlm.data.samples import BadRow, Sample
from drive_vlm.data.sources import FILES, open_sources, require_files
from drive_vlm.data.table import build_table, read_sample
from drive_vlm.data.videos import is_media


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


def read_all(path: Path, image_root: str | None = None) -> list[Sample]:
    """Every row of a file or folder."""
    return [read_sample(source, i) for source in open_sources([str(path)], image_root) for i in range(len(source.rows))]


def told(samples: list[Sample]) -> list[tuple]:
    return [(sample.id, sample.turns, [Path(path).read_bytes() for path in sample.images]) for sample in samples]


def as_parquet(rows: list[dict], path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.mark.parametrize(
    "kind",
    [
        "ROWS.JSONL",
        "rows.ndjson",
        "rows.jsonl.gz",
        "rows.json.gz",
        "bom.json",
        "paths.parquet",
        "bytes.parquet",
        "folder",
        "saved",
        "hub",
    ],
)
def test_every_kind_of_file_gives_the_same_samples(
    kind: str, write_rows: Callable, good_row: dict, pictures: Path
) -> None:
    """Also packed, with a byte order mark, as a table with pictures by path or embedded, and as a folder of the hub."""
    rows = [good_row | {"id": str(i), "score": float("nan") if "parquet" in kind else 1.5} for i in range(3)]
    lines = "".join(json.dumps(row | {"score": 1.5}) + "\n" for row in rows)
    path, root = pictures / kind, None
    if kind.endswith("jsonl.gz"):
        path.write_bytes(gzip.compress(f"\n{lines}".encode()))
    elif kind.endswith("json.gz"):
        path.write_bytes(gzip.compress(json.dumps(rows).encode()))
    elif kind == "bom.json":
        path.write_bytes(b"\xef\xbb\xbf" + json.dumps(rows).encode())
    elif kind == "paths.parquet":
        as_parquet(rows, path)
    elif kind == "bytes.parquet":
        picture = {"bytes": (pictures / "square.png").read_bytes(), "path": "square.png"}
        as_parquet([row | {"image": picture} for row in rows], path)
    elif kind == "folder":
        for i, row in enumerate(rows):
            as_parquet([row], path / "data" / f"train-{i:05d}-of-00003.parquet")
        root = str(pictures)
    elif kind == "saved":
        datasets = pytest.importorskip("datasets")
        datasets.Dataset.from_list(rows).save_to_disk(str(path))
        root = str(pictures)
    elif kind == "hub":
        path.mkdir()
        (path / "README.md").write_text("---\n---\n")
        (path / "train.jsonl").write_text(lines)
        root = str(pictures)
    else:
        path.write_text(lines)
    samples = read_all(path, root)
    write_rows(rows=[row | {"score": 1.5} for row in rows])
    assert told(samples) == told(read_all(pictures / "rows.jsonl"))
    assert is_media(path) is False
    if kind == "rows.jsonl.gz":
        assert samples[0].where == f"{path}:2"
    if "parquet" in kind:
        assert samples[1].where == f"{path}[1]" and samples[1].columns == {}


def test_rows_that_are_kept_in_another_file_do_not_lose_the_pictures_of_a_table(good_row: dict, pictures: Path) -> None:
    """Named with what is unpacked already, which is the way out."""
    picture = {"bytes": (pictures / "square.png").read_bytes(), "path": "square.png"}
    as_parquet([good_row | {"image": picture}], pictures / "bytes.parquet")
    as_parquet([good_row], pictures / "paths.parquet")
    require_files(open_sources([str(pictures / "paths.parquet")]))
    (source,) = open_sources([str(pictures / "bytes.parquet")])
    with pytest.raises(ValueError, match="holds its pictures itself") as refused:
        require_files([source])
    assert str(source.rows.path) in str(refused.value) and source.root in str(refused.value)
    copied = [pictures / "own.jsonl", pictures / "own"]
    shutil.copy(source.rows.path, copied[0])
    shutil.copytree(source.root, copied[1])
    (again,) = open_sources([str(copied[0])], str(copied[1]))
    assert told([read_sample(again, 0)]) == told([read_sample(source, 0)])
    require_files([again])


def test_a_row_without_its_list_is_one_row(pictures: Path, good_row: dict) -> None:
    (pictures / "one.json").write_text(json.dumps(good_row))
    (sample,) = read_all(pictures / "one.json")
    assert sample.id == "good" and sample.where == f"{pictures / 'one.json'}[0]"


def test_absolute_paths_below_the_image_root(write_rows: Callable, good_row: dict, pictures: Path) -> None:
    absolute = [good_row | {"image": str(pictures / "square.png")}, good_row | {"image": f"file://{pictures}/wide.png"}]
    path = write_rows(absolute)
    for root in (None, "/", str(pictures.parent)):
        assert [Path(s.images[0]).resolve().name for s in read_all(path, root)] == ["square.png", "wide.png"]
    with pytest.raises(BadRow, match="leaves the image root"):
        read_all(path, str(pictures / "clip"))


LLAMA_FACTORY: dict[str, tuple[dict, list[dict]]] = {
    "alpaca": (
        {"columns": {"prompt": "q", "response": "a", "images": "pics", "system": "sys"}},
        [{"q": "<image>What is ahead?", "a": "a truck", "pics": ["square.png"], "sys": "Drive.", "instruction": "not this"}],
    ),
    "sharegpt": (
        {"formatting": "sharegpt", "columns": {"messages": "talk", "images": "pics"}, "tags": {"role_tag": "who", "content_tag": "said", "user_tag": "me", "assistant_tag": "it"}},
        [{"talk": [{"who": "system", "said": "Drive."}, {"who": "me", "said": "<image>What is ahead?"}, {"who": "it", "said": "a truck"}], "pics": ["square.png"]}],
    ),
    "openai": (
        {"formatting": "openai", "columns": {"messages": "messages", "images": "images"}, "ranking": True},
        [{"messages": [{"role": "system", "content": "Drive."}, {"role": "user", "content": "<image>What is ahead?"}], "images": ["square.png"], "chosen": {"role": "assistant", "content": "a truck"}, "rejected": {"role": "assistant", "content": "a bus"}}],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", LLAMA_FACTORY)
def test_a_dataset_info_names_files_columns_and_roles(kind: str, pictures: Path) -> None:
    entry, rows = LLAMA_FACTORY[kind]
    (pictures / "sets").mkdir()
    (pictures / "sets" / "rows.json").write_text(json.dumps([*rows, 3]))
    (pictures / "dataset_info.json").write_text(json.dumps({"driving": entry | {"file_name": "sets/rows.json"}}))
    (source,) = open_sources([str(pictures / "dataset_info.json")])
    sample = read_sample(source, 0, need_answer=kind != "openai")
    assert [turn.text for turn in sample.turns] == ["Drive.", "What is ahead?", "a truck"][: len(sample.turns)]
    assert (source.name, sample.images) == ("driving", (str(pictures / "square.png"),))
    if kind == "openai":
        assert answers_of(sample) == ("a truck", "a bus")
    with pytest.raises(BadRow, match=r"rows\.json\[1\]: a row must be a JSON object"):
        read_sample(source, 1)


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"hf_hub_url": "org/set"}, "is on a hub and not on this disk"),
        ({"file_name": "a.json", "num_samples": 10}, "asks for num_samples"),
        ({"file_name": "a.json", "colums": {}}, "unknown key 'colums'. Did you mean columns?"),
        ({"file_name": "a.json", "columns": {"image": "x"}}, "unknown column 'image'. Did you mean images?"),
        ({"file_name": "a.json", "formatting": "chatml"}, "known are alpaca, sharegpt and openai"),
        ({"file_name": "absent.json"}, "no such data file"),
    ],
)
def test_a_wrong_dataset_info(entry: dict, problem: str, tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text(json.dumps({"a": entry}))
    with pytest.raises(ValueError) as caught:
        open_sources([str(tmp_path / "dataset_info.json")])
    assert problem in str(caught.value)


def test_a_folder_of_several_splits_says_what_to_give(good_row: dict, tmp_path: Path) -> None:
    for split in ("train", "test"):
        as_parquet([good_row], tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    with pytest.raises(
        ValueError, match=r"holds the splits test, train\. Give the files of one, e\.g\. .*/data/test\*"
    ):
        open_sources([str(tmp_path)])
    (tmp_path / "frames").mkdir()
    assert is_media(tmp_path / "frames") and not is_media(tmp_path)
    with pytest.raises(ValueError, match="no data set in this folder"):
        open_sources([str(tmp_path / "frames")])


def test_files_of_one_name_get_names_that_tell_them_apart(good_row: dict, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "val.jsonl").write_text(json.dumps(good_row) + "\n")
    paths = [str(tmp_path / folder / "val.jsonl") for folder in ("a", "b")]
    assert [source.name for source in open_sources(paths)] == ["a/val", "b/val"]
    assert [source.name for source in open_sources(paths[:1] * 2)] == ["val", "val"]


def test_the_kinds_of_files_stand_in_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    assert all(f"`{ending}`" in page for ending in FILES)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({}, "an empty object"),
        ({"a": {"root": "."}}, "entry 'a' needs"),
        ({"a": {"annotation": "rows.jsonl", "repeat_tme": 2}}, "unknown key 'repeat_tme'. Did you mean repeat_time?"),
        ({"a": {"annotation": "rows.jsonl", "repeat_time": 0}}, "must be above 0"),
        ({"a": {"annotation": "rows.jsonl", "data_augment": True}}, "data_augment"),
        ({"a": {"annotation": "rows.jsonl", "length": 3}}, "says length 3, but"),
        ({"a": {"annotation": "absent.jsonl"}}, "no such data file"),
        ({"a": {"annotation": 5}}, "meta.json: a.annotation must be a text, got 5"),
        ({"a": {"annotation": "rows.jsonl", "root": None}}, "meta.json: a.root must be a text, got None"),
        ({"a": {"annotation": "rows.jsonl", "repeat_time": "2"}}, "meta.json: a.repeat_time must be a number, got '2'"),
        ({"a": {"annotation": "rows.jsonl", "repeat_time": True}}, "meta.json: a.repeat_time must be a number"),
        ({"a": {"annotation": "rows.jsonl", "repeat_time": math.nan}}, "repeat_time nan; it must be above 0"),
        ({"a": {"annotation": "rows.jsonl", "repeat_time": math.inf}}, "repeat_time inf; it must be above 0"),
        ({"a": {"annotation": "rows.jsonl", "max_dynamic_patch": 1.5}}, "a.max_dynamic_patch must be a whole number"),
        ({"a": {"annotation": "rows.jsonl", "max_dynamic_patch": 0}}, "max_dynamic_patch 0; at least 1"),
        ({"a": {"annotation": "rows.jsonl", "length": "1"}}, "meta.json: a.length must be a whole number, got '1'"),
        ({"a": [1]}, "entry 'a' needs"),
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
        ("rows.csv", b"", "unknown data format. Give .*\\.parquet .*to_json"),
        ("rows.parquet", b"PAR1", "cannot be read as a table"),
        ("rows.jsonl.gz", gzip.compress(b"{}", mtime=0)[:9], "damaged"),
        ("rows.json", b"[" * 100_000, "cannot be read"),
        ("rows.json", b"[" + b"9" * 5000 + b"]", "cannot be read .*only its row would be bad"),
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


def test_every_two_files_of_one_name_are_told_apart(good_row: dict, tmp_path: Path) -> None:
    """An entry of a meta file and a file, and two files that differ in their ends only."""
    for name in ("a.jsonl", "x.jsonl"):
        (tmp_path / name).write_text(json.dumps(good_row) + "\n")
    (tmp_path / "x.ndjson").write_text(json.dumps(good_row) + "\n")
    (tmp_path / "meta.json").write_text(json.dumps({"x": {"annotation": "a.jsonl", "root": "."}}))

    def names(*files: str) -> list[str]:
        return [source.name for source in open_sources([str(tmp_path / file) for file in files])]

    assert names("meta.json", "x.jsonl") == ["x/a", "x"]
    assert names("x.jsonl", "x.ndjson") == ["x.jsonl", "x.ndjson"]


def test_an_entry_of_a_folder_with_several_files_is_refused(good_row: dict, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "README.md").touch()
    for number in range(2):
        (tmp_path / "set" / f"train-{number:05d}-of-00002.jsonl").write_text(json.dumps(good_row) + "\n")
    (tmp_path / "meta.json").write_text(json.dumps({"x": {"annotation": "set", "root": "."}}))
    with pytest.raises(ValueError, match=r"entry 'x' names .*set, which holds 2 files"):
        open_sources([str(tmp_path / "meta.json")])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "state.json:1: not valid JSON"),
        ("[]", "state.json: its content must be an object, got []. Save the data set again."),
        ('{"_data_files": [5]}', "state.json: _data_files[0] must be an object, got 5"),
        ('{"_data_files": [{"filename": 5}]}', "state.json: filename must be a text, got 5"),
        ('{"_data_files": [{}]}', "state.json: filename is missing"),
    ],
)
def test_a_damaged_state_of_a_saved_data_set(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(ValueError) as caught:
        open_sources([str(tmp_path)])
    assert problem in str(caught.value)
