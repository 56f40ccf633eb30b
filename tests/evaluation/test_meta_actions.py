"""Meta-actions: answers that are read and answers that are not, scores against scikit-learn and against the published script."""

import numpy as np
import pytest

from drive_vlm.evaluation import meta_actions as meta
from drive_vlm.evaluation.meta_actions import MetaAction, read_meta_action

PATHS = meta.SENNA_PATHS


@pytest.mark.parametrize(
    ("text", "speed", "path"),
    [
        ("KEEP, STRAIGHT", "KEEP", "STRAIGHT"),
        ("<think>It may stop. Turn left?</think><answer> KEEP, LEFT_TURN </answer>", "KEEP", "LEFT_TURN"),
        ("<think>ACCELERATE</think>\nSTOP, STRAIGHT", "STOP", "STRAIGHT"),
        ("keep,straight", "KEEP", "STRAIGHT"),
        ("Decelerate and turn right.", "DECELERATE", "RIGHT_TURN"),
        ("SPEED plan: Accelerate; PATH plan: left lane change", "ACCELERATE", "LEFT_CHANGE"),
        ("My speed plan is KEEP, and my path plan is RIGHT_CHANGE.", "KEEP", "RIGHT_CHANGE"),
        ("path: go straight, speed: slow down", "DECELERATE", "STRAIGHT"),
        ("**STOP**, **STRAIGHT**", "STOP", "STRAIGHT"),
        ("```\nKEEP, STRAIGHT\n```", "KEEP", "STRAIGHT"),
        ('{"speed": "speed up", "path": "LEFT_TURN"}', "ACCELERATE", "LEFT_TURN"),
        ("The answer is: keep speed, straight ahead", "KEEP", "STRAIGHT"),
        ("STOP", "STOP", None),
        ("turn left", None, "LEFT_TURN"),
    ],
)
def test_what_is_read(text, speed, path):
    said = read_meta_action(text)
    assert (said.speed, said.path) == (speed, path)


@pytest.mark.parametrize(
    "text",
    [
        "", "I cannot say.", "do not stop", "do not stop, go straight", "The car stops at the stop line.", "keep left",
        "KEEP, ACCELERATE", "KEEP ACCELERATE DECELERATE STOP STRAIGHT LEFT_TURN", "LEFT_TURN, RIGHT_TURN",
        "KEEP or STOP, STRAIGHT", "STOP, STRAIGHT, KEEP", '{"speed": "KEEP", "path": "STOP"}', '{"speed": "KEEP", "why": "x"}',
        "<answer>KEEP, STRAIGHT</answer> <answer>STOP, STRAIGHT</answer>", "Should it stop, straight?", "no stop, straight",
    ],
)  # fmt: skip
def test_what_is_not_read_is_no_class(text):
    said = read_meta_action(text)
    assert (said.speed, said.path) == (None, None)


def test_every_pair_of_every_set_reads_back_as_it_is_written():
    for speed in meta.SPEEDS:
        for path in PATHS:
            assert read_meta_action(MetaAction(speed, path).text) == MetaAction(speed, path, strict=True)


def test_lane_changes_are_straight_for_alphadrive():
    assert meta.fold(MetaAction("KEEP", "LEFT_CHANGE"), "alphadrive") == MetaAction("KEEP", "STRAIGHT")
    assert meta.fold(MetaAction("KEEP", "LEFT_CHANGE"), "senna") == MetaAction("KEEP", "LEFT_CHANGE")
    assert meta.fold(MetaAction("KEEP", None), "alphadrive") == MetaAction("KEEP", None)


def drawn(rng, count, unread=0.0):
    def one(names):
        return None if rng.random() < unread else str(rng.choice(names))

    return [MetaAction(one(meta.SPEEDS), one(PATHS)) for _ in range(count)]


