"""The reward "format": is the answer in the form that was asked for? 1 in the form, .5 readable, 0 unread.

--format_kind says which form:

own          that of the row's own answer, numbers aside: "[(1.0, 2.0), ...]" wants the same brackets, commas and number of numbers.
             There is nothing between in the form and unread.
choice       a bare letter of the options; readable: the letter among words
trajectory   as own; readable: six positions among words
meta_action  "SPEED, PATH" in capitals; readable: both in other words
think        <think>...</think><answer>...</answer> and nothing else, AlphaDrive's plan_format_reward; nothing in between either
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from drive_vlm.config import field
from drive_vlm.evaluation.answers import read_choice, strict_choice
from drive_vlm.evaluation.answers.said import answer_parts
from drive_vlm.evaluation.meta_actions import read_meta_action
from drive_vlm.evaluation.planning import RIGHT_FORWARD, read_plan
from drive_vlm.rewards.answer_reward import AnswerReward, Scored
from drive_vlm.rewards.choice import options

KINDS = ("own", "choice", "trajectory", "meta_action", "think")
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")
_THINK = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)


@dataclasses.dataclass
class FormatConfig:
    """Flags of the reward "format"."""

    format_kind: str = field(
        "own", help="the form that an answer should have; own: that of the row's own answer", choices=KINDS
    )


def same_form(text: str, own: str) -> bool:
    """Whether the answer is the row's own but for its numbers and for blanks; what a model thinks before it is no part of it."""
    parts = answer_parts(text)
    return len(parts) == 1 and _form(parts[0]) == _form(answer_parts(own)[0])


def _form(text: str) -> str:
    return re.sub(r"\s+", "", _NUMBER.sub("#", text))


def _own(text: str, row: Mapping[str, Any]) -> float:
    return float(same_form(text, row["reference"]))


def _choice(text: str, row: Mapping[str, Any]) -> float:
    offered = options(row)
    return 1.0 if strict_choice(text, offered).read else 0.5 * read_choice(text, offered).read


def _trajectory(text: str, row: Mapping[str, Any]) -> float:
    return max(_own(text, row), 0.5) if read_plan(text, RIGHT_FORWARD).read else 0.0


def _meta_action(text: str, row: Mapping[str, Any]) -> float:
    said = read_meta_action(text)
    return 1.0 if said.strict else 0.5 * (said.speed is not None and said.path is not None)


def _think(text: str, row: Mapping[str, Any]) -> float:
    return float(_THINK.fullmatch(text.strip()) is not None)


_SCORES: dict[str, Callable[[str, Mapping[str, Any]], float]] = dict(
    zip(KINDS, (_own, _choice, _trajectory, _meta_action, _think), strict=True)
)


class FormatReward(AnswerReward):
    __name__ = "format"

    def __init__(self, config: FormatConfig) -> None:
        super().__init__()
        self.kind = config.format_kind

    def score(self, text: str, row: Mapping[str, Any]) -> Scored:
        reward = _SCORES[self.kind](text, row)
        return Scored(reward, "" if reward else f"not in the form {self.kind}")

    def problem(self, row: Mapping[str, Any]) -> str | None:
        if self.kind in ("own", "trajectory") and not row.get("reference"):
            return "the row has no answer whose form could be asked for"
        if self.kind == "choice" and not options(row):
            return "the question lists no options (A. ... B. ...), and there is no column 'options'"
        return None


def build(config: FormatConfig) -> FormatReward:
    return FormatReward(config)
