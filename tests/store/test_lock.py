"""One writer at a time, and a lock that no killed process leaves behind."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from drive_vlm.store.lock import sole_writer

HOLD = """
import sys, time
from pathlib import Path
from drive_vlm.store.lock import sole_writer
with sole_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def _free(path: Path) -> bool:
    try:
        with sole_writer(path):
            return True
    except ValueError:
        return False


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.jsonl"
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout and holder.stdout.readline() == "held\n"
            with pytest.raises(ValueError, match=r"out\.jsonl: another run is writing to it"), sole_writer(path):
                pass
        finally:
            holder.kill()
    # Under the fork server of the tests the process itself ends a moment after the one that stands for it.
    deadline = time.monotonic() + 20
    while not _free(path) and time.monotonic() < deadline:
        time.sleep(0.05)
    with sole_writer(path), sole_writer(path.with_name("other.jsonl")):
        pass
    with sole_writer(path):
        assert not path.exists()


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ValueError, match=r"file/out\.jsonl: cannot be written to"),
        sole_writer(tmp_path / "file" / "out.jsonl"),
    ):
        pass
