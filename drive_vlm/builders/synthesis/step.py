"""The engine of a step: a file of lines by key that a killed run goes on with, in shards and on ranks.

    {"key": SHA-256 of everything that decided the line, "image": path below the image root, "group": scene or video or null,
     ... the fields of the input's line, ... the step's fields,
     "dropped": {step: {reason: count}}, "tokens": {step: {kind: count}}, "cost": {step: US dollars}}

1. `run_step` works on the pictures whose key is not in OUT or in a rank's part of it, and appends each line as it is made.
2. Ranks take every n-th missing picture; the main one joins their parts into OUT, in the order of the input.
3. OUT.settings.json refuses other settings, OUT.audit.json counts over all lines.
4. `merge_steps` joins the files of --shard I/N.

    def run(args):
        step = Step("detect", {"threshold": args.threshold}, {"detector": model_fingerprint(args.model)}, ("size", "boxes"))
        if args.merge:
            return merge_steps(step, args.merge, Path(args.out))
        return run_step(step, args, lambda: make)        # make: list of Picture -> Made or BadRow of each, in order

`Step.counts` says what to count of a line beside what it dropped.
"""

import dataclasses
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from drive_vlm.builders.synthesis.pictures import Picture, read_pictures
from drive_vlm.builders.synthesis.settings import (
    StepSettings,
    audit_path,
    identity,
    models_of,
    read_settings,
    settings_path,
    write_settings,
)
from drive_vlm.config import CommandParser, output_file
from drive_vlm.data.jsonl import JsonlFile
from drive_vlm.data.samples import BadRow
from drive_vlm.launch.stop import until_stopped
from drive_vlm.launch.topology import read_topology
from drive_vlm.sampling.process_group import gather, join_ranks, leave_ranks, sole_writer_of_ranks, wait_for_ranks
from drive_vlm.store.cache import write_json
from drive_vlm.store.forms import read_object
from drive_vlm.store.keyed_lines import LineWriter, cut_torn_line, write_lines
from drive_vlm.store.lock import sole_writer
from drive_vlm.store.shards import parse_shard, shard_of, shard_path


@dataclasses.dataclass
class Made:
    """What a step makes of one picture.

    Attributes:
        fields: the step's fields of the line.
        dropped: what was left out, by reason.
        tokens: what servers or models counted, such as {"prompt": 800, "completion": 120}.
        cost: US dollars.
    """

    fields: dict[str, Any]
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    tokens: dict[str, int] = dataclasses.field(default_factory=dict)
    cost: float = 0.0


Make = Callable[[Sequence[Picture]], Iterable[Made | BadRow]]


@dataclasses.dataclass(frozen=True)
class Step:
    """What a step is: its name, what decides its lines, and the fields that it may add.

    Attributes:
        models: role -> fingerprint of the models that this step uses.
        counts: numbers of a line that the audit sums, such as {"boxes": 3}.
        pixels: whether the step looks at the picture. One that does not runs where the pictures are not: the key of its input's line
            stands for their bytes.
        store: writes what is kept beside the lines of OUT, such as vectors, and gives the lines to write.
    """

    name: str
    settings: dict[str, Any]
    models: dict[str, Any]
    fields: tuple[str, ...]
    counts: Callable[[dict[str, Any]], dict[str, int]] = lambda line: {}
    pixels: bool = True
    store: Callable[[Path, Sequence["Place"]], Iterator[dict[str, Any]]] | None = None


def step_flags(parser: CommandParser, batch_size: int, need_out: bool = True) -> None:
    """The flags that every step has. `need_out`: whether the parser asks for --out."""
    add, flag = parser.add_argument, parser.flag
    add("--data", nargs="+", default=[], help="rows (.jsonl), folders of pictures, or the file of an earlier step")
    add("--out", required=need_out, type=output_file, help="the step's lines, JSONL; finished ones are kept")
    add(
        "--image_root",
        help="folder that picture paths start from (default: the rows' folder; a step file knows its own)",
    )
    flag(
        "--group_by_folder",
        False,
        "pictures of folders: those in one folder are of one scene, and splits do not cut it",
    )
    flag("--batch_size", batch_size, "pictures that are worked on at a time")
    add("--limit", type=int, help="make the lines of the first N pictures only: a preview")
    add(
        "--shard",
        help="I/N: the I-th of N equal runs of pictures (from 0), into a file of its own, out.shard-02-of-08.jsonl",
    )
    add("--merge", nargs="+", default=[], metavar="SHARD", help="join these files into --out; nothing else is done")
    flag("--on_bad_row", ("error", "skip"), "a picture that cannot be used: stop, or leave it out and count it")
    add("--json", help="write the audit here as well")


