"""Every flag of GRPO that shapes the loss does what its definition says, on numbers by hand through the real trainer.

The loss is written again here, from the papers: GRPO (arXiv 2402.03300), Dr. GRPO (2503.20783), DAPO (2503.14476), GSPO
(2507.18071), two-sided clipping (2505.07291), tokens of high entropy (2506.01939). DPO's are in tests/stages/preference.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from drive_vlm.stages import STAGES
from drive_vlm.stages.engine.arguments import parse_stage
from drive_vlm.stages.engine.training_flags import ACCEPTED
from drive_vlm.stages.rl.grpo import prepare

DEFAULTS: dict[str, Any] = {
    "loss_type": "grpo", "epsilon": 0.2, "epsilon_high": None, "delta": None, "beta": 0.0, "use_bias_correction_kl": False,
    "importance_sampling_level": "token", "top_entropy_quantile": 1.0, "entropy_coef": 0.0, "max_completion_length": 8,
}  # fmt: skip
# What the losses below cover, what the rewards below cover, and what is no part of a loss.
OF_LOSS = {*DEFAULTS, *(f"entropy_{name}" for name in ("coef_min", "coef_max", "coef_delta", "target")), "use_adaptive_entropy"}  # fmt: skip
OF_REWARDS = {"scale_rewards", "reward_weights", "multi_objective_aggregation", "mask_truncated_completions", "temperature"}  # fmt: skip
NO_LOSS = {
    "num_generations", "generation_batch_size", "steps_per_generation", "num_iterations", "top_p", "top_k", "min_p", "repetition_penalty",
    "shuffle_dataset", "ds3_gather_for_generation", "disable_dropout",
}  # fmt: skip
ACCUMULATION = 2


def batch() -> dict[str, torch.Tensor]:
    """Four completions of up to five tokens whose policy has moved; ratios on both sides of every limit."""
    draw = torch.Generator().manual_seed(3)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 0, 0, 0, 0]])
    logps = -torch.rand(4, 5, generator=draw) * 2 - 0.5
    return {
        "prompt_ids": torch.ones(4, 2, dtype=torch.long), "prompt_mask": torch.ones(4, 2, dtype=torch.long),
        "completion_ids": torch.ones(4, 5, dtype=torch.long), "completion_mask": mask, "logps": logps,
        "old_per_token_logps": logps - torch.randn(4, 5, generator=draw) * 0.6,
        "ref_per_token_logps": logps - torch.randn(4, 5, generator=draw) * 0.4,
        "entropies": torch.rand(4, 5, generator=draw) * 3, "advantages": torch.tensor([1.5, -0.5, 0.7, -1.2]),
        "num_items_in_batch": torch.tensor(29.0),
    }  # fmt: skip


def expected(given: dict[str, torch.Tensor], flags: dict[str, Any], steps_per_generation: int) -> float:
    mask, logps, entropies = given["completion_mask"].float(), given["logps"], given["entropies"]
    advantages = given["advantages"][:, None]
    change = logps - given["old_per_token_logps"]
    if flags["importance_sampling_level"] == "sequence":
        change = ((change * mask).sum(1) / mask.sum(1))[:, None]
    ratio = change.exp()
    high = flags["epsilon"] if flags["epsilon_high"] is None else flags["epsilon_high"]
    free = ratio if flags["delta"] is None else ratio.clamp(max=flags["delta"])
    loss = -torch.minimum(free * advantages, ratio.clamp(1 - flags["epsilon"], 1 + high) * advantages)
    kept = torch.ones_like(mask)
    if flags["top_entropy_quantile"] < 1:
        limit = torch.quantile(entropies[mask.bool()], 1 - flags["top_entropy_quantile"])
        kept = (entropies >= limit).float()
        loss = loss * kept
    gap = given["ref_per_token_logps"] - logps
    kl = (gap.exp() - gap - 1) * (ratio if flags["use_bias_correction_kl"] else 1)
    loss = loss + flags["beta"] * kl
    whole = (loss * mask).sum()
    total = {
        "grpo": ((loss * mask).sum(1) / mask.sum(1)).mean() / ACCUMULATION,
        "bnpo": whole / mask.sum() / ACCUMULATION,
        "dr_grpo": whole / (len(mask) * flags["max_completion_length"]) / ACCUMULATION,
        "dapo": whole / (given["num_items_in_batch"] * ACCUMULATION / steps_per_generation),
    }[flags["loss_type"]]
    bonus = (entropies * mask * kept).sum() / (mask * kept).sum() / ACCUMULATION
    return (total - flags["entropy_coef"] * bonus).item()


@pytest.fixture
def trainer(grpo_words: Callable, tmp_path: Any) -> Callable[..., Any]:
    """`trainer(*flags)`: the Trainer that the command line of these flags builds."""

    def make(*flags: object) -> Any:
        words = [str(word) for word in grpo_words(tmp_path / "run", *flags)]
        made, _ = prepare(parse_stage("grpo", STAGES["grpo"], words).checked(STAGES["grpo"], 1))
        made.begin_files()
        made.model.train()
        return made

    return make


def loss_of(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> float:
    given = batch()
    trainer.current_gradient_accumulation_steps = ACCUMULATION
    found = (given.pop("logps"), given.pop("entropies"), None)
    monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", lambda *_, **__: found)
    return trainer._compute_loss(trainer.model, given | {"pictures": []}).item()


def words_of(flags: dict[str, Any]) -> list[object]:
    return [word for name, value in flags.items() for word in (f"--{name}", value)]


def test_every_accepted_flag_of_the_loss_is_tried() -> None:
    own = ACCEPTED["trl.GRPOConfig"] - ACCEPTED["transformers.TrainingArguments"]
    # vLLM needs a GPU; its flags correct for another sampler.
    assert {name for name in own if "vllm" not in name} == OF_LOSS | OF_REWARDS | NO_LOSS
    tried = {name for case in CASES for name in case}
    assert tried == set(DEFAULTS)


CASES: list[dict[str, Any]] = [
    {"loss_type": "grpo", "epsilon": 0.05, "epsilon_high": 0.4, "delta": 1.6, "beta": 0.3, "entropy_coef": 0.2},
    {"loss_type": "bnpo", "beta": 0.5, "use_bias_correction_kl": True, "top_entropy_quantile": 0.5, "entropy_coef": 0.1},
    {"loss_type": "dr_grpo", "max_completion_length": 6, "epsilon": 0.3},
    {"loss_type": "dapo", "epsilon_high": 0.28},
    {"loss_type": "grpo", "importance_sampling_level": "sequence"},
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=["grpo", "bnpo", "dr_grpo", "dapo", "gspo"])
def test_losses_by_hand(case: dict[str, Any], trainer: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer's loss is the formula's; and each flag of the case moves the formula, so that one that went astray would show."""
    made = trainer("--use_bias_correction_kl", "false", "--beta", 0, *words_of(case))
    given, flags, steps = batch(), DEFAULTS | case, made.args.steps_per_generation
    assert loss_of(made, monkeypatch) == pytest.approx(expected(given, flags, steps), abs=1e-5)
    for name in case:
        other = flags | {name: DEFAULTS[name]}
        if other != flags:
            assert abs(expected(given, other, steps) - expected(given, flags, steps)) > 5e-5, name


