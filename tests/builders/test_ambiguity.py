"""What counts as an instance, what stands out, names, and the leak check; rows as a whole are in tests/tools/test_build_ambiguity.py."""

from collections import Counter
from dataclasses import replace

import pytest

from drive_vlm.builders.ambiguity.descriptions import Description, name_of
from drive_vlm.builders.ambiguity.instances import (
    Instance,
    KeepRules,
    Picture,
    SalienceRules,
    iou,
    keep_instances,
    salient,
)
from drive_vlm.builders.ambiguity.leak import leak_problem, text_leak
from drive_vlm.builders.ambiguity.questions import judge

RULES = SalienceRules()


def car(x, width=100, height=100, **more):
    attributes = {"kind": "car", **more.pop("attributes", {})}
    return Instance("vehicle", (x, 300, x + width, 300 + height), attributes, **more)


def kept(*things, **rules):
    left_out = Counter()
    picture = Picture("p", "g", "p.png", (720, 1280), "here", things)
    return keep_instances(picture, KeepRules(**rules), left_out), dict(left_out)


@pytest.mark.parametrize(
    ("poor", "reason", "rules"),
    [
        (car(600, score=0.49), "low_score", {}),
        (car(600, width=23.9), "small_side", {}),
        (car(600, width=30, height=30.7), "small_area", {}),
        (car(600, visible=0.49), "hidden", {}),
        (car(600, width=90, height=70), "small_side", {"min_side": 71}),
        # Middles 25 pixels apart; 2 % of 1280 are 25.6.
        (replace(car(115, width=120), box=(115, 500, 235, 560)), "centre_gap", {}),
    ],
)
def test_instances_that_do_not_count_are_doubtful(poor, reason, rules):
    picture, left_out = kept(car(100), poor, **rules)
    assert [thing.box[0] for thing in picture.instances] == [100] and len(picture.doubtful) == 1
    assert left_out == {reason: 1}


def test_at_the_limits_they_count():
    things = (
        car(100, score=0.5),
        car(600, width=24, height=40),
        car(900, visible=0.5),
        car(300, width=30, height=30.8),
    )
    picture, left_out = kept(*things)
    assert len(picture.instances) == 4 and not picture.doubtful and left_out == {}
    assert [thing.attributes["side"] for thing in picture.instances] == ["left", "left", "middle", "right"]


def test_a_copy_of_a_box_is_the_same_thing():
    assert iou((0, 0, 10, 10), (0, 0, 5, 10)) == 0.5 and iou((0, 0, 1, 1), (1, 0, 2, 1)) == 0
    picture, left_out = kept(car(100), car(110, width=80))
    assert len(picture.instances) == 1 and not picture.doubtful and left_out == {"duplicate": 1}
    person = Instance("pedestrian", car(100).box, {})
    assert len(kept(car(100), person)[0].instances) == 2


def test_what_stands_out():
    small, large = car(100), car(600, width=300)
    assert salient((small, large), RULES) is large and salient((small, car(600, width=299)), RULES) is None
    near = car(100, distance=6.0, attributes={"lane": "ego"})
    far = car(600, distance=10.0, attributes={"lane": "left"})
    assert salient((near, far), RULES) is near
    assert salient((near, replace(far, distance=9.9)), RULES) is None
    assert salient((near, replace(far, attributes={"lane": "ego"})), RULES) is None
    assert salient((near, replace(far, attributes={})), RULES) is None


def test_levels_follow_from_the_candidates():
    any_car = Description("vehicle")
    colors = ("red", "white", "red", "blue")
    cars = tuple(car(100 + 200 * i, attributes={"color": color}) for i, color in enumerate(colors))
    found = [judge("color", any_car, cars[:count], RULES) for count in (1, 2, 3, 4)]
    assert [(question.kind, question.level) for question in found] == [("clear", 0), ("ambiguous", 2), ("ambiguous", 2), ("ambiguous", 3)]  # fmt: skip
    same = judge("color", any_car, (cars[0], cars[2]), RULES)
    assert (same.kind, same.level, same.answer, same.target) == ("answer_invariant", 0, "red", None)
    large = car(900, width=400, attributes={"color": "blue"})
    assert judge("color", any_car, (cars[0], large), RULES).level == 1
    assert judge("color", any_car, (cars[0], car(600)), RULES) is None


def test_names_single_out_and_do_not_tell_the_answer():
    looks = (("red", "left"), ("red", "middle"), ("white", "middle"))
    cars = [car(100 + 200 * i, attributes={"color": color, "side": side}) for i, (color, side) in enumerate(looks)]

    def names(attribute):
        return [name_of(thing, cars, Description("vehicle"), attribute, 720) for thing in cars]

    assert names("color") == ["the vehicle on the left", "the second vehicle from the left", "the rightmost vehicle"]
    assert names("state") == ["the vehicle on the left", "the red vehicle in the middle", "the white vehicle"]
    nearest = replace(cars[1], box=(300, 300, 400, 415))
    assert name_of(nearest, [cars[0], nearest, cars[2]], Description("vehicle"), "color", 720) == "the nearest vehicle"


def test_a_text_that_tells_is_found():
    pytest.importorskip("sklearn")
    words = [("the car", 1), ("the car on the left", 0)] * 60
    rows = [
        {"question": f"Where is {text}?", "ambiguous": label, "group": str(i // 4)}
        for i, (text, label) in enumerate(words)
    ]
    found = text_leak(rows)
    assert found["balanced_accuracy"] == 1 and "left" in " ".join(found["clear_words"])
    assert "telling words" in leak_problem(found)
    fair = [{**row, "question": "Where is the car?"} for row in rows]
    assert text_leak(fair)["balanced_accuracy"] <= 0.55 and leak_problem(text_leak(fair)) is None
    few = text_leak(rows[:30])
    assert few["balanced_accuracy"] is None and "15 rows of the rarer label" in few["reason"]
