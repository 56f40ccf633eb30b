"""A run that was stopped and resumed must walk the curve of one that was not."""

import json
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.slow

PACKED = ("--packing", "--max_length", 160, "--global_batch_size", 4, "--per_device_train_batch_size", 4)
ZERO2_PACKED = (*PACKED[:-1], 2, "--deepspeed", "zero2")


@pytest.mark.parametrize(
    ("flags", "resumed", "launcher"),
    [
        pytest.param((), ("--dataloader_num_workers", 1), "python", id="plain"),
        pytest.param(PACKED, ZERO2_PACKED, "torchrun", id="packed-zero2"),
    ],
)
def test_resumed_equals_uninterrupted(
    sft: Callable, fresh: Callable, flags: tuple, resumed: tuple, launcher: str
) -> None:
    """Stopped in epoch 0 (step 3) and again in epoch 1 (step 7, 5 steps an epoch): same losses, step by step."""
    whole = sft(fresh("whole"), *flags, "--max_steps", 9)
    out = fresh("stopped")
    for stop in (3, 7, 9):
        save = ("--save_strategy", "steps", "--save_steps", stop)
        stopped = sft(out, *resumed, "--max_steps", stop, *save, "--resume", "auto", launcher=launcher)
    assert [row["step"] for row in stopped.metrics if "loss" in row] == list(range(1, 10))
    assert stopped.curve() == pytest.approx(whole.curve(), abs=1e-4)
    epochs = [row["epoch"] for row in whole.metrics if "loss" in row]
    assert epochs[2] < 1 < epochs[6] < 2
    cursor = json.loads((out / "checkpoint-7" / "data_cursor.json").read_text())
    steps = -(-cursor["num_sequences"] // cursor["global_batch"])
    assert cursor["epoch"] == 1 and cursor["sequences"] == (7 - steps) * cursor["global_batch"]


def test_resume_with_other_data_is_refused(sft: Callable, fresh: Callable, world: Any) -> None:
    out = fresh("other")
    sft(out, "--max_steps", 1, "--save_strategy", "steps", "--save_steps", 1)
    saved = json.loads((out / "checkpoint-1" / "data_cursor.json").read_text())
    lines = world.train.read_text().splitlines()
    other = world.train.with_name("other70.jsonl")
    longer = json.loads(lines[0])
    longer["conversations"][1]["value"] += " and a good many words more"
    other.write_text("\n".join([json.dumps(longer), *lines[1:]]) + "\n")
    fewer = world.train.with_name("fewer.jsonl")
    fewer.write_text("\n".join(lines[1:]) + "\n")
    refused = sft(out, "--data", fewer, "--resume", "auto", code=2)
    assert "num_sequences 70, it is 69 now" in refused.text and "start anew in another --output_dir" in refused.text
    refused = sft(out, "--seed", 7, "--resume", out / "checkpoint-1", code=2)
    assert "seed 42, it is 7 now" in refused.text
    refused = sft(out, "--data", other, "--resume", "auto", code=2)
    assert f"order_hash {saved['order_hash']}, it is" in refused.text and "Traceback" not in refused.text


def test_the_best_checkpoint_is_kept_when_evaluation_gets_worse(sft: Callable, fresh: Callable, world: Any) -> None:
    """At a learning rate that destroys the model the first checkpoint is the best; --keep 1 must not remove it."""
    out = fresh("best")
    steps = ("--eval_strategy", "steps", "--eval_steps", 1, "--save_strategy", "steps", "--save_steps", 1)
    run = sft(out, "--eval_data", world.eval, "--learning_rate", 0.05, "--keep", 1, "--max_steps", 4, *steps)
    losses = [row["eval_loss"] for row in run.metrics if "eval_loss" in row]
    best = losses.index(min(losses)) + 1
    assert best < 4, losses
    assert {path.name for path in out.glob("checkpoint-*")} == {f"checkpoint-{best}", "checkpoint-4"}
    assert json.loads((out / "run.json").read_text())["best_checkpoint"].endswith(f"checkpoint-{best}")
