"""The rewards of a run as TRL calls them: counted, checked, and with their terms kept for samples.jsonl."""

import dataclasses
import inspect
import math
from collections.abc import Sequence
from typing import Any

from drive_vlm.rewards import Reward
from drive_vlm.stages.rl.samples_file import clipped


class Scorer:
    """A reward (drive_vlm.rewards.Reward) that may answer None for a completion it does not apply to, and nothing else
    that is not a finite number. With one reward such a completion teaches nothing; next to other rewards it counts as 0 (TRL)."""

    def __init__(self, name: str, reward: Reward) -> None:
        if inspect.iscoroutinefunction(reward) or inspect.iscoroutinefunction(type(reward).__call__):
            raise ValueError(f"reward {name}: async rewards are not taken. Give a plain function; it may use threads.")
        self.__name__, self._reward = name, reward

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: list[Any]) -> list[float | None]:
        """One number a completion. Raises ValueError, with the rows' ids, for a wrong count, NaN or infinity."""
        values = list(self._reward(prompts=prompts, completions=completions, **columns))
        if len(values) != len(completions):
            raise ValueError(
                f"reward {self.__name__} gave {len(values)} numbers for {len(completions)} completions. It must return one each."
            )
        for i, value in enumerate(values):
            if value is not None and not math.isfinite(value):
                text = completions[i][0]["content"] if completions[i] else ""
                raise ValueError(
                    f"reward {self.__name__} is {value} for row {columns['id'][i]}, completion {clipped(text, 200)!r}. Fix the reward: "
                    "None says that it does not apply. Nothing of this step was saved: go on with --resume auto."
                )
        return [None if value is None else float(value) for value in values]

    @property
    def checks(self) -> bool:
        """Whether the reward can name the rows that it cannot score."""
        return callable(getattr(self._reward, "check", None))

    def check(self, columns: dict[str, list[Any]]) -> list[str | None]:
        """What is wrong with each row for this reward. Raises ValueError for a wrong count."""
        # `check` is optional, so the protocol does not have it.
        check: Any = getattr(self._reward, "check")  # noqa: B009
        problems = list(check(**columns))
        if len(problems) != len(columns["id"]):
            raise ValueError(
                f"reward {self.__name__}: check gave {len(problems)} answers for {len(columns['id'])} rows. It must give one each."
            )
        return problems

    def terms(self, count: int) -> list[Any]:
        """What the reward says its last `count` numbers were made of (its `last_terms`: dataclasses or dicts); [] if nothing."""
        found = list(getattr(self._reward, "last_terms", []))
        if len(found) != count:
            return []
        return [
            dataclasses.asdict(item) if dataclasses.is_dataclass(item) and not isinstance(item, type) else item
            for item in found
        ]
