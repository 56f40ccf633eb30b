"""Labels of BDD-OIA as texts and back, and answers of a model taken apart, whatever it writes."""

import json
import unicodedata

import pytest

from drive_vlm.evaluation import oia_labels
from drive_vlm.evaluation.answers.said import json_object
from drive_vlm.evaluation.oia_labels import (
    ACTION_TEXTS,
    OBSTACLES_TO,
    REASON_TEXTS,
    REASONS_FOR,
    Answer,
    Labels,
    action_labels,
    json_answer,
    label_texts,
    normalize_label,
    read_answer,
    reason_labels,
    text_answer,
)

KINDS = {"action": (action_labels, oia_labels._ACTIONS), "reason": (reason_labels, oia_labels._REASONS)}
EVERY = [
    (kind, index, text) for kind, (_, labels) in KINDS.items() for index, texts in enumerate(labels) for text in texts
]
# What a model writes around a label's own words.
DISGUISES = {
    "as it is": "{}",
    "shouted": "THE {}!",
    "dotted": " {}. ",
    "marked": "**{}**",
    "quoted": "“{}”",
}


def test_the_order_is_that_of_the_data_set():
    """The README of the data set: index 7 is a (red) light, 10 and 13 the turn lanes, 15-17 the left side, 18-20 the right."""
    assert len(ACTION_TEXTS) == 4 and len(REASON_TEXTS) == 21
    assert [text.split()[-1] for text in ACTION_TEXTS] == ["forward", "down", "left", "right"]
    at = {0: "follow traffic", 2: "traffic light is green", 3: "obstacle: car", 7: "traffic light", 8: "traffic sign"}
    at |= {
        10: "on the left-turn lane",
        13: "on the right-turn lane",
        17: "solid line on the left",
        19: "no lane on the right",
    }
    assert {index: REASON_TEXTS[index] for index in at} == at
    for left in (9, 10, 11, 15, 16, 17):
        assert REASON_TEXTS[left].replace("left", "right") == REASON_TEXTS[left + 3]
    assert sorted(set().union(*REASONS_FOR, *OBSTACLES_TO.values())) == list(range(21))
    assert sum(map(len, (*REASONS_FOR, *OBSTACLES_TO.values()))) == 21


def test_no_text_names_two_labels():
    for _, labels in KINDS.values():
        keys = [normalize_label(text) for texts in labels for text in texts]
        assert len(set(keys)) == len(keys) and all(keys)
    assert len(set(ACTION_TEXTS) | set(REASON_TEXTS)) == 25


@pytest.mark.parametrize(("kind", "index", "text"), EVERY, ids=[f"{kind}-{text}" for kind, _, text in EVERY])
def test_every_label_and_synonym(kind, index, text):
    find, labels = KINDS[kind]
    for disguise in DISGUISES.values():
        assert find([disguise.format(text)]) == Labels((index,)), disguise
    wide = "".join(chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in text)
    assert unicodedata.normalize("NFKC", wide) == text and find([wide]).indices == (index,)
    # In both forms, next to another label.
    other = (index + 1) % len(labels)
    said = [text, labels[other][0]]
    actions, reasons = (said, [REASON_TEXTS[0]]) if kind == "action" else ([ACTION_TEXTS[0]], said)
    for form in (text_answer(actions, reasons), json_answer("A road.", actions, reasons)):
        answer = read_answer(form)
        assert (list(answer.actions), list(answer.reasons)) == (actions, reasons)
        found = find(answer.actions if kind == "action" else answer.reasons)
        assert found == Labels(tuple(sorted((index, other))))


def test_vectors_and_texts_are_each_other_s_inverse():
    vector = (1, 0, 0, 1)
    assert label_texts(vector, ACTION_TEXTS) == ["move forward", "turn right"]
    assert action_labels(label_texts(vector, ACTION_TEXTS)).vector(4) == vector
    assert reason_labels(REASON_TEXTS).vector(21) == (1,) * 21
    assert reason_labels([]).vector(21) == (0,) * 21
    with pytest.raises(ValueError, match="zip"):
        label_texts((1, 0, 0), ACTION_TEXTS)


def test_out_of_vocabulary_is_returned_and_never_guessed():
    said = ["Turn left", "turn left", "turn left now", "", "!!", "red", "move", "moving forward", "obstacle car truck"]
    found = action_labels(said)
    assert found == Labels((2,), ("turn left now", "", "!!", "red", "move", "moving forward", "obstacle car truck"))
    # A reason is not an action, nor an action a reason.
    assert action_labels(["road is clear"]).indices == () and reason_labels(["turn left"]).indices == ()
    assert reason_labels(["left"]).indices == () and action_labels(["left"]).indices == (2,)


