"""The metrics of --eval_metric against numbers worked out by hand, and against scikit-learn's."""

import math
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score

from drive_vlm.evaluation import meta_actions, planning
from drive_vlm.evaluation.answer_metrics import METRICS, check_rows
from drive_vlm.evaluation.metric_help import METRIC_HELP
from drive_vlm.evaluation.oia_labels import text_answer
from drive_vlm.evaluation.statistics import bootstrap_interval


def rows(*pairs: tuple[str, str], **columns: Any) -> list[dict[str, Any]]:
    """(prediction, the row's own answer) as prediction rows."""
    return [{"id": str(i), "question": "", "prediction": a, "reference": b} | columns for i, (a, b) in enumerate(pairs)]


def test_accuracy_draws_whole_groups() -> None:
    said = rows(("Yes.", "yes"), ("no", "yes"), ("the  car", "car"), ("", "no"))
    groups = ["a", "a", "b", "c"]
    found = METRICS["accuracy"].score(said, groups)
    assert found.estimate.value == 0.5 and found.unread is None
    assert (found.estimate.low, found.estimate.high) == bootstrap_interval([1, 0, 1, 0], groups)
    assert METRICS["accuracy"].score(said[:2], groups[:2]).estimate.low is None


def test_macro_f1_counts_rare_answers_as_much_as_common_ones() -> None:
    """scikit-learn's macro F1 over the rows' own answers; an answer that is none of them is unread and no class's."""
    said = rows(("yes", "yes"), ("Yes", "yes"), ("yes", "no"), ("perhaps", "no"), ("no", "no"), ("", "left"))
    found = METRICS["f1"].score(said, [row["id"] for row in said])
    wanted, claimed = ["yes", "yes", "no", "no", "no", "left"], ["yes", "yes", "yes", "-", "no", "-"]
    expected = f1_score(wanted, claimed, labels=["yes", "no", "left"], average="macro", zero_division=0)
    # By hand: yes 2*2/(2+3), no 2*1/(3+1), left 0.
    assert found.estimate.value == pytest.approx(expected, abs=1e-9) == pytest.approx((0.8 + 0.5 + 0) / 3)
    assert found.unread == 2


def test_one_answer_for_everything_has_half_the_accuracy_and_a_third_of_the_f1() -> None:
    said = rows(*[("yes", "yes")] * 3, *[("yes", "no")] * 3)
    groups = [row["id"] for row in said]
    assert METRICS["accuracy"].score(said, groups).estimate.value == 0.5
    assert METRICS["f1"].score(said, groups).estimate.value == pytest.approx((2 * 3 / 9 + 0) / 2)


def test_word_f1() -> None:
    said = rows(("turn left now", "turn left"), ("nothing", "turn left"), ("", "turn left"), ("left left", "left"))
    found = [METRICS["word_f1"].score([row], ["a"]).estimate.value for row in said]
    assert found == pytest.approx([4 / 5, 0, 0, 2 / 3])
    assert METRICS["word_f1"].score(said, list("abcd")).estimate.value == pytest.approx(sum(found) / 4)