def test_the_entropy_bonus_adapts(trainer: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """The coefficient rises by a step while the entropy is below its target, and the bonus is paid from the next step on."""
    flags = {"use_adaptive_entropy": "true", "entropy_coef": 0.1, "entropy_coef_min": 0.05, "entropy_coef_max": 0.35, "entropy_coef_delta": 0.2, "entropy_target": 9}  # fmt: skip
    made = trainer("--beta", 0, "--loss_type", "grpo", *words_of(flags))
    steps, plain = made.args.steps_per_generation, DEFAULTS
    paid = [
        (expected(batch(), plain, steps) - loss_of(made, monkeypatch)) / (expected(batch(), plain, steps) - expected(batch(), plain | {"entropy_coef": 1.0}, steps))
        for _ in range(3)
    ]  # fmt: skip
    # Before the first step no entropy was measured.
    assert paid == pytest.approx([0.0, 0.3, 0.35], abs=1e-4)
    made.args.entropy_target = 0
    assert loss_of(made, monkeypatch) == pytest.approx(expected(batch(), plain, steps), abs=1e-5)
    for _ in range(3):
        loss_of(made, monkeypatch)
    assert made.entropy_coef == pytest.approx(0.05)


REWARDS = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5, 4.0], [0.2, 2.0], [3.0, 0.0], [1.0, 0.5], [0.0, 0.5], [0.0, 0.0]])


