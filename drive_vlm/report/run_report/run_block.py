"""The blocks about a run itself: what ran, with which data, when, and how to run it again."""

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from drive_vlm.report.run_report.run_files import RunFiles, clock, duration, seconds
from drive_vlm.report.run_report.score_files import ScoreFile, facts_of
from drive_vlm.report.run_report.timeline import Timeline

NOT_KNOWN = "not known"
# Characters of a flag's value.
_LONGEST = 240
_COST = re.compile(r"(?:^|[._])(?:cost|requests|prompt_tokens|completion_tokens)$")


@dataclass(frozen=True)
class Table:
    """Rows of words under a head; the first column is a row's name. `note` stands below."""

    head: list[str]
    rows: list[list[str]]
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Details:
    """A longer text that is folded away."""

    title: str
    lines: list[str] = field(default_factory=list)


def ran_table(runs: Sequence[RunFiles], timelines: Sequence[Timeline | None]) -> Table:
    """A column for each run."""
    columns = [_ran(run, timeline) for run, timeline in zip(runs, timelines, strict=True)]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [[name, *(column.get(name, NOT_KNOWN) for column in columns)] for name in names]
    return Table(["", *(run.name for run in runs)], rows)


def flag_differences(runs: Sequence[RunFiles]) -> Table:
    """Flags whose values are not the same in all runs: of those that every run has, and those that a command names. A flag that a stage
    does not have is "-"."""
    flat = [dict(_flags(_part(run.manifest, "config"))) for run in runs]
    named = {str(word).partition("=")[0] for run in runs for word in run.manifest.get("words") or []}
    names = [
        name
        for name in dict.fromkeys(name for flags in flat for name in flags)
        if name != "--output_dir" and (name in named or all(name in flags for flags in flat))
    ]
    rows = [[name, *(flags.get(name, "-") for flags in flat)] for name in names]
    return Table(
        ["flag", *(run.name for run in runs)], [row for row in rows if len(set(row[1:])) > 1], "Flags that differ"
    )


def _flags(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, value) of every flag; those of one part after another."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _flags(value)
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            yield f"--{name}", text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _ran(run: RunFiles, timeline: Timeline | None) -> dict[str, str]:
    manifest, status = run.manifest, run.status
    config = _part(manifest, "config")
    topology, machine, git = (_part(manifest, name) for name in ("topology", "machine", "git"))
    found = {
        "command": f"{run.stage} of {_part(config, 'model').get('model') or NOT_KNOWN}",
        "state": _state(run),
        "steps": _number(manifest.get("steps") if manifest.get("steps") is not None else status.get("step")),
        "processes": _processes(topology, manifest),
        "device": _device(machine),
        "started": clock(seconds(manifest.get("started"))),
        "ended": clock(seconds(manifest.get("ended"))),
        "starts": str(1 + len(manifest.get("earlier") or [])) if manifest else NOT_KNOWN,
        "time": duration(timeline.wall if timeline else _runtime(run)),
        "GPU-hours": gpu_hours(run, timeline),
        "goodput": f"{timeline.goodput:.1%} of the time in steps that count" if timeline and timeline.goodput is not None else NOT_KNOWN,
        "parameters": _parameters(_part(_part(manifest, "parameters"), "all")),
        "training loss": f"{_part(manifest, 'metrics')['train_loss']:.4g}, mean of all steps" if _is_float(_part(manifest, "metrics").get("train_loss")) else NOT_KNOWN,
        "peak memory": f"{manifest['peak_memory_gib']:.2f} GiB, main process" if _is_float(manifest.get("peak_memory_gib")) else NOT_KNOWN,
        "git": _git(git),
        "code": str(manifest.get("code_hash") or NOT_KNOWN)[:12],
        "seed": str(_part(manifest, "seeds").get("seed", NOT_KNOWN)),
        "model hashes": _fingerprint(_part(manifest, "model_fingerprint")),
    }  # fmt: skip
    if job := _part(manifest, "job"):
        found["job"] = ", ".join(f"{name.removeprefix('SLURM_').lower()} {value}" for name, value in job.items())
    if run.missing:
        found["files missing"] = ", ".join(run.missing)
    return found


