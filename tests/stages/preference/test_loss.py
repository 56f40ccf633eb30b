"""The losses of pairs against numbers worked out by hand, and against TRL's own trainer on the same model and pairs."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from drive_vlm.stages.preference.loss import LOSSES, Pairs, answer_log_probs, loss_sums, preference_loss


def pairs(*rows: tuple[float, ...]) -> Pairs:
    """Each row: chosen, rejected, reference chosen, reference rejected, chosen tokens, rejected tokens."""
    columns = [torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True)]
    return Pairs(*columns[:4], *(column.long() for column in columns[4:]))


TWO = pairs((-4.0, -9.0, -5.0, -7.0, 2, 4), (-6.0, -3.0, -4.0, -3.5, 3, 1))
# ratios: chosen +1, rejected -2; chosen -2, rejected +0.5


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # margins 3 and -2.5, beta 0.1: log(1 + exp(-0.3)) and log(1 + exp(0.25))
        ("sigmoid", [0.554355244, 0.825939420]),
        ("hinge", [1 - 0.3, 1 + 0.25]),
        # per token: 0.5 - (-0.5) = 1 and -2/3 - 0.5; the target 1 / (2 * 0.1) is 5
        ("ipo", [16.0, (2 / 3 + 0.5 + 5) ** 2]),
        # log(1 + exp(-0.1)) + log(1 + exp(-0.2)); log(1 + exp(0.2)) + log(1 + exp(0.05))
        ("bco_pair", [0.644396660 + 0.598138869, 0.798138869 + 0.718459625]),
    ],
)
def test_losses_by_hand(kind: str, expected: list[float]) -> None:
    assert LOSSES[kind](TWO, 0.1).tolist() == pytest.approx(expected, abs=1e-6)


def test_spin_is_the_logistic_loss_of_the_published_recipe() -> None:
    """beta 0.1 in the first rounds, 5.0 in the last (uclaml/SPIN): -log sigmoid of beta times the margin."""
    for beta in (0.1, 5.0):
        by_hand = [math.log1p(math.exp(-beta * margin)) for margin in (3.0, -2.5)]
        assert LOSSES["sigmoid"](TWO, beta).tolist() == pytest.approx(by_hand, abs=1e-9)


def test_terms_are_means_over_pairs_and_over_chosen_tokens() -> None:
    counts = torch.tensor([2, 5])
    alone = preference_loss(loss_sums(TWO, 0.1, ["sigmoid"], [1.0]), counts)
    assert alone.item() == pytest.approx((0.554355244 + 0.825939420) / 2, abs=1e-6)
    both = preference_loss(loss_sums(TWO, 0.1, ["sigmoid", "sft"], [0.5, 2.0]), counts)
    assert both.item() == pytest.approx(alone.item() / 2 + 2 * (4 + 6) / 5, abs=1e-6)


def test_parts_of_a_step_add_up() -> None:
    """Two micro-batches of unequal size, one without a pair: what ranks and accumulation do to a step."""
    kinds, weights = ["sigmoid", "bco_pair", "sft"], [0.8, 0.2, 1.0]
    parts = [pairs((-4.0, -9.0, -5.0, -7.0, 2, 4)), pairs((-6.0, -3.0, -4.0, -3.5, 3, 1))]
    empty = Pairs(*(torch.zeros(0, dtype=torch.float64) for _ in range(4)), *(torch.zeros(0).long() for _ in range(2)))
    counts = torch.tensor([2, 5])
    whole = preference_loss(loss_sums(TWO, 0.1, kinds, weights), counts)
    summed = sum(preference_loss(loss_sums(part, 0.1, kinds, weights), counts) for part in [*parts, empty])
    assert summed.item() == pytest.approx(whole.item(), abs=1e-12)


def test_log_probs_are_summed_over_each_answer() -> None:
    found = answer_log_probs(torch.tensor([-1.0, -2.0, -3.0, -4.0]), torch.tensor([1, 0, 3]))
    assert found.tolist() == [-1.0, 0.0, -9.0]
    assert answer_log_probs(torch.zeros(0), torch.zeros(0, dtype=torch.int64)).shape == (0,)


@pytest.mark.parametrize(
    ("kinds", "weights"),
    [
        (["sigmoid"], [1.0]),
        (["sigmoid", "sft"], [1.0, 0.3]),
        (["hinge"], [1.0]),
        (["ipo"], [1.0]),
        (["bco_pair"], [0.2]),
    ],
    ids=str,
)
def test_trl_computes_the_same(kinds: list[str], weights: list[float], tmp_path: Path) -> None:
    """TRL's DPOTrainer on a random Qwen2 and another as its reference; log-probabilities from plain logits on our side."""
    from datasets import Dataset
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from trl import DPOConfig, DPOTrainer

    from drive_vlm.models.tiny.tiny import train_tokenizer

    tokenizer = train_tokenizer(["a car turns left", "the road is clear"], 300)
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        config = Qwen2Config(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, initializer_range=0.3,
        )  # fmt: skip
        models.append(Qwen2ForCausalLM(config).eval())
    rows = {"prompt_ids": [[5, 6, 7], [8]], "chosen_ids": [[9, 10], [11, 12, 13]], "rejected_ids": [[14], [15, 16]]}
    args = DPOConfig(
        output_dir=str(tmp_path), beta=0.3, loss_type=kinds, loss_weights=weights, use_cpu=True, bf16=False, report_to=[],
        gradient_checkpointing=False,
    )  # fmt: skip

    class Prepared(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
            return dataset

    trainer = Prepared(
        model=models[0],
        ref_model=models[1],
        args=args,
        train_dataset=Dataset.from_dict(rows),
        processing_class=tokenizer,
    )
    batch = trainer.data_collator([{name: rows[name][i] for name in rows} for i in range(2)])
    theirs = trainer.compute_loss(models[0], dict(batch))

    def summed(model: Any) -> torch.Tensor:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        picked = logits.log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
        return (picked * batch["completion_mask"][:, 1:]).sum(1)

    policy, reference = summed(models[0]), summed(models[1])
    tokens = torch.tensor([2, 3, 1, 2])
    ours = loss_sums(
        Pairs(policy[:2], policy[2:], reference[:2], reference[2:], tokens[:2], tokens[2:]), 0.3, kinds, weights
    )
    assert preference_loss(ours, torch.tensor([2, 5])).item() == pytest.approx(theirs.item(), abs=1e-5)


def test_a_training_tells_nobody() -> None:
    """TRL's trainers send telemetry when they are made, unless the mixin that stands before them answers."""
    from drive_vlm.stages.engine.trainer import DriveTrainerMixin
    from drive_vlm.stages.preference.trainer import PreferenceTrainer
    from drive_vlm.stages.rl.grpo_trainer import GRPOTrainer

    for trainer in (GRPOTrainer, PreferenceTrainer):
        assert trainer._send_telemetry is DriveTrainerMixin._send_telemetry
