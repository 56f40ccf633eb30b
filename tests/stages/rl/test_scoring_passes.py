"""Passes without gradients in GRPO: where a step is on policy there is none by the policy, without a KL term none by a reference."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from drive_vlm.stages import STAGES
from drive_vlm.stages.engine.arguments import parse_stage
from drive_vlm.stages.rl.grpo import generation_of, prepare
from drive_vlm.stages.rl.grpo_trainer import GRPOTrainer

# What generation_of asks for.
PLANNED = (
    "per_device_train_batch_size", "num_generations", "num_iterations", "beta", "max_completion_length",
    "ds3_gather_for_generation",
)  # fmt: skip


@pytest.fixture
def train(
    grpo_words: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Any, list[str]]]:
    """`train(*flags, force=False) -> (trainer, passes)`: two steps in this process; `passes` says for each pass without gradients
    whose it is. `force`: the policy scores each generation batch before it learns from it, as TRL does off policy."""

    def run(*flags: object, force: bool = False) -> tuple[Any, list[str]]:
        words = [str(word) for word in grpo_words(tmp_path / "run", "--max_steps", 2, *flags)]
        given = parse_stage("grpo", STAGES["grpo"], words).checked(STAGES["grpo"], 1)
        trainer, _ = prepare(given)
        trainer.check_resume()
        trainer.begin_files()
        passes: list[str] = []
        own_score, own_generate = (
            GRPOTrainer._get_per_token_logps_and_entropies,
            GRPOTrainer._generate_and_score_completions,
        )

        def score(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                passes.append("policy" if model is self.model else "reference")
            return own_score(self, model, *args, **kwargs)

        def generate(self: Any, inputs: Any) -> Any:
            output = own_generate(self, inputs)
            ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
            mask = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
            self._pictures = output["pictures"]
            with torch.no_grad():
                output["old_per_token_logps"] = self._get_per_token_logps_and_entropies(
                    self.model, ids, mask, output["completion_ids"].shape[1], self.args.per_device_train_batch_size
                )[0]
            return output

        with monkeypatch.context() as patch:
            patch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", score)
            if force:
                patch.setattr(GRPOTrainer, "_generate_and_score_completions", generate)
            trainer.train()
        # What the plan reckons with: passes over a generation batch.
        training = {name: getattr(trainer.args, name) for name in PLANNED}
        planned = generation_of(dataclasses.replace(given, training=training), 1).passes
        assert force or len(passes) == trainer.generations * planned
        return trainer, passes

    return run


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


def losses(trainer: Any) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def test_on_policy_no_pass_is_needed_and_one_changes_nothing(train: Callable) -> None:
    alone, passes = train("--beta", 0)
    assert passes == []
    scored, passes = train("--beta", 0, force=True)
    assert passes == ["policy"] * 2
    assert losses(alone) == pytest.approx(losses(scored), abs=1e-6)
    for (name, one), other in zip(weights(alone).items(), weights(scored).values(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0, msg=name)


def test_a_kl_term_needs_the_reference_alone(train: Callable) -> None:
    assert train("--beta", 0.04)[1] == ["reference"] * 2


def test_a_batch_that_is_used_twice_is_scored_by_the_policy(train: Callable) -> None:
    """The step that learns from it a second time is not on policy."""
    assert train("--beta", 0, "--num_iterations", 2)[1] == ["policy"]
