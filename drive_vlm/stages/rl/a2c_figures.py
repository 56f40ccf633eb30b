"""The figures of an A2C run: added up over the tokens and completions of all ranks, averaged over the steps between two logs."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from drive_vlm.stages.rl.actions import Actions, actions_of
from drive_vlm.stages.rl.advantages import AddUp, LossSums
from drive_vlm.stages.rl.completions import MISSING_EOS, Completion

# Below this standard deviation rewards count as equal, as in TRL.
_EQUAL = 1e-6


def completion_figures(completions: Sequence[Completion], logged: Mapping[str, float]) -> dict[str, Any]:
    """What the ranks tell each other of their completions; plain values."""
    return {
        "rewards": [one.reward if one.counted else None for one in completions],
        "terms": [one.terms if one.counted else None for one in completions],
        "given": [one.rewards for one in completions],
        "lengths": [len(one.ids) for one in completions],
        "ended": [one.ended for one in completions],
        # Rows with a column `actions` have labels, and their answers a vocabulary.
        "actions": [actions_of(one.text) for one in completions if one.prompt.columns.get("actions") is not None],
        "logged": dict(logged),
    }


class Figures:
    """Means of what was added since the last `take`."""

    def __init__(self) -> None:
        self._kept: dict[str, list[float]] = defaultdict(list)
        self._logged: dict[str, list[float]] = defaultdict(list)
        self._sums: list[torch.Tensor] = []
        self._gaps: list[torch.Tensor] = []

    def add(self, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._kept[name].append(value)

    def take(self) -> dict[str, float]:
        means = {name: sum(values) / len(values) for name, values in self._kept.items()}
        self._kept.clear()
        return means

    def log_metric(self, name: str, value: float) -> None:
        """What a reward is given as `log_metric`."""
        self._logged[name].append(float(value))

    def take_logged(self) -> dict[str, float]:
        """The means of what this rank's rewards have logged."""
        means = {name: sum(values) / len(values) for name, values in self._logged.items()}
        self._logged.clear()
        return means

    def sum_up(self, sums: LossSums, gaps: torch.Tensor) -> None:
        """The terms of a micro-batch, and the `gaps float32[N]` between the log-probabilities of its tokens and those of when they
        were drawn."""
        self._sums.append(torch.stack([sums.policy, sums.value, sums.kl, sums.entropy]).detach().double())
        self._gaps.append(gaps.abs().max() if len(gaps) else gaps.new_zeros(()))

    def close_step(self, tokens: int, explained: float, add_up: AddUp) -> float:
        """Add the step's means a token; returns its KL."""
        policy, value, kl, entropy = (add_up(torch.stack(self._sums).sum(0)) / tokens).tolist()
        gap = torch.stack(self._gaps).max()
        if dist.is_initialized():
            dist.all_reduce(gap, op=dist.ReduceOp.MAX)
        self._sums, self._gaps = [], []
        self.add({"policy_loss": policy, "value_loss": value, "kl": kl, "entropy": entropy})
        self.add({"explained_variance": explained, "sampling/log_prob_gap": gap.item()})
        return kl

    def of_completions(
        self, ranks: Sequence[dict[str, Any]], generations: int
    ) -> tuple[dict[str, float], dict[str, Any] | None, list[Actions]]:
        """(figures of a generation batch, what the alarms look at, answers) from `completion_figures` of all ranks.

        Nothing for the alarms where no completion counts.
        """
        joined = {name: [item for rank in ranks for item in rank[name]] for name in ranks[0] if name != "logged"}
        lengths, ended, rewards = joined["lengths"], joined["ended"], joined["rewards"]
        counted = [reward for reward in rewards if reward is not None]
        found = {
            "completions/mean_length": _mean(lengths),
            "completions/min_length": min(lengths),
            "completions/max_length": max(lengths),
            "completions/eos_rate": _mean(ended),
            "completions/left_out": 1 - len(counted) / len(rewards),
        }
        logged: dict[str, list[float]] = defaultdict(list)
        for rank in ranks:
            for name, value in rank["logged"].items():
                logged[name].append(value)
        found |= {name: _mean(values) for name, values in logged.items()}
        for name in joined["given"][0]:
            given = [row[name] for row in joined["given"] if row[name] is not None]
            if given:
                found |= {
                    f"rewards/{name}/mean": _mean(given),
                    f"rewards/{name}/std": math.sqrt(_covariance(given, given)),
                }
        if not counted:
            return found, None, joined["actions"]
        variance = _covariance(counted, counted)
        found |= {"reward": _mean(counted), "reward_std": math.sqrt(variance)}
        terms = [row for row in joined["terms"] if row is not None]
        for name in terms[0]:
            # The shares of all terms add up to one.
            share = _covariance([row[name] for row in terms], counted) / variance if variance > _EQUAL**2 else 0.0
            found[f"rewards/{name}/variance_share"] = share
        found[f"rewards/{MISSING_EOS}/mean"] = _mean([row[MISSING_EOS] for row in terms])
        # A group is what a prompt got; alone in it, a completion is compared with all others.
        size = generations if generations > 1 else len(rewards)
        groups = [[r for r in rewards[i : i + size] if r is not None] for i in range(0, len(rewards), size)]
        observed = {
            "zero_variance": _mean([_covariance(group, group) < _EQUAL**2 for group in groups]),
            "all_zero": not any(counted),
            "length": found["completions/mean_length"],
            "truncated": 1 - found["completions/eos_rate"],
        }
        return found, observed, joined["actions"]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _covariance(left: Sequence[float], right: Sequence[float]) -> float:
    mean_left, mean_right = _mean(left), _mean(right)
    return _mean([(a - mean_left) * (b - mean_right) for a, b in zip(left, right, strict=True)])
