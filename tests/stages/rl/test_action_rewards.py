"""The rewards of action answers in grpo: weighted, written to samples.jsonl, known to fail before the training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drive_vlm.stages import STAGES
from drive_vlm.stages.engine.arguments import parse_stage
from drive_vlm.stages.rl.grpo import prepare

LENGTH = """
def length(prompts, completions, **columns):
    return [float(len(completion[0]["content"])) for completion in completions]
"""
UNSURE = """
def build():
    def unsure(prompts, completions, **columns):
        return [None if i % 2 else 0.5 for i in range(len(completions))]

    unsure.must_score = True
    return unsure
"""


@pytest.fixture
def pictured(world: Any) -> Path:
    """The rows that show something."""
    path = world.train.with_name("pictured.jsonl")
    path.write_text("".join(line for line in world.train.open() if json.loads(line).get("image")))
    return path


def test_two_steps_with_all_three(grpo: Callable, fresh: Callable, random_clip: Path, pictured: Path) -> None:
    """alpha R1 + beta R2 + delta R3 by --reward_weights; samples.jsonl says what each was made of."""
    out = fresh("three")
    rewards = ("--rewards", "clip", "action_reason", "structure", "--reward_weights", 1, 0.5, 0.25)
    flags = ("--data", pictured, "--clip_model", random_clip, "--clip_text", "whole", "--max_steps", 2, "--beta", 0)
    run = grpo(out, *rewards, *flags)
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert len(lines) == 16 and all(list(line["rewards"]) == ["clip", "action_reason", "structure"] for line in lines)
    said = [line for line in lines if line["completion"].strip()]
    assert len({line["rewards"]["clip"] for line in said}) > 1
    for line in said:
        assert line["terms"]["clip"]["text"] == line["completion"].strip() and line["terms"]["structure"]["valid"] == 0
        assert line["terms"]["clip"]["cosine"] == pytest.approx(line["rewards"]["clip"], abs=1e-6)
        assert line["terms"]["action_reason"]["form"] == "none" and line["rewards"]["action_reason"] == 0
    for step, metrics in enumerate(run.metrics[:2], 1):
        sums = [
            sum(w * line["rewards"][name] for w, name in zip((1, 0.5, 0.25), line["rewards"], strict=True))
            for line in lines
            if line["step"] == step
        ]
        assert metrics["reward"] == pytest.approx(sum(sums) / len(sums), abs=1e-5) and metrics["unscored"] == 0
        assert {"clip/truncated", "action_reason/unknown", "structure/valid"} <= metrics.keys()


@pytest.fixture
def trainer(grpo_words: Callable, tmp_path: Path) -> Callable[..., Any]:
    """`trainer(*flags)`: the Trainer of these flags, in this process, ready to train."""

    def make(*flags: object) -> Any:
        words = [str(word) for word in grpo_words(tmp_path / "run", *flags, "--beta", 0)]
        made, _ = prepare(parse_stage("grpo", STAGES["grpo"], words).checked(STAGES["grpo"], 1))
        made.check_resume()
        made.begin_files()
        return made

    return make


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (
            ("clip",),
            r"reward clip cannot score 10 of 70 rows: \S+/train70\.jsonl:4: the row has no picture and no video",
        ),
        (
            ("action_reason", "--action_reason_mode", "labels"),
            r"cannot score 70 of 70 rows: \S+:1: 'actions' must be 4 numbers",
        ),
        (
            ("action_reason", "--action_reason_mode", "bleu"),
            r"cannot score 70 of 70 rows: \S+:1: bleu compares with the row's own",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_rows_that_cannot_be_scored_stop_the_run_before_it_trains(
    trainer: Callable, random_clip: Path, flags: tuple[str, ...], told: str
) -> None:
    more = ("--clip_model", random_clip) if flags[0] == "clip" else ()
    with pytest.raises(ValueError, match=told):
        trainer("--rewards", *flags, *more)


def test_what_a_reward_must_score_and_cannot_leaves_the_step(trainer: Callable, tmp_path: Path) -> None:
    """Another reward's number does not stand in for it: no advantage, no part in the group's mean, and a count."""
    (tmp_path / "length.py").write_text(LENGTH)
    (tmp_path / "unsure.py").write_text(UNSURE)
    made = trainer("--rewards", f"{tmp_path}/length.py:length", f"{tmp_path}/unsure.py:build", "--max_steps", 1)
    made.train()
    lines = [json.loads(line) for line in (Path(made.args.output_dir) / "samples.jsonl").read_text().splitlines()]
    assert [line["rewards"]["unsure"] for line in lines] == [0.5, None] * 4
    [log] = [row for row in made.state.log_history if "unscored" in row]
    assert log["unscored"] == 0.5
    kept = [len(line["completion"]) + 0.5 for line in lines[::2]]
    assert log["reward"] == pytest.approx(sum(kept) / 4, abs=1e-4)
    for first, out, second, also_out in zip(*(lines[i::4] for i in range(4)), strict=True):
        assert out["advantage"] == also_out["advantage"] == 0
        # Of two values that differ by d the standard deviation is d / sqrt(2), so that each is sqrt(1/2) away from their mean.
        longer = len(first["completion"]) - len(second["completion"])
        assert first["advantage"] == pytest.approx((longer > 0) * 2**-0.5 - (longer < 0) * 2**-0.5, abs=1e-3)
        assert second["advantage"] == pytest.approx(-first["advantage"], abs=1e-6)