def test_rouge_l_is_that_of_the_captions() -> None:
    said = rows(("turn left now", "turn left"))
    precision, recall, beta = 2 / 3, 1.0, 1.2
    expected = (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
    assert METRICS["rouge_l"].score(said, ["a"]).estimate.value == pytest.approx(expected)


def test_choices_strict_lenient_and_unread() -> None:
    """What cannot be read is no A: not right, counted, and not among the right ones of rows whose answer is A."""
    question = "What will it do? A. Going ahead. B. Turn left."
    pairs = (("A", "A"), ("The correct answer is A.", "A"), ("hm", "A"), ("B", "A"), ("A or B", "A"), ("b", "B"))
    found = METRICS["choice"].score(rows(*pairs, question=question), list("abcdef"))
    assert found.estimate.value == pytest.approx(3 / 6) and found.unread == 2
    assert found.more == {"strict": pytest.approx(1 / 6), "differ": 2.0}


def test_actions_are_scored_as_the_evaluation_of_bdd_oia_scores_them() -> None:
    truth = [[1, 0, 0, 0], [0, 1, 1, 0], [1, 0, 0, 0]]
    texts = [
        text_answer(["move forward"], ["the road is clear"]),
        text_answer(["stop"], ["red light"]),
        "I do not know",
    ]
    said = [
        row | {"actions": labels} for row, labels in zip(rows(*((text, "x") for text in texts)), truth, strict=True)
    ]
    found = METRICS["oia_f1"].score(said, ["a", "b", "c"])
    claimed = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    by_row = f1_score(np.array(truth), claimed, average="samples", zero_division=0)
    by_class = f1_score(np.array(truth), claimed, average="macro", zero_division=0)
    assert found.estimate.value == pytest.approx(by_row) and found.more["mF1"] == pytest.approx(by_class)
    assert found.unread == 1


def plan(way: list[list[float]]) -> dict[str, Any]:
    """The columns of a row of open-loop planning."""
    return {
        "past": [[0, -8], [0, -4]], "future": way, "speed": 8.0, "command": "straight", "axes": planning.RIGHT_FORWARD, "unit": "m",
        "step_s": 0.5, "protocol": planning.VERSION,
    }  # fmt: skip


STRAIGHT = [[0.0, 4.0 * step] for step in range(1, 7)]


def test_an_unread_trajectory_is_no_hit_and_no_distance() -> None:
    """3 m beside the way at each step is a miss; the answer without a trajectory is not taken for the origin, 24 m away."""
    near, far = ([[x, y] for _, y in STRAIGHT] for x in (1.0, 3.0))
    said = [row | plan(STRAIGHT) for row in rows((str(near), "x"), (str(far), "x"), ("I would stop.", "x"))]
    found = METRICS["plan_hit"].score(said, list("abc"))
    assert found.estimate.value == pytest.approx(1 / 3) and found.unread == 1
    assert found.more == {"ADE": pytest.approx(2.0), "FDE": pytest.approx(2.0)}
    nothing = METRICS["plan_hit"].score(said[2:], ["a"])
    assert nothing.estimate.value == 0 and nothing.more == {}


def test_meta_actions() -> None:
    """Speed and path must both be right; half an answer is unread. F1 of the paths by scikit-learn."""
    true = [("KEEP", "STRAIGHT"), ("STOP", "LEFT_TURN"), ("KEEP", "STRAIGHT")]
    texts = ["KEEP, STRAIGHT", "STOP, STRAIGHT", "KEEP"]
    said = [
        row | {"speed_class": speed, "path_class": path, "classes": "senna"}
        for row, (speed, path) in zip(rows(*((text, "x") for text in texts)), true, strict=True)
    ]
    found = METRICS["meta_action"].score(said, list("abc"))
    paths, claimed = meta_actions.CLASSES["senna"], ["STRAIGHT", "STRAIGHT", "-"]
    expected = f1_score([path for _, path in true], claimed, labels=paths, average="macro", zero_division=0)
    assert found.estimate.value == pytest.approx(1 / 3) and found.unread == 1
    assert found.more["f1_path"] == pytest.approx(expected)
    mixed = [said[0], said[1] | {"classes": "alphadrive"}]
    with pytest.raises(ValueError, match="rows of the classes senna and alphadrive are not scored together"):
        check_rows(["meta_action"], mixed, ["r:1", "r:2"])


def test_options_of_a_column_go_before_those_of_the_question() -> None:
    said = rows(("Turn left", "B"), ("A", "B"), question="What now?", options=["Go on", "Turn left"])
    check_rows(["choice"], said, ["r:1", "r:2"])
    assert METRICS["choice"].score(said, ["a", "b"]).estimate.value == 0.5


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_gives_one_row_a_score(name: str) -> None:
    """Without an interval; never NaN, which no tracker takes."""
    row = {
        "id": "1",
        "question": "Which? A. Left. B. Right.",
        "prediction": "A",
        "reference": "A",
        "actions": [1, 0, 0, 0],
    }
    row |= plan(STRAIGHT) | {"speed_class": "STOP", "path_class": "STRAIGHT", "classes": "senna"}
    check_rows([name], [row], ["file:1"])
    for prediction in ("A", ""):
        found = METRICS[name].score([row | {"prediction": prediction}], ["g"])
        assert found.estimate.value is not None and not math.isnan(found.estimate.value)
        assert found.estimate.low is None and METRICS[name].help


def test_what_a_row_lacks_is_said_with_its_place_and_the_other_metrics() -> None:
    told = r"--eval_metric oia_f1: 2 of 2 rows .* cannot be scored; r:1 lacks a column \"actions\" of 4 labels.*\(accuracy, choice"
    with pytest.raises(ValueError, match=told):
        check_rows(["oia_f1"], rows(("", "yes"), ("", "no"), actions=[1, 0]), ["r:1", "r:2"])
    with pytest.raises(ValueError, match=r"1 of 2 rows .* r:2 lacks an answer of its own"):
        check_rows(["accuracy"], rows(("", "yes"), ("", " ")), ["r:1", "r:2"])


def test_help_names_every_metric() -> None:
    assert list(METRIC_HELP) == list(METRICS)
