"""Files of a builder: whole or not there, bad rows counted or raised, leaks found across files of different splits."""

import json

import pytest

from drive_vlm.builders.row_writer import RowWriter, meta_entry
from drive_vlm.data.samples import BadRow

BAD = BadRow("image_missing", "rows.jsonl:3", "the picture x.jpg does not exist", "Is --image_root right?")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_files_appear_together_when_the_block_ends(tmp_path):
    out = tmp_path / "new" / "folder"
    with RowWriter(out) as writer:
        writer.add("train.jsonl", [{"id": "a", "text": "Straße"}])
        writer.add("val.jsonl", ())
        writer.add("train.jsonl", [{"id": "b"}])
        assert not list(out.glob("*.jsonl"))
    assert lines(out / "train.jsonl") == [{"id": "a", "text": "Straße"}, {"id": "b"}]
    assert (out / "val.jsonl").read_text() == "" and not list(out.glob("*.part"))
    assert writer.audit()["rows"] == {"train.jsonl": 2}


def test_a_failed_build_leaves_the_earlier_files(tmp_path):
    with RowWriter(tmp_path) as writer:
        writer.add("train.jsonl", [{"id": "old"}])
    with pytest.raises(BadRow, match="the picture"), RowWriter(tmp_path) as writer:
        writer.add("train.jsonl", [{"id": "new"}])
        writer.reject(BAD)
    assert lines(tmp_path / "train.jsonl") == [{"id": "old"}]
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]


def test_bad_rows_are_counted_with_skip(tmp_path):
    with RowWriter(tmp_path, "skip") as writer:
        writer.reject(BAD)
        writer.reject(BAD)
    audit = writer.audit()
    assert audit["bad_rows"]["total"] == 2 and audit["bad_rows"]["by_reason"] == {"image_missing": 2}
    assert audit["bad_rows"]["rows"][0]["where"] == "rows.jsonl:3"


def test_leaks_between_splits(tmp_path):
    with RowWriter(tmp_path) as writer:
        writer.add("train.jsonl", [{"id": "a", "group": "s1", "image": "x.jpg"}], split="train")
        writer.add("captions_train.jsonl", [{"id": "a", "group": "s1"}], split="train")
        writer.add("val.jsonl", [{"id": "b", "group": "s2", "image": ["x.jpg", "y.jpg"]}], split="val")
        writer.add("notes.jsonl", [{"id": "a"}])
    assert writer.leaks() == ["image 'x.jpg' is in train and val"]


def test_meta_entry():
    entry = {"root": ".", "annotation": "train.jsonl", "repeat_time": 1, "length": 3}
    assert meta_entry(".", "train.jsonl", 3) == entry
