"""status.json: the state of a run, for batch scripts and people. A launcher's exit code does not say: torchrun makes each one 1."""

import dataclasses
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from drive_vlm.launch.stop import StopRequested
from drive_vlm.launch.topology import launch_name
from drive_vlm.store.cache import write_json
from drive_vlm.store.forms import read_dataclass

# Seconds between two writes while training goes on.
_EVERY = 10.0
# Seconds that other ranks wait: an error that all ranks meet is reported by the main one.
_HEAD_START = 1.0
_LONGEST_REASON = 1000


@dataclasses.dataclass(frozen=True)
class Status:
    """The content of status.json.

    `state` is one of
    * running: training goes on, or the process was killed before it could write: judge by the age of `updated`.
    * saved: stopped on request (stop file, SIGUSR1). `checkpoint` is the newest complete one; None where the run was still
      starting up and had none.
    * preempted: the same after SIGTERM; also of a process that was killed before it could save, see `asked`.
    * finished: all steps are done and the model is saved.
    * failed: an error; `reason` has its text.
    """

    state: str
    step: int
    checkpoint: str | None
    reason: str
    output_dir: str
    started: str
    updated: str
    restart_count: int
    # topology.launch_name of the ranks that write it.
    launch: str = ""
    # Of the newest evaluation of --eval_generate: its step, and what the log says of each --eval_metric.
    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    # The metric that chooses the best checkpoint, its best value so far and the step of that.
    best_metric: str = ""
    best_value: float | None = None
    best_step: int | None = None

    @property
    def age(self) -> float:
        """Seconds since `updated`."""
        return (datetime.now(UTC) - datetime.fromisoformat(self.updated)).total_seconds()


def control_dir(output_dir: str | Path) -> Path:
    """Where a run looks for the file `stop` and writes status.json: DRIVE_VLM_CONTROL_DIR, or its output directory."""
    return Path(os.environ.get("DRIVE_VLM_CONTROL_DIR") or output_dir)


def read_status(directory: str | Path) -> Status | None:
    """The status in a control directory; None where no run has written one. Raises ValueError for a damaged file."""
    path = Path(directory) / "status.json"
    if not path.exists():
        return None
    try:
        return read_dataclass(path, Status)
    except ValueError as error:
        cause = str(error).removeprefix(f"{path}: ")
        raise ValueError(f"{path}: not a status written by drive-vlm ({cause}). Remove it.") from error


def one_line(error: BaseException) -> str:
    """An exception as one line: a ValueError's own words; the type and the words of any other."""
    text = " ".join(str(error).split())
    text = text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}".removesuffix(": ")
    return text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 3] + "..."


class RunStatus:
    """Writes status.json from the main rank. As a context it turns an exception that leaves it into `failed`.

    A failure on another rank is written, and printed, by that rank: the main one sees only a broken connection later. The
    first failure of an attempt stays. Other ranks write into the status of their own launch alone: where the main one was
    refused the folder, the status there is that of the run that holds it.
    """

    def __init__(self, output_dir: str | Path, rank: int = 0) -> None:
        self.directory, self.rank = control_dir(output_dir), rank
        now = _now()
        restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        self._status = Status("running", 0, None, "", str(output_dir), now, now, restarts, launch_name())
        self._written = -_EVERY
        self._training = False

    def __enter__(self) -> Self:
        if self.rank == 0:
            self._write()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or (isinstance(error, SystemExit) and not error.code):
            return
        if isinstance(error, StopRequested):
            if not self._has_failed():
                self.end(error.request.outcome, error.request.why)
            # torchrun takes any other code for a failure, and with --max_restarts would start all ranks again.
            if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")):
                error.code = 0
            return
        if self.rank == 0:
            self.fail(one_line(error))
            return
        time.sleep(_HEAD_START)
        reason = f"rank {self.rank}: {one_line(error)}"
        if self.fail(reason):
            print(reason, file=sys.stderr, flush=True)

    def progress(self, step: int, checkpoint: str | Path | None = None) -> None:
        """A step is done, or a checkpoint is complete. Steps are written every ten seconds, checkpoints at once."""
        known = str(checkpoint) if checkpoint else self._status.checkpoint
        self._status = dataclasses.replace(self._status, step=step, checkpoint=known)
        if self.rank == 0 and (checkpoint or time.monotonic() - self._written >= _EVERY):
            self._write()

    def scored(
        self, scores: dict[str, float] | None, best_metric: str, best_value: float | None, best_step: int | None
    ) -> None:
        """An evaluation has answered its rows (`scores`), or the best checkpoint may be another one."""
        self._status = dataclasses.replace(
            self._status,
            scores=self._status.scores if scores is None else scores,
            best_metric=best_metric,
            best_value=best_value,
            best_step=best_step,
        )
        if self.rank == 0:
            self._write()

    def begin_training(self) -> None:
        """From here on there is something to save."""
        self._training = True

    def is_lost(self) -> bool:
        """Whether this process has nothing to save: no step was begun, or another rank of this attempt has failed."""
        return not self._training or self._has_failed()

    def end(self, state: str, reason: str = "") -> None:
        """saved, preempted or finished."""
        assert state in ("saved", "preempted", "finished")
        self._status = dataclasses.replace(self._status, state=state, reason=reason)
        if self.rank == 0:
            self._write()

    def asked(self, why: str) -> None:
        """SIGTERM came some time ago and the step is not over: a kill may come at any moment, and `preempted` must stand then.

        The state stays until another end takes its place.
        """
        if self._status.state != "running" or self._has_failed():
            return
        reason = f"{why}; nothing newer was saved in time"
        self._status = dataclasses.replace(self._status, state="preempted", reason=reason)
        if self.rank == 0:
            self._write()

    def fail(self, reason: str) -> bool:
        """Write `failed`, unless a rank of this attempt has already written an end; return whether nobody else has."""
        found = self._found()
        if found and self.rank and found.launch != self._status.launch:
            # Said all the same: the main rank has not come so far.
            return True
        if found and found.state != "running" and found.updated >= self._status.started:
            return False
        step = max(self._status.step, found.step if found and found.started >= self._status.started else 0)
        self._status = dataclasses.replace(self._status, state="failed", step=step, reason=reason)
        self._write()
        return True

    def _has_failed(self) -> bool:
        """Whether another rank of this attempt has failed: the launcher then sends SIGTERM to the others, which is no request."""
        found, own = self._found(), self._status
        return (
            found is not None
            and found.state == "failed"
            and found.launch == own.launch
            and found.updated >= own.started
        )

    def _found(self) -> Status | None:
        try:
            return read_status(self.directory)
        except ValueError:
            # A file of another program: it is replaced.
            return None

    def _write(self) -> None:
        """Write the file. Where that fails it prints a line and tries again next time: a full disk must not end a training."""
        self._status = dataclasses.replace(self._status, updated=_now())
        self._written = time.monotonic()
        path = self.directory / "status.json"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            write_json(path, dataclasses.asdict(self._status))
        except OSError as error:
            print(f"{path}: cannot be written ({error.strerror or error}); state {self._status.state}", file=sys.stderr)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
