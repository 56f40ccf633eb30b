"""A disk that fills up: the last checkpoint stays whole, the run stops with words, and goes on when there is room."""

import errno
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from drive_vlm.launch.checkpoint import read_complete

pytestmark = pytest.mark.slow


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB of its own."""
    path = tmp_path / "disk"
    path.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(path)]
    if shutil.which("mount") is None or subprocess.run(words, check=False, capture_output=True).returncode:
        pytest.skip("a small tmpfs cannot be mounted here (needs root)")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(disk: Path, leave: int = 0) -> Path:
    """Take all free space but `leave` bytes."""
    filler = disk / "filler"
    free = shutil.disk_usage(disk).free - leave
    with open(filler, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(free, 1))
    return filler


SAVING = ("--save_strategy", "steps", "--save_steps", 2, "--keep", 1, "--resume", "auto")


def test_too_little_space_is_said_before_anything_is_written(sft: Callable, small_disk: Path) -> None:
    out = small_disk / "run"
    sft(out, "--max_steps", 2, *SAVING)
    filler = fill(small_disk, leave=1 << 20)
    full = sft(out, "--max_steps", 4, *SAVING, code=2)
    assert "the next checkpoint needs about" in full.text and "--resume auto" in full.text
    assert "Traceback" not in full.text
    assert read_complete(out / "checkpoint-2").step == 2 and not (out / "checkpoint-4").exists()
    assert json.loads((out / "status.json").read_text())["state"] == "failed"
    filler.unlink()
    whole = sft(out, "--max_steps", 4, *SAVING)
    assert [row["step"] for row in whole.metrics if "loss" in row] == [1, 2, 3, 4]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_disk_that_fills_while_a_checkpoint_is_written(sft: Callable, small_disk: Path, ranks: int) -> None:
    """Another program takes the rest of the disk in the middle of the second checkpoint."""
    out = small_disk / "run"
    flags = ("--deepspeed", "zero2") if ranks > 1 else ()
    launcher, code = ("torchrun", 1) if ranks > 1 else ("python", 2)
    sft(out, *flags, "--max_steps", 2, *SAVING, launcher=launcher)
    size = sum(path.stat().st_size for path in (out / "checkpoint-2").rglob("*") if path.is_file())
    fill(small_disk, leave=int(1.2 * size))
    over = threading.Event()

    def take_the_rest() -> None:
        with open(small_disk / "other", "wb") as file:
            while not over.is_set():
                if (out / ".saving" / "checkpoint-4").exists():
                    os.posix_fallocate(file.fileno(), 0, size)
                    return

    thief = threading.Thread(target=take_the_rest)
    thief.start()
    try:
        full = sft(out, *flags, "--max_steps", 4, *SAVING, code=code, launcher=launcher)
    finally:
        over.set()
        thief.join()
    assert "the checkpoint of step 4 could not be written" in full.text, full.text[-2000:]
    assert "The last complete checkpoint is checkpoint-2, untouched" in full.text
    assert read_complete(out / "checkpoint-2").step == 2 and not (out / "checkpoint-4").exists()
    (small_disk / "filler").unlink()
    (small_disk / "other").unlink()
    whole = sft(out, *flags, "--max_steps", 4, *SAVING, launcher=launcher)
    assert [row["step"] for row in whole.metrics if "loss" in row] == [1, 2, 3, 4]
    assert not (out / ".saving").exists()


def test_a_full_disk_at_the_very_end(sft: Callable, small_disk: Path) -> None:
    """The checkpoint of the last step fits, the final model does not: words, and nothing is lost."""
    out = small_disk / "run"
    sft(out, "--max_steps", 2, *SAVING)
    for path in (out / "model.safetensors", out / "checkpoint-2"):
        path.unlink() if path.is_file() else shutil.rmtree(path)
    filler = fill(small_disk, leave=900_000)
    full = sft(out, "--max_steps", 2, "--save_strategy", "no", code=2)
    assert f"{out}: the final model could not be written" in full.text and "Traceback" not in full.text
    filler.unlink()


def test_a_full_disk_under_tensorboard_is_one_line(
    inside: Callable, world: Any, fresh: Callable, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """Its files are written on a thread, which would print a traceback of its own; its main thread raises without a name."""
    from tensorboard.summary.writer import record_writer

    write, written = record_writer.RecordWriter.write, []

    def until_full(self: Any, data: bytes) -> None:
        written.append(data)
        if len(written) > 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, data)

    monkeypatch.setattr(record_writer.RecordWriter, "write", until_full)
    out = fresh("tensorboard")
    words = ("--model", world.model, "--data", world.train, "--output_dir", out, "--max_steps", 6, "--logging_steps", 1)
    with pytest.raises(SystemExit) as ended:
        inside("sft", *words, "--save_strategy", "no", "--disable_tqdm", "true", "--use_cpu", "true")
    said = capfd.readouterr().err
    assert ended.value.code == 2 and "Traceback" not in said
    line = f"error: a file in {out} (tensorboard's, it may be): cannot be read or written (No space left on device). The last"
    assert sum(line in text for text in said.splitlines()) == 1
    assert json.loads((out / "status.json").read_text())["state"] == "failed"
