"""A request to stop this process: SIGTERM, SIGUSR1, or a file named `stop` in the control directory (status.py).

A handler only notes the signal. Every long loop asks for it between its batches, where nothing is half done:

1. A training asks at the end of each step, and of each batch of an evaluation; all ranks act alike (stages/engine/faults.py).
2. Whatever else takes long (measuring rows, the reference pass, generation, caches, judges) goes through `until_stopped`, or
   asks before each request to a server. What is done by then is on the disk already, or is written on the way out;
   StopRequested ends the process.
The end of the launcher (torchrun, deepspeed) counts as SIGTERM: nobody would end its ranks, and they would go on to write.
Python's handlers wait for the main thread, which may hang in a collective for as long as the other ranks are gone: a thread of
its own hears SIGTERM at once, for what cannot wait (`late`, `hopeless`).
Outside `listening` nothing is noted, and a signal does what it does to any program.
"""

import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn, TypeVar

from drive_vlm.launch.topology import launcher

Item = TypeVar("Item")
STOP_FILE = "stop"
# In the control directory of a job, a line a command: how much it has done that a later start of the job finds again.
PROGRESS_FILE = "progress"
_GO_ON = "What is done so far is kept: give the same command again to go on."
# Seconds between two looks at the launcher.
_LOOK = 1.0
# Seconds after SIGTERM until it counts as one that may not be obeyed in time: launchers kill after 30 s. And until a process ends
# that has nothing to save.
_LATE, _HOPELESS = 10.0, 3.0
# The process that started this one, taken before torch is imported, which takes seconds: a launcher that is killed meanwhile
# would leave ranks with another parent, and they would watch that one.
_PARENT = os.getppid()


class Request(NamedTuple):
    """`outcome` is the state that the run will end in: preempted after SIGTERM, saved after the others. `code`: exit code of a
    process that ends without having finished."""

    outcome: Literal["saved", "preempted"]
    why: str
    code: int


class StopRequested(SystemExit):
    """Leaves a loop between two batches and ends the process; what was done is safe. RunStatus writes `request` down."""

    def __init__(self, request: Request) -> None:
        super().__init__(request.code)
        self.request = request


class _Noted:
    """What was asked of this process; there is one, as there is one handler of a signal."""

    number: signal.Signals | None = None
    stop_file: Path | None = None
    # Whether this rank looks for the file all the time; the others do only where they are asked to.
    looks = True
    # Whether the file was there before the process: it stops a training at its first step, and no start-up.
    file_left = False
    # Why there is a request without a signal.
    launcher_gone = ""
    # What was done and kept, in whatever the loops count.
    done = 0


_noted = _Noted()


@contextlib.contextmanager
def listening(
    stop_file: Path | None = None,
    late: Callable[[str], None] | None = None,
    hopeless: Callable[[], bool] | None = None,
) -> Iterator[None]:
    """SIGTERM, SIGUSR1 and `stop_file` are requests inside this context; afterwards the former handlers are back.

    Without `stop_file` it is the one of a job, where there is a DRIVE_VLM_CONTROL_DIR. The main rank looks for it.
    `late(why)` is called, on another thread, where a SIGTERM has not ended the context after ten seconds.
    `hopeless()` says that this process has nothing to save: it then ends three seconds after SIGTERM, whatever it hangs in.
    A connection to other ranks that breaks after a request does so because they have left: StopRequested takes its place.
    """
    job = os.environ.get("DRIVE_VLM_CONTROL_DIR")
    if stop_file is None and job:
        stop_file = Path(job) / STOP_FILE
    _noted.number, _noted.stop_file = None, stop_file
    _noted.looks, _noted.done = os.environ.get("RANK", "0") == "0", 0
    _noted.file_left = stop_file is not None and stop_file.exists()

    def note(number: int, frame: object) -> None:
        if _noted.number != signal.SIGTERM:
            _noted.number = signal.Signals(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGUSR1)}
    ended = threading.Event()
    if launcher() != "python":
        threading.Thread(target=_watch_launcher, args=(ended,), name="launcher", daemon=True).start()
    try:
        with _heard_at_once(ended, late, hopeless) if late or hopeless else contextlib.nullcontext():
            yield
    # torch.distributed's errors are RuntimeErrors.
    except RuntimeError as error:
        asked = request(new=True)
        if asked is None:
            raise
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        print(f"stopped: {asked.why}. The other ranks have left ({cause})", file=sys.stderr, flush=True)
        raise StopRequested(asked) from error
    finally:
        ended.set()
        for number, handler in before.items():
            signal.signal(number, handler)
        if job and _noted.looks and _noted.done:
            # Only slurm/train.sbatch asks: a disk without room for it must not end what has done so much.
            with contextlib.suppress(OSError), open(Path(job) / PROGRESS_FILE, "a") as file:
                file.write(f"{_noted.done}\n")
        _noted.number, _noted.stop_file, _noted.launcher_gone = None, None, ""