def advantages(flags: dict[str, Any]) -> torch.Tensor:
    weights = torch.tensor(flags.get("reward_weights", [1.0, 1.0]))
    groups = REWARDS.view(2, 4, 2)
    if flags.get("multi_objective_aggregation") == "normalize_then_sum":
        each = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)
        summed = (each.view(8, 2) * weights).sum(1)
        return (summed - summed.mean()) / (summed.std() + 1e-4)
    summed = (groups * weights).sum(2)
    scale = {"group": summed.std(1, keepdim=True) + 1e-4, "batch": summed.std() + 1e-4, "none": 1.0}
    return ((summed - summed.mean(1, keepdim=True)) / scale[flags.get("scale_rewards", "group")]).view(8)


@pytest.mark.parametrize(
    "flags",
    [
        {"scale_rewards": "batch", "reward_weights": [1.0, 0.3]},
        {"scale_rewards": "none", "mask_truncated_completions": True},
        {"multi_objective_aggregation": "normalize_then_sum", "reward_weights": [0.5, 2.0]},
    ],
    ids=["batch", "none", "each"],
)
def test_rewards_become_advantages(flags: dict[str, Any], trainer: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    import trl

    letters = f"{Path(__file__).with_name('letter_reward.py')}"
    words = [word for name, value in flags.items() for word in (f"--{name}", *(value if isinstance(value, list) else [value]))]  # fmt: skip
    made = trainer("--rewards", f"{letters}:build", f"{letters}:constant", "--generation_batch_size", 8, "--beta", 0, *words)  # fmt: skip
    monkeypatch.setattr(trl.GRPOTrainer, "_calculate_rewards", lambda *_: REWARDS)
    rows = [{"row": i // 4} for i in range(8)]
    output = made._generate_and_score_completions(rows)
    assert output["advantages"].tolist() == pytest.approx(advantages(flags).tolist(), abs=1e-4)
    assert not torch.allclose(advantages(flags), advantages({}), atol=1e-3)
    cut = torch.tensor(made._scored["truncated"])
    learned = output["completion_mask"].sum(1) > 0
    if flags.get("mask_truncated_completions"):
        assert cut.any() and torch.equal(learned, ~cut)
    else:
        assert learned.all()


def test_log_probabilities_are_those_of_the_heated_policy(trainer: Callable) -> None:
    """--temperature divides the logits of the loss as well as those of sampling."""
    made = trainer("--temperature", 0.5, "--beta", 0)
    ids = torch.randint(5, 50, (1, 9), generator=torch.Generator().manual_seed(0))
    made._pictures = [{}]
    mask = torch.ones_like(ids)
    with torch.no_grad():
        found, _, _ = made._get_per_token_logps_and_entropies(made.model, ids, mask, 4)
        logits = made.model(input_ids=ids, attention_mask=mask, **made.rollouts.without_pictures).logits[:, :-1].float()
    wanted = (logits / 0.5).log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0][:, -4:]
    assert found.tolist()[0] == pytest.approx(wanted.tolist()[0], abs=1e-4)
