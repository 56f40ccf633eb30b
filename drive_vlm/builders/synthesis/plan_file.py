"""A plan file: the steps of a synthesis, and the command of each; every command can be run alone.

    out: runs/synthetic
    data: [data/frames]
    image_root: data
    servers:
      teacher: {base_url: "http://localhost:8000/v1", model: some-vlm}
    steps:
      detect: {model: IDEA-Research/grounding-dino-base, threshold: 0.3}
      caption: {server: teacher}
      gate: {}

1. `read_plan` checks the file: its keys, and that each step and server is known.
2. `commands` makes the words of each step: the plan's flags, the file of the step before, its own file.
3. `identity_of` is what decides a step: its words and what they name. A step with the same identity and the same file is finished.

The pictures' steps form a line: each reads the file of the one before it in the plan. `database` and `knowledge` are made from
other files, and `retrieve` and `describe` are given what they wrote.
"""

import dataclasses
import os
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drive_vlm.config import nearest
from drive_vlm.store.cache import cache_key, file_key, read_json
from drive_vlm.store.fingerprint import content_hash, model_fingerprint
from drive_vlm.store.shards import parse_shard, shard_path

_KEYS = ("out", "data", "image_root", "servers", "steps")
# Flags that the plan's own keys decide.
_OWNED = ("data", "out", "shard", "merge", "limit", "json", "estimate", "preview", "max_cost", "round")


# What a step writes itself does not decide it.
_WRITTEN = ("--out", "--cache", "--json", "--judge_cache")


@dataclass(frozen=True)
class StepKind:
    """What the plan knows of a step.

    Attributes:
        output: the file or folder that it writes below the plan's folder.
        line: it reads the file of the step before and writes a line for each picture, in shards where asked.
        given: flag -> step whose output is that flag's value, where both are in the plan.
        paid: it may ask servers, and takes --max_cost.
    """

    output: str
    line: bool = True
    given: Mapping[str, str] = field(default_factory=dict)
    paid: bool = False


STEPS: dict[str, StepKind] = {
    "database": StepKind("database", line=False),
    "knowledge": StepKind("knowledge.sqlite", line=False),
    "truth": StepKind("truth.jsonl"),
    "detect": StepKind("detect.jsonl"),
    "segment": StepKind("segment.jsonl"),
    "embed": StepKind("embed.jsonl"),
    "retrieve": StepKind("retrieve.jsonl", given={"database": "database"}),
    "describe": StepKind("describe.jsonl", given={"knowledge": "knowledge"}),
    "caption": StepKind("caption.jsonl", paid=True),
    "refine": StepKind("refine.jsonl", paid=True),
    "questions": StepKind("questions.jsonl", paid=True),
    "ask": StepKind("ask.jsonl", paid=True),
    # It compares all rows with each other: it reads the line of steps whole.
    "gate": StepKind("gate", line=False, paid=True),
}


@dataclass(frozen=True)
class Plan:
    """A checked plan file. `steps`: name -> flags, in the order of STEPS; `pictures`: the words of --data of the first step."""

    path: Path
    out: Path
    pictures: tuple[str, ...]
    image_root: str | None
    steps: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Command:
    """One step as a command: `python TOOL WORDS`, run in the project's folder. `inputs`: files that it reads; `output`: what it writes."""

    step: str
    tool: str
    words: tuple[str, ...]
    inputs: tuple[Path, ...]
    output: Path