def request(new: bool = False, any_rank: bool = False) -> Request | None:
    """What this process has been asked; None as long as nobody has. `new`: since it listens. `any_rank`: the stop file counts on
    each rank, where all of them agree afterwards: the main one removes it."""
    if _noted.number is not None:
        outcome: Literal["saved", "preempted"] = "preempted" if _noted.number == signal.SIGTERM else "saved"
        return Request(outcome, _why(_noted.number), 128 + _noted.number)
    looks = _noted.looks or any_rank
    if looks and _noted.stop_file is not None and not (new and _noted.file_left) and _noted.stop_file.exists():
        with contextlib.suppress(OSError):
            words = " ".join(_noted.stop_file.read_text(errors="replace").split())[:200]
            return Request("saved", words or "stop file", 1)
    return None


def obeyed(finished: bool = False) -> None:
    """The request is being obeyed: the stop file goes, so that it does not stop the next run as well. What has `finished` anyway
    leaves that of a job to the next command of the recipe."""
    if finished and os.environ.get("DRIVE_VLM_CONTROL_DIR"):
        return
    if _noted.looks and _noted.stop_file is not None:
        with contextlib.suppress(OSError):
            _noted.stop_file.unlink(missing_ok=True)


def check(kept: str = _GO_ON) -> None:
    """Raises StopRequested after a request, and says what is kept."""
    asked = request(new=True)
    if asked is not None:
        obey(asked, kept)


def check_launcher() -> None:
    """Raises StopRequested where the launcher is gone; for the moment before ranks meet. They do so in its store, which they
    would look for until torch gives up after half an hour, deaf to signals and with the output directory locked."""
    if _launcher_gone():
        _noted.launcher_gone = _gone()
        print(f"stopped: {_noted.launcher_gone}", file=sys.stderr, flush=True)
        raise StopRequested(Request("preempted", _noted.launcher_gone, 128 + signal.SIGTERM))


def obey(asked: Request, kept: str = _GO_ON) -> NoReturn:
    """Raises StopRequested, and says what is kept. In the main thread: the stop file goes."""
    obeyed()
    print(f"stopped: {asked.why}. {kept}", file=sys.stderr, flush=True)
    raise StopRequested(asked)


def until_stopped(items: Iterable[Item], kept: str = _GO_ON) -> Iterator[Item]:
    """The items; `check(kept)` before each of them is used."""
    for item in items:
        check(kept)
        yield item
        count_kept(kept == _GO_ON)


def count_kept(count: int) -> None:
    """So much was done and is kept: a job whose time is up is worth another start."""
    _noted.done += count


def why_elsewhere() -> str:
    """The cause of a request that this process learns of from another rank."""
    # Ranks look at their launcher at different moments: the first that misses it asks the others.
    return _gone() if _launcher_gone() else "another rank was asked to stop"


def _launcher_gone() -> bool:
    return launcher() != "python" and os.getppid() != _PARENT


def _why(number: signal.Signals) -> str:
    return _noted.launcher_gone or f"{number.name} at rank {os.environ.get('RANK', '0')}"


def _gone() -> str:
    return f"the {launcher()} of this rank (process {_PARENT}) is gone"


def _watch_launcher(ended: threading.Event) -> None:
    """Send this process SIGTERM once its parent is another one."""
    while not ended.wait(_LOOK):
        if os.getppid() != _PARENT:
            _noted.launcher_gone = _gone()
            os.kill(os.getpid(), signal.SIGTERM)
            return


@contextlib.contextmanager
def _heard_at_once(
    ended: threading.Event, late: Callable[[str], None] | None, hopeless: Callable[[], bool] | None
) -> Iterator[None]:
    """Inside, a thread learns of SIGTERM from the system, also while the main thread is in a call that does not return."""
    _deaf_in_children()
    heard, written = os.pipe()
    os.set_blocking(written, False)
    before = signal.set_wakeup_fd(written, warn_on_full_buffer=False)
    threading.Thread(target=_hear, args=(heard, ended, late, hopeless), name="SIGTERM", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        ended.set()
        os.close(written)


def _hear(
    heard: int, ended: threading.Event, late: Callable[[str], None] | None, hopeless: Callable[[], bool] | None
) -> None:
    """Wait for SIGTERM, then for the end of the context; `listening` says what happens where that does not come."""
    with open(heard, "rb", buffering=0) as signals:
        # A byte a signal; nothing once the other end is closed.
        while (numbers := signals.read(64)) and signal.SIGTERM not in numbers:
            continue
    began = time.monotonic()
    while numbers and not ended.wait(min(0.5, _LATE)):
        waited = time.monotonic() - began
        lost = hopeless is not None and waited >= _HOPELESS and hopeless()
        if late is not None and (lost or waited >= _LATE):
            late(_why(signal.SIGTERM))
            late = None
        if lost:
            # Workers of a loader: os._exit would leave them behind.
            for worker in multiprocessing.active_children():
                worker.kill()
            os._exit(128 + signal.SIGTERM)


@functools.cache
def _deaf_in_children() -> None:
    """A signal to a child of fork() must not be heard by its parent."""

    def close() -> None:
        # In a child the thread that forked is the main one.
        signal.set_wakeup_fd(-1)

    os.register_at_fork(after_in_child=close)
