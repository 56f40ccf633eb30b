"""A rank that hangs is named, with its step, phase and rows, before a collective's own time limit ends the run without a word.

The main thread of each rank records what it does (Heartbeat). A daemon thread of each rank reports it to the others through
the store that the ranks met at. The first and the last rank judge: when no rank has moved for the time limit, the one that is
behind is the culprit, for the others wait for it. It writes the stacks of its threads, and all ranks end.
"""

import contextlib
import dataclasses
import datetime
import faulthandler
import json
import multiprocessing
import os
import socket
import sys
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch.distributed as dist

from drive_vlm.launch.status import RunStatus
from drive_vlm.launch.topology import read_topology
from drive_vlm.stages.engine.heartbeat import Heartbeat, Ids

# Exit code of a process that the watchdog ended.
HANG_EXIT = 14
# The first step (kernels are built), saving, evaluation and generation may take this many times the limit.
_SLOW = 3.0
_SLOW_PHASES = ("start-up", "save", "evaluation", "generation")
_MOST_IDS = 16


def _look_up(ids: Ids) -> list[str]:
    try:
        return ids() if callable(ids) else ids
    # The rows' file may be what is gone.
    except (OSError, ValueError) as error:
        return [f"unknown ({error})"]


@dataclasses.dataclass(frozen=True)
class Report:
    """What a rank reports of itself; `tick` counts its watchdog's own turns."""

    rank: int
    tick: int
    place: int
    touches: int
    step: int
    phase: str
    slow: bool
    ids: list[str]
    host: str
    pid: int

    def describe(self) -> str:
        more = f" and {len(self.ids) - _MOST_IDS} more" if len(self.ids) > _MOST_IDS else ""
        ids = f", ids {', '.join(self.ids[:_MOST_IDS])}{more}" if self.ids else ""
        return f"rank {self.rank} ({self.host}, process {self.pid}) in step {self.step + 1}, phase {self.phase}{ids}"


@dataclasses.dataclass
class Seen:
    """A rank as its judge sees it; times by the judge's own clock, so that clocks of nodes need not agree."""

    report: Report
    moved: float
    answered: float

    def update(self, report: Report, now: float) -> None:
        old, self.report = self.report, report
        if report.tick != old.tick:
            self.answered = now
        if (report.place, report.touches) != (old.place, old.touches):
            self.moved = now


def find_culprits(seen: list[Seen], now: float, limit: float, interval: float) -> list[Seen]:
    """The ranks that all others wait for; [] while any rank has moved within the limit.

    Behind in place; among equals those whose watchdog does not answer either (a stopped process, a lost node); else those
    that moved last the longest ago, as far as a judge that looks every `interval` can see.
    """
    seen = [rank for rank in seen if rank.report.phase != "done"]
    if not seen:
        return []
    place = min(rank.report.place for rank in seen)
    behind = [rank for rank in seen if rank.report.place == place]
    allowed = limit * (_SLOW if any(rank.report.slow for rank in behind) else 1)
    if min(now - rank.moved for rank in seen) <= allowed:
        return []
    silent = [rank for rank in behind if now - rank.answered > 4 * interval]
    first = min(rank.moved for rank in behind)
    return silent or [rank for rank in behind if rank.moved - first <= 2 * interval]


class _Board:
    """Reports and the verdict in the store of the process group, through a connection of our own: one that blocks on a
    frozen server must block nobody else. Raises dist.DistError when the store does not answer."""

    def __init__(self, name: str, rank: int, world_size: int, timeout: float) -> None:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        wait = datetime.timedelta(seconds=timeout)
        store = dist.TCPStore(host, port, is_master=False, timeout=wait, wait_for_workers=False)
        self._store = dist.PrefixStore(f"drive_vlm/watchdog/{name}", store)
        self._rank, self._missing = rank, set(range(world_size))
        self._keys = [str(number) for number in range(world_size)]

    def post(self, report: Report) -> None:
        self._store.set(str(self._rank), json.dumps(dataclasses.asdict(report)))

    def reports(self) -> list[Report]:
        """Of all ranks; [] until each has posted one."""
        self._missing = {number for number in self._missing if not self._store.check([str(number)])}
        return [] if self._missing else [Report(**json.loads(text)) for text in self._store.multi_get(self._keys)]

    def verdict(self) -> dict[str, Any] | None:
        return json.loads(self._store.get("verdict")) if self._store.check(["verdict"]) else None

    def announce(self, verdict: dict[str, Any]) -> dict[str, Any]:
        """The verdict that counts: this one, or that of another judge who was faster."""
        return json.loads(self._store.compare_set("verdict", "", json.dumps(verdict)))


