"""The reward "choice": is the named option the right one? 1 right, 0 wrong, --choice_unread where none can be read.

Options are the row's column `options` ({letter: words} or a list), else those that the question lists ("A. Going ahead. B. ...").
The right one is the row's own answer, read as any answer is. With --choice_strict only the bare letter counts as read, as official
scripts compare it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from drive_vlm.config import field
from drive_vlm.evaluation.answers import Said, options_of_row, read_choice, strict_choice
from drive_vlm.rewards.answer_reward import AnswerReward, Scored


@dataclasses.dataclass
class ChoiceConfig:
    """Flags of the reward "choice"."""

    choice_unread: float = field(
        -1.0, help="reward of an answer that names no option, below 0, which is wrong", least=-100, most=0
    )
    choice_strict: bool = field(False, help="read the bare letter only, as official scripts do")

    def __post_init__(self) -> None:
        if self.choice_unread >= 0:
            raise ValueError(
                f"--choice_unread {self.choice_unread:g}: below 0, so that unread is worth less than wrong"
            )


def options(row: Mapping[str, Any]) -> dict[str, str]:
    """{letter: words} of a row: of its column, else of its question; {} where there are none."""
    return options_of_row(row, str(row.get("prompt") or ""))


class ChoiceReward(AnswerReward):
    __name__ = "choice"

    def __init__(self, config: ChoiceConfig) -> None:
        super().__init__()
        self.config = config

    def score(self, text: str, row: Mapping[str, Any]) -> Scored:
        offered = options(row)
        said: Said[str] = strict_choice(text, offered) if self.config.choice_strict else read_choice(text, offered)
        if said.value is None:
            return Scored(self.config.choice_unread, said.reason)
        return Scored(float(said.value == read_choice(row["reference"], offered).value), said=said.value)

    def problem(self, row: Mapping[str, Any]) -> str | None:
        offered = options(row)
        if not offered:
            return "the question lists no options (A. ... B. ...), and there is no column 'options'"
        said = read_choice(row.get("reference") or "", offered)
        return (
            None
            if said.read
            else f"the row's own answer names none of the options {', '.join(offered)} ({said.reason})"
        )

    def curves(self, scored: Sequence[Scored]) -> dict[str, list[float]]:
        return super().curves(scored) | {"right": [float(item.reward == 1) for item in scored]}


def build(config: ChoiceConfig) -> ChoiceReward:
    return ChoiceReward(config)
