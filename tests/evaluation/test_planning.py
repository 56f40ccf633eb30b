"""Open-loop planning scores against numbers by hand and against an independent writing of VAD's and UniAD's definitions."""

import math

import numpy as np
import pytest

from drive_vlm.evaluation import planning
from drive_vlm.evaluation.planning import FORWARD_LEFT, RIGHT_FORWARD, EgoState, Plans

STRAIGHT = planning.COMMANDS.index("straight")


def ways(rng, rows):
    return rng.normal(0, 5, size=(rows, 6, 2)).cumsum(axis=1)


def row(future, axes=RIGHT_FORWARD, **more):
    return {
        "protocol": planning.VERSION, "step_s": 0.5, "unit": "m", "axes": axes, "past": [[0, -4], [0, -2]], "future": future,
        "speed": 4.0, "command": "straight", **more,
    }  # fmt: skip


def test_a_second_is_two_steps_and_the_first_of_them_is_at_half_a_second():
    """Errors that double at each step: every number differs from what an index beside it would give."""
    true = np.zeros((1, 6, 2))
    said = np.zeros((1, 6, 2))
    said[0, :, 1] = [1, 2, 4, 8, 16, 32]
    found = {name: float(value[0]) for name, value in planning.row_scores(said, true).items()}
    assert found == {
        "L2 mean 1s": 1.5, "L2 mean 2s": 3.75, "L2 mean 3s": 10.5, "L2 mean avg": 5.25,
        "L2 at 1s": 2, "L2 at 2s": 8, "L2 at 3s": 32, "L2 at avg": 14,
        "ADE": 10.5, "FDE": 32, "miss_final": 1, "miss_any": 1,
    }  # fmt: skip
    assert [planning.step_of(t) for t in (0.5, 1, 2, 3)] == [0, 1, 3, 5]


def test_misses_are_beyond_two_metres():
    true = np.zeros((3, 6, 2))
    said = np.zeros((3, 6, 2))
    said[0, 5, 0], said[1, 2, 0], said[2, 5, 0] = 2.0, 2.1, 2.1
    found = planning.row_scores(said, true)
    assert found["miss_final"].tolist() == [0, 0, 1] and found["miss_any"].tolist() == [0, 1, 1]


def vad_l2(said, true, seconds):
    """VAD's compute_L2 of one frame up to a horizon, step by step."""
    steps = 2 * seconds
    return sum(math.sqrt((said[i][0] - true[i][0]) ** 2 + (said[i][1] - true[i][1]) ** 2) for i in range(steps)) / steps


def uniad_l2(said, true, mask):
    """UniAD's state after frames: the sum of masked distances of each step over the number of frames."""
    total = np.zeros(6)
    for one, other, valid in zip(said, true, mask, strict=True):
        total += np.sqrt((((one - other) ** 2) * valid[:, None]).sum(axis=-1))
    return total / len(said)


def test_both_protocols_are_those_of_the_published_scripts():
    rng = np.random.default_rng(0)
    said, true = ways(rng, 40), ways(rng, 40)
    found = {name: value.mean() for name, value in planning.row_scores(said, true).items()}
    for t in (1, 2, 3):
        by_frame = [vad_l2(one, other, t) for one, other in zip(said.tolist(), true.tolist(), strict=True)]
        assert found[f"L2 mean {t}s"] == pytest.approx(sum(by_frame) / 40, abs=1e-9)
    at = uniad_l2(said, true, np.ones((40, 6)))
    assert [found[f"L2 at {t}s"] for t in (1, 2, 3)] == pytest.approx(at[[1, 3, 5]], abs=1e-9)
    assert found["ADE"] == found["L2 mean 3s"] and found["FDE"] == found["L2 at 3s"]


def test_collisions_in_both_protocols():
    hits = np.array([[0, 1, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0]], dtype=bool)
    found = {name: value.mean() for name, value in planning.collision_scores(hits).items()}
    assert found == {
        "collision mean 1s": 0.25, "collision mean 2s": 0.125, "collision mean 3s": pytest.approx(1 / 6),
        "collision at 1s": 0.5, "collision at 2s": 0, "collision at 3s": 0.5,
    }  # fmt: skip


def test_axes_turn_into_each_other():
    """One metre ahead and two to the left."""
    assert planning.to_right_forward(np.array([1.0, 2.0]), FORWARD_LEFT).tolist() == [-2, 1]
    points = np.random.default_rng(1).normal(size=(4, 6, 2))
    for axes in (RIGHT_FORWARD, FORWARD_LEFT):
        back = planning.to_right_forward(planning.from_right_forward(points, axes), axes)
        np.testing.assert_allclose(back, points)
    with pytest.raises(ValueError, match="axes 'y down' are not known"):
        planning.to_right_forward(points, "y down")


