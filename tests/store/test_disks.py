"""Disks that are full or read-only: one line that names the file, nothing half-written, caches cost time only."""

import errno
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from drive_vlm.config import CommandParser, disk_errors, run_tool, user_errors
from drive_vlm.data.jsonl import JsonlFile
from drive_vlm.launch.manifest import complete_manifest
from drive_vlm.launch.status import RunStatus
from drive_vlm.stages.rl.samples_file import append_samples
from drive_vlm.store import cache
from drive_vlm.store.cache import write_atomically, write_json
from drive_vlm.store.fingerprint import content_hash
from drive_vlm.store.keyed_lines import LineWriter, append_line


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_no_temporary_file_is_left(tmp_path: Path) -> None:
    path = tmp_path / "rounds.json"
    write_json(path, {"round": 1})
    for cause in (full, lambda file: sys.exit(143), lambda file: file.write(None)):
        with pytest.raises((OSError, SystemExit, TypeError)) as failed:
            write_atomically(path, cause)
        if isinstance(failed.value, OSError):
            assert failed.value.filename == str(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["rounds.json"]
    assert json.loads(path.read_text()) == {"round": 1}, "the old content is whole"


@pytest.mark.parametrize("kind", ["full", "read-only"])
def test_a_cache_that_cannot_be_written_costs_time_only(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"id": 1}\n{"id": 2}\n')
    (tmp_path / "file").touch()
    # Root may write anywhere but below a file.
    folder = tmp_path / "file" / "cache" if kind == "read-only" else tmp_path / "cache"
    monkeypatch.setenv("DRIVE_VLM_CACHE", str(folder))
    if kind == "full":
        monkeypatch.setattr("os.replace", full)
    cache._say_once.cache_clear()
    for _ in range(2):
        file = JsonlFile(rows)
        assert [file[i]["id"] for i in range(len(file))] == [1, 2]
        assert len(content_hash(rows)) == 32
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1 and f"{folder}: the cache cannot be written" in said[0]
    assert kind == "read-only" or not list(folder.iterdir())


FULL = Path("/dev/full")


def _append(path: Path) -> None:
    with LineWriter(path) as file:
        file.append({"id": "a"})


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
@pytest.mark.parametrize(
    "write",
    [
        lambda path: append_line(path, {"step": 1}),
        lambda path: append_samples(path, [{"step": 1}, {"step": 1}]),
        _append,
        lambda path: write_atomically(path, full),
    ],
    ids=["metrics.jsonl", "samples.jsonl", "parts of generate", "rounds.json"],
)
def test_a_full_disk_is_one_line_with_the_file(tmp_path: Path, write: Any, capfd: pytest.CaptureFixture) -> None:
    path = tmp_path / "predictions.jsonl.part0"
    path.symlink_to(FULL)
    with pytest.raises(SystemExit) as ended, user_errors("python -m drive_vlm generate"):
        write(path)
    assert ended.value.code == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "Traceback" not in said
    assert (
        f"error: {path}: cannot be read or written (No space left on device). What was finished before is kept" in said
    )


def test_a_training_says_which_checkpoint_is_safe() -> None:
    safe = "The last complete checkpoint is checkpoint-40, untouched"
    line = rf"metrics.jsonl: cannot be .* \(Read-only file system\)\. {safe}"
    with pytest.raises(ValueError, match=line), disk_errors(lambda: safe):
        raise OSError(errno.EROFS, "Read-only file system", "runs/x/metrics.jsonl")
    # The event files of tensorboard are written on another thread, without a name.
    line = rf"a file in runs/x: cannot be .* \(No space left on device\)\. {safe}"
    with pytest.raises(ValueError, match=line), disk_errors(lambda: safe, "a file in runs/x"):
        full()
    with pytest.raises(ConnectionError), disk_errors(lambda: safe):
        raise ConnectionResetError(errno.ECONNRESET, "not the disk's")


def test_the_json_of_a_tool_is_one_line_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["tool", "--json", str(tmp_path / "scores.json")])
    (tmp_path / "scores.json").symlink_to(FULL)
    parser = CommandParser(prog="tool")
    parser.add_argument("--json")
    with pytest.raises(SystemExit) as ended:
        run_tool(parser, lambda args: {"score": 1})
    assert ended.value.code == 2 and "No space left on device" in capfd.readouterr().err


def test_status_and_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    """The status is worth a line, not the run; the manifest names itself."""
    monkeypatch.setattr("os.replace", full)
    with RunStatus(tmp_path) as status:
        status.end("finished")
    assert f"{tmp_path}/status.json: cannot be written (No space left on device)" in capfd.readouterr().err
    with pytest.raises(OSError) as failed:
        complete_manifest(tmp_path / "run.json", state="finished")
    assert failed.value.filename == str(tmp_path / "run.json")
    assert not list(tmp_path.iterdir()), "no temporary file"


@pytest.mark.parametrize("dies", [False, True])
def test_a_merge_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, tiny_model: Path, dies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even after a kill between its files: what has the name that was asked for is whole and was compared."""
    import transformers.modeling_utils
    from safetensors import SafetensorError

    from drive_vlm.merge import merge

    checkpoint = _adapter(tiny_model, tmp_path / "checkpoint-2")
    with monkeypatch.context() as patch:

        def save_half(tensors: Any, path: str, **_: object) -> None:
            Path(path).write_bytes(b"half")
            raise (SystemExit(143) if dies else SafetensorError("I/O error: No space left on device (os error 28)"))

        patch.setattr(transformers.modeling_utils, "safe_save_file", save_half)
        with pytest.raises((ValueError, SystemExit)) as failed:
            merge(checkpoint, tmp_path / "merged")
        if not dies:
            line = f"--out {tmp_path}/merged: could not be written (I/O error: No space left on device (os error 28))"
            assert str(failed.value) == f"{line}; nothing is left of it, and {checkpoint} is untouched."
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    left = tmp_path / ".merged.partial"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"of a merge that was killed")
    merge(checkpoint, tmp_path / "merged")
    assert (tmp_path / "merged" / "model.safetensors").stat().st_size > 1000 and not left.exists()


def _adapter(base: Path, out: Path) -> Path:
    """A LoRA adapter that has learned something."""
    import torch

    from drive_vlm.config import ModelConfig
    from drive_vlm.models import load_family
    from drive_vlm.models.lora import apply_lora, record_base

    family = load_family(ModelConfig(model=str(base)), torch.float32)
    model = apply_lora(family, ModelConfig(model=str(base), lora_rank=2), [])
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.01)
    model.save_pretrained(out, save_embedding_layers=False)
    record_base(model, out, family.added)
    family.processor.save_pretrained(out)
    return out