def test_scores_are_scikit_learn_s_with_unread_as_no_class():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    true, said = drawn(rng, 120), drawn(rng, 120, unread=0.2)
    left, right = meta.labels(true, "senna"), meta.labels(said, "senna")
    groups = [str(i // 4) for i in range(120)]
    found = meta.scores(left, right, groups)
    for kind, names in (("speed", meta.SPEEDS), ("path", PATHS)):
        places = list(range(len(names)))
        each = metrics.f1_score(left.of(kind), right.of(kind), labels=places, average=None, zero_division=0)
        assert [found[f"F1 {name}"].value for name in names] == pytest.approx(each, abs=1e-9)
        assert found[f"macro F1 {kind}"].value == pytest.approx(each.mean(), abs=1e-9)
        share = np.mean([getattr(a, kind) == getattr(b, kind) for a, b in zip(true, said, strict=True)])
        assert found[f"accuracy {kind}"].value == pytest.approx(share)
        table = meta.confusion(left, right, kind)
        assert sum(map(sum, (row.values() for row in table.values()))) == 120
        assert sum(row[meta.UNREAD] for row in table.values()) == sum(getattr(a, kind) is None for a in said)
    both = np.mean([(a.speed, a.path) == (b.speed, b.path) for a, b in zip(true, said, strict=True)])
    assert found["accuracy"].value == pytest.approx(both) and found["accuracy"].low < both < found["accuracy"].high
    moved = meta.changes(left, right, left, groups)
    assert moved["accuracy"].value == pytest.approx(1 - both)


def published_script(samples):
    """senna_plan_cmd_eval_multi_img.py over (true answer, answer), counting as it does."""
    speeds, paths = ("KEEP", "ACCELERATE", "DECELERATE", "STOP"), ("RIGHT_TURN", "LEFT_TURN", "STRAIGHT")
    counts = {name: [0, 0, 0] for name in (*speeds, *paths)}
    correct = 0
    for own, answer in samples:
        speed, path = own.split(", ")
        for names, word in ((speeds, speed), (paths, path)):
            for name in names:
                if name in answer:
                    counts[name][0 if word in answer else 1] += 1
                elif name in word:
                    counts[name][2] += 1
        correct += speed in answer and path in answer
    f1 = {}
    for name, (tp, fp, fn) in counts.items():
        precision = tp / (tp + fp) if tp + fp else 0
        recall = tp / (tp + fn) if tp + fn else 0
        f1[name] = 2 * precision * recall / (precision + recall) if precision + recall else 0
    return correct / len(samples), f1


def test_the_official_numbers_are_the_published_script_s():
    rng = np.random.default_rng(1)
    true = drawn(rng, 80)
    said = [action.text for action in drawn(rng, 60)] + [
        "",
        "KEEP STOP STRAIGHT LEFT_TURN",
        "keep, straight",
        "STOP",
    ] * 5
    accuracy, f1 = published_script([(action.text, answer) for action, answer in zip(true, said, strict=True)])
    found = meta.official_scores(true, said)
    assert found["accuracy"] == pytest.approx(accuracy, abs=1e-12)
    assert {name: found[f"F1 {name}"] for name in f1} == pytest.approx(f1, abs=1e-12) and set(meta.SENNA_F1) == set(f1)


def test_naming_all_classes_is_right_for_the_script_and_unread_here():
    everything = " ".join((*meta.SPEEDS, *PATHS))
    true = [MetaAction("STOP", "LEFT_TURN")]
    assert meta.official_scores(true, [everything])["accuracy"] == 1
    said = meta.labels([read_meta_action(everything)], "senna")
    assert not said.read.any() and not said.right(meta.labels(true, "senna")).any()


def test_the_commonest_pair_is_the_first_of_equal_ones():
    known = meta.labels([MetaAction("STOP", "STRAIGHT"), MetaAction("KEEP", "LEFT_TURN")], "senna")
    found = meta.majority(known, 3)
    assert found.speed.tolist() == [meta.SPEEDS.index("STOP")] * 3 and found.path.tolist() == [0] * 3
