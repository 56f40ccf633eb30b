"""The reward "meta_action": are the speed and the path the true ones? For rows of tools/build_meta_actions.py.

    R = 1/2 w(speed) [speed right] + 1/2 w(path) [path right]

w is AlphaDrive's weight of the class (github.com/hustvl/AlphaDrive, plan_speed_reward and plan_path_reward): KEEP and STRAIGHT .8,
ACCELERATE .9, the others 1, so that the commonest pair is not the best; --meta_action_weights equal makes all 1. The F1 of its two
rewards is 0 or 1 here, since a text that names two classes of a kind is unread; its diversity term, which depends on the order of the
completions, is left out. A text of which neither is read earns --meta_action_unread.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from drive_vlm.config import field
from drive_vlm.evaluation.meta_actions import CLASSES, SPEEDS, MetaAction, fold, read_meta_action
from drive_vlm.rewards.answer_reward import AnswerReward, Scored

WEIGHTS = {"KEEP": 0.8, "ACCELERATE": 0.9, "STRAIGHT": 0.8}


@dataclasses.dataclass
class MetaActionConfig:
    """Flags of the reward "meta_action"."""

    meta_action_weights: str = field(
        "alphadrive", help="alphadrive: common classes count less; equal: all count 1", choices=("alphadrive", "equal")
    )
    meta_action_unread: float = field(
        -1.0, help="reward of an answer with neither a speed nor a path, below 0, which is wrong", least=-100, most=0
    )

    def __post_init__(self) -> None:
        if self.meta_action_unread >= 0:
            raise ValueError(
                f"--meta_action_unread {self.meta_action_unread:g}: below 0, so that unread is worth less than wrong"
            )


class MetaActionReward(AnswerReward):
    __name__ = "meta_action"

    def __init__(self, config: MetaActionConfig) -> None:
        super().__init__()
        self.config = config
        self.weights = WEIGHTS if config.meta_action_weights == "alphadrive" else {}

    def score(self, text: str, row: Mapping[str, Any]) -> Scored:
        said = fold(read_meta_action(text), row["classes"])
        if said.speed is None and said.path is None:
            return Scored(self.config.meta_action_unread, "neither a speed nor a path")
        right = (said.speed == row["speed_class"], said.path == row["path_class"])
        names = (row["speed_class"], row["path_class"])
        reward = sum(self.weights.get(name, 1.0) * hit for name, hit in zip(names, right, strict=True)) / 2
        return Scored(reward, said=_told(said))

    def problem(self, row: Mapping[str, Any]) -> str | None:
        classes = row.get("classes")
        if (
            classes not in CLASSES
            or row.get("speed_class") not in SPEEDS
            or row.get("path_class") not in CLASSES[classes]
        ):
            return "the row has no speed_class, path_class and classes; take rows of tools/build_meta_actions.py"
        return None

    def curves(self, scored: Sequence[Scored]) -> dict[str, list[float]]:
        return super().curves(scored) | {"half_read": [float("(unread)" in str(item.said)) for item in scored]}


def _told(said: MetaAction) -> str:
    return f"{said.speed or '(unread)'}, {said.path or '(unread)'}"


def build(config: MetaActionConfig) -> MetaActionReward:
    return MetaActionReward(config)
