"""Synthetic rows from one plan file: detect, segment, embed, retrieve, describe, caption, refine, questions, gate.

A plan (YAML or JSON; drive_vlm/builders/synthesis/plan_file.py, docs/synthesis.md) names the pictures, the servers and the flags of
each step. Every step is the command that --dry_run prints, tools/synth_NAME.py, run one after the other, each in a process of its
own, so that a step leaves no model in the memory of the next one. All flags are checked before the first step begins.

Killed or stopped, the same command goes on: a step whose flags, inputs, models and output are those of its last end is passed over,
and a step that was interrupted keeps its finished lines and its paid replies (OUT/synthesize.json says what is finished).

--preview 10 runs all steps on the first pictures into OUT/preview and prints the rows; --estimate then says what all pictures take,
without asking anyone: calls, tokens, cost, GPU hours and disk of each step, from the preview. --shard I/N does a part of the pictures
(a task of a Slurm array; slurm/synthesize.sh submits the graph), and the same command without --shard joins the parts.
"""

import contextlib
import dataclasses
import importlib.util
import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drive_vlm.config import CommandParser, run_tool

if TYPE_CHECKING:
    from drive_vlm.builders.synthesis.plan_file import Command, Plan

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = """
python tools/synthesize.py --plan plan.yaml --preview 10
python tools/synthesize.py --plan plan.yaml --estimate --pictures 200000
python tools/synthesize.py --plan plan.yaml --max_cost 50
python tools/synthesize.py --plan plan.yaml --steps caption..gate --frozen runs/frozen --out runs/round-1 --model runs/sft --round 1
python tools/synthesize.py --plan plan.yaml --dry_run
"""


def make_parser() -> CommandParser:
    parser = CommandParser(prog="python tools/synthesize.py", description=__doc__, examples=EXAMPLES)
    add, flag = parser.add_argument, parser.flag
    add("--plan", type=Path, required=True, help="YAML or JSON: out, data, image_root, servers, steps")
    add("--out", type=Path, help="folder of the steps' files (default: that of the plan)")
    add("--steps", help="A..B, A.., ..B, A,B or A (default: all of the plan)")
    add("--frozen", type=Path, help="folder in which the steps before --steps have run")
    add(
        "--model",
        help="what {model} in the plan stands for: the model of the round before, or the name it is served under",
    )
    add(
        "--round",
        type=int,
        help="number of the round, which the gate writes into each row; what {round} in the plan stands for",
    )
    add(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="STEP.FLAG=VALUE",
        help="flags in place of those of the plan",
    )
    add("--shard", help="I/N: the I-th of N parts of the pictures, in files of their own")
    add("--preview", type=int, metavar="N", help="all steps on the first N pictures, in OUT/preview; prints the rows")
    flag("--estimate", False, "print what --pictures take, by the preview, and ask nobody")
    add("--pictures", type=int, help="--estimate: how many pictures (default: those of the plan)")
    add(
        "--max_cost",
        type=float,
        help="all steps together: a step ends with one line before a request that may pass this",
    )
    flag("--dry_run", False, "print the command of each step and run nothing")
    flag(
        "--graph",
        False,
        "print step, whether it is made in shards, and the steps that it waits for, for slurm/synthesize.sh",
    )
    add("--json", help="write what became of each step, or the estimate, to this file")
    return parser


def run(args: Any) -> dict[str, Any]:
    """Check everything, then do what the flags ask for. Raises ValueError; ends with the code of a step that fails."""
    from drive_vlm.builders.synthesis.plan_file import chosen_steps, commands, read_plan, waits_for, with_flags

    if args.preview is not None and (args.preview < 1 or args.shard):
        raise ValueError(f"--preview {args.preview}: at least one picture, and no --shard")
    plan = with_flags(read_plan(args.plan, args.out), args.set)
    steps = chosen_steps(plan, args.steps)
    names = {name: str(value) for name in ("model", "round") if (value := getattr(args, name)) is not None}
    shared = plan.out if args.preview else None
    if args.preview:
        plan = dataclasses.replace(plan, out=plan.out / "preview")
    found = commands(plan, steps, frozen=args.frozen, names=names, shard=args.shard, limit=args.preview, shared=shared)
    if args.estimate:
        return {"estimate": estimates(plan, found, args.pictures)}
    if args.dry_run or args.graph:
        return {
            "commands": [plain_command(command) | {"after": waits_for(plan, command.step, steps)} for command in found]
        }
    for command in found:
        check_flags(command)
    plan.out.mkdir(parents=True, exist_ok=True)
    return {"steps": Runner(plan, names, args.max_cost, args.shard).run(found)}


