"""What GRPO and A2C check of the flags alike, before anything is loaded."""

from collections.abc import Mapping, Sequence
from typing import Any

from drive_vlm.rewards import reward_name
from drive_vlm.stages.engine.stage import StageFlags
from drive_vlm.stages.engine.training_flags import EVALUATION


def check_weights(weights: Sequence[float] | None, rewards: Sequence[str]) -> None:
    """Raises ValueError where --reward_weights are not one for each of --rewards."""
    if weights is not None and len(weights) != len(rewards):
        names = " ".join(map(reward_name, rewards))
        raise ValueError(
            f"--reward_weights has {len(weights)} numbers, --rewards {len(rewards)} ({names}). Give one for each."
        )


def refuse(stage: str, flags: StageFlags, extra: Mapping[str, Any], own: Mapping[str, tuple[Any, str]]) -> None:
    """Raises ValueError for a flag that has no place in the stage: of `own`, {flag: (whether it is given, why not)}, or of those that no
    stage on rollouts takes. `extra`: the flags of the Trainer."""
    refused = dict(own)
    refused["--eval_data"] = (
        flags.data.eval_data,
        "it has no loss of rows; held-out rows are answered with --eval_generate",
    )
    order = extra.get("train_sampling_strategy", "random")
    refused["--train_sampling_strategy"] = (order != "random", "prompts come in a seeded random order")
    nothing = not flags.scores.eval_generate
    for name in EVALUATION:
        refused[f"--{name}"] = (nothing and name in extra, "without --eval_generate nothing is evaluated")
    for flag, (given, why) in refused.items():
        if given:
            raise ValueError(f"{flag} has no place in {stage}: {why}. Leave it out.")
