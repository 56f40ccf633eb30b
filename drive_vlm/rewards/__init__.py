"""Rewards for reinforcement learning: what a text is worth, as plain functions of texts and columns.

A reward is one module with one dataclass of flags (fields by `drive_vlm.config.field`; their names start with the
reward's, for a command line may hold several rewards) and `build(config: ThatDataclass) -> Reward`, and one line in
REWARDS. A stage takes the names first, then the flags of those rewards:

    names = chosen_rewards(words)                      # the words after --rewards, before anything else is parsed
    configs = [config_class(name) for name in names]   # dataclasses for parse_stage or config.add_dataclass
    rewards = [build_reward(name, config) for name, config in zip(names, parsed_configs)]
"""

import argparse
import importlib
import typing
from collections.abc import Sequence
from typing import Any, Protocol

from drive_vlm.config import nearest

# name -> "module:build"
REWARDS = {
    "physics": "drive_vlm.rewards.physics:build",
}


class Reward(Protocol):
    """A reward function as trl.GRPOTrainer calls it. `__name__` names its curve in the log."""

    __name__: str

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """One finite float a completion (a text, or a list of messages); `columns` hold one value a completion."""


def _builder(name: str) -> Any:
    if name not in REWARDS:
        raise ValueError(f"unknown reward {name!r}; known: {', '.join(REWARDS)}.{nearest(name, REWARDS)}")
    module, function = REWARDS[name].split(":")
    return getattr(importlib.import_module(module), function)


def config_class(name: str) -> type:
    """The dataclass of the reward's flags: the type of its builder's `config`. Raises ValueError for an unknown name."""
    return typing.get_type_hints(_builder(name))["config"]


def build_reward(name: str, config: Any) -> Reward:
    """The reward, ready to be called. Raises ValueError for an unknown name and for flags that the reward refuses."""
    return _builder(name)(config)


def chosen_rewards(words: Sequence[str], default: Sequence[str] = ()) -> list[str]:
    """The names after --rewards on a command line that is not parsed yet, so that their flags can be added to it."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--rewards", nargs="+", default=list(default))
    names = early.parse_known_args(list(words))[0].rewards
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"--rewards names {', '.join(twice)} twice; give each reward once")
    return names


def completion_text(completion: Any) -> str:
    """The assistant's words of a completion as TRL hands it over: a text, or messages whose content is text or parts."""
    if isinstance(completion, str):
        return completion
    contents = [message["content"] for message in completion]
    parts = [part for content in contents for part in ([content] if isinstance(content, str) else content)]
    return " ".join(part if isinstance(part, str) else part.get("text", "") for part in parts)
