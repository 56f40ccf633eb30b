"""R3 by hand: the whole answer is worth 1, any defect costs, and no text breaks it."""

import json

import pytest

from drive_vlm.evaluation.oia_labels import json_answer
from drive_vlm.rewards import build_reward
from drive_vlm.rewards.structure import StructureConfig, structure

FIELDS = {"description": "The road is clear and wide.", "action": "move forward", "justification": "road is clear"}
WHOLE = json.dumps(FIELDS)


def written(**changes):
    """WHOLE with other fields; None takes one out."""
    return json.dumps({key: value for key, value in (FIELDS | changes).items() if value is not None})


@pytest.mark.parametrize(
    "text",
    [
        WHOLE,
        json_answer(FIELDS["description"], ["move forward"], ["road is clear"]),
        f"\n  {json.dumps(dict(reversed(FIELDS.items())), indent=4)}\n",
        written(description=FIELDS["description"].upper(), action=" Move Forward ", justification=["Road is clear"]),
        written(action=["move forward"]),
    ],
)
def test_a_whole_answer_is_worth_1(text):
    assert structure(text).reward == 1 and structure(text, gate=True).reward == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # v: other words or a fence around the object
        (f"Here: {WHOLE}", 0.5),
        (f"```json\n{WHOLE}\n```", 0.5),
        (f"{WHOLE}.", 0.5),
        # c: two of three keys are right
        (written(description=None), (2 / 3 + 2 / 3) / 2),
        (written(description="clear road"), (2 / 3 + 1) / 2),
        (written(description=3), (2 / 3 + 2 / 3) / 2),
        (written(description="  "), (2 / 3 + 2 / 3) / 2),
        (written(justification=None), (2 / 3 + 0) / 2),
        (written(justification=[]), (2 / 3 + 0) / 2),
        (written(justification=["road is clear", 1]), (2 / 3 + 0) / 2),
        (written(action=None), (2 / 3 + 0) / 2),
        (written(action=""), (2 / 3 + 0) / 2),
        (written(action={"move": "forward"}), (2 / 3 + 0) / 2),
        # e: one further key, two
        (written(speed="low"), (1 / 2 + 1) / 2),
        (written(speed="low", note=1), (1 / 3 + 1) / 2),
        # k1 and with it k2: words out of vocabulary
        (written(action="fly"), (1 + 1 / 3) / 2),
        # k2: the reason is for another action
        (written(action="stop"), (1 + 2 / 3) / 2),
        # k2 and k3: the description says nothing of it; "traffic light is green" has three content words
        (written(justification="traffic light is green"), (1 + 2 / 3) / 2),
        (written(description="The light is far.", justification="traffic light is green"), (1 + (2 + 1 / 3) / 3) / 2),
        # Half of the eight 4-grams were said before
        (written(description="the road is clear " * 2 + "the road is"), (2 / 3 + 1 / 2 / 3 + 1) / 2),
        (written(description="clear road, " * 31), (2 / 3 + 1) / 2),
    ],
)
def test_any_defect_costs(text, value):
    assert structure(text).reward == pytest.approx(value) and value < 1
    assert structure(text, gate=True).reward in (0, 1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "{}",
        "[]",
        f"[{WHOLE}]",
        "null",
        "move forward",
        "Action: move forward; Reason: road is clear",
        WHOLE[:-1],
        WHOLE[:60],
        WHOLE + WHOLE,
        WHOLE.replace('"action"', '"description"'),
        WHOLE.replace('"move forward"', "NaN"),
        WHOLE.replace('"move forward"', "-Infinity"),
        WHOLE.replace('"', "'"),
        "{" * 10_000,
        "[" * 10_000,
        '{"description":' * 10_000,
        '{"description":' + "[" * 10_000,
        "x" + '{"a":' * 10_000 + "1" + "}" * 10_000,
    ],
    ids=lambda text: f"{text[:12]}({len(text)})",
)
def test_what_is_no_object_is_worth_0(text):
    assert structure(text).reward == 0 and structure(text, gate=True).reward == 0


def test_the_gate_asks_for_the_exact_form_alone():
    assert structure(written(action="fly", justification="a whim"), gate=True).reward == 1
    for text in (f"```{WHOLE}```", written(description="clear road"), written(speed="low"), written(action=None)):
        assert structure(text, gate=True).reward == 0


def test_a_long_description_buys_nothing():
    """Words behind the cap are not looked at, and the description no longer counts."""
    empty = "one two three four five six seven eight nine ten "
    late = structure(written(description=empty + "road clear"), most_words=10)
    assert (late.words, late.shown, late.complete) == (12, 0, pytest.approx(2 / 3))
    assert structure(written(description=empty + "road clear"), most_words=12).shown == 1
    filled = structure(written(description="the road is clear " * 10))
    assert filled.repeated == pytest.approx(1 - 4 / 37) and filled.reward < 0.9


def test_without_a_vocabulary_any_words_agree():
    free = written(action="wait", justification="clear fog", description="A clear road in fog.")
    assert structure(free, vocabulary=False).reward == 1 and structure(free).reward == pytest.approx((1 + 1 / 3) / 2)


def test_the_reward_of_the_flags():
    logged = {}
    texts = [[{"role": "assistant", "content": WHOLE}], [{"role": "assistant", "content": written(speed="low")}]]
    graded = build_reward("structure", StructureConfig())
    values = graded([""] * 2, texts, log_metric=lambda name, value: logged.update({name: value}))
    assert values == [1, 0.75] == [item.reward for item in graded.last_terms]
    assert logged["structure/valid"] == 1 and logged["structure/exact"] == 0.75 and logged["structure/words"] == 6
    assert build_reward("structure", StructureConfig(structure_mode="gate"))([""] * 2, texts) == [1, 0]
    any_words = StructureConfig(structure_vocabulary="none", structure_words=5)
    assert build_reward("structure", any_words)([""] * 2, texts)[0] == pytest.approx((2 / 3 + 1) / 2)
