"""How a step runs in which a model writes (caption, refine, questions): estimate, preview, limit of cost, then the engine of step.py.

A TextStep says what is wanted of a picture and what a line is made of; everything else is here. A stopped run goes on with the same
command: finished lines stand in OUT, replies of unfinished ones in the cache, so nothing is paid twice and the lines are the same.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from drive_vlm.builders.synthesis.cost import (
    LETTERS_A_TOKEN,
    Budget,
    CostReached,
    Estimate,
    PerPicture,
    estimate,
    measured,
)
from drive_vlm.builders.synthesis.pictures import Picture, read_pictures
from drive_vlm.builders.synthesis.step import (
    Made,
    Step,
    finished_lines,
    merge_steps,
    parts_of,
    run_step,
    step_flags,
)
from drive_vlm.builders.synthesis.writers import Outcome, Wanted, ask_all, model_of, open_writer, totals, writer_flags
from drive_vlm.config import CommandParser
from drive_vlm.data.jsonl import JsonlFile
from drive_vlm.data.samples import BadRow
from drive_vlm.launch import stop
from drive_vlm.launch.topology import read_topology
from drive_vlm.store.cache import write_json
from drive_vlm.store.forms import made as made_of
from drive_vlm.store.forms import read_object
from drive_vlm.store.keyed_lines import check_same
from drive_vlm.store.shards import parse_shard, shard_of, shard_path

# Pictures whose prompts are counted for an estimate without a preview.
_COUNTED = 100


class TextStep(Protocol):
    """A step in which a model writes.

    Attributes:
        name: of the step; role: of its model ("captioner", "teacher").
        fields: what its lines may hold, first the one that no line of its input holds.
        settings: what decides its lines besides pictures, model and the flags of the writer.
        pixels: whether the model is sent pictures.
    """

    name: str
    role: str
    settings: dict[str, Any]
    pixels: bool

    @property
    def fields(self) -> tuple[str, ...]: ...

    def wanted(self, picture: Picture) -> dict[str, Wanted]:
        """What is asked about a picture, by names that are its own; nothing for one that needs no words. Raises BadRow."""

    def made(self, picture: Picture, found: dict[str, Outcome]) -> Made:
        """The line's fields; `found` has an outcome for each name of `wanted`."""

    def counts(self, line: dict[str, Any]) -> dict[str, int]:
        """What the audit counts of a line."""

    def shown(self, line: dict[str, Any]) -> str:
        """A line for a person who looks at a preview."""


def paid_flags(parser: CommandParser, who: str, temperature: float, max_tokens: int) -> None:
    """The flags of step and writer."""
    step_flags(parser, batch_size=64)
    writer_flags(parser, who, temperature, max_tokens)


def run_paid(text: TextStep, args: Any) -> dict[str, Any] | None:
    """The step's audit with "preview" (texts of lines) after --preview, {"estimate"} after --estimate; None on ranks other than the
    main one. Raises ValueError."""
    sampling = {name: getattr(args, name) for name in ("attempts", "seed", "temperature", "max_tokens")}
    if args.backend == "openai":
        sampling["schema_mode"] = args.schema_mode
    fields = (*text.fields, "calls")
    step = Step(
        text.name, text.settings | sampling, {text.role: model_of(args)}, fields, counting(text), pixels=text.pixels
    )
    if args.merge:
        return merge_steps(step, args.merge, Path(args.out))
    out = Path(args.out)
    if args.shard:
        out = shard_path(out, parse_shard(args.shard))
    if args.estimate:
        return {"estimate": dataclasses.asdict(plan(text, step, args, out))}
    if args.max_cost is not None and read_topology().world_size > 1:
        raise ValueError(
            f"--max_cost {args.max_cost:g} is counted in one process: leave torchrun out, --workers asks in parallel"
        )
    before = 0.0 if args.max_cost is None else spent_before(out, text.name)
    budget = Budget(args.max_cost, args.price_in, args.price_out, args.picture_tokens, before)
    if args.preview:
        args.limit = min(args.preview, args.limit or args.preview)
    try:
        audit = run_step(step, args, lambda: maker(text, args, budget))
    except CostReached as error:
        kept = len(finished_lines([out, *parts_of(out)]))
        raise ValueError(f"{error}. {kept:,} lines are finished in {out} and its parts") from error
    return audit | {"preview": preview(text, step, args, out, audit)} if audit and args.preview else audit


def counting(text: TextStep) -> Callable[[dict[str, Any]], dict[str, int]]:
    return lambda line: {"calls": line["calls"].get(text.name, 0)} | text.counts(line)