def run_step(step: Step, args: Any, open_make: Callable[[], Make]) -> dict[str, Any] | None:
    """Bring --out up to date; the audit, None on other ranks. `open_make` loads the step's model, only where something is missing.

    `args` holds the flags of `step_flags`. Raises ValueError.
    """
    if not args.data:
        raise ValueError("--data is needed: rows, folders of pictures, or the file of an earlier step.")
    bad: list[BadRow] = []

    def note_bad(error: BadRow) -> None:
        if args.on_bad_row == "error":
            raise error
        bad.append(error)

    pictures, root = read_pictures(args.data, args.image_root, note_bad, args.group_by_folder)
    shard = parse_shard(args.shard)
    out = shard_path(Path(args.out), shard) if args.shard else Path(args.out)
    if any(Path(entry).resolve() == out.resolve() for entry in args.data):
        raise ValueError(f"--out {out} is a file of --data. Each step writes a file of its own.")
    pictures = shard_of(pictures, shard)
    now = StepSettings(step.name, step.settings, models_of(args.data) | step.models, str(Path(root).resolve()))
    join_ranks()
    with sole_writer_of_ranks(out):
        run = _Run(step, now, out, pictures, note_bad)
        audit = run.go(open_make, args.batch_size, args.limit, bad)
        leave_ranks()
    return audit


