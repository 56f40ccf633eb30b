"""Gate 3, duplicates: ROUGE-L at exactly its limit, pictures kept apart, answers that contradict each other, the cap across pictures."""

import pytest

from drive_vlm.builders.synthesis.gates.duplicates import check_duplicates, check_question_cap, rouge_f

TEN = list("abcdefghij")


def reasons(found):
    return [outcome.reason for outcome in found]


def test_rouge_by_hand():
    assert rouge_f(TEN, TEN) == 1
    assert rouge_f(TEN, list("abcdefgxyz")) == 0.7
    # Three of four and three of six: 2 * 3 / 10, whichever comes first.
    assert rouge_f(list("abcd"), list("abcxyz")) == rouge_f(list("abcxyz"), list("abcd")) == 0.6
    assert rouge_f(["a"], ["b"]) == rouge_f(["a"], []) == 0
    assert rouge_f([], []) == 1


@pytest.mark.parametrize(("shared", "reason"), [(7, ""), (8, "near")])
def test_exactly_the_limit_is_kept(row, shared, reason):
    other = " ".join([*TEN[:shared], *"zyxwvut"[: 10 - shared]])
    found = check_duplicates([row(id="1", question=" ".join(TEN)), row(id="2", question=other)])
    assert reasons(found) == ["", reason]
    assert found[1].scores["rouge"] == shared / 10 and ("1:" in found[1].detail) == bool(reason)


def test_questions_of_different_pictures_are_not_compared(row):
    same = {"question": "Is there a car in the picture?"}
    assert reasons(check_duplicates([row(id="1", image="a.png", **same), row(id="2", image="b.png", **same)])) == [
        "",
        "",
    ]


def test_questions_about_different_regions_are_not_compared(row):
    asked = {"task": "region", "question": "Describe the object in the rectangle."}
    regions = [("car", (0, 0, 9, 9)), ("car", (20, 0, 29, 9)), ("car", (0, 0, 9, 9))]
    rows = [row(id=str(i), region=region, **asked) for i, region in enumerate(regions)]
    assert reasons(check_duplicates(rows)) == ["", "", "exact"]


def test_case_and_punctuation_do_not_hide_a_copy(row):
    rows = [row(id="1", question="Is it red?", answer="Yes."), row(id="2", question="is it RED", answer="yes")]
    assert reasons(check_duplicates(rows)) == ["", "exact"]


def test_two_answers_to_one_question_are_both_rejected(row):
    rows = [
        row(id="1", question="Is it red?", answer="Yes."),
        row(id="2", question="Is the bus near?", answer="No."),
        row(id="3", question="Is it red?", answer="No."),
    ]
    assert reasons(check_duplicates(rows)) == ["two_answers", "", "two_answers"]


def test_a_rejected_question_is_not_one_to_compare_with(row):
    """b is near a and is rejected; c is near b alone, and stays."""
    texts = ["a b c d e f g h i j", "a b c d e f g h x y", "c d e f g h x y p q"]
    found = check_duplicates([row(id=str(i), question=text) for i, text in enumerate(texts)])
    assert reasons(found) == ["", "near", ""] and found[2].scores["rouge"] == 0.6


def test_the_outcomes_stand_in_the_order_of_the_rows(row):
    rows = [row(id=f"{i}", image=f"{i % 2}.png", question="Is it red?") for i in range(6)]
    assert reasons(check_duplicates(rows)) == ["", "", "exact", "exact", "exact", "exact"]


def test_the_cap_counts_pictures_and_not_the_order(row):
    rows = [row(id=f"r{i}", image=f"{i}.png", question="Is it red?") for i in range(9)]
    found = check_question_cap(rows, 4, seed=1)
    kept = {one.id for one, outcome in zip(rows, found, strict=True) if not outcome.reason}
    assert len(kept) == 4 and reasons(check_question_cap(rows, 9)) == [""] * 9
    turned = check_question_cap(rows[::-1], 4, seed=1)
    assert {one.id for one, outcome in zip(rows[::-1], turned, strict=True) if not outcome.reason} == kept
    assert kept != {f"r{i}" for i in range(4)}, "the first ones of the file are of one drive"


def test_the_benchmarks_question_has_no_cap(row):
    rows = [row(id=f"{i}", fixed=True, question="Describe it.") for i in range(5)]
    assert reasons(check_question_cap(rows, 1)) == [""] * 5
