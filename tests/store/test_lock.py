"""One writer at a time, and a lock that no killed process leaves behind."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
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
            named = r"out\.jsonl: another run is writing to it: process \d+ on \S+ since [-0-9: ]+ \(it holds"
            with pytest.raises(ValueError, match=named), sole_writer(path):
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


def test_a_folder_is_locked_inside_and_a_holder_that_ends_is_waited_for(tmp_path: Path) -> None:
    held, free = threading.Event(), threading.Event()

    def hold() -> None:
        with sole_writer(tmp_path / "run", "--output_dir"):
            held.set()
            free.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(20)
    refused = rf"process {os.getpid()} on .* give another --output_dir"
    with pytest.raises(ValueError, match=refused), sole_writer(tmp_path / "run", "--output_dir"):
        pass
    threading.Timer(0.3, free.set).start()
    with sole_writer(tmp_path / "run", "--output_dir", wait=20):
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".writer.lock"]
    holder.join()


def test_a_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    """Workers of a loader live a few seconds longer than a rank that was killed."""
    path = tmp_path / "out.jsonl"
    with sole_writer(path):
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
    try:
        # The child closes its copy when it first runs.
        deadline = time.monotonic() + 20
        while not (free := _free(path)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert free
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_file_system_without_locks_lets_everybody_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with sole_writer(tmp_path / "out.jsonl"), sole_writer(tmp_path / "out.jsonl"):
        pass
    assert capfd.readouterr().err.count("this file system has no locks") == 2


def test_the_lock_of_a_host_that_is_gone_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file server keeps it until its lease ends; a requeued job must not give up before."""
    free = threading.Event()
    with open(tmp_path / ".writer.lock", "w+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("process 1 on node-that-lost-its-power since 2026-01-01 00:00:00\n")
        file.flush()
        threading.Timer(1.0, lambda: (fcntl.flock(file, fcntl.LOCK_UN), free.set())).start()
        with sole_writer(tmp_path, "--output_dir", wait=0.1):
            assert free.is_set()
