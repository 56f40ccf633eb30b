"""When a run trained, from run.json and TensorBoard's files: kept, done again, without a process; goodput by hand."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from written import write_events

from drive_vlm.report.run_report.run_files import duration, read_events, read_run, run_names, seconds
from drive_vlm.report.run_report.timeline import read_faults, read_timeline

BEGUN = datetime(2026, 1, 2, 10, tzinfo=UTC).timestamp()


def stamp(after: float) -> str:
    return datetime.fromtimestamp(BEGUN + after, UTC).strftime("%Y-%m-%dT%H:%M:%S%z")


def times(**moments: float) -> dict[int, float]:
    return {int(name.removeprefix("s")): BEGUN + after for name, after in moments.items()}


def test_a_requeued_run_by_hand(made_run: Callable) -> None:
    """The first start logs steps 10, 20 and 30 and is killed; the second goes on from 20 and does 30 again, then 40."""
    run = made_run(started=stamp(100), ended=stamp(135), earlier=[{"started": stamp(0), "ended": None}])
    write_events(run / "tensorboard", BEGUN + 10, times(s10=20, s20=30, s30=45))
    write_events(run / "tensorboard", BEGUN + 110, times(s30=120, s40=130))
    found = read_timeline(read_run(run, "run"))
    assert found is not None
    first, second = found.attempts
    assert (first.kept, first.redone, second.kept, second.redone) == (20, 15, 20, 0)
    assert (first.first_step, first.last_step, second.first_step, second.last_step) == (10, 30, 30, 40)
    assert (first.end, second.end) == ("killed or failed", "finished")
    # 135 s in all: 40 kept, 15 done again, 55 between the last log of the first start and the second one, 25 of start-up and saving.
    assert (found.wall, found.kept, found.redone, found.between, found.around) == (135, 40, 15, 55, 25)
    assert found.goodput == pytest.approx(40 / 135)


def test_a_step_that_was_logged_once_is_kept_and_one_more_is_not(made_run: Callable) -> None:
    """The step at which the later start begins to log is done again; the one before it is not."""
    run = made_run(started=stamp(50), ended=stamp(70), earlier=[{"started": stamp(0)}])
    write_events(run / "tensorboard", BEGUN + 1, times(s1=11, s2=21))
    write_events(run / "tensorboard", BEGUN + 51, times(s2=61))
    found = read_timeline(read_run(run, "run"))
    assert found is not None and [(one.kept, one.redone) for one in found.attempts] == [(10, 10), (10, 0)]


def test_a_start_that_never_trained_has_no_steps(made_run: Callable) -> None:
    run = made_run(started=stamp(60), ended=stamp(100), earlier=[{"started": stamp(0), "ended": stamp(5)}])
    write_events(run / "tensorboard", BEGUN + 70, times(s1=90))
    found = read_timeline(read_run(run, "run"))
    assert found is not None
    assert (found.attempts[0].first_step, found.attempts[0].kept, found.between) == (None, 0, 55)
    assert found.attempts[1].kept == 20


def test_without_tensorboard_or_a_start_there_is_no_time_line(made_run: Callable) -> None:
    run = made_run()
    assert read_timeline(read_run(run, "run")) is None
    write_events(run / "tensorboard", BEGUN, times(s1=10))
    content = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(content | {"started": "yesterday"}))
    assert read_timeline(read_run(run, "run")) is None


def test_a_file_that_was_cut_off_is_read_up_to_there(tmp_path: Path) -> None:
    write_events(tmp_path, BEGUN, times(s1=10, s2=20))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-7])
    assert read_events(tmp_path) == [[(-1, BEGUN), (1, BEGUN + 10)]]


def test_faults_are_alarms_rows_restarts_and_reasons(made_run: Callable) -> None:
    lines = [{"step": step, "alarm/kl": float(step >= 3), "alarm/short": 0.0} for step in range(1, 6)]
    run = made_run(metrics=lines)
    (run / "data_audit.json").write_text(
        json.dumps({"bad_during_run": {"total": 2, "by_reason": {"image_corrupt": 2}}})
    )
    status = {"state": "failed", "step": 5, "checkpoint": None, "reason": "rank 1: out of memory", "output_dir": "x"}
    status |= {"started": stamp(0), "updated": stamp(9), "restart_count": 2}
    (run / "status.json").write_text(json.dumps(status))
    found = [(fault.where, fault.what) for fault in read_faults(read_run(run, "run"))]
    assert found == [
        ("step 3", "alarm kl"),
        ("during the run", "2 rows could not be used: image_corrupt 2"),
        ("launcher", "torchrun started the ranks again 2 times"),
        ("step 5", "failed: rank 1: out of memory"),
    ]


def test_names_and_moments() -> None:
    assert run_names([Path("/a/run"), Path("/b/run")]) == ["a/run", "b/run"]
    assert seconds("2026-01-02T10:00:00+0000") == BEGUN == seconds("2026-01-02T12:00:00+02:00")
    assert seconds("soon") is None and seconds(3) is None
    assert [duration(count) for count in (None, 3.21, 59.4, 259, 25_500)] == [
        "not known",
        "3.2 s",
        "59 s",
        "4 min 19 s",
        "7 h 05 min",
    ]
