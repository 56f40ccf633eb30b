"""A GRPO run that was stopped and resumed: the same prompts, completions, rewards and KL as one that was not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

CURVES = ("loss", "reward", "kl", "completions/mean_length", "entropy")
TWO_ITERATIONS = ("--num_iterations", 2, "--global_batch_size", 8)


def samples(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "samples.jsonl").read_text().split("\n") if line]


def assert_same_walk(stopped: Any, whole: Any, steps: int) -> None:
    assert [row["step"] for row in stopped.metrics if "loss" in row] == list(range(1, steps + 1))
    for name in CURVES:  # what belongs to a generation batch is logged at its first step
        ours, theirs = ([row[name] for row in run.metrics if name in row] for run in (stopped, whole))
        assert ours == pytest.approx(theirs, abs=1e-4), name
    ours, theirs = samples(stopped.out), samples(whole.out)
    assert [(s["step"], s["id"], s["completion"]) for s in ours] == [
        (s["step"], s["id"], s["completion"]) for s in theirs
    ]


@pytest.mark.parametrize(
    ("flags", "launcher"),
    [
        pytest.param(("--max_steps", 6), "python", id="plain"),
        pytest.param(("--max_steps", 6, "--deepspeed", "zero2", "--lora_rank", 4), "torchrun", id="zero2-lora"),
    ],
)
def test_resumed_equals_uninterrupted(grpo: Callable, fresh: Callable, flags: tuple, launcher: str) -> None:
    """Two iterations over each generation batch: boundaries are the even steps, and --save_steps 3 is rounded to them.

    The run stops at step 5, where only the checkpoint of step 4 can be: it goes on from there.
    """
    flags = (*TWO_ITERATIONS, *flags)
    whole = grpo(fresh("whole"), *flags, launcher=launcher)
    out = fresh("stopped")
    saving = ("--save_strategy", "steps", "--save_steps", 3, "--resume", "auto")
    grpo(out, *flags, "--max_steps", 5, *saving, launcher=launcher)
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-4"]
    stopped = grpo(out, *flags, *saving, launcher=launcher)
    assert_same_walk(stopped, whole, 6)


def test_order_does_not_depend_on_the_number_of_processes(grpo: Callable, fresh: Callable) -> None:
    """Two ranks under ZeRO-2, then one that resumes: the prompts of the whole run are those of one process."""
    one = grpo(fresh("one"), "--max_steps", 6)
    out = fresh("changing")
    shards = ("--deepspeed", "zero2", "--save_strategy", "steps", "--save_steps", 3, "--resume", "auto")
    grpo(out, *shards, "--max_steps", 3, launcher="torchrun")
    grpo(out, *shards, "--max_steps", 6)
    assert [(s["step"], s["id"]) for s in samples(out)] == [(s["step"], s["id"]) for s in samples(one.out)]
    refused = grpo(out, "--deepspeed", "zero2", "--num_generations", 8, "--resume", "auto", code=2)
    assert "num_generations 4, it is 8 now" in refused.text
    refused = grpo(out, "--deepspeed", "zero2", "--model", out / "checkpoint-3", "--resume", "auto", code=2)
    assert "reference" in refused.text and "start anew" in refused.text


def test_a_stop_request_waits_for_the_end_of_a_generation_batch(grpo: Callable, fresh: Callable) -> None:
    """The stop file is there from the beginning: the run ends at step 2, the first boundary, and not at step 1."""
    out = fresh("asked")
    (out / "stop").write_text("test")
    run = grpo(out, *TWO_ITERATIONS)
    assert json.loads((out / "status.json").read_text())["state"] == "saved"
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-2"]
    assert len(run.curve()) == 2
