"""Facts of free questions: chosen from boxes, held against answers."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from drive_vlm.builders.synthesis import vqa
from drive_vlm.builders.synthesis.drawing import draw_box, line_width
from drive_vlm.builders.synthesis.questions import SHARES, QuestionRules, Questions
from drive_vlm.builders.synthesis.records import NamedObject
from drive_vlm.builders.synthesis.scene import side_of

ROOT = Path(__file__).resolve().parents[3]
PROMPTS = ROOT / "tools" / "prompts" / "synthesis"
CLASSES = {"car": {"car"}, "taxi": {"car"}, "pedestrian": {"person"}, "person": {"person"}, "bus": {"bus"}}


def classes_in(text: str) -> set[str]:
    return {name for word, names in CLASSES.items() if word in text.lower() for name in names}


def thing(label: str, x1: float, x2: float) -> NamedObject:
    return NamedObject([x1, 10, x2, 20], label, 0.5, "detector")


def facts(
    objects: list[NamedObject], caption: str = "", names: tuple[str, ...] = (), share: float = 0.2
) -> list[vqa.Fact]:
    luck = random.Random(0)
    found = [vqa.choose_fact(objects, caption, names, 300, share, luck, classes_in) for _ in range(400)]
    return [fact for fact in found if fact]


def test_answers_are_held_against_numbers_sides_and_polarity() -> None:
    number = vqa.count("car", Counter(car=3))
    assert [number.problem(text) for text in ("There are 3 cars.", "Three of them.", "Two cars.", "Many.")] == [
        "",
        "",
        "wrong_number",
        "wrong_number",
    ]
    assert vqa.count("car", Counter(car=1)).problem("Three cars and a truck.") == "wrong_number"
    # The middle of 201..220 lies in the right third of 300.
    place = vqa.position(thing("car", 201, 220), 300)
    assert [place.problem(text) for text in ("On the right.", "Ahead on the right.", "On the left.", "To the right, not the left.", "Ahead.")] == [
        "", "", "wrong_side", "wrong_side", "wrong_side",
    ]  # fmt: skip
    assert vqa.position(thing("car", 140, 160), 300).problem("It is in the middle of the picture.") == ""
    assert vqa.position(thing("car", 140, 160), 300).problem("In the middle, to the left.") == "wrong_side"
    yes, no = (vqa.existence(["car"], ["dog"], share, random.Random(0)) for share in (0.0, 1.0))
    assert (yes.absent, no.absent) == (False, True) and '"dog"' in no.order
    assert [no.problem(text) for text in ("No, there is none.", "None.", "Yes, a dog.", "")] == [
        "",
        *["wrong_polarity"] * 3,
    ]
    assert yes.problem("Yes, there is.") == "" and yes.problem("Nothing.") == "wrong_polarity"
    assert [side_of([x, 0, x, 0], 300) for x in (0, 99, 100, 199, 200, 300)] == [
        "left",
        "left",
        "center",
        "center",
        "right",
        "right",
    ]


def test_only_facts_that_are_sure_are_asked_for() -> None:
    kinds = Counter(fact.kind for fact in facts([thing("car", 0, 20), thing("bus", 200, 250)], "A scene.", ("dog",)))
    assert kinds.keys() == set(vqa.KINDS) and min(kinds.values()) > 400 / 6 * 0.6
    # A taxi is a car: neither number nor place of "car" is sure. Too near for a relation: 20 of 300 is less than a tenth.
    beside = facts([thing("car", 0, 20), thing("taxi", 100, 120), thing("bus", 180, 220), thing("dog", 200, 240)])
    told = " ".join(fact.order for fact in beside if fact.kind in ("count", "position", "relation"))
    assert (
        '"car"' not in told
        and '"taxi"' not in told
        and '"bus"' in told
        and "relation" not in {fact.kind for fact in beside}
    )
    twice = facts([thing("car", 0, 20), thing("car", 100, 120), thing("bus", 250, 290)])
    assert not any('"car"' in fact.order for fact in twice if fact.kind in ("position", "relation"))
    assert any('"car"' in fact.order and "number 2" in fact.order for fact in twice if fact.kind == "count")
    left = [fact.order for fact in facts([thing("bus", 200, 250), thing("car", 0, 20)]) if fact.kind == "relation"]
    assert left and all('where "car" is in relation to "bus"' in order for order in left)
    assert facts([]) == [] and {fact.kind for fact in facts([], "A road.")} == {"attribute", "rule"}


def test_what_is_asked_for_in_vain_is_not_there_under_another_word() -> None:
    names = ("person", "Dogs", "car", "bus", "cow")
    labels = Counter({"pedestrian": 1, "dog": 2})
    assert vqa.absent_names(names, labels, "A taxi stands there.", classes_in) == ["bus", "cow"]
    found = facts([thing("pedestrian", 0, 20)], names=names, share=0.2)
    asked = [fact for fact in found if fact.kind == "existence"]
    absent = sum(bool(fact.absent) for fact in asked) / len(asked)
    assert 0.1 < absent < 0.32, absent


@pytest.fixture
def rules() -> dict[str, Any]:
    return {"shares": SHARES, "rows": 7.0, "names": ["dog"], "absent_share": 0.2, "examples": 4, "min_area": 0.0, "show_picture": False, "seed": 0, "classes_in": classes_in}  # fmt: skip


def test_the_shares_of_tasks_hold_over_many_pictures(rules: dict[str, Any]) -> None:
    questions = Questions(PROMPTS, QuestionRules(**rules))
    total: Counter[str] = Counter()
    each = [questions.numbers(f"{i}.jpg") for i in range(4000)]
    for numbers in each:
        total.update(numbers)
    for task, share in {"general": 0.25, "region": 0.45, "suggestion": 0.15, "vqa": 0.15}.items():
        assert total[task] / 4000 / 7 == pytest.approx(share, abs=0.01), task
    # 1.75 is 1 or 2, of 3.15 three or four: rounded by chance, never further.
    assert {numbers["general"] for numbers in each} == {1, 2} and {numbers["region"] for numbers in each} == {3, 4}
    # A picture's numbers are its own, whatever others there are; another seed has others.
    assert Questions(PROMPTS, QuestionRules(**rules)).numbers("7.jpg") == each[7]
    other = Questions(PROMPTS, QuestionRules(**rules | {"seed": 1}))
    assert any(other.numbers(f"{i}.jpg") != each[i] for i in range(20))


def test_a_rectangle_is_seen_at_the_input_size_of_a_model() -> None:
    assert [line_width(width) for width in (64, 800, 1000, 1600, 4000)] == [2, 2, 2, 4, 10]
    picture = Image.new("RGB", (1600, 900), (120, 120, 120))
    shown = draw_box(picture, [400, 300, 420, 330])
    assert picture.getpixel((398, 310)) == (120, 120, 120), "the picture itself is as it was"
    pixels = np.asarray(shown).astype(int)
    assert (pixels[298, 396:424] == (255, 0, 0)).all() and (pixels[300:330, 400:420] == 120).all()
    # CogVLM2 squeezes to 490 x 490, InternVL to 448 x 448: each side of the rectangle is still clearly red.
    small = np.asarray(shown.resize((448, 448), Image.Resampling.BICUBIC)).astype(int)
    redness = small[..., 0] - small[..., 1]
    row, column = round(315 / 900 * 448), round(410 / 1600 * 448)
    assert (redness[row] > 60).sum() >= 2 and (redness[:, column] > 60).sum() >= 2


@pytest.mark.parametrize("box", [[0, 0, 64, 48], [-5, -5, 3, 3], [63, 47, 64, 48], [10, 10, 10, 10], [60, 0, 90, 20]])
def test_a_box_at_the_border_or_without_area_still_gets_a_rectangle(box: list[float]) -> None:
    red = np.asarray(draw_box(Image.new("RGB", (64, 48)), box))[..., 0] == 255
    assert red.sum() >= 24 and not red.all()
