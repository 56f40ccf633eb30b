"""Open-loop planning scores: L2 in both protocols, ADE, FDE, miss rate, and what no look at the pictures earns.

A trajectory is float[6, 2], metres, at 0.5, 1.0 ... 3.0 s from now; index k is the time 0.5 (k + 1), so t seconds are index
2 t - 1. With e_k the Euclidean distance of said and true position:

- L2 mean up to t: mean of e_0 .. e_{2t-1}, of which a table shows the mean over rows (VAD's planner/metric_stp3.py, after ST-P3).
- L2 at t: e_{2t-1} (UniAD's planning_metrics.py).
- ADE is the mean of all e_k, the same number as "mean up to 3 s"; FDE is e_5, the same as "at 3 s".
- miss_final: e_5 above 2 m, as VAD counts misses of motion; miss_any: any e_k above 2 m, the nuScenes devkit's MissRate.

VAD leaves out frames whose future is not whole, as the builder does. UniAD keeps them with a mask that makes e_k 0, so its own
numbers over such frames are lower; on whole futures both are these. Collisions: collision_grid.py.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from drive_vlm.evaluation.answers import Said, read_points, unread
from drive_vlm.evaluation.statistics import Estimate, group_sums, pooled, pooled_change

VERSION = "nuscenes-open-loop-planning/1"
STEP_S = 0.5
STEPS = 6
HORIZONS = (1, 2, 3)
# How a row spells a position. The info files of VAD and UniAD have the first: the frame of the LiDAR, from above.
RIGHT_FORWARD = "x right, y forward"
FORWARD_LEFT = "x forward, y left"
AXES = {"right_forward": RIGHT_FORWARD, "forward_left": FORWARD_LEFT}
COMMANDS = ("right", "left", "straight")
MISS_METRES = 2.0
# 3 s at 600 km/h: a number beyond is a slip of the pen, and one of them would be the mean.
FARTHEST_M = 500.0
# A ridge that only keeps a singular system solvable: numbers of the inputs are of the order of 10.
_RIDGE = 1e-3


def step_of(seconds: float) -> int:
    """The index of a time: 1 s is 1, 3 s is 5."""
    index = round(seconds / STEP_S) - 1
    assert 0 <= index < STEPS and abs((index + 1) * STEP_S - seconds) < 1e-9, f"no step at {seconds} s"
    return index


def to_right_forward(points: np.ndarray, axes: str) -> np.ndarray:
    """float[..., 2] in the axes of a row -> x right, y forward. Raises ValueError for other axes."""
    if axes == RIGHT_FORWARD:
        return np.asarray(points, dtype=np.float64)
    if axes == FORWARD_LEFT:
        forward, left = np.moveaxis(np.asarray(points, dtype=np.float64), -1, 0)
        return np.stack([-left, forward], axis=-1)
    raise ValueError(f"axes {axes!r} are not known; a row says {' or '.join(map(repr, AXES.values()))}")


def from_right_forward(points: np.ndarray, axes: str) -> np.ndarray:
    """The inverse of `to_right_forward`."""
    points = np.asarray(points, dtype=np.float64)
    if axes == RIGHT_FORWARD:
        return points
    assert axes == FORWARD_LEFT, axes
    return np.stack([points[..., 1], -points[..., 0]], axis=-1)


def distances(said: np.ndarray, true: np.ndarray) -> np.ndarray:
    """float[N, 6]: e_k of trajectories float[N, 6, 2] each, in the same axes."""
    assert said.shape == true.shape and said.shape[1:] == (STEPS, 2), (said.shape, true.shape)
    return np.sqrt(((said - true) ** 2).sum(axis=-1))


def row_scores(said: np.ndarray, true: np.ndarray) -> dict[str, np.ndarray]:
    """Each score of N rows, float[N]; the mean of a column is what a table of the field shows."""
    errors = distances(said, true)
    scores = {f"L2 mean {t}s": errors[:, : step_of(t) + 1].mean(axis=1) for t in HORIZONS}
    scores["L2 mean avg"] = np.mean([scores[f"L2 mean {t}s"] for t in HORIZONS], axis=0)
    scores |= {f"L2 at {t}s": errors[:, step_of(t)] for t in HORIZONS}
    scores["L2 at avg"] = np.mean([scores[f"L2 at {t}s"] for t in HORIZONS], axis=0)
    scores |= {"ADE": errors.mean(axis=1), "FDE": errors[:, -1]}
    scores["miss_final"] = (errors[:, -1] > MISS_METRES).astype(float)
    scores["miss_any"] = (errors > MISS_METRES).any(axis=1).astype(float)
    return scores


def collision_scores(hits: np.ndarray) -> dict[str, np.ndarray]:
    """Collision rates of N rows, float[N], in both protocols, from hits bool[N, 6] of collision_grid."""
    hits = hits.astype(float)
    scores = {f"collision mean {t}s": hits[:, : step_of(t) + 1].mean(axis=1) for t in HORIZONS}
    return scores | {f"collision at {t}s": hits[:, step_of(t)] for t in HORIZONS}


def estimates(scores: Mapping[str, np.ndarray], groups: Sequence[str], seed: int = 0) -> dict[str, Estimate]:
    """Means of the columns float[N] with 95 % intervals that draw whole `groups` (scenes); undefined without a row."""
    if not len(groups):
        return {name: Estimate(None, None, None) for name in scores}
    return pooled(_sums(scores, groups), _means(list(scores)), seed)


def change(
    first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray], groups: Sequence[str], seed: int = 0
) -> dict[str, Estimate]:
    """`second - first` on the same rows; drawn together, which narrows the interval."""
    assert list(first) == list(second), "the same scores"
    if not len(groups):
        return {name: Estimate(None, None, None) for name in first}
    return pooled_change(_sums(first, groups), _sums(second, groups), _means(list(first)), seed)


def _sums(scores: Mapping[str, np.ndarray], groups: Sequence[str]) -> np.ndarray:
    return group_sums(np.column_stack([*scores.values(), np.ones(len(groups))]), groups)


def _means(names: list[str]) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    def means(sums: np.ndarray) -> dict[str, np.ndarray]:
        return {name: sums[..., i] / sums[..., -1] for i, name in enumerate(names)}

    return means


# --- what no look at the pictures earns


@dataclass(frozen=True)
class EgoState:
    """What is known of N rows without a picture, x right and y forward.

    history float[N, 2, 2]: where the car was 1.0 and 0.5 s ago. speed float[N] in m/s. command int[N]: place in COMMANDS.
    """

    history: np.ndarray
    speed: np.ndarray
    command: np.ndarray

    def __len__(self) -> int:
        return len(self.history)


def stand_still(state: EgoState) -> np.ndarray:
    """float[N, 6, 2] of a car that stays where it is."""
    return np.zeros((len(state), STEPS, 2))


def constant_velocity(state: EgoState) -> np.ndarray:
    """float[N, 6, 2]: the last half second's movement, again each half second."""
    return -state.history[:, 1, None, :] * np.arange(1, STEPS + 1)[None, :, None]


