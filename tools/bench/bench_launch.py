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
from functools import partial
from pathlib import Path
from typing import Any

import measure

from drive_vlm.config import CommandParser
from drive_vlm.report.tables import print_table

EXAMPLES = """
python tools/bench/bench_launch.py --json runs/bench_launch.json
python tools/bench/bench_launch.py --parts start --processes 2 --repeats 7 --deepspeed none
"""
PARTS = ("start", "save", "overhead")
# Steps that the clock does not count.
WARM_UP = 2
IMAGE: dict[str, Any] = {"image_size": 112, "patch_size": 14, "vocab_size": 4000, "max_tiles": 1}
NUMBERS = {
    "repeats": (5, "runs of each side of start and resume, in turns; the median counts"),
    "rows": (2000, "training rows, one picture each"),
    "batch_size": (4, "rows a step and process"),
    "threads": (1, "torch threads of a process"),
    "hidden_size": (128, "width of the small model, of start and overhead"),
    "layers": (2, "layers of its vision tower and of its language model"),
    "save_hidden_size": (512, "width of the larger model, of save and resume"),
    "save_layers": (12, "layers of its language model; its vision tower has half as many"),
    "saves": (3, "saves of the larger model"),
    "steps": (400, "steps of the overhead run with the small model"),
    "large_steps": (40, "steps of the overhead run with the larger model"),
}
NAMES = {
    "cold": "ours, rows measured again",
    "warm": "ours, row lengths cached",
    "peer": "bare torchrun script",
    "ours": "ours",
}


def make_parser() -> CommandParser:
    parser = measure.bench_parser("bench_launch", __doc__, EXAMPLES, NUMBERS)
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure (default: all)")
    add("--processes", nargs="+", type=int, default=[1, 2], help="numbers of processes (default: 1 2)")
    add("--deepspeed", default="zero2", help="memory layout of both sides, or none for DDP (default: zero2)")
    return parser


def check(args: Any) -> None:
    """Raises ValueError for settings that measure nothing."""
    measure.at_least(args, **dict.fromkeys(NUMBERS, 1) | {"processes": 1, "rows": 6, "steps": 4, "large_steps": 4})
    if 0 < gpu_count() < max(args.processes):
        raise ValueError(f"--processes {max(args.processes)}: this machine offers {gpu_count()} GPUs")
    if args.deepspeed != "none":
        from drive_vlm.launch.deepspeed import load_deepspeed_config

        load_deepspeed_config(args.deepspeed, cpu=not gpu_count())


def gpu_count() -> int:
    """GPUs that both sides would use; 0 runs them on the CPU."""
    from drive_vlm.launch.manifest import gpus

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return len(gpus()) if visible is None else len([word for word in visible.split(",") if word and word != "-1"])


