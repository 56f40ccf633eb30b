"""Completions with what each of their tokens has earned."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from drive_vlm.rewards.text import prefix_texts
from drive_vlm.stages.rl.advantages import returns, scored_places, token_rewards
from drive_vlm.stages.rl.prompts import Prompt, same_keys
from drive_vlm.stages.rl.scorers import Scorer

MISSING_EOS = "missing_eos"


@dataclasses.dataclass
class Completion:
    """One completion of a prompt.

    Attributes:
        ids: its tokens, up to and including the end token.
        log_probs: of the tokens when they were drawn.
        ended: whether it ended by itself.
        text: what it says, without special tokens.
        terms: what it earned of each reward, times that reward's weight; "missing_eos" is the penalty.
        rewards: each reward as it was given; None where it does not apply.
        details: what a reward says that its number was made of.
        gains: r of each token.
        returns: G of the state before each token.
        counted: whether it teaches. Not where a reward that must score has no number for it, nor where no reward has one; next to
            other rewards a number that is missing counts as 0, as in grpo.
    """

    prompt: Prompt
    ids: list[int]
    log_probs: list[float]
    ended: bool
    text: str
    terms: dict[str, float] = dataclasses.field(default_factory=dict)
    rewards: dict[str, float | None] = dataclasses.field(default_factory=dict)
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    gains: list[float] = dataclasses.field(default_factory=list)
    returns: list[float] = dataclasses.field(default_factory=list)
    counted: bool = True

    @property
    def reward(self) -> float:
        """R of the whole text."""
        return sum(self.terms.values())


@dataclasses.dataclass(frozen=True)
class Earning:
    """How completions earn: the weight of each reward, and the flags of the same names (A2CFlags)."""

    weights: Sequence[float]
    reward_shape: str
    reward_every: int
    gamma: float
    missing_eos_penalty: float


def text_of(tokenizer: Any, ids: Sequence[int]) -> str:
    """The words of tokens; half a character at the end is left out."""
    return tokenizer.decode(ids, skip_special_tokens=True).rstrip("\ufffd")


def score(
    completions: Sequence[Completion],
    scorers: Sequence[Scorer],
    earning: Earning,
    tokenizer: Any,
    **tools: Any,
) -> None:
    """Fill in what the completions earn. `tools` are arguments of every reward, such as log_metric.

    A reward that scores prefixes is asked about each `reward_every`-th with "increments"; any other counts when the text is
    complete: a judge is asked once. A prefix of None is worth what the one before it was.
    """
    filled = same_keys([one.prompt.columns for one in completions])
    columns = {name: [row[name] for row in filled] for name in filled[0]}
    by_prefix = [scorer.scores_prefixes and earning.reward_shape == "increments" for scorer in scorers]
    every = earning.reward_every if any(by_prefix) else max(len(one.ids) for one in completions)
    places = [scored_places(len(one.ids), every) for one in completions]
    texts: list[list[str]] = []
    if any(by_prefix):
        every_text = [prefix_texts(tokenizer, one.ids) for one in completions]
        texts = [[so_far[place - 1] for place in at] for so_far, at in zip(every_text, places, strict=True)]
    # R at the places of each completion.
    worth = [[0.0] * len(at) for at in places]
    messages = [[{"role": "assistant", "content": one.text}] for one in completions]
    found: list[list[float | None]]
    for scorer, weight, asks_prefixes in zip(scorers, earning.weights, by_prefix, strict=True):
        if asks_prefixes:
            found = scorer.prefixes(texts, **columns, **tools)
        else:
            prompts, ids = [one.prompt.messages for one in completions], [one.ids for one in completions]
            whole = scorer(prompts, messages, completion_ids=ids, **columns, **tools)
            found = [[*([0.0] * (len(at) - 1)), value] for at, value in zip(places, whole, strict=True)]
        details = scorer.terms(len(completions)) or [None] * len(completions)
        for one, sums, values, detail in zip(completions, worth, found, details, strict=True):
            before = 0.0
            for i, value in enumerate(values):
                # At the end, None is a number that is missing, and not one that stays.
                before = value if value is not None else 0.0 if i == len(values) - 1 else before
                sums[i] += weight * before
            one.rewards[scorer.__name__] = values[-1]
            one.terms[scorer.__name__] = weight * before
            one.counted &= values[-1] is not None or not scorer.must_score
            if detail is not None:
                one.details[scorer.__name__] = detail
    for one, at, sums in zip(completions, places, worth, strict=True):
        one.counted &= any(value is not None for value in one.rewards.values())
        one.terms[MISSING_EOS] = 0.0 if one.ended else -earning.missing_eos_penalty
        sums[-1] += one.terms[MISSING_EOS]
        one.gains = token_rewards(len(one.ids), at, sums)
        one.returns = returns(one.gains, earning.gamma)
