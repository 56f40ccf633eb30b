"""Requests to stop outside a training: who asked, what ends, what is kept."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from drive_vlm.launch import stop
from drive_vlm.launch.status import RunStatus, read_status

ROOT = Path(__file__).resolve().parents[2]


def ask(number: signal.Signals) -> None:
    signal.raise_signal(number)


def test_nothing_is_noted_outside() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop.listening():
        assert signal.getsignal(signal.SIGTERM) is not before and stop.request() is None
    assert signal.getsignal(signal.SIGTERM) is before and stop.request() is None


@pytest.mark.parametrize(
    ("signals", "outcome", "code"),
    [
        ([signal.SIGTERM], "preempted", 143),
        ([signal.SIGUSR1], "saved", 138),
        ([signal.SIGUSR1, signal.SIGTERM], "preempted", 143),
        ([signal.SIGTERM, signal.SIGUSR1], "preempted", 143),
    ],
)
def test_the_heavier_signal_counts(signals: list[signal.Signals], outcome: str, code: int) -> None:
    with stop.listening():
        for number in signals:
            ask(number)
        found = stop.request()
    assert found is not None and (found.outcome, found.code) == (outcome, code)
    assert found.why.endswith("at rank 0")


def test_a_loop_ends_between_two_items_and_says_that_they_are_kept(capfd: pytest.CaptureFixture) -> None:
    done = []
    with pytest.raises(stop.StopRequested) as ended, stop.listening():
        for item in stop.until_stopped(range(5)):
            if item == 2:
                ask(signal.SIGTERM)
            done.append(item)
    assert done == [0, 1, 2] and ended.value.code == 143
    assert "stopped: SIGTERM at rank 0. What is done so far is kept" in capfd.readouterr().err


def test_a_stop_file_of_the_job_is_obeyed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIVE_VLM_CONTROL_DIR", str(tmp_path))
    with pytest.raises(stop.StopRequested) as ended, stop.listening():
        (tmp_path / "stop").write_text("time\nlimit\n")
        stop.check()
    assert ended.value.request == ("saved", "time limit", 1) and not (tmp_path / "stop").exists()
    monkeypatch.setenv("RANK", "1")
    with stop.listening():
        (tmp_path / "stop").touch()
        assert stop.request() is None, "the main rank alone looks for it"
        assert stop.request(any_rank=True) is not None, "but where all ranks agree afterwards"
        stop.obeyed()
    assert (tmp_path / "stop").exists(), "the main rank takes it away"


def test_a_stop_file_from_before_stops_no_start(tmp_path: Path) -> None:
    """It is for the first step of a training."""
    (tmp_path / "stop").touch()
    with stop.listening(tmp_path / "stop"):
        assert stop.request(new=True) is None and stop.request() is not None
        stop.check()


def test_ranks_that_left_are_no_failure_after_a_request(tmp_path: Path) -> None:
    with pytest.raises(stop.StopRequested), RunStatus(tmp_path), stop.listening():
        ask(signal.SIGTERM)
        raise RuntimeError("Connection closed by peer")
    found = read_status(tmp_path)
    assert found is not None and (found.state, found.reason) == ("preempted", "SIGTERM at rank 0")
    with pytest.raises(RuntimeError), RunStatus(tmp_path), stop.listening():
        raise RuntimeError("Connection closed by peer")
    found = read_status(tmp_path)
    assert found is not None and found.state == "failed"


@pytest.mark.parametrize(("number", "state"), [(signal.SIGTERM, "preempted"), (signal.SIGUSR1, "saved")])
def test_a_stop_during_start_up_is_in_the_status(tmp_path: Path, number: signal.Signals, state: str) -> None:
    with pytest.raises(SystemExit), RunStatus(tmp_path) as status, stop.listening():
        status.progress(40, "runs/x/checkpoint-40")
        ask(number)
        stop.check()
    found = read_status(tmp_path)
    assert found is not None and (found.state, found.step, found.checkpoint) == (state, 40, "runs/x/checkpoint-40")


def test_a_kill_before_the_save_leaves_preempted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step after SIGTERM does not end: what would be read after a SIGKILL."""
    monkeypatch.setattr(stop, "_LATE", 0.05)
    written = threading.Event()
    with RunStatus(tmp_path) as status:

        def late(why: str) -> None:
            status.asked(why)
            written.set()

        with stop.listening(late=late):
            status.progress(7, tmp_path / "checkpoint-7")
            os.kill(os.getpid(), signal.SIGTERM)
            assert written.wait(10)
            found = read_status(tmp_path)
            assert found is not None and (found.state, found.step) == ("preempted", 7)
            assert found.reason == "SIGTERM at rank 0; nothing newer was saved in time"
            # A step ends after all: the state stays until the checkpoint is there, or the run is finished.
            status.progress(8, tmp_path / "checkpoint-8")
            found = read_status(tmp_path)
            assert found is not None and (found.state, found.step) == ("preempted", 8)
            status.end("finished")
    found = read_status(tmp_path)
    assert found is not None and found.state == "finished"


def test_nobody_is_late_who_obeys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop, "_LATE", 0.2)
    late = threading.Event()
    with pytest.raises(SystemExit), stop.listening(late=lambda why: late.set()):
        ask(signal.SIGTERM)
        stop.check()
    assert not late.wait(0.4)


