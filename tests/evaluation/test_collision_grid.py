"""VAD's grid test against OpenCV, against an independent writing of its rules, and on cases by hand."""

import math

import numpy as np
import pytest

from drive_vlm.evaluation.collision_grid import (
    VAD_RANGE,
    AgentBox,
    _ego_cells,
    corners,
    ego_hits,
    fill,
    hits,
    occupancy,
)


def alone(said, true, agents):
    """The hits of one trajectory."""
    return hits([said], true, agents, VAD_RANGE)[0][0]


def standing(x, y, name="car", length=4.5, width=1.9, yaw=math.pi / 2):
    place = (x, y, yaw)
    return AgentBox(name, length, width, place, (place,) * 6)


def straight(metres):
    """A way straight ahead, `metres` a step."""
    return np.array([[0.0, metres * k] for k in range(1, 7)])


def test_boxes_fill_the_cells_that_opencv_fills():
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    for _ in range(400):
        box = AgentBox("car", rng.uniform(0.3, 14), rng.uniform(0.3, 4), (0, 0, 0), ())
        polygon = corners(box, (*rng.uniform(-40, 40, 2), rng.uniform(-7, 7)))
        ours, theirs = np.zeros((200, 200), dtype=bool), np.zeros((200, 200))
        fill(ours, polygon)
        cv2.fillPoly(theirs, [polygon.astype(np.int32)], 1.0)
        np.testing.assert_array_equal(ours, theirs > 0)


def test_a_box_beyond_the_border_fills_only_cells_of_the_grid():
    grid = np.zeros((200, 200), dtype=bool)
    fill(grid, corners(standing(0, 49.5), (0, 49.5, math.pi / 2)))
    rows, columns = np.nonzero(grid)
    # The car is 4.5 m long, of which 2.75 m lie inside.
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (0, 6, 98, 102)


def vad_single(trajectory, filled):
    """VAD's evaluate_single_coll with whole numbers inside the rectangle found by trying each."""
    length, width, cell, first = 4.084, 1.85, 0.5, -49.75
    low = ((-length / 2 + 0.5 - first) / cell, (-width / 2 - first) / cell)
    high = ((length / 2 + 0.5 - first) / cell, (width / 2 - first) / cell)
    inside = [(r, c) for r in range(201) for c in range(201) if low[0] < r < high[0] and low[1] < c < high[1]]
    found = []
    for t, (x, y) in enumerate(trajectory.tolist()):
        hit = False
        for r, c in inside:
            row = min(max(int(200 - (y / cell + r)), 0), 199)
            column = min(max(int(x / cell + c), 0), 199)
            hit |= bool(filled[t, row, column])
        found.append(hit)
    return found


def test_the_car_s_cells_are_those_of_the_definition():
    assert len(_ego_cells()[0]) == 32
    rng = np.random.default_rng(3)
    for _ in range(5):
        filled = rng.random((6, 200, 200)) < 0.02
        trajectory = rng.normal(0, 30, (6, 2))
        assert ego_hits(trajectory, filled).tolist() == vad_single(trajectory, filled)


def test_a_car_that_stands_ahead_is_hit_when_the_way_reaches_it():
    """Its rear is at 12 - 2.25 m, the front of ours 2.542 m ahead of the LiDAR: 5.4 m are not enough, 8.1 m are, and 16.2 m are past it."""
    agents = [standing(0, 12)]
    slow, fast = straight(1.0), straight(2.7)
    assert not alone(slow, straight(0.5), agents).any()
    assert alone(fast, slow, agents).tolist() == [False, False, True, True, True, False]


def test_steps_at_which_the_true_way_hits_too_are_left_out():
    agents = [standing(0, 12)]
    fast = straight(2.7)
    assert not alone(fast, fast, agents).any()
    # The true way passes the box's place at the fourth step alone.
    true = straight(0.1)
    true[3] = [0, 12]
    assert alone(fast, true, agents).tolist() == [False, False, True, False, True, False]
    each, own = hits([straight(0.1), fast], true, agents, VAD_RANGE)
    assert own.tolist() == [False, False, False, True, False, False]
    assert not each[0].any() and each[1].tolist() == alone(fast, true, agents).tolist()
    assert hits([], true, agents, VAD_RANGE)[0].shape == (0, 6)


def test_who_counts_and_where():
    assert occupancy([standing(0, 12)], VAD_RANGE).any()
    assert occupancy([standing(0, 12, "pedestrian", 0.7, 0.7)], VAD_RANGE).any()
    for left_out in (standing(0, 12, "barrier"), standing(0, 31), standing(-15, 5)):
        assert not occupancy([left_out], VAD_RANGE).any()
    assert occupancy([standing(0, 31)], (-50, -50, 50, 50)).any()
    gone = AgentBox("car", 4.5, 1.9, (0, 12, 0), ((0, 12, 0), None, None, None, None, None))
    assert occupancy([gone], VAD_RANGE).any(axis=(1, 2)).tolist() == [True] + [False] * 5


def test_right_is_right_and_a_turned_box_is_turned():
    """A box to the right and ahead lies right of the middle and above it; across the road it is longer in x. Corners are
    rounded to cells, halves to even ones."""
    rows, columns = np.nonzero(occupancy([standing(10, 20, yaw=0.0)], VAD_RANGE)[0])
    assert columns.min() >= 100 and rows.max() < 100
    assert (columns.max() - columns.min(), rows.max() - rows.min()) == (8, 4)
