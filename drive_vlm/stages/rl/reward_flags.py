"""`--rewards` of a stage that samples, and the flags that the rewards bring. No torch.

A stage names RewardFlags in its `configs` and `reward_configs` as its `more_configs`; its `prepare` asks `rewards_of`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from drive_vlm.config import field
from drive_vlm.rewards import REWARDS, chosen_rewards, config_class
from drive_vlm.stages.engine.arguments import yaml_values
from drive_vlm.stages.engine.stage import StageFlags


@dataclasses.dataclass
class RewardFlags:
    """What is rewarded. Weights: --reward_weights, a number for each in their order (default: 1). --rewards clip action_reason
    structure --reward_weights 1 1 0.5 is alpha R1 + beta R2 + delta R3 of BDD-OIA."""

    rewards: list[str] = field(
        help=f"rewards by name ({', '.join(REWARDS)}), or your own as FILE.py:builder or module:builder; each brings its own flags"
    )


def reward_configs(words: Sequence[str]) -> list[type]:
    """The dataclasses of the flags that the rewards of --rewards bring. Raises ValueError for a reward that is not there."""
    return [cls for cls in map(config_class, reward_names(words)) if cls is not None]


def reward_names(words: Sequence[str]) -> list[str]:
    """The rewards of --rewards, from the words or the --config file among them, before anything else is parsed."""
    named = yaml_values(words)[1].get("rewards", [])
    return chosen_rewards(words, default=named if isinstance(named, list) else [named])


def rewards_of(flags: StageFlags) -> list[tuple[str, Any]]:
    """(name, its own flags; None where it has none) of each reward."""
    classes = [(name, config_class(name)) for name in flags.of(RewardFlags).rewards]
    return [(name, flags.of(cls) if cls else None) for name, cls in classes]
