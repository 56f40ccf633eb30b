"""When a run trained: its starts, what each of them kept, and the share of the time that went into steps that count (goodput)."""

import itertools
from dataclasses import dataclass
from typing import Any

from drive_vlm.report.run_report.run_files import RunFiles, seconds


@dataclass(frozen=True)
class Attempt:
    """One start of the run. Times in seconds since 1970, None where nothing says them.

    `kept` and `redone` are seconds of the intervals between two logs whose steps count, and whose steps a later start did again.
    """

    started: float
    trained_from: float | None
    ended: float | None
    first_step: int | None
    last_step: int | None
    kept: float
    redone: float
    end: str


@dataclass(frozen=True)
class Timeline:
    """All starts of a run. `wall` is from the first start to the last end, `between` without any process, `around` the rest:
    start-up, and what comes after the last log."""

    attempts: list[Attempt]
    wall: float
    kept: float
    redone: float
    between: float

    @property
    def around(self) -> float:
        return max(0.0, self.wall - self.kept - self.redone - self.between)

    @property
    def goodput(self) -> float | None:
        """Share of the wall time in steps that count; None without a time."""
        return self.kept / self.wall if self.wall > 0 else None


def read_timeline(run: RunFiles) -> Timeline | None:
    """None where run.json does not say when the run was started, or no TensorBoard file says when it stepped."""
    records = [entry for entry in run.manifest.get("earlier") or [] if isinstance(entry, dict)]
    records.append({key: run.manifest.get(key) for key in ("started", "ended", "state")})
    starts = [(moment, record) for record in records if (moment := seconds(record.get("started"))) is not None]
    if not starts or not run.events:
        return None
    found: list[list[list[tuple[int, float]]]] = [[] for _ in starts]
    for number, events in enumerate(run.events):
        # run.json writes whole seconds, so that two quick starts may stand at one. Where each start has a file, their order decides.
        by_time = max((i for i, (moment, _) in enumerate(starts) if moment <= events[0][1]), default=0)
        found[number if len(run.events) == len(starts) else by_time].append(events)
    firsts = [min((step for events in files for step, _ in events if step >= 0), default=None) for files in found]
    attempts = []
    for i, ((moment, record), files) in enumerate(zip(starts, found, strict=True)):
        # What a later start logged first, and everything after it, was done again.
        later = min((first for first in firsts[i + 1 :] if first is not None), default=None)
        attempts.append(_attempt(moment, record, files, later, run.status if i == len(starts) - 1 else {}))
    end = max(attempt.ended or attempt.started for attempt in attempts)
    pairs = itertools.pairwise(attempts)
    between = sum(max(0.0, after.started - (before.ended or after.started)) for before, after in pairs)
    kept, redone = (sum(getattr(attempt, name) for attempt in attempts) for name in ("kept", "redone"))
    return Timeline(attempts, max(0.0, end - attempts[0].started), kept, redone, between)


def _attempt(
    started: float,
    record: dict[str, Any],
    files: list[list[tuple[int, float]]],
    later: int | None,
    status: dict[str, Any],
) -> Attempt:
    """One start; `later` is the first step that a later start logged, None where none did."""
    kept = redone = 0.0
    for events in files:
        for (_, before), (step, after) in itertools.pairwise(events):
            if later is not None and step >= later:
                redone += after - before
            else:
                kept += after - before
    steps = [step for events in files for step, _ in events if step >= 0]
    last = max((moment for events in files for _, moment in events), default=None)
    ended = seconds(record.get("ended")) or last
    # A run that was killed writes no end, and its status is as old as its last step.
    end = str(record.get("state") or ("ended" if record.get("ended") else status.get("state") or "killed or failed"))
    begun = min((events[0][1] for events in files), default=None)
    return Attempt(
        started, begun, ended, min(steps, default=None), max(steps, default=None), kept, redone, end.replace("_", " ")
    )


@dataclass(frozen=True)
class Fault:
    """Something that went wrong, in words; `where` is a step or a time."""

    where: str
    what: str


def read_faults(run: RunFiles) -> list[Fault]:
    """Alarms by the first step at which each sounded, rows that failed on the way, and the reason of a run that did not finish."""
    found = []
    heard: set[str] = set()
    for line in run.metrics:
        for name, value in line.items():
            if name.startswith("alarm/") and value == 1 and name not in heard:
                heard.add(name)
                found.append(Fault(f"step {line.get('step')}", f"alarm {name.removeprefix('alarm/')}"))
    during = run.audit.get("bad_during_run")
    if isinstance(during, dict) and during.get("total"):
        reasons = ", ".join(f"{name} {count:,}" for name, count in (during.get("by_reason") or {}).items())
        found.append(Fault("during the run", f"{during['total']:,} rows could not be used: {reasons}"))
    if run.status.get("restart_count"):
        found.append(Fault("launcher", f"torchrun started the ranks again {run.status['restart_count']} times"))
    if run.status.get("reason"):
        found.append(Fault(f"step {run.status.get('step')}", f"{run.status.get('state')}: {run.status['reason']}"))
    elif run.status.get("state") == "running":
        found.append(
            Fault(f"step {run.status.get('step')}", "status.json says running: the run goes on, or it was killed")
        )
    return found
