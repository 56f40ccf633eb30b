"""`python -m drive_vlm sft FLAGS` with a clock in it: bench_launch.py starts it to see what our parts of a step cost.

    python tools/bench/bench_launch_probe.py FLAGS

Each rank writes probe-RANK.json into --output_dir: microseconds of each part in a step (median), seconds of each step, and of
what happens once (manifest, saves). Functions are wrapped in this process only.
"""

import functools
import json
import os
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from drive_vlm.config import CommandParser

# Steps that are not counted.
WARM_UP = 2


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

        Medians as well as means: other load on the machine falls on few steps, and there it is long.
        """
        steps = [after - before for before, after in zip(self.steps, self.steps[1:], strict=False)][WARM_UP:]
        parts = {}
        for name, spent in self.parts.items():
            counted = [1e6 * seconds for step, seconds in spent.items() if step > WARM_UP] or [0.0]
            parts[name] = {"wall_us": statistics.median(counted), "mean_wall_us": statistics.mean(counted)}
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
        trainer.flops = clock.counted(trainer.flops, "throughput and FLOPs")
        trainer.add_callback(Steps())
        training(trainer, *rest)

    # A stage has no hook for this, and needs none.
    setattr(run, "run_training", timed)  # noqa: B010 - its type is narrower


def main() -> None:
    parser = CommandParser(prog="python tools/bench/bench_launch_probe.py", description=__doc__)
    parser.add_argument("--output_dir", type=Path, required=True, help="as in sft")
    args, words = parser.parse_known_args()
    from drive_vlm import stages

    clock = Clock()
    install(clock)
    stages.run("sft", [*words, "--output_dir", str(args.output_dir)])
    rank = os.environ.get("RANK", "0")
    (args.output_dir / f"probe-{rank}.json").write_text(json.dumps(clock.result()) + "\n")


if __name__ == "__main__":
    main()
