"""status.json: what a run says of itself, to whoever looks at any moment."""

import contextlib
import json
import os
import threading
import time
from pathlib import Path

import pytest

from drive_vlm.launch import status as module
from drive_vlm.launch.status import RunStatus, control_dir, one_line, read_status


def test_control_dir_is_the_output_directory_unless_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DRIVE_VLM_CONTROL_DIR", raising=False)
    assert control_dir("runs/x") == Path("runs/x")
    monkeypatch.setenv("DRIVE_VLM_CONTROL_DIR", str(tmp_path))
    assert control_dir("runs/x") == tmp_path
    monkeypatch.setenv("DRIVE_VLM_CONTROL_DIR", "")
    assert control_dir("runs/x") == Path("runs/x")


def test_a_run_from_start_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    out = tmp_path / "made by the status"
    assert read_status(out) is None
    with RunStatus(out) as status:
        first = read_status(out)
        assert first and (first.state, first.step, first.checkpoint, first.restart_count) == ("running", 0, None, 2)
        status.progress(7, out / "checkpoint-7")
        status.progress(8)  # within ten seconds of a write: kept, not written
        found = read_status(out)
        assert found and (found.step, found.checkpoint) == (7, str(out / "checkpoint-7"))
        status.end("finished")
    last = read_status(out)
    assert last and (last.state, last.step, last.output_dir) == ("finished", 8, str(out))
    assert last.started == first.started <= last.updated and 0 <= last.age < 60
    assert [path.name for path in out.iterdir()] == ["status.json"]
    assert list(json.loads((out / "status.json").read_text())) == [
        "state", "step", "checkpoint", "reason", "output_dir", "started", "updated", "restart_count", "launch",
        "scores", "best_metric", "best_value", "best_step",
    ]  # fmt: skip


def test_steps_are_written_once_the_time_has_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_EVERY", 0.0)
    with RunStatus(tmp_path) as status:
        status.progress(3)
    found = read_status(tmp_path)
    assert found and (found.state, found.step) == ("running", 3)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("two\n  lines"), "two lines"),
        (RuntimeError("broken pipe"), "RuntimeError: broken pipe"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (SystemExit(3), "SystemExit: 3"),
    ],
)
def test_an_exception_becomes_a_failure(tmp_path: Path, error: BaseException, reason: str) -> None:
    with pytest.raises(type(error)), RunStatus(tmp_path):
        raise error
    found = read_status(tmp_path)
    assert found and (found.state, found.reason) == ("failed", reason)


def test_an_exit_with_0_is_no_failure(tmp_path: Path) -> None:
    with pytest.raises(SystemExit), RunStatus(tmp_path) as status:
        status.end("finished")
        raise SystemExit(0)
    found = read_status(tmp_path)
    assert found and found.state == "finished"


def test_a_long_reason_stays_one_readable_line() -> None:
    assert len(one_line(ValueError("x" * 5000))) == 1000


def test_the_rank_that_fails_first_is_heard(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """What rank 0 sees of a failing rank 1 is a broken connection: it must not replace the reason."""
    with pytest.raises(RuntimeError), RunStatus(tmp_path, rank=0) as main:
        main.progress(4, "checkpoint-4")
        other = RunStatus(tmp_path, rank=1)
        other.progress(9)
        other.end("finished")
        running = read_status(tmp_path)
        assert running and running.state == "running"  # only the main rank writes what is no failure
        with pytest.raises(ValueError), other:
            raise ValueError("row 12 is bad")
        raise RuntimeError("Connection closed by peer")
    found = read_status(tmp_path)
    assert found and (found.state, found.step, found.reason) == ("failed", 9, "rank 1: row 12 is bad")
    assert capfd.readouterr().err == "rank 1: row 12 is bad\n"


def test_an_error_on_all_ranks_is_told_once(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """Rank 1 meets it first and waits for the main rank's word."""

    def meet(rank: int, delay: float) -> None:
        with contextlib.suppress(ValueError), RunStatus(tmp_path, rank):
            time.sleep(delay)
            raise ValueError("no such file")

    ranks = [threading.Thread(target=meet, args=rank) for rank in ((0, 0.3), (1, 0.1), (2, 0.0))]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    found = read_status(tmp_path)
    assert found and found.reason == "no such file"
    assert capfd.readouterr().err == ""  # the command itself prints what the main rank met


def test_the_status_of_an_earlier_attempt_is_replaced(tmp_path: Path) -> None:
    old = '{"state": "failed", "step": 90, "checkpoint": null, "reason": "old", "output_dir": "", "started": "2020", "updated": "2020", "restart_count": 0}'
    for content in (old, "{}", "torn{"):
        (tmp_path / "status.json").write_text(content)
        assert RunStatus(tmp_path, rank=1).fail("new")
        found = read_status(tmp_path)
        assert found and (found.step, found.reason) == (0, "new")


def test_a_damaged_file_is_told_to_readers(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text("{}")
    with pytest.raises(ValueError, match="not a status written by drive-vlm"):
        read_status(tmp_path)


def test_readers_never_see_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_EVERY", 0.0)
    done = threading.Event()
    seen = []

    def read() -> None:
        while not done.is_set():
            found = read_status(tmp_path)
            seen.append(found.step if found else -1)

    reader = threading.Thread(target=read)
    with RunStatus(tmp_path) as status:
        reader.start()
        for step in range(300):
            status.progress(step)
    done.set()
    reader.join()
    assert len(seen) > 10 and seen == sorted(seen)


def test_a_directory_that_cannot_be_written_does_not_end_the_run(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    if os.geteuid() == 0:
        (tmp_path / "file").touch()  # root may write anywhere but below a file
    out = tmp_path / "file" / "out"
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
    with RunStatus(out) as status:
        status.end("finished")
    assert "status.json: cannot be written" in capfd.readouterr().err


def test_ranks_of_a_refused_run_leave_the_status_of_the_first_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """The main rank of the second run holds no folder, and ends; its other ranks fail because it is gone."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_PORT", "29501")
    with RunStatus(tmp_path) as first:
        before = (tmp_path / "status.json").read_text()
        monkeypatch.setenv("MASTER_PORT", "29502")
        with pytest.raises(RuntimeError), RunStatus(tmp_path, rank=1) as second:
            assert not second._has_failed()
            raise RuntimeError("Connection closed by peer")
        assert (tmp_path / "status.json").read_text() == before
        assert "rank 1: RuntimeError: Connection closed by peer" in capfd.readouterr().err
        first.fail("no such file")
        assert not second._has_failed(), "another run's failure"
        first.end("finished")
