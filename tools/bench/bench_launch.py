"""What our launcher costs: start of a run, saves and resumes next to a bare torchrun script, and our share of each step.

Start: seconds from the command to the log of the first optimizer step. Ours is a recipe's `launch sft` (recipes/_launch.sh)
with manifest, audit, watchdog and row lengths measured again (cold) or found in the cache (warm); the peer is
bench_launch_peer.py, a transformers Trainer without our code, by torchrun. Same rows, model, flags, DeepSpeed layout and
threads, all sides in turns after one run each that does not count; both write the log that is waited for.
Save and resume: a larger random model; the seconds of the Trainer's save on the main rank (ours flushes to the disk, the
peer's leaves that to the system), and the start of a run that goes on from a checkpoint.
Overhead: our parts of a step by a clock around each, in a process of its own, as a share of the median step.
"""

import functools
import json
import os
import shutil
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import measure

from drive_vlm.report.tables import print_table

EXAMPLES = """
python tools/bench/bench_launch.py --json runs/bench_launch.json
python tools/bench/bench_launch.py --parts start --processes 2 --repeats 7
"""
# Steps that the clock does not count.
WARM_UP = 2
IMAGE: dict[str, Any] = {"image_size": 112, "patch_size": 14, "vocab_size": 4000}
NUMBERS = {
    "repeats": (5, 1, "runs of each side of start and resume, in turns; the median counts"),
    "rows": (2000, 6, "training rows, one picture each"),
    "batch_size": (4, 1, "rows a step and process"),
    "threads": (1, 1, "torch threads of a process"),
    "hidden_size": (128, 1, "width of the small model, of start and overhead"),
    "layers": (2, 1, "layers of its vision tower and of its language model"),
    "save_hidden_size": (512, 1, "width of the larger model, of save, resume and overhead"),
    "save_layers": (12, 1, "layers of its language model; its vision tower has half as many"),
    "saves": (3, 1, "saves of the larger model"),
    "steps": (400, 4, "steps of the overhead run with the small model"),
    "large_steps": (40, 4, "steps of the overhead run with the larger model"),
}
SIDES = {
    "cold": "ours, rows measured again",
    "warm": "ours, row lengths cached",
    "ours": "ours",
    "peer": "bare torchrun script",
}


def make_parser() -> Any:
    parser = measure.bench_parser("bench_launch", __doc__, EXAMPLES, NUMBERS)
    add = parser.add_argument
    add("--parts", nargs="+", choices=tuple(PARTS), default=list(PARTS), help="what to measure (default: all)")
    parser.flag("--processes", [1, 2], "numbers of processes", least=1)
    add("--deepspeed", default="zero2", help="memory layout of both sides")
    return parser


def gpu_count() -> int:
    """GPUs that both sides would use; 0 runs them on the CPU."""
    from drive_vlm.launch.manifest import gpus

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return len(gpus()) if visible is None else len([word for word in visible.split(",") if word and word != "-1"])


