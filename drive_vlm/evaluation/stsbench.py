"""STSBench's scores: accuracy by scenario, their mean in each of four groups, and the mean of the groups.

Source: LRP-IVC/STSBench, eval/eval.py (38c5174; arXiv 2506.06218). An answer is right there when its first character is the right
letter, in either case: "Based on the frames ..." chooses B. Scores are means of means: over a scenario's questions, over the scenarios
of a group, over the groups ego, ego_agent, agent, agent_agent. Lenient reading stands beside it, and the plain share of right answers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from drive_vlm.evaluation.answers import Said, read_choice
from drive_vlm.evaluation.score_table import ScoreTable
from drive_vlm.evaluation.statistics import Estimate, group_sums, pooled

BENCHMARK, VERSION = "STSBench", "LRP-IVC/STSBench@38c5174"
# Verified questions of the nuScenes benchmark.
PUBLISHED = 971
EGO, EGO_AGENT, AGENT, AGENT_AGENT = "ego", "ego_agent", "agent", "agent_agent"
GROUPS = (EGO, EGO_AGENT, AGENT, AGENT_AGENT)


@dataclass(frozen=True)
class Item:
    """An answered question. `group` is what intervals draw: the recording (log) of its pictures."""

    group: str
    scenario_group: str
    scenario: str
    options: Mapping[str, str]
    letter: str
    prediction: str

    @property
    def template(self) -> str:
        return self.scenario_group

    @property
    def gold(self) -> Said[str]:
        return Said(self.letter)

    def read(self, text: str) -> Said[str]:
        return read_choice(text, self.options)

    @cached_property
    def said(self) -> Said[str]:
        return self.read(self.prediction)

    @property
    def strict(self) -> bool:
        """Right by the official rule. It stops at an empty answer, which is wrong here."""
        return self.prediction[:1].lower() == self.letter.lower()

    @property
    def lenient(self) -> bool:
        return self.said.value == self.letter


def add_scores(table: ScoreTable, items: Sequence[Item]) -> None:
    """The official mean of means by strict and lenient reading, then the share of all rows; what is unread and differs."""
    for name, right in (("strict", [item.strict for item in items]), ("lenient", [item.lenient for item in items])):
        _add_means(table, name, items, np.array(right, dtype=float))
    said, gold = [item.said for item in items], [item.letter for item in items]
    table.add_choices("all rows", [item.strict for item in items], said, gold, [item.group for item in items])
    table.unread = sum(not item.said.read for item in items)
    table.differ = sum(item.strict != item.lenient for item in items)
    if absent := [name for name in GROUPS if not any(item.scenario_group == name for item in items)]:
        table.partial.append(f"no question of the groups {', '.join(absent)}: the average is over the others")


def _add_means(table: ScoreTable, name: str, items: Sequence[Item], right: np.ndarray) -> None:
    """Means of means of `right` float[N]. In a resample that lacks a scenario, its group is the mean of the others."""
    kinds = sorted({(item.scenario_group, item.scenario) for item in items})
    place = {kind: i for i, kind in enumerate(kinds)}
    own = np.array([place[item.scenario_group, item.scenario] for item in items])
    columns = np.zeros((len(items), 2 * len(kinds)))
    columns[np.arange(len(items)), own] = right
    columns[np.arange(len(items)), own + len(kinds)] = 1
    members = {group: [i for i, kind in enumerate(kinds) if kind[0] == group] for group in GROUPS}
    members = {group: places for group, places in members.items() if places}

    def scores(sums: np.ndarray) -> dict[str, np.ndarray]:
        with np.errstate(divide="ignore", invalid="ignore"):
            by_kind = sums[..., : len(kinds)] / sums[..., len(kinds) :]
            found = {group: _mean(by_kind[..., places]) for group, places in members.items()}
            return found | {"average": _mean(np.stack(list(found.values()), axis=-1))}

    sums = group_sums(columns, [item.group for item in items])
    for group, found in pooled(sums, scores, table.seed).items():
        part = [item for item in items if group in ("average", item.scenario_group)]
        logs = len({item.group for item in part})
        if logs < 2:
            # Resamples of the other recordings' rows would only repeat the value.
            found = Estimate(found.value, None, None)
        silent = sum(not item.said.read for item in part) if name == "lenient" else 0
        table.add_estimate(f"{group}, {name}", found, len(part), logs, silent)


def _mean(values: np.ndarray) -> np.ndarray:
    """float[...]: the mean of values float[..., K] that are numbers; NaN without any."""
    known = ~np.isnan(values)
    return np.where(known, values, 0).sum(axis=-1) / known.sum(axis=-1)


def by_scenario(items: Sequence[Item]) -> dict[str, dict[str, float]]:
    """{"group: scenario": {"n", "strict", "lenient"}}, shares in points."""
    found: dict[str, list[Item]] = {}
    for item in items:
        found.setdefault(f"{item.scenario_group}: {item.scenario}", []).append(item)
    return {
        name: {
            "n": len(part),
            "strict": 100 * sum(item.strict for item in part) / len(part),
            "lenient": 100 * sum(item.lenient for item in part) / len(part),
        }
        for name, part in sorted(found.items())
    }