@pytest.mark.parametrize(
    ("text", "index"),
    [
        # all of 3 words, of a label's 4: .857
        ("traffic light green", 2),
        # the same words in another order
        ("car obstacle", 3),
        # 5 of 7 words, of a label's 5: .833
        ("there is no lane on the left", 16),
        ("no lanes on the left", 16),
        ("no lane on the", None),
        # As near to the left as to the right: 3 of 4 words in common with both.
        ("obstacle on lane", None),
        ("the sky", None),
        ("", None),
    ],
)
def test_the_nearest_label_only_on_request(text, index):
    assert reason_labels([text]) == Labels((), (text,))
    found = reason_labels([text], nearest=True)
    assert found == (Labels((), (text,)) if index is None else Labels((index,)))


def test_the_nearest_label_leaves_exact_ones_alone():
    said = ["stop", "please stop", "stop and slow down", "left turn"]
    assert action_labels(said) == Labels((1,), ("please stop", "stop and slow down", "left turn"))
    # "please stop" has 2 of 3 words in common (.667), "stop and slow down" 3 of 3 of 4 (.857)
    assert action_labels(said, nearest=True) == Labels((1, 2), ("please stop",))


def test_the_text_form():
    answer = read_answer(
        "A red light ahead.\n**Action:** Stop/slow down; turn RIGHT;\nReason: traffic light; obstacle: car."
    )
    assert (answer.form, answer.description) == ("text", "A red light ahead.\n**")
    assert action_labels(answer.actions).indices == (1, 3) and reason_labels(answer.reasons).indices == (3, 7)
    assert read_answer("actions: stop") == Answer(actions=("stop",), form="text")
    assert read_answer("Action: ; Reason: ") == Answer(form="text")
    assert read_answer("Action: stop; Justification: a stop sign").reasons == ("a stop sign",)
    # The first "Reason:" ends the actions, what follows is one text.
    assert read_answer("Action: stop; Reason: traffic light. Reason: x").reasons == ("traffic light. Reason: x",)
    for text in ("", "  ", "move forward", "Reason: road is clear", "Reaction: stop", "action stop"):
        assert read_answer(text) == Answer()


def test_the_json_form():
    whole = '{"description": "A road.", "action": ["move forward", "turn left"], "justification": "road is clear"}'
    answer = read_answer(f"\n {whole} ")
    assert answer.form == "json" and answer.fields == json.loads(whole)
    assert (answer.description, answer.actions, answer.reasons) == (
        "A road.",
        ("move forward", "turn left"),
        ("road is clear",),
    )
    for around in ("```json\n{}\n```", "Here: {} Drive safely.", "{}."):
        found = read_answer(around.replace("{}", whole))
        assert found.form == "json_in_text" and found.actions == answer.actions
    assert read_answer("[" + whole + "]") == Answer()
    assert read_answer(whole + whole) == Answer()
    odd = read_answer(
        '{"description": 5, "action": [1, null, " stop ", "", {"a": "b"}], "justification": {"x": 1}, "more": 0}'
    )
    assert (odd.description, odd.actions, odd.reasons, odd.form) == ("", ("stop",), (), "json")
    assert read_answer("{}") == Answer(form="json", fields={})


HOSTILE = {
    "nested brackets": "[" * 10_000 + "]" * 10_000,
    "nested objects": '{"a":' * 100_000,
    "nested objects in text": "x " + '{"a":' * 100_000,
    "braces": "{" * 50_000,
    "braces in text": "x" + "{" * 50_000,
    "key twice": '{"action": "stop", "action": "turn left"}',
    "inner key twice": '{"action": "stop", "more": {"a": 1, "a": 2}}',
    "NaN": '{"action": "stop", "more": NaN}',
    "Infinity": '{"action": "stop", "more": -Infinity}',
    "long number": '{"action": "stop", "more": ' + "9" * 10_000 + "}",
    "half a character": '{"action": "stop \\ud83d"}',
    "half a character as a key": '{"action": "stop", "\\udc00": 1}',
    "cut off": '{"description": "Action: stop; Reason: traffic light", "action": "sto',
    "cut off before the colon": '{"description": "Action: stop; Reason: traffic light"',
    "control character": '{"action": "stop\n"}',
    "single quotes": "{'action': 'stop'}",
    "trailing comma": '{"action": "stop",}',
    "comment": '{"action": "stop" /* now */}',
    "list": '["Action: stop"]',
    "string": '"stop"',
    "null": "null",
    "nul byte": "\x00{\x00",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_json_is_read_as_nothing(text):
    assert read_answer(text) == Answer()
    assert json_object(text) == (None, False)
    # Whatever was said before can still be counted and written.
    json.dumps(text, ensure_ascii=False).encode()


def test_stray_braces_before_an_object():
    assert read_answer("{x} " * 3 + '{"action": "stop"}') == Answer()
    assert read_answer("so {x} " * 3 + '{"action": "stop"}').form == "json_in_text"
    assert read_answer("so {x} " * 1000 + '{"action": "stop"}') == Answer()


def test_whole_characters_stay():
    assert read_answer('{"action": "\\ud83d\\ude97"}').actions == ("🚗",)
    assert json.loads(json_answer("Ein Fußgänger.", ["stop"], [])) == {
        "description": "Ein Fußgänger.",
        "action": "stop",
        "justification": [],
    }
