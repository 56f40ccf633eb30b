"""Scores of replies that may ask back: the reference's golden confusion, kinds of failure one by one, ends of dialogues, baselines, parts."""

import dataclasses

import numpy as np
import pytest

from drive_vlm.evaluation.clarify import (
    ALWAYS,
    FAILURES,
    KINDS,
    NEVER,
    RIGHT,
    Reply,
    about,
    baseline,
    belief_that_pays,
    break_even,
    by_length,
    by_part,
    changes,
    confusion,
    errors_of_answers,
    failure,
    paired,
    parts_of,
    scores,
)
from drive_vlm.evaluation.clarify_replies import ClarifyRow, Verdict, read_reply

CARS = [
    {"name": "the car on the left", "box": [0, 50, 40, 90], "category": "vehicle", "attributes": {"kind": "car", "color": "red", "side": "left"}},
    {"name": "the car in the middle", "box": [90, 50, 130, 80], "category": "vehicle", "attributes": {"kind": "car", "color": "blue", "side": "middle"}},
    {"name": "the truck", "box": [180, 50, 220, 85], "category": "vehicle", "attributes": {"kind": "truck", "color": "white", "side": "right"}},
]  # fmt: skip
ANSWERS = dict(zip((thing["name"] for thing in CARS), ("It is red.", "It is blue.", "It is white."), strict=True))
ASKS = "Do you mean the car on the left, the car in the middle or the truck?"


def ambiguous(**changed):
    columns = {
        "question": "What color is the vehicle?", "ambiguous": 1, "level": 2, "type": "ambiguous", "attribute": "color",
        "candidates": CARS, "target": None, "answer": "", "answers": ANSWERS,
    }  # fmt: skip
    return ClarifyRow.read(columns | changed, "row")


def clear(**changed):
    columns = {
        "question": "What color is the truck?", "ambiguous": 0, "level": 0, "type": "clear", "attribute": "color",
        "candidates": CARS, "target": 2, "answer": "It is white.", "answers": {},
    }  # fmt: skip
    return ClarifyRow.read(columns | changed, "row")


def reply(row, text, group="g", meant=None, after=None, verdict=None):
    second = read_reply(about(row, meant), after) if after is not None else None
    return Reply(row, read_reply(row, text), group, parts_of(row, "vehicle"), meant, second, verdict)


def values(found):
    return {name: rate.value for name, rate in found.items()}


# Section 13 of the reference: ambiguous 1111000000, asked 1101001000.
def golden(groups="abcdefghij"):
    asked = "1101001000"
    rows = [ambiguous()] * 4 + [clear()] * 6
    texts = [(ASKS if ask == "1" else "It is white.") for ask in asked]
    return [reply(row, text, group) for row, text, group in zip(rows, texts, groups, strict=True)]


def test_golden_confusion() -> None:
    found = scores(golden())
    wanted = {
        "ask_precision": 0.75, "ask_recall": 0.75, "ask_F1": 0.75, "over_asking": 1 / 6, "under_asking": 0.25,
        "balanced_accuracy": 0.791667, "youden_J": 0.583333, "MCC": 0.583333,
    }  # fmt: skip
    assert {name: found[name].value for name in wanted} == pytest.approx(wanted, abs=1e-6)
    counts = {"ask_precision": 4, "ask_recall": 4, "ask_F1": 10, "over_asking": 6, "youden_J": 10, "clear_accuracy": 6}
    assert {name: found[name].n for name in counts} == counts
    assert all(found[name].low <= found[name].value <= found[name].high for name in wanted)
    assert confusion(golden()) == {
        "ambiguous": {"asked": 3, "listed": 0, "answered": 1},
        "clear": {"asked": 1, "listed": 0, "answered": 5},
    }
    # Rows of one group are drawn together, and one group has no interval.
    assert scores(golden("aaaaaaaaaa"))["youden_J"].low is None


def test_mcc_by_hand_and_by_correlation() -> None:
    generator = np.random.default_rng(0)
    for _ in range(5):
        truth, asked = generator.random((2, 30)) < 0.5
        made = [
            reply(ambiguous() if a else clear(), ASKS if q else "It is white.", str(i))
            for i, (a, q) in enumerate(zip(truth, asked, strict=True))
        ]
        assert scores(made)["MCC"].value == pytest.approx(np.corrcoef(truth, asked)[0, 1], abs=1e-12)


def test_break_even() -> None:
    assert break_even(1.0, 0.5) == pytest.approx(1 / 3)
    half = [reply(ambiguous(), ASKS), reply(clear(), "It is white."), reply(clear(), "It is red.")]
    assert belief_that_pays(half) == pytest.approx(1 / 3)
    assert belief_that_pays([reply(ambiguous(), ASKS)]) is None