class Watchdog:
    """Watches the ranks inside its context. `limit` in seconds; 0 watches nothing."""

    def __init__(self, heartbeat: Heartbeat, status: RunStatus, output_dir: Path, limit: float) -> None:
        topology = read_topology()
        self._rank, self._world_size = topology.rank, topology.world_size
        self._judging = self._rank in (0, self._world_size - 1)
        self._heartbeat, self._status, self._output_dir, self._limit = heartbeat, status, output_dir, limit
        self._interval = min(max(limit / 20, 0.1), 5.0)
        self._name, self._tick, self._last = "", 0, (-1, 0)
        self._ids: list[str] = []
        self._seen: dict[int, Seen] = {}
        self._board: _Board | None = None
        self._asking: threading.Thread | None = None
        self._verdict: dict[str, Any] | None = None
        self._heard = self._since = time.monotonic()
        # Whether the verdict is this rank's to print.
        self._speaks = False
        self._leave = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        if self._limit:
            name = [uuid.uuid4().hex]
            # A store may hold what an earlier attempt of the run wrote, its verdict above all: a new name for each attempt.
            if self._world_size > 1:
                dist.broadcast_object_list(name)
            self._name = name[0]
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Mark a rank that ends cleanly as done, so that judges ignore it; one that ends with an exception is reported as the
        culprit."""
        if kind is None:
            self._heartbeat.beat("done")
        else:
            self._heartbeat.now = self._heartbeat.now._replace(phase=f"left with {kind.__name__}")
        self._leave.set()
        if self._thread.is_alive():
            self._thread.join(2 * self._interval)

    def _watch(self) -> None:
        left = False
        while not left:
            left = self._leave.wait(self._interval)
            verdict = self._turn(time.monotonic())
            if verdict is not None and not left:
                self._end(verdict)

    def _turn(self, now: float) -> dict[str, Any] | None:
        """Report, look, judge: the verdict once there is one."""
        self._tick += 1
        report = self._report(now)
        if self._world_size == 1:
            self._speaks = True
            return self._judge([report], now)
        if self._asking is None:
            self._asking = threading.Thread(target=self._ask, args=(report,), daemon=True)
            self._asking.start()
        self._asking.join(self._interval)
        # A frozen server never answers, and never fails either.
        if self._asking.is_alive():
            return self._judge_alone(report, now)
        self._asking = None
        return self._verdict or self._judge_alone(report, now)

    def _ask(self, report: Report) -> None:
        """Report to the others, read the verdict; a judge looks at all reports and may announce one."""
        try:
            board = self._board = self._board or _Board(
                self._name, self._rank, self._world_size, 2 * self._interval + 5
            )
            board.post(report)
            verdict = board.verdict()
            if verdict is None and self._judging:
                mine = self._judge(board.reports(), time.monotonic())
                verdict = mine and board.announce(mine)
                self._speaks = verdict == mine
            self._verdict, self._heard = verdict, time.monotonic()
        except dist.DistError:
            self._board = None

    def _report(self, now: float) -> Report:
        """Ids that must be looked up, by reading rows, are so only when the main thread has stood still for half the limit."""
        heartbeat, beat = self._heartbeat, self._heartbeat.now
        if (beat.place, heartbeat.touches) != self._last:
            self._last, self._ids, self._since = (beat.place, heartbeat.touches), [], now
        if not self._ids and (not callable(beat.ids) or now - self._since > self._limit / 2):
            self._ids = _look_up(beat.ids)
        slow = beat.phase in _SLOW_PHASES or not heartbeat.warm
        return Report(
            self._rank, self._tick, beat.place, heartbeat.touches, heartbeat.step, beat.phase, slow,
            self._ids[: _MOST_IDS + 1], socket.gethostname(), os.getpid(),
        )  # fmt: skip

    def _judge(self, reports: list[Report], now: float) -> dict[str, Any] | None:
        for report in reports:
            self._seen.setdefault(report.rank, Seen(report, now, now)).update(report, now)
        seen = list(self._seen.values())
        culprits = find_culprits(seen, now, self._limit, self._interval)
        if not culprits:
            return None
        idle = now - max(rank.moved for rank in seen)
        silent = any(now - rank.answered > 4 * self._interval for rank in culprits)
        named = "; ".join(rank.report.describe() for rank in culprits[:4])
        if len(culprits) == len(seen) > 1:
            head = f"All {len(seen)} ranks hang at the same place, such as {named}. The connection between them may be broken."
        else:
            more = f" (and {len(culprits) - 4} more)" if len(culprits) > 4 else ""
            head = f"Hangs: {named}{more}."
            head += " The process does not answer: it is stopped, or its node is gone." if silent else ""
            head += " The other ranks wait for it." if len(seen) > len(culprits) else ""
        return {
            "ranks": [rank.report.rank for rank in culprits],
            "reason": f"{head} No rank has moved for {idle:.0f} s. If steps may take that long, raise --hang_timeout ({self._limit:g}).",
        }

    def _judge_alone(self, report: Report, now: float) -> dict[str, Any] | None:
        """Fallback while the TCP store does not answer: end the run if this rank is stuck too. Judges have the shorter limit,
        since they know more."""
        allowed = self._limit * (_SLOW if report.slow else 1) + (0 if self._judging else 4 * self._interval)
        if min(now - self._heard, now - self._since) <= allowed:
            return None
        self._speaks = True
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        held = "the first node" if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else "rank 0"
        last = f" Last heard of: {self._seen[0].report.describe()}." if 0 in self._seen else ""
        return {
            "ranks": [],
            "reason": f"Hangs or is gone: {held}. The store it holds for all ranks ({where}) has not answered for "
            f"{now - self._heard:.0f} s.{last} Stands still as well: {report.describe()}.",
        }

    def _end(self, verdict: dict[str, Any]) -> None:
        """Last words, then the end of this process: its main thread is stuck, so nothing else would end it."""
        if self._speaks or self._rank in verdict["ranks"]:
            os.write(2, f"\nrank {self._rank}: {verdict['reason']}\n".encode())
        writing = threading.Thread(target=self._last_words, args=(verdict,), daemon=True)
        writing.start()
        # The file system may be what hangs.
        writing.join(10.0)
        # The others read the verdict from a store that may live in this process.
        if self._judging:
            time.sleep(3 * self._interval)
        # Workers of the loader: os._exit would leave one that hangs behind.
        for worker in multiprocessing.active_children():
            worker.kill()
        os._exit(HANG_EXIT)

    def _last_words(self, verdict: dict[str, Any]) -> None:
        if self._rank in verdict["ranks"]:
            with open(self._output_dir / f"hang-rank-{self._rank}.txt", "w") as file:
                file.write(verdict["reason"] + "\n\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        self._status.fail(verdict["reason"])
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