def state_of(history, speed=None, command=None):
    count = len(history)
    return EgoState(
        np.array(history, dtype=float),
        np.array(speed if speed is not None else [0.0] * count),
        np.array(command if command is not None else [STRAIGHT] * count),
    )


def test_constant_velocity_goes_on_by_the_last_half_second():
    found = planning.constant_velocity(state_of([[[9, 9], [0.5, -2]]]))
    assert found.tolist() == [[[-0.5 * k, 2 * k] for k in range(1, 7)]]
    assert not planning.stand_still(state_of([[[9, 9], [0.5, -2]]])).any()


def test_the_mean_future_is_that_of_the_command():
    known = state_of([[[0, 0], [0, 0]]] * 3, command=[0, 0, 2])
    futures = np.stack([np.full((6, 2), value) for value in (1.0, 3.0, 10.0)])
    found = planning.mean_trajectory(known, futures, state_of([[[0, 0], [0, 0]]] * 3, command=[0, 1, 2]))
    # No row turned left: the mean of all.
    assert found[:, 0, 0].tolist() == [2, pytest.approx(14 / 3), 10]


def test_ego_only_finds_a_rule_of_history_and_speed_for_each_command():
    rng = np.random.default_rng(2)
    history, speed, command = rng.normal(0, 4, (300, 2, 2)), rng.uniform(0, 15, 300), rng.integers(0, 3, 300)
    steps = np.arange(1, 7)[None, :, None]
    futures = -history[:, 1:] * steps + np.stack([(command - 1) * 2.0, speed * 0.5], axis=-1)[:, None] * steps
    fresh = EgoState(history[:50], speed[:50], command[:50])
    known = EgoState(history[50:], speed[50:], command[50:])
    np.testing.assert_allclose(planning.ego_only(known, futures[50:], fresh), futures[:50], atol=1e-2)


def test_unread_is_never_the_origin():
    truth = planning.plan_truth([("a:1", row([[0, 1]] * 6), "s")] * 5)
    texts = ["[(0, 1)]", "nothing", "", "[(0, 1), (0, 1), (0, 1), (0, 1), (0, 1), (0, 600)]", str([(0, 1)] * 6)]
    plans = planning.read_plans(texts, truth)
    assert plans.read.tolist() == [False] * 4 + [True] and np.isnan(plans.points[:4]).all()
    assert plans.reasons() == {"1 points where 6 are wanted": 1, "no points": 1, "empty": 1, "farther than 500 m": 1}
    assert planning.unread_share(plans, truth.groups).value == 0.8


def test_an_answer_is_read_in_the_axes_of_its_row():
    truth = planning.plan_truth([("a:1", row([[1, 2]] * 6, FORWARD_LEFT, past=[[-2, 0], [-1, 0]]), "s")])
    assert truth.future[0, 0].tolist() == [-2, 1] and truth.state.history[0].tolist() == [[0, -2], [0, -1]]
    assert planning.read_plans([str([(1, 2)] * 6)], truth).points[0].tolist() == truth.future[0].tolist()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"protocol": "other/2"}, "a:1: the row is of the protocol 'other/2' and not of"),
        ({"protocol": None}, "a:1: the row has no 'nuscenes-open-loop-planning/1'; take rows of tools/build_nuscenes"),
        ({"step_s": 0.1}, "step_s 0.1 and unit 'm'; expected 0.5"),
        ({"unit": "px"}, "unit 'px'"),
        ({"future": [[0, 1]] * 5}, r'"future" has the shape \(5, 2\), expected 6 positions'),
        ({"future": [[0, float("nan")]] * 6}, '"future" has the shape'),
        ({"past": "far"}, 'no "past" of numbers'),
        ({"axes": "y down"}, "axes 'y down' are not known"),
        ({"command": "reverse"}, "\"command\" 'reverse'"),
    ],
)
def test_rows_of_another_kind_are_refused(change, told):
    with pytest.raises(ValueError, match=told):
        planning.plan_truth([("a:1", row([[0, 1]] * 6) | change, "s")])


def test_intervals_draw_scenes_and_a_change_is_paired():
    groups = ["a"] * 3 + ["b"] * 3 + ["c"]
    scores = {"ADE": np.array([1.0, 1, 1, 3, 3, 3, 2])}
    found = planning.estimates(scores, groups)["ADE"]
    assert found.value == 2 and found.low < 2 < found.high
    shifted = {"ADE": scores["ADE"] - 0.5}
    moved = planning.change(scores, shifted, groups)["ADE"]
    assert (moved.value, moved.low, moved.high) == pytest.approx((-0.5, -0.5, -0.5))
    assert planning.estimates({"ADE": np.zeros(0)}, [])["ADE"].value is None
    assert Plans(np.zeros((1, 6, 2)), [""]).read.all()
