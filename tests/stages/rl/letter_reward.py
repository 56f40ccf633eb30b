"""A reward of one's own, as a user would write it: the share of a completion's letters that are wanted."""

import dataclasses
from typing import Any

from drive_vlm.config import field


@dataclasses.dataclass
class LetterConfig:
    """Flags of the reward."""

    letter_wanted: str = field("aeiou", help="letters that are wanted")


class LetterReward:
    def __init__(self, config: LetterConfig) -> None:
        self.wanted = config.letter_wanted
        self.last_terms: list[dict[str, Any]] = []

    def check(self, **columns: Any) -> list[str | None]:
        return ["no reference" if not reference else None for reference in columns["reference"]]

    def prefixes(self, texts: list[list[str]], **columns: Any) -> list[list[float]]:
        """For a stage that rewards tokens: the share of wanted letters in each beginning."""
        self.last_terms = [
            {"wanted": sum(letter in self.wanted for letter in whole), "letters": len(whole)} for *_, whole in texts
        ]
        return [
            [sum(c in self.wanted for c in text) / max(len(text), 1) for text in beginnings] for beginnings in texts
        ]

    def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        texts = [completion[0]["content"] for completion in completions]
        self.last_terms = [
            {"wanted": sum(letter in self.wanted for letter in text), "letters": len(text)} for text in texts
        ]
        columns["log_metric"]("letter/length", sum(map(len, texts)) / len(texts))
        return [term["wanted"] / max(term["letters"], 1) for term in self.last_terms]


def build(config: LetterConfig) -> LetterReward:
    return LetterReward(config)


def constant() -> Any:
    """No flags: every completion gets 0."""
    return lambda prompts, completions, **columns: [0.0] * len(completions)


def broken() -> Any:
    """NaN for the second completion."""
    return lambda prompts, completions, **columns: [float("nan") if i == 1 else 0.5 for i in range(len(completions))]


def half_counts() -> Any:
    """None for about half of the rows, by their ids, so that whole ranks may be left without a completion that counts."""
    return lambda prompts, completions, **columns: [
        None if sum(map(ord, id)) % 2 else len(completion[0]["content"]) / 50
        for completion, id in zip(completions, columns["id"], strict=True)
    ]


def nothing_counts() -> Any:
    return lambda prompts, completions, **columns: [None] * len(completions)