def plain_command(command: "Command") -> dict[str, Any]:
    from drive_vlm.builders.synthesis.plan_file import STEPS

    facts = {"step": command.step, "shards": STEPS[command.step].line, "output": str(command.output)}
    return facts | {"command": shlex.join(["python", command.tool, *command.words])}


def tool_of(command: "Command") -> Any:
    """The module of a step's tool, which is no package. Raises ValueError where this version has none."""
    path = ROOT / command.tool
    if not path.is_file():
        raise ValueError(f"{command.step}: {command.tool} is not there")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Parts of tools are imported by their names.
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def check_flags(command: "Command") -> None:
    """Parse the words as the step will: a wrong flag of the last step must not be found after days. Ends with 2, the step's message."""
    tool_of(command).make_parser().parse_args(command.words)


class Runner:
    """Runs commands one after the other, and keeps what is finished in OUT/synthesize.json (of a shard: its own file)."""

    def __init__(self, plan: "Plan", names: dict[str, str], max_cost: float | None, shard: str | None) -> None:
        from drive_vlm.store.forms import read_object
        from drive_vlm.store.shards import parse_shard, shard_path

        self.plan, self.names, self.max_cost, self.spent = plan, names, max_cost, 0.0
        path = plan.out / "synthesize.json"
        self.path = shard_path(path, parse_shard(shard)) if shard else path
        self.state = read_object(self.path, "Remove it: finished lines are kept.") if self.path.is_file() else {}

    def run(self, commands: Sequence["Command"]) -> dict[str, str]:
        """{step: "finished before" or "done"}."""
        from drive_vlm.builders.synthesis.plan_file import identity_of, output_identity
        from drive_vlm.store.cache import write_json

        said: dict[str, str] = {}
        for command in commands:
            self._join_shards(command)
            now = {"command": identity_of(command)}
            kept = self.state.get(command.step)
            if kept is not None and kept == now | {"output": output_identity(command.output)}:
                said[command.step] = "finished before"
                print(f"== {command.step}: finished before", flush=True)
            else:
                print(f"== {command.step}", flush=True)
                self._call(command, self._limit(command))
                self.state[command.step] = now | {"output": output_identity(command.output)}
                write_json(self.path, self.state)
                said[command.step] = "done"
            self.spent += cost_of(command.output) or 0.0
        return said

    def _limit(self, command: "Command") -> list[str]:
        from drive_vlm.builders.synthesis.plan_file import STEPS

        if self.max_cost is None or not STEPS[command.step].paid:
            return []
        parsed = tool_of(command).make_parser().parse_args(command.words)
        # A local model and a step without a server cost nothing that a price could say.
        if getattr(parsed, "price_in", None) is None or not hasattr(parsed, "max_cost"):
            return []
        if (left := self.max_cost - self.spent) <= 0:
            raise ValueError(
                f"--max_cost {self.max_cost:g}: {self.spent:.6g} is spent before {command.step}. What is paid is kept: a higher limit goes on"
            )
        return ["--max_cost", repr(left)]

    def _join_shards(self, command: "Command") -> None:
        """Join the finished shards of an input that is not there as a whole. Raises ValueError for shards that are missing."""
        from drive_vlm.builders.synthesis.plan_file import STEPS, commands

        for path in command.inputs:
            if path.exists() or not (shards := sorted(path.parent.glob(f"{path.stem}.shard-*-of-*{path.suffix}"))):
                continue
            count = int(shards[0].stem.rsplit("-", 1)[1])
            if len(shards) != count:
                raise ValueError(
                    f"{path}: {len(shards)} of {count} shards are there (first {shards[0].name}). Run the missing ones: --shard I/{count}"
                )
            step = next(name for name in self.plan.steps if STEPS[name].output == path.name)
            # A merge takes the flags of its step, which are in the settings of the shards too.
            (whole,) = commands(self.plan, [step], frozen=path.parent, names=self.names)
            words = [str(path) if word == str(whole.output) else word for word in whole.words]
            print(f"== {step}: joining {count} shards", flush=True)
            self._start([whole.tool, *words, "--merge", *map(str, shards)], step)

    def _call(self, command: "Command", more: Sequence[str]) -> None:
        self._start([command.tool, *command.words, *more], command.step)

    def _start(self, words: Sequence[str], step: str) -> None:
        """Run a command in the folder of the caller; a signal to end is handed on, and the child's own end is waited for."""
        child = subprocess.Popen([sys.executable, str(ROOT / words[0]), *words[1:]])
        with handing_on(child):
            code = child.wait()
        if code:
            print(
                f"synthesize: {step} ended with {code}. What is finished and paid is kept: the same command goes on there.",
                file=sys.stderr,
            )
            sys.exit(code if code > 0 else 128 - code)


