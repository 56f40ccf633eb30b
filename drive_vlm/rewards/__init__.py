"""Rewards for reinforcement learning: what a text is worth, as plain functions of texts and columns.

A reward is one module with one dataclass of flags (fields by `drive_vlm.config.field`; their names start with the
reward's, for a command line may hold several rewards) and `build(config: ThatDataclass) -> Reward`, and one line in
REWARDS. A stage takes the names first, then the flags of those rewards:

    names = chosen_rewards(words)                      # the words after --rewards, before anything else is parsed
    configs = [config_class(name) for name in names]   # dataclasses for parse_stage or config.add_dataclass
    rewards = [build_reward(name, config) for name, config in zip(names, parsed_configs)]

A reward of one's own needs no line here: its name is `FILE.py:builder` or `module:builder`. A builder without arguments
has no flags; config_class is None for it. A reward may keep `last_terms`, one dataclass or dict a completion of its last
call, which a samples file then shows.

A reward may offer `check(**columns) -> list[str | None]`, which GRPO asks before it trains: of each row what keeps the
reward from scoring it, None where nothing does. `columns` hold one value a row of the data: those that the reward is later
called with (`reference`, `video`, `image` ...), `frames`, the numbers of the frames that the run takes of the video (None
for a row without one), and `difference(identity, number of frames)`, how the row's files differ from those of an identity
(data.feature_cache), '' where they do not.
"""

import argparse
import hashlib
import importlib
import importlib.util
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
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
    where, colon, function = REWARDS.get(name, name).rpartition(":")
    if not colon:
        raise ValueError(
            f"unknown reward {name!r}; known: {', '.join(REWARDS)}, or your own as FILE.py:builder.{nearest(name, REWARDS)}"
        )
    module = _file_module(where) if where.endswith(".py") else _named_module(where, name)
    if not callable(getattr(module, function, None)):
        raise ValueError(f"reward {name}: {where} has no function {function!r}.")
    return getattr(module, function)


def _named_module(where: str, name: str) -> Any:
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{where}.".startswith(f"{error.name}."):
            raise
        raise ValueError(
            f"reward {name}: no module {where!r}. Give FILE.py:builder or an importable module."
        ) from error


def _file_module(path: str) -> Any:
    """A Python file as a module, run once."""
    if not Path(path).is_file():
        raise ValueError(f"reward {path}: no such file.")
    name = f"drive_vlm_reward_{hashlib.blake2b(str(Path(path).absolute()).encode(), digest_size=8).hexdigest()}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec and spec.loader, "a .py file has a loader"
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up there
        spec.loader.exec_module(module)
    return sys.modules[name]


def reward_name(name: str) -> str:
    """What a reward is called in logs: its name, or the file or module of one's own: `my_reward` of src/my_reward.py:build."""
    where, colon, _ = name.rpartition(":")
    return Path(where).stem if where.endswith(".py") else where.rpartition(".")[2] if colon else name


def config_class(name: str) -> type | None:
    """The dataclass of the reward's flags: the type of its builder's `config`; None for a builder without one.

    Raises ValueError for an unknown name, a missing file or function.
    """
    return typing.get_type_hints(_builder(name)).get("config")


def build_reward(name: str, config: Any) -> Reward:
    """The reward, ready to be called. Raises ValueError for an unknown name and for flags that the reward refuses."""
    return _builder(name)() if config is None else _builder(name)(config)


def chosen_rewards(words: Sequence[str], default: Sequence[str] = ()) -> list[str]:
    """The names after --rewards on a command line that is not parsed yet, so that their flags can be added to it."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--rewards", nargs="+", default=list(default))
    names = early.parse_known_args(list(words))[0].rewards
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"--rewards names {', '.join(twice)} twice; give each reward once")
    return names