def read_plan(path: Path, out: Path | None = None) -> Plan:
    """Read a YAML or JSON plan. Raises ValueError, naming the file and the key, for anything it does not know."""
    content = _parse(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a plan is a mapping with the keys {', '.join(_KEYS)}")
    _known(path, "", content, _KEYS)
    steps = _mapping(path, "steps", content.get("steps"))
    servers = _mapping(path, "servers", content.get("servers") or {})
    _known(path, "steps: ", steps, tuple(STEPS))
    if not steps:
        raise ValueError(f"{path}: steps: the plan has none. There are: {', '.join(STEPS)}")
    folder = out or content.get("out")
    if not folder:
        raise ValueError(f"{path}: out is missing: the folder that the steps write to (or give --out)")
    data = content.get("data") or []
    found = {name: _flags(path, name, steps[name], servers) for name in STEPS if name in steps}
    words = [data] if isinstance(data, str) else list(data)
    return Plan(path, Path(folder), tuple(map(str, words)), content.get("image_root"), found)


def with_flags(plan: Plan, words: Sequence[str]) -> Plan:
    """The plan with STEP.FLAG=VALUE words in place of its own values. Raises ValueError for a word of another form or an unknown step."""
    steps = {name: dict(flags) for name, flags in plan.steps.items()}
    for word in words:
        place, equals, value = word.partition("=")
        step, dot, flag = place.partition(".")
        if not (equals and dot and flag) or step not in steps:
            raise ValueError(f"--set {word}: write STEP.FLAG=VALUE with a step of the plan: {', '.join(steps)}")
        if flag in _OWNED:
            raise ValueError(f"--set {word}: {flag} is decided by the command line of the plan itself")
        steps[step][flag] = {"true": True, "false": False}.get(value, value)
    return dataclasses.replace(plan, steps=steps)


def _parse(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"{path}: no such plan file")
    if path.suffix == ".json":
        return read_json(path)
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error


def _mapping(path: Path, name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{path}: {name} must be a mapping, got {type(value).__name__}")
    return value


def _known(path: Path, place: str, content: Mapping[str, Any], names: Sequence[str]) -> None:
    if unknown := [str(name) for name in content if name not in names]:
        raise ValueError(
            f"{path}: {place}{unknown[0]} is not known.{nearest(unknown[0], names)} There are: {', '.join(names)}"
        )


def _flags(path: Path, step: str, given: Any, servers: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of a step, those of its server first. Raises ValueError for a server that is not there and for flags of the plan's own."""
    flags = dict(_mapping(path, f"steps.{step}", {} if given is None else given))
    if (server := flags.pop("server", None)) is not None:
        if server not in servers:
            raise ValueError(
                f"{path}: steps.{step}.server: {server!r} is none of servers: {', '.join(servers) or '(there are none)'}"
            )
        flags = {**_mapping(path, f"servers.{server}", servers[server]), **flags}
    own_data = ("data",) if step in ("database", "knowledge") else ()
    if owned := [name for name in flags if name in _OWNED and name not in own_data]:
        raise ValueError(
            f"{path}: steps.{step}.{owned[0]} is decided by the plan itself and its command line; take it out"
        )
    return flags


def chosen_steps(plan: Plan, words: str | None) -> list[str]:
    """The steps of "A..B", "A..", "..B", "A,B" or "A"; all of the plan without words. A step of a range that the plan lacks is left out.

    Raises ValueError for a name that is no step, a range that goes backwards, and a named step that the plan lacks.
    """
    there, names = list(plan.steps), list(STEPS)
    if words is None:
        return there
    for name in words.replace("..", ",").split(","):
        if name and name not in STEPS:
            raise ValueError(
                f"--steps {words}: {name!r} is no step.{nearest(name, names)} There are: {', '.join(names)}"
            )
    if ".." in words:
        first, last = words.split("..", 1)
        low, high = (names.index(name) if name else end for name, end in ((first, 0), (last, len(names) - 1)))
        if low > high:
            raise ValueError(f"--steps {words}: {first} comes after {last}")
        found = [name for name in names[low : high + 1] if name in there]
    else:
        found = [name for name in names if name in words.split(",")]
        if missing := [name for name in found if name not in there]:
            raise ValueError(f"--steps {words}: {plan.path} has no step {missing[0]}")
    if not found:
        raise ValueError(f"--steps {words}: {plan.path} has none of these steps; it has {', '.join(there)}")
    return found


def commands(
    plan: Plan,
    steps: Sequence[str],
    *,
    frozen: Path | None = None,
    names: Mapping[str, str] | None = None,
    shard: str | None = None,
    limit: int | None = None,
    shared: Path | None = None,
) -> list[Command]:
    """The command of each of `steps`.

    `frozen`: folder in which the steps before `steps` have run. `names` stand for {model}, {round} in the plan's values. With `shard`
    the first step takes that part of its input, and the later ones go on with it. `limit`: the first pictures only; what is not made
    of pictures, data base and knowledge, is then in the folder `shared`, for the whole run too.
    Raises ValueError for a shard of a step that has none, and for a first step without pictures.
    """
    if shard is not None and parse_shard(shard) == (0, 1):
        shard = None
    line = line_of(plan)
    found: list[Command] = []
    for step in steps:
        kind, output = STEPS[step], _folder(plan, step, steps, None, shared) / STEPS[step].output
        words: list[str] = []
        inputs: list[Path] = []
        if shard and not kind.line:
            raise ValueError(f"--shard {shard}: {step} is not made in shards. Run it alone: --steps {step}")
        cut = False
        if step in line:
            before = line[line.index(step) - 1] if line.index(step) else None
            inputs, more, cut = _input(plan, before, steps, frozen, shard)
            words += ["--data", *map(str, inputs), *more]
            if before is None and limit is not None:
                words += ["--limit", str(limit)]
        if shard and cut:
            words += ["--out", str(output), "--shard", shard]
        if shard:
            output = shard_path(output, parse_shard(shard))
        if not cut:
            words += ["--out", str(output)]
        for flag, source in kind.given.items():
            if source in plan.steps and flag not in plan.steps[step]:
                place = _folder(plan, source, steps, frozen, shared) / STEPS[source].output
                words += [f"--{flag}", str(place)]
                inputs.append(place)
        words += _words(plan, step, names or {})
        if step == "gate" and "round" in (names or {}):
            words += ["--round", (names or {})["round"]]
        found.append(Command(step, f"tools/synth_{step}.py", tuple(words), tuple(inputs), output))
    return found


def line_of(plan: Plan) -> list[str]:
    """The steps that read one after the other what the one before has written."""
    return [name for name in plan.steps if STEPS[name].line or name == "gate"]


def waits_for(plan: Plan, step: str, steps: Sequence[str]) -> list[str]:
    """Which of `steps` must have ended before `step` can begin."""
    line = line_of(plan)
    before = line[line.index(step) - 1 : line.index(step)] if step in line and line.index(step) else []
    return [name for name in (*before, *STEPS[step].given.values()) if name in steps]


def _folder(plan: Plan, step: str, steps: Sequence[str], frozen: Path | None, shared: Path | None = None) -> Path:
    if shared is not None and step not in line_of(plan):
        return shared
    return plan.out if frozen is None or step in steps else frozen


def _input(
    plan: Plan, before: str | None, steps: Sequence[str], frozen: Path | None, shard: str | None
) -> tuple[list[Path], list[str], bool]:
    """(what a step of the line reads, more words, whether it takes its shard of that). Where the step before has been made in shards, and
    is not there as a whole, the shard reads that shard."""
    if before is None:
        if not plan.pictures:
            raise ValueError(f"{plan.path}: data is missing: rows, or folders of pictures, for the first step")
        more = ["--image_root", plan.image_root] if plan.image_root else []
        return [Path(word) for word in plan.pictures], more, shard is not None
    path = _folder(plan, before, steps, frozen) / STEPS[before].output
    if shard is None:
        return [path], [], False
    whole = before not in steps and (path.exists() or (frozen is not None))
    return [path if whole else shard_path(path, parse_shard(shard))], [], whole


def _words(plan: Plan, step: str, names: Mapping[str, str]) -> list[str]:
    """--flag value words of a step. Raises ValueError for a {name} that nobody gave, and for a value that no flag can take."""
    words: list[str] = []
    for flag, value in plan.steps[step].items():
        place = f"{plan.path}: steps.{step}.{flag}"
        if value is False or value is None:
            continue
        words.append(f"--{flag}")
        if value is True:
            continue
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict | list):
                raise ValueError(f"{place}: a flag takes a text, a number, true, or a list of them")
            words.append(_filled(str(item), names, place))
    return words


def _filled(text: str, names: Mapping[str, str], place: str) -> str:
    asked = (
        {name for _, name, _, _ in string.Formatter().parse(text) if name in ("model", "round")}
        if "{" in text
        else set()
    )
    for name in sorted(asked):
        if name not in names:
            raise ValueError(f"{place}: {{{name}}} needs --{name}")
        text = text.replace(f"{{{name}}}", names[name])
    return text


def identity_of(command: Command) -> str:
    """Hash of a command and of what its words name: files by content, models by fingerprint, other folders by their files' sizes and
    times. Raises ValueError for an input that is not there."""
    for path in command.inputs:
        if not path.exists():
            raise ValueError(f"{command.step}: its input {path} is not there. Run the step before it first")
    pairs = zip(("", *command.words), command.words, strict=False)
    return cache_key(
        command.tool, list(command.words), [_identity(word) for flag, word in pairs if flag not in _WRITTEN]
    )


def _identity(word: str) -> Any:
    path = Path(word)
    if word.startswith("-") or not word or not path.exists():
        return None
    if path.is_file():
        return content_hash(path)
    if (path / "config.json").is_file():
        return {key: value for key, value in model_fingerprint(word).items() if key != "name"}
    return cache_key(sorted(file_key(Path(folder, name)) for folder, _, names in os.walk(path) for name in names))


def output_identity(path: Path) -> str | None:
    """Hash of a step's file or folder; None where it is not there."""
    if path.is_dir():
        return cache_key(
            {str(file.relative_to(path)): content_hash(file) for file in sorted(path.rglob("*")) if file.is_file()}
        )
    return content_hash(path) if path.is_file() else None