@contextlib.contextmanager
def handing_on(child: "subprocess.Popen[bytes]") -> Iterator[None]:
    """SIGTERM, SIGUSR1 and an interrupt go to the child, which ends at its next batch or request."""
    kept: dict[int, Any] = {}
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        kept[number] = signal.signal(number, lambda got, frame: child.send_signal(got))
    try:
        yield
    finally:
        for handled, handler in kept.items():
            signal.signal(handled, handler)


def cost_of(output: Path) -> float | None:
    """US dollars of all lines of a step's file, by its audit."""
    from drive_vlm.store.cache import read_json

    step, gate = output.with_name(f"{output.name}.audit.json"), output / "data_audit.json"
    if step.is_file():
        return read_json(step).get("cost")
    return (read_json(gate).get("spent") or {}).get("cost") if gate.is_file() else None


def estimates(plan: "Plan", found: Sequence["Command"], pictures: int | None) -> list[Any]:
    """An Estimate of each step that works on pictures, from the preview where there is one."""
    from drive_vlm.builders.synthesis.estimate import of_preview
    from drive_vlm.builders.synthesis.plan_file import STEPS

    count = pictures if pictures is not None else picture_count(plan)
    steps = [command for command in found if STEPS[command.step].line or command.step == "gate"]
    return [of_preview(command.step, plan.out / "preview", plan.steps[command.step], count) for command in steps]


def picture_count(plan: "Plan") -> int:
    from drive_vlm.builders.synthesis.pictures import read_pictures
    from drive_vlm.data.samples import BadRow

    def passed_over(error: BadRow) -> None:
        """The step itself counts it, or stops."""

    return len(read_pictures(plan.pictures, plan.image_root, passed_over)[0])


def show(result: dict[str, Any], args: Any) -> None:
    if "estimate" in result:
        from synth_paid import show_estimates

        show_estimates(result["estimate"])
    elif args.graph:
        for item in result["commands"]:
            print(item["step"], "shards" if item["shards"] else "-", ",".join(item["after"]) or "-")
    elif args.dry_run:
        for item in result["commands"]:
            print(item["command"])
    elif args.preview:
        show_rows(args, result)


def show_rows(args: Any, result: dict[str, Any]) -> None:
    """The rows that the preview has made, as a person reads them."""
    from drive_vlm.builders.synthesis.plan_file import STEPS, read_plan
    from drive_vlm.data.jsonl import JsonlFile

    folder = read_plan(args.plan, args.out).out / "preview"
    last = list(result["steps"])[-1]
    path = folder / STEPS[last].output
    path = path / "rows.jsonl" if last == "gate" else path
    if not path.is_file():
        return
    rows = JsonlFile(path)
    print(f"\n{path}: {len(rows):,} rows; the first {min(args.preview, len(rows))}:")
    for i in range(min(args.preview, len(rows))):
        print(shown_row(rows[i]))


def shown_row(row: dict[str, Any]) -> str:
    if "messages" not in row:
        return json.dumps(row, ensure_ascii=False)[:400]
    turns = "\n".join(f"    {turn['role']}: {turn['content']}" for turn in row["messages"])
    return f"  {row['id']} [{row.get('task', '')}] {row.get('image', '')}\n{turns}"


if __name__ == "__main__":
    run_tool(make_parser(), run, show)