@pytest.mark.parametrize(("launched", "gone"), [("torchrun", True), ("torchrun", False), ("python", True)])
def test_a_rank_whose_launcher_is_gone_stops(monkeypatch: pytest.MonkeyPatch, launched: str, gone: bool) -> None:
    """A shell that started a plain process may end; torchrun's ranks have nobody left who would end them."""
    monkeypatch.setattr(stop, "_LOOK", 0.02)
    if launched == "torchrun":
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    parent = os.getppid()
    with stop.listening():
        if gone:
            monkeypatch.setattr(os, "getppid", lambda: 1)
        deadline = time.monotonic() + (5 if gone and launched == "torchrun" else 0.2)
        while stop.request() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        found = stop.request()
    if not (gone and launched == "torchrun"):
        assert found is None
        return
    assert found is not None and found.outcome == "preempted"
    assert found.why == f"the torchrun of this rank (process {parent}) is gone"


def test_a_launcher_that_died_while_a_rank_imported_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch takes seconds to import. By the time the rank listens, it has another parent."""
    monkeypatch.setattr(stop, "_LOOK", 0.02)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    parent = os.getppid()
    stop.check_launcher()
    monkeypatch.setattr(os, "getppid", lambda: 1)
    with stop.listening():
        deadline = time.monotonic() + 5
        while stop.request() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        found = stop.request()
    assert found is not None and found.why == f"the torchrun of this rank (process {parent}) is gone"
    with pytest.raises(stop.StopRequested) as ended:
        stop.check_launcher()
    assert ended.value.request == ("preempted", found.why, 143)


def test_a_failure_of_another_rank_stays_when_sigterm_follows_it(tmp_path: Path) -> None:
    """torchrun sends SIGTERM to the ranks that are left; they leave because a rank has failed, not because somebody asked."""
    with pytest.raises(stop.StopRequested), RunStatus(tmp_path) as status, stop.listening():
        with pytest.raises(KeyError), RunStatus(tmp_path, rank=1):
            raise KeyError("row 7")
        os.kill(os.getpid(), signal.SIGTERM)
        status.asked("SIGTERM at rank 0")
        raise RuntimeError("Connection closed by peer")
    found = read_status(tmp_path)
    assert found is not None and (found.state, found.reason) == ("failed", "rank 1: KeyError: 'row 7'")


@pytest.mark.parametrize(("restarts", "code"), [("0", 128 + signal.SIGUSR1), ("3", 0)])
def test_a_launcher_that_restarts_failed_ranks_sees_no_failure(
    restarts: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", restarts)
    with pytest.raises(stop.StopRequested) as ended, RunStatus(tmp_path), stop.listening():
        ask(signal.SIGUSR1)
        stop.check()
    found = read_status(tmp_path)
    assert ended.value.code == code and found is not None and found.state == "saved"


def test_what_has_finished_leaves_the_request_of_a_job_to_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for job in (True, False):
        monkeypatch.setenv("DRIVE_VLM_CONTROL_DIR", str(tmp_path)) if job else monkeypatch.delenv(
            "DRIVE_VLM_CONTROL_DIR"
        )
        with stop.listening(tmp_path / "stop"):
            (tmp_path / "stop").touch()
            stop.obeyed(finished=True)
            assert (tmp_path / "stop").exists() is job
        (tmp_path / "stop").unlink(missing_ok=True)


def test_a_job_learns_how_much_was_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What slurm/train.sbatch adds up: a start that has kept nothing is not worth another one."""
    monkeypatch.setenv("DRIVE_VLM_CONTROL_DIR", str(tmp_path))
    for asked_at in (2, 9, 0):
        with pytest.raises(stop.StopRequested) if asked_at < 5 else contextlib.nullcontext(), stop.listening():
            for item in range(5):
                ask(signal.SIGUSR1) if item == asked_at else None
                list(stop.until_stopped([item]))
    with stop.listening():
        list(stop.until_stopped(range(3), "Nothing is kept."))
    assert (tmp_path / "progress").read_text() == "2\n5\n"


HANGS = """
import ctypes, sys
from pathlib import Path
from drive_vlm.launch import status, stop
stop._HOPELESS, stop._LATE = 0.2, 0.4
with status.RunStatus(sys.argv[1]) as run, stop.listening(late=run.asked, hopeless=run.is_lost):
    if sys.argv[2] == "training":
        run.begin_training()
    Path(sys.argv[1], "ready").touch()
    # As a collective whose other ranks are gone: a call that no signal ends. Python's own handlers wait for it.
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)
"""


@pytest.mark.fresh("it imports nothing that takes time, and is killed with threads in the middle of a call")
@pytest.mark.parametrize("when", ["start-up", "training"])
def test_a_rank_that_has_nothing_to_save_ends_at_once(tmp_path: Path, when: str) -> None:
    """torchrun sends SIGTERM when another rank has failed, and would wait 30 s for one that hangs in a collective."""
    process = subprocess.Popen(
        [sys.executable, "-c", HANGS, tmp_path, when], env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    try:
        assert _soon((tmp_path / "ready").exists)
        process.send_signal(signal.SIGTERM)
        if when == "training":
            # A step may still end, and its checkpoint be written; the status is right meanwhile.
            assert _soon(lambda: "nothing newer was saved in time" in (tmp_path / "status.json").read_text())
            time.sleep(0.5)
            assert process.poll() is None
            assert RunStatus(tmp_path, rank=1).fail("rank 1: no such file")
        assert process.wait(20) == 128 + signal.SIGTERM
    finally:
        process.kill()
    found = read_status(tmp_path)
    assert found is not None and found.state == ("failed" if when == "training" else "preempted")


def _soon(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()