def prepare(args: Any, work: Path) -> None:
    """Rows with one picture each, the two models, and a recipe."""
    data = measure.build_synthetic(work, scenes=max(4, -(-args.rows // 6)), size=112)
    rows = measure.write_json_lines(data / "rows.jsonl", measure.json_lines(data / "train.jsonl")[: args.rows])
    for name, width, layers, tower in (
        ("small", args.hidden_size, args.layers, args.layers),
        ("large", args.save_hidden_size, args.save_layers, max(1, args.save_layers // 2)),
    ):
        measure.build_tiny(work, name, rows, hidden_size=width, text_layers=layers, vision_layers=tower, **IMAGE)
    launch = measure.TOOLS.parent / "recipes" / "_launch.sh"
    (work / "recipe.sh").write_text(f'set -euo pipefail\nsource "{launch}"\nlaunch sft "$@"\n')


# ---- the two sides


class Sides:
    """Starts both sides in a work folder that `prepare` has filled."""

    def __init__(self, args: Any, work: Path, processes: int) -> None:
        from drive_vlm.launch.deepspeed import load_deepspeed_config

        self.args, self.work, self.processes, self.cpu = args, work, processes, not gpu_count()
        self.layout = load_deepspeed_config(args.deepspeed, self.cpu)
        self.env = measure.environment(work, args.threads) | ({"DS_ACCELERATOR": "cpu"} if self.cpu else {})

    def arguments(self, steps: int, out: Path, more: dict[str, Any]) -> dict[str, Any]:
        """TrainingArguments of both sides."""
        own = {"output_dir": str(out), "max_steps": steps, "per_device_train_batch_size": self.args.batch_size}
        logs = {"logging_steps": 1, "report_to": "tensorboard", "gradient_checkpointing": False}
        return measure.TRAINING | own | logs | {"learning_rate": 1e-4} | more

    def start(
        self, side: str, model: str, steps: int, out: Path, cache: str = "warm", resume: Path | None = None, **more: Any
    ) -> dict[str, float]:
        """Seconds until the first log, and to the end, of a run of "peer", "probe" (ours with the clock) or ours.

        `cache` names the folder that holds the lengths of the rows; `more` are further TrainingArguments.
        """
        out.mkdir(parents=True)
        arguments = self.arguments(steps, out, more)
        ranked = measure.torchrun(self.processes)
        env = {"NPROC_PER_NODE": str(self.processes), "DRIVE_VLM_CACHE": str(self.work / cache)}
        if side == "peer":
            words = [*ranked, measure.BENCH / "bench_launch_peer.py", self._peer_settings(model, arguments, resume)]
            env = {"TENSORBOARD_LOGGING_DIR": str(out / "tensorboard")}
        elif side == "probe":
            words = [*ranked, __file__, "--child", out, *self._our_words(model, arguments, resume)]
        else:
            words = ["bash", self.work / "recipe.sh", *self._our_words(model, arguments, resume)]
        found = measure.start(words, out.with_suffix(".log"), self.env | env, out / "metrics.jsonl")
        return {"seconds": found["seconds_to_first"], "seconds_to_the_end": found["seconds"]}

    def _our_words(self, model: str, arguments: dict[str, Any], resume: Path | None) -> list[str]:
        ours = {
            "model": self.work / model,
            "data": self.work / "data" / "rows.jsonl",
            "freeze": "vision_tower",
            "packing": False,
            "global_batch_size": self.processes * self.args.batch_size,
            "deepspeed": self.args.deepspeed,
            **({"resume": resume} if resume else {}),
        }
        return measure.flags(ours | arguments)

    def _peer_settings(self, model: str, arguments: dict[str, Any], resume: Path | None) -> Path:
        own = {
            "use_cpu": self.cpu,
            "deepspeed": self.layout,
            "dataloader_pin_memory": not self.cpu,
            "remove_unused_columns": False,
            "save_total_limit": 2,
        }
        settings = {
            "model": str(self.work / model),
            "data": str(self.work / "data" / "rows.jsonl"),
            "freeze": "vision_tower",
            "resume": str(resume) if resume else None,
            "arguments": arguments | own,
        }
        file = Path(arguments["output_dir"]).with_suffix(".json")
        file.write_text(json.dumps(settings))
        return file

    def probe(self, model: str, steps: int, out: Path, **more: Any) -> list[dict[str, Any]]:
        """What the clock of each rank saw."""
        self.start("probe", model, steps, out, **more)
        return [json.loads((out / f"probe-{rank}.json").read_text()) for rank in range(self.processes)]


# ---- the clock in our side: each rank writes probe-RANK.json


class Clock:
    """Wall seconds of the wrapped functions in each step, the beginning of each step, and single events."""

    def __init__(self) -> None:
        self.inside = False
        self.parts: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
        self.events: dict[str, list[float]] = defaultdict(list)
        self.steps: list[float] = []

    def part(self, function: Any, name: str) -> Any:
        """`function`, counted as part `name` of its step; a part that another one calls belongs to that one."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.inside:
                return function(*args, **kwargs)
            self.inside, started = True, time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.parts[name][len(self.steps)] += time.perf_counter() - started
                self.inside = False

        return call

    def event(self, function: Any, name: str) -> Any:
        """`function`, the seconds of each call of which are kept."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.events[name].append(time.perf_counter() - started)

        return call

    def result(self) -> dict[str, Any]:
        """Median microseconds of each part in a step, the seconds of the steps, and the events.

        Seconds between the beginnings of two steps belong to the first of them; the last step has no end. Medians: other load
        on the machine falls on few steps, and there it is long.
        """
        steps = [after - before for before, after in zip(self.steps, self.steps[1:], strict=False)][WARM_UP:]
        parts = {
            name: statistics.median([1e6 * s for step, s in spent.items() if step > WARM_UP] or [0.0])
            for name, spent in self.parts.items()
        }
        return {"parts": parts, "steps": steps, "events": dict(self.events)}


def probe(words: list[str]) -> None:
    """`python -m drive_vlm sft` with a clock in it; WORDS are its --output_dir and its other flags."""
    from transformers.trainer_callback import TrainerCallback

    from drive_vlm.launch import checkpoint
    from drive_vlm.stages.engine import faults, heartbeat
    from drive_vlm.stages.engine.throughput import Throughput
    from drive_vlm.stages.sft_trainer import SFTTrainer

    clock = Clock()
    wrapped: list[tuple[Any, Any, str, str]] = [
        (clock.part, SFTTrainer, "take_ids", "audit of rows"),
        (clock.part, Throughput, "add", "throughput and FLOPs"),
        (clock.part, heartbeat.Heartbeat, "beat", "heartbeats"),
        (clock.part, heartbeat.Heartbeats, "on_pre_optimizer_step", "heartbeats"),
        (clock.part, heartbeat.Heartbeats, "on_step_end", "heartbeats"),
        (clock.part, faults.StepLosses, "add", "stop agreement and broken losses"),
        (clock.part, faults.StopOnRequest, "on_step_end", "stop agreement and broken losses"),
        (clock.event, SFTTrainer, "_save_checkpoint", "save"),
        (clock.event, checkpoint, "complete", "flush_and_rename"),
    ]
    for wrap, owner, function, name in wrapped:
        setattr(owner, function, wrap(getattr(owner, function), name))

    class Steps(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock.steps.append(time.perf_counter())

    def timed(trainer: Any) -> None:
        trainer.parts.flops = clock.part(trainer.parts.flops, "throughput and FLOPs")
        trainer.add_callback(Steps())

    measure.run_stage("sft", words[1:], timed)
    path = Path(words[0], f"probe-{os.environ.get('RANK', '0')}.json")
    path.write_text(json.dumps(clock.result()) + "\n")


# ---- what is measured


def measure_start(sides: Sides, root: Path) -> dict[str, Any]:
    """The run numbered 0 of each side warms the disk cache and does not count."""

    def start(side: str, repeat: int) -> dict[str, float]:
        out = root / f"{side}{repeat}"
        found = sides.start(side, "small", 1, out, "warm" if side == "warm" else f"{root.name}-{repeat}")
        shutil.rmtree(out)
        return found

    runs = {side: functools.partial(start, side) for side in ("cold", "warm", "peer")}
    return measure.compare(measure.in_turns(runs, sides.args.repeats, warm_up=1), "peer")


def measure_save(sides: Sides, root: Path) -> dict[str, Any]:
    """Saves of the larger model after each step, then runs that go on from the last."""
    count, saving = sides.args.saves, dict[str, Any](save_strategy="steps", save_steps=1)
    events = sides.probe("large", count, root / "ours", **saving)[0]["events"]
    sides.start("peer", "large", count, root / "peer", **saving)
    runs = {
        "ours": [{"seconds": seconds} for seconds in events["save"]],
        "peer": measure.json_lines(root / "peer" / "saves.jsonl"),
    }
    save = measure.compare(runs, "peer")
    last = {side: root / side / f"checkpoint-{count}" for side in save}
    for side, checkpoint in last.items():
        save[side]["bytes_on_disk"] = bytes_of(checkpoint)
    save["ours"]["of_it_flush_and_rename"] = statistics.median(events["flush_and_rename"])

    def resume(side: str, repeat: int) -> dict[str, float]:
        return sides.start(side, "large", count + 1, root / f"resume-{side}{repeat}", resume=last[side])

    again = {side: functools.partial(resume, side) for side in last}
    resumed = measure.compare(measure.in_turns(again, sides.args.repeats, warm_up=1), "peer")
    shutil.rmtree(root)
    return {"save": save, "resume": resumed}


def bytes_of(checkpoint: Path) -> dict[str, int]:
    """Of a checkpoint: all of it, and what it adds to the disk (a link to weights that are there already adds nothing)."""
    stats = [path.stat() for path in checkpoint.rglob("*") if path.is_file()]
    return {"whole": sum(s.st_size for s in stats), "added": sum(s.st_size for s in stats if s.st_nlink == 1)}


def measure_overhead(sides: Sides, root: Path) -> dict[str, Any]:
    """Of each model: median microseconds of each part in a step (mean over ranks), and the share of the median step."""
    found = {}
    for model, count in (("small", sides.args.steps), ("large", sides.args.large_steps)):
        ranks = sides.probe(model, count, root / model, logging_steps=10)
        parts = {name: statistics.mean(rank["parts"][name] for rank in ranks) for name in sorted(ranks[0]["parts"])}
        step, total = statistics.median(seconds for rank in ranks for seconds in rank["steps"]), sum(parts.values())
        facts = {"steps": len(ranks[0]["steps"]), "step_ms": step * 1e3}
        found[model] = facts | {"parts_us": parts, "total_us": total, "share": total / 1e6 / step}
    shutil.rmtree(root)
    return found


PARTS = {"start": measure_start, "save": measure_save, "overhead": measure_overhead}


def run(args: Any, work: Path) -> dict[str, Any]:
    """{part: {number of processes: what it found}}. Raises ValueError for settings that cannot run."""
    if 0 < gpu_count() < max(args.processes):
        raise ValueError(f"--processes {max(args.processes)}: this machine offers {gpu_count()} GPUs")
    all_sides = [Sides(args, work, processes) for processes in args.processes]
    prepare(args, work)
    result: dict[str, Any] = {
        part: {str(sides.processes): PARTS[part](sides, work / f"{part}{sides.processes}") for sides in all_sides}
        for part in args.parts
    }
    return result | {"parameters": {name: measure.parameters(work / name) for name in ("small", "large")}}


# ---- what is shown


def show(result: dict[str, Any], args: Any) -> None:
    columns = {"seconds": ("seconds", ".2f"), "seconds_to_the_end": ("to the end", ".2f")}
    for processes, sides in result.get("start", {}).items():
        measure.print_sides(f"start to the first step, {processes} process(es)", sides, SIDES, columns)
    for processes, found in result.get("save", {}).items():
        save = found["save"]
        measure.print_sides(f"save, {processes} process(es)", save, SIDES, {"seconds": columns["seconds"]})
        for side in ("ours", "peer"):
            whole, added = (save[side]["bytes_on_disk"][name] / 2**20 for name in ("whole", "added"))
            print(f"{SIDES[side]}: {whole:.0f} MiB, {added:.0f} MiB of them new on the disk")
        print(f"flush and rename: {save['ours']['of_it_flush_and_rename']:.2f} s of ours")
        title = f"resume to the first step, {processes} process(es)"
        measure.print_sides(title, found["resume"], SIDES, columns)
    for processes, models in result.get("overhead", {}).items():
        for model, found in models.items():
            times = found["parts_us"] | {"all": found["total_us"]}
            rows = [[name, f"{us:.0f}", f"{us / 1e3 / found['step_ms']:.3%}"] for name, us in times.items()]
            title = f"our part of a step of {found['step_ms']:.2f} ms, {processes} process(es), {model} model"
            print_table(title, ("", "us a step", "share of a step"), rows)
    sizes = ", ".join(f"{name} {count / 1e6:.1f} M" for name, count in result["parameters"].items())
    load = result["load_average"]
    print(f"parameters: {sizes}; load average {load['before'][0]:.1f} before, {load['after'][0]:.1f} after")


if __name__ == "__main__":
    measure.run_bench(make_parser(), run, show, child=probe)