def maker(text: TextStep, args: Any, budget: Budget) -> Callable[[Sequence[Picture]], Iterator[Made | BadRow]]:
    """What run_step calls with a block of pictures. All that the block wants is asked together; where that ends early, the lines before
    the first unfinished one are given out first."""
    writer = open_writer(args, budget)

    def make(pictures: Sequence[Picture]) -> Iterator[Made | BadRow]:
        parts = [wanted_or_bad(text, picture) for picture in pictures]
        wanted = {
            _name(picture, name): item
            for picture, part in zip(pictures, parts, strict=True)
            if not isinstance(part, BadRow)
            for name, item in part.items()
        }
        found: dict[str, Outcome] = {}
        failed: BaseException | None = None
        try:
            ask_all(writer, wanted, args.attempts, found)
        except (ValueError, stop.StopRequested) as error:
            failed = error
        for picture, part in zip(pictures, parts, strict=True):
            if isinstance(part, BadRow):
                yield part
                continue
            own = {name: found.get(_name(picture, name)) for name in part}
            if failed is not None and any(item is None or item.open for item in own.values()):
                raise failed
            outcomes = {name: item for name, item in own.items() if item is not None}
            assert outcomes.keys() == part.keys(), "a writer answers all or fails"
            yield next((item.bad for item in outcomes.values() if item.bad), None) or made(
                text, picture, outcomes, args
            )
        if failed is not None:
            raise failed

    return make


def wanted_or_bad(text: TextStep, picture: Picture) -> dict[str, Wanted] | BadRow:
    """Raises ValueError for a line that the step has made already: fields of the steps behind it would go on to speak of old texts."""
    field = text.fields[0]
    if field in picture.line:
        raise ValueError(f"{picture.where}: has a {field} already; give --data the file of a step before {text.name}")
    try:
        return text.wanted(picture)
    except BadRow as error:
        return error


def made(text: TextStep, picture: Picture, outcomes: dict[str, Outcome], args: Any) -> Made:
    """The step's line with what it took."""
    result = text.made(picture, outcomes)
    tokens, cost = totals(list(outcomes.values()), args)
    calls = {"calls": picture.line.get("calls", {}) | {text.name: tokens.pop("calls")}}
    return dataclasses.replace(result, fields=result.fields | calls, tokens=tokens, cost=cost)


def _name(picture: Picture, name: str) -> str:
    return f"{picture.image} {name}"


def spent_before(out: Path, step: str) -> float:
    """What the finished lines of OUT and its parts have cost."""
    places = finished_lines([out, *parts_of(out)]).values()
    return sum(place.line.get("cost", {}).get(step, 0.0) for place in places)


# Preview and estimate ---------------------------------------------------------------------------------------------------------


def preview_path(out: Path) -> Path:
    return out.with_name(f"{out.name}.preview.json")


def preview(text: TextStep, step: Step, args: Any, out: Path, audit: dict[str, Any]) -> list[str]:
    """The first lines as texts; what they took goes to OUT.preview.json, for --estimate."""
    rows = JsonlFile(out)
    lines = [rows[i] for i in range(min(args.preview, len(rows)))]
    if lines:
        timed = args.backend == "hf" and audit["made"] == len(lines)
        per = measured(text.name, lines, audit["seconds"] if timed else None)
        write_json(
            preview_path(out),
            {"settings": step.settings, "models": step.models, "per_picture": dataclasses.asdict(per)},
        )
    return [f"{line['image']}: {text.shown(line)}" for line in lines]


def plan(text: TextStep, step: Step, args: Any, out: Path) -> Estimate:
    """--estimate. Raises ValueError for a preview of other settings."""

    def note_bad(error: BadRow) -> None:
        if args.on_bad_row == "error":
            raise error

    pictures, _ = read_pictures(args.data, args.image_root, note_bad, args.group_by_folder)
    pictures = shard_of(pictures, parse_shard(args.shard))[: args.limit]
    path = preview_path(out)
    if path.is_file():
        way_out = f"Run --preview again, or remove {path}"
        before = read_object(path, way_out)
        check_same(f"{path}: the preview had other settings", before.get("settings", {}), step.settings, way_out)
        per = made_of(before.get("per_picture"), PerPicture, path, "per_picture", way_out)
    else:
        per = of_prompts(text, pictures, args)
    if args.gpu_seconds is not None:
        per = dataclasses.replace(per, seconds=args.gpu_seconds)
    return estimate(text.name, len(pictures), per, args.price_in, args.price_out)


def of_prompts(text: TextStep, pictures: Sequence[Picture], args: Any) -> PerPicture:
    """What the prompts of the first hundred pictures say of the tokens, each request answered at the first attempt."""
    calls, letters, images, counted = 0, 0, 0, 0
    for picture in itertools.islice(pictures, _COUNTED):
        part = wanted_or_bad(text, picture)
        if isinstance(part, BadRow):
            continue
        counted += 1
        calls += len(part)
        images += sum(len(item.request.images) for item in part.values())
        letters += sum(len(words) for item in part.values() for _, words in item.request.turns)
    if not counted:
        raise ValueError(
            "--estimate: no picture could be read among the first hundred; look at --data and --image_root"
        )
    prompt: float | None = letters / LETTERS_A_TOKEN
    basis = f"the prompts of {counted:,} pictures ({LETTERS_A_TOKEN} letters a token), --max_tokens for every reply, one attempt each"
    if images and args.picture_tokens is None:
        prompt, basis = None, f"{basis}; a picture's tokens are not known: give --picture_tokens, or run --preview 10"
    elif images:
        prompt = letters / LETTERS_A_TOKEN + images * args.picture_tokens
    return PerPicture(
        calls=calls / counted,
        prompt_tokens=None if prompt is None else prompt / counted,
        reply_tokens=calls * args.max_tokens / counted,
        basis=basis,
    )
