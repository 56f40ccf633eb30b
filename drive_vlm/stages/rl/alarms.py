"""Alarms of a reinforcement learning run: the ways in which it fails while its loss looks fine."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from drive_vlm.config import field
from drive_vlm.rewards.metric_alarm import MetricAlarm

# Generation batches whose mean length is the run's own measure.
_BASELINE = 10


@dataclasses.dataclass
class AlarmConfig:
    """When a run on rewards is in trouble. Each alarm is a metric (alarm/NAME, 0 or 1) and one warning."""

    alarm_after: int = field(10, help="generation batches in a row that must be bad before an alarm sounds")
    alarm_zero_variance: float = field(
        0.8, help="share of groups whose completions all got the same reward: they teach nothing"
    )
    alarm_kl: float = field(1.0, help="KL to the reference policy, in nats a token")
    alarm_length: float = field(
        4.0, help="factor by which the mean completion may grow or shrink against that of the first 10 batches"
    )
    stop_on_alarm: bool = field(False, help="end the run with an error when an alarm sounds")

    def __post_init__(self) -> None:
        if (
            self.alarm_after < 1
            or self.alarm_length <= 1
            or self.alarm_kl <= 0
            or not 0 < self.alarm_zero_variance <= 1
        ):
            raise ValueError(
                f"--alarm_after {self.alarm_after} must be at least 1, --alarm_length {self.alarm_length} above 1, --alarm_kl "
                f"{self.alarm_kl} above 0, --alarm_zero_variance {self.alarm_zero_variance} in (0, 1]."
            )


_MEANING = {
    "zero_variance": (
        "In {zero_variance:.0%} of the groups all completions got the same reward: these groups teach nothing. Raise --temperature or "
        "--num_generations, use harder or more varied prompts, or a reward with finer steps."
    ),
    "zero_reward": (
        "Every completion got a reward of 0. Read samples.jsonl: is the reward able to score these texts at all? Start from a "
        "model that already earns some reward (SFT first)."
    ),
    "kl": (
        "The KL to the reference policy is {kl:.3g} nats a token: the policy has left what it was trained on, its texts may "
        "be broken (read samples.jsonl). Lower --learning_rate, raise --beta (a2c: --kl_coef), and go on from an earlier checkpoint."
    ),
    "short": (
        "Completions have {length:.1f} tokens on average, a {shrunk:.1f}th of the {baseline:.1f} at the beginning: the reward pays "
        "for saying less. Look for what short texts gain (samples.jsonl), reward coverage, or raise --beta (a2c: --kl_coef)."
    ),
    "long": (
        "Completions have {length:.1f} tokens on average, {grown:.1f} times the {baseline:.1f} at the beginning: the reward pays "
        "for saying more. Penalise length or repetition, lower --max_completion_length, or raise --beta (a2c: --kl_coef)."
    ),
    "truncated": (
        "Every completion was cut off at --max_completion_length: none ends by itself, so none is scored as a whole text. Raise "
        "--max_completion_length, or start from a model that has learned to stop."
    ),
}


class Alarms:
    """Counts bad generation batches in a row: by what every run has, and by `watched`, the alarms of its rewards. All ranks see
    the same gathered numbers, so all decide alike. Raises ValueError for two alarms of one name."""

    def __init__(self, config: AlarmConfig, speaks: bool, watched: Sequence[MetricAlarm] = ()) -> None:
        self.config, self._speaks, self._watched = config, speaks, {alarm.name: alarm for alarm in watched}
        names = [*_MEANING, *(alarm.name for alarm in watched)]
        if len(set(names)) < len(names):
            raise ValueError(f"two alarms have one name: {', '.join(sorted(names))}. Rename that of the reward.")
        self._streak = dict.fromkeys(names, 0)
        self._reported: list[str] = []
        self._lengths: list[float] = []
        self._starts: dict[str, list[float]] = {}

    def observe(
        self,
        zero_variance: float,
        all_zero: bool,
        length: float,
        truncated: float,
        kl: float | None,
        logged: Mapping[str, float] | None = None,
    ) -> dict[str, float]:
        """One generation batch: share of groups without variance, whether every reward is 0, mean completion tokens, share
        of truncated completions, the largest KL of the steps since the batch before (None without a reference), and the
        batch's metrics by name.

        Returns the metrics. Raises ValueError with `stop_on_alarm` when an alarm sounds.
        """
        config = self.config
        if len(self._lengths) < _BASELINE:
            self._lengths.append(length)
        baseline = sum(self._lengths) / len(self._lengths)
        grown = max(length, 1e-9) / max(baseline, 1e-9)
        bad = {
            "zero_variance": zero_variance >= config.alarm_zero_variance and not all_zero,
            "zero_reward": all_zero,
            # `not <=` instead of `>`: NaN is bad as well.
            "kl": kl is not None and not kl <= config.alarm_kl,
            "short": grown < 1 / config.alarm_length,
            "long": grown > config.alarm_length,
            "truncated": truncated >= 1,
        }
        numbers = {"zero_variance": zero_variance, "kl": kl, "length": length, "baseline": baseline}
        words = {
            name: _MEANING[name].format(**numbers, grown=grown, shrunk=1 / grown)
            for name, is_bad in bad.items()
            if is_bad
        }
        for name, alarm in self._watched.items():
            if logged and alarm.metric in logged:
                start, limit = self._limit(alarm, logged[alarm.metric])
                bad[name] = not logged[alarm.metric] <= limit
                words[name] = alarm.words.format(value=logged[alarm.metric], start=start, limit=limit)
        for name, is_bad in bad.items():
            self._streak[name] = self._streak[name] + 1 if is_bad else 0
        sounding = [name for name, count in self._streak.items() if count >= self._after(name)]
        for name in sounding:
            if name in words:
                self._sound(name, words[name])
        return {f"alarm/{name}": float(name in sounding) for name in self._streak}

    def _limit(self, alarm: MetricAlarm, value: float) -> tuple[float, float]:
        """The mean at the start, which `value` joins while the start lasts, and the most that the metric may be."""
        begun = self._starts.setdefault(alarm.name, [])
        if len(begun) < alarm.first:
            begun.append(value)
        start = sum(begun) / len(begun)
        return start, alarm.limit(start)

    def _after(self, name: str) -> int:
        own = self._watched[name].after if name in self._watched else None
        return self.config.alarm_after if own is None else own

    def _sound(self, name: str, meaning: str) -> None:
        if name in self._reported and not self.config.stop_on_alarm:
            return
        count = self._streak[name]
        words = f"alarm {name} ({count} generation batch{'es' * (count > 1)} in a row): {meaning}"
        if self.config.stop_on_alarm:
            raise ValueError(f"{words} The run was stopped (--stop_on_alarm); its last checkpoint is untouched.")
        self._reported.append(name)
        if self._speaks:
            print(f"warning: {words}", file=sys.stderr, flush=True)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "streak": self._streak,
            "told": self._reported,
            "lengths": self._lengths,
            "starts": self._starts,
        }

    def load(self, state: dict[str, Any]) -> None:
        # A checkpoint of a run before rewards had alarms has no starts.
        self._streak, self._starts = self._streak | state["streak"], state.get("starts", {})
        self._reported, self._lengths = state["told"], state["lengths"]
