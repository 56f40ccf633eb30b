"""The contract of a checkpoint directory: what makes it complete, and how it is found, checked and removed.

1. `begin`: files are written under .saving, where nothing looks for a checkpoint.
2. `complete`: they and their directories are flushed to the disk, the marker is written last, the directory is moved into
   place by one rename.
3. `find_checkpoint` takes only a directory whose marker exists and whose files have the sizes that it names.
4. `remove_old` moves a directory under .saving by one rename before it removes it. It counts whole checkpoints of ours alone.
5. `set_aside_later` renames those after the one that --resume names, so that `auto` never goes back to them.
A run that dies in any of these steps therefore leaves either a complete checkpoint or nothing that looks like one.

<output_dir>/.saving/checkpoint-N/    being written; a run that dies here leaves nothing that looks complete
<output_dir>/checkpoint-N/            complete: complete.json names every file with its size
<output_dir>/.frozen/                 weights that do not train: written once, hard-linked into each checkpoint
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from drive_vlm.store.forms import read_dataclass
from drive_vlm.store.keyed_lines import read_lines, write_lines

MARKER = "complete.json"


@dataclasses.dataclass(frozen=True)
class CheckpointFacts:
    """What complete.json says: who wrote the checkpoint, in which layout, and every file with its bytes."""

    step: int
    world_size: int
    # 0 without DeepSpeed: the optimizer is one file, any world size reads it. DeepSpeed may have stage 0 too, in shards.
    zero_stage: int
    deepspeed: bool
    optimizer: str
    # Digest of the names and sizes of the parameters that train.
    trained: str
    files: dict[str, int] = dataclasses.field(default_factory=dict)
    saved: str = ""
    # Of the small JSON files, whose damage a size need not show. Checkpoints of older versions have none.
    hashes: dict[str, str] = dataclasses.field(default_factory=dict)


def step_of(path: Path) -> int:
    """N of a checkpoint-N directory; -1 for a name that no run of ours gives (checkpoint-07, checkpoint-²)."""
    number = re.fullmatch(r"checkpoint-(0|[1-9][0-9]{0,17})", path.name)
    return int(number[1]) if number else -1


def names_digest(trained: dict[str, int]) -> str:
    """Digest of the parameters that train: name -> elements."""
    text = "\n".join(f"{name} {count}" for name, count in sorted(trained.items()))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def begin(output_dir: Path, step: int) -> Path:
    """An empty directory to write checkpoint `step` into; what an earlier death left there is removed."""
    saving = output_dir / ".saving"
    shutil.rmtree(saving, ignore_errors=True)
    path = saving / f"checkpoint-{step}"
    path.mkdir(parents=True)
    return path


def require_space(output_dir: Path, needed: int) -> None:
    """Raises ValueError when fewer than `needed` bytes are free where checkpoints go."""
    free = shutil.disk_usage(output_dir).free
    if free < needed:
        raise ValueError(
            f"{output_dir}: the next checkpoint needs about {_size(needed)}, {_size(free)} are free. "
            "Free some space or lower --keep, then go on with --resume auto: complete checkpoints are untouched."
        )


def complete(saving: Path, facts: CheckpointFacts) -> Path:
    """Flush all files of `saving` to the disk, write the marker, move the directory into place; return its new path."""
    files = {str(path.relative_to(saving)): path for path in sorted(saving.rglob("*")) if path.is_file()}
    for path in (*files.values(), *(path for path in saving.rglob("*") if path.is_dir())):
        flush(path)
    sizes = {name: path.stat().st_size for name, path in files.items()}
    hashes = {name: _digest(path) for name, path in files.items() if path.suffix == ".json"}
    saved = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    facts = dataclasses.replace(facts, files=sizes, saved=saved, hashes=hashes)
    (saving / MARKER).write_text(json.dumps(dataclasses.asdict(facts), indent=2) + "\n")
    flush(saving / MARKER)
    # A file is on disk only when the directory that names it is.
    flush(saving)
    flush(saving.parent)
    final = saving.parent.parent / saving.name
    if (final / MARKER).is_file():
        # The same step again, after a resume from an older checkpoint. Renamed, not removed: until the new one is in place, the
        # old files are the only copy.
        final.rename(saving.parent / "replaced")
    elif os.path.lexists(final):
        _set_aside(final)
    saving.rename(final)
    flush(final.parent)
    shutil.rmtree(saving.parent)
    return final


def read_complete(path: Path) -> CheckpointFacts:
    """The facts of a complete checkpoint. Raises ValueError for a torn, damaged or foreign directory, naming what is wrong."""
    marker = path / MARKER
    if not path.is_dir():
        raise ValueError(f"{path}: no such checkpoint directory.")
    if not marker.is_file():
        raise ValueError(
            f"{path}: not a complete checkpoint of drive-vlm ({MARKER} is missing): it was torn while being written, or another "
            "program wrote it. Resume from another checkpoint-N, or start from it as weights with --model."
        )
    way_out = f"Remove {path.name} to resume from the checkpoint before."
    try:
        facts = read_dataclass(marker, CheckpointFacts)
    except ValueError as error:
        raise ValueError(f"{marker}: damaged ({str(error).removeprefix(f'{marker}: ')}) {way_out}") from error
    for name, size in facts.files.items():
        file = path / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found:,} bytes, {size:,} were written"
            raise ValueError(f"{file}: {state}. {way_out}")
        if name in facts.hashes and _digest(file) != facts.hashes[name]:
            raise ValueError(f"{file}: has changed since it was written. {way_out}")
    return facts


def find_checkpoint(resume: str | None, output_dir: Path) -> tuple[Path, CheckpointFacts] | None:
    """The checkpoint to go on from: `auto` takes the newest complete one of `output_dir`, None where there is none.

    Under torchrun's --max_restarts a run that was started without --resume goes on as with `auto`.
    Raises ValueError for a path that is not a complete checkpoint, when checkpoints exist but none is whole, and when a new
    run would mix its checkpoints with those of an earlier one.
    """
    if resume is None and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0:
        resume = "auto"
    if resume is None:
        there = sorted(path.name for path in output_dir.glob("checkpoint-*") if (path / MARKER).is_file())
        if there:
            raise ValueError(
                f"--output_dir {output_dir}: an earlier run left {', '.join(there)} there. Go on from it with --resume auto, or give another --output_dir."
            )
        return None
    if resume != "auto":
        return Path(resume), read_complete(Path(resume))
    damaged = []
    for path in reversed(_numbered(output_dir)):
        try:
            facts = _read_own(path)
        except ValueError as error:
            damaged.append(str(error))
            continue
        for text in damaged:
            print(f"--resume auto passes over a damaged checkpoint. {text}", flush=True)
        return path, facts
    if damaged:
        raise ValueError(f"--resume auto: no whole checkpoint in {output_dir}. {damaged[0]}")
    return None


def check_layout(
    path: Path, facts: CheckpointFacts, zero_stage: int, deepspeed: bool, world_size: int, optim: str
) -> bool:
    """Whether the optimizer's shards must be converted (universal checkpoint) to be read by this run.

    Raises ValueError for a change that cannot be converted: engine, ZeRO stage, or an optimizer other than Adam.
    """
    if (facts.deepspeed, facts.zero_stage) != (deepspeed, zero_stage):
        raise ValueError(
            f"{path}: saved {_layout(facts.deepspeed, facts.zero_stage)}, this run is {_layout(deepspeed, zero_stage)}; their optimizer "
            "states cannot be converted into each other. Resume with the same --deepspeed, or start again with --model on this directory."
        )
    if facts.optimizer != optim:
        raise ValueError(f"{path}: saved with --optim {facts.optimizer}, this run has {optim}. Use the same.")
    if not deepspeed or facts.world_size == world_size:
        return False
    if "adam" not in optim:
        raise ValueError(
            f"{path}: saved by {facts.world_size} processes, this run has {world_size}. DeepSpeed's universal checkpoint knows Adam's "
            f"two moments only, not those of --optim {optim}. Resume with {facts.world_size} processes."
        )
    return True


def set_aside_later(output_dir: Path, resumed: Path, step: int) -> None:
    """Rename the whole checkpoints after `step`: the user has named an earlier one, so theirs is a branch that was given up.

    `--resume auto` would go on with it, as soon as the run that begins now is killed before it has passed it.
    """
    later = [path for path in whole_checkpoints(output_dir) if step_of(path) > step]
    moved = [f"{path.name} -> {_renamed(path, 'abandoned').name}" for path in later]
    if moved:
        flush(output_dir)
        print(
            f"{output_dir}: goes on from {resumed}. Later checkpoints are kept under other names, which --resume auto passes over: "
            f"{', '.join(moved)}. Remove them, or go back to one with --resume DIRECTORY.",
            flush=True,
        )


def whole_checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints of `output_dir` that are whole and of this project, by number."""
    found = []
    for path in _numbered(output_dir):
        with contextlib.suppress(ValueError):
            _read_own(path)
            found.append(path)
    return found