def prepare(args: Any, work: Path) -> None:
    """Rows with one picture each, and the two models."""
    from drive_vlm.models.tiny.tiny import build_tiny_internvl, corpus_of

    data = measure.build_synthetic(work, scenes=max(4, -(-args.rows // 6)), size=112)
    rows = measure.json_lines(data / "train.jsonl")[: args.rows]
    measure.write_json_lines(data / "rows.jsonl", rows)
    for name, width, layers, tower in (
        ("small", args.hidden_size, args.layers, args.layers),
        ("large", args.save_hidden_size, args.save_layers, max(1, args.save_layers // 2)),
    ):
        sizes: dict[str, Any] = {"hidden_size": width, "text_layers": layers, "vision_layers": tower}
        build_tiny_internvl(work / name, corpus_of(rows), **IMAGE, **sizes)


# ---- the two sides


class Sides:
    """Starts both sides in a work folder that `prepare` has filled."""

    def __init__(self, args: Any, work: Path) -> None:
        self.args, self.work, self.cpu = args, work, not gpu_count()
        self.deepspeed = None if args.deepspeed == "none" else args.deepspeed
        self.recipe = work / "bench_recipe.sh"
        self.recipe.write_text(
            f'#!/usr/bin/env bash\nset -euo pipefail\nsource "{measure.TOOLS.parent}/recipes/_launch.sh"\nlaunch sft "$@"\n'
        )
        self.env = measure.environment(work, args.threads) | ({"DS_ACCELERATOR": "cpu"} if self.cpu else {})

    def arguments(self, steps: int, out: Path, **more: Any) -> dict[str, Any]:
        """TrainingArguments of both sides."""
        own = {"output_dir": str(out), "max_steps": steps, "per_device_train_batch_size": self.args.batch_size}
        logs = {"logging_steps": 1, "report_to": "tensorboard", "gradient_checkpointing": False}
        return measure.TRAINING | own | logs | {"learning_rate": 1e-4} | more

    def _our_words(self, model: str, processes: int, arguments: dict[str, Any], resume: Path | None) -> list[str]:
        ours = {
            "model": self.work / model,
            "data": self.work / "data" / "rows.jsonl",
            "freeze": "vision_tower",
            "packing": False,
            "global_batch_size": processes * self.args.batch_size,
            **({"deepspeed": self.deepspeed} if self.deepspeed else {}),
            **({"resume": resume} if resume else {}),
        }
        return measure.flags(ours | arguments)

    def ours(
        self, model: str, processes: int, arguments: dict[str, Any], cache: str = "warm", resume: Path | None = None
    ) -> dict[str, float]:
        words = ["bash", self.recipe, *self._our_words(model, processes, arguments, resume)]
        env = {"NPROC_PER_NODE": str(processes), "DRIVE_VLM_CACHE": str(self.work / cache)}
        return self._start(words, Path(arguments["output_dir"]), env)

    def probe(self, model: str, processes: int, arguments: dict[str, Any]) -> list[dict[str, Any]]:
        """What the probe of each rank saw."""
        out = Path(arguments["output_dir"])
        words = [*measure.torchrun(processes), __file__, "--child", out]
        self._start([*words, *self._our_words(model, processes, arguments, None)], out, {})
        return [json.loads((out / f"probe-{rank}.json").read_text()) for rank in range(processes)]

    def peer(
        self, model: str, processes: int, arguments: dict[str, Any], resume: Path | None = None
    ) -> dict[str, float]:
        from drive_vlm.launch.deepspeed import load_deepspeed_config

        layout = load_deepspeed_config(self.deepspeed, self.cpu) if self.deepspeed else None
        arguments = arguments | {
            "use_cpu": self.cpu,
            "deepspeed": layout,
            "ddp_backend": "gloo" if self.cpu and not layout else None,
            "ddp_find_unused_parameters": False,
            "dataloader_pin_memory": not self.cpu,
            "remove_unused_columns": False,
            "save_total_limit": 2,
        }
        settings = {
            "model": str(self.work / model),
            "data": str(self.work / "data" / "rows.jsonl"),
            "freeze": "vision_tower",
            "resume": str(resume) if resume else None,
            "arguments": arguments,
        }
        out = Path(arguments["output_dir"])
        file = out.with_suffix(".json")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings))
        env = {"TENSORBOARD_LOGGING_DIR": str(out / "tensorboard")}
        return self._start([*measure.torchrun(processes), measure.BENCH / "bench_launch_peer.py", file], out, env)

    def _start(self, words: list[Any], out: Path, env: dict[str, str]) -> dict[str, float]:
        """Seconds until the first log, and to the end."""
        out.mkdir(parents=True)
        found = measure.start(words, out.with_suffix(".log"), self.env | env, out / "metrics.jsonl")
        return {"seconds": found["seconds_to_first"], "seconds_to_the_end": found["seconds"]}


# ---- the clock in our side: each rank writes probe-RANK.json, microseconds of each part and seconds of each step


class Clock:
    """Wall seconds of the wrapped functions in each step, and the beginning of each step."""

    def __init__(self) -> None:
        self.inside = False
        self.parts: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
        self.once: dict[str, list[float]] = defaultdict(list)
        self.steps: list[float] = []

    def counted(self, function: Any, part: str) -> Any:
        """`function`, counted as `part`; a part that another one calls belongs to that one."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.inside:
                return function(*args, **kwargs)
            self.inside, started = True, time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.parts[part][len(self.steps)] += time.perf_counter() - started
                self.inside = False

        return call

    def part(self, owner: Any, name: str, part: str) -> None:
        setattr(owner, name, self.counted(getattr(owner, name), part))

    def event(self, owner: Any, name: str, event: str) -> None:
        """Keep the seconds of each call of `owner.name`."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.once[event].append(time.perf_counter() - started)

        setattr(owner, name, call)

    def result(self) -> dict[str, Any]:
        """Seconds between the beginnings of two steps belong to the first of them; the last step has no end.

        Medians: other load on the machine falls on few steps, and there it is long.
        """
        steps = [after - before for before, after in zip(self.steps, self.steps[1:], strict=False)][WARM_UP:]
        parts = {
            name: {"wall_us": statistics.median([1e6 * s for step, s in spent.items() if step > WARM_UP] or [0.0])}
            for name, spent in self.parts.items()
        }
        return {"parts": parts, "steps": steps, "once": dict(self.once)}


def install(clock: Clock) -> None:
    """Wrap what surrounds a step."""
    from transformers.trainer_callback import TrainerCallback

    from drive_vlm.launch import checkpoint, manifest
    from drive_vlm.stages.engine import faults, heartbeat, run
    from drive_vlm.stages.engine.throughput import Throughput
    from drive_vlm.stages.sft_trainer import SFTTrainer

    clock.part(SFTTrainer, "take_ids", "audit of rows")
    clock.part(Throughput, "add", "throughput and FLOPs")
    clock.part(heartbeat.Heartbeat, "beat", "heartbeats")
    clock.part(heartbeat.Heartbeats, "on_pre_optimizer_step", "heartbeats")
    clock.part(heartbeat.Heartbeats, "on_step_end", "heartbeats")
    clock.part(faults.StepLosses, "add", "stop agreement and broken losses")
    clock.part(faults.StopOnRequest, "on_step_end", "stop agreement and broken losses")
    clock.event(manifest, "start_manifest", "start_manifest")
    clock.event(manifest, "complete_manifest", "complete_manifest")
    clock.event(SFTTrainer, "save_audit", "save_audit")
    clock.event(SFTTrainer, "_save_checkpoint", "save")
    clock.event(checkpoint, "complete", "flush_and_rename")
    training = run.run_training

    class Steps(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock.steps.append(time.perf_counter())

    def timed(trainer: Any, *rest: Any) -> None:
        trainer.parts.flops = clock.counted(trainer.parts.flops, "throughput and FLOPs")
        trainer.add_callback(Steps())
        training(trainer, *rest)

    # A stage has no hook for this, and needs none.
    setattr(run, "run_training", timed)  # noqa: B010 - its type is narrower


def probe(words: list[str]) -> None:
    """`python -m drive_vlm sft` with a clock in it; WORDS are its --output_dir and its other flags."""
    from drive_vlm import stages

    clock = Clock()
    install(clock)
    stages.run("sft", words[1:])
    path = Path(words[0], f"probe-{os.environ.get('RANK', '0')}.json")
    path.write_text(json.dumps(clock.result()) + "\n")


# ---- what is measured


def measure_start(sides: Sides, processes: int) -> dict[str, Any]:
    """The run numbered 0 of each side warms the disk cache and does not count."""

    def side(name: str, repeat: int) -> dict[str, float]:
        out = sides.work / f"start{processes}" / f"{name}{repeat}"
        arguments = sides.arguments(1, out)
        if name == "peer":
            run = sides.peer("small", processes, arguments)
        else:
            run = sides.ours("small", processes, arguments, "warm" if name == "warm" else f"cold{processes}-{repeat}")
        shutil.rmtree(out)
        return run

    runs = {name: partial(side, name) for name in ("cold", "warm", "peer")}
    return summary(measure.in_turns(runs, sides.args.repeats, warm_up=1))


def measure_save(sides: Sides, processes: int) -> dict[str, Any]:
    """Saves of the larger model after each step, then runs that go on from the last."""
    count, root = sides.args.saves, sides.work / f"save{processes}"
    saving = {"save_strategy": "steps", "save_steps": 1}
    clock = sides.probe("large", processes, sides.arguments(count, root / "ours", **saving))[0]["once"]
    sides.peer("large", processes, sides.arguments(count, root / "peer", **saving))
    seconds = {
        "ours": clock["save"],
        "peer": [line["seconds"] for line in measure.json_lines(root / "peer" / "saves.jsonl")],
    }
    last = {side: root / side / f"checkpoint-{count}" for side in seconds}
    save: dict[str, Any] = {
        side: {"seconds": statistics.median(found), "runs": found, "bytes_on_disk": bytes_of(last[side])}
        for side, found in seconds.items()
    }
    save["ours"]["of_it_flush_and_rename"] = statistics.median(clock["flush_and_rename"])
    save["ratio"] = save["ours"]["seconds"] / save["peer"]["seconds"]

    def ours(repeat: int) -> dict[str, float]:
        arguments = sides.arguments(count + 1, root / f"resume-ours{repeat}")
        return sides.ours("large", processes, arguments, resume=last["ours"])

    def peer(repeat: int) -> dict[str, float]:
        return sides.peer("large", processes, sides.arguments(count + 1, root / f"resume-peer{repeat}"), last["peer"])

    resume = summary(measure.in_turns({"ours": ours, "peer": peer}, sides.args.repeats, warm_up=1))
    shutil.rmtree(root)
    return {"save": save, "resume": resume}


def bytes_of(checkpoint: Path) -> dict[str, int]:
    """Of a checkpoint: all of it, and what it adds to the disk (a link to weights that are there already adds nothing)."""
    stats = [path.stat() for path in checkpoint.rglob("*") if path.is_file()]
    return {"whole": sum(s.st_size for s in stats), "added": sum(s.st_size for s in stats if s.st_nlink == 1)}


def measure_overhead(sides: Sides, model: str, processes: int) -> dict[str, Any]:
    """Median microseconds of each part in a step (mean over ranks), and the share of the median step."""
    steps = sides.args.steps if model == "small" else sides.args.large_steps
    out = sides.work / f"overhead-{model}{processes}"
    ranks = sides.probe(model, processes, sides.arguments(steps, out, logging_steps=10))
    shutil.rmtree(out)
    parts = {
        name: {"wall_us": statistics.mean(rank["parts"][name]["wall_us"] for rank in ranks)}
        for name in sorted(ranks[0]["parts"])
    }
    step = statistics.median(seconds for rank in ranks for seconds in rank["steps"])
    total = sum(part["wall_us"] for part in parts.values())
    return {
        "parts": parts,
        "steps": len(ranks[0]["steps"]),
        "once": ranks[0]["once"],
        "total_us": total,
        "step_ms": step * 1e3,
        "share": total / 1e6 / step,
    }


def summary(runs: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians, least and most of each side, its runs, and the ratio of its median to the peer's."""
    result: dict[str, Any] = {}
    for side, found in runs.items():
        seconds = [run["seconds"] for run in found]
        result[side] = measure.medians(found) | {"spread": [min(seconds), max(seconds)], "runs": found}
    result["ratio"] = {
        side: {"seconds": result[side]["seconds"] / result["peer"]["seconds"]} for side in runs if side != "peer"
    }
    return result


def run(args: Any, work: Path) -> dict[str, Any]:
    """Run all parts."""
    sides = Sides(args, work)
    result: dict[str, Any] = {name: {} for name in ("start", "save", "resume", "overhead")}
    for processes in args.processes:
        if "start" in args.parts:
            result["start"][str(processes)] = measure_start(sides, processes)
        if "save" in args.parts:
            for name, found in measure_save(sides, processes).items():
                result[name][str(processes)] = found
        if "overhead" in args.parts:
            models = ("small", "large")
            result["overhead"][str(processes)] = {m: measure_overhead(sides, m, processes) for m in models}
    return result | {"parameters": {name: measure.parameters(work / name) for name in ("small", "large")}}


# ---- what is shown


def show(result: dict[str, Any], args: Any) -> None:
    for title, part in (("start to the first step", "start"), ("resume to the first step", "resume")):
        for processes, sides in result[part].items():
            rows = []
            for side in sides.keys() - {"ratio"}:
                low, high = sides[side]["spread"]
                ratio = "" if side == "peer" else f"{sides['ratio'][side]['seconds']:.2f}"
                rows.append([NAMES[side], f"{sides[side]['seconds']:.2f}", f"{low:.2f} - {high:.2f}", ratio])
            print_table(f"{title}, {processes} process(es)", ("", "seconds", "least to most", "ratio"), sorted(rows))
    for processes, save in result["save"].items():
        for side in ("ours", "peer"):
            size = save[side]["bytes_on_disk"]
            print(
                f"save, {processes} process(es), {NAMES[side]}: {save[side]['seconds']:.2f} s; "
                f"{size['whole'] / 2**20:.0f} MiB, {size['added'] / 2**20:.0f} MiB of them new on the disk"
            )
        print(f"  ratio {save['ratio']:.2f}; flush and rename {save['ours']['of_it_flush_and_rename']:.2f} s of ours")
    for processes, models in result["overhead"].items():
        for model, found in models.items():
            rows = [
                [name, f"{part['wall_us']:.0f}", f"{part['wall_us'] / 1e3 / found['step_ms']:.3%}"]
                for name, part in found["parts"].items()
            ]
            rows.append(["all", f"{found['total_us']:.0f}", f"{found['share']:.3%}"])
            title = f"our part of a step of {found['step_ms']:.2f} ms, {processes} process(es), {model} model"
            print_table(title, ("", "us a step", "share of a step"), rows)
    sizes = ", ".join(f"{name} {count / 1e6:.1f} M" for name, count in result["parameters"].items())
    load = result["load_average"]
    print(f"parameters: {sizes}; load average {load['before'][0]:.1f} before, {load['after'][0]:.1f} after")


if __name__ == "__main__":
    measure.run_bench(make_parser(), run, show, prepare, check, child=probe)
