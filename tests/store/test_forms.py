"""Small JSON files that are damaged: one line names file and field, whatever the damage."""

import dataclasses
import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from drive_vlm.data.sources import open_sources
from drive_vlm.judges.chat_client import ChatClient
from drive_vlm.judges.verdicts import read_prompt
from drive_vlm.launch.checkpoint import CheckpointFacts, begin, complete, cut_metrics, find_checkpoint, read_complete
from drive_vlm.launch.manifest import _earlier, complete_manifest, trained_frames
from drive_vlm.launch.status import read_status
from drive_vlm.models.loading import has_own_head, model_type
from drive_vlm.models.lora import base_of
from drive_vlm.rounds.chain import Chain, read_lines
from drive_vlm.stages.engine.arguments import yaml_values
from drive_vlm.store.forms import part, read_dataclass, read_object


@dataclasses.dataclass(frozen=True)
class Inner:
    size: int


@dataclasses.dataclass(frozen=True)
class Outer:
    step: int
    share: float
    name: str
    done: bool
    files: dict[str, int]
    words: list[str]
    inner: Inner
    note: str | None = None
    anything: Any = None


WHOLE: dict[str, Any] = {
    "step": 1, "share": 2, "name": "n", "done": True, "files": {"a": 1}, "words": ["w"], "inner": {"size": 3}, "note": None,
}  # fmt: skip


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "form.json"
    path.write_text(json.dumps(WHOLE | {"anything": [1, None]}))
    assert read_dataclass(path, Outer) == Outer(1, 2, "n", True, {"a": 1}, ["w"], Inner(3), None, [1, None])
    assert part(read_object(path), "inner.size", int, path) == 3


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"step": "1"}, "step must be a whole number, got '1'"),
        ({"step": 1.5}, "step must be a whole number, got 1.5"),
        ({"step": True}, "step must be a whole number, got True"),
        ({"share": None}, "share must be a number, got None"),
        ({"name": 3}, "name must be a text, got 3"),
        ({"done": 1}, "done must be true or false, got 1"),
        ({"files": ["a"]}, r"files must be an object, got \['a'\]"),
        ({"files": {"a": "1"}}, "files.a must be a whole number, got '1'"),
        ({"words": ["w", None]}, r"words\[1\] must be a text, got None"),
        ({"inner": {}}, "inner.size is missing"),
        ({"inner": {"size": 1, "sise": 2}}, "inner.sise is no field of it"),
        ({"note": 4}, "note must be a text, got 4"),
        ({"stap": 4}, "stap is no field of it"),
        ({"name": None, "step": {"x": "y" * 500}}, "step must be a whole number, got .{57}\\.\\.\\.\\. Do it"),
    ],
)
def test_a_field_that_is_wrong_is_named(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    path = tmp_path / "form.json"
    path.write_text(json.dumps(WHOLE | change))
    with pytest.raises(ValueError, match=rf"^{path}: {problem}"):
        read_dataclass(path, Outer, "Do it again.")


BROKEN = {
    "torn": b'{"step": 1, "sh',
    "empty": b"",
    "zeros": b"\0" * 64,
    "not text": b"\xff\xfe\x00",
    "a list": b"[]",
    "null": b"null",
    "a number of 5,000 digits": b'{"step": ' + b"9" * 5000 + b"}",
    "nested 100,000 deep": b"[" * 100_000,
}


def beside(folder: Path, name: str, content: bytes) -> Path:
    """The damaged file in a folder with a sound config.json."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "internvl"}')
    (folder / name).write_bytes(content)
    return folder / name


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_whatever_the_damage_there_is_one_line(tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture) -> None:
    """Each reader of a small file: a ValueError with the file, or the rest without it; never another exception."""
    files = {name: tmp_path / name for name in ("form.json", "status.json", "run.json", "rounds.json", "metrics.jsonl")}
    for path in files.values():
        path.write_bytes(content + b"\n")
    for name in ("config.json", "adapter_config.json", "flags.yaml"):
        files[name] = tmp_path / name
        files[name].write_bytes(content)
    readers = {
        "form.json": lambda: read_dataclass(files["form.json"], Outer),
        "config.json": lambda: model_type(str(tmp_path)),
        "adapter_config.json": lambda: base_of(tmp_path),
        "flags.yaml": lambda: yaml_values(["--config", str(files["flags.yaml"])]),
        "status.json": lambda: read_status(tmp_path),
        "rounds.json": lambda: Chain(tmp_path),
    }
    for name in ("processor_config.json", "generation_config.json", "tokenizer_config.json"):
        files[name] = beside(tmp_path / f"with-{name}", name, content)
        readers[name] = partial(model_type, str(files[name].parent))
    for name in ("model.safetensors.index.json", "model.safetensors"):
        files[name] = beside(tmp_path / f"with-{name}", name, content)
        readers[name] = partial(has_own_head, str(files[name].parent))
    files["state.json"] = beside(tmp_path / "saved", "state.json", content)
    readers["state.json"] = lambda: open_sources([str(tmp_path / "saved")])
    client = ChatClient("http://localhost:1/v1", "judge", cache_dir=tmp_path)
    files["abcd.json"] = beside(tmp_path / "ab", "abcd.json", content)
    readers["abcd.json"] = lambda: client._cached("abcd")
    files["prompt.json"] = beside(tmp_path / "prompts", "prompt.json", content)
    readers["prompt.json"] = lambda: read_prompt(files["prompt.json"], [])
    # An empty list is a list of no rows.
    if content != b"[]":
        files["meta.json"] = beside(tmp_path / "metas", "meta.json", content)
        readers["meta.json"] = lambda: open_sources([str(files["meta.json"])])
    if content:
        readers["metrics.jsonl"] = lambda: cut_metrics(files["metrics.jsonl"], 3)
    for name, read in readers.items():
        with pytest.raises(ValueError, match=name) as refused:
            read()
        assert str(files[name]) in str(refused.value) and len(str(refused.value)) < 600
    # The run goes on without what an earlier start wrote there, and its end is kept.
    assert trained_frames(str(tmp_path)) is None and _earlier(files["run.json"]) == []
    complete_manifest(files["run.json"], state="finished")
    assert json.loads(files["run.json"].read_text())["state"] == "finished"
    assert str(files["run.json"]) in capfd.readouterr().err


@pytest.mark.parametrize(
    ("line", "problem"), [('{"loss": 1}', 'no "step"'), ("3", 'no "step"'), ('{"step": null}', 'no "step"')]
)
def test_a_line_of_metrics_without_a_step_is_named(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + line + '\n{"step": 2}\n')
    for read in (lambda: cut_metrics(path, 2), lambda: read_lines(path)):
        with pytest.raises(ValueError, match=rf"metrics\.jsonl:2: not a line of metrics \({problem}\)"):
            read()


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ({}, "format is missing"),
        ({"format": "1"}, "format must be a whole number"),
        ({"format": 1}, "settings is missing"),
        ({"format": 1, "settings": []}, "settings must be an object"),
        ({"format": 1, "settings": {}, "rounds": {"0": []}}, "rounds.0 must be an object"),
        ({"format": 1, "settings": {}, "rounds": {"1": {"train": {}}}}, "1.train.identity is missing"),
        ({"format": 1, "settings": {}, "rounds": {"1": {"train": 4}}}, "1.train must be an object"),
    ],
)
def test_a_chain_of_rounds_names_its_field(tmp_path: Path, content: dict[str, Any], field: str) -> None:
    (tmp_path / "rounds.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"rounds\.json: {field}.*Restore the file"):
        Chain(tmp_path)


FACTS = CheckpointFacts(step=0, world_size=2, zero_stage=2, deepspeed=True, optimizer="adamw_torch", trained="t")


def write(out: Path, step: int) -> Path:
    saving = begin(out, step)
    (saving / "model.safetensors").write_bytes(b"w" * 100)
    for name in ("data_cursor.json", "trainer_state.json", "grpo_state.json"):
        (saving / name).write_text(json.dumps({"step": step, "epoch": 10}, indent=2))
    return complete(saving, dataclasses.replace(FACTS, step=step))


@pytest.mark.parametrize("name", ["data_cursor.json", "trainer_state.json", "grpo_state.json", "complete.json"])
def test_auto_passes_over_a_checkpoint_of_which_one_byte_has_changed(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture
) -> None:
    """Of the same size, in any place: seeded."""
    draw = random.Random(name)
    write(tmp_path, 2)
    for _ in range(5):
        file = write(tmp_path, 4) / name
        content = bytearray(file.read_bytes())
        # Of the marker, which nothing vouches for, the structure.
        place = 0 if name == "complete.json" else draw.randrange(len(content))
        content[place] ^= draw.randrange(1, 256)
        file.write_bytes(content)
        found = find_checkpoint("auto", tmp_path)
        assert found is not None and found[1].step == 2
        assert name in capfd.readouterr().out
        with pytest.raises(ValueError, match=name):
            read_complete(file.parent)
