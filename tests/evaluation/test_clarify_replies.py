"""Replies to ambiguous and clear questions, read by rule: hand-written ones of every kind."""

import pytest

from drive_vlm.evaluation.clarify_replies import (
    CANNOT_TELL,
    FAIL,
    PASS,
    ClarifyRow,
    is_decorated,
    overlap,
    parse_verdict,
    plain_reply,
    published_reward,
    read_reply,
)

CARS = [
    {"name": "the car on the left", "box": [0, 50, 40, 90], "category": "vehicle", "attributes": {"kind": "car", "color": "red", "side": "left"}},
    {"name": "the car in the middle", "box": [90, 50, 130, 80], "category": "vehicle", "attributes": {"kind": "car", "color": "blue", "side": "middle"}},
    {"name": "the truck", "box": [180, 50, 220, 85], "category": "vehicle", "attributes": {"kind": "truck", "color": "white", "side": "right"}},
]  # fmt: skip
NAMES = [thing["name"] for thing in CARS]


COLUMNS_OF_ROW = {
    "question": "What color is the vehicle?", "ambiguous": 1, "level": 2, "type": "ambiguous", "attribute": "color",
    "candidates": CARS, "target": None, "answer": "",
    "answers": dict(zip(NAMES, ("It is red.", "It is blue.", "It is white."), strict=True)),
}  # fmt: skip


def row(**changes):
    """An ambiguous row about the color of three vehicles, with the changed columns."""
    return ClarifyRow.read(COLUMNS_OF_ROW | changes, "row 1")


def clear(**changes):
    return row(
        **{"question": "What color is the truck?", "ambiguous": 0, "level": 0, "type": "clear", "target": 2, "answer": "It is white.", "answers": {}} | changes
    )  # fmt: skip


# reply -> strategy, factual, named candidates, splits them, leads, echoes
AMBIGUOUS = {
    "Do you mean the car on the left, the car in the middle or the truck?": (4, PASS, {0, 1, 2}, True, False, False),
    "Do you mean the red car, the blue one or the white truck?": (4, PASS, {0, 1, 2}, True, False, False),
    "Which vehicle do you mean: the leftmost, the second from the left, or the one on the right?": (4, PASS, {0, 1, 2}, True, False, False),
    "Are you asking about the car on the left or another?": (4, PASS, {0, 1, 2}, True, False, False),
    "There are three vehicles. Are you asking about the nearest vehicle or the others?": (4, PASS, {0, 1, 2}, True, False, False),
    "**Do you mean** the truck or the nearest car?": (3, PASS, {0, 2}, True, False, False),
    "Do you mean the cars or the truck?": (4, PASS, {0, 1, 2}, True, False, False),
    "Do you mean the truck?": (2, PASS, {2}, False, True, False),
    "Which one do you mean?": (2, CANNOT_TELL, set(), False, False, False),
    "What color is the vehicle?": (2, PASS, {0, 1, 2}, False, True, True),
    "Do you mean the bus or the tram?": (2, FAIL, set(), False, False, False),
    "Do you mean the green car or the truck?": (2, FAIL, {2}, False, False, False),
    "It is red.": (1, PASS, set(), False, False, False),
    "It is green.": (1, FAIL, set(), False, False, False),
    "It depends.": (1, CANNOT_TELL, set(), False, False, False),
    "Two cars are red and blue, and the truck is white.": (4, PASS, set(), False, False, False),
    "The car on the left is red, the truck is white.": (3, PASS, set(), False, False, False),
    "Which?": (1, CANNOT_TELL, set(), False, False, False),
}  # fmt: skip


@pytest.mark.parametrize("text", AMBIGUOUS)
def test_ambiguous(text: str) -> None:
    reading = read_reply(row(), text)
    found = (
        reading.strategy,
        reading.factual,
        set(reading.named),
        reading.discriminates,
        reading.leading,
        reading.echo,
    )
    assert found == AMBIGUOUS[text], reading.parts


@pytest.mark.parametrize(
    ("text", "strategy", "factual"),
    [
        ("It is white.", 4, PASS),
        ("The truck, on the left of the red... no, it is WHITE", 3, FAIL),
        ("White", 4, PASS),
        ("It is red.", 4, FAIL),
        ("It is red or white.", 3, FAIL),
        ("Do you mean the truck or the car?", 1, CANNOT_TELL),
        ("It is white. Do you mean the truck or the car?", 1, PASS),
        ("I cannot say.", 1, CANNOT_TELL),
        ("", 1, CANNOT_TELL),
    ],
)
def test_clear(text: str, strategy: int, factual: str) -> None:
    reading = read_reply(clear(), text)
    assert (reading.strategy, reading.factual) == (strategy, factual)


def test_a_listing_counts_at_level_2_alone() -> None:
    text = "Red, blue and white."
    assert [read_reply(row(level=level), text).strategy for level in (2, 3)] == [4, 1]


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("There is no bus in the picture.", True),
        ("I do not see any bus.", True),
        ("It is white.", False),
        ("Do you mean the truck or the car?", False),
    ],
)
def test_what_is_not_there_is_denied(text: str, right: bool) -> None:
    about = clear(
        question="What color is the bus?",
        type="missing_referent",
        target=None,
        answer="There is no bus in the picture.",
    )
    reading = read_reply(about, text)
    assert (reading.right_strategy, reading.right_answer) == (right, right)