def mean_trajectory(known: EgoState, futures: np.ndarray, state: EgoState) -> np.ndarray:
    """float[N, 6, 2]: the mean future float[M, 6, 2] of `known` rows with the same command; of all where none has it."""
    means = np.stack(
        [
            futures[known.command == place].mean(axis=0) if (known.command == place).any() else futures.mean(axis=0)
            for place in range(len(COMMANDS))
        ]
    )
    return means[state.command]


def ego_only(known: EgoState, futures: np.ndarray, state: EgoState) -> np.ndarray:
    """float[N, 6, 2] by a ridge regression of futures float[M, 6, 2] on history, speed and command of `known` rows.

    Each command has weights of its own. It is the linear cousin of AD-MLP (arXiv 2305.10430), which showed that such inputs
    alone reach published numbers on nuScenes; the command is made from the future's end, so it is part of the answer.
    """
    inputs = _inputs(known)
    gram = inputs.T @ inputs + _RIDGE * np.eye(inputs.shape[1])
    weights = np.linalg.solve(gram, inputs.T @ futures.reshape(len(futures), -1))
    return (_inputs(state) @ weights).reshape(-1, STEPS, 2)


def _inputs(state: EgoState) -> np.ndarray:
    """float[N, 18]: history, speed and 1, once for each command and 0 for the others."""
    plain = np.column_stack([state.history.reshape(len(state), -1), state.speed, np.ones(len(state))])
    of_command = np.eye(len(COMMANDS))[state.command]
    return (of_command[:, :, None] * plain[:, None, :]).reshape(len(state), -1)


