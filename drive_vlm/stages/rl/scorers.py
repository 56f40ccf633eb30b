"""The rewards of a run as TRL calls them: counted, checked, and with their terms kept for samples.jsonl."""

import dataclasses
import inspect
import math
import numbers
from collections.abc import Sequence
from typing import Any

from drive_vlm.rewards import Reward
from drive_vlm.rewards.metric_alarm import MetricAlarm
from drive_vlm.stages.rl.samples_file import clipped


class Scorer:
    """A reward (drive_vlm.rewards.Reward) that may answer None for a completion it does not apply to, and nothing else
    that is not a finite number. With one reward such a completion teaches nothing; next to other rewards it counts as 0 (TRL),
    unless the reward says `must_score`."""

    def __init__(self, name: str, reward: Reward) -> None:
        if inspect.iscoroutinefunction(reward) or inspect.iscoroutinefunction(type(reward).__call__):
            raise ValueError(f"reward {name}: async rewards are not taken. Give a plain function; it may use threads.")
        self.__name__, self._reward = name, reward

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: list[Any]) -> list[float | None]:
        """One number a completion. Raises ValueError, with row and completion, where the reward fails, and for what is no list
        of finite numbers and None, one a completion."""
        try:
            values = self._reward(prompts=prompts, completions=completions, **columns)
        # The author's code may raise anything.
        except Exception as error:
            raise self._failed(error, prompts, completions, columns) from error
        return self._checked(values, completions, columns)

    @property
    def scores_prefixes(self) -> bool:
        """Whether the reward can say what the beginnings of a text are worth (its `prefixes`, drive_vlm.rewards)."""
        return callable(getattr(self._reward, "prefixes", None))

    def prefixes(self, texts: Sequence[Sequence[str]], **columns: Any) -> list[list[float | None]]:
        """A number for each of the beginnings `texts` of each completion, the last of which is the whole text. Raises ValueError as
        a call does."""
        # `prefixes` is optional, so the protocol does not have it.
        ask: Any = getattr(self._reward, "prefixes")  # noqa: B009
        whole = [[{"role": "assistant", "content": beginnings[-1]}] for beginnings in texts]
        try:
            found = ask([list(beginnings) for beginnings in texts], **columns)
        # The author's code may raise anything.
        except Exception as error:
            words = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}".removesuffix(": ")
            rows = ", ".join(map(str, dict.fromkeys(columns["id"])))[:300]
            raise ValueError(
                f"reward {self.__name__} failed for prefixes of rows {rows}: {words}. Nothing of this step was saved: fix the "
                "reward, then --resume auto."
            ) from error
        if not _is_list(found) or len(found) != len(texts):
            raise ValueError(
                f"reward {self.__name__}: prefixes returned {_kind(found)} for {len(texts)} completions. It must return a list for each."
            )
        for i, (values, beginnings) in enumerate(zip(found, texts, strict=True)):
            if not _is_list(values) or len(values) != len(beginnings):
                raise ValueError(
                    f"reward {self.__name__}: prefixes gave {_kind(values)} for {len(beginnings)} prefixes of "
                    f"{_place(i, whole, columns)}. It must give one number each."
                )
        return [
            self._checked(values, [whole[i]] * len(values), {"id": [columns["id"][i]] * len(values)})
            for i, values in enumerate(found)
        ]

    def _checked(self, values: Any, completions: Sequence[Any], columns: dict[str, list[Any]]) -> list[float | None]:
        """A finite number or None for each completion. Raises ValueError for anything else."""
        values = [_number(value) for value in values] if _is_list(values) else values
        if not isinstance(values, list):
            raise ValueError(
                f"reward {self.__name__} returned {_kind(values)} for {len(completions)} completions. It must return a list, one "
                "number each; None for one that it does not apply to."
            )
        if len(values) != len(completions):
            raise ValueError(
                f"reward {self.__name__} gave {len(values)} numbers for {len(completions)} completions. It must return one each."
            )
        for i, value in enumerate(values):
            if value is not None and (not isinstance(value, numbers.Real) or not math.isfinite(value)):
                shown = value if isinstance(value, numbers.Real) else f"{_kind(value)}, no number,"
                raise ValueError(
                    f"reward {self.__name__} is {shown} for {_place(i, completions, columns)}. Fix the reward: "
                    "None says that it does not apply. Nothing of this step was saved: go on with --resume auto."
                )
        return [None if value is None else float(value) for value in values]

    def _failed(
        self, error: Exception, prompts: Sequence[Any], completions: Sequence[Any], columns: dict[str, list[Any]]
    ) -> ValueError:
        """Its error with the row that it fails for, found by asking about one completion at a time."""
        where = f"rows {', '.join(map(str, dict.fromkeys(columns['id'])))[:300]}"
        for i in range(len(completions)):
            # Some of what TRL gives is one thing for all, such as log_metric.
            alone = {k: v[i : i + 1] if _is_list(v) and len(v) == len(completions) else v for k, v in columns.items()}
            try:
                self._reward(prompts=prompts[i : i + 1], completions=completions[i : i + 1], **alone)
            # The same fault, of one completion alone; it is raised by the caller.
            except Exception as single:
                error, where = single, _place(i, completions, columns)
                break
        words = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}".removesuffix(": ")
        return ValueError(
            f"reward {self.__name__} failed for {where}: {words}. Nothing of this step was saved: fix the reward, then --resume auto."
        )

    @property
    def must_score(self) -> bool:
        """Whether a completion for which it answers None leaves the step, whatever other rewards say."""
        return bool(getattr(self._reward, "must_score", False))

    @property
    def whole_group(self) -> bool:
        """Whether all completions of a row leave the step with one for which it must score and answers None."""
        return self.must_score and bool(getattr(self._reward, "whole_group", False))

    @property
    def alarms(self) -> Sequence[MetricAlarm]:
        """The reward's own alarms."""
        return tuple(getattr(self._reward, "alarms", ()))

    @property
    def probes(self) -> bool:
        """Whether the reward has texts that must earn nothing."""
        return callable(getattr(self._reward, "probe", None))

    def probe(self) -> dict[str, Any]:
        """What the reward makes of texts that must earn nothing."""
        # `probe` is optional, so the protocol does not have it.
        probe: Any = getattr(self._reward, "probe")  # noqa: B009
        return dict(probe())

    @property
    def checks(self) -> bool:
        """Whether the reward can name the rows that it cannot score."""
        return callable(getattr(self._reward, "check", None))

    def check(self, columns: dict[str, list[Any]]) -> list[str | None]:
        """What is wrong with each row for this reward. Raises ValueError for a wrong count."""
        # `check` is optional, so the protocol does not have it.
        check: Any = getattr(self._reward, "check")  # noqa: B009
        try:
            problems = list(check(**columns))
        except ValueError:
            # Words of its own.
            raise
        # The author's code may raise anything.
        except Exception as error:
            words = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise ValueError(f"reward {self.__name__}: its check failed ({words}). Fix it, or leave it out.") from error
        if len(problems) != len(columns["id"]):
            raise ValueError(
                f"reward {self.__name__}: check gave {len(problems)} answers for {len(columns['id'])} rows. It must give one each."
            )
        return problems

    def terms(self, count: int) -> list[Any]:
        """What the reward says its last `count` numbers were made of (its `last_terms`: dataclasses or dicts); [] if nothing."""
        found = getattr(self._reward, "last_terms", [])
        if not _is_list(found) or len(found) != count:
            return []
        return [
            dataclasses.asdict(item) if dataclasses.is_dataclass(item) and not isinstance(item, type) else item
            for item in found
        ]


def _is_list(values: Any) -> bool:
    """Whether it holds a value each: a list, tuple, array or tensor."""
    return isinstance(values, (list, tuple)) or (
        hasattr(values, "tolist") and hasattr(values, "__len__") and bool(getattr(values, "ndim", 0))
    )


def _number(value: Any) -> Any:
    """A scalar of numpy or torch as Python's own."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value


def _kind(value: Any) -> str:
    return "None" if value is None else f"{type(value).__name__} {clipped(repr(value), 60)}"


def _place(i: int, completions: Sequence[Any], columns: dict[str, list[Any]]) -> str:
    """Row and completion, for a message."""
    text = completions[i][0]["content"] if completions[i] else ""
    return f"row {columns['id'][i]}, completion {clipped(text, 200)!r}"
