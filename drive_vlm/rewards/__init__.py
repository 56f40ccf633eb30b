"""Rewards for reinforcement learning: what a text is worth, as plain functions of texts and columns.

A reward is one file with a builder, used with `--rewards FILE.py:build`; a reward of this package gets a line in REWARDS.
ADDING.md has one to paste. The builder's dataclass holds the reward's flags; a builder without arguments has none, and a
function with TRL's own arguments needs no builder. Rewards may import judges, clip, evaluation and data.

Optional attributes of a reward:
- `last_terms`: one dataclass or dict for each completion of the last call; a samples file shows them.
- `check(**columns) -> list[str | None]`, asked before the training: for each row why the reward cannot score it, None where
  it can. `columns` hold one value a row of the data: those of a later call (`reference`, `video`, `image` ...), `sample` (the
  row itself, data.samples.Sample), and `frames` (numbers of the frames that the run takes of the video, None for a row without one).
- `prefixes(texts: list[list[str]], **columns) -> list[list[float | None]]`: the score of every text so far of each completion,
  for stages that pay a reward where it is earned (a2c). `columns` hold one value a completion, as in a call. A reward without
  it counts at the end of the text alone. The texts are those of `prefix_texts`; the score of the whole text is that of a call.
- `must_score = True`: None of this reward means that the score is unknown, not that the reward does not apply. The completion
  then leaves the step, whatever other rewards say of it.
- `whole_group = True`, next to `must_score`: the other completions of the row leave with it, since a mean without the unknown one
  would compare them wrongly. grpo counts these groups (NAME/groups_left_out); a2c has no groups, so the completion leaves alone.
- `alarms`: MetricAlarms (metric_alarm.py) over what the reward logs (`log_metric`) or the stage does. They sound as a run's own do (--stop_on_alarm).
- `probe() -> dict`: asked on the main process before the first and after the last step: what the reward makes of texts that
  must earn nothing. The result, as JSON holds it, is a line of probes.jsonl; a text in its "alarm" is a warning.
A config class may name in MAY_CHANGE those of its flags that a resumed run may change (where a judge is served).

For the author of a stage: it reads the names first, then their flags (stages/rl/reward_flags.py does):

    names = chosen_rewards(words)                      # the words after --rewards, before anything else is parsed
    configs = [config_class(name) for name in names]   # dataclasses for parse_stage or config.add_dataclass
    rewards = [build_reward(name, config) for name, config in zip(names, parsed_configs)]
"""

import argparse
import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from drive_vlm.config import nearest

# name -> "module:build"
REWARDS = {
    "physics": "drive_vlm.rewards.physics:build",
    "clip": "drive_vlm.rewards.clip:build",
    "action_reason": "drive_vlm.rewards.action_reason:build",
    "structure": "drive_vlm.rewards.structure:build",
    "clarify": "drive_vlm.rewards.clarify:build",
    "choice": "drive_vlm.rewards.choice:build",
    "meta_action": "drive_vlm.rewards.meta_action:build",
    "trajectory": "drive_vlm.rewards.trajectory:build",
    "format": "drive_vlm.rewards.format:build",
}


class Reward(Protocol):
    """A reward function as trl.GRPOTrainer calls it. `__name__` names its curve in the log."""

    __name__: str

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """One finite float a completion (a text, or a list of messages), or None: the reward does not apply to it. `columns`
        hold one value a completion where they are the row's; TRL's own (`log_metric`, `trainer_state`) are one thing for all."""


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
            raise _broken(name, "cannot be imported", error) from error
        raise ValueError(
            f"reward {name}: no module {where!r}. Give FILE.py:builder or an importable module."
        ) from error
    # The author's code may raise anything.
    except Exception as error:
        raise _broken(name, "cannot be imported", error) from error


def _broken(name: str, what: str, error: Exception) -> ValueError:
    """The author's error in one line: type, words, and the line of the reward's own file where it arose."""
    line = error.lineno if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.endswith(name.rpartition(":")[0] or name):
            line = trace.tb_lineno
        trace = trace.tb_next
    place = f", line {line}" if line else ""
    return ValueError(
        f"reward {name} {what} ({type(error).__name__}: {' '.join(str(error).split())[:300]}{place}). Fix it."
    )


def _file_module(path: str) -> Any:
    """A Python file as a module, run once."""
    if not os.path.isfile(path):
        raise ValueError(f"reward {path}: no such file.")
    name = f"drive_vlm_reward_{hashlib.blake2b(str(Path(path).absolute()).encode(), digest_size=8).hexdigest()}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec and spec.loader, "a .py file has a loader"
        module = importlib.util.module_from_spec(spec)
        # Before it runs: dataclasses look their module up there.
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        # The author's code may raise anything.
        except Exception as error:
            del sys.modules[name]
            raise _broken(path, "cannot be imported", error) from error
    return sys.modules[name]


def reward_name(name: str) -> str:
    """The name of a reward in logs: its own, or that of its file or module: `my_reward` of src/my_reward.py:build."""
    where, colon, _ = name.rpartition(":")
    return Path(where).stem if where.endswith(".py") else where.rpartition(".")[2] if colon else name


def config_class(name: str) -> type | None:
    """The dataclass of the reward's flags: the type of its builder's `config`; None for a builder without one.

    Raises ValueError for an unknown name, a missing file or function, and for a `config` that is no dataclass.
    """
    builder = _builder(name)
    if "config" not in _parameters(builder):
        return None
    try:
        found = typing.get_type_hints(builder).get("config")
    # An annotation that cannot be evaluated.
    except Exception as error:
        raise _broken(name, "has annotations that cannot be read", error) from error
    if not dataclasses.is_dataclass(found):
        raise ValueError(
            f"reward {name}: its `config` must be annotated with a dataclass, which holds its flags; got {found}."
        )
    assert isinstance(found, type), "an annotation is a class"
    return found


def _parameters(builder: Any) -> list[str]:
    try:
        return list(inspect.signature(builder).parameters)
    except (TypeError, ValueError):
        # Some built-in functions have no signature.
        return []


def build_reward(name: str, config: Any) -> Reward:
    """The reward, ready to be called: what the builder returns, or the function itself where it has TRL's own arguments.

    Raises ValueError for an unknown name, for flags that the reward refuses, and for a builder that fails or returns no function.
    """
    builder = _builder(name)
    if "completions" in _parameters(builder):
        return builder
    try:
        reward = builder() if config is None else builder(config)
    except ValueError:
        raise
    # The author's code may raise anything.
    except Exception as error:
        raise _broken(name, "cannot be built", error) from error
    if not callable(reward):
        raise ValueError(
            f"reward {name}: the builder returned {type(reward).__name__}. It must return the reward, a function."
        )
    return reward


def chosen_rewards(words: Sequence[str], default: Sequence[str] = ()) -> list[str]:
    """The names after --rewards on a command line that is not parsed yet, so that their flags can be added to it."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--rewards", nargs="+", default=list(default))
    names = early.parse_known_args(list(words))[0].rewards
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"--rewards names {', '.join(twice)} twice; give each reward once")
    return names
