"""Four options: letters of all spellings, rotations, position, consistency."""

import pytest

from drive_vlm.evaluation.clarify_choices import (
    Choice,
    choice_scores,
    gold_place,
    incomplete_rows,
    read_letter,
    rotated,
)

OPTIONS = ["It is red.", "Do you mean the car or the bus?", "It is blue.", "Do you mean the horse or the deer?"]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("B", 1), ("(c)", 2), ("D.", 3), ("A: It is red.", 0), ("B. Do you mean the car or the bus?", 1), ("The answer is C.", 2),
        ("Answer: (D)", 3), ("**B**", 1), ("It is blue", 2), ("do you mean the car or the bus?", 1),
        ("A car is red.", None), ("", None), ("E", None), ("Either option A or option B.", None), ("I do not know.", None),
    ],
)  # fmt: skip
def test_letters(text: str, place: int | None) -> None:
    assert read_letter(text, OPTIONS) == place


def test_the_right_option_stands_everywhere_once() -> None:
    places = [gold_place(2, rotation) for rotation in range(4)]
    assert sorted(places) == [0, 1, 2, 3]
    assert all(rotated(OPTIONS, rotation)[place] == OPTIONS[2] for rotation, place in enumerate(places))


def answers(row, ambiguous, said):
    """What is said to the four rotations of a row whose right option is number 0."""
    return [
        Choice(row, row, ambiguous, rotation, gold_place(0, rotation), place) for rotation, place in enumerate(said)
    ]


def test_scores() -> None:
    # Always right; always "A"; twice unread.
    made = answers("x", True, [gold_place(0, r) for r in range(4)]) + answers("y", False, [0, 0, 0, 0])
    made += answers("z", False, [None, None, 0, 0])
    found = choice_scores(made)
    assert found["accuracy"].value == pytest.approx(5 / 12) and found["accuracy"].n == 12
    assert (found["accuracy ambiguous"].value, found["accuracy clear"].value) == (1, 1 / 8)
    assert {letter: found[f"accuracy gold {letter}"].n for letter in "ABCD"} == dict.fromkeys("ABCD", 3)
    assert found["accuracy gold A"].value == pytest.approx(2 / 3) and found["accuracy gold B"].value == pytest.approx(
        1 / 3
    )
    assert found["said A"].value == pytest.approx(7 / 12) and found["said unread"].value == pytest.approx(2 / 12)
    assert (found["consistent"].value, found["consistent"].n) == (pytest.approx(1 / 3), 3)
    # A row without all rotations says nothing about consistency.
    assert "consistent" not in choice_scores(made[:3]) and (incomplete_rows(made), incomplete_rows(made[:7])) == (0, 1)
