"""Gate 5, the judge: replies read strictly, the threshold on each score, unread rows counted, the author refused."""

import pytest

from drive_vlm.builders.synthesis.gates.rubric import (
    RubricGate,
    parse_rubric,
    refuse_author,
    request_of,
    rubric_audit,
    rubric_outcome,
)
from drive_vlm.judges.judge import Judgement

PROMPT = (("user", "Q: {question}\nA: {answer}\nO: {objects}"),)


class Scripted:
    """A judge that says, for each request, the next of its texts."""

    block = 2

    def __init__(self, *replies):
        self.replies, self.asked = list(replies), []

    def ask(self, requests, attempt):
        self.asked += [(request, attempt) for request in requests]
        return [self.replies.pop(0) for _ in requests]


def scores(accuracy, relevance, hallucination):
    return f'Well. {{"accuracy": {accuracy}, "relevance": {relevance}, "hallucination": {hallucination}}}'


@pytest.mark.parametrize(
    "reply",
    [
        "5 5 5",
        scores(5, 5, 6),
        scores(5, 0, 5),
        scores(5, 4.5, 5),
        scores(5, "true", 5),
        scores(5, '"5"', 5),
        '{"accuracy": 5, "relevance": 5}',
        "",
    ],
)
def test_what_is_no_rating_is_unread(reply):
    assert parse_rubric(reply) is None


def test_a_rating_is_read_behind_its_reasons():
    assert parse_rubric(scores(1, 5, 3)) == {"accuracy": 1, "relevance": 5, "hallucination": 3}
    assert parse_rubric('<think>{"accuracy": 1}</think>' + scores(4, 4, 4)) is not None


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ((4, 4, 4), ""),
        ((3, 5, 5), "judge_accuracy"),
        ((5, 3, 5), "judge_relevance"),
        ((5, 4, 3), "judge_hallucination"),
    ],
)
def test_every_score_must_reach_the_threshold(reply, reason):
    found = rubric_outcome(Judgement(parse_rubric(scores(*reply)), "", 1), 4)
    assert found.reason == reason and list(found.scores.values()) == list(reply)


def test_rows_keep_their_own_scores_and_unread_ones_are_counted(row):
    judge = Scripted(scores(5, 5, 5), "prose", "prose again", scores(2, 5, 5), scores(4, 4, 4))
    gate = RubricGate(judge, PROMPT, attempts=2)
    rows = [row(id=f"{i}", question=f"Question {i}?", path=f"{i}.png") for i in range(4)]
    found = gate(rows)
    assert [outcome.reason for outcome in found] == ["", "unread", "judge_accuracy", ""]
    assert found[1].scores == {} and "prose again" in found[1].detail
    assert rubric_audit(found) == {
        "judged": 3,
        "unread": 1,
        "scores": {
            "accuracy": {"1": 0, "2": 1, "3": 0, "4": 1, "5": 1},
            "relevance": {"1": 0, "2": 0, "3": 0, "4": 1, "5": 2},
            "hallucination": {"1": 0, "2": 0, "3": 0, "4": 1, "5": 2},
        },
    }
    # The second row was asked for again, at the second attempt; the pictures are the rows' own.
    assert [attempt for _, attempt in judge.asked] == [0, 0, 1, 0, 0]
    assert [request.images for request, _ in judge.asked] == [
        ("0.png",),
        ("1.png",),
        ("1.png",),
        ("2.png",),
        ("3.png",),
    ]


def test_what_the_judge_is_asked(row):
    asked = row(question="{answer}?", answer="A car.", reasoning="Why.", objects=[("car", (0.4, 1, 2, 3.6))])
    request = request_of(asked, PROMPT, "drawn.jpg")
    assert request.turns == (("user", "Q: {answer}?\nA: Why.\nA car.\nO: car at [0, 1, 2, 4]"),)
    assert request.images == ("drawn.jpg",)


@pytest.mark.parametrize("author", ["Qwen/Qwen3-VL-8B", "runs/models/qwen3-vl-8b/", "qwen3-VL-8B"])
def test_the_author_is_no_judge(author):
    with pytest.raises(ValueError, match="--judge_may_be_author"):
        refuse_author("Qwen/Qwen3-VL-8B", ["other", author])
    refuse_author("Qwen/Qwen3-VL-32B", [author])