def remove_old(output_dir: Path, written: Path, keep: int, best: str | None) -> None:
    """Remove whole checkpoints but the newest `keep` up to `written`, which is complete by now, and the best.

    What is not whole, has no marker of ours, or has a higher number (after a resume from an older one) is neither counted
    nor touched: it must not push out what this run writes.
    """
    found = [path for path in whole_checkpoints(output_dir) if step_of(path) <= step_of(written)]
    protected = {path.name for path in found[-max(keep, 1) :]} | {written.name} | ({Path(best).name} if best else set())
    trash = output_dir / ".saving"
    for path in found:
        if path.name not in protected:
            # By a rename, so that a death half way leaves no directory that looks like a checkpoint: `begin` removes the rest.
            trash.mkdir(exist_ok=True)
            path.rename(trash / f"old-{path.name}")
    shutil.rmtree(trash, ignore_errors=True)


def _numbered(output_dir: Path) -> list[Path]:
    """Everything that is named as a checkpoint, by number."""
    return sorted((path for path in output_dir.glob("checkpoint-*") if step_of(path) >= 0), key=step_of)


def _read_own(path: Path) -> CheckpointFacts:
    """read_complete of a checkpoint-N, which must be of step N: a copy under another number is not what a run wrote."""
    facts = read_complete(path)
    if facts.step != step_of(path):
        raise ValueError(
            f"{path}: {MARKER} is of step {facts.step}, not {step_of(path)}. Give the directory its own name back."
        )
    return facts


