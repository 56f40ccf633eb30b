"""The reward "trajectory": how near is the planned way to the true one? For rows of tools/build_nuscenes_planning.py.

    R = g / (1 + ADE / --trajectory_scale)

ADE is the mean distance of the six positions in metres, as tools/planning_eval.py reads and measures them. g is the format's gate: 1
where the answer has the form of the row's own answer, numbers aside, and --trajectory_loose where words stand around the positions. A
text without six positions earns --trajectory_unread. R never reaches 0, so that far ways differ too.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from drive_vlm.config import field
from drive_vlm.evaluation.planning import plan_truth, read_plan
from drive_vlm.rewards.answer_reward import AnswerReward, Scored
from drive_vlm.rewards.format import same_form


@dataclasses.dataclass
class TrajectoryConfig:
    """Flags of the reward "trajectory"."""

    trajectory_scale: float = field(2.0, help="metres of ADE at which half the reward is left", least=1e-3)
    trajectory_loose: float = field(
        0.5, help="share that is left where the answer is not in the form of the row's own: 1 has no gate", most=1
    )
    trajectory_unread: float = field(
        -1.0, help="reward of an answer without six positions, below 0, which every other is above", least=-100, most=0
    )

    def __post_init__(self) -> None:
        if self.trajectory_unread >= 0:
            raise ValueError(
                f"--trajectory_unread {self.trajectory_unread:g}: below 0, so that unread is worth less than far off"
            )


class TrajectoryReward(AnswerReward):
    __name__ = "trajectory"

    def __init__(self, config: TrajectoryConfig) -> None:
        super().__init__()
        self.config = config

    def score(self, text: str, row: Mapping[str, Any]) -> Scored:
        truth = plan_truth([(f"row {row['id']}", row, "")])
        said = read_plan(text, truth.axes[0])
        if said.value is None:
            return Scored(self.config.trajectory_unread, said.reason)
        ade = float(np.linalg.norm(said.value - truth.future[0], axis=-1).mean())
        gate = 1.0 if same_form(text, row["reference"]) else self.config.trajectory_loose
        return Scored(gate / (1 + ade / self.config.trajectory_scale), said={"ADE": ade, "gate": gate})

    def problem(self, row: Mapping[str, Any]) -> str | None:
        try:
            truth = plan_truth([("", row, "")])
        except ValueError as error:
            return str(error).removeprefix(": ")
        said = read_plan(row.get("reference") or "", truth.axes[0])
        return None if said.read else f"the row's own answer is no trajectory ({said.reason})"

    def curves(self, scored: Sequence[Scored]) -> dict[str, list[float]]:
        read = [item.said for item in scored if not item.reason]
        more = {"ADE": [said["ADE"] for said in read], "in_form": [float(said["gate"] == 1) for said in read]}
        return super().curves(scored) | (more if read else {})


def build(config: TrajectoryConfig) -> TrajectoryReward:
    return TrajectoryReward(config)
