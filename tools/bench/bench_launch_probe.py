"""`python -m drive_vlm sft FLAGS` with a clock in it: bench_launch.py starts it to see what our parts of a step cost.

    python tools/bench/bench_launch_probe.py [--switch_every N] FLAGS

Each rank writes probe-RANK.json into --output_dir: microseconds of each part in a step (median), seconds of what happens once
(manifest, measuring rows, saves). With --switch_every the parts are left out in every other block of N steps: the same run
then also times its steps with them and without. Both happens in this process only, by wrapping functions.
"""

import functools
import json
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from drive_vlm.config import CommandParser

WARM_UP = 2  # steps that are not counted


class Clock:
    """Wall and CPU seconds of the wrapped functions, and the beginning of each step."""

    def __init__(self, switch_every: int) -> None:
        self.switch_every = switch_every
        self.on = True
        self.counts = False
        self.inside = False  # a part that calls another one counts as a whole
        self.parts: dict[str, dict[int, list[float]]] = defaultdict(dict)  # part -> step -> wall and CPU seconds
        self.threads = 0.0  # CPU seconds of the watchdog's own threads
        self.once: dict[str, list[float]] = defaultdict(list)
        self.steps: list[dict[str, Any]] = []

    def begin_step(self, step: int) -> None:
        self.on = not self.switch_every or step // self.switch_every % 2 == 0
        self.counts = len(self.steps) >= WARM_UP
        self.steps.append({"wall": time.perf_counter(), "cpu": time.process_time(), "on": self.on})

    def part(self, owner: Any, name: str, part: str, off: Any = None, switched: bool = True) -> None:
        """Count `owner.name` as `part`, in the main thread; in steps that are off it does nothing and returns `off`."""
        setattr(owner, name, self.counted(getattr(owner, name), part, off, switched))

    def counted(self, function: Any, part: str, off: Any = None, switched: bool = True) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.inside:
                return function(*args, **kwargs)
            if switched and not self.on:
                return off
            self.inside = True
            wall, cpu = time.perf_counter(), time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                if self.counts and self.on:
                    spent = self.parts[part].setdefault(len(self.steps), [0.0, 0.0])
                    spent[1] += time.thread_time() - cpu
                    spent[0] += time.perf_counter() - wall
                self.inside = False

        return call

    def thread(self, owner: Any, name: str) -> None:
        """Count the CPU seconds of `owner.name`, which runs in a thread of its own."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not self.on:
                return None
            started = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                if self.counts:
                    self.threads += time.thread_time() - started

        setattr(owner, name, call)

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
        """Seconds between the beginnings of two steps belong to the first of them; the last step has no end."""
        pairs = list(zip(self.steps, self.steps[1:], strict=False))[WARM_UP:]
        steps = [{k: after[k] - step[k] for k in ("wall", "cpu")} | {"on": step["on"]} for step, after in pairs]
        counted = max(1, sum(step["on"] for step in self.steps[WARM_UP:]))
        parts = {name: _microseconds(list(spent.values())) for name, spent in self.parts.items()}
        parts["watchdog's threads"] = _microseconds([[0.0, self.threads / counted]])
        return {"parts": parts, "steps": steps, "counted": counted, "once": dict(self.once)}


def _microseconds(spent: list[list[float]]) -> dict[str, float]:
    """Medians and mean of the wall and CPU seconds of each step: other load falls on few steps, and there it is long."""
    wall, cpu = zip(*spent, strict=True)
    values = {
        "wall_us": statistics.median(wall),
        "mean_wall_us": statistics.mean(wall),
        "cpu_us": statistics.median(cpu),
    }
    return {name: seconds * 1e6 for name, seconds in values.items()}


def install(clock: Clock) -> None:
    """Wrap what surrounds a step."""
    from transformers.trainer_callback import TrainerCallback

    from drive_vlm.launch import checkpoint, manifest
    from drive_vlm.stages import sft
    from drive_vlm.stages.engine import faults, heartbeat, watchdog
    from drive_vlm.stages.engine.throughput import Throughput
    from drive_vlm.stages.sft_trainer import SFTTrainer

    clock.part(SFTTrainer, "take_ids", "audit of rows", switched=False)  # the model takes no sample ids
    clock.part(Throughput, "add", "throughput and FLOPs")
    clock.part(heartbeat.Heartbeat, "beat", "heartbeats")
    clock.part(heartbeat.Heartbeats, "on_pre_optimizer_step", "heartbeats")
    clock.part(heartbeat.Heartbeats, "on_step_end", "heartbeats")
    clock.part(faults.StepLosses, "add", "stop agreement and broken losses")
    clock.part(faults.StopOnRequest, "on_step_end", "stop agreement and broken losses")
    clock.thread(watchdog.Watchdog, "_turn")
    clock.thread(watchdog.Watchdog, "_ask")
    clock.event(manifest, "start_manifest", "start_manifest")
    clock.event(manifest, "complete_manifest", "complete_manifest")
    clock.event(sft, "measure_rows", "measure_rows")
    clock.event(SFTTrainer, "save_audit", "save_audit")
    clock.event(SFTTrainer, "_save_checkpoint", "save")
    clock.event(checkpoint, "complete", "flush_and_rename")
    build = sft.build_trainer

    class Steps(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock.begin_step(state.global_step)

    def build_trainer(*args: Any) -> Any:
        trainer = build(*args)
        trainer.flops = clock.counted(trainer.flops, "throughput and FLOPs", off=0)
        trainer.add_callback(Steps())
        return trainer

    setattr(sft, "build_trainer", build_trainer)  # noqa: B010 - the type of the wrapped one is narrower


def main() -> None:
    parser = CommandParser(prog="python tools/bench/bench_launch_probe.py", description=__doc__)
    parser.add_argument("--switch_every", type=int, default=0, help="steps of a block with, then without our parts")
    parser.add_argument("--output_dir", type=Path, required=True, help="as in sft")
    args, words = parser.parse_known_args()
    from drive_vlm import stages

    clock = Clock(args.switch_every)
    install(clock)
    stages.run("sft", [*words, "--output_dir", str(args.output_dir)])
    rank = os.environ.get("RANK", "0")
    (args.output_dir / f"probe-{rank}.json").write_text(json.dumps(clock.result()) + "\n")


if __name__ == "__main__":
    main()