def _state(run: RunFiles) -> str:
    state = run.manifest.get("state") or run.status.get("state") or NOT_KNOWN
    reason = run.status.get("reason")
    return f"{state}: {reason}" if reason else str(state)


def _processes(topology: dict[str, Any], manifest: dict[str, Any]) -> str:
    if "world_size" not in topology:
        return NOT_KNOWN
    nodes, zero = topology.get("nnodes") or 1, manifest.get("zero_stage")
    words = f"{topology['world_size']} on {nodes} node{'s' * (nodes != 1)} by {topology.get('launcher')}"
    return words + (f", ZeRO-{zero}" if zero is not None else "")


def _device(machine: dict[str, Any]) -> str:
    gpus = machine.get("gpus")
    if isinstance(gpus, list) and gpus:
        return f"{len(gpus)} x {gpus[0]}"
    return f"CPU, {machine['cores']} cores, {machine.get('memory_gib')} GiB" if "cores" in machine else NOT_KNOWN


def gpu_hours(run: RunFiles, timeline: Timeline | None) -> str:
    """Hours of the starts times the processes, each of which holds a GPU; on a machine without one, process-hours."""
    world = _part(run.manifest, "topology").get("world_size")
    used = (
        sum(max(0.0, (one.ended or one.started) - one.started) for one in timeline.attempts)
        if timeline
        else _runtime(run)
    )
    if not isinstance(world, int) or used is None:
        return NOT_KNOWN
    hours = used * world / 3600
    if _part(run.manifest, "machine").get("gpus"):
        return f"{hours:,.2f}"
    return f"0; {hours:,.3f} process-hours on CPU"


def _runtime(run: RunFiles) -> float | None:
    found: Any = _part(run.manifest, "metrics").get("train_runtime")
    return float(found) if _is_float(found) else None


def _git(git: dict[str, Any]) -> str:
    if "commit" not in git:
        return NOT_KNOWN
    changed = git.get("changed_files") or []
    return str(git["commit"])[:12] + (
        f" and {len(changed)} changed files (run.diff)" if changed else ", nothing changed"
    )


def _parameters(counts: dict[str, Any]) -> str:
    if not _is_float(counts.get("total")):
        return NOT_KNOWN
    return f"{_number(counts.get('trainable'))} of {_number(counts['total'])} train"


def _fingerprint(found: dict[str, Any]) -> str:
    texts = [
        f"{name} {value[:12]}" for name, value in sorted(found.items()) if name != "name" and isinstance(value, str)
    ]
    return ", ".join(texts[:3]) or NOT_KNOWN


def data_table(runs: Sequence[RunFiles]) -> Table:
    """A row for each data file of each run."""
    rows = []
    for run in runs:
        for split in ("train", "eval"):
            part = _part(run.audit, split)
            for entry in part.get("files") or []:
                repeat = entry.get("repeat_time", 1)
                rows.append(
                    [
                        str(entry.get("path")),
                        run.name,
                        split,
                        _number(entry.get("rows")),
                        _number(entry.get("used"))
                        + (f" (repeated {repeat:g} times)" if repeat not in (1, None) else ""),
                        str(entry.get("content_hash") or NOT_KNOWN)[:12],
                    ]
                )
    return Table(["file", "run", "for", "rows", "used", "hash"], rows)


def left_out_table(runs: Sequence[RunFiles]) -> Table:
    """Rows that were left out, by reason."""
    rows = []
    for run in runs:
        for name, bad in (
            *((split, _part(_part(run.audit, split), "bad_rows")) for split in ("train", "eval")),
            ("during the run", _part(run.audit, "bad_during_run")),
        ):
            rows += [
                [str(reason), run.name, name, _number(count)] for reason, count in (bad.get("by_reason") or {}).items()
            ]
    return Table(["reason", "run", "of", "rows"], rows)


def token_table(runs: Sequence[RunFiles]) -> Table:
    """Lengths of the rows in tokens."""
    rows = []
    for run in runs:
        for split in ("train", "eval"):
            tokens = _part(_part(run.audit, split), "tokens")
            if tokens:
                cells = [_number(tokens.get(name)) for name in ("min", "median", "p95", "max", "total")]
                rows.append([f"{run.name}, {split}", *cells])
    return Table(["tokens of a row", "least", "median", "95 %", "most", "all rows"], rows)