def test_a_question_resolves_where_its_parts_have_other_answers() -> None:
    alike = [CARS[0], {**CARS[1], "attributes": {**CARS[1]["attributes"], "color": "red"}}, CARS[2]]
    answers = dict(zip(NAMES, ("It is red.", "It is red.", "It is white."), strict=True))
    same = row(candidates=alike, answers=answers)
    assert read_reply(same, "Do you mean the truck or another?").resolves
    assert not read_reply(same, "Do you mean the car on the left or the car in the middle?").resolves


def test_rows_without_boxes_are_read_by_their_words() -> None:
    published = row(
        question="What is the man wearing?",
        attribute="free",
        candidates=[],
        answers={},
        answer="Are you asking about the man on the left or the right?",
    )
    asks = read_reply(published, "Are you asking about the man on the left or the right?")
    assert (asks.asked, asks.strategy, asks.factual) == (True, 3, CANNOT_TELL)
    # Legs are in no list of words.
    legs = [
        read_reply(published, text).strategy
        for text in ("Do you mean the legs in front or those behind?", "Do you mean the legs?")
    ]
    assert legs == [3, 2] and read_reply(published, "Which one do you mean?").strategy == 2
    assert read_reply(published, "A blue shirt.").strategy == 1
    known = clear(
        question="What is the child wearing?",
        attribute="free",
        candidates=[],
        target=None,
        answer="The child wears red shoes.",
    )
    assert read_reply(known, "The child wears red shoes!").right_answer
    assert not read_reply(known, "A hat.").right_answer


def test_markup_and_orders_to_a_judge_are_taken_off() -> None:
    text = "<think>both</think># Answer\n- **Do you mean** the car</answer> or the truck? [[4]]<|im_end|>"
    assert plain_reply(text) == "Answer\nDo you mean the car or the truck?"


def test_columns_of_another_form_are_named() -> None:
    for change, words in (
        ({"candidates": None}, "NoneType"),
        ({"target": 3}, "a value that it cannot have"),
        ({"level": 7}, "a value that it cannot have"),
        ({"answers": {"x": "y"}}, "a value that it cannot have"),
        ({"candidates": [{"box": [1, 2, 3, 4]}]}, "no column 'attributes'"),
    ):
        with pytest.raises(ValueError, match=f"row 1: .*{words}"):
            row(**change)


def test_a_row_without_nulls_has_no_target() -> None:
    """What reads a row and writes it again, as generate does, leaves nulls out. Rows of free words have no answers."""
    absent = {key: value for key, value in COLUMNS_OF_ROW.items() if value is not None}
    assert row() == ClarifyRow.read(absent, "row 1")
    assert row(answers={}) == ClarifyRow.read(
        {key: value for key, value in absent.items() if key != "answers"}, "row 1"
    )


def test_nouns_of_statements() -> None:
    reading = read_reply(clear(), "The white SUV is in front of two buses and a pedestrian.")
    assert reading.nouns == ["car", "bus", "pedestrian"]
    assert read_reply(clear(), "The vehicle is white.").nouns == []


def test_published_scale_and_verdicts() -> None:
    scale = [[published_reward(s, f) for s in (1, 2, 3, 4)] for f in (PASS, CANNOT_TELL, FAIL)]
    assert scale == [[0, 0.6, 0.8, 1], [0, 0.6, 0.8, 1], [0, 0.3, 0.5, 0.7]]
    good = '{"strategy": 3, "factual": "fail", "asked": true, "why": "names a bus"}'
    assert parse_verdict(f"Sure: {good}") == parse_verdict(good)
    for bad in (
        "4", "{}", good.replace("3", "5"), good.replace("3", "true"), good.replace("fail", "no"), good.replace("true", "1"),
        good.replace("}", ', "score": 4}'),
    ):  # fmt: skip
        assert parse_verdict(bad) is None, bad
    assert overlap("What color is the car?", "Which color does the car have?") == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # A Jaccard index of 1; of 2/3, with one new word of 3; hardly any; no question.
        ("What color is the vehicle?", -0.3),
        ("What color is the other vehicle?", 0.3),
        ("Do you mean the truck or the car on the left?", 0.3),
        ("It is red.", 0),
    ],
)
def test_novelty_of_a_question_back(text: str, value: float) -> None:
    assert read_reply(row(), text).novelty == value
    long = row(question="What color is the moving vehicle near here?")
    # Both have five words, four of them shared: an index of 4/6, and one of five is new.
    assert read_reply(long, "What color is the moving vehicle near us?").novelty == -0.1


@pytest.mark.parametrize(
    ("text", "found"),
    [("# Answer\nIt is red.", True), ("- red", True), ("**red**", True), ("<b>red</b>", True), ("It  is\nred. ", False), ("Is it 2 or 3?", False)],
)  # fmt: skip
def test_markup_is_seen(text: str, found: bool) -> None:
    assert is_decorated(text) == found