def _set_aside(path: Path) -> None:
    """Another program's directory stands where a checkpoint goes: it keeps its content under the next free name."""
    aside = _renamed(path, "other")
    print(f"{path} is not of drive-vlm ({MARKER} is missing): it is now {aside.name}", file=sys.stderr, flush=True)


def _renamed(path: Path, word: str) -> Path:
    """`path` under the next free name NAME.WORD-I."""
    names = (path.with_name(f"{path.name}.{word}-{i}") for i in itertools.count(1))
    return path.rename(next(name for name in names if not os.path.lexists(name)))


def link_or_copy(files: Iterable[Path], directory: Path) -> None:
    """Hard-link `files` into `directory`; copy where the file system has no links."""
    for file in files:
        try:
            os.link(file, directory / file.name)
        except OSError:
            shutil.copy2(file, directory / file.name)


def cut_metrics(path: Path, step: int) -> None:
    """Drop the lines of metrics.jsonl after `step`: the resumed run will write them again."""
    if path.is_file():
        lines = read_lines(path, "not a line of metrics", "Remove the line to resume.", with_step)
        write_lines(path, [row for _, row in lines if row["step"] <= step])


def with_step(row: Any) -> dict[str, Any]:
    """A line of metrics.jsonl or samples.jsonl. Raises ValueError for one without a step."""
    if not isinstance(row, dict) or not isinstance(row.get("step"), (int, float)):
        raise ValueError('no "step"')
    return row


def _layout(deepspeed: bool, stage: int) -> str:
    return f"under DeepSpeed ZeRO-{stage}" if deepspeed else "without DeepSpeed"


def flush(path: Path) -> None:
    """Bring a file, or the entries of a directory, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()


def _size(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
