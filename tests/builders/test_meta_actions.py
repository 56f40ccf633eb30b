"""Meta-actions from futures: Senna's rules at their thresholds, and against an independent writing of them."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from drive_vlm.builders.meta_actions import MetaBuild, meta_action, path_class, speed_class

RULE = MetaBuild(data=[Path("x")], out=Path("y"))


def way(*steps):
    """A way straight ahead whose positions are `steps` metres apart."""
    return np.array([[0.0, y] for y in np.cumsum(steps)])


@pytest.mark.parametrize(
    ("future", "speed"),
    [
        # Speeds are twice the steps; the first step, to the first position, takes no part.
        (way(9, 0.9, 0.9, 0.9, 0.9, 0.9), "STOP"),
        (way(1, 1, 1, 1, 1, 1), "KEEP"),
        (way(0, 0.9, 0.9, 0.9, 0.9, 2.4), "ACCELERATE"),
        (way(0, 1, 1, 1, 1, 2.5), "ACCELERATE"),
        (way(0, 1, 1, 1, 1, 2.49), "KEEP"),
        (way(0, 2.5, 2, 2, 1, 1), "DECELERATE"),
        (way(0, 2.49, 2, 2, 1, 1), "KEEP"),
        (way(4, 4, 9, 9, 9, 4), "KEEP"),
    ],
)
def test_speeds_at_their_thresholds(future, speed):
    assert speed_class(future, 2.0, 3.0) == speed


@pytest.mark.parametrize(
    ("end", "path"),
    [
        ((0, 20), "STRAIGHT"), ((4, 20), "STRAIGHT"), ((4.01, 20), "RIGHT_TURN"), ((-4, 20), "LEFT_TURN"), ((-3.99, 20), "STRAIGHT"),
        ((4.1, 60), "RIGHT_CHANGE"), ((-4.1, 60), "LEFT_CHANGE"), ((10, 0), "RIGHT_TURN"), ((-10, 0), "LEFT_TURN"),
        ((5, -3), "RIGHT_TURN"),
    ],
)  # fmt: skip
def test_paths_at_their_thresholds(end, path):
    future = np.zeros((6, 2))
    future[-1] = end
    assert path_class(future, 4.0, 5.0) == path


def senna(future):
    """get_obj_acc_or_dec and get_obj_turn_or_lane_change, written again from their definition."""
    speeds = [math.dist(a, b) / 0.5 for a, b in itertools.pairwise(future)]
    gained = speeds[-1] - speeds[0]
    speed = "STOP" if max(speeds) < 2 else "ACCELERATE" if gained >= 3 else "DECELERATE" if gained <= -3 else "KEEP"
    x, y = future[-1]
    off = math.degrees(math.atan2(y, x)) - 90.0
    path = "STRAIGHT"
    if x > 4 and off <= -5:
        path = "RIGHT_TURN"
    elif x > 4 and abs(off) < 5:
        path = "RIGHT_CHANGE"
    elif x <= -4 and off >= 5:
        path = "LEFT_TURN"
    elif x <= -4 and abs(off) < 5:
        path = "LEFT_CHANGE"
    return speed, path


def test_a_thousand_ways_have_the_published_classes():
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(1000):
        steps = rng.normal((rng.normal(0, 1.0), rng.uniform(-0.5, 11)), rng.uniform(0, 1.5), size=(6, 2))
        future = steps.cumsum(axis=0)
        action = meta_action(future, RULE)
        assert (action.speed, action.path) == senna(future.tolist())
        seen.add((action.speed, action.path))
    assert len(seen) >= 15


def test_other_thresholds_are_obeyed():
    rule = MetaBuild(data=[Path("x")], out=Path("y"), stop_below=5.0, lateral_metres=1.0, turn_degrees=45.0)
    future = way(1, 1, 1, 1, 1, 1)
    future[:, 0] = 1.5
    assert meta_action(future, rule).text == "STOP, RIGHT_CHANGE"
