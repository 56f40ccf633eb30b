"""Rewards for reinforcement learning: what a text is worth, as plain functions of texts and columns.

A reward of your own is one file, for example length.py, used with `--rewards length.py:build --length_words 30`:

    import dataclasses
    from drive_vlm.config import field
    from drive_vlm.rewards.text import completion_text

    @dataclasses.dataclass
    class LengthConfig:
        length_words: int = field(20, help="words that an answer should have")

    def build(config: LengthConfig):
        # columns["reference"] and the others hold one value for each completion
        def length(prompts, completions, **columns):
            words = [len(completion_text(completion).split()) for completion in completions]
            return [-abs(count / config.length_words - 1) for count in words]
        return length

The dataclass holds the reward's flags; their names start with the reward's, since a command line may hold several rewards.
A builder without arguments has no flags. `module:builder` works as well as `FILE.py:builder`, and a reward of this package
gets a line in REWARDS. Rewards may import judges, clip and data.

Two optional attributes:
- `last_terms`: one dataclass or dict for each completion of the last call; a samples file shows them.
- `check(**columns) -> list[str | None]`, which GRPO calls before it trains: for each row why the reward cannot score it,
  None where it can. `columns` hold one value a row of the data: those of a later call (`reference`, `video`, `image` ...),
  `sample` (the row itself, data.samples.Sample), and `frames` (numbers of the frames that the run takes of the video, None
  for a row without one).

For the author of a stage: it reads the names first, then their flags (stages/rl/reward_flags.py does):

    names = chosen_rewards(words)                      # the words after --rewards, before anything else is parsed
    configs = [config_class(name) for name in names]   # dataclasses for parse_stage or config.add_dataclass
    rewards = [build_reward(name, config) for name, config in zip(names, parsed_configs)]
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
REWARDS = {"physics": "drive_vlm.rewards.physics:build"}


class Reward(Protocol):
    """A reward function as trl.GRPOTrainer calls it. `__name__` names its curve in the log."""

    __name__: str

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """One finite float a completion (a text, or a list of messages), or None: the reward does not apply to it. `columns`
        hold one value a completion."""


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
        # Before it runs: dataclasses look their module up there.
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def reward_name(name: str) -> str:
    """The name of a reward in logs: its own, or that of its file or module: `my_reward` of src/my_reward.py:build."""
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