# --- rows and answers


@dataclass(frozen=True)
class PlanTruth:
    """N rows with their true future float[N, 6, 2], x right and y forward; `axes` is how each row spells positions."""

    future: np.ndarray
    state: EgoState
    axes: tuple[str, ...]
    groups: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.future)


def plan_truth(rows: Sequence[tuple[str, Mapping[str, Any], str]]) -> PlanTruth:
    """From (place, row, group) of each row. Raises ValueError, naming the place, for a row that is none of open-loop planning, or of
    another version."""
    parsed = [_row_truth(where, row) for where, row, _ in rows]
    history, future = (np.array([part[i] for part in parsed]) for i in range(2))
    state = EgoState(history, np.array([part[2] for part in parsed]), np.array([part[3] for part in parsed]))
    return PlanTruth(future, state, tuple(part[4] for part in parsed), tuple(group for *_, group in rows))


def _row_truth(where: str, row: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, float, int, str]:
    version = row.get("protocol")
    if version != VERSION:
        problem = "has no" if version is None else f"is of the protocol {version!r} and not of"
        raise ValueError(
            f"{where}: the row {problem} {VERSION!r}; take rows of tools/build_nuscenes_planning.py, or name the file that has the "
            "futures (--data)"
        )
    if row.get("step_s") != STEP_S or row.get("unit") != "m":
        raise ValueError(f"{where}: step_s {row.get('step_s')} and unit {row.get('unit')!r}; expected {STEP_S} and 'm'")
    ways = []
    for name, count in (("past", 2), ("future", STEPS)):
        try:
            points = np.array(row[name], dtype=np.float64)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f'{where}: no "{name}" of numbers ({error})') from error
        if points.shape != (count, 2) or not np.isfinite(points).all():
            raise ValueError(f'{where}: "{name}" has the shape {points.shape}, expected {count} positions [x, y]')
        try:
            ways.append(to_right_forward(points, row.get("axes", "")))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    speed, command = row.get("speed"), row.get("command")
    if not isinstance(speed, int | float) or command not in COMMANDS:
        raise ValueError(
            f'{where}: "speed" {speed!r} and "command" {command!r}; expected m/s and one of {", ".join(COMMANDS)}'
        )
    return ways[0], ways[1], float(speed), COMMANDS.index(command), row["axes"]


@dataclass(frozen=True)
class Plans:
    """What N answers plan: points float[N, 6, 2], x right and y forward, NaN where unread; problems: why, "" where read."""

    points: np.ndarray
    problems: list[str]

    @property
    def read(self) -> np.ndarray:
        """bool[N]."""
        return np.array([not problem for problem in self.problems], dtype=bool)

    def reasons(self) -> dict[str, int]:
        return dict(Counter(problem for problem in self.problems if problem).most_common())


def read_plan(text: str, axes: str) -> Said[np.ndarray]:
    """The trajectory float[6, 2] of an answer, x right and y forward; unread beyond FARTHEST_M."""
    said = read_points(text, STEPS)
    if said.value is None:
        return unread(said.reason)
    points = to_right_forward(np.array(said.value), axes)
    return Said(points) if np.abs(points).max() <= FARTHEST_M else unread(f"farther than {FARTHEST_M:g} m")


def read_plans(answers: Sequence[str], truth: PlanTruth) -> Plans:
    """The answers of the rows of `truth`, in their order."""
    points = np.full((len(answers), STEPS, 2), np.nan)
    problems = []
    for index, (answer, axes) in enumerate(zip(answers, truth.axes, strict=True)):
        said = read_plan(answer, axes)
        problems.append(said.reason)
        if said.value is not None:
            points[index] = said.value
    return Plans(points, problems)


def unread_share(plans: Plans, groups: Sequence[str], seed: int = 0) -> Estimate:
    """Share of rows whose answer cannot be read."""
    return estimates({"unread": (~plans.read).astype(float)}, groups, seed)["unread"]
