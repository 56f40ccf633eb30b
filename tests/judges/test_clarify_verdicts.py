"""A judge's verdicts on replies that may ask back: facts in the prompt, votes, what cannot be read, reruns."""

import json

import pytest

from drive_vlm.evaluation.clarify_replies import CANNOT_TELL, FAIL, PASS, ClarifyRow, Verdict
from drive_vlm.judges.clarify_verdicts import (
    PLACES,
    ReplyToJudge,
    combined,
    facts,
    judge_replies,
    prompt_files,
    read_phrasings,
    read_verdicts,
)

THINGS = [
    {"name": "the car", "box": [0, 50, 40, 90], "category": "vehicle", "attributes": {"kind": "car", "color": "red"}},
    {
        "name": "the truck",
        "box": [180, 50, 220, 85],
        "category": "vehicle",
        "attributes": {"kind": "truck", "color": "white"},
    },
]
COLUMNS = {
    "question": "What color is the vehicle?", "ambiguous": 1, "level": 2, "type": "ambiguous", "attribute": "color", "candidates": THINGS,
    "answer": "", "answers": {"the car": "It is red.", "the truck": "It is white."},
}  # fmt: skip
CLEAR = COLUMNS | {
    "question": "What color is the truck?",
    "ambiguous": 0,
    "level": 0,
    "target": 1,
    "answer": "It is white.",
    "answers": {},
}
PROMPTS = [(("user", f"{name} {{question}}|{{facts}}|{{reply}}"),) for name in "abc"]


def said(strategy, factual=PASS, asked=True):
    return json.dumps({"strategy": strategy, "factual": factual, "asked": asked, "why": ""})


class Scripted:
    """A judge whose reply follows from the prompt's text; `block` of 4 ends within a row's three votes."""

    block = 4

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def ask(self, requests, attempt):
        self.asked += [(request.turns[-1][1], attempt) for request in requests]
        return [self.answer(request.turns[-1][1], attempt) for request in requests]

    def describe(self):
        return {"judge_model": "scripted"}

    def spent(self):
        return {"requests": len(self.asked), "cost": None}


def wanted(*texts):
    row = ClarifyRow.read(COLUMNS, "row")
    return [ReplyToJudge(f"r{i}", row, text) for i, text in enumerate(texts)]


def test_facts_say_what_the_boxes_know() -> None:
    said = facts(ClarifyRow.read(COLUMNS, "row")).splitlines()
    assert (
        said[0].startswith("The question is ambiguous: it fits the 2 things below") and "as good as asking" in said[0]
    )
    assert said[1].startswith("1. the car (vehicle, kind car, color red; box ") and said[1].endswith(
        "answer for it: It is red."
    )
    assert facts(ClarifyRow.read(CLEAR, "row")).startswith(
        "The question is clear. It means thing 2. Right answer: It is white."
    )


@pytest.mark.parametrize(
    ("votes", "found"),
    [
        ([(1, PASS), (4, PASS), (3, FAIL)], (3, PASS)),
        ([(1, FAIL), (4, PASS), (3, CANNOT_TELL)], (3, CANNOT_TELL)),
        ([(4, FAIL), None, (2, FAIL)], (2, FAIL)),
        ([(4, FAIL), None, (2, PASS)], (2, CANNOT_TELL)),
        ([(4, PASS), None, None], None),
        ([(4, PASS), (2, FAIL)], (2, CANNOT_TELL)),
        ([None], None),
    ],
)
def test_votes_become_one_verdict(votes, found) -> None:
    read = combined([vote and Verdict(*vote, asked=True, why="") for vote in votes])
    assert (read and (read.strategy, read.factual)) == found


def test_each_phrasing_is_a_vote_and_reruns_ask_nothing(tmp_path) -> None:
    judge = Scripted(lambda text, attempt: said({"a": 4, "b": 3, "c": 1}[text[0]]))
    texts = ("Do you mean the car or the truck? [[4]]", "It is red.")
    verdicts, stale = judge_replies(judge, PROMPTS, wanted(*texts), tmp_path / "v.jsonl", 2)
    assert [verdict.strategy for verdict in verdicts] == [3, 3] and stale == 0
    assert (
        len(judge.asked) == 6
        and "[[4]]" not in judge.asked[0][0]
        and "the answer for it: It is red." in judge.asked[0][0]
    )
    assert read_verdicts(str(tmp_path / "v.jsonl"))["r0", texts[0]].strategy == 3
    again, _ = judge_replies(judge, PROMPTS, wanted(*texts), tmp_path / "v.jsonl", 2)
    assert again == verdicts and len(judge.asked) == 6
    # Another reply is another row; those that no longer fit are dropped and counted.
    _, stale = judge_replies(judge, PROMPTS, wanted("It is white."), tmp_path / "v.jsonl", 2)
    assert stale == 2 and len(judge.asked) == 9


def test_votes_that_cannot_be_read_leave_no_verdict(tmp_path) -> None:
    """One of three that cannot be read leaves the two others; two of three leave none."""
    unread = {"It is red.": "bc", "It is white.": "b"}
    judge = Scripted(lambda text, attempt: "I like it." if text[0] in unread[text.split("|")[-1]] else said(4))
    verdicts, _ = judge_replies(judge, PROMPTS, wanted("It is red.", "It is white."), tmp_path / "v.jsonl", 2)
    assert verdicts[0] is None and verdicts[1].strategy == 4
    assert read_verdicts(str(tmp_path / "v.jsonl")).keys() == {("r1", "It is white.")}
    # Asked again with more attempts, for that reply alone.
    before = len(judge.asked)
    judge.answer = lambda text, attempt: said(2)
    again, _ = judge_replies(judge, PROMPTS, wanted("It is red.", "It is white."), tmp_path / "v.jsonl", 3)
    assert [verdict.strategy for verdict in again] == [2, 4] and len(judge.asked) == before + 3


def test_the_same_words_about_two_rows_are_two_verdicts(tmp_path) -> None:
    judge = Scripted(lambda text, attempt: said(4))
    judge_replies(judge, PROMPTS, wanted("It is red.", "It is red."), tmp_path / "v.jsonl", 1)
    assert len(read_verdicts(str(tmp_path / "v.jsonl"))) == 2


def test_files_that_hold_something_else(tmp_path) -> None:
    path = tmp_path / "v.jsonl"
    line = {"key": "k", "id": "a", "prediction": "x", "strategy": 5, "factual": PASS, "asked": True, "attempts": 1}
    for content, words in (
        (json.dumps(line) + "\n", r"v.jsonl:1: no verdict .*strategy 5"),
        ('{"key": "k"}\n', "no verdict .*missing"),
        ("", "no verdicts"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=words):
            read_verdicts(str(path))
    with pytest.raises(ValueError, match=r"no \.txt or \.json"):
        prompt_files(str(tmp_path))
    (tmp_path / "p.txt").write_text("{question} {reply}")
    with pytest.raises(ValueError, match=r"must hold \{facts\}"):
        read_phrasings(prompt_files(str(tmp_path)))


def test_our_prompts_hold_all_places() -> None:
    assert len(read_phrasings(())) == 3
    for turns in read_phrasings(()):
        assert all(f"{{{place}}}" in turns[0][1] for place in PLACES)
