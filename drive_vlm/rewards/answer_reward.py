"""What the rewards of a benchmark's own numbers share: each answer is scored alone against its row, and unread is the lowest score.

A text that cannot be read is worth less than every answer that can: worth the same as a wrong one, silence would be as good a guess.
`choice`, `meta_action`, `trajectory` and `format` are made of this.
"""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from drive_vlm.rewards.metric_alarm import MetricAlarm
from drive_vlm.rewards.text import completion_text

# The share of unread answers from which an alarm sounds, and for how many batches.
_MOSTLY_UNREAD = 0.9


@dataclasses.dataclass(frozen=True, slots=True)
class Scored:
    """An answer's reward. reason: why it is unread, "" where it is read. said: what was understood, for the samples file."""

    reward: float
    reason: str = ""
    said: Any = None


class AnswerReward(abc.ABC):
    """A subclass names itself, and says what an answer is worth (`score`) and which rows it can score (`problem`).

    Attributes:
        last_terms: a dict for each completion of the last call: reward, reason and what was said.
    """

    __name__: str

    def __init__(self) -> None:
        self.last_terms: list[dict[str, Any]] = []

    @property
    def alarms(self) -> tuple[MetricAlarm, ...]:
        words = (
            "{value:.0%} of the answers cannot be read: nearly all earn the same, the least. Read samples.jsonl; start from a model that "
            "answers in the form (SFT first), or raise --max_completion_length."
        )
        return (MetricAlarm(f"{self.__name__}_unread", f"{self.__name__}/unread", words, most=_MOSTLY_UNREAD),)

    @abc.abstractmethod
    def score(self, text: str, row: Mapping[str, Any]) -> Scored:
        """What an answer is worth; `row` holds the columns of its row and "prompt", the user's words."""

    @abc.abstractmethod
    def problem(self, row: Mapping[str, Any]) -> str | None:
        """Why the row cannot be scored, None where it can."""

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """One number a completion, in their order."""
        rows = _rows(columns, len(completions), [completion_text(prompt) for prompt in prompts])
        scored = [self.score(completion_text(text), row) for text, row in zip(completions, rows, strict=True)]
        self.last_terms = [dataclasses.asdict(item) for item in scored]
        if columns.get("log_metric") and scored:
            for name, values in self.curves(scored).items():
                columns["log_metric"](f"{self.__name__}/{name}", sum(values) / len(values))
        return [item.reward for item in scored]

    def curves(self, scored: Sequence[Scored]) -> dict[str, list[float]]:
        """What the log gets the means of; a curve without a value is left out."""
        return {"unread": [float(bool(item.reason)) for item in scored]}

    def check(self, **columns: Any) -> list[str | None]:
        """For each row why it cannot be scored, None where it can."""
        samples = columns.get("sample") or [None] * len(columns["id"])
        prompts = ["" if sample is None else sample.prompt_turns()[-1].text for sample in samples]
        return [self.problem(row) for row in _rows(columns, len(prompts), prompts)]


def _rows(columns: Mapping[str, Any], count: int, prompts: Sequence[str]) -> list[dict[str, Any]]:
    """The columns of each row, where they hold one value a completion."""
    each = {name: value for name, value in columns.items() if isinstance(value, list) and len(value) == count}
    return [{name: value[i] for name, value in each.items()} | {"prompt": prompts[i]} for i in range(count)]