def bad_examples(runs: Sequence[RunFiles], most: int = 20) -> Details:
    """The first rows that were left out, with their places."""
    lines = []
    for run in runs:
        parts = [_part(_part(run.audit, split), "bad_rows") for split in ("train", "eval")]
        for bad in [*parts, _part(run.audit, "bad_during_run")]:
            lines += [
                f"{row.get('where')}: {row.get('problem')}" for row in bad.get("rows") or [] if isinstance(row, dict)
            ]
    return Details(f"the first {min(most, len(lines))} of {len(lines):,} rows", lines[:most])


def judge_cost(runs: Sequence[RunFiles], files: Sequence[ScoreFile]) -> list[str]:
    """What judges were asked and cost, of the evaluators' files and of the runs' probes; [] where nothing says it."""
    found = [
        f"{file.name}: {path} {text}"
        for file in files
        for path, text in file.judges
        if _COST.search(path) and text != "None"
    ]
    for run in runs:
        if run.probes:
            found += [f"{run.name}: {path} {text}" for path, text in facts_of(run.probes[-1]) if _COST.search(path)]
    return found


def version_details(runs: Sequence[RunFiles]) -> list[Details]:
    """Versions, hashes of files, the changed files and the environment of each run."""
    found = []
    for run in runs:
        for name, title in (
            ("versions", "versions"),
            ("file_hashes", "hashes of the files"),
            ("environment", "environment"),
        ):
            entries = _part(run.manifest, name)
            if entries:
                found.append(Details(f"{run.name}: {title}", [f"{key} {value}" for key, value in entries.items()]))
        changed = _part(run.manifest, "git").get("changed_files")
        if changed:
            found.append(Details(f"{run.name}: files changed since the commit", [str(line) for line in changed]))
    return found


def commands(runs: Sequence[RunFiles]) -> list[tuple[str, str]]:
    """(what it does, command) to run again what ran."""
    found = []
    for run in runs:
        words = run.manifest.get("command")
        if isinstance(words, list) and words:
            found.append(
                (f"{run.name}, as it was started in {run.manifest.get('directory')}", shlex.join(map(str, words)))
            )
        if run.manifest:
            again = ["python", "-m", "drive_vlm", "reproduce", str(run.path / "run.json")]
            found.append((f"{run.name}: what differs today; --go runs it", shlex.join(again)))
        if run.manifest.get("recipe"):
            found.append((f"{run.name}: its recipe", f"bash {shlex.quote(str(run.manifest['recipe']))}"))
    return found


def sample_rows(run: RunFiles, most: int = 4) -> Table | None:
    """The best and the worst completions of the run's last generation batch; None without samples."""
    if not run.samples:
        return None
    last = max((line.get("step") or 0) for line in run.samples)
    batch = [line for line in run.samples if line.get("step") == last]

    def total(line: dict[str, Any]) -> float:
        return sum(value for value in (line.get("rewards") or {}).values() if _is_float(value))

    ranked = sorted(batch, key=total)
    shown = ranked[-most:][::-1] + ranked[: max(0, min(most, len(ranked) - most))]
    rows = []
    for line in shown:
        rewards = ", ".join(
            f"{name} {value:.3f}" if _is_float(value) else f"{name} unread"
            for name, value in (line.get("rewards") or {}).items()
        )
        texts = [str(line.get(name) or "") for name in ("prompt", "completion", "reference")]
        rows.append([str(line.get("id")), *texts, rewards])
    return Table(
        ["id", "prompt", "completion", "the row's own", "rewards"],
        rows,
        f"{run.name}, step {last}: highest and lowest of {len(batch)} completions kept in samples.jsonl",
    )


def _part(content: dict[str, Any], name: str) -> dict[str, Any]:
    found = content.get(name)
    return found if isinstance(found, dict) else {}


def _is_float(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(value: Any) -> str:
    return f"{value:,.0f}" if _is_float(value) else NOT_KNOWN
