"""A GRPO run that was stopped and resumed: the same prompts, completions, rewards and KL as one that was not."""

import json
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from drive_vlm.launch.status import read_status
from drive_vlm.stages import STAGES
from drive_vlm.stages.engine.arguments import parse_stage
from drive_vlm.stages.rl import grpo_trainer
from drive_vlm.stages.rl.grpo import prepare

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
@pytest.mark.supports("internvl grpo", "internvl grpo zero2 lora")
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


def test_max_steps_inside_a_generation_batch_writes_no_checkpoint(grpo: Callable, fresh: Callable) -> None:
    """The default strategy saves at the end of an epoch, and the Trainer ends one at --max_steps."""
    out = fresh("inside")
    grpo(out, *TWO_ITERATIONS, "--max_steps", 1, "--save_strategy", "epoch")
    assert (out / "model.safetensors").is_file() and not list(out.glob("checkpoint-*"))


@pytest.mark.supports("internvl grpo zero2")
def test_order_does_not_depend_on_the_number_of_processes(
    grpo: Callable, fresh: Callable, grpo_words: Callable
) -> None:
    """Two ranks under ZeRO-2, then one that resumes: the prompts of the whole run are those of one process."""
    out = fresh("changing")
    shards = ("--deepspeed", "zero2", "--save_strategy", "steps", "--save_steps", 3, "--resume", "auto")
    grpo(out, *shards, "--max_steps", 3, launcher="torchrun")
    grpo(out, *shards, "--max_steps", 6)
    one = prepared(grpo_words(fresh("one"), "--beta", 0))
    rows = [row for batch in range(6) for row in one.rollouts.batches.prompts_of(batch)]
    assert [(s["step"], s["id"]) for s in samples(out)[::4]] == [
        (place // 2 + 1, one.parts.tables["train"].sample(row).id) for place, row in enumerate(rows)
    ]


def test_what_would_not_go_on_where_it_stopped_is_refused(
    grpo: Callable, fresh: Callable, grpo_words: Callable, world: Any
) -> None:
    out = fresh("refused")
    grpo(out, "--max_steps", 1, "--save_strategy", "steps", "--save_steps", 1)
    other = fresh("other") / "model"
    shutil.copytree(world.model, other)
    weights = load_file(other / "model.safetensors")
    save_file({name: tensor * 0.5 for name, tensor in weights.items()}, other / "model.safetensors", {"format": "pt"})
    for flags, words in (
        (("--num_generations", 8), "num_generations: 4 then, 8 now"),
        (("--seed", 7), "seed: 42 then, 7 now"),
        (("--model", other), "reference: .*start again"),
        (("--temperature", 0.5), r"temperature: 1.0 then, 0.5 now"),
        (("--letter_wanted", "xyz"), "letter_wanted: aeiou then, xyz now"),
        (("--reward_weights", 2.0), r"reward_weights: .* then, \[2.0\] now"),
    ):
        with pytest.raises(ValueError, match=words):
            prepared(grpo_words(out, "--resume", "auto", *flags))


def prepared(words: list[object]) -> Any:
    """The Trainer of these flags, in this process, after its checks of a resume."""
    trainer, _ = prepare(parse_stage("grpo", STAGES["grpo"], [str(word) for word in words]).checked(STAGES["grpo"], 1))
    trainer.check_resume()
    return trainer


def test_a_stop_request_waits_for_the_end_of_a_generation_batch(grpo: Callable, fresh: Callable) -> None:
    """The stop file is there from the beginning: the run ends at step 2, the first boundary, and not at step 1."""
    out = fresh("asked")
    (out / "stop").write_text("test")
    run = grpo(out, *TWO_ITERATIONS)
    assert json.loads((out / "status.json").read_text())["state"] == "saved"
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-2"]
    assert len(run.curve()) == 2


@pytest.mark.parametrize("how", ["SIGTERM", "stop file"])
def test_a_request_ends_a_generation_at_its_next_token(
    inside: Callable, grpo_words: Callable, fresh: Callable, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the third batch, after the third of eight tokens: the checkpoint is that of step 2, and the resumed run makes the batch
    again, with the same random numbers and dropout."""
    flags = ("--max_steps", 4, "--lora_rank", 2, "--lora_dropout", 0.3, "--disable_dropout", "false")
    whole, out = fresh("whole"), fresh("stopped")
    inside("grpo", *grpo_words(whole, *flags))

    ends_by_request, tokens = grpo_trainer.EndsByRequest.__call__, Counter[Any]()

    def ask(self: Any, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        tokens[self] += 1
        if len(tokens) == tokens[self] == 3:
            signal.raise_signal(signal.SIGTERM) if how == "SIGTERM" else (out / "stop").touch()
        return ends_by_request(self, input_ids, scores, **kwargs)

    monkeypatch.setattr(grpo_trainer, "_LOOK", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(grpo_trainer.EndsByRequest, "__call__", ask)
        inside("grpo", *grpo_words(out, *flags))
    assert list(tokens.values()) == [8, 8, 3], "nothing was generated after the request"
    found = read_status(out)
    assert found is not None and (found.state, found.step) == ("preempted" if how == "SIGTERM" else "saved", 2)
    assert found.checkpoint == str(out / "checkpoint-2") and not (out / "stop").exists()
    seen = json.loads((out / "checkpoint-2" / "trainer_state.json").read_text())["num_input_tokens_seen"]
    assert seen == [row["num_tokens"] for row in metrics(whole) if "loss" in row][1]
    inside("grpo", *grpo_words(out, *flags, "--resume", "auto"))
    for name in CURVES:
        ours, theirs = ([row[name] for row in metrics(run) if name in row] for run in (out, whole))
        assert len(theirs) == 4 and ours == pytest.approx(theirs, abs=1e-6), name
    ours, theirs = ([(s["step"], s["id"], s["completion"]) for s in samples(run)] for run in (out, whole))
    assert ours == theirs


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