class _Run:
    """One run of a step over the pictures of a shard."""

    def __init__(
        self, step: Step, now: StepSettings, out: Path, pictures: list[Picture], note_bad: Callable[[BadRow], None]
    ) -> None:
        self.step, self.now, self.out, self.note_bad = step, now, out, note_bad
        self.names = {picture.image for picture in pictures}
        self.keys: dict[str, str] = {}
        self.pictures: list[Picture] = []
        models = {role: identity(model) for role, model in sorted(now.models.items())}
        for picture in pictures:
            try:
                self.keys[picture.image] = picture.key(step.name, step.settings, models, pixels=step.pixels)
                self.pictures.append(picture)
            except BadRow as error:
                note_bad(error)

    def go(self, open_make: Callable[[], Make], batch_size: int, limit: int | None, bad: list[BadRow]) -> Any:
        """Make what is missing, join, count; the audit on the main rank."""
        topology = read_topology()
        # Every rank has the same list before there are new parts.
        wait_for_ranks()
        if topology.is_main:
            for path in [self.out, *parts_of(self.out)]:
                cut_torn_line(path)
        wait_for_ranks()
        known = finished_lines([self.out, *parts_of(self.out)])
        then = read_settings(self.out) if known else None
        now = self.now.check(then, self.out) if then else self.now
        before = {place.image for place in known.values()}
        self._check_named(before)
        todo = [picture for picture in self.pictures[:limit] if self.keys[picture.image] not in known]
        again = sum(picture.image in before for picture in todo)
        # Every rank has read what is finished before anybody writes.
        wait_for_ranks()
        if topology.is_main:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            write_settings(self.out, now)
            kept = sum(key in known for key in self.keys.values())
            words = f"; {again:,} are made again, since their inputs have changed" if again else ""
            print(f"{self.step.name}: {len(self.pictures):,} pictures, {kept:,} finished before{words}", flush=True)
        began = time.monotonic()
        if mine := todo[topology.rank :: topology.world_size]:
            self._make(mine, open_make(), batch_size)
        facts = gather([error.facts() for error in bad])
        seconds = max(gather(time.monotonic() - began))
        if not topology.is_main:
            return None
        rows = [fact for part in facts for fact in part]
        return self._join({"made_again": again, "seconds": round(seconds, 3)}, len(known), rows)

    def _check_named(self, before: set[str]) -> None:
        """Raises ValueError for finished lines of pictures that --data does not name: they would be lost."""
        if lost := sorted(before - self.names):
            raise ValueError(
                f"{self.out} holds lines of {len(lost):,} pictures that --data does not name (first {lost[0]!r}). Give another "
                "--out, or take these lines out of it."
            )

    def _make(self, mine: list[Picture], make: Make, batch_size: int) -> None:
        """Append a line for each picture to this rank's part, as they come."""
        from rich.progress import Progress

        topology = read_topology()
        blocks = [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
        part = self.out.with_name(f"{self.out.name}.part{topology.rank}")
        # Not rich's track(): its generator would be closed whenever the collector finds it, and join a thread that may wait for a lock
        # which this one holds.
        with LineWriter(part) as file, Progress(disable=not topology.is_main) as progress:
            task = progress.add_task(self.step.name, total=len(mine))
            for block in until_stopped(blocks):
                for picture, result in zip(block, make(block), strict=True):
                    if isinstance(result, BadRow):
                        self.note_bad(result)
                    else:
                        file.append(self._line(picture, result))
                    progress.advance(task)

    def _line(self, picture: Picture, made: Made) -> dict[str, Any]:
        unknown = made.fields.keys() - set(self.step.fields)
        assert not unknown, f"{self.step.name} writes {unknown}, which it does not name"
        line: dict[str, Any] = {"key": self.keys[picture.image], "image": picture.image, "group": picture.group}
        line |= {name: value for name, value in picture.line.items() if name not in line} | made.fields
        for name, value in (("dropped", made.dropped), ("tokens", made.tokens), ("cost", made.cost)):
            # What a line says of this step already is of another run of it, which has made the input.
            by_step = {step: known for step, known in line.pop(name, {}).items() if step != self.step.name}
            if value:
                by_step[self.step.name] = value
            if by_step:
                line[name] = by_step
        return line

    def _join(self, made: dict[str, Any], kept: int, bad: list[dict[str, str]]) -> dict[str, Any]:
        """Write OUT from itself and the parts, which are removed, and count."""
        parts = parts_of(self.out)
        known = finished_lines([self.out, *parts])
        places = [known[self.keys[p.image]] for p in self.pictures if self.keys[p.image] in known]
        audit = write_step(self.step, self.now, self.out, places) | made
        for path in parts_of(self.out):
            path.unlink()
        audit |= {"pictures": len(self.names), "made": len(known) - kept}
        audit["bad_rows"] = _bad_rows(bad)
        write_json(audit_path(self.out), audit)
        return audit


def _bad_rows(rows: Sequence[dict[str, str]]) -> dict[str, Any]:
    """Of an audit: each bad row once, and counts by reason."""
    rows = list({tuple(row.values()): row for row in rows}.values())
    return {"total": len(rows), "by_reason": dict(Counter(row["reason"] for row in rows)), "rows": rows}


@dataclasses.dataclass(frozen=True)
class Place:
    """A finished line: its picture, its file, its place there."""

    image: str
    file: JsonlFile
    number: int

    @property
    def line(self) -> dict[str, Any]:
        return self.file[self.number]


def finished_lines(paths: Sequence[Path]) -> dict[str, Place]:
    """Where the line of each key stands; of two with one key that of the later file. Raises ValueError for a line without a key."""
    found: dict[str, Place] = {}
    for path in paths:
        if not path.is_file() or not path.stat().st_size:
            continue
        rows = JsonlFile(path)
        for i in range(len(rows)):
            line = rows[i]
            fits = isinstance(line, dict) and isinstance(line.get("key"), str) and isinstance(line.get("image"), str)
            if not fits:
                raise ValueError(f"{rows.where(i)}: not a line of a step. Give another --out, or remove the file.")
            found[line["key"]] = Place(line["image"], rows, i)
    return found


def parts_of(out: Path) -> list[Path]:
    """What ranks have finished, of this run or of one that was killed."""
    if not out.parent.is_dir():
        return []
    return sorted(path for path in out.parent.iterdir() if re.fullmatch(re.escape(out.name) + r"\.part\d+", path.name))


def write_step(step: Step, now: StepSettings, out: Path, places: Sequence[Place]) -> dict[str, Any]:
    """Write OUT of these lines, whole or not at all; counts over all of them."""
    lines = step.store(out, places) if step.store is not None else (place.line for place in places)
    total: dict[str, Any] = {"lines": 0, "dropped": {}, "tokens": {}, "cost": 0.0, "counts": {}}

    def rows() -> Iterator[dict[str, Any]]:
        for line in lines:
            total["lines"] += 1
            for name in ("dropped", "tokens"):
                _add(total[name], line.get(name, {}).get(step.name, {}))
            total["cost"] += line.get("cost", {}).get(step.name, 0.0)
            _add(total["counts"], step.counts(line))
            yield line

    write_lines(out, rows())
    return {"step": step.name, "models": now.models, **total}


def _add(total: dict[str, int], more: dict[str, int]) -> None:
    for name, count in more.items():
        total[name] = total.get(name, 0) + count


def merge_steps(step: Step, shards: Sequence[str], out: Path) -> dict[str, Any]:
    """Join the files of --shard I/N into `out`, in the order of shards, and their audits. Raises ValueError for files of other settings,
    of another step than `step`, for a shard that is missing, and for a picture that two of them hold."""
    paths = in_order([Path(shard) for shard in shards])
    settings = [read_settings(path) for path in paths]
    places: list[Place] = []
    first: dict[str, Place] = {}
    with sole_writer(out):
        then = read_settings(out) if out.is_file() else None
        for path, made in zip(paths, settings, strict=True):
            if made is None or made.step != step.name:
                raise ValueError(f"{path}: not a file of the step {step.name} ({settings_path(path)} does not say so).")
            if settings[0] is not None:
                made.check(settings[0], paths[0])
            for place in finished_lines([path]).values():
                if first.setdefault(place.image, place) is not place:
                    other = first[place.image].file.path
                    raise ValueError(f"{place.image!r} is in {other} and in {path}. Give the shards of one run.")
                places.append(place)
        assert settings[0] is not None
        if then is not None:
            settings[0].check(then, out)
        write_settings(out, settings[0])
        audit = write_step(step, settings[0], out, places)
        for path in parts_of(out):
            path.unlink()
        audits = [_audit_of(path) for path in paths]
        # A row that names no picture is bad in every shard.
        rows = [row for other in audits for row in other.get("bad_rows", {}).get("rows", [])]
        audit["bad_rows"] = _bad_rows(rows)
        audit |= {name: sum(other.get(name, 0) for other in audits) for name in ("pictures", "made", "seconds")}
        write_json(audit_path(out), audit)
    return audit


def _audit_of(path: Path) -> dict[str, Any]:
    file = audit_path(path)
    return read_object(file) if file.is_file() else {}


def in_order(paths: Sequence[Path]) -> list[Path]:
    """The shards by their numbers. Raises ValueError for one that is not there, and where one of N is missing."""
    numbers: dict[int, Path] = {}
    counts = set()
    for path in paths:
        match = re.search(r"\.shard-(\d+)-of-(\d+)\.", path.name)
        if not match or not path.is_file():
            problem = "is not there" if match else "is not called as --shard I/N calls files"
            raise ValueError(f"--merge {path}: {problem}. Give all files of one run, such as out.shard-*-of-08.jsonl.")
        numbers[int(match[1])] = path
        counts.add(int(match[2]))
    count = max(counts)
    if len(counts) > 1 or (missing := sorted(set(range(count)) - numbers.keys())):
        problem = (
            f"shards of {sorted(counts)} parts"
            if len(counts) > 1
            else f"{len(missing)} of {count} shards are missing (first {missing[0]})"
        )
        raise ValueError(f"--merge: {problem}. Give all files of one run.")
    return [numbers[i] for i in range(count)]
