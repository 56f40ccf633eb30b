"""What a run directory holds, read for the page; what it lacks is named."""

import dataclasses
import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drive_vlm.launch.status import read_status
from drive_vlm.store.forms import read_object
from drive_vlm.store.keyed_lines import read_lines

Line = dict[str, Any]
# What a run writes; the last two only where it learns from rewards.
_FILES = ("run.json", "status.json", "data_audit.json", "metrics.jsonl", "samples.jsonl", "probes.jsonl")


@dataclass(frozen=True)
class RunFiles:
    """A run directory. `manifest`, `status` and `audit` are {} where their file is missing; `missing` names such files.

    `events` holds, for each TensorBoard file, (step, seconds since 1970) in order; the first is (-1, when the file begins).
    """

    path: Path
    name: str
    manifest: dict[str, Any]
    status: dict[str, Any]
    audit: dict[str, Any]
    metrics: list[Line]
    samples: list[Line]
    probes: list[Line]
    events: list[list[tuple[int, float]]]
    missing: tuple[str, ...]

    @property
    def stage(self) -> str:
        return str(self.manifest.get("stage") or "unknown stage")

    def data_files(self) -> list[dict[str, Any]]:
        """What the audit says of the training files."""
        train = self.audit.get("train")
        files = train.get("files") if isinstance(train, dict) else None
        return [entry for entry in files or [] if isinstance(entry, dict)]

    def located(self, path: str) -> Path:
        """A path of the manifest or the audit, which is relative to where the run was started."""
        return Path(str(self.manifest.get("directory") or ""), path)


def run_names(paths: Sequence[Path]) -> list[str]:
    """Short names that differ: the folders' own, with as many folders above as it takes. Raises ValueError for a folder given twice."""
    parts = [path.resolve().parts for path in paths]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    if parts:
        raise ValueError(f"a run is given twice: {', '.join(map(str, paths))}")
    return []


def read_run(path: Path, name: str) -> RunFiles:
    """The run directory `path`. Raises ValueError where it holds nothing of a run, and for a damaged file, with its way out."""
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder; give the --output_dir of a run")
    there = {file: (path / file).is_file() for file in _FILES}
    if not there["run.json"] and not there["metrics.jsonl"]:
        raise ValueError(f"{path}: neither run.json nor metrics.jsonl is in it; give the --output_dir of a run")
    way_out = "Restore the file or remove it, and the page says that it is missing."
    status = read_status(path)

    def content(file: str) -> dict[str, Any]:
        return read_object(path / file, way_out) if there[file] else {}

    def lines(file: str) -> list[Line]:
        return [row for _, row in read_lines(path / file, "not a line of a run", way_out, _a_line)]

    events = read_events(path / "tensorboard")
    missing = [file for file, found in there.items() if not found] + (["tensorboard/"] if not events else [])
    return RunFiles(
        path,
        name,
        content("run.json"),
        dataclasses.asdict(status) if status else {},
        content("data_audit.json"),
        lines("metrics.jsonl"),
        lines("samples.jsonl"),
        lines("probes.jsonl"),
        events,
        tuple(file for file in missing if file not in ("samples.jsonl", "probes.jsonl")),
    )


def _a_line(row: Any) -> Line:
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, got {type(row).__name__}")
    return row


def read_events(folder: Path) -> list[list[tuple[int, float]]]:
    """RunFiles.events of the TensorBoard files below `folder`, in the order of their beginnings.

    A file of a killed process ends where it ends. Its loader is TensorBoard's own and needs neither torch nor TensorFlow.
    """
    paths = sorted(folder.rglob("events.out.tfevents.*")) if folder.is_dir() else []
    if not paths:
        return []
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found = []
    for path in paths:
        # One step has an event for each figure.
        times: dict[int, float] = {}
        begun: float | None = None
        for event in EventFileLoader(str(path)).Load():
            begun = event.wall_time if begun is None else begun
            if any(value.tag.startswith(("train/", "eval/")) for value in event.summary.value):
                times[event.step] = event.wall_time
        if begun is not None:
            # The file begins when training does: at which step is not known, so its first interval ends at its first step.
            found.append([(-1, begun), *sorted(times.items())])
    return sorted(found, key=lambda events: events[0][1])


def seconds(text: Any) -> float | None:
    """Seconds since 1970 of a time that a manifest or a status holds; None where it holds none."""
    if not isinstance(text, str):
        return None
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    return (found if found.tzinfo else found.replace(tzinfo=datetime.UTC)).timestamp()


def clock(moment: float | None) -> str:
    """A moment for people, in UTC."""
    if moment is None:
        return "not known"
    return datetime.datetime.fromtimestamp(moment, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def duration(count: float | None) -> str:
    """Seconds for people: 3.2 s, 4 min 19 s, 7 h 05 min.

    >>> duration(259), duration(25_500)
    ('4 min 19 s', '7 h 05 min')
    """
    if count is None:
        return "not known"
    if count < 10:
        return f"{count:.1f} s"
    whole = round(count)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"