# kind -> row, reply, what follows
EXAMPLES = {
    "unreadable": [(ambiguous(), "", None), (clear(), "I cannot say.", None), (ambiguous(), "It depends.", None)],
    "over_asking": [(clear(), "Do you mean the truck or the car?", None), (clear(), "Do you mean the truck or the car?", "It is white.")],
    "silent_true": [(ambiguous(), "It is red.", None)],
    "silent_false": [(ambiguous(), "It is green.", None)],
    "silent_unknown": [(ambiguous(attribute="free", candidates=[], answers={}), "It is a hat.", None)],
    "listed_at_3": [(ambiguous(level=3), "Red, blue and white.", None)],
    "absent": [(ambiguous(), "Do you mean the bus or the truck?", None)],
    "leading_or_vague": [(ambiguous(), "Do you mean the truck?", None), (ambiguous(), "Which one do you mean?", None)],
    "hallucinated": [
        (clear(), "The bus is red.", None),
        (clear(type="missing_referent", target=None, question="What color is the bus?", answer="There is no bus in the picture."), "It is red.", None),
    ],
    "wrong_class": [(clear(), "The pedestrian is red.", None), (clear(), "The car is red.", None), (ambiguous(), ASKS, "The bus is blue.")],
    "other_instance": [(clear(), "It is red.", None), (ambiguous(), ASKS, "It is white.")],
    "wrong_fact": [(clear(), "It is green.", None), (ambiguous(), "Red and green, the truck is white.", None), (ambiguous(), ASKS, "It is green.")],
    RIGHT: [
        (clear(), "The truck is white.", None), (ambiguous(), ASKS, None), (ambiguous(), ASKS, "It is red."), (ambiguous(), "Red, blue and white.", None),
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_failure(kind: str) -> None:
    for row, text, after in EXAMPLES[kind]:
        assert failure(reply(row, text, meant=0 if row.ambiguous else row.target, after=after)) == kind, (text, after)


def test_every_row_has_one_kind() -> None:
    made = [reply(row, text, meant=0, after=after) for rows in EXAMPLES.values() for row, text, after in rows]
    found = scores(made)
    assert sum(found[f"failure {kind}"].value for kind in KINDS) == pytest.approx(1)
    assert found["failure over_asking"].n == len(made) and list(KINDS)[:-1] == list(FAILURES)


def test_the_end_of_a_dialogue() -> None:
    ends = [
        # meant 0: the car on the left, which is red.
        (reply(ambiguous(), ASKS, meant=0, after="It is red."), True, 1),
        (reply(ambiguous(), ASKS, meant=0, after="It is blue."), False, 1),
        # Two turns at most.
        (reply(ambiguous(), ASKS, meant=0, after="Do you mean the red one or another?"), False, 2),
        (reply(ambiguous(), "It is red.", meant=0), True, 0),
        (reply(ambiguous(), "It is red.", meant=1), False, 0),
        (reply(ambiguous(), "Red, blue and white.", meant=1), True, 0),
        (reply(ambiguous(level=3), "Red, blue and white.", meant=1), False, 0),
        (reply(ambiguous(), "Red and green.", meant=0), False, 0),
        (reply(clear(), "It is white.", meant=2), True, 0),
        (reply(clear(), "Do you mean the truck or the car?", meant=2, after="It is white."), True, 1),
    ]
    assert [(item.final_right, item.questions) for item, _, _ in ends] == [(right, count) for _, right, count in ends]
    found = values(scores([item for item, _, _ in ends]))
    assert found["final_accuracy"] == pytest.approx(0.5) and found["questions"] == pytest.approx(0.5)
    assert found["final_utility"] == pytest.approx(0.5 - 0.1 * 0.5)


def test_without_second_replies_there_is_no_end() -> None:
    """The rows that are answered at once would be another set of rows for each system."""
    made = [reply(ambiguous(), ASKS, "a", 0), reply(clear(), "It is white.", "b", 2)]
    found = scores(made)
    assert (found["final_accuracy"].value, found["final_accuracy"].n, found["final_utility"].value) == (None, 0, None)
    after = [dataclasses.replace(made[0], after=read_reply(about(made[0].row, 0), "It is red.")), made[1]]
    assert scores(after)["final_utility"].value == pytest.approx(0.95)
    moved = changes(made, after)
    assert moved["final_utility"].value is None and moved["ask_recall"].value == 0
    assert paired(made, after)["right in the end"].n == 0


def test_baselines_are_what_no_look_earns() -> None:
    made = [
        reply(ambiguous(), "It is red.", "a", 0),
        reply(ambiguous(), "It is red.", "b", 1),
        reply(clear(), "", "c", 2),
        reply(clear(), "", "d", 2),
    ]
    always = values(scores([baseline(item, ALWAYS, 0) for item in made]))
    assert (always["youden_J"], always["MCC"], always["ask_recall"], always["over_asking"]) == (0, 0, 1, 1)
    assert always["final_utility"] == pytest.approx(0.9) and always["discriminates"] == 1
    never = values(scores([baseline(item, NEVER, 0) for item in made]))
    assert (never["youden_J"], never["MCC"], never["ask_precision"], never["ask_F1"]) == (0, 0, None, 0)
    # The guess is what the first user means, not the second.
    assert (never["final_utility"], never["clear_accuracy"]) == (0.75, 1)


def test_quality_of_questions_back() -> None:
    texts = [
        ASKS,
        "Do you mean the truck?",
        "Do you mean the bus or the tram?",
        "Which one do you mean?",
        "What color is the vehicle?",
    ]
    found = scores([reply(ambiguous(), text, str(i)) for i, text in enumerate(texts)])
    wanted = {"valid": 3, "discriminates": 1, "resolves": 1, "leading": 2, "echo": 1}
    assert {name: round(5 * found[name].value) for name in wanted} == wanted
    assert found["valid"].n == 5 and found["strategic_accuracy level 2"].value == 1


def test_verdicts_of_a_judge() -> None:
    made = [
        reply(ambiguous(), ASKS, "a", verdict=Verdict(4, "pass", True, "")),
        reply(ambiguous(), ASKS, "b", verdict=Verdict(2, "fail", True, "")),
        reply(ambiguous(), ASKS, "c"),
    ]
    found = scores(made)
    assert {name: (found[name].value, found[name].n) for name in ("judge_strategy", "judge_factual", "judge_reward")} == {
        "judge_strategy": (3, 2), "judge_factual": (0.5, 2), "judge_reward": (pytest.approx(0.65), 2),
    }  # fmt: skip
    assert "judge_strategy" not in scores([made[2]])


def test_by_part() -> None:
    made = [
        reply(ambiguous(), ASKS, "a"), reply(ambiguous(candidates=CARS[1:], answers=dict(list(ANSWERS.items())[1:])), "It is blue.", "b"),
        reply(clear(), "It is white.", "c"),
    ]  # fmt: skip
    found = by_part(made)
    assert {value: rates["ask_recall"].value for value, rates in found["candidates"].items()} == {"2": 0, "3": 1}
    assert found["candidates"]["3"]["over_asking"].n == 1 and found["level"]["0"]["ask_recall"].value is None
    # 40 x 40 against 40 x 35; 40 x 35 against 40 x 30.
    assert set(found["size ratio"]) == {"1 to 1.5"}
    assert {value: rates["strategic_accuracy"].n for value, rates in found["side"].items()} == {"left": 1, "right": 2}


def test_by_length() -> None:
    """Long replies to clear rows ask, short ones answer: the score falls with the length."""
    texts = ["It is white."] * 4 + ["The car is red and the truck is white."] * 4 + [ASKS] * 4
    made = [
        reply(clear(), text, str(i), verdict=Verdict(2, "pass", True, "") if i < 2 else None)
        for i, text in enumerate(texts)
    ]
    short, middle, long = by_length(made, bins=3)
    assert [part.words for part in (short, middle, long)] == [3, 9, 16]
    assert [part.strategy.value for part in (short, middle, long)] == [4, 3, 1]
    assert (short.judge.value, short.judge.n, long.judge.value) == (2, 2, None)


def test_changes_and_mcnemar() -> None:
    old, new = (
        golden(),
        [reply(item.row, ASKS if item.row.ambiguous else "It is white.", item.group) for item in golden()],
    )
    moved = changes(old, new)
    assert moved["youden_J"].value == pytest.approx(1 - 0.583333, abs=1e-6) and moved["youden_J"].low >= 0
    tests = paired(old, new)
    found = tests["asks when it should"]
    assert (found.n, found.only_first, found.only_second, found.p) == (10, 0, 2, 0.5)
    assert tests["clear rows answered right"].n == 6


def test_errors_of_sampled_answers() -> None:
    rows = [reply(clear(), "", meant=2), reply(ambiguous(), "", meant=0), reply(clear(), "", meant=2)]
    texts = [
        ["It is white.", "It is red.", "Do you mean the truck or the car?"],
        ["It is red.", "It is blue."],
        [ASKS, ASKS],
    ]
    sampled = [[read_reply(item.row, text) for text in each] for item, each in zip(rows, texts, strict=True)]
    assert errors_of_answers(rows, sampled) == [0.5, 0.5, 1.0]
