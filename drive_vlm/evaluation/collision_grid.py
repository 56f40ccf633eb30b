"""Whether a trajectory meets other road users: VAD's grid test, written from its definition (planner/metric_stp3.py).

The grid has 200 x 200 cells of 0.5 m around the LiDAR; row 0 is 50 m ahead, column 0 is 50 m to the left.

1. An agent's box at a step (its corners rounded to cells) fills its cells, border included, as OpenCV's fillPoly does with whole
   numbers. Agents are vehicles and pedestrians whose future is annotated at that step, and whose centre now is in the box range.
2. The car is a box of 4.084 x 1.85 m whose middle is 0.5 m ahead of the LiDAR: 8 x 4 cells. It moves along the trajectory and
   does not turn; cells beyond the border count as those at the border.
3. A step is a hit where a cell of the car is filled, unless the true trajectory has a hit at that step too.

VAD's "plan_obj_box_col" is the mean of the hits up to t. Its "plan_obj_col" tests one point whose row and column are off by half
the grid (-bx/2 in place of -bx) and is not offered. UniAD tests against its own occupancy labels, which no info file holds: its
protocol (at t) is applied to VAD's grid here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from drive_vlm.evaluation.planning import STEPS

CELLS = 200
CELL_M = 0.5
EGO_LENGTH, EGO_WIDTH, EGO_AHEAD = 4.084, 1.85, 0.5
# VAD-base and VAD-tiny keep boxes whose centre is inside (x from, y from, x to, y to); other methods have other ranges.
VAD_RANGE = (-15.0, -30.0, 15.0, 30.0)
VEHICLES = ("car", "truck", "construction_vehicle", "bus", "trailer", "motorcycle", "bicycle")
AGENTS = (*VEHICLES, "pedestrian")


@dataclass(frozen=True)
class AgentBox:
    """A road user: centre now and at each step as (x, y, yaw), x right, y forward, yaw from x to y; None: not annotated."""

    name: str
    length: float
    width: float
    now: tuple[float, float, float]
    future: tuple[tuple[float, float, float] | None, ...]


def _ego_cells() -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) int[32]: whole numbers inside of the car's rectangle, in cells from the LiDAR's corner of the grid."""
    first = -CELLS * CELL_M / 2 + CELL_M / 2
    ranges = []
    for low, high in ((-EGO_LENGTH / 2 + EGO_AHEAD, EGO_LENGTH / 2 + EGO_AHEAD), (-EGO_WIDTH / 2, EGO_WIDTH / 2)):
        ranges.append(np.arange(math.ceil((low - first) / CELL_M), math.floor((high - first) / CELL_M) + 1))
    rows, columns = np.meshgrid(*ranges, indexing="ij")
    return rows.ravel(), columns.ravel()


def ego_hits(trajectory: np.ndarray, filled: np.ndarray) -> np.ndarray:
    """bool[T]: whether the car meets a filled cell, trajectory float[T, 2] (x right, y forward), filled bool[T, 200, 200]."""
    ahead, aside = _ego_cells()
    rows = (CELLS - (trajectory[:, 1:] / CELL_M + ahead)).astype(np.int64).clip(0, CELLS - 1)
    columns = (trajectory[:, :1] / CELL_M + aside).astype(np.int64).clip(0, CELLS - 1)
    return filled[np.arange(len(trajectory))[:, None], rows, columns].any(axis=1)


def hits(
    said: Sequence[np.ndarray], true: np.ndarray, agents: Sequence[AgentBox], box_range: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """(bool[S, 6]: steps at which each of S trajectories float[6, 2] hits and the true one does not; bool[6]: where the true one hits)."""
    filled = occupancy(agents, box_range)
    own = ego_hits(true, filled)
    return np.array([ego_hits(way, filled) & ~own for way in said], dtype=bool).reshape(-1, STEPS), own


def occupancy(agents: Sequence[AgentBox], box_range: Sequence[float]) -> np.ndarray:
    """bool[6, 200, 200]: cells that agents fill at each step."""
    filled = np.zeros((STEPS, CELLS, CELLS), dtype=bool)
    left, back, right, front = box_range
    for agent in agents:
        x, y, _ = agent.now
        if agent.name not in AGENTS or not (left < x < right and back < y < front):
            continue
        for step, place in enumerate(agent.future[:STEPS]):
            if place is not None:
                fill(filled[step], corners(agent, place))
    return filled


def corners(agent: AgentBox, place: tuple[float, float, float]) -> np.ndarray:
    """int[4, 2]: (column, row) of the box's corners, in their order around it."""
    x, y, yaw = place
    along = agent.length / 2 * np.array([1, -1, -1, 1])
    across = agent.width / 2 * np.array([1, 1, -1, -1])
    right = math.cos(yaw) * along - math.sin(yaw) * across + x
    forward = math.sin(yaw) * along + math.cos(yaw) * across + y
    half = CELLS * CELL_M / 2
    return np.round(np.stack([right + half, half - forward], axis=1) / CELL_M).astype(np.int64)


def fill(grid: np.ndarray, polygon: np.ndarray) -> None:
    """Fill a polygon int[4, 2] of (column, row) in bool[H, W], border included, as OpenCV's fillPoly does without smoothing.

    Between the borders of a row lies what is inside, rounded to whole cells; flat borders are drawn as lines besides.
    """
    height, width = grid.shape
    edges = list(zip(polygon.tolist(), np.roll(polygon, -1, axis=0).tolist(), strict=True))
    for (x0, y0), (x1, y1) in edges:
        _draw_line(grid, x0, y0, x1, y1)
    for row in range(max(0, int(polygon[:, 1].min())), min(height, int(polygon[:, 1].max()))):
        crossings = sorted(
            x0 + (x1 - x0) * (row - y0) / (y1 - y0) for (x0, y0), (x1, y1) in edges if min(y0, y1) <= row < max(y0, y1)
        )
        for first, last in zip(crossings[::2], crossings[1::2], strict=True):
            begin, end = math.ceil(first), math.floor(last)
            grid[row, max(0, begin) : max(0, min(width, end + 1))] = True


def _draw_line(grid: np.ndarray, x0: int, y0: int, x1: int, y1: int) -> None:
    """Bresenham's line from the left end to the right one, 8-connected, ends included."""
    if x1 < x0:
        x0, y0, x1, y1 = x1, y1, x0, y0
    wide, high, down = x1 - x0, abs(y1 - y0), 1 if y1 >= y0 else -1
    long, short = max(wide, high), min(wide, high)
    error = long - 2 * short
    x, y = x0, y0
    for _ in range(long + 1):
        if 0 <= y < grid.shape[0] and 0 <= x < grid.shape[1]:
            grid[y, x] = True
        aside = error < 0
        error += 2 * long * aside - 2 * short
        x += 1 if wide >= high or aside else 0
        y += down if high > wide or aside else 0
